"""Several changes of the logits, one after the other, in an order that is written down."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from companion.generation.decoding import _penalties, _warp
from companion.models import History

__all__ = ["Pipeline"]

# Without a look at the text, and with one.
PLAIN: dict[str, Callable[..., Tensor]] = {
    name: getattr(_warp, name) for name in _warp.__all__ if name not in ("Distortion", "distortion")
}
READING: dict[str, Callable[..., Tensor]] = {
    name: getattr(_penalties, name) for name in _penalties.__all__
}
COUNTED = ("top_k", "no_repeat_ngram")


class Pipeline:
    """Change logits by several steps, in the order in which they are written.

    The order matters: a nucleus of the cooled distribution is smaller than the cooled nucleus.
    A pipeline is the ``warp`` of :func:`companion.models.sample`.

    Args:
        steps: The setting of each step, by its name: ``temperature``, ``top_k``, ``top_p``,
            ``min_p``, ``typical``, ``epsilon``, ``eta``, ``top_n_sigma``; and, with a look at the
            text, ``repetition_penalty``, ``presence_penalty``, ``frequency_penalty``,
            ``no_repeat_ngram``. Each is a function of this module, which says what it does.

    Attributes:
        steps: Names and settings, in order.

    Raises:
        ValueError: If a step is unknown, a number of tokens is not whole, or, when it is used, a
            setting is out of its range.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> import torch
        >>> z = torch.tensor([[3.0, 2.0, 1.0]])
        >>> Pipeline(temperature=0.5, top_p=0.8)(z).softmax(-1)
        tensor([[1., 0., 0.]])
        >>> Pipeline(top_p=0.8, temperature=0.5)(z).softmax(-1)
        tensor([[0.8808, 0.1192, 0.0000]])
    """

    def __init__(self, **steps: float) -> None:
        unknown = [name for name in steps if name not in PLAIN and name not in READING]
        if unknown:
            known = ", ".join([*PLAIN, *READING])
            raise ValueError(f"no step is called {unknown[0]!r}: there are {known}")
        whole: dict[str, Any] = {}
        for name, value in steps.items():
            whole[name] = value
            if name in COUNTED:
                if not float(value).is_integer():
                    raise ValueError(f"{name} counts tokens: give a whole number, not {value}")
                whole[name] = int(value)
        self.steps: tuple[tuple[str, Any], ...] = tuple(whole.items())

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], history: History | None = None
    ) -> Float[Tensor, "batch vocab"]:
        """Take all steps.

        Args:
            logits: Logits of the next token.
            history: The text; steps that look at it need it.

        Returns:
            New logits.

        Raises:
            ValueError: If a step needs the text, and there is none; if a setting is out of range.
        """
        for name, value in self.steps:
            if name in PLAIN:
                logits = PLAIN[name](logits, value)
            elif history is None:
                raise ValueError(f"{name} looks at the text: give history")
            else:
                logits = READING[name](logits, value, history)
        return logits

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.steps)
        return f"Pipeline({settings})"
