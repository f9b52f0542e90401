"""Every chapter keeps the contract, and every rule of the contract can fail."""

import re

import pytest
import yaml

import chapters as book

from . import contract
from .conftest import CHAPTERS, ROOT

PAGES = [
    p
    for p in [*ROOT.glob("*.md"), *(ROOT / "book").rglob("*.md")]
    if not any(part.startswith(("_", ".")) for part in p.relative_to(ROOT).parts)
]


# Chapters lie in the folder of their part. What else is executed is an appendix, and no lesson.
WRITTEN = [chapter for chapter in CHAPTERS if "/" in chapter.short]
APPENDICES = [chapter for chapter in CHAPTERS if chapter not in WRITTEN]
FOR_ALL = [contract.figures, contract.wording]


@pytest.mark.parametrize("rule", contract.RULES, ids=lambda r: r.__name__)
@pytest.mark.parametrize("chapter", WRITTEN, ids=lambda c: c.short)
def test_a_chapter_keeps_the_contract(chapter: book.Chapter, rule: object) -> None:
    faults = list(rule(contract.Page(chapter.source.read_text(encoding="utf-8"))))
    assert not faults, f"{chapter.name}.md:\n" + "\n".join(faults)


@pytest.mark.parametrize("rule", FOR_ALL, ids=lambda r: r.__name__)
@pytest.mark.parametrize("appendix", APPENDICES, ids=lambda c: c.short)
def test_an_executed_appendix_keeps_what_concerns_it(appendix: book.Chapter, rule: object) -> None:
    faults = list(rule(contract.Page(appendix.source.read_text(encoding="utf-8"))))
    assert not faults, f"{appendix.name}.md:\n" + "\n".join(faults)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_is_worded_plainly(page) -> None:
    faults = list(contract.words_to_avoid(contract.plain_prose(page.read_text(encoding="utf-8"))))
    assert not faults, "\n".join(faults)


PLAN = [
    (f"{part['folder']}/{page['file']}", page.get("needs") or [])
    for part in yaml.safe_load((ROOT / "book" / "contents.yml").read_text("utf-8"))["parts"]
    for page in part["chapters"]
]
LABEL = r"\((?:eq|def):[a-z0-9-]+\)|:label: *\S+|name: fig-\S+"


def needed_by(short: str) -> set[str]:
    """The chapters that one builds on, directly or by what they build on, and itself."""
    files = {name.split("/")[1]: (name, needs) for name, needs in PLAN}
    found, left = set(), [short.split("/")[1]]
    while left:
        name, needs = files[left.pop()]
        found.add(name)
        left += needs
    return found


@pytest.mark.parametrize("chapter", WRITTEN, ids=lambda c: c.short)
def test_a_chapter_names_the_chapters_that_it_builds_on(chapter: book.Chapter) -> None:
    homes = {}
    for other in WRITTEN:
        homes["companion." + other.short.replace("/", ".")] = other.short
        for label in re.findall(LABEL, other.source.read_text(encoding="utf-8")):
            homes[re.sub(r"^\(|\)$|^:?\w+: *", "", label)] = other.short
    order = [name for name, _ in PLAN]
    place = order.index(chapter.short)
    known = needed_by(chapter.short) | set(order[place:])
    assert place == 0 or dict(PLAN)[chapter.short], "give needs: in book/contents.yml"
    page = contract.Page(chapter.source.read_text(encoding="utf-8"))
    assert contract.not_needed(page, homes, known) == []


def test_what_is_taken_from_a_chapter_that_is_not_needed_is_found() -> None:
    text = "# T\n\nBy {eq}`eq:one` and {prf:ref}`thm-two`.\n\n" + cell("from companion.a import b")
    homes = {"eq:one": "a/one", "thm-two": "a/two", "companion.a.b": "a/b", "eq:other": "a/c"}
    page = contract.Page(text)
    assert contract.not_needed(page, homes, {"a/two"}) == ["companion.a.b", "eq:one"]
    assert contract.not_needed(page, homes, {"a/one", "a/two", "a/b"}) == []


