"""The plan of the book, the table of contents, and the tables that refer to them agree."""

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from companion_book import courses, reference, tables  # noqa: E402
from companion_book import plan as book_plan  # noqa: E402


@pytest.fixture(scope="module")
def plan() -> book_plan.Plan:
    """The plan as the build reads it."""
    return book_plan.load_plan(ROOT / "book" / "contents.yml")


@pytest.fixture(scope="module")
def toc() -> dict:
    """The table of contents as Jupyter Book reads it."""
    return yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))


def toc_pages(toc: dict) -> list[str]:
    """List the pages of the table of contents in order."""
    return [entry["file"] for part in toc["parts"] for entry in part["chapters"]]


def source(docname: str) -> Path:
    """The file that a page is made from."""
    return ROOT / f"{docname}.md"


def test_plan_has_the_34_chapters_numbered_in_order(plan: book_plan.Plan) -> None:
    assert [page.number for page in plan.chapters.values()] == list(range(1, 35))
    assert len(plan.parts) == 8
    assert len(plan.appendices) == 9


def test_every_planned_page_has_a_title_and_a_question(plan: book_plan.Plan) -> None:
    for page in (*plan.chapters.values(), *plan.appendices):
        assert page.title.strip()
        assert page.question.rstrip("\"'").endswith("?"), page.docname


