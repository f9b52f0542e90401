"""The chapter contract as rules: each takes a chapter and yields what is wrong with it."""

import ast
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import jupytext

import chapters as book

VERIFY = re.compile(
    r"verify\.(page|identity|gradient|equal|bound|expectation|cost)\(\s*[\"']([^\"']+)"
)
DOLLAR_LABEL = re.compile(r"\$\$\s*\((eq|def):([^)]*)\)")
GLUE_LABEL = re.compile(r"```\{glue:math\}[^\n]*\n(?::[^\n]*\n)*?:label:\s*(eq|def):(\S+)")
FENCE = re.compile(r"\s*(`{3,}|~{3,}|:{3,})\s*(.*)$")
CODE_DIRECTIVES = ("{code", "{glue:math", "{math", "{bibliography", "{literalinclude")
MATH = re.compile(r"\$\$.*?\$\$(\s*\([^)]*\))?|(?<!\\)\$[^$\n]+\$", re.DOTALL)
# No word of praise or impatience: they tell a reader nothing, or that he is slow.
WORDS = (
    "simply",
    "obviously",
    "powerful",
    "leverage",
    "leverages",
    "leveraging",
    "seamless",
    "seamlessly",
    "state-of-the-art",
    "trivially",
    "cutting-edge",
    "utilize",
    "utilizes",
)
TAGS = {"hide-input", "nbval-ignore-output", "raises-exception"}
WORD = re.compile(r"[^\W\d_][\w'’-]*")
WIDTH = 88  # columns of a formatted cell
# A reader is asked before this many words have passed: with the formulas, the code and the figures
# among them, that is a quarter of an hour.
WORDS_UNASKED = 600
QUESTIONS = re.compile(r"^(`{3,}|:{3,})\{quick-questions\}[^\n]*\n(.*?)^\1[ \t]*$", re.M | re.S)
NO_LESSON = ("Exercises", "Summary")


def sentences(text: str) -> str:
    """Keep what a reader reads as sentences: no code, mathematics, options or comments."""
    text = MATH.sub(" ", without_code(text))
    return re.sub(r"^\s*(:[\w-]+:.*|%.*|\+\+\+.*)$", " ", text, flags=re.MULTILINE)


def without_code(text: str) -> str:
    """Drop what stands in code fences; what stands in directives such as notes is kept."""
    kept, fences = [], []  # of each open fence: its marks, and whether it holds code
    for line in text.splitlines():
        match = FENCE.match(line)
        in_code = bool(fences) and fences[-1][1]
        if match and fences and not match[2] and match[1].startswith(fences[-1][0]):
            fences.pop()
        elif match and match[2] and not in_code:
            code = not match[2].startswith("{") or match[2].startswith(CODE_DIRECTIVES)
            fences.append((match[1], code))
            kept.append("" if code else re.sub(r"^\{[^}]*\}", "", match[2]))
        elif match and not fences:
            fences.append((match[1], True))
        elif not in_code:
            kept.append(line)
    return "\n".join(kept)


@dataclass(frozen=True)
class Cell:
    """A code cell: its number, its source and its metadata."""

    number: int
    source: str
    metadata: dict

    @property
    def lines(self) -> int:
        return sum(bool(line.strip()) for line in self.source.splitlines())

    @property
    def tags(self) -> set[str]:
        return set(self.metadata.get("tags", []))

    @property
    def folded(self) -> bool:
        return "hide-input" in self.tags

    @property
    def summary(self) -> str:
        """The line under which a folded cell stands."""
        return str(self.metadata.get("mystnb", {}).get("code_prompt_show", ""))

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.source)))


