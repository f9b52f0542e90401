"""``companion generate``: write on with a trained model."""

import argparse
import json
import sys

from companion._console import write
from companion.command._options import Schema, count, device_name, number, path_of, plain

__all__ = ["HELP", "add_arguments", "run"]

HELP = "continue a text with a trained model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options.

    Args:
        parser: Receives them.
    """
    parser.description = "Continue a prompt with a model that the train command has written."
    add = parser.add_argument
    add("directory", metavar="DIR", help="folder of the model")
    add("--prompt", default="", help="the beginning; none starts a new text")
    add("--tokens", type=int, default=200, help="how many tokens to write")
    add("--temperature", type=float, default=0.8, help="0 always takes the most likely token")
    add("--top-k", type=int, help="draw among the k likeliest tokens only")
    add("--top-p", type=float, help="draw among the fewest that hold this probability")
    add("--min-p", type=float, help="draw among those this part as likely as the likeliest")
    add("--typical", type=float, help="draw among the most typical that hold this probability")
    add("--repetition-penalty", type=float, help="above 1: make what was said less likely")
    add("--no-repeat-ngram", type=int, help="write no n tokens that stand in the text already")
    add("--regex", metavar="R", help="write a text that this regular expression matches")
    add("--json-schema", metavar="FILE", help="write a value that this JSON schema describes")
    add("--stream", action="store_true", help="print each piece as soon as it is written")
    add("--seed", type=int, default=0, help="of the draws")
    add("--device", help="cpu, cuda or mps; by default the best of this machine")


def run(chosen: argparse.Namespace) -> None:
    """Print the prompt and what follows.

    Args:
        chosen: The options.

    Raises:
        ValueError: If one is out of its domain, or the folder holds no model.
    """
    out = path_of(plain("DIR", chosen.directory), name="the model")
    prompt = plain("--prompt", chosen.prompt)
    count("tokens", chosen.tokens, high=10**8)
    number("temperature", chosen.temperature, low=0.0, high=sys.float_info.max)
    count("seed", chosen.seed, low=0, high=2**63 - 1)
    steps = _steps(chosen)
    device_name(chosen.device)
    demand = _demand(chosen)
    if not (out / "config.json").is_file():
        begun = (out / "run" / "settings.json").is_file()
        why = "its training is not finished" if begun else "give a folder that train has written"
        raise ValueError(f"{out} holds no model: {why}")
    from companion.command._writing import continue_prompt
    from companion.core import resolve_device

    def say(piece: str) -> None:
        write(piece, end="")

    text = continue_prompt(
        out,
        prompt,
        tokens=chosen.tokens,
        temperature=chosen.temperature,
        seed=chosen.seed,
        device=resolve_device(chosen.device),
        steps=steps,
        demand=demand,
        stream=say if chosen.stream else None,
    )
    write("" if chosen.stream else text)


def _demand(chosen: argparse.Namespace) -> str | Schema | None:
    """What the text has to obey: an expression or a schema."""
    if chosen.regex is not None and chosen.json_schema is not None:
        raise ValueError("give --regex or --json-schema, not both")
    if chosen.regex is None and chosen.json_schema is None:
        return None
    if chosen.no_repeat_ngram is not None:
        raise ValueError("--no-repeat-ngram may forbid what the constraint demands: leave it out")
    if chosen.regex is not None:
        return plain("--regex", chosen.regex)
    path = path_of(plain("--json-schema", chosen.json_schema), name="the schema")
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give one that holds a JSON schema")
    try:
        return Schema(json.loads(path.read_text(encoding="utf-8")))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _steps(chosen: argparse.Namespace) -> dict[str, float]:
    """The steps that were asked for, by the names of a pipeline, each within its domain."""
    steps: dict[str, float] = {}
    for name in ("top-k", "no-repeat-ngram"):
        value = getattr(chosen, name.replace("-", "_"))
        if value is not None:
            steps[name.replace("-", "_")] = count(name, value)
    for name, high in (
        ("top-p", 1.0),
        ("min-p", 1.0),
        ("typical", 1.0),
        ("repetition-penalty", sys.float_info.max),
    ):
        value = getattr(chosen, name.replace("-", "_"))
        if value is not None:
            number(name, value, low=0.0, high=high, open_low=name != "min-p")
            steps[name.replace("-", "_")] = value
    return steps
