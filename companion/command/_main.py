"""The table of the commands, and what becomes of their errors."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from companion._console import guarded
from companion.command import _clean, _generate, _quantize, _train

__all__ = ["main"]

_COMMANDS = {"clean": _clean, "train": _train, "generate": _generate, "quantize": _quantize}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Its words, by default those of this process.

    Returns:
        The exit status: 0, or 2 where the request cannot be carried out, or 130 when stopped, or
        141 where who reads the output has gone.

    Raises:
        SystemExit: With status 0 after ``--help``, with 2 where the words are no command.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    name = f"companion {words[0]}" if words and words[0] in _COMMANDS else "companion"

    def action() -> int | None:
        chosen = _parser().parse_args(words)
        status: int | None = _COMMANDS[chosen.command].run(chosen)
        return status

    return guarded(name, action)


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} ({self.prog} --help says more)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="companion",
        description="Clean texts, train a language model on them, let it write, make it smaller.",
        epilog="Set COMPANION_TRACEBACK=1 to see where in the code an error arose.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        module.add_arguments(
            commands.add_parser(
                name,
                help=module.HELP,
                formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            )
        )
    return parser
