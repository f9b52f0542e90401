"""Courses through the book: which chapters in which sitting, and how long they take to read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from .nodes_util import table
from .plan import Page, Plan, note_dependent, page_link, plan_of, reading_minutes


@dataclass(frozen=True)
class Course:
    """A way through the book, sitting by sitting."""

    name: str
    sitting: str
    chapters: tuple[tuple[Page, ...], ...]


def load_courses(path: Path, plan: Plan) -> dict[str, Course]:
    """Read the courses of ``contents.yml``.

    Raises:
        ExtensionError: If a course names a chapter that the plan does not have, names one twice,
            or names one before a chapter that it needs.
    """
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    courses = {}
    for name, entry in raw.get("courses", {}).items():
        seen: list[Page] = []
        sittings = []
        for files in entry["chapters"]:
            pages = []
            for file in files:
                page = plan.find(file)
                if page is None:
                    raise ExtensionError(f"{path.name}: the course {name} names no chapter {file}")
                if page in seen:
                    raise ExtensionError(f"{path.name}: the course {name} names {file} twice")
                missing = [need for need in page.needs if plan.find(need) not in seen]
                if missing:
                    raise ExtensionError(
                        f"{path.name}: the course {name} comes to {file} before {missing[0]}"
                    )
                seen.append(page)
                pages.append(page)
            sittings.append(tuple(pages))
        courses[name] = Course(name, entry["sitting"], tuple(sittings))
    return courses


def minutes_of(env: BuildEnvironment, page: Page) -> int:
    """Say how long a chapter takes to read; 0 for one that is not there."""
    path = Path(env.doc2path(page.docname))
    if page.docname not in env.found_docs or path.suffix != ".ipynb":
        return 0
    return reading_minutes(json.loads(path.read_text(encoding="utf-8")))


def hours(minutes: int) -> str:
    """Write a time as people say it."""
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


class ReadingCourse(SphinxDirective):
    """A course of the plan as a table: the sitting, its chapters, and the time for reading."""

    has_content = False
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make a row for each sitting."""
        note_dependent(self.env)
        path = Path(self.env.srcdir) / self.config.companion_contents
        courses = load_courses(path, plan_of(self.env))
        name = self.arguments[0]
        if name not in courses:
            raise self.error(f"there is no course {name!r}; there are {', '.join(courses)}")
        course = courses[name]
        rows = []
        for number, pages in enumerate(course.chapters, start=1):
            links: list[nodes.Node] = []
            for page in pages:
                if links:
                    links.append(nodes.Text(", "))
                links.append(page_link(self.env, page))
            total = sum(minutes_of(self.env, page) for page in pages)
            told = [nodes.Text(hours(total))] if total else []
            rows.append([[nodes.Text(f"{course.sitting} {number}")], links, told])
        return [table(["", "Chapters", "Reading"], rows, classes=["reading-course"])]


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("reading-course", ReadingCourse)
