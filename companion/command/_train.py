"""``companion train``: from text files to a language model."""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion._console import complain
from companion.command._options import (
    count,
    device_name,
    interval,
    number,
    path_of,
    plain,
    read_text,
)

if TYPE_CHECKING:
    from companion.core import Processes

__all__ = ["HELP", "add_arguments", "run"]

HELP = "train a language model on text files"


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options.

    Args:
        parser: Receives them.
    """
    parser.description = (
        "Train a Llama-form language model on UTF-8 text, and write it to a folder that "
        "companion.load_pretrained and Hugging Face's transformers "
        "read. The end of the text is held out and measured in bits per byte. A run that "
        "was interrupted goes on when the same command is given again, exactly where its "
        "last checkpoint was written. On several processes: torchrun --nproc-per-node 2 "
        "-m companion train ..."
    )
    add = parser.add_argument
    add(
        "text",
        nargs="+",
        metavar="TEXT",
        help="UTF-8 text files, pipes, - for the input, or folders of .txt files",
    )
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


def run(chosen: argparse.Namespace) -> int:
    """Train, from the beginning or from the last checkpoint.

    Args:
        chosen: The options.

    Returns:
        0, or 2 on the processes that wait for another one, which says what is wrong.

    Raises:
        ValueError: If the request cannot be carried out.
        KeyboardInterrupt: If it was stopped.
    """
    try:
        return _run(chosen)
    except KeyboardInterrupt:
        told = "stopped; the same command goes on from the last checkpoint"
        raise KeyboardInterrupt(told) from None


def _run(chosen: argparse.Namespace) -> int:
    out = path_of(plain("--out", chosen.out), name="--out")
    asked = _checked(chosen)
    from companion.command._corpus import WORK, Corpus, read_json
    from companion.command._run import run as train
    from companion.core import MainProcessError, on_main, processes

    with processes(device_name(chosen.device)) as here, ExitStack() as held:
        try:
            on_main(lambda: _open(out, chosen, asked, held, here))
        except MainProcessError:
            return 2
        settings = read_json(out / WORK / "settings.json")
        train(chosen, out, settings, Corpus.read(out / WORK), here)
    return 0


def _checked(chosen: argparse.Namespace) -> dict[str, Any]:
    """All options that the result depends on, each in its domain."""
    size = _SIZES[chosen.size]
    named = {name: getattr(chosen, name, getattr(size, name)) for name in vars(size)}
    for name in vars(size):
        if name != "lr":
            count(name.replace("_", "-"), named[name])
    count("batch", named["batch"], high=1 << 20)
    if named["batch"] * named["context"] > 1 << 30:
        raise ValueError(
            f"--batch {named['batch']} of --context {named['context']} is too much for a step: "
            "it may hold 2**30 tokens"
        )
    number("lr", named["lr"], low=0.0, high=1000.0, open_low=True)
    steps = count("steps", chosen.steps, high=10**8)
    warmup = min(200, steps // 10) if chosen.warmup is None else chosen.warmup
    if not 0 <= warmup < steps:
        raise ValueError(f"--warmup must lie in [0, steps), got {warmup} of {steps} steps")
    number("clip", chosen.clip, low=0.0, high=1e30, open_low=True)
    number("weight-decay", chosen.weight_decay, low=0.0, high=1000.0)
    number("dropout", chosen.dropout, low=0.0, high=math.nextafter(1.0, 0.0))
    count("save-every", chosen.save_every)
    count("keep", chosen.keep)
    interval("report-every", chosen.report_every, steps, 50)
    if chosen.ff_dim is not None:
        count("ff-dim", chosen.ff_dim)
    return {
        **named,
        "ff_dim": 64 * math.ceil(named["dim"] / 24) if chosen.ff_dim is None else chosen.ff_dim,
        "dropout": chosen.dropout,
        "held_out": chosen.held_out,
        "steps": steps,
        "warmup": warmup,
        "weight_decay": chosen.weight_decay,
        "clip": chosen.clip,
        "accumulate": count("accumulate", chosen.accumulate),
        "seed": count("seed", chosen.seed, low=0, high=2**63 - 1),
        "bf16": chosen.bf16,
        "evaluate_every": interval("evaluate-every", chosen.evaluate_every, steps, 10),
    }


def _note(text: str) -> None:
    complain("companion train: note", text)


def _open(
    out: Path,
    chosen: argparse.Namespace,
    asked: dict[str, Any],
    held: ExitStack,
    here: "Processes",
) -> None:
    """Begin a run in a folder, or find the same run there."""
    from companion.command._corpus import WORK, read_documents, read_json, split, text_hash
    from companion.command._run import decoder_config, kind_of, require_model, share_of

    tokenizer = None
    if chosen.tokenizer is not None:
        # Read once: it may be a pipe.
        tokenizer = (chosen.tokenizer, read_text(chosen.tokenizer))
    # What is wrong shows before hours of work on a large text, and before anything is written.
    share_of(asked, here)
    kind_of(chosen.parallel, here)
    if tokenizer is None:
        require_model(decoder_config(asked, asked["vocab"]), here)
    documents = read_documents(chosen.text, out=out, note=_note)
    settings = asked | {
        "tokenizer": None if tokenizer is None else text_hash([tokenizer[1]]),
        "text": text_hash(documents),
    }
    work = out / WORK
    if (work / "settings.json").is_file():
        before = read_json(work / "settings.json")
        for name in settings | before:
            if settings.get(name) != before.get(name):
                raise ValueError(
                    f"{out} holds a run with another {name} ({before.get(name)}, "
                    f"now {settings.get(name)}): choose another folder, or the same settings"
                )
        _lock(work, held)
        return
    kept, tested = split(documents, share=chosen.held_out)
    if tokenizer is None:
        _require_length(kept, settings["context"])
    with _folder(out, held) as work:
        _prepare(work, (kept, tested), settings, tokenizer, here)


def _require_length(texts: Sequence[str], context: int) -> None:
    """Refuse a text too short for any tokenizer that is learned: a token has a byte at least."""
    most = sum(len(text.encode("utf-8")) + 1 for text in texts)
    if most < context + 1:
        raise ValueError(
            f"{most} bytes of text do not fill one block of context + 1 = {context + 1} tokens: "
            "use a longer text or a shorter context"
        )


def _prepare(
    work: Path,
    texts: tuple[list[str], list[str]],
    settings: dict[str, Any],
    tokenizer: tuple[str, str] | None,
    here: "Processes",
) -> None:
    """Write all that a run starts from."""
    from companion.command._corpus import prepare
    from companion.command._run import decoder_config, require_model
    from companion.core._storage import write_atomically
    from companion.pretraining.autoregressive import PackedTokens

    corpus = prepare(work, *texts, vocab=settings["vocab"], tokenizer=tokenizer, note=_note)
    require_model(decoder_config(settings, corpus.vocab), here)
    # Is there one block at least?
    PackedTokens(corpus.ids(work, "train"), context=settings["context"], batch=1)
    # Last: with its settings a run has all that it needs to start.
    write_atomically(work / "settings.json", json.dumps(settings, indent=1))


@contextmanager
def _folder(out: Path, held: ExitStack) -> Iterator[Path]:
    """Make the folder of a new run; what goes wrong in it leaves nothing behind."""
    from companion.command._corpus import FILES, WORK

    work = out / WORK
    own = {"lock", *FILES, *(f".{name}.unfinished" for name in (*FILES, "settings.json"))}
    for path, known in ((out, {WORK}), (work, own)):
        if path.exists() and (
            not path.is_dir() or any(p.name not in known for p in path.iterdir())
        ):
            raise ValueError(f"{path} is not empty and holds no run: choose another folder")
    missing = [path for path in (work, *work.parents) if not path.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
        _lock(work, held)
        try:
            yield work
        except BaseException:
            for name in own:
                (work / name).unlink(missing_ok=True)
            raise
    except BaseException:
        for path in missing:  # only what is empty goes
            with suppress(OSError):
                path.rmdir()
        raise


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
