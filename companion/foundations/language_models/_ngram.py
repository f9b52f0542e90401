r"""N-gram models by four estimators.

All of them have one form, a chain of interpolations from order 0 to n:

.. math:: P_k(w \mid c) = a_k(c, w) + b_k(c)\, P_{k-1}(w \mid c')

where :math:`c'` is the context :math:`c` without its oldest symbol. :math:`a_k` is what order k
gives to the n-grams that it saw, and :math:`b_k` what it leaves to the lower order: 1 where the
context was never seen. The estimators differ in :math:`a` and :math:`b` alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import check_ids, check_in_range
from companion.foundations.language_models._counts import NGramCounts, find

__all__ = [
    "NGramModel",
    "absolute_discounts",
    "additive",
    "kneser_ney",
    "maximum_likelihood",
]


@dataclass(frozen=True, eq=False)
class NGramModel:
    r"""An n-gram model, ready to give probabilities.

    .. math:: P_k(w \mid c) = a_k(c, w) + b_k(c)\, P_{k-1}(w \mid c')

    Attributes:
        counts: The n-grams seen.
        gains: :math:`a_k` for each n-gram of order k = 1, ..., n; it is 0 for the others.
        backoffs: :math:`b_k` for each context of order k; it is 1 for contexts never seen.
        floor: :math:`P_0`, the probability of each symbol before anything is counted: 1 over the
            number of outcomes, or 0.

    Book:
        :doc:`/book/foundations/language_models`
    """

    counts: NGramCounts
    gains: tuple[Float[Tensor, " _"], ...]
    backoffs: tuple[Float[Tensor, " _"], ...]
    floor: float

    @property
    def order(self) -> int:
        """The largest n."""
        return self.counts.order

    @property
    def vocab_size(self) -> int:
        """Number of outcomes."""
        return self.counts.vocab_size

    def to(
        self, device: str | torch.device | None = None, *, dtype: torch.dtype | None = None
    ) -> "NGramModel":
        """Return the model on another device or in another precision.

        Args:
            device: Where to; by default it stays.
            dtype: Floating dtype of the probabilities; by default as they are.

        Returns:
            The model.
        """
        where = self.gains[0].device if device is None else device
        return NGramModel(
            self.counts.to(where),
            tuple(gain.to(where, dtype) for gain in self.gains),
            tuple(backoff.to(where, dtype) for backoff in self.backoffs),
            self.floor,
        )

    def _prob(self, ids: list[Tensor], symbols: Tensor) -> Tensor:
        prob = torch.full_like(symbols, self.floor, dtype=self.gains[0].dtype)
        for level, found in enumerate(ids):
            gram = find(self.counts.gram_keys[level], found * self.vocab_size + symbols)
            # An unseen context has the id -1: its key is negative, and found nowhere.
            gain = torch.where(gram >= 0, self.gains[level][gram], 0.0)
            backoff = torch.where(found >= 0, self.backoffs[level][found], 1.0)
            prob = gain + backoff * prob
        return prob

    def log_prob(
        self, contexts: Int[Tensor, "*batch context"], symbols: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        r"""Return :math:`\log P(w \mid c)` of each symbol.

        Args:
            contexts: The symbols before, the oldest first, at least n - 1 of them. BOS is the id
                ``vocab_size``.
            symbols: The symbols :math:`w`.

        Returns:
            Log-probabilities in nats, ``-inf`` where the model gives none.

        Raises:
            ValueError: If the contexts are too short, or an id is out of range.

        Numerics:
            Two binary searches for each order and symbol. No term of the chain is negative, so
            nothing cancels.
        """
        check_ids("symbols", symbols, self.vocab_size)
        return self._prob(self.counts.context_ids(contexts), symbols).log()

    def probs(self, contexts: Int[Tensor, "*batch context"]) -> Float[Tensor, "*batch vocab"]:
        r"""Return the whole distribution after each context.

        Args:
            contexts: The symbols before, as in :meth:`log_prob`.

        Returns:
            Probabilities that sum to 1 in each row. (Maximum likelihood has none after a context
            that it never saw: there the row is 0.)

        Raises:
            ValueError: If the contexts are too short, or an id is out of range.
        """
        ids = [found.unsqueeze(-1) for found in self.counts.context_ids(contexts)]
        every = torch.arange(self.vocab_size, device=contexts.device)
        return self._prob(ids, every.expand(*contexts.shape[:-1], -1))


def _lower(counts: NGramCounts, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Gains and backoffs of orders below n that pass everything on."""
    gains = [torch.zeros_like(keys, dtype=dtype) for keys in counts.gram_keys[:-1]]
    backoffs = [torch.ones_like(keys, dtype=dtype) for keys in counts.context_keys[:-1]]
    return gains, backoffs


def maximum_likelihood(counts: NGramCounts) -> NGramModel:
    r"""Estimate an n-gram model by relative frequencies.

    .. math:: \hat P(w \mid c) = \frac{N(c, w)}{N(c)}

    Args:
        counts: The counts.

    Returns:
        The model, in float64. It gives no probability to what it never saw. After a context that
        never occurred the ratio is 0/0; it counts as 0.

    Book: :doc:`/book/foundations/language_models`

    Example:
        >>> from companion.foundations.language_models import count_ngrams, windows
        >>> pairs = windows([torch.tensor([1, 1, 2])], order=2, vocab_size=3, eos=0)
        >>> model = maximum_likelihood(count_ngrams(*pairs, vocab_size=3))
        >>> model.probs(torch.tensor([1]))
        tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    return additive(counts, k=0.0)


def additive(counts: NGramCounts, *, k: int | float = 1.0) -> NGramModel:
    r"""Estimate an n-gram model with k imagined occurrences of every n-gram.

    .. math:: P(w \mid c) = \frac{N(c, w) + k}{N(c) + k |\mathcal V|}

    Args:
        counts: The counts.
        k: The number added, 0 or more. 1 is Laplace's rule; 0 is maximum likelihood.

    Returns:
        The model, in float64.

    Raises:
        ValueError: If k is negative or infinite.

    References:
        G. J. Lidstone, 1920; as discussed in S. F. Chen and J. Goodman,
        doi:10.1006/csla.1999.0128, section 2.1.

    Book: :doc:`/book/foundations/language_models`

    Example:
        >>> from companion.foundations.language_models import count_ngrams, windows
        >>> pairs = windows([torch.tensor([1, 1, 2])], order=2, vocab_size=3, eos=0)
        >>> model = additive(count_ngrams(*pairs, vocab_size=3), k=2.0)
        >>> model.probs(torch.tensor([1]))
        tensor([0.2500, 0.3750, 0.3750], dtype=torch.float64)
    """
    check_in_range("k", float(k), low=0.0, high=float("inf"), open_high=True)
    gains, backoffs = _lower(counts, torch.float64)
    total = counts.context_total(counts.order).double()
    mass = total + k * counts.vocab_size
    gains.append(counts.gram_counts[-1] / mass[counts.gram_context(counts.order)])
    backoffs.append(k * counts.vocab_size / mass)
    floor = 1.0 / counts.vocab_size if k > 0 else 0.0
    return NGramModel(counts, tuple(gains), tuple(backoffs), floor)


def absolute_discounts(
    counts: Int[Tensor, " grams"], *, modified: bool = False
) -> Float[Tensor, " three"]:
    r"""Estimate how much to take from the count of each n-gram.

    With :math:`n_r` the number of n-grams that occur r times, one discount for all,

    .. math:: \delta = \frac{n_1}{n_1 + 2 n_2},

    or, modified, three, for n-grams that occur once, twice, and more often:

    .. math:: \delta_r = r - (r + 1)\, \frac{n_1}{n_1 + 2 n_2}\, \frac{n_{r+1}}{n_r},
        \qquad r = 1, 2, 3.

    Args:
        counts: The counts of all n-grams of one order.
        modified: Whether to give three discounts.

    Returns:
        Three discounts, the one for r in [0, r], float64, all equal unless modified.

    Raises:
        ValueError: If the text is too short or too regular to tell: an :math:`n_r` that the
            formula needs is 0.

    References:
        H. Ney, U. Essen and R. Kneser, doi:10.1006/csla.1994.1001; modified: S. F. Chen and
        J. Goodman, doi:10.1006/csla.1999.0128, eq. 26. Where a sample makes a modified discount
        negative, it is set to 0.

    Book: :doc:`/book/foundations/language_models`

    Example:
        >>> absolute_discounts(torch.tensor([1, 1, 1, 2, 2, 2, 5]))
        tensor([0.3333, 0.3333, 0.3333], dtype=torch.float64)
    """
    n = [(counts == r).sum().double() for r in range(5)]
    needed = (1, 2, 3, 4) if modified else (1, 2)
    for r in needed:
        if not bool(n[r] > 0):
            raise ValueError(
                f"no n-gram of {len(counts)} occurs exactly {r} times, so the discount cannot be "
                "estimated: give it, or count more text"
            )
    y = n[1] / (n[1] + 2 * n[2])
    if not modified:
        return y.expand(3).clone()
    three = torch.stack([r - (r + 1) * y * n[r + 1] / n[r] for r in (1, 2, 3)])
    return three.clamp(min=0.0)


def kneser_ney(
    counts: NGramCounts,
    *,
    discount: int | float | Sequence[int | float] | None = None,
    modified: bool = False,
    interpolate_unigrams: bool = False,
) -> NGramModel:
    r"""Estimate an interpolated Kneser–Ney model.

    .. math:: P(w \mid c) = \frac{\max(N(c, w) - \delta, 0)}{N(c)}
        + \frac{\delta\, N_{1+}(c,\cdot)}{N(c)}\, P(w \mid c')

    The highest order counts occurrences. Every lower order counts :math:`N_{1+}(\cdot,c,w)`, the
    different symbols that precede, in place of :math:`N(c, w)`; at order 1 this gives
    :math:`P(w) = N_{1+}(\cdot,w) / N_{1+}(\cdot,\cdot)`.

    Args:
        counts: The counts.
        discount: :math:`\delta` in [0, 1], one for all orders or one for each order from 1 to n;
            that of order 1 is used only with ``interpolate_unigrams``. By default
            each order's is estimated by :func:`absolute_discounts` from its own counts.
        modified: Use three discounts for each order, as Chen and Goodman do.
        interpolate_unigrams: Discount order 1 as well, in favor of the uniform distribution. Then
            symbols that the text never held have a probability above 0.

    Returns:
        The model, in float64.

    Raises:
        ValueError: If a discount is out of range, their number is not n, or one cannot be
            estimated.

    References:
        R. Kneser and H. Ney, doi:10.1109/ICASSP.1995.479394; interpolated and modified: S. F. Chen
        and J. Goodman, doi:10.1006/csla.1999.0128, section 3. Contexts that begin with BOS are
        counted as all others are.

    Book: :doc:`/book/foundations/language_models`

    Example:
        >>> from companion.foundations.language_models import count_ngrams, windows
        >>> pairs = windows([torch.tensor([1, 1, 2])], order=2, vocab_size=3, eos=0)
        >>> model = kneser_ney(count_ngrams(*pairs, vocab_size=3), discount=0.5)
        >>> model.probs(torch.tensor([1]))
        tensor([0.1250, 0.5000, 0.3750], dtype=torch.float64)
    """
    order = counts.order
    given: list[int | float] | None = None
    if discount is not None:
        if modified:
            raise ValueError("give a discount, or modified=True to estimate three, not both")
        given = [discount] * order if isinstance(discount, (int, float)) else list(discount)
        if len(given) != order:
            raise ValueError(f"discount must hold {order} numbers, one an order, got {len(given)}")
        for value in given:
            check_in_range("discount", float(value), low=0.0, high=1.0)
    gains, backoffs = [], []
    for level in range(1, order + 1):
        used = counts.gram_counts[-1] if level == order else counts.continuation_counts(level)
        if level == 1 and not interpolate_unigrams:
            taken = torch.zeros_like(used, dtype=torch.float64)
        else:
            three = (
                absolute_discounts(used, modified=modified)
                if given is None
                else used.new_full((3,), given[level - 1], dtype=torch.float64)
            )
            taken = three[used.clamp(max=3) - 1]
        total = counts.context_total(level, used).double()
        gains.append((used - taken) / total[counts.gram_context(level)])
        zeros = torch.zeros_like(total)
        backoffs.append(zeros.index_add(0, counts.gram_context(level), taken) / total)
    floor = 1.0 / counts.vocab_size if interpolate_unigrams else 0.0
    return NGramModel(counts, tuple(gains), tuple(backoffs), floor)
