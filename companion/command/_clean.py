"""``companion clean``: texts without duplicates and rubbish, and a report of what went and why."""

import argparse
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from typing import Any

from companion._console import write
from companion.command._options import count, number, path_of, plain

__all__ = ["HELP", "add_arguments", "run"]

HELP = "take duplicates and rubbish out of a folder of texts"
_RULES = ("gopher_quality", "gopher_repetition", "c4_quality", "fineweb_quality", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options.

    Args:
        parser: Receives them.
    """
    parser.description = (
        "Read the .txt files of a folder, each a document, and its .jsonl files, each line a "
        "document; hidden files and links to folders are passed over. Write those worth keeping, "
        "each once, to OUT/documents as they came, and to OUT/report.jsonl a line about each other "
        "one. A run that was stopped goes on when the same command is given again."
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="folder of the texts, with the folders in it")
    add("--out", required=True, help="folder of what is left and of the report")
    add("--workers", type=int, default=1, help="processes; the result does not depend on it")
    add(
        "--rules",
        default="gopher_quality,gopher_repetition",
        help=f"which rules drop a document, of {', '.join(_RULES)}; all but gopher_repetition are "
        "made for English pages of the web",
    )
    add(
        "--threshold",
        type=float,
        default=0.8,
        help="share of common shingles that makes a near-duplicate; 0 drops exact copies only",
    )
    add("--recall", type=float, default=0.95, help="chance to find a pair just at the threshold")
    add("--shingle", type=int, default=5, help="words or characters of a shingle")
    add("--unit", choices=("words", "characters"), default="words", help="of a shingle")
    add("--hashes", type=int, default=128, help="length of a signature")
    add("--key", default="text", help="name of the text in a line of JSON")
    add("--skip-bad", action="store_true", help="drop and report what cannot be read")
    add("--shard-mb", type=float, default=16.0, help="megabytes that a worker takes at once")


def run(chosen: argparse.Namespace) -> None:
    """Clean the folder and say what was dropped.

    Args:
        chosen: The options.

    Raises:
        ValueError: If one is out of its domain, or the texts cannot be read.
    """
    folder = path_of(plain("FOLDER", chosen.folder), name="the texts")
    out = path_of(plain("--out", chosen.out), name="what is left")
    count("workers", chosen.workers, high=1024)
    count("shingle", chosen.shingle, high=1000)
    count("hashes", chosen.hashes, high=4096)
    number("threshold", chosen.threshold, low=0.0, high=1.0)
    number("recall", chosen.recall, low=0.0, high=0.999999, open_low=True)
    number("shard-mb", chosen.shard_mb, low=0.0, high=4096.0, open_low=True)
    names = tuple(name.strip() for name in chosen.rules.split(",") if name.strip())
    unknown = [name for name in names if name not in _RULES]
    if unknown or not names or ("none" in names and len(names) > 1):
        raise ValueError(
            f"--rules takes some of {', '.join(_RULES[:-1])}, or none, got {chosen.rules!r}"
        )
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: FOLDER is where the texts lie")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: --out is a folder")

    from companion.command._cleaning import Settings, clean_folder
    from companion.knowledge.data_quality import choose_bands

    settings = Settings(
        threshold=chosen.threshold,
        shingle=chosen.shingle,
        unit=chosen.unit,
        hashes=chosen.hashes,
        recall=chosen.recall,
        rules=() if names == ("none",) else names,
        key=chosen.key,
        skip_bad=chosen.skip_bad,
        shard_bytes=max(1, round(chosen.shard_mb * (1 << 20))),
    )
    if settings.threshold > 0:
        try:
            choose_bands(settings.threshold, k=settings.hashes, recall=settings.recall)
        except ValueError as error:
            raise ValueError(f"{error} (by --hashes or --recall)") from None
    with ExitStack() as opened:
        apply: Callable[..., Iterable[Any]] = map
        if chosen.workers > 1:
            import multiprocessing
            from concurrent.futures import ProcessPoolExecutor

            # Processes that are forked from one with threads may hang.
            pool = opened.enter_context(
                ProcessPoolExecutor(chosen.workers, mp_context=multiprocessing.get_context("spawn"))
            )
            opened.callback(pool.shutdown, cancel_futures=True)
            apply = pool.map
        try:
            found = clean_folder(folder, out, settings=settings, map=apply, note=write)
        except BrokenExecutor:
            raise ValueError(
                "a worker was ended from outside, perhaps for want of memory: give the same "
                "command again, with fewer --workers if you like; it goes on where it was"
            ) from None
    write(f"{found.documents:,} documents, {found.bytes_in:,} bytes")
    for reason, many in found.dropped.items():
        write(f"{many:,} dropped: {reason}")
    for rule, many in list(found.failed.items())[:8]:
        write(f"  {many:,} by {rule}")
    share = found.bytes_out / found.bytes_in if found.bytes_in else 0.0
    write(f"{found.kept:,} kept, {found.bytes_out:,} bytes ({share:.1%}): {out / 'documents'}")
    if not found.kept:
        write(f"nothing is left: {out / 'report.jsonl'} says why; --rules none applies no rule")
