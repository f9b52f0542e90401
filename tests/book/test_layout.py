"""The plan of the house: three rooms of one name, imports in reading order, a light library."""

import ast
import importlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import chapters as book

from .conftest import CHAPTERS, ROOT

# Who may import whom: only what stands on an earlier line.
LAYERS = (
    ("core",),
    ("verify", "data"),
    ("foundations",),
    ("transformer",),
    ("pretraining",),
    ("models",),
    ("efficiency",),
    ("generation",),
    ("knowledge",),
    ("trust",),
    ("frontiers",),
    ("command",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Shared machinery that is no lesson: no chapter has the name of a wing.
WINGS = ("models", "command")
PARTS = [name for names in LAYERS[2:] for name in names if name not in WINGS]
MODULES = sorted((ROOT / "companion").rglob("*.py"))
HEAVY = ("sympy", "matplotlib", "transformers", "pandas", "sklearn", "scipy", "gensim", "pyarrow")


def rooms(name: str) -> tuple[int, int, bool]:
    """Count the chapters and modules of ``part/name``, and tell whether it has tests.

    Long tests are split as ``test_name_topic.py``.
    """
    part, leaf = name.split("/")
    modules = [ROOT / f"companion/{name}.py", ROOT / f"companion/{name}/__init__.py"]
    tests = [
        *ROOT.glob(f"tests/{part}/test_{leaf}.py"),
        *ROOT.glob(f"tests/{part}/test_{leaf}_*.py"),
    ]
    chapter = (ROOT / f"book/{name}.md").is_file()
    return int(chapter), sum(path.is_file() for path in modules), bool(tests)


def modules_of_parts() -> Iterator[str]:
    for part in PARTS:
        for path in (ROOT / "companion" / part).glob("[!_]*"):
            if path.suffix == ".py" or (path / "__init__.py").is_file():
                yield f"{part}/{path.stem}"


NAMES = sorted(c.short for c in CHAPTERS if c.short.count("/") == 1)


def test_every_page_of_the_contents_exists() -> None:
    missing = [name for name in book.pages(ROOT) if not (ROOT / f"{name}.md").is_file()]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_one_name_opens_three_rooms(name: str) -> None:
    assert rooms(name) == (1, 1, True), f"{name}: chapters, modules, has tests"


@pytest.mark.parametrize("name", sorted(modules_of_parts()))
def test_a_module_is_tested_and_its_chapter_planned(name: str) -> None:
    assert rooms(name)[1:] == (1, True), f"{name}: modules, has tests"
    plan = yaml.safe_load((ROOT / "book/contents.yml").read_text(encoding="utf-8"))
    planned = [f"{p['folder']}/{c['file']}" for p in plan["parts"] for c in p.get("chapters", [])]
    assert name in planned, f"{name} is no chapter of book/contents.yml"


@pytest.mark.parametrize("part", [part for part in PARTS if (ROOT / "tests" / part).is_dir()])
def test_a_file_of_tests_says_in_its_name_which_module_it_tests(part: str) -> None:
    leaves = [name.split("/")[1] for name in modules_of_parts() if name.startswith(f"{part}/")]
    files = [path.stem.removeprefix("test_") for path in (ROOT / "tests" / part).glob("test_*.py")]
    lost = [
        file
        for file in files
        if not any(file == leaf or file.startswith(f"{leaf}_") for leaf in leaves)
    ]
    assert not lost, f"tests/{part}: no module is named in {', '.join(lost)}"


@pytest.mark.parametrize("wing", [name for name in WINGS if (ROOT / "companion" / name).is_dir()])
def test_a_wing_is_tested_and_has_no_chapter(wing: str) -> None:
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests" / wing).glob("test_*.py")
    )
    exported = importlib.import_module(f"companion.{wing}").__all__
    untested = [name for name in exported if not re.search(rf"\b{name}\b", tests)]
    assert not untested, f"tests/{wing} never name {', '.join(untested)}"
    assert not (ROOT / "book" / wing).exists()


@pytest.mark.parametrize("chapter", [c for c in CHAPTERS if "/" in c.short], ids=lambda c: c.short)
def test_the_companion_names_of_a_chapter_exist(chapter: book.Chapter) -> None:
    header = book.front_matter(chapter.source.read_text(encoding="utf-8"))
    assert f"companion.{chapter.short.replace('/', '.')}" in header["companion"]
    for name in header["companion"]:
        importlib.import_module(name)


def imported(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield line and name of every companion sub-package that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = [*base, *([node.module] if node.module else [])]
            names = [".".join([*stem, alias.name]) for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "companion" and len(parts) > 1:
                yield node.lineno, parts[1]


def test_imports_run_in_reading_order() -> None:
    wrong = []
    for path in MODULES:
        own = path.relative_to(ROOT / "companion").parts[0].removesuffix(".py")
        if own.startswith("_"):
            continue
        assert own in RANK, f"companion/{own} has no place in the reading order"
        wrong += [
            f"{path.relative_to(ROOT)}:{line} imports companion.{name}"
            for line, name in imported(path.read_text("utf-8"), path.relative_to(ROOT).parent.parts)
            if name != own and RANK.get(name, -1) >= RANK[own]
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import companion.trust", "trust"),
        ("from companion import data", "data"),
        ("from companion.core.random import randn", "core"),
        ("from ..trust import fairness", "trust"),
        ("from .. import trust", "trust"),
        ("def f():\n    import companion.verify._numeric", "verify"),
    ],
)
def test_the_import_walk_sees_every_form(source: str, name: str) -> None:
    assert [n for _, n in imported(source, ("companion", "foundations"))] == [name]


IMPORT = """
import sys, time
import torch
before = set(sys.modules)
started = time.perf_counter()
import companion
seconds = time.perf_counter() - started
print(seconds, *sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


@pytest.mark.alone
def test_importing_the_library_is_light() -> None:
    seconds, modules = [], set()
    for _ in range(3):
        command = [sys.executable, "-c", IMPORT]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        seconds.append(float(said[0]))
        modules |= set(said[1:])
    assert "companion" in modules
    assert not modules & set(HEAVY)
    assert min(seconds) <= 0.2, f"import companion costs {min(seconds):.2f} s over import torch"


USE = """
import companion, importlib.resources, pathlib, sys
from companion.core import generator, randn
assert pathlib.Path(companion.__file__).is_relative_to(sys.prefix), companion.__file__
assert tuple(randn(2, 3, generator=generator(0)).shape) == (2, 3)
print(importlib.resources.files("companion.data").joinpath("requirements.txt").read_text())
"""


def test_the_wheel_builds_installs_and_imports_elsewhere(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    wheels, clean, elsewhere = (tmp_path / name for name in ("wheels", "clean", "elsewhere"))
    subprocess.run([*pip, "wheel", str(ROOT), "-w", str(wheels), *options], check=True)
    (wheel,) = wheels.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert not [n for n in inside if n.startswith(("tests/", "book/", "tools/"))]

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clean)], check=True)
    python = clean / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", str(wheel), *options], check=True)
    # The dependencies, torch among them, are borrowed; an editable companion is not, since Python
    # does not read path files in a folder that a path file adds.
    (site,) = clean.glob("lib/python*/site-packages")
    borrowed = [p for p in sys.path if p.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    elsewhere.mkdir()
    done = subprocess.run(
        [str(python), "-I", "-c", USE], check=False, capture_output=True, text=True, cwd=elsewhere
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (ROOT / "requirements/data.txt").read_text().strip()
    script = [str(clean / "bin" / "companion"), "train", "--help"]
    done = subprocess.run(script, check=False, capture_output=True, text=True, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: companion train ")


def public(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield the module, its public functions and classes, and the public methods of these."""
    yield "module", tree
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list):
                continue  # the function itself, which follows, says what it does
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = [name for name, node in public(tree) if not ast.get_docstring(node)]
    assert not bare, f"{path.relative_to(ROOT)}: no docstring for {', '.join(bare)}"


def committed() -> list[Path]:
    """Return the files that are or would be committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_folder_of_one_machine() -> None:
    folder = re.compile(r"(?<![\w.}])/(root|work|tmp|home|Users|opt)/\w")
    found = []
    for path in committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if folder.search(line) and "folder = re.compile" not in line:
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_no_executed_notebook_is_committed() -> None:
    assert not [path for path in committed() if path.suffix == ".ipynb"]
