"""What the command lines say where something goes wrong, and the statuses they end with."""

import errno
import io
import os
import subprocess
import sys

import pytest

from companion._console import complain, guarded, write


def failing(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("lr must be\n  positive"), "lr must be positive"),
        (ValueError(), "ValueError: "),
        (FloatingPointError("the loss is NaN"), "the loss is NaN"),
        (KeyError("ids"), "KeyError: 'ids'"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (
            OSError(errno.ENOENT, os.strerror(errno.ENOENT), "a.txt"),
            "a.txt: No such file or directory",
        ),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), b"b.txt"), "b.txt: Permission denied"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "[Errno 28] No space left on device"),
        (OSError("unreadable"), "unreadable"),
        (OSError(errno.EIO, "", "c.txt"), "[Errno 5] : 'c.txt'"),
        (MemoryError(), "there is not enough memory: choose smaller sizes (MemoryError)"),
        (
            RuntimeError("you tried to allocate memory"),
            "there is not enough memory: choose smaller sizes (you tried to allocate memory)",
        ),
    ],
)
def test_an_error_is_one_line_and_status_2(error, said, capsys, monkeypatch):
    monkeypatch.delenv("COMPANION_TRACEBACK", raising=False)
    assert guarded("companion x", failing(error)) == 2
    shown = capsys.readouterr()
    assert shown.err == f"companion x: {said.rstrip()}\n"
    assert shown.out == ""


def test_an_error_is_raised_for_those_who_look_for_its_place(monkeypatch):
    monkeypatch.setenv("COMPANION_TRACEBACK", "1")
    with pytest.raises(ValueError, match="here"):
        guarded("companion x", failing(ValueError("here")))


@pytest.mark.parametrize(("action", "status"), [(lambda: None, 0), (lambda: 0, 0), (lambda: 3, 3)])
def test_the_status_is_what_the_action_returns(action, status, capsys):
    assert guarded("companion x", action) == status
    assert capsys.readouterr().err == ""


def test_a_stopped_command_says_so(capsys):
    assert guarded("companion x", failing(KeyboardInterrupt())) == 130
    assert guarded("companion x", failing(KeyboardInterrupt("saved at 7"))) == 130
    assert capsys.readouterr().err == "companion x: stopped\ncompanion x: saved at 7\n"


def test_a_reader_that_has_gone_ends_the_command_in_silence():
    program = (
        "import sys; from companion._console import guarded, write\n"
        "sys.exit(guarded('x', lambda: [write('line') for _ in range(100_000)] and None))"
    )
    made = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert made.stdout.readline() == "line\n"
    made.stdout.close()
    errors = made.stderr.read()
    made.stderr.close()
    assert (made.wait(), errors) == (141, "")


@pytest.mark.parametrize(("length", "kept"), [(500, 500), (501, 500)])
def test_a_line_has_at_most_500_characters(length, kept, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    complain("x", "a" * length)
    line = capsys.readouterr().err.removeprefix("x: ").removesuffix("\n")
    assert len(line) == kept
    assert line == ("a" * 500 if length == 500 else "a" * 496 + " ...")


@pytest.mark.parametrize(("rank", "said"), [("0", "x: why\n"), ("1", "")])
def test_of_several_processes_the_first_complains(rank, said, capsys, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    complain("x", "why")
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("errors", "shown"), [("strict", b"a ? b\n"), ("backslashreplace", b"a \\u6c34 b\n")]
)
def test_what_the_console_lacks_is_a_question_mark(errors, shown, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors=errors))
    write("a \u6c34 b")
    assert raw.getvalue() == shown