def test_labels_are_unique_in_the_book() -> None:
    seen: dict[str, str] = {}
    for chapter in CHAPTERS:
        for kind, name in contract.Page(chapter.source.read_text(encoding="utf-8")).labels:
            label = f"{kind}:{name}"
            assert label not in seen, f"{label} is in {seen[label]} and in {chapter.name}"
            seen[label] = chapter.name


def cell(source: str, **metadata: object) -> str:
    head = "---\n" + yaml.safe_dump(metadata) + "---\n" if metadata else ""
    return f"```{{code-cell}} ipython3\n{head}{source}\n```\n"


def folded(summary: str, **more: object) -> dict:
    """The metadata of a cell that is folded under its summary."""
    return {"tags": ["hide-input"], "mystnb": {"code_prompt_show": summary, **more}}


FIGURE = {"figure": {"name": "fig-a", "caption": "What to see."}, "image": {"alt": "a line"}}
EXERCISE = """
```{{exercise}} level {n} of 3
:label: ex-{n}

Why is this so, and what would change if it were not?
```

```{{solution-start}} ex-{n}
:class: dropdown
```

Because of the definition.

{code}

```{{solution-end}}
```
"""
QUESTIONS = """

## A section

It has a few words.

```{quick-questions}
1. Which sign has it?

   A plus.

2. And if $x$ is doubled,
   which one?

   The same.
```

(a-target)=
## Numerics and limits

A few words.
"""
GOOD = (
    """\
---
jupytext:
  formats: md:myst
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
companion: [companion.part.name]
sources: [S1]
---
(ch-name)=
# Title

```{chapter-facts}
```

You need from outside this book: sums.

"""
    + cell("import torch\n\ng = torch.Generator().manual_seed(0)", **folded("Set-up"))
    + "\nA definition.\n\n$$ p = 1 $$ (def:mass)\n\nA claim.\n\n$$ q = 1 $$ (eq:total)\n\n"
    + cell('verify.equal("eq:total", q)', **folded("Check: the sum, by torch"))
    + "\nA figure.\n\n"
    + cell("fig, ax = plt.subplots()", **folded("The figure's code", **FIGURE))
    + "\n"
    + "\n".join(f"Step {n}.\n\n" + cell(f"print({n})") for n in range(6))
    + "\nA sentence of eight words stands right here. " * 60
    + QUESTIONS
    + "\n## Exercises\n"
    + "".join(EXERCISE.format(n=n, code=cell("assert True")) for n in (1, 2, 3))
    + "\n\n```{bibliography}\n:filter: docname in docnames\n```\n"
)


def faults(text: str) -> dict[str, list[str]]:
    found = {rule.__name__: list(rule(contract.Page(text))) for rule in contract.RULES}
    return {name: said for name, said in found.items() if said}


def test_a_good_chapter_has_no_fault() -> None:
    assert faults(GOOD) == {}


