"""Each measurement in a fresh process, started by a server that has imported packages only."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Failed", "ask"]

LIMIT = 300
# Importing these takes seconds, which each of some two hundred processes would pay for again. The
# server computes nothing, so what it hands on are modules and no more. Absent ones are left out.
PRELOAD = [
    "benchmarks._worker",
    "benchmarks._growth",
    "gensim.models",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
]


class Failed(Exception):
    """Raised with what went wrong in a process."""


def ask(function: Callable[..., Any], *arguments: Any, threads: int) -> Any:
    """Call a function in a fresh process.

    Args:
        function: A function of a module that can be imported.
        arguments: What it is called with.
        threads: Threads of every library in that process.

    Returns:
        What the function returns.

    Raises:
        Failed: If it raises, dies, or takes more than ``LIMIT`` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(there, function, arguments, threads))
    before = dict(os.environ)
    set_threads(threads)  # the server starts with the first process: some libraries read it there
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    there.close()
    try:
        if not here.poll(LIMIT):
            raise Failed(f"took more than {LIMIT} s")
        done, answer = here.recv()
    except EOFError:
        raise Failed("the process ended without an answer") from None
    finally:
        here.close()
        process.join(1)
        if process.is_alive():
            process.kill()
            process.join()
    if not done:
        raise Failed(answer)
    return answer


def set_threads(threads: int) -> None:
    """Tell every library by its environment variable how many threads it has, and to stay quiet."""
    os.environ.update(
        OMP_NUM_THREADS=str(threads),
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false" if threads == 1 else "true",
        RAYON_NUM_THREADS=str(threads),
    )


def _call(pipe: Connection, function: Any, arguments: tuple[Any, ...], threads: int) -> None:
    set_threads(threads)
    import torch

    torch.set_num_threads(threads)
    try:
        pipe.send((True, function(*arguments)))
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        pipe.send((False, f"{type(error).__name__}: {lines[-1]}"))
