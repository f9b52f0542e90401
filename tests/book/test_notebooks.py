"""Exported notebooks: nothing of MyST is left, and what the page shows is there."""

import ast
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

import chapters as book
import export_notebooks as notebooks
from chapters import ChapterError
from companion.verify.tex._source import _page
from export_notebooks import RECORD, Book, Page, export, first_cell, on_one_line, short_citation

from .conftest import HEADER, ROOT

BIB = """
@article{one2001, author={One, Ann}, title={A law}, journal={J}, year={2001}}
@article{two2002, author={van den Two, Bo and de Three, Cy}, title={B}, journal={J}, year={2002}}
@article{many2003, author={Four, Di and Five, Ed and Six, Flo}, title={C}, journal={J}, year={2003}}
@misc{rest2004, author={Seven, G{\\"u}l and others}, title={D}, year={2004}}
"""
CONTENTS = """
parts:
  - title: Part
    folder: part
    chapters:
      - {file: zero, title: Planned zero, question: "Why?"}
      - {file: one, title: One, question: "What?"}
      - {file: two, title: Two, question: "How?"}
"""


def record(name: str, value: str, mime: str = "text/plain") -> NotebookNode:
    """Make the output that a glued value leaves."""
    prefix = "application/papermill.record/"
    return nbformat.v4.new_output(
        "display_data",
        data={prefix + mime: value, prefix + "text/plain": value},
        metadata={"scrapbook": {"mime_prefix": prefix, "name": name}},
    )


def check(label: str) -> NotebookNode:
    """Make the output that a verification leaves."""
    data = {"text/plain": f"✓ {label} · read from the page", RECORD: {"label": label}}
    return nbformat.v4.new_output("display_data", data=data)


@pytest.fixture
def write(tiny: Path) -> Callable[..., NotebookNode]:
    """Export a chapter with this text, whose code cells left these outputs in turn."""
    (tiny / "book/contents.yml").write_text(CONTENTS, encoding="utf-8")
    (tiny / "references.bib").write_text(BIB, encoding="utf-8")

    def chapter(text: str, *outputs: list[NotebookNode], config: str = "") -> NotebookNode:
        with (tiny / "_config.yml").open("a", encoding="utf-8") as file:
            file.write(config)
        (tiny / "book/part/one.md").write_text(f"{HEADER}# One\n\n{text}\n", encoding="utf-8")
        found = book.chapters(tiny)
        one = found[0]
        executed = book.read_chapter(one)
        code = [cell for cell in executed.cells if cell.cell_type == "code"]
        for number, cell in enumerate(code, 1):
            cell.execution_count = number
        for cell, left in zip(code, outputs, strict=False):
            cell.outputs = left
        book.write_atomically(one.executed, nbformat.writes(executed))
        return export(Book(tiny, found), one)

    return chapter