@dataclass(frozen=True)
class Page:
    """A chapter's text, taken apart."""

    text: str

    @cached_property
    def header(self) -> dict:
        return book.front_matter(self.text)

    @cached_property
    def cells(self) -> list[Cell]:
        code = [c for c in jupytext.reads(self.text, fmt="md:myst").cells if c.cell_type == "code"]
        return [Cell(n, c.source, dict(c.metadata)) for n, c in enumerate(code, 1)]

    @cached_property
    def lesson(self) -> list[Cell]:
        """The cells of the lesson itself, in view: all but those that check, draw or set up."""
        return [cell for cell in self.cells if not cell.folded]

    @cached_property
    def markdown(self) -> str:
        cells = jupytext.reads(self.text, fmt="md:myst").cells
        return "\n\n".join(c.source for c in cells if c.cell_type == "markdown")

    @cached_property
    def body(self) -> str:
        """The text without its header."""
        return re.sub(r"\A---\n.*?\n---\n", "", self.text, flags=re.DOTALL)

    @cached_property
    def prose(self) -> str:
        """What a reader reads as sentences."""
        return sentences(self.markdown)

    @cached_property
    def labels(self) -> list[tuple[str, str]]:
        """All labels of displayed equations, as (eq or def, name)."""
        return DOLLAR_LABEL.findall(self.markdown) + GLUE_LABEL.findall(self.markdown)

    def directives(self, name: str) -> list[str]:
        """The head (argument and options) of each directive of that name."""
        pattern = rf"^(?:`{{3,}}|:{{3,}})\{{{name}\}}([^\n]*\n(?:\s*:[\w-]+:[^\n]*\n)*)"
        return re.findall(pattern, self.markdown, re.MULTILINE)

    @cached_property
    def sections(self) -> list[tuple[str, str]]:
        """The opening, and each section with its title."""
        parts = re.split(r"^## +(.+)$", self.markdown, flags=re.MULTILINE)
        return [("the opening", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]


RULES: list[Callable[[Page], Iterator[str]]] = []


def rule(function: Callable[[Page], Iterator[str]]) -> Callable[[Page], Iterator[str]]:
    RULES.append(function)
    return function


@rule
def front_matter(page: Page) -> Iterator[str]:
    for key in ("jupytext", "kernelspec", "companion", "sources"):
        if key not in page.header:
            yield f"the front matter lacks {key}:"
    if page.header.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel must be python3"


@rule
def opening(page: Page) -> Iterator[str]:
    if not re.match(r"\s*\(ch-[a-z0-9-]+\)=\n# \S", page.body):
        yield "the page must begin with (ch-name)= and then its title"
    titles = re.findall(r"^# ", without_code(page.markdown), re.MULTILINE)
    if len(titles) != 1:
        yield f"one title, not {len(titles)}"
    if not re.search(r"^`{3,}\{chapter-facts\}", page.markdown, re.MULTILINE):
        yield "the {chapter-facts} directive is missing"


@rule
def ending(page: Page) -> Iterator[str]:
    if not re.search(
        r"```\{bibliography\}\n:filter: docname in docnames\n```\s*\Z", page.text.rstrip() + "\n"
    ):
        yield "the page must end with its {bibliography}, filtered by docname in docnames"


@rule
def plain_cells(page: Page) -> Iterator[str]:
    """A cell in view shows one thing in at most 20 lines, one idea a line."""
    for cell in page.cells:
        if not cell.folded and cell.lines > 20:
            yield f"code cell {cell.number} is in view and has {cell.lines} lines; 20 is the most"
        if len(VERIFY.findall(cell.source)) > 2:
            yield f"code cell {cell.number} has more than two verifications"
        for node in cell.nodes:
            value = getattr(node, "value", None)
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(value, ast.Lambda):
                yield f"code cell {cell.number} assigns a lambda: write a def"
            if isinstance(node, ast.NamedExpr):
                yield f"code cell {cell.number} has a walrus: give it a line"
    lines = sum(cell.lines for cell in page.cells)
    lambdas = sum(isinstance(node, ast.Lambda) for cell in page.cells for node in cell.nodes)
    if 100 * lambdas > 3 * lines:
        yield f"{lambdas} lambdas in {lines} lines; 3 in a hundred is the most"
    dense = [len(cell.nodes) / cell.lines for cell in page.cells if cell.lines]
    if dense and statistics.median(dense) > 12:
        yield f"{statistics.median(dense):.1f} syntax nodes a line at the median; 12 is the most"


@rule
def formatting(page: Page) -> Iterator[str]:
    """Cells look as the formatter leaves them, at a width that fits beside a sidebar."""
    sources = [cell.source.strip("\n") for cell in page.cells]
    command = [sys.executable, "-m", "ruff", "format", "--line-length", str(WIDTH), "--quiet", "-"]
    for cell, source in zip(page.cells, sources, strict=True):
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
        # A semicolon that hides the last value is IPython's, and the formatter's to drop.
        if done.stdout.rstrip("\n") != source.removesuffix(";"):
            yield f"code cell {cell.number} is not formatted at {WIDTH} columns"


@rule
def words_per_line(page: Page) -> Iterator[str]:
    words = len(WORD.findall(page.prose))
    lines = sum(cell.lines for cell in page.lesson)
    if words < 12 * lines:
        yield f"{words} words for {lines} lines of code: {words / max(lines, 1):.1f} a line, not 12"


@rule
def setup(page: Page) -> Iterator[str]:
    if not page.cells or "torch.Generator().manual_seed(0)" not in page.cells[0].source:
        yield "the first cell must make g = torch.Generator().manual_seed(0)"
    for cell in page.cells:
        if re.search(r"torch\.manual_seed|np\.random\.seed|(?<!\.)\brandom\.seed", cell.source):
            yield f"code cell {cell.number} seeds globally"


@rule
def folding(page: Page) -> Iterator[str]:
    for cell in page.cells:
        if unknown := cell.tags - TAGS:
            yield f"code cell {cell.number} has the tag {', '.join(sorted(unknown))}"
        if VERIFY.search(cell.source) and not cell.folded:
            yield f"code cell {cell.number} verifies and is in view: fold it under a summary"
        if cell.folded and not cell.summary:
            yield f"code cell {cell.number} is folded without code_prompt_show, its summary"


@rule
def figures(page: Page) -> Iterator[str]:
    for cell in page.cells:
        meta = cell.metadata.get("mystnb", {})
        if cell.number > 1 and re.search(r"plt\.subplots|plt\.figure\(", cell.source):
            figure = meta.get("figure", {})
            if not str(figure.get("name", "")).startswith("fig-"):
                yield f"code cell {cell.number} draws a figure without the name fig-..."
            if not str(figure.get("caption", "")).strip():
                yield f"code cell {cell.number} draws a figure without a caption"
            if not str(meta.get("image", {}).get("alt", "")).strip():
                yield f"code cell {cell.number} draws a figure without alt text"
    for head in page.directives("(?:figure|image)"):
        if not re.search(r":alt:\s*\S", head):
            yield f"the image {head.split()[0]} has no alt text"


@rule
def equations(page: Page) -> Iterator[str]:
    claimed = [name for kind, name in page.labels if kind == "eq"]
    calls = [label for cell in page.cells for _, label in VERIFY.findall(cell.source)]
    checked = {label.removeprefix("eq:") for label in calls}
    for name in claimed:
        if name not in checked:
            yield f"eq:{name} is claimed but never verified"
    for name in sorted(checked - set(claimed)):
        yield f"eq:{name} is verified but never displayed"
    for (kind, name), count in Counter(page.labels).items():
        if count > 1:
            yield f"{kind}:{name} labels {count} equations"
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            yield f"{kind}:{name}: labels are lower-case words joined by hyphens"


@rule
def macros(page: Page) -> Iterator[str]:
    for macro in re.findall(r"\\(?:re)?newcommand|\\DeclareMathOperator|\\g?def\b", page.text):
        yield f"a private TeX macro: {macro}"


@rule
def exercises(page: Page) -> Iterator[str]:
    heads = page.directives("exercise(?:-start)?")
    labels = [re.search(r":label:\s*(\S+)", head) for head in heads]
    if not 3 <= len(heads) <= 5:
        yield f"{len(heads)} exercises; 3 to 5 are asked for"
    solved = {head.split()[0] for head in page.directives("solution(?:-start)?") if head.split()}
    for head, label in zip(heads, labels, strict=True):
        if not label:
            yield f"an exercise without a label: {head.strip()[:40]!r}"
        elif label[1] not in solved:
            yield f"the exercise {label[1]} has no solution"
    for name in solved - {label[1] for label in labels if label}:
        yield f"a solution to {name}, which is no exercise"
    gated = re.findall(r"\{solution-start\}.*?\{solution-end\}", page.text, re.DOTALL)
    if heads and not any("{code-cell}" in part for part in gated):
        yield "no solution checks itself by code (solution-start, a code cell, solution-end)"


@rule
def levels(page: Page) -> Iterator[str]:
    """An exercise says how hard it is, in words that stand beside its number."""
    for head in page.directives("exercise(?:-start)?"):
        title = head.splitlines()[0].strip()
        if not re.search(r"(^|\S · )level [123] of 3$", title):
            yield f"the exercise {title!r} must say its level: end its title with 'level 2 of 3'"


@rule
def quick_questions(page: Page) -> Iterator[str]:
    """Sections end with quick questions often enough, two or three at a time, each answered."""
    since = 0
    for title, text in page.sections:
        if title in NO_LESSON:
            break
        blocks = list(QUESTIONS.finditer(text))
        rest = text[blocks[-1].end() :] if blocks else text
        since = len(WORD.findall(sentences(rest))) + (0 if blocks else since)
        if since > WORDS_UNASKED:
            yield f"{title!r} ends {since} words after quick questions; {WORDS_UNASKED} is the most"
        for block in blocks:
            after = text[block.end() :].strip()
            if not re.match(r"(\([\w-]+\)=\s*)?(##|\Z)", after):
                yield f"the quick questions in {title!r} do not end a section"
            items = re.split(r"^\d+\.[ \t]+", block[2], flags=re.MULTILINE)
            if items[0].strip() or not 2 <= len(items) - 1 <= 3:
                yield f"{title!r} has a list of {len(items) - 1} quick questions, not of 2 or 3"
            for item in items[1:]:
                if not re.match(r"(?:(?!\n\n).)*\?\n\n   \S", item, re.DOTALL):
                    yield f"in {title!r}, this is no question with an answer: {item[:40]!r}"


@rule
def outside(page: Page) -> Iterator[str]:
    if "from outside this book" not in " ".join(page.sections[0][1].split()):
        yield "the opening does not say what a reader needs 'from outside this book'"


def uses(page: Page) -> tuple[set[str], set[str]]:
    """Name the labels that a page refers to, and the companion's modules that it imports."""
    labels = re.findall(r"\{(?:eq|numref|prf:ref)\}`([\w:-]+)`", page.markdown)
    modules: set[str] = set()
    for cell in page.cells:
        for node in cell.nodes:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("companion"):
                modules |= {f"{node.module}.{alias.name}" for alias in node.names}
                modules.add(str(node.module))
    return set(labels), modules


def not_needed(page: Page, homes: dict[str, str], known: set[str]) -> list[str]:
    """List what a page takes from chapters that its reader need not have read.

    Args:
        page: A chapter.
        homes: The chapter of each label, and of each module that a chapter is about.
        known: The chapters that this one needs, directly or by what they need, and those that
            come later.
    """
    labels, modules = uses(page)
    return sorted(name for name in labels | modules if name in homes and homes[name] not in known)


@rule
def wording(page: Page) -> Iterator[str]:
    yield from words_to_avoid(page.prose)


def words_to_avoid(prose: str) -> Iterator[str]:
    """Yield the words of praise and impatience in a text."""
    for word in WORDS:
        for match in re.finditer(rf"(?<![\w-]){word}(?![\w-])", prose, re.IGNORECASE):
            around = prose[max(0, match.start() - 25) : match.end() + 25]
            yield f"{word!r} in {' '.join(around.split())!r}"


def plain_prose(text: str) -> str:
    """Return the sentences of a page without a kernel: no header, code, quotes or addresses."""
    text = without_code(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))
    text = re.sub(r"^\s*>.*$|`[^`\n]*`|<[^>\s]*>|\]\([^)]*\)", " ", text, flags=re.MULTILINE)
    return MATH.sub(" ", text)
