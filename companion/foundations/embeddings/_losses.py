r"""Lookup, and the objectives of skip-gram and CBOW as pure functions.

Vectors are rows. :math:`v_w` is a row of the word table, :math:`u_c` of the context table. Losses
are means over the batch, to be minimized, in nats.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from companion.core import check_ids, check_same_shape, wide

__all__ = [
    "cbow_gradients",
    "cbow_loss",
    "cbow_mean",
    "embed",
    "embed_gradient",
    "sgns_gradients",
    "sgns_loss",
    "skipgram_gradients",
    "skipgram_loss",
]


def embed(
    table: Float[Tensor, "vocab dim"], ids: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch dim"]:
    r"""Look the vectors of words up.

    .. math::

        v_w = \mathbf 1_w E

    with :math:`\mathbf 1_w` the row vector that is 1 at :math:`w` and 0 elsewhere. The product is
    never computed: the row is copied.

    Args:
        table: The embedding matrix :math:`E`, one row for each word.
        ids: Word ids, any shape.

    Returns:
        One vector for each id.

    Raises:
        ValueError: If an id is not a row of the table.

    Numerics:
        Exact; copies ``d`` numbers a word, where the product would take ``2 |V| d`` operations.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> embed(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 1]))
        tensor([[3., 4.],
                [3., 4.]])
    """
    check_ids("ids", ids, table.shape[0])
    return table.index_select(0, ids.reshape(-1)).reshape(*ids.shape, table.shape[1])


def embed_gradient(
    ids: Int[Tensor, "*batch"], gradient: Float[Tensor, "*batch dim"], *, size: int
) -> Float[Tensor, "vocab dim"]:
    r"""Backpropagate through a lookup: add every gradient to the row it came from.

    .. math::

        \frac{\partial L}{\partial E} = \mathrm{onehot}(x)^\top G

    Args:
        ids: The ids that were looked up, :math:`x`.
        gradient: :math:`G`, gradient of the loss by each vector that was returned.
        size: Number of rows of the table.

    Returns:
        Gradient of the loss by the table. A word that occurs twice receives both gradients; rows
        that were not looked up are zero.

    Raises:
        ValueError: If an id is out of range.

    Numerics:
        Time grows with the number of ids, not with the table, apart from the zeros. On CUDA the
        order of additions, and so the last bit, may vary.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> embed_gradient(torch.tensor([2, 0, 2]), torch.ones(3, 1), size=3).T
        tensor([[1., 0., 2.]])
    """
    check_ids("ids", ids, size)
    dim = gradient.shape[-1]
    return gradient.new_zeros(size, dim).index_add(0, ids.reshape(-1), gradient.reshape(-1, dim))


def skipgram_loss(
    centers: Float[Tensor, "batch dim"],
    table: Float[Tensor, "vocab dim"],
    targets: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    r"""Skip-gram with the full softmax over the vocabulary.

    .. math::

        L = -\frac1B \sum_{(w,c)} \log \frac{e^{u_c \cdot v_w}}{\sum_{c'} e^{u_{c'} \cdot v_w}}

    Args:
        centers: Word vectors :math:`v_w`.
        table: Context vectors of the whole vocabulary.
        targets: Ids of the context words that were observed.

    Returns:
        Mean loss, nats a pair, 0 or above, in float32 or better.

    Raises:
        ValueError: If a target is not a row of the table.

    Numerics:
        ``2 |V| d`` operations a pair: this is what negative sampling avoids. Stable, as the
        log-sum-exp is shifted by its largest entry.

    References:
        Mikolov et al. 2013, arXiv:1310.4546, eqs. 1-2.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> skipgram_loss(torch.zeros(1, 2), torch.zeros(4, 2), torch.tensor([3]))  # log 4
        tensor(1.3863)
    """
    check_ids("targets", targets, table.shape[0])
    scores = wide(centers) @ wide(table).mT
    chosen = scores.gather(1, targets.unsqueeze(1)).squeeze(1)
    return (scores.logsumexp(1) - chosen).mean()


def skipgram_gradients(
    centers: Float[Tensor, "batch dim"],
    table: Float[Tensor, "vocab dim"],
    targets: Int[Tensor, " batch"],
) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "vocab dim"]]:
    r"""Gradients of :func:`skipgram_loss` by the word vectors and by the context table.

    .. math::

        \frac{\partial L}{\partial v_w} = \frac1B \Big(\sum_{c'} p_{c'} u_{c'} - u_c\Big)

    Args:
        centers: Word vectors.
        table: Context vectors of the whole vocabulary.
        targets: Ids of the context words that were observed.

    Returns:
        Gradients, each of the shape of its variable.

    Raises:
        ValueError: If a target is not a row of the table.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    check_ids("targets", targets, table.shape[0])
    slopes = (centers @ table.mT).softmax(1)
    slopes = slopes.scatter_add(1, targets.unsqueeze(1), -torch.ones_like(slopes[:, :1]))
    slopes = slopes / len(centers)
    return slopes @ table, slopes.mT @ centers


def sgns_loss(
    centers: Float[Tensor, "batch dim"],
    contexts: Float[Tensor, "batch dim"],
    negatives: Float[Tensor, "batch negative dim"],
) -> Float[Tensor, ""]:
    r"""Skip-gram with negative sampling.

    .. math::

        L = -\frac1B \sum_{(w,c)} \Big[\log\sigma(u_c \cdot v_w)
            + \sum_{j=1}^k \log\sigma(-u_{n_j} \cdot v_w)\Big]

    Args:
        centers: Word vectors :math:`v_w`.
        contexts: Context vectors :math:`u_c` of words that occurred near.
        negatives: Context vectors :math:`u_{n_j}` of :math:`k` words drawn from the noise.

    Returns:
        Mean loss, nats a pair, 0 or above, in float32 or better; :math:`(k + 1) \log 2` at zero
        vectors.

    Raises:
        ValueError: If the shapes do not fit.

    Numerics:
        ``log sigma`` is evaluated as a softplus, finite for scores of any size.

    References:
        Mikolov et al. 2013, arXiv:1310.4546, eq. 4, with the sign of a loss. The released code
        skips a negative that equals the context word; here it counts, as in the equation.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> sgns_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 3, 2))  # 4 log 2
        tensor(2.7726)
    """
    check_same_shape("centers", centers, "contexts", contexts)
    centers, contexts, negatives = wide(centers), wide(contexts), wide(negatives)
    positive = (centers * contexts).sum(-1)
    negative = (negatives @ centers.unsqueeze(-1)).squeeze(-1)
    return -(F.logsigmoid(positive) + F.logsigmoid(-negative).sum(-1)).mean()


def sgns_gradients(
    centers: Float[Tensor, "batch dim"],
    contexts: Float[Tensor, "batch dim"],
    negatives: Float[Tensor, "batch negative dim"],
) -> tuple[
    Float[Tensor, "batch dim"], Float[Tensor, "batch dim"], Float[Tensor, "batch negative dim"]
]:
    r"""Gradients of :func:`sgns_loss` by its three sets of vectors.

    For one pair, with :math:`\sigma_+ = \sigma(u_c \cdot v_w)` and
    :math:`\sigma_j = \sigma(u_{n_j} \cdot v_w)`,

    .. math::

        \frac{\partial L}{\partial v_w} = -(1 - \sigma_+) u_c + \sum_j \sigma_j u_{n_j}, \qquad
        \frac{\partial L}{\partial u_c} = -(1 - \sigma_+) v_w, \qquad
        \frac{\partial L}{\partial u_{n_j}} = \sigma_j v_w.

    Args:
        centers: Word vectors.
        contexts: Context vectors of words that occurred near.
        negatives: Context vectors of words drawn from the noise.

    Returns:
        Gradients of the mean over the batch, each of the shape of its variable.

    Raises:
        ValueError: If the shapes do not fit.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    check_same_shape("centers", centers, "contexts", contexts)
    positive = -torch.sigmoid(-(centers * contexts).sum(-1, keepdim=True)) / len(centers)
    negative = torch.sigmoid(negatives @ centers.unsqueeze(-1)) / len(centers)
    by_center = positive * contexts + (negative * negatives).sum(1)
    return by_center, positive * centers, negative * centers.unsqueeze(1)


def cbow_mean(
    contexts: Float[Tensor, "batch context dim"],
    mask: Bool[Tensor, "batch context"] | None = None,
) -> Float[Tensor, "batch dim"]:
    r"""Average the vectors of the words around a gap.

    .. math::

        \hat v_t = \frac{1}{|C_t|} \sum_{j \in C_t} v_{x_j}

    Args:
        contexts: Word vectors of the words around.
        mask: True where a word counts; all of them by default.

    Returns:
        The means; zero where no word counts.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> cbow_mean(torch.tensor([[[1.0], [2.0], [6.0]]]))
        tensor([[3.]])
    """
    if mask is None:
        return contexts.mean(1)
    weight = mask.to(contexts.dtype)
    total = (weight.unsqueeze(-1) * contexts).sum(1)
    return total / weight.sum(1, keepdim=True).clamp(min=1)


def cbow_loss(
    contexts: Float[Tensor, "batch context dim"],
    targets: Float[Tensor, "batch dim"],
    negatives: Float[Tensor, "batch negative dim"],
    mask: Bool[Tensor, "batch context"] | None = None,
) -> Float[Tensor, ""]:
    """Continuous bag of words with negative sampling: predict a word from the mean of its window.

    This is :func:`sgns_loss` with :func:`cbow_mean` in place of the word vector.

    Args:
        contexts: Word vectors of the words around the gap.
        targets: Context vectors of the words in the gap.
        negatives: Context vectors of words drawn from the noise.
        mask: True where a context word counts; all of them by default.

    Returns:
        Mean loss, nats a gap, 0 or above, in float32 or better.

    Raises:
        ValueError: If the shapes do not fit.

    References:
        Mikolov et al. 2013, arXiv:1301.3781, section 3.1.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    return sgns_loss(cbow_mean(contexts, mask), targets, negatives)


def cbow_gradients(
    contexts: Float[Tensor, "batch context dim"],
    targets: Float[Tensor, "batch dim"],
    negatives: Float[Tensor, "batch negative dim"],
    mask: Bool[Tensor, "batch context"] | None = None,
) -> tuple[
    Float[Tensor, "batch context dim"],
    Float[Tensor, "batch dim"],
    Float[Tensor, "batch negative dim"],
]:
    r"""Gradients of :func:`cbow_loss`.

    Every context word receives the gradient of the mean divided by the number of words in the
    mean:

    .. math::

        \frac{\partial L}{\partial v_{x_j}} = \frac{1}{|C_t|} \frac{\partial L}{\partial \hat v_t}.

    Args:
        contexts: Word vectors of the words around the gap.
        targets: Context vectors of the words in the gap.
        negatives: Context vectors of words drawn from the noise.
        mask: True where a context word counts; all of them by default.

    Returns:
        Gradients, each of the shape of its variable.

    Raises:
        ValueError: If the shapes do not fit.

    References:
        The released word2vec leaves the division out: İrsoy et al. 2021, arXiv:2012.15332.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    counted = torch.ones_like(contexts[..., 0]) if mask is None else mask.to(contexts.dtype)
    by_mean, by_target, by_negative = sgns_gradients(cbow_mean(contexts, mask), targets, negatives)
    share = counted / counted.sum(1, keepdim=True).clamp(min=1)
    return share.unsqueeze(-1) * by_mean.unsqueeze(1), by_target, by_negative
