"""``companion quantize``: make a model smaller and faster."""

import argparse
from typing import Any

from companion._console import write
from companion.command._options import count, path_of, plain, read_text

__all__ = ["HELP", "add_arguments", "run"]

HELP = "hold a model's weights in 8 bits or fewer"
_METHODS = ("nearest", "mse", "gptq", "awq")
#: Tokens of a row of the text that the methods look at.
_WIDTH = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options.

    Args:
        parser: Receives them.
    """
    parser.description = (
        "Write a copy of a model whose weights are integers of 8 bits or fewer. The generate "
        "command reads it like the model itself."
    )
    add = parser.add_argument
    add("directory", metavar="DIR", help="folder of the model")
    add("--out", required=True, help="folder of the copy")
    add("--bits", type=int, choices=(2, 3, 4, 8), default=8, help="of a weight")
    add("--method", choices=_METHODS, default="nearest", help="how codes are found")
    add("--group", type=int, default=32, help="weights that share a step, below 8 bits")
    add("--text", help="UTF-8 file that gptq and awq run the model on, like what it will read")
    add("--rows", type=int, default=16, help=f"rows of {_WIDTH} tokens taken of the text")


def run(chosen: argparse.Namespace) -> None:
    """Quantize the model and say what became of its size.

    Args:
        chosen: The options.

    Raises:
        ValueError: If one is out of its domain, or the folder holds no model to quantize.
    """
    folder = path_of(plain("DIR", chosen.directory), name="the model")
    out = path_of(plain("--out", chosen.out), name="the copy")
    count("group", chosen.group)
    count("rows", chosen.rows)
    if chosen.method in ("gptq", "awq") and chosen.text is None:
        raise ValueError(f"--method {chosen.method} looks at what the model reads: give --text")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: give a folder that train has written")
    if out.exists() and folder.resolve() == out.resolve():
        raise ValueError(f"--out is the folder of the model, {out}: give another one")
    from companion.efficiency.quantization import (
        is_quantized,
        model_bytes,
        quantize,
        save_quantized,
    )
    from companion.models import load_pretrained

    if is_quantized(folder):
        raise ValueError(f"{folder} holds integers already: give the folder of the model itself")
    text = load_pretrained(folder)
    calibration = None
    if chosen.method in ("gptq", "awq"):
        calibration = _rows(text, read_text(chosen.text), chosen.rows)
    small = quantize(
        text, bits=chosen.bits, method=chosen.method, group=chosen.group, calibration=calibration
    )
    save_quantized(small, out)
    before, after = model_bytes(text.model), model_bytes(small.model)
    write(
        f"{out}: {after / 1e6:,.1f} MB in memory, {before / after:.2f} times less than "
        f"{before / 1e6:,.1f} MB"
    )


def _rows(text: object, words: str, rows: int) -> list[Any]:
    """The first rows of a text, each a batch."""
    import torch

    from companion.models import TextDecoder

    if not isinstance(text, TextDecoder) or text.tokenizer is None:
        raise ValueError("--method gptq and awq run a decoder on the text: use nearest or mse here")
    width = min(_WIDTH, text.model.config.context)
    ids = text.tokenizer.encode(words).ids
    made = [ids[at : at + width] for at in range(0, len(ids) - width + 1, width)][:rows]
    if not made:
        raise ValueError(f"--text must have {width} tokens at least, it has {len(ids)}")
    return [torch.tensor([row]) for row in made]