def pages_below(page: str) -> list[str]:
    """List the pages of an appendix in the order of the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    entries = [entry for part in toc["parts"] for entry in part["chapters"]]
    (found,) = [entry for entry in entries if entry["file"] == page]
    return [section["file"] for section in found["sections"]]


def reference_pages() -> list[str]:
    """List the pages of the library reference."""
    return pages_below("book/api")


def document_pages() -> list[str]:
    """List the pages of the source documents."""
    return pages_below("book/sources")


def test_toc_lists_only_pages_that_exist(toc: dict) -> None:
    assert toc["root"] == "book/preface"
    pages = [toc["root"], *toc_pages(toc), *reference_pages(), *document_pages()]
    assert [page for page in pages if not source(page).is_file()] == []


def test_a_page_of_the_reference_names_its_module_and_nothing_else() -> None:
    pages = reference_pages()
    assert len(pages) >= 21
    for page in pages:
        module = ".".join(["companion", *page.split("/")[2:]])
        expected = f"# {module}\n\n```{{api-module}} {module}\n```\n"
        assert source(page).read_text(encoding="utf-8") == expected


def test_each_source_document_has_a_page_in_order() -> None:
    rows = tables.read_rows(ROOT / "book/_data/sources.tsv", ("document",))
    documents = dict.fromkeys(row["document"] for row in rows)
    assert document_pages() == [f"book/sources/{name.lower()}" for name in documents]
    for name, page in zip(documents, document_pages(), strict=True):
        text = source(page).read_text(encoding="utf-8")
        assert text.startswith(f"# {name}: ")
        assert f"```{{source-document}} {name}\n```" in text


def test_toc_lists_every_page_that_exists(toc: dict, plan: book_plan.Plan) -> None:
    planned = [*plan.chapters, *(page.docname for page in plan.appendices)]
    assert toc_pages(toc) == [page for page in planned if source(page).is_file()]


def test_every_text_of_the_book_is_planned(plan: book_plan.Plan) -> None:
    planned = {*plan.chapters, *(page.docname for page in plan.appendices), "book/preface"}
    planned |= {*reference_pages(), *document_pages()}
    texts = {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for path in (ROOT / "book").rglob("*.md")
        if not any(part.startswith(("_", ".")) for part in path.relative_to(ROOT).parts)
    }
    assert texts - planned == set()


def test_parts_of_the_toc_are_parts_of_the_plan(toc: dict, plan: book_plan.Plan) -> None:
    titles = {page.docname: part.title for part in plan.parts for page in part.pages}
    for part in toc["parts"]:
        files = [entry["file"] for entry in part["chapters"]]
        numbered = [page in titles for page in files]
        assert all(numbered) or not any(numbered)
        assert bool(part.get("numbered")) == all(numbered)
        if all(numbered):
            assert {titles[page] for page in files} == {part["caption"]}


def test_chapters_are_headed_as_planned(plan: book_plan.Plan) -> None:
    for page in plan.chapters.values():
        if source(page.docname).is_file():
            lines = source(page.docname).read_text(encoding="utf-8").splitlines()
            assert next(line for line in lines if line.startswith("# ")) == f"# {page.title}"


def test_chapter_is_found_by_path_and_by_name(plan: book_plan.Plan) -> None:
    expected = plan.chapters["book/foundations/cross_entropy"]
    for name in ("cross_entropy", "foundations/cross_entropy", "/book/foundations/cross_entropy"):
        assert plan.find(name) is expected
    assert plan.find("no_such_chapter") is None


@pytest.fixture(scope="module")
def reading(plan: book_plan.Plan) -> dict[str, courses.Course]:
    """The courses as the build reads them."""
    return courses.load_courses(ROOT / "book" / "contents.yml", plan)


def test_a_semester_has_every_chapter_once_in_order(
    plan: book_plan.Plan, reading: dict[str, courses.Course]
) -> None:
    chapters = [page for week in reading["semester"].chapters for page in week]
    assert chapters == list(plan.chapters.values())
    assert len(reading["semester"].chapters) == 14


def test_a_week_has_seven_days_and_ends_with_a_model_that_writes(
    plan: book_plan.Plan, reading: dict[str, courses.Course]
) -> None:
    days = reading["week"].chapters
    assert len(days) == 7
    assert days[-1] == (plan.find("decoding"),)


def test_an_evening_names_sections_that_are_there() -> None:
    preface = (ROOT / "book/preface.md").read_text(encoding="utf-8")
    evening = preface.split("**An evening, for an engineer.**")[1].split("\n\n")[0]
    sections = [" ".join(name.split()) for name in re.findall(r"\*([^*]+)\*", evening)]
    chapters = re.findall(r"\{doc\}`([a-z_/]+)`", evening)
    assert len(sections) >= 4
    headings = "".join(source(f"book/{name}").read_text(encoding="utf-8") for name in chapters)
    for name in sections:
        assert f"\n## {name}\n" in headings, name


@pytest.mark.parametrize(
    ("chapters", "told"),
    [
        ("[[language_models], [poetry]]", "no chapter poetry"),
        ("[[language_models], [language_models]]", "language_models twice"),
        ("[[language_models], [attention]]", "attention before embeddings"),
        ("[[embeddings, language_models]]", "embeddings before language_models"),
    ],
)
def test_a_course_that_cannot_be_followed_is_refused(
    plan: book_plan.Plan, tmp_path: Path, chapters: str, told: str
) -> None:
    path = tmp_path / "contents.yml"
    path.write_text(f"courses: {{x: {{sitting: Day, chapters: {chapters}}}}}", encoding="utf-8")
    with pytest.raises(Exception, match=told):
        courses.load_courses(path, plan)


def test_homes_in_the_tables_are_planned(plan: book_plan.Plan) -> None:
    appendices = {page.docname.rsplit("/", 1)[-1] for page in plan.appendices}
    for name, column in (
        ("sources", "home_chapter"),
        ("errata", "home"),
        ("glossary", "home"),
    ):
        for row in tables.read_rows(ROOT / "book" / "_data" / f"{name}.tsv", (column,)):
            for home in filter(None, (h.strip() for h in row[column].replace(";", ",").split(","))):
                assert plan.find(home) or home.rsplit("/", 1)[-1] in appendices, (name, home)


def test_table_with_a_short_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.tsv"
    path.write_text("id\ttopic\nS1\n", encoding="utf-8")
    with pytest.raises(Exception, match=r"broken\.tsv:2"):
        tables.read_rows(path, ("id", "topic"))


def test_table_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.tsv"
    path.write_text("id\nS1\n", encoding="utf-8")
    with pytest.raises(Exception, match="lacks the column topic"):
        tables.read_rows(path, ("id", "topic"))


def test_reference_documents_every_exported_name_once() -> None:
    import companion

    homes, aliases = reference.inventory(companion)
    shown = {f"{module}.{name}" for module, names in homes.items() for name in names}
    reached = shown | {path for paths in aliases.values() for path in paths}
    for module in reference.public_modules(companion):
        if module is not companion:
            for name in reference.exported(module):
                assert f"{module.__name__}.{name}" in reached
    assert set(aliases) <= shown
    assert "companion.core.train" in shown


def test_shapes_are_written_without_the_names_of_their_packages() -> None:
    from jaxtyping import Float
    from torch import Tensor

    assert reference.annotation(Float[Tensor, "batch vocab"]) == 'Float[Tensor, "batch vocab"]'
    assert reference.annotation(Tensor) == "Tensor"
    assert "None" in reference.annotation(Float[Tensor, "n"] | None)
