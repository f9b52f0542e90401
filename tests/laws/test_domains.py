"""What a function checks is refused just outside its domain, in the function's own example.

Plain numbers just beyond their ends, NaN among numbers that must be finite, negative ids.

The domains stand in ``domains.json`` and are compared with the source: whoever takes a check out or
moves its ends must change the table too. The example in the docstring is the call that works; with
one number replaced it must end in an error that names it, with one tensor spoiled in an error that
says what its entries must be.
"""

import ast
import doctest
import inspect
import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from companion.core import Checkpoints
from companion.frontiers.reinforcement import value_loss
from companion.trust.debiasing import permutation_test
from companion.trust.interpretability import integrated_gradients

from .public import callables, numbers

FUNCTIONS = callables()
TABLE = Path(__file__).with_name("domains.json")
DOMAINS: dict[str, dict[str, list[float | str]]] = json.loads(TABLE.read_text(encoding="utf-8"))

#: What to make of a tensor of the example, for a check of tensors.
SPOILED = {"check_finite": "{} * float('nan')", "check_ids": "{0} - 10**6 * ({0} == {0}.min())"}
ROWS = numbers(2, 3)
#: What is checked only beside another argument, or has an example of another shape.
CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("Checkpoints", "every"): lambda **one: Checkpoints("folder", model=torch.nn.ReLU(), **one),
    ("Checkpoints", "keep"): lambda **one: Checkpoints("folder", model=torch.nn.ReLU(), **one),
    ("integrated_gradients", "nodes"): lambda **one: integrated_gradients(
        torch.sum, ROWS[0], tolerance=0.1, **one
    ),
    ("integrated_gradients", "tolerance"): lambda **one: integrated_gradients(
        torch.sum, ROWS[0], **one
    ),
    ("permutation_test", "draws"): lambda **one: permutation_test(
        numbers(30), numbers(30, seed=1), generator=torch.Generator().manual_seed(0), **one
    ),
    ("value_loss", "clip"): lambda **one: value_loss(
        ROWS, ROWS + 1, ROWS < 9, old_values=ROWS, **one
    ),
}


def bodies(thing: Any) -> Iterator[Any]:
    """The functions in which a function, or the constructor of a class, checks its arguments."""
    if not inspect.isclass(thing):
        yield inspect.unwrap(getattr(thing, "__func__", thing))
        return
    # What a dataclass writes for itself has no source, and checks nothing.
    written = ("__post_init__",) if is_dataclass(thing) else ("__init__", "__post_init__")
    for name in written:
        if inspect.isfunction(vars(thing).get(name)):
            yield vars(thing)[name]


def outside(call: ast.Call) -> list[float | str]:
    """What a check must not let pass; of numbers, none where its ends are no plain numbers."""
    check = getattr(call.func, "id", "")
    if check in SPOILED:
        return [SPOILED[check]]
    given = {k.arg: k.value for k in call.keywords}
    ends = {}
    for name, value in given.items():
        try:
            ends[name] = ast.literal_eval(value)
        except ValueError:
            continue
    found: list[float | str] = []
    if check == "check_count":
        low = ends.get("low", None if "low" in given else 1)
        if low is not None:
            found.append(low - 1)
        if ends.get("high") is not None:
            found.append(ends["high"] + 1)
    elif check == "check_in_range":
        if "low" in ends:
            found.append(ends["low"] if ends.get("open_low") else ends["low"] - 1)
        if "high" in ends:
            found.append(ends["high"] if ends.get("open_high") else ends["high"] + 1)
        if any(isinstance(end, float) for end in (ends.get("low"), ends.get("high"))):
            found.append(math.nan)
    return found