@pytest.mark.parametrize(
    ("rule", "old", "new", "said"),
    [
        ("front_matter", "sources: [S1]\n", "", "lacks sources"),
        ("front_matter", "name: python3", "name: ir", "must be python3"),
        ("opening", "(ch-name)=\n", "", "must begin with"),
        ("opening", "A claim.", "# Another\n", "one title, not 2"),
        ("opening", "{chapter-facts}", "{note}", "chapter-facts"),
        ("ending", ":filter: docname in docnames\n", "", "bibliography"),
        ("words_per_line", "A sentence of eight words stands right here. ", "", "a line, not 12"),
        ("setup", ".manual_seed(0)", ".manual_seed(1)", "first cell must"),
        ("setup", "print(1)", "torch.manual_seed(1)", "cell 5 seeds globally"),
        ("folding", "print(1)", "---\ntags: [hide-input]\n---\nprint(1)", "cell 5 is folded"),
        ("folding", "tags:\n- hide-input\n---\nverify", "tags: []\n---\nverify", "is in view"),
        ("folding", "code_prompt_show: Set-up", "code_prompt_show: ''", "without code_prompt"),
        ("plain_cells", "print(0)", "print(0)\n" * 21, "in view and has 21 lines"),
        ("plain_cells", "print(0)", "twice = lambda x: 2 * x", "assigns a lambda"),
        ("plain_cells", "print(0)", "print((n := 3))", "a walrus"),
        ("plain_cells", "print(0)", "print(sorted([2], key=lambda x: -x))", "lambdas in"),
        ("plain_cells", "print(", "print(*[[a, b, c + d * e - f] for a in (b, c, d)], ", "nodes a"),
        (
            "plain_cells",
            'verify.equal("eq:total", q)',
            'verify.equal("eq:total", q)\n' * 3,
            "two ver",
        ),
        ("formatting", "print(0)", "print( 0 )", "cell 4 is not formatted"),
        ("folding", "print(1)", "---\ntags: [remove-cell]\n---\nprint(1)", "tag remove-cell"),
        ("figures", "caption: What to see.", "caption: ''", "without a caption"),
        ("figures", "alt: a line", "alt: ''", "without alt"),
        ("figures", "name: fig-a", "name: a", "without the name"),
        ("figures", "A figure.", "```{figure} a.png\nSee.\n```", "a.png has no alt"),
        ("equations", '"eq:total"', '"eq:sum"', "eq:total is claimed but never verified"),
        ("equations", "(eq:total)", "(def:total)", "eq:total is verified but never displayed"),
        ("equations", "(def:mass)", "(def:Mass)", "lower-case"),
        ("equations", "A claim.", "$$ p = 2 $$ (def:mass)", "def:mass labels 2"),
        ("macros", "A claim.", r"$\newcommand{\x}{y}$", "newcommand"),
        ("exercises", ":label: ex-1\n", ":class: x\n", "without a label"),
        ("exercises", "{solution-start} ex-1", "{note} ex-1", "ex-1 has no solution"),
        ("exercises", "{solution-start} ex-1", "{solution-start} ex-9", "ex-9, which is no"),
        ("exercises", "{exercise}", "{note}", "0 exercises"),
        ("levels", "{exercise} level 2 of 3", "{exercise} Hard", "must say its level"),
        ("levels", "{exercise} level 2 of 3", "{exercise} level 4 of 3", "must say its level"),
        ("quick_questions", "right here. ", "right here. And here. ", "words after quick"),
        ("quick_questions", "A few words.", "A few words. " * 201, "'Numerics and limits' ends 6"),
        ("quick_questions", "```\n\n(a-target)=\n", "```\n\nMore.\n\n", "do not end a section"),
        ("quick_questions", "2. And", "\n   And", "a list of 1 quick questions"),
        ("quick_questions", "   The same.\n", "", "no question with an answer"),
        ("quick_questions", "sign has it?", "sign has it.", "no question with an answer"),
        ("outside", "from outside this book", "also", "'from outside this book'"),
        ("exercises", cell("assert True"), "Text.\n", "no solution checks itself"),
        ("wording", "A claim.", "This is simply so.", "'simply' in"),
    ],
)
def test_each_rule_can_fail(rule: str, old: str, new: str, said: str) -> None:
    assert old in GOOD
    found = faults(GOOD.replace(old, new))
    assert any(said in fault for fault in found.get(rule, [])), found


def test_words_are_counted_outside_code_and_mathematics() -> None:
    text = (
        "One two\n\n$$ three = x $$ (def:a)\n\nand $four$\n\n```python\nfive\n```\n\n:six: seven\n"
    )
    assert contract.Page(text).prose.split() == ["One", "two", "and"]


def test_quoted_code_is_not_prose() -> None:
    assert not list(contract.words_to_avoid(contract.plain_prose("`simply` and\n> simply\n")))
    assert list(contract.words_to_avoid(contract.plain_prose("Simply put.")))


def test_folded_cells_do_not_count_against_the_words() -> None:
    lesson = cell("print(0)") * 12
    check = cell("x = 0\n" * 19 + 'verify.page("eq:a", {})', **folded("Check"))
    page = contract.Page("word " * 144 + "\n\n" + lesson + check * 15)
    assert not list(contract.words_per_line(page))
    page = contract.Page("word " * 143 + "\n\n" + lesson + check * 15)
    assert list(contract.words_per_line(page))
