"""What is left out, and what is returned: defaults are promises, and records stay as they are."""

import inspect
import json
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import gensim.models
import pytest
import torch

from .public import callables, plain

FUNCTIONS = callables()
TABLE = Path(__file__).with_name("defaults.json")
RECORDS = {
    name: thing
    for name, thing in FUNCTIONS.items()
    if isinstance(thing, type) and is_dataclass(thing)
}


def defaults(function: Any) -> dict[str, Any]:
    """The numbers, words and switches that stand for what a caller leaves out."""
    try:
        given = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return {}
    return {p.name: plain(p.default) for p in given if _is_plain(p.default)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str)


def test_defaults_are_those_that_were_promised() -> None:
    # Another default changes the results of all who left it out. Whoever means it writes it into
    # the table as well, and into CHANGELOG; a new function gets a line there.
    kept = json.loads(TABLE.read_text(encoding="utf-8"))
    found = {name: held for name, f in FUNCTIONS.items() if (held := defaults(f))}
    lines = [
        f"{json.dumps(name)}: {json.dumps(found.get(name))}"
        for name in sorted({*kept, *found})
        if kept.get(name) != found.get(name)
    ]
    assert not lines, "\n".join(["defaults.json differs; found:", *lines])


#: Ours, the original, and what it calls the same thing where it has another word.
FOLLOWED: list[tuple[str, Any, dict[str, str]]] = [
    ("SGD", torch.optim.SGD, {}),
    ("Adam", torch.optim.Adam, {}),
    ("AdamW", torch.optim.AdamW, {}),
    ("AdaGrad", torch.optim.Adagrad, {}),
    ("RMSProp", torch.optim.RMSprop, {}),
    ("Muon", torch.optim.Muon, {"steps": "ns_steps", "coefficients": "ns_coefficients"}),
    ("LayerNorm", torch.nn.LayerNorm, {}),
    ("cross_entropy", torch.nn.functional.cross_entropy, {}),
    ("FastTextEmbeddings", gensim.models.FastText, {"min_n": "min_n", "max_n": "max_n"}),
    ("Schedule", gensim.models.Word2Vec, {"negatives": "negative", "noise_power": "ns_exponent",
        "min_learning_rate": "min_alpha"}),
    ("corpus", gensim.models.Word2Vec, {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "original", "words"), FOLLOWED, ids=[n for n, *_ in FOLLOWED])
def test_defaults_are_those_of_the_original(
    name: str, original: Any, words: dict[str, str]
) -> None:
    ours, theirs = defaults(FUNCTIONS[name]), defaults(original)
    shared = {k: theirs[words.get(k, k)] for k in ours if words.get(k, k) in theirs}
    shared.pop("workers", None)  # how many threads is no part of the method
    assert {k: ours[k] for k in shared} == shared
    assert {*words} <= {*shared}
    assert shared


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_a_record_stays_as_it_was_made(name: str) -> None:
    kind = RECORDS[name]
    assert kind.__dataclass_params__.frozen


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_a_record_of_tensors_equals_itself_alone(name: str) -> None:
    # Entries compare one by one, which is no answer to whether two records are equal.
    kind = RECORDS[name]
    of_tensors = any("Tensor" in str(f.type) for f in fields(kind))
    if not of_tensors:
        return
    assert kind.__eq__ is object.__eq__


@pytest.mark.parametrize("name", sorted(n for n in RECORDS if n.endswith("Config")))
def test_a_description_is_given_by_name(name: str) -> None:
    assert all(f.kw_only for f in fields(RECORDS[name]))
    assert any(f.default is MISSING for f in fields(RECORDS[name]))
