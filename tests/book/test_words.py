"""Words of pages and messages that must agree with the code."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import companion
from companion.transformer.block import TransformerConfig
from companion.verify import _symbolic

from .conftest import ROOT


def test_the_ledger_names_as_many_digits_as_an_identity_is_evaluated_to() -> None:
    text = (ROOT / "book" / "ledger.md").read_text(encoding="utf-8")
    assert re.findall(r"evaluated to (\d+) digits", text) == [str(_symbolic._DIGITS)]


def names(path: Path) -> set[str]:
    """Parameters of functions and fields of classes in a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            a = node.args
            found |= {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)}
        if isinstance(node, ast.ClassDef):
            found |= {
                part.target.id
                for part in node.body
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
            }
    return found


def refused(path: Path) -> Iterator[tuple[int, str]]:
    """Names of options that errors of a module begin with: ``kv_heads must divide heads``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            told = node.args[0] if node.args else None
            if node.func.id.startswith("check_") and isinstance(told, ast.Constant):
                yield node.lineno, str(told.value)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            first = node.exc.args[0]
            parts = first.values if isinstance(first, ast.JoinedStr) else [first]
            if isinstance(parts[0], ast.Constant):
                yield (
                    node.lineno,
                    (re.match(r"(\w+) must ", str(parts[0].value)) or ["", ""])[1],
                )


def test_errors_name_options_that_exist() -> None:
    """What has an underscore is an option of the module, its neighbors, or the configuration."""
    config = {field.name for field in fields(TransformerConfig)}
    wrong, seen = [], 0
    for path in sorted(Path(companion.__file__).parent.rglob("*.py")):
        named = [
            (line, name) for line, name in refused(path) if re.fullmatch(r"[a-z]+(_\w+)+", name)
        ]
        seen += len(named)
        if named:
            known = config.union(*(names(near) for near in path.parent.glob("*.py")))
            wrong += [f"{path.name}:{line}: {name}" for line, name in named if name not in known]
    assert seen > 40
    assert not wrong
