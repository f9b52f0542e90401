"""Independence of the two sides of a check: what they share cannot be wrong on one side only."""

import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion.verify._record import VerificationError

__all__ = [
    "Watched",
    "in_library",
    "refuse_library_functions",
    "require_independent",
    "same_program",
    "watch",
]

_COMPANION = str(Path(__file__).resolve().parents[1])
_FOREIGN = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib")})
# What only describes a computation (its sizes, its place, whether it is allowed) is not its result.
_DESCRIPTIONS = (type(None), bool, str, torch.device, torch.dtype, torch.Size)


class Watched:
    """The result of a computation, and the functions of the project that made it.

    Attributes:
        value: What the function returned.
        function: The function.
        made_by: Code of every function of the library or of the page that ran and returned a
            result, with its name.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: Mapping[str, Any],
        *,
        models_are_open: bool = False,
    ) -> None:
        self.function = function
        self.made_by: dict[types.CodeType, str] = {}
        given = {code for value in inputs.values() for code in _codes(value)}
        own = _code(function)
        muted: list[types.FrameType] = []

        def profile(frame: types.FrameType, event: str, result: Any) -> None:
            if event == "call":
                # A function that is itself an input, the f of an equation, is no one's claim.
                if not muted and (
                    frame.f_code in given or (models_are_open and _is_of_a_model(frame))
                ):
                    muted.append(frame)
            elif event == "return":
                if muted:
                    if frame is muted[0]:
                        muted.clear()
                elif frame.f_code is not own and not isinstance(result, _DESCRIPTIONS):
                    code = frame.f_code
                    if code not in self.made_by and _ours(code):
                        self.made_by[code] = f"{_module(frame)}{code.co_qualname}"

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            self.value = function(**inputs)
        finally:
            sys.setprofile(before)
        if own is not None and in_library(own):
            self.made_by[own] = own.co_qualname


def refuse_library_functions(label: str, inputs: Mapping[str, Any]) -> None:
    """Refuse functions of the library among the inputs: they would be excused from the watch."""
    for name, value in inputs.items():
        # Below what checks its shapes in the tests stands the function itself.
        code = _code(inspect.unwrap(value) if callable(value) else value)
        if code is not None and in_library(code) and not isinstance(value, torch.nn.Module):
            raise VerificationError(
                f"{label}: the input {name!r} is {code.co_qualname} of the library. An input is "
                "what the equation leaves open; what the claim is about belongs to one side."
            )


def watch(
    function: Callable[..., Any], inputs: Mapping[str, Any], *, models_are_open: bool = False
) -> Watched:
    """Call a function and note which functions of the library or of the page it goes through.

    Args:
        function: The function.
        inputs: Its arguments. A function among them is no one's claim, and is not noted.
        models_are_open: Whether that holds for every model as well, wherever it comes from.

    Returns:
        The value and the note.
    """
    return Watched(function, inputs, models_are_open=models_are_open)


def require_independent(label: str, claim: Watched, who: str, other: Watched) -> None:
    """Refuse two sides that are one program, one result, or go through one function of ours."""
    if same_program(claim.function, other.function):
        raise VerificationError(
            f"{label}: the claim and {who} are the same program, so they agree whatever it does. "
            "Compute one of them in another way."
        )
    if _same_memory(claim.value, other.value):
        raise VerificationError(
            f"{label}: the claim and {who} return one and the same tensor. Compute it twice."
        )
    shared = sorted({claim.made_by[code] for code in claim.made_by.keys() & other.made_by.keys()})
    if shared:
        raise VerificationError(
            f"{label}: the claim and {who} both go through {', '.join(shared[:4])}, so a mistake "
            "there would not show. Write one side without it, in plain PyTorch or from another "
            "library. A function that the equation leaves open can be one of the inputs."
        )


def same_program(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Tell whether two functions do the same by the same operations."""
    return one is other or bool(_program(one) == _program(other))


def _codes(value: Any) -> Iterator[types.CodeType]:
    """The code of a function, or of a model and of the modules inside of it."""
    inside = value.modules() if isinstance(value, torch.nn.Module) else [value]
    for one in inside:
        code = _code(one)
        if code is not None:
            yield code


def _code(value: Any) -> types.CodeType | None:
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, torch.nn.Module):
        value = value.forward
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    return code if isinstance(code, types.CodeType) else None


def _is_of_a_model(frame: types.FrameType) -> bool:
    code = frame.f_code
    if code.co_varnames[:1] != ("self",):
        return False
    return isinstance(frame.f_locals.get("self"), torch.nn.Module)


def in_library(code: types.CodeType) -> bool:
    """Tell whether code is the library's."""
    return code.co_filename.startswith(_COMPANION)


def _ours(code: types.CodeType) -> bool:
    """Tell whether code is the library's or the page's, not that of Python or of a package."""
    name = code.co_filename
    if in_library(code):
        return True
    return not name.startswith(("<", *_FOREIGN)) or name.startswith("<doctest")


def _module(frame: types.FrameType) -> str:
    name = str(frame.f_globals.get("__name__", ""))
    return f"{name}." if name.startswith("companion") else ""


def _program(function: Any) -> Any:
    """Reduce a function to what it does: its operations, constants, names and captured values."""
    if isinstance(function, functools.partial):
        bound = [id(value) for value in (*function.args, *function.keywords.values())]
        return ("partial", _program(function.func), tuple(function.keywords), tuple(bound))
    code = _code(function)
    if code is None or not isinstance(function, types.FunctionType):
        return id(function)
    cells = tuple(id(cell.cell_contents) for cell in function.__closure__ or ())
    defaults = tuple(map(id, function.__defaults__ or ()))
    return (_operations(code), cells, defaults)


def _operations(code: types.CodeType) -> Any:
    constants = tuple(
        _operations(c) if isinstance(c, types.CodeType) else (type(c).__name__, repr(c))
        for c in _without_doc(code)
    )
    return (code.co_code, constants, code.co_names, code.co_freevars, code.co_argcount)


def _without_doc(code: types.CodeType) -> Iterable[Any]:
    # Names of nested functions are constants too, and tell nothing.
    return [c for c in code.co_consts if not (isinstance(c, str) and "<locals>" in c)]


def _same_memory(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    if one.device.type == "meta" or one.numel() == 0:
        return False
    places = [
        (t.untyped_storage().data_ptr(), t.storage_offset(), t.shape, t.stride())
        for t in (one.detach(), other.detach())
    ]
    return places[0] == places[1]
