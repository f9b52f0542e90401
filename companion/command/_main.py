"""The command ``python -m companion``: train a language model on text, and write on with it."""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from companion.command._corpus import (
    Corpus,
    prepare,
    read_documents,
    split,
    text_hash,
)
from companion.command._run import (
    WORK,
    continue_prompt,
    decoder_config,
    interval,
    positive,
    read_text,
    run,
)
from companion.core import (
    MainProcessError,
    on_main,
    processes,
    resolve_device,
)
from companion.core._storage import write_atomically
from companion.pretraining.autoregressive._packed import PackedTokens

__all__ = ["main"]


@dataclass(frozen=True, kw_only=True)
class _Size:
    """The defaults that come with a size."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    vocab: int
    batch: int
    lr: float


_SIZES = {
    "tiny": _Size(
        dim=128, layers=4, heads=4, kv_heads=2, context=128, vocab=1024, batch=16, lr=3e-3
    ),
    "small": _Size(
        dim=384, layers=6, heads=6, kv_heads=2, context=256, vocab=4096, batch=32, lr=1.5e-3
    ),
    "base": _Size(
        dim=768, layers=12, heads=12, kv_heads=4, context=1024, vocab=16384, batch=64, lr=6e-4
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Its words, by default those of this process.

    Returns:
        The exit status: 0, or 2 where the request cannot be carried out, or 130 when stopped.
    """
    chosen = _parser().parse_args(arguments)
    try:
        (_train if chosen.command == "train" else _generate)(chosen)
    except MainProcessError:
        return 2  # process 0 says why
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("RANK", "0") == "0":
            told = " ".join(str(error).split())
            sys.stderr.write(f"companion {chosen.command}: {told}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from the last checkpoint\n")
        return 130
    return 0


# --- the options ---------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m companion",
        description="Train a language model on any text, and let it write.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _train_options(
        commands.add_parser(
            "train",
            help="train a language model on text files",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            description=(
                "Train a Llama-form language model on UTF-8 text, and write it to a folder that "
                "companion.load_pretrained and Hugging Face's transformers "
                "read. The end of the text is held out and measured in bits per byte. A run that "
                "was interrupted goes on when the same command is given again, exactly where its "
                "last checkpoint was written. On several processes: torchrun --nproc-per-node 2 "
                "-m companion train ..."
            ),
        )
    )
    write = commands.add_parser(
        "generate",
        help="continue a text with a trained model",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Continue a prompt with a model that the train command has written.",
    )
    write.add_argument("directory", metavar="DIR", help="folder of the model")
    write.add_argument("--prompt", default="", help="the beginning; none starts a new text")
    write.add_argument("--tokens", type=int, default=200, help="how many tokens to write")
    write.add_argument(
        "--temperature", type=float, default=0.8, help="0 always takes the most likely token"
    )
    write.add_argument("--seed", type=int, default=0, help="of the draws")
    write.add_argument("--device", help="cpu, cuda or mps; by default the best of this machine")
    return parser


def _train_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("text", nargs="+", metavar="TEXT", help="UTF-8 text files, or folders of .txt files")
    add("--out", required=True, metavar="DIR", help="folder for the model; new, or of this run")
    add("--size", choices=_SIZES, default="tiny", help="defaults of all that follow up to --lr")
    for name, what in (
        ("dim", "width of the model"),
        ("layers", "number of blocks"),
        ("heads", "query heads"),
        ("kv-heads", "key and value heads"),
        ("context", "tokens that the model reads at once"),
        ("vocab", "most tokens of the tokenizer that is learned"),
        ("batch", "blocks of a step, over all processes and accumulated batches"),
    ):
        known = ", ".join(f"{getattr(s, name.replace('-', '_'))} {k}" for k, s in _SIZES.items())
        add(f"--{name}", type=int, default=argparse.SUPPRESS, help=f"{what} (by size: {known})")
    rates = ", ".join(f"{s.lr:g} {k}" for k, s in _SIZES.items())
    add("--lr", type=float, default=argparse.SUPPRESS, help=f"highest rate (by size: {rates})")
    add("--ff-dim", type=int, help="width inside the feed-forward layers; by default 8/3 of dim")
    add("--dropout", type=float, default=0.0, help="share of components dropped in training")
    add("--tokenizer", metavar="FILE", help="a tokenizer.json to use; by default one is learned")
    add("--steps", type=int, default=1000, help="updates")
    add("--warmup", type=int, help="updates of rising rate; by default a tenth, at most 200")
    add("--weight-decay", type=float, default=0.1, help="of matrices; norms have none")
    add("--clip", type=float, default=1.0, help="largest norm of the gradient")
    add("--accumulate", type=int, default=1, help="batches of a step, for less memory")
    add("--held-out", type=float, default=0.05, help="share of the text that is tested on")
    add("--seed", type=int, default=0, help="of weights, order and dropout")
    add("--bf16", action="store_true", help="compute in bfloat16, keep weights in float32")
    add("--compile", action="store_true", help="compile the blocks with torch.compile")
    add("--recompute", action="store_true", help="keep no activations inside blocks")
    kinds = ("auto", "none", "ddp", "fsdp")
    what = "how processes of torchrun work together; auto is ddp"
    add("--parallel", choices=kinds, default="auto", help=what)
    add("--device", help="cpu, cuda or mps; by default the best of this machine")
    add("--report-every", type=int, help="steps between lines of progress; by default a 50th")
    add("--evaluate-every", type=int, help="steps between held-out tests; by default a tenth")
    add("--save-every", type=int, default=200, help="steps between checkpoints")
    add("--keep", type=int, default=2, help="checkpoints to keep")


