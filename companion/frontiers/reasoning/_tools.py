r"""A calculator in the loop: the model writes an expression, a program writes its value."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.frontiers.reasoning._exact import calculate
from companion.models import History, Pick, greedy

__all__ = ["Calculator"]


class Calculator:
    r"""A pick that lets a model use a calculator while it writes.

    Where what was written ends in ``<<``, an expression, and ``=``, the next tokens are those of
    its exact value and ``>>``, whatever the model would have picked. Everything else is the inner
    pick's. An expression that cannot be evaluated, or whose value has more than some 900 digits, is
    left to the model.

    Args:
        decode: Turns token ids into text.
        encode: Turns text into token ids.
        pick: How all other tokens are chosen.
        opens: What begins a call.
        asks: What ends the expression.
        closes: What is written after its value.
        prompt: Whether a call may begin in the prompt.

    Attributes:
        calls: For each row the expressions that were evaluated.

    Raises:
        ValueError: If a mark is empty.

    References:
        The marks are those of GSM8K: Cobbe et al. 2021, arXiv:2110.14168. Models that learn when to
        call: Schick et al. 2023, arXiv:2302.04761.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> letters = "0123456789*<>="
        >>> def decode(ids): return "".join(letters[i] for i in ids)
        >>> tool = Calculator(decode, lambda text: [letters.index(c) for c in text])
        >>> asked = torch.tensor([[letters.index(c) for c in "<<12*3="]])
        >>> history = History(asked, 7, None, torch.zeros(1, dtype=torch.bool))
        >>> letters[int(tool(torch.zeros(1, len(letters)), history))]
        '3'
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        encode: Callable[[str], Sequence[int]],
        *,
        pick: Pick = greedy,
        opens: str = "<<",
        asks: str = "=",
        closes: str = ">>",
        prompt: bool = True,
    ) -> None:
        if not (opens and asks and closes):
            raise ValueError("opens, asks and closes must be texts of one character or more")
        self.decode = decode
        self.encode = encode
        self.pick = pick
        self.opens, self.asks, self.closes = opens, asks, closes
        self.prompt = prompt
        self.calls: list[list[str]] = []
        self._waiting: list[list[int]] = []

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], history: History, /
    ) -> Integer[Tensor, " batch"]:
        """Pick, or go on writing a value.

        Args:
            logits: Of the next token.
            history: What stands before it.

        Returns:
            One id for each row.

        Raises:
            ValueError: If the inner pick searches: a value belongs to a row that stays.
        """
        chosen = self.pick(logits, history)
        if isinstance(chosen, tuple):
            raise ValueError("the inner pick must not move rows: search is not supported here")
        batch = len(history.ids)
        if history.written.shape[1] == 0 or len(self._waiting) != batch:
            self.calls = [[] for _ in range(batch)]
            self._waiting = [[] for _ in range(batch)]
        kept = history.ids if self.prompt else history.written
        forced: list[int | None] = []
        for row, ended in enumerate(history.ended.tolist()):
            waiting = self._waiting[row]
            if not waiting and not ended:
                waiting += self._answer(kept[row].tolist(), row)
            forced.append(waiting.pop(0) if waiting else None)
        if all(token is None for token in forced):
            return chosen
        places = [row for row, token in enumerate(forced) if token is not None]
        made = chosen.clone()
        made[places] = torch.tensor(
            [token for token in forced if token is not None],
            dtype=chosen.dtype,
            device=chosen.device,
        )
        return made

    def _answer(self, ids: Sequence[int], row: int) -> list[int]:
        """Tokens of the value that is asked for at the end of a row, if one is."""
        text = self.decode(ids)
        if not text.endswith(self.asks):
            return []
        _, found, call = text[: -len(self.asks)].rpartition(self.opens)
        if not found or self.closes in call or self.asks in call:
            return []
        try:
            written = _written(calculate(call))
        except ValueError:
            return []
        self.calls[row].append(call.strip())
        return list(self.encode(written + self.closes))


def _written(value: Fraction) -> str:
    """A whole number, a decimal that ends, or a fraction; nothing of more than some 900 digits."""
    denominator = value.denominator
    if max(abs(value.numerator), denominator).bit_length() > 3000:
        raise ValueError("the value is too long to be written")
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    if value.denominator == 1 or denominator > 1:
        return str(value)
    places = 0
    while (value * 10**places).denominator > 1:
        places += 1
    digits = str(abs(int(value * 10**places))).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
