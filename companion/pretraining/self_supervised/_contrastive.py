"""InfoNCE: tell the other view of an example from views of other examples."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from companion.core import can_read, check_floating, check_in_range, check_shape, wide
from companion.foundations.cross_entropy import (
    chunked_cross_entropy,
    cross_entropy,
    logsumexp,
)
from companion.foundations.cross_entropy._softmax import held_temperature, shifted_logits
from companion.pretraining.self_supervised._checks import check_pair, check_rows

__all__ = ["info_nce", "nt_xent"]


def info_nce(
    U: Float[Tensor, "n dim"],
    V: Float[Tensor, "n dim"],
    *,
    temperature: float | Float[Tensor, ""],
    symmetric: bool = False,
    positive_in_denominator: bool = True,
    negatives: Float[Tensor, "extra dim"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, ""]:
    r"""Return the InfoNCE loss of a batch of pairs, in nats.

    .. math:: L = -\frac1N \sum_{i=1}^N \log
        \frac{e^{u_i \cdot v_i / \tau}}{\sum_{j=1}^N e^{u_i \cdot v_j / \tau}}

    Row :math:`i` of both matrices comes from one example; row :math:`j \ne i` of ``V`` is a
    negative of row :math:`i` of ``U``. The loss is a cross-entropy over :math:`N` candidates.

    Args:
        U: One view of each example. Rows are taken as they are: normalize them first
            (``torch.nn.functional.normalize``) where scores should be cosines.
        V: The other view, in the same order.
        temperature: :math:`\tau > 0`; a tensor where it is learned.
        symmetric: Average the loss with that in which ``V`` looks for ``U``.
        positive_in_denominator: Whether :math:`j = i` is among the candidates, as in the formula.
            Without it the loss may be negative, and is no cross-entropy ("decoupled").
        negatives: Further candidates for every row of ``U``, such as a queue of past views.
        chunk_size: Rows whose scores are held at a time. By default all are, and memory grows
            with :math:`N^2`; with chunks it grows with :math:`N`.

    Returns:
        The mean loss, a scalar in float32, or float64 for float64 inputs. At least 0 with the
        positive in the denominator; :math:`\log N` where all scores are equal.

    Raises:
        ValueError: If shapes or dtypes do not fit, the temperature is a number that is not
            positive (a tensor is not read), there is no negative, scores over the temperature
            overflow in chunks, or options do not go together: chunks need the positive in the
            denominator, and a symmetric loss has no use for extra negatives of one side.

    Numerics:
        Scores are formed in the dtype of the inputs, and everything after that in float32 or
        better. The temperature divides distances from the largest score of a row, so a tiny one
        gives the limit: :math:`\log k` where the positive is one of :math:`k` largest scores, and
        a loss that grows like :math:`1/\tau` where it is not. Chunks divide ``U`` instead, and
        refuse a temperature for which that overflows. They compute the gradient in the forward
        pass (:func:`companion.foundations.cross_entropy.chunked_cross_entropy`), so no second
        derivative can be taken through them. :math:`2 N^2 d` operations forward.

    References:
        van den Oord, Li and Vinyals 2018, arXiv:1807.03748, eq. 4; symmetric with a learned
        temperature: Radford et al. 2021, arXiv:2103.00020; without the positive in the
        denominator: Yeh et al. 2022, arXiv:2110.06848; a queue: He et al. 2020,
        arXiv:1911.05722.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> U = torch.eye(3, dtype=torch.float64)
        >>> info_nce(U, U, temperature=0.5)
        tensor(0.2395, dtype=torch.float64)
    """
    check_pair(U, V)
    _check_temperature(temperature)
    keys = V
    if negatives is not None:
        check_rows("negatives", negatives)
        check_shape("negatives", negatives, (None, U.shape[1]))
        if symmetric:
            raise ValueError("extra negatives serve one side: leave symmetric=False, or leave out")
        if negatives.dtype != V.dtype:
            raise ValueError(f"negatives are {negatives.dtype} but V is {V.dtype}: convert them")
        keys = torch.cat([V, negatives])
    if keys.shape[0] < 2:
        raise ValueError("one pair has no negative: give at least two, or pass negatives")
    targets = torch.arange(U.shape[0], device=U.device)
    if chunk_size is not None:
        if not positive_in_denominator:
            raise ValueError("chunks need the positive in the denominator: leave out chunk_size")
        loss = _in_chunks(U, keys, targets, temperature, chunk_size)
        if not symmetric:
            return loss
        return (loss + _in_chunks(V, U, targets, temperature, chunk_size)) / 2
    scores = wide(U @ keys.T)
    loss = _over_rows(scores, targets, temperature, positive_in_denominator)
    if not symmetric:
        return loss
    return (loss + _over_rows(scores.T, targets, temperature, positive_in_denominator)) / 2


def nt_xent(
    U: Float[Tensor, "n dim"],
    V: Float[Tensor, "n dim"],
    *,
    temperature: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    r"""Return SimCLR's loss: InfoNCE in which both views of the others are negatives, in nats.

    The rows of both views, normalized here, are stacked as :math:`z_1, \dots, z_{2N}`. Each looks
    for its partner :math:`z_{i^*}` among the other :math:`2N - 1`:

    .. math:: L = -\frac1{2N} \sum_{i=1}^{2N} \log
        \frac{e^{\cos(z_i, z_{i^*}) / \tau}}{\sum_{j \ne i} e^{\cos(z_i, z_j) / \tau}}

    Args:
        U: One view of each example; rows of any length but zero.
        V: The other view, in the same order.
        temperature: :math:`\tau > 0`; a tensor where it is learned.

    Returns:
        The mean loss over :math:`2N` rows, a scalar in float32, or float64 for float64 inputs,
        above 0 for two or more pairs.

    Raises:
        ValueError: If shapes or dtypes do not fit, there are fewer than two pairs, or the
            temperature is not positive.

    References:
        Chen et al. 2020, arXiv:2002.05709, eq. 1 and algorithm 1.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> U = torch.eye(3, dtype=torch.float64)
        >>> nt_xent(U, U, temperature=0.5)
        tensor(0.4327, dtype=torch.float64)
    """
    check_pair(U, V, least=2)
    _check_temperature(temperature)
    n = U.shape[0]
    Z = F.normalize(wide(torch.cat([U, V])), dim=-1)
    rows = torch.arange(2 * n, device=U.device)
    self_pairs = rows[:, None] == rows
    scores = (Z @ Z.T).masked_fill(self_pairs, float("-inf"))
    return cross_entropy(shifted_logits(scores, temperature), (rows + n) % (2 * n))


def _check_temperature(temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor):
        check_floating("temperature", temperature)
        check_shape("temperature", temperature, ())
    else:
        check_in_range("temperature", temperature, low=0.0, open_low=True, open_high=True)


def _over_rows(
    scores: Tensor, targets: Tensor, temperature: float | Tensor, positive_in_denominator: bool
) -> Tensor:
    if positive_in_denominator:
        return cross_entropy(shifted_logits(scores, temperature), targets)
    positives = scores.gather(1, targets[:, None])
    columns = torch.arange(scores.shape[1], device=scores.device)
    others = scores.masked_fill(targets[:, None] == columns, float("-inf"))
    # lse(o / T) - s / T, both seen from the largest of the others.
    largest = others.detach().amax(1, keepdim=True)
    ahead = (largest - positives)[:, 0] / held_temperature(temperature, scores)
    return (logsumexp(shifted_logits(others, temperature)) + ahead).mean()


def _in_chunks(
    U: Tensor, keys: Tensor, targets: Tensor, temperature: float | Tensor, chunk_size: int
) -> Tensor:
    loss = chunked_cross_entropy(U / temperature, keys.T, targets, chunk_size=chunk_size)
    if can_read(loss) and not bool(torch.isfinite(loss)):
        raise ValueError(
            f"the scores over temperature {float(temperature)} are beyond {U.dtype}: leave out "
            "chunk_size, or raise the temperature"
        )
    return loss
