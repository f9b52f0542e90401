"""Contrastive decoding: what a strong model says and a weak one does not."""

import math

from jaxtyping import Float
from torch import Tensor

from companion.core import check_in_range, wide
from companion.generation.decoding._follow import Follower
from companion.models import History, NextToken
from companion.transformer.block import Decoder

__all__ = ["Contrast"]


class Contrast:
    r"""Prefer what a strong model finds likelier than a weak one: contrastive decoding.

    .. math:: s(x) = \log p(x) - \log p_{weak}(x) \quad\text{where } p(x) \ge \kappa \max p

    It is the ``warp`` of :func:`companion.models.sample`, or a step before a
    :class:`~companion.generation.decoding.Pipeline`; it holds the weak model and its cache.

    Args:
        weak: The weak model, in evaluation mode, with the same tokens.
        floor: :math:`\kappa`, in (0, 1]; what is less likely is removed.

    Raises:
        ValueError: If the floor is out of its range.

    References:
        Li et al. 2023, arXiv:2210.15097, eq. 3 and 4.

    Book: :doc:`/book/generation/decoding`
    """

    def __init__(self, weak: Decoder | NextToken, *, floor: float = 0.1) -> None:
        check_in_range("floor", floor, low=0.0, high=1.0, open_low=True)
        self.reader, self.floor = Follower(weak), floor

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], history: History
    ) -> Float[Tensor, "batch vocab"]:
        """Score the next token.

        Args:
            logits: Those of the strong model.
            history: The text.

        Returns:
            The scores, minus infinity for what is removed.
        """
        strong = wide(logits).log_softmax(-1)
        weak = wide(self.reader(history.ids, history.real)).log_softmax(-1)
        least = strong.amax(-1, keepdim=True) + math.log(self.floor)
        return (strong - weak).masked_fill(strong < least, float("-inf"))
