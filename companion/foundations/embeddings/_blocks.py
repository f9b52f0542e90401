r"""The training engine's inner loop: gradients of whole blocks of text by matrix products.

A stretch of text is cut into blocks of ``b`` centers. The words within reach of a block are the
``b + 2 m`` words around it, so that its scores are one ``b × (b + 2 m)`` matrix, of which the
windows are a band. ``K`` negatives are drawn for a block and shared by its centers. A center with
:math:`p` positive pairs gives each negative the weight :math:`\kappa = k p / K`, which leaves the
expected gradient what it is with :math:`k` negatives of its own for each pair.

All of it is one table of coefficients: :math:`-1` for a word in the window, :math:`+\kappa` for a
negative, 0 for everything else. The gradients are written out, so no autograd graph is built.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "block_coefficients",
    "block_gradients",
    "block_loss",
    "window_masks",
]


def window_masks(*, block: int, window: int) -> Float[Tensor, "rows context"]:
    """All possible rows of a block's window mask, as a table to look rows up in.

    Row ``(i * (m + 1) + l) * (m + 1) + r`` belongs to the center at place ``i`` of its block, with
    ``l`` words in reach on its left and ``r`` on its right. Column ``j`` is the word at distance
    ``j - m - i``.

    Args:
        block: Number of centers ``b`` in a block.
        window: Largest reach ``m``.

    Returns:
        Zeros and ones, float32, shape ``(b (m + 1)**2, b + 2 m)``.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> window_masks(block=2, window=1)[3]  # first center, one word on either side
        tensor([1., 0., 1., 0.])
    """
    place = torch.arange(block).view(-1, 1, 1, 1)
    reach = torch.arange(window + 1)
    left, right = reach.view(1, -1, 1, 1), reach.view(1, 1, -1, 1)
    distance = torch.arange(block + 2 * window) - window - place
    inside = (distance >= -left) & (distance <= right) & (distance != 0)
    return inside.float().flatten(0, 2)


def block_coefficients(
    *, block: int, window: int, negatives: int, shared: int, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "rows other"], Float[Tensor, " other"]]:
    r"""Coefficients of skip-gram with negative sampling for every possible center of a block.

    Rows as in :func:`window_masks`; the columns are the ``b + 2 m`` words around the block, then
    its ``K`` negatives.

    Args:
        block: Number of centers ``b`` in a block.
        window: Largest reach ``m``.
        negatives: Negatives :math:`k` for each positive pair.
        shared: Negatives ``K`` that a block draws.
        dtype: Floating dtype of the table.

    Returns:
        The table, -1 for a word in the window and :math:`k p / K` for a negative, and the sign of
        each column.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    masks = window_masks(block=block, window=window).to(dtype)
    weight = masks.sum(1, keepdim=True) * (negatives / shared)
    signs = torch.cat([-masks.new_ones(masks.shape[1]), masks.new_ones(shared)])
    return torch.cat([-masks, weight.expand(-1, shared)], dim=1), signs


def block_loss(
    centers: Float[Tensor, "*blocks center dim"],
    others: Float[Tensor, "*blocks other dim"],
    coefficients: Float[Tensor, "*blocks center other"],
    signs: Float[Tensor, " other"],
) -> Float[Tensor, ""]:
    r"""Sum of the logistic losses of all pairs of a block.

    With scores :math:`s_{ij} = v_i \cdot u_j`, coefficients :math:`C_{ij}` and the sign
    :math:`\varsigma_j` of each column,

    .. math::

        L = -\sum_{ij} |C_{ij}| \log\sigma(-\varsigma_j s_{ij}).

    Args:
        centers: Vectors :math:`v_i`.
        others: Vectors :math:`u_j` of context words and negatives.
        coefficients: :math:`C`; in each column zero or of the sign of the column.
        signs: -1 for a column of positives, +1 for a column of negatives.

    Returns:
        The sum, in nats, 0 or above.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    scores = centers @ others.mT
    return -(coefficients.abs() * F.logsigmoid(-signs * scores)).sum()


def block_gradients(
    centers: Float[Tensor, "blocks center dim"],
    others: Float[Tensor, "blocks other dim"],
    coefficients: Float[Tensor, "blocks center other"],
    signs: Float[Tensor, " other"],
) -> tuple[Float[Tensor, "blocks center dim"], Float[Tensor, "blocks other dim"]]:
    r"""Gradients of :func:`block_loss` by its two sets of vectors, written out.

    With :math:`G_{ij} = \partial L / \partial s_{ij} = C_{ij}\, \sigma(\varsigma_j s_{ij})`,

    .. math::

        \frac{\partial L}{\partial V} = G U, \qquad \frac{\partial L}{\partial U} = G^\top V.

    Args:
        centers: Vectors :math:`v_i`, the rows of :math:`V`.
        others: Vectors :math:`u_j`, the rows of :math:`U`.
        coefficients: :math:`C`; in each column zero or of the sign of the column.
        signs: -1 for a column of positives, +1 for a column of negatives.

    Returns:
        Gradients, each of the shape of its variable.

    Numerics:
        Three batched matrix products of ``2 b m d`` operations a block, with ``m`` others. Stable
        for scores of any size: the logistic function saturates, nothing overflows.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    slopes = torch.bmm(centers, others.mT).mul_(signs).sigmoid_().mul_(coefficients)
    return torch.bmm(slopes, others), torch.bmm(slopes.mT, centers)
