"""The search of the book: the chapter that defines a term comes first, and Chinese is found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

from .tables import GlossaryTable, read_rows

HAN = "\u3400-\u9fff"
# Of Chinese every pair of neighboring characters is a word of the index, as in most search engines:
# nothing then has to know where one word ends and the next begins.
SPLITTER = """
var splitQuery = (query) => {
  const han = /[\\u3400-\\u9fff]+/gu, found = [];
  const rest = query.replace(han, (run) => {
    if (run.length === 1) { found.push(run); }
    for (let i = 0; i + 1 < run.length; i++) { found.push(run.slice(i, i + 2)); }
    return " ";
  });
  return [...rest.split(/[^\\p{Letter}\\p{Number}_\\p{Emoji_Presentation}]+/gu)
    .filter((term) => term), ...found];
};
"""
# The page that is at home with what was asked for first, chapters before the library's reference.
SCORER = """
var Scorer = {
  homes: HOMES,
  asked: (new URLSearchParams(window.location.search).get("q") || "").trim().toLowerCase(),
  score: (result) => {
    const [page, , , , score] = result;
    const home = Scorer.homes[Scorer.asked] || [];
    const reference = page.startsWith("book/api");
    return score + (home.includes(page) ? 100 : 0) - (reference ? 20 : 0);
  },
  objNameMatch: 11, objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
"""


class SearchBook(SearchEnglish):
    """English words by their stems, Chinese by pairs of characters."""

    lang = "book"
    language_name = "English and Chinese"
    js_splitter_code = SPLITTER

    def split(self, input: str) -> list[str]:
        """Split a text of the book as the page splits what is asked for."""
        words: list[str] = []
        for run in re.findall(rf"[{HAN}]+|[^\W{HAN}]+", input):
            if re.match(rf"[{HAN}]", run):
                # A single character can be asked for as well.
                words += [*run, *(run[i : i + 2] for i in range(len(run) - 1))]
            else:
                words.append(run)
        return words

    def word_filter(self, stemmed_word: str) -> bool:
        """Keep Chinese characters, which are shorter than English words."""
        chinese = re.match(rf"[{HAN}]", stemmed_word) is not None
        return chinese or super().word_filter(stemmed_word)


def term_homes(app: Sphinx) -> dict[str, list[str]]:
    """Say which pages define a term, by its English and Chinese names."""
    path = Path(app.srcdir) / app.config.companion_data / GlossaryTable.file
    homes: dict[str, list[str]] = {}
    if not path.is_file():
        return homes
    plan = app.companion_plan  # type: ignore[attr-defined]
    for row in read_rows(path, GlossaryTable.columns):
        pages = [plan.find(name) for name in re.split(r"[,;]\s*", row["home"])]
        for name in (row["en"], row["zh_hans"], row["zh_hant"]):
            for variant in {name, re.sub(r"\s*\(.*?\)", "", name)}:
                known = homes.setdefault(variant.strip().lower(), [])
                known += [p.docname for p in pages if p is not None and p.docname not in known]
    return homes


def write_scorer(app: Sphinx) -> None:
    """Write the rule by which the results are ranked."""
    homes = json.dumps(term_homes(app), ensure_ascii=False)
    path = Path(app.doctreedir) / "scorer.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SCORER.replace("HOMES", homes), encoding="utf-8")
    app.config.html_search_scorer = str(path)


def add_script(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Load our part of the search on its page."""
    if pagename == "search":
        app.add_js_file("search.js", loading_method="defer")


def setup(app: Sphinx) -> None:
    """Register the language of the search and its ranking."""
    app.add_search_language(SearchBook)
    # After the plan has been read.
    app.connect("builder-inited", write_scorer, priority=900)
    app.connect("html-page-context", add_script)
