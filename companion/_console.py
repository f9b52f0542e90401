"""What all command lines of the library share: one-line errors, pipes that end, any encoding."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress

__all__ = ["complain", "guarded", "write"]

_LONGEST = 500


def write(text: str, *, end: str = "\n") -> None:
    """Print a text at once; where the console lacks a character, ``?`` stands for it.

    Args:
        text: What to print, without the end of the line.
        end: What follows; nothing where more of the line comes later.
    """
    encoding = getattr(sys.stdout, "encoding", None)
    if encoding and sys.stdout.errors == "strict":
        text = text.encode(encoding, "replace").decode(encoding)
    print(text, end=end, flush=True)


def complain(command: str, message: str) -> None:
    """Say something in one line of standard error; of several processes, the first says it.

    Args:
        command: Who says it.
        message: The text.
    """
    line = " ".join(message.split())
    if len(line) > _LONGEST:
        line = line[: _LONGEST - 4] + " ..."
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{command}: {line}\n")


def guarded(command: str, action: Callable[[], int | None]) -> int:
    """Carry out a command and turn whatever goes wrong into one line and an exit status.

    The variable ``COMPANION_TRACEBACK`` lets errors through, for those who look for their place.

    Args:
        command: Its name, which begins the line.
        action: What to do; it may return an exit status.

    Returns:
        0, or what the action returned; 2 after an error, 130 after Ctrl-C, 141 where the reader
        of the output has gone, as ``head`` does.
    """
    try:
        try:
            return action() or 0
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _let_go_of_output()
        return 141
    except KeyboardInterrupt as stopped:
        complain(command, str(stopped) or "stopped")
        return 130
    except Exception as error:
        if os.environ.get("COMPANION_TRACEBACK"):
            raise
        complain(command, _told(error))
        try:
            sys.stdout.flush()
        except OSError:  # a full disk, for example
            _let_go_of_output()
        return 2


def _told(error: Exception) -> str:
    text, name = str(error), type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "allocate memory" in text:
        return f"there is not enough memory: choose smaller sizes ({text or name})"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if text and isinstance(error, ValueError | OSError | FloatingPointError):
        return text
    return f"{name}: {text}"


def _let_go_of_output() -> None:
    """Let what is still to be written go nowhere: Python would complain once more at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