def checked(name: str) -> dict[str, list[float | str]]:
    """The arguments that are checked, each with what must be refused in its place."""
    thing, found = FUNCTIONS[name], dict[str, list[float | str]]()
    for body in bodies(thing):
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(body)))):
            if not (isinstance(node, ast.Call) and len(node.args) >= 2):
                continue
            said, value = node.args[:2]
            argument = str(getattr(value, "id", getattr(value, "attr", None)))
            if argument not in inspect.signature(thing).parameters:
                continue
            if not (isinstance(said, ast.Constant) and (wrong := outside(node))):
                continue
            if isinstance(wrong[0], str):  # a tensor can be spoiled only where the example has one
                known = given(first_call(name), thing, argument) is not None
            else:
                known = said.value == argument
            if known:
                found.setdefault(argument, []).extend(wrong)
    return found


def first_call(name: str) -> ast.Call:
    """The call of a function that its example makes first."""
    return next(call for _, calls in examples(name) for call in calls)


def examples(name: str) -> list[tuple[ast.Module, list[ast.Call]]]:
    """The statements of an example, each with its calls of the function."""
    short, found = name.rsplit(".")[-1], []
    for example in doctest.DocTestParser().get_examples(inspect.getdoc(FUNCTIONS[name]) or ""):
        if example.exc_msg is not None:
            continue
        tree = ast.parse(example.source)
        calls = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) == short
        ]
        found.append((tree, calls))
    return found


def given(call: ast.Call, thing: Any, parameter: str) -> ast.expr | None:
    """The expression that a call passes for a parameter."""
    for keyword in call.keywords:
        if keyword.arg == parameter:
            return keyword.value
    names = [name for name in inspect.signature(thing).parameters if name != "self"]
    place = names.index(parameter)
    return call.args[place] if place < len(call.args) else None


def replace(call: ast.Call, thing: Any, parameter: str, value: float | str) -> None:
    """Put a number in the place of an argument of a call, or spoil the tensor that is there."""
    old = given(call, thing, parameter)
    if isinstance(value, str):
        assert old is not None, f"the example gives no {parameter}"
        text = value.format(f"({ast.unparse(old)})")
    else:
        text = f"float('{value}')" if math.isnan(value) else repr(value)
    new = ast.parse(text, mode="eval").body
    if old is None:
        call.keywords.append(ast.keyword(parameter, new))
    elif old in call.args:
        call.args[call.args.index(old)] = new
    else:
        next(k for k in call.keywords if k.value is old).value = new


def found_by_looking() -> dict[str, dict[str, list[float | str]]]:
    """The domains in the source, of what has an example that calls it."""
    return {
        name: domains
        for name in sorted(FUNCTIONS)
        if any(calls for _, calls in examples(name)) and (domains := checked(name))
    }


CASES = [
    (name, parameter, value)
    for name, domains in DOMAINS.items()
    for parameter, values in domains.items()
    for value in values
]


def test_the_table_is_what_the_library_checks() -> None:
    # Compared as text: NaN is not equal to itself.
    ours = {name: json.dumps(domains) for name, domains in DOMAINS.items()}
    found = {name: json.dumps(domains) for name, domains in found_by_looking().items()}
    lines = [f'"{k}": {v},' for k, v in found.items() if ours.get(k) != v]
    lines += [f"no longer checked: {k} {ours[k]}" for k in ours if k not in found]
    assert not lines, "\n".join(["domains.json differs; found:", *lines])


@pytest.mark.parametrize(("name", "parameter", "value"), CASES)
def test_what_is_outside_its_domain_is_refused(
    name: str, parameter: str, value: float | str
) -> None:
    # A check of tensors may call the argument by another name, as "relations" for one of them.
    said = r" must (lie in|be finite)" if isinstance(value, str) else rf"\b{parameter} must "
    if call := CALLS.get((name, parameter)):
        with pytest.raises(ValueError, match=said):
            call(**{parameter: value})
        return
    thing = FUNCTIONS[name]
    world = dict(vars(sys.modules[inspect.unwrap(thing).__module__]))
    with torch.random.fork_rng(devices=[]):
        for tree, calls in examples(name):
            if calls:
                replace(calls[0], thing, parameter, value)
                code = compile(ast.fix_missing_locations(tree), name, "exec")
                with pytest.raises(ValueError, match=said):
                    exec(code, world)
                return
            exec(compile(tree, name, "exec"), world)
    raise AssertionError(f"the example of {name} does not call it")