def _settings(chosen: argparse.Namespace, documents: Sequence[str]) -> dict[str, Any]:
    """All that the result depends on: a run goes on only where none of it has changed."""
    size = _SIZES[chosen.size]
    named = {name: getattr(chosen, name, getattr(size, name)) for name in vars(size)}
    steps = positive("steps", chosen.steps)
    warmup = min(200, steps // 10) if chosen.warmup is None else chosen.warmup
    if not 0 <= warmup < steps:
        raise ValueError(f"--warmup must lie in [0, steps), got {warmup} of {steps} steps")
    for name in ("lr", "clip"):
        value = named.get(name, getattr(chosen, name, None))
        if value is None or not 0 < value < math.inf:
            raise ValueError(f"--{name} must be above 0, got {value}")
    if not 0 <= chosen.weight_decay < math.inf:
        raise ValueError(f"--weight-decay must be 0 or more, got {chosen.weight_decay}")
    if chosen.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {chosen.seed}")
    for name in ("dim", "context", "vocab", "batch"):
        positive(name, named[name])
    return {
        **named,
        "ff_dim": 64 * math.ceil(named["dim"] / 24) if chosen.ff_dim is None else chosen.ff_dim,
        "dropout": chosen.dropout,
        "tokenizer": (
            None if chosen.tokenizer is None else text_hash([read_text(chosen.tokenizer)])
        ),
        "text": text_hash(documents),
        "held_out": chosen.held_out,
        "steps": steps,
        "warmup": warmup,
        "weight_decay": chosen.weight_decay,
        "clip": chosen.clip,
        "accumulate": positive("accumulate", chosen.accumulate),
        "seed": chosen.seed,
        "bf16": chosen.bf16,
        "evaluate_every": interval("evaluate-every", chosen.evaluate_every, steps, 10),
    }


def _train(chosen: argparse.Namespace) -> None:
    positive("save-every", chosen.save_every)
    positive("keep", chosen.keep)
    with processes(chosen.device) as here, ExitStack() as held:
        out = Path(chosen.out).expanduser()
        on_main(lambda: _open(out, chosen, held))
        settings = json.loads(read_text(out / WORK / "settings.json"))
        corpus = Corpus.read(out / WORK)
        assert corpus is not None
        run(chosen, out, settings, corpus, here)


def _lock(work: Path, held: ExitStack) -> None:
    """Refuse a folder in which another command is at work; the lock ends with its process."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    file = held.enter_context((work / "lock").open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another command trains in {work.parent} now: wait for it, or choose another folder"
        ) from None


def _open(out: Path, chosen: argparse.Namespace, held: ExitStack) -> None:
    """Begin a run in a folder, or find the same run there."""
    documents = read_documents(chosen.text)
    settings = _settings(chosen, documents)
    # What is wrong with sizes shows before hours of work on a large text.
    config = decoder_config(settings, settings["vocab"])
    work = out / WORK
    if (work / "settings.json").is_file():
        before = json.loads(read_text(work / "settings.json"))
        for name in settings | before:
            if settings.get(name) != before.get(name):
                raise ValueError(
                    f"{out} holds a run with another {name} ({before.get(name)}, "
                    f"now {settings.get(name)}): choose another folder, or the same settings"
                )
        _lock(work, held)
        return
    if out.exists() and (not out.is_dir() or any(p.name != WORK for p in out.iterdir())):
        raise ValueError(f"{out} is not empty and holds no run: choose another folder")
    work.mkdir(parents=True, exist_ok=True)
    _lock(work, held)
    kept, tested = split(documents, share=chosen.held_out)
    corpus = prepare(work, kept, tested, vocab=settings["vocab"], tokenizer_file=chosen.tokenizer)
    # Is there one block at least?
    PackedTokens(corpus.ids(work, "train"), context=config.context, batch=1)
    # Last: with its settings a run has all that it needs to start.
    write_atomically(work / "settings.json", json.dumps(settings, indent=1))


def _generate(chosen: argparse.Namespace) -> None:
    out = Path(chosen.directory).expanduser()
    if not (out / "config.json").is_file():
        begun = (out / WORK / "settings.json").is_file()
        why = "its training is not finished" if begun else "give a folder that train has written"
        raise ValueError(f"{out} holds no model: {why}")
    print(
        continue_prompt(
            out,
            chosen.prompt,
            tokens=chosen.tokens,
            temperature=chosen.temperature,
            seed=chosen.seed,
            device=resolve_device(chosen.device),
        )
    )
