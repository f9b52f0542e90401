"""The stored run of the chapter: what it counts is what it says."""

import json
from typing import Any

import jsonschema
import torch

from companion.data import stored_run
from companion.generation import control as co

WORDS = co.Vocabulary([b"", *[bytes([b]) for b in range(256)], b'"x', b"12"])


def test_schemas_are_many_and_each_can_be_met(scripts: Any) -> None:
    script = scripts.load("control")
    made = script.schemas(50)
    assert len(made) == 50
    assert len({json.dumps(schema) for schema in made}) > 40
    for schema in made:
        jsonschema.Draft202012Validator.check_schema(schema)
    assert [co.is_recursive(schema) for schema in made].count(True) == 1


def test_texts_are_drawn_within_their_tokens_and_parse(scripts: Any) -> None:
    script = scripts.load("control")
    schema = script.schemas(50)[-1]  # the one that contains itself
    grammar = co.Pushdown.from_schema(schema, WORDS, stop=[0])
    written = script.texts(WORDS, grammar, 5, 17, 3)
    for row in written.tolist():
        jsonschema.validate(json.loads(WORDS.decode(row)), schema)
    assert torch.equal(written, script.texts(WORDS, grammar, 5, 17, 3))


def test_the_stored_run_found_no_text_that_does_not_parse() -> None:
    results = stored_run("control").results
    built = results["structure"]
    assert built["failures"] == 0
    assert built["texts"] == 10_000
    assert built["schemas"] == len(built["compile_seconds"]) == 50
    orders = results["orders"]
    sets = {row["set"] for row in orders}
    assert len(sets) >= 3
    for number in sets:
        assert sum(row["set"] == number for row in orders) == 24
    assert [row["scale"] for row in results["guided"]] == [0.0, 1.0, 1.5, 2.0]
