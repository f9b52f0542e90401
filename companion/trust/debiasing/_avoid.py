r"""Self-debiasing: a model that is told what to avoid while it writes."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_count, check_in_range, check_same_shape, check_shape, wide
from companion.generation.decoding._follow import Follower
from companion.models import History, NextToken, Pick, greedy
from companion.transformer.block import Decoder

__all__ = ["SelfDebias", "self_debias_logits"]


def self_debias_logits(
    logits: Float[Tensor, "*batch vocab"],
    biased: Float[Tensor, "*batch vocab"],
    *,
    decay: float = 50.0,
    floor: float = 0.01,
) -> Float[Tensor, "*batch vocab"]:
    r"""Make less likely what becomes more likely after a description of what is unwished.

    .. math:: \tilde p(v) \propto p(v)\,\alpha\big(p(v)-p_b(v)\big),\qquad
        \alpha(\Delta) = \begin{cases}1 & \Delta\ge0\\
        \max(e^{\lambda\Delta},\,\epsilon) & \Delta<0\end{cases}

    Args:
        logits: Of the next token.
        biased: Of the same token after the description.
        decay: :math:`\lambda`, 0 or more; 0 changes nothing.
        floor: :math:`\epsilon`, in (0, 1]: so that no token is impossible.

    Returns:
        Logits, not normalized, in float32 at least.

    Raises:
        ValueError: If the shapes differ, or a parameter is out of its range.

    References:
        Schick, Udupa and Schütze 2021, arXiv:2103.00453, eq. 1 to 3; decay and floor as in their
        code.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
        >>> self_debias_logits(p, q, decay=5.0).softmax(-1)
        tensor([0.1192, 0.8808])
    """
    check_same_shape("logits", logits, "biased", biased)
    check_in_range("decay", decay, low=0.0, open_high=True)
    check_in_range("floor", floor, low=0.0, high=1.0, open_low=True)
    return _against(logits, wide(biased).log_softmax(-1), decay, floor)


def _against(logits: Tensor, told: Tensor, decay: float, floor: float) -> Tensor:
    """What is likelier after the descriptions; the largest of several need not sum to 1."""
    plain = wide(logits).log_softmax(-1)
    apart = (plain.exp() - told.exp()).clamp(max=0.0)
    return plain + (decay * apart).clamp(min=math.log(floor))


class SelfDebias:
    r"""Self-debiasing as a pick: the model is told what to avoid, and avoids it.

    The same model reads the text a second time, after a description such as *The following text
    discriminates against people because of their gender:*, with a cache of its own.

    Args:
        model: The model that writes, in evaluation mode.
        descriptions: One or more rows of ids, (1, m) each.
        decay: As in :func:`self_debias_logits`.
        floor: As there.
        then: The pick that chooses from the new logits; the likeliest by default.

    Raises:
        ValueError: If there is no description, or one is not a row of tokens.

    References:
        Schick, Udupa and Schütze 2021, arXiv:2103.00453.

    Book: :doc:`/book/trust/debiasing`
    """

    def __init__(
        self,
        model: Decoder | NextToken,
        *,
        descriptions: Sequence[Integer[Tensor, "one _"]],
        decay: float = 50.0,
        floor: float = 0.01,
        then: Pick = greedy,
    ) -> None:
        check_count("descriptions", len(descriptions))
        for description in descriptions:
            check_shape("a description", description, (1, None))
            check_count("tokens of a description", description.shape[1])
        check_in_range("decay", decay, low=0.0, open_high=True)
        check_in_range("floor", floor, low=0.0, high=1.0, open_low=True)
        self.readers = [Follower(model) for _ in descriptions]
        self.descriptions, self.decay, self.floor, self.then = descriptions, decay, floor, then

    def warp(
        self, logits: Float[Tensor, "batch vocab"], history: History
    ) -> Float[Tensor, "batch vocab"]:
        """Change the logits of one step: for :func:`companion.models.sample`.

        Args:
            logits: Of the next token.
            history: What stands before it.

        Returns:
            New logits.

        Raises:
            ValueError: If prompts are padded: give prompts of one length.
        """
        if history.real is not None:
            raise ValueError(
                "self-debiasing reads a description before each text, which padding would part "
                "from it: give prompts of one length, or one at a time"
            )
        rows = len(history.ids)
        likely: Tensor | None = None
        for reader, description in zip(self.readers, self.descriptions, strict=True):
            before = description.to(history.ids).expand(rows, -1)
            told = wide(reader(torch.cat([before, history.ids], 1), None)).log_softmax(-1)
            likely = told if likely is None else torch.maximum(likely, told)
        assert likely is not None
        return _against(logits, likely, self.decay, self.floor)

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], history: History
    ) -> Integer[Tensor, " batch"] | tuple[Integer[Tensor, " batch"], Integer[Tensor, " batch"]]:
        """Choose.

        Args:
            logits: Of the next token.
            history: What stands before it.

        Returns:
            What the inner pick chooses from the new logits.

        Raises:
            ValueError: As :meth:`warp`.
        """
        return self.then(self.warp(logits, history), history)