def prose(notebook: NotebookNode) -> str:
    """Join what the notebook says outside of code."""
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def code(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells that the chapter has, without the one that installs."""
    first, *rest = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert first.id == "install-what-is-missing"
    return rest


Write = Callable[..., NotebookNode]
GLUED = "```{code-cell} ipython3\nx = 1\n```\n"


def test_displayed_equations_carry_their_numbers(write: Write) -> None:
    said = prose(
        write("$$\na=b\n$$ (def:a)\n\nBy {eq}`def:a` and {eq}`eq:b`:\n\n$$\nb=c\n$$ (eq:b)")
    )
    assert "$$\na=b\n\\tag{2.1}\n$$" in said
    assert "$$\nb=c\n\\tag{2.2}\n$$" in said
    assert "By (2.1) and (2.2):" in said


def test_a_reference_to_another_chapter_has_its_number(write: Write, tiny: Path) -> None:
    with (tiny / "book/part/two.md").open("a", encoding="utf-8") as file:
        file.write("\n$$\nu=v\n$$ (eq:far)\n")
    assert "See (3.1)." in prose(write("See {eq}`eq:far`."))


def test_references_link_to_the_published_book_once_it_has_an_address(write: Write) -> None:
    text = "{eq}`eq:a`, {doc}`two`, {doc}`the second </book/part/two>`, {doc}`zero`."
    text += "\n\n$$\na\n$$ (eq:a)"
    plain = prose(write(text))
    assert "(2.1), Two, the second, Planned zero." in plain
    config = "sphinx: {config: {companion_site: 'https://example.org/book/'}}\n"
    linked = prose(write(text, config=config))
    place = "https://example.org/book/book/part"
    assert f"[(2.1)]({place}/one.html#equation-eq-a)" in linked
    assert f"[Two]({place}/two.html), [the second]({place}/two.html), Planned zero." in linked
    assert f"[read it online]({place}/one.html)" in linked


def test_a_reference_to_nothing_is_refused(write: Write) -> None:
    with pytest.raises(ChapterError, match=r"book/part/one\.md .* 'eq:nowhere'"):
        write("See {eq}`eq:nowhere`.")


def test_works_are_named_by_author_and_year_and_listed_at_the_end(write: Write) -> None:
    said = prose(
        write(
            "A {cite}`one2001`, B {cite}`two2002,many2003`, C {cite:t}`rest2004`.\n\n"
            "```{bibliography}\n:filter: docname in docnames\n```"
        )
    )
    told = "A [One, 2001], B [Four et al., 2003; van den Two and de Three, 2002], "
    assert told + "C Seven et al. [2004]." in said
    listed = said.partition("## References")[2]
    assert [line[:6] for line in listed.strip().splitlines()] == [
        "- Di F",
        "- Ann ",
        "- Gül ",
        "- Bo v",
    ]


def test_every_work_of_the_book_can_be_named() -> None:
    shared = Book(ROOT, [])
    for entry in shared.works.entries.values():
        authors, year = short_citation(entry)
        assert authors, entry.key
        assert "{" not in authors, entry.key
        assert year.isdecimal(), entry.key


def test_statements_are_quotations_under_bold_headings(write: Write) -> None:
    said = prose(
        write(
            "```{prf:theorem} A *law*\n:label: thm-a\nFor $x$\nit holds that\n\n$$\na=\n"
            "b\n$$ (eq:a)\n```\n\n```{prf:proof}\nBy {prf:ref}`thm-a`, $x\n+y$.\n```\n\n"
            "```{prf:theorem}\n:label: thm-b\nMore.\n```\n\n```{prf:remark}\nLess.\n```"
        )
    )
    assert "> **Theorem 2.1 (A *law*).**\n>\n> For $x$\n> it holds that" in said
    # A formula of a quotation stands on one line: the signs of the quotation would get into it.
    assert "> $$ a= b \\tag{2.1} $$" in said
    assert "> **Proof.**\n>\n> By Theorem 2.1, $x +y$. $\\square$" in said
    assert "> **Theorem 2.2.**\n>\n> More." in said
    assert "> **Remark 2.1.**\n>\n> Less." in said


def test_formulas_on_one_line_leave_code_and_prose_alone() -> None:
    text = "a\nb `$x\ny$` $c\nd$, \\$5\nand $$e\n f$$"
    assert on_one_line(text) == "a\nb `$x\ny$` $c d$, \\$5\nand $$e f$$"


def test_notes_are_quotations_and_folded_ones_stay_folded(write: Write) -> None:
    said = prose(
        write(
            "```{admonition} Source note: ERR-1\n:class: note\nIt is {cite}`one2001`.\n```\n\n"
            "```{admonition} Long\n:class: dropdown\nFolded.\n```"
        )
    )
    assert "> **Source note: ERR-1**\n>\n> It is [One, 2001]." in said
    assert "<details>\n<summary>Long</summary>\n\nFolded.\n\n</details>" in said


def test_of_a_figure_that_moves_the_caption_stays_and_a_link(write: Write) -> None:
    text = "```{interactive} some\n:data: try_some\n\n**Try it.** Move $x$.\n```"
    assert "> On the page of the book a figure stands here that moves." in prose(write(text))
    config = "sphinx: {config: {companion_site: 'https://example.org/book/'}}\n"
    said = prose(write(text, config=config))
    assert "[page of the book](https://example.org/book/book/part/one.html#try-some)" in said
    assert "> **Try it.** Move $x$." in said


def test_exercises_are_numbered_and_solutions_folded(write: Write) -> None:
    said = prose(
        write(
            "```{exercise} Hard\n:label: ex-a\nShow it.\n```\n\n```{solution} ex-a\n"
            ":class: dropdown\nDone.\n```\n\nAs in exercise {ref}`ex-a`, and in {ref}`ex-a`."
        )
    )
    assert "> **Exercise 2.1 (Hard).**\n>\n> Show it." in said
    assert "<summary>Solution of Exercise 2.1</summary>\n\nDone.\n\n</details>" in said
    assert "As in exercise 2.1, and in Exercise 2.1." in said


def test_a_solution_with_code_is_folded_in_all_its_parts(write: Write) -> None:
    notebook = write(
        "````{exercise}\n:label: ex-a\nShow it.\n````\n\n````{solution-start} ex-a\n"
        ":class: dropdown\n````\nBefore.\n\n" + GLUED + "\nAfter.\n````{solution-end}\n````\n\n"
        "Outside.\n\n" + GLUED
    )
    said = prose(notebook)
    for part in ("Before.", "After."):
        assert f"<summary>Solution of Exercise 2.1</summary>\n\n{part}\n\n</details>" in said
    assert said.rstrip().endswith("</details>\n\nOutside.")
    inside, outside = code(notebook)
    assert inside.metadata["jupyter"] == {"source_hidden": True, "outputs_hidden": True}
    assert outside.metadata == {}


def test_quick_questions_stay_in_view_and_their_answers_are_folded(write: Write) -> None:
    said = prose(
        write(
            "$$\na\n$$ (eq:a)\n\n```{quick-questions}\n1. Which sign\n   has {eq}`eq:a`?\n\n"
            "   A minus:\n\n   - one\n   - two\n\n2. And $3.\n   14$?\n\n   None.\n```\n\nText."
        )
    )
    assert said.endswith(
        "**Quick question.** Which sign\nhas (2.1)?\n\n"
        "<details>\n<summary>Answer</summary>\n\nA minus:\n\n- one\n- two\n\n</details>\n\n"
        "**Quick question.** And $3.\n14$?\n\n"
        "<details>\n<summary>Answer</summary>\n\nNone.\n\n</details>\n\nText."
    )


def test_numbers_come_from_the_run_in_their_format(write: Write) -> None:
    text = "{glue:text}`a:.0e`, {glue:text}`b:,`, {glue:text}`c`, {glue:text}`d:.1f` %.\n\n" + GLUED
    left = [record("a", "0.00012"), record("b", "12345"), record("c", "'word'"), record("d", "7")]
    notebook = write(text, left)
    assert "1e-04, 12,345, word, 7.0 %." in prose(notebook)
    assert code(notebook)[0].outputs == []


def test_a_number_that_the_run_did_not_leave_is_refused(write: Write) -> None:
    with pytest.raises(ChapterError, match="the run left no text/plain under 'gone'"):
        write("It is {glue:text}`gone:.2f`.")


def test_a_pasted_formula_is_displayed_with_its_number(write: Write) -> None:
    left = [record("f", r"$\displaystyle x = y$", "text/latex")]
    said = prose(write("```{glue:math} f\n:label: eq:f\n```\n\n{eq}`eq:f`\n\n" + GLUED, left))
    assert "$$\nx = y\n\\tag{2.1}\n$$" in said
    assert "\n(2.1)" in said


def test_library_names_are_code_and_headings_are_named(write: Write) -> None:
    said = prose(
        write(
            "{py:func}`~companion.core.f`, {py:class}`companion.core.C`, {ref}`ch-a`.\n\n"
            "(ch-a)=\n\n## A *part*\n\n{ref}`words <ch-a>`"
        )
    )
    assert "`f()`, `companion.core.C`, A part." in said
    assert "\n\nwords" in said
    assert "(ch-a)=" not in said


def test_what_is_not_known_is_refused(write: Write) -> None:
    with pytest.raises(ChapterError, match=r"role \{sub\}"):
        write("H{sub}`2`O")
    with pytest.raises(ChapterError, match=r"directive \{mermaid\}"):
        write("```{mermaid}\na\n```")


def test_facts_are_dropped_and_chinese_and_listings_stay(write: Write) -> None:
    said = prose(
        write("```{chapter-facts}\n```\n\n注意力\n机制 *字*\n\n```python\n{eq} = `x`\n```")
    )
    assert "facts" not in said
    assert "注意力\n机制 *字*\n\n```python\n{eq} = `x`\n```" in said


def test_figures_have_captions_and_descriptions(write: Write) -> None:
    picture = nbformat.v4.new_output(
        "display_data", data={"image/png": "AAAA", "image/svg+xml": "<svg>"}
    )
    text = (
        '```{code-cell} ipython3\n---\nmystnb:\n  code_prompt_show: "The figure\'s code"\n'
        "  figure:\n    caption: |\n      It falls, {cite}`one2001`,\n      by {eq}`eq:a`.\n"
        "    name: fig-a\n  image: {alt: A falling line}\ntags: [hide-input]\n---\ndraw = 1\n"
        "```\n\nSee {numref}`fig-a`.\n\n$$\na\n$$ (eq:a)"
    )
    notebook = write(text, [picture])
    (cell,) = code(notebook)
    assert cell.metadata == {"jupyter": {"source_hidden": True}, "cellView": "form"}
    assert cell.outputs[0].data == {"image/png": "AAAA"}
    assert cell.outputs[0].metadata["image/png"]["alt"] == "A falling line"
    said = prose(notebook)
    assert "*The figure's code*" in said
    assert "**Fig. 2.1.** It falls, [One, 2001], by (2.1)." in said
    assert "See Fig. 2.1." in said


def test_a_check_says_which_equation_it_checks(write: Write) -> None:
    notebook = write(f"$$\na\n$$ (eq:a)\n\n{GLUED}", [check("eq:a")])
    assert "Checks (2.1):" in prose(notebook)
    assert list(code(notebook)[0].outputs[0].data) == ["text/plain"]


def test_code_needs_no_renderer_and_names_numbers(write: Write) -> None:
    source = (
        "import json\nfrom myst_nb import glue\n\nglue('a', 1, display=False)  # (eq:a)\n"
        'verify.identity("eq:a", 1, 1, show="a")\nverify.identity(\n    "eq:a",\n    show="a",\n)'
    )
    text = f"```{{code-cell}} ipython3\n{source}\n```\n\n$$\na\n$$ (eq:a)"
    (cell,) = code(write(text))
    assert "myst_nb" not in cell.source
    assert "show=" not in cell.source
    assert "# (2.1)" in cell.source
    assert 'verify.identity("eq:a", 1, 1)' in cell.source  # a name is not a number
    tree = ast.parse(cell.source)
    assert any(isinstance(node, ast.FunctionDef) and node.name == "glue" for node in tree.body)


def test_the_local_glue_is_there_before_it_is_used(write: Write) -> None:
    source = "from myst_nb import glue\n\nglue('a', 1, display=False)"
    (cell,) = code(write(f"```{{code-cell}} ipython3\n{source}\n```"))
    exec(compile(cell.source, "cell", "exec"), {})


@pytest.mark.parametrize("address", ["", "https://example.org/repository"])
def test_the_first_code_cell_installs_only_what_is_missing(
    address: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if address:
        with (tiny / "_config.yml").open("a", encoding="utf-8") as file:
            file.write(f"repository: {{url: '{address}'}}\n")
    source = first_cell(Book(tiny, [])).source
    called: list[list[str]] = []
    monkeypatch.setattr("subprocess.check_call", called.append)
    exec(compile(source, "first", "exec"), {})
    assert called == [], "the library is there"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if address:
        exec(compile(source, "first", "exec"), {})
        assert called[0][-1] == f"llm-math-companion[book] @ git+{address}"
        assert called[1][-2:] == ["companion.data", "install"]
    else:
        with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[book\]'"):
            exec(compile(source, "first", "exec"), {})


def test_the_notebook_tells_the_library_whose_its_numbers_are(write: Write, tmp_path: Path) -> None:
    text = (
        "$$\na=b+c\n$$ (eq:a)\n\n```{prf:theorem}\n:label: thm\nIt is\n\n$$\nd\n=e\n$$ (eq:d)\n```"
    )
    path = tmp_path / "one.ipynb"
    path.write_text(nbformat.writes(write(text)), encoding="utf-8")
    read = _page(path, 0)
    assert {label: tex.split() for label, tex in read.items()} == {
        "eq:a": ["a=b+c"],
        "eq:d": ["d", "=e"],
    }


def test_a_chapter_that_was_not_executed_is_refused(tiny: Path) -> None:
    found = book.chapters(tiny)
    with pytest.raises(ChapterError, match="book/part/one is not executed yet"):
        export(Book(tiny, found), found[0])


def test_every_construct_of_the_chapters_is_known() -> None:
    """Convert the text of all chapters; where the run is asked, a value stands for it."""

    class Anything(dict[str, dict[str, str]]):
        def __contains__(self, key: object) -> bool:
            return True

        def __getitem__(self, key: str) -> dict[str, str]:
            return {"text/plain": "1", "text/latex": "x"}

    found = book.chapters(ROOT)
    shared = Book(ROOT, found)
    for chapter in found:
        page = Page.of(shared, chapter, nbformat.v4.new_notebook())
        page.values = Anything()
        for cell in book.read_chapter(chapter).cells:
            if cell.cell_type == "markdown":
                said = page.markdown(cell.source)
                assert not notebooks.LEFT.search(said), (chapter.short, said[:100])
            elif caption := page.caption(cell):
                assert not notebooks.LEFT.search(caption)
        assert page.solving is None


def test_numbers_agree_with_the_metadata_of_a_notebook(write: Write) -> None:
    made = write("$$\na\n$$ (def:a)\n\n$$\nb\n$$ (eq:b)")
    assert json.loads(json.dumps(made.metadata["companion"])) == {
        "equations": {"2.1": "def:a", "2.2": "eq:b"}
    }


def test_addresses_of_works_are_not_escaped() -> None:
    text = notebooks.plain_addresses(r"A\.B\. URL: [https://a\.org/b\_c](https://a\.org/b\_c)\.")
    assert text == r"A\.B\. URL: [https://a.org/b_c](https://a.org/b_c)\."
