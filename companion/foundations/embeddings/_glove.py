r"""GloVe: weighted least squares on the logarithms of co-occurrence counts."""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_in_range, check_same_shape, resolve_device, wide_dtype
from companion.foundations.embeddings._corpus import Vocabulary
from companion.foundations.embeddings._model import Embeddings

__all__ = ["glove_gradients", "glove_loss", "glove_weight", "train_glove"]


def glove_weight(
    counts: Float[Tensor, "*batch"], *, x_max: float = 100.0, power: float = 0.75
) -> Float[Tensor, "*batch"]:
    r"""Weight of a cell of the co-occurrence matrix in GloVe.

    .. math::

        f(x) = \min\left(1, (x / x_{max})^{\alpha}\right)

    Args:
        counts: Co-occurrence counts, 0 or above.
        x_max: Counts from here on have weight 1, > 0.
        power: The exponent :math:`\alpha`, > 0.

    Returns:
        Weights in [0, 1]; an empty cell has weight 0.

    Raises:
        ValueError: If ``x_max`` or ``power`` is not positive.

    References:
        Pennington et al. 2014, DOI 10.3115/v1/D14-1162, eq. 9.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> glove_weight(torch.tensor([0.0, 6.25, 400.0]))
        tensor([0.0000, 0.1250, 1.0000])
    """
    check_in_range("x_max", x_max, low=0.0, open_low=True)
    check_in_range("power", power, low=0.0, open_low=True)
    return (counts / x_max).pow(power).clamp(max=1.0)


def glove_loss(
    words: Float[Tensor, "cell dim"],
    contexts: Float[Tensor, "cell dim"],
    word_biases: Float[Tensor, " cell"],
    context_biases: Float[Tensor, " cell"],
    counts: Float[Tensor, " cell"],
    *,
    x_max: float = 100.0,
    power: float = 0.75,
) -> Float[Tensor, ""]:
    r"""Weighted least squares on the logarithms of co-occurrence counts.

    .. math::

        J = \frac1n \sum_{ij} f(X_{ij})
            \left(w_i \cdot \tilde w_j + b_i + \tilde b_j - \log X_{ij}\right)^2

    Args:
        words: Word vectors :math:`w_i`, one row for each cell.
        contexts: Context vectors :math:`\tilde w_j`.
        word_biases: :math:`b_i`.
        context_biases: :math:`\tilde b_j`.
        counts: :math:`X_{ij}`, 0 or above. Empty cells have weight 0 and cost nothing.
        x_max: Counts from here on have weight 1, > 0.
        power: Exponent of the weight, > 0.

    Returns:
        Mean over the cells (the paper has the sum), 0 or above, in float32 or better.

    Raises:
        ValueError: If the shapes do not fit.

    Numerics:
        An empty cell is given ``log 1`` before its weight 0 multiplies it: ``0 * inf`` would be
        NaN.

    References:
        Pennington et al. 2014, DOI 10.3115/v1/D14-1162, eq. 8.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> one = torch.ones(1)
        >>> glove_loss(one[None], one[None], one, one, 100.0 * one)  # (3 - log 100)**2
        tensor(2.5766)
    """
    residual = _glove_residual(words, contexts, word_biases, context_biases, counts)
    return (glove_weight(counts, x_max=x_max, power=power) * residual.square()).mean()


def _glove_residual(
    words: Tensor, contexts: Tensor, word_biases: Tensor, context_biases: Tensor, counts: Tensor
) -> Tensor:
    check_same_shape("words", words, "contexts", contexts)
    check_same_shape("word_biases", word_biases, "counts", counts)
    check_same_shape("context_biases", context_biases, "counts", counts)
    wide = wide_dtype(words.dtype)
    words, contexts, counts = words.to(wide), contexts.to(wide), counts.to(wide)
    logs = torch.where(counts > 0, counts, torch.ones_like(counts)).log()
    return (words * contexts).sum(-1) + word_biases + context_biases - logs


def glove_gradients(
    words: Float[Tensor, "cell dim"],
    contexts: Float[Tensor, "cell dim"],
    word_biases: Float[Tensor, " cell"],
    context_biases: Float[Tensor, " cell"],
    counts: Float[Tensor, " cell"],
    *,
    x_max: float = 100.0,
    power: float = 0.75,
) -> tuple[
    Float[Tensor, "cell dim"],
    Float[Tensor, "cell dim"],
    Float[Tensor, " cell"],
    Float[Tensor, " cell"],
]:
    r"""Gradients of :func:`glove_loss` by its four sets of parameters.

    With :math:`r_{ij}` the residual, for one cell,

    .. math::

        \frac{\partial J}{\partial w_i} = 2 f(X_{ij})\, r_{ij}\, \tilde w_j, \qquad
        \frac{\partial J}{\partial b_i} = 2 f(X_{ij})\, r_{ij}.

    Args:
        words: Word vectors.
        contexts: Context vectors.
        word_biases: Biases of the words.
        context_biases: Biases of the contexts.
        counts: Co-occurrence counts.
        x_max: Counts from here on have weight 1, > 0.
        power: Exponent of the weight, > 0.

    Returns:
        Gradients of the mean over the cells, each of the shape of its variable.

    Raises:
        ValueError: If the shapes do not fit.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    residual = _glove_residual(words, contexts, word_biases, context_biases, counts)
    slope = 2.0 * glove_weight(counts, x_max=x_max, power=power) * residual / len(counts)
    column = slope.unsqueeze(-1)
    return (
        (column * contexts).to(words.dtype),
        (column * words).to(words.dtype),
        slope.to(word_biases.dtype),
        slope.to(context_biases.dtype, copy=True),
    )


def train_glove(
    vocabulary: Vocabulary,
    counts: Float[Tensor, "vocab vocab"],
    *,
    dim: int = 100,
    epochs: int = 10,
    learning_rate: float = 0.05,
    batch_size: int = 2048,
    x_max: float = 100.0,
    power: float = 0.75,
    generator: torch.Generator,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Embeddings:
    r"""Train GloVe with AdaGrad on the non-empty cells of a co-occurrence matrix.

    Minimizes

    .. math::

        J = \sum_{ij} f(X_{ij}) \left(w_i \cdot \tilde w_j + b_i + \tilde b_j - \log X_{ij}\right)^2

    Args:
        vocabulary: The words of the rows and columns.
        counts: The sparse matrix :math:`X`, from
            :func:`~companion.foundations.embeddings.cooccurrence`.
        dim: Length of the vectors.
        epochs: Passes through the cells, in a new order each time.
        learning_rate: Step size of AdaGrad.
        batch_size: Cells in a step.
        x_max: Counts from here on have weight 1.
        power: Exponent of the weight.
        generator: The source of randomness; it alone decides the result.
        device: Where the tables live; by default where the counts are.
        dtype: Floating dtype of the tables.

    Returns:
        Word vectors :math:`w_i + \tilde w_i`, the sum that the paper recommends, and no context
        vectors. The losses are means over cells.

    Raises:
        ValueError: If the matrix does not fit the vocabulary or is empty, or a setting is out of
            range.

    Numerics:
        AdaGrad divides by the root of the sum of squared gradients, one for each parameter,
        starting at 1 as in the released code. Cells of a step that share a word are summed.

    References:
        Pennington et al. 2014, DOI 10.3115/v1/D14-1162, eq. 8.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    size = len(vocabulary)
    if tuple(counts.shape) != (size, size):
        raise ValueError(
            f"counts must be {size} by {size}, one row a word, got {tuple(counts.shape)}"
        )
    for name, value in (("dim", dim), ("epochs", epochs), ("batch_size", batch_size)):
        check_count(name, value)
    check_in_range("learning_rate", learning_rate, low=0.0, open_low=True)
    cells = counts.coalesce()
    if cells.values().numel() == 0:
        raise ValueError("counts has no non-empty cell: use more text or a wider window")
    place = counts.device if device is None else resolve_device(device)
    rows, columns = cells.indices().to(place)
    values = cells.values().to(place, dtype)
    logs, weights = values.log(), glove_weight(values, x_max=x_max, power=power)

    # Column ``dim`` of each table is the bias. Rows 0..size-1 are words, the rest contexts.
    drawn = torch.rand(2 * size, dim + 1, generator=generator, device=generator.device, dtype=dtype)
    table = ((drawn - 0.5) / dim).to(place)
    squares = torch.ones_like(table)
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(values), generator=generator, device=generator.device)
        order = order.to(place)
        total = torch.zeros((), dtype=dtype, device=place)
        for chosen in torch.split(order, batch_size):
            i, j = rows[chosen], columns[chosen] + size
            a, b = table.index_select(0, i), table.index_select(0, j)
            residual = (a[:, :dim] * b[:, :dim]).sum(1) + a[:, dim] + b[:, dim] - logs[chosen]
            slope = weights[chosen] * residual
            total += (slope * residual).sum()
            # The factor 2 of the derivative is left to the learning rate, as in the released code.
            by_a, by_b = b.mul_(slope.unsqueeze(1)), a.mul_(slope.unsqueeze(1))
            by_a[:, dim] = slope
            by_b[:, dim] = slope
            touched, by = torch.cat([i, j]), torch.cat([by_a, by_b])
            squares.index_add_(0, touched, by.square())
            by /= squares.index_select(0, touched).sqrt_()
            table.index_add_(0, touched, by, alpha=-learning_rate)
        losses.append(total / len(values))
    return Embeddings(
        words=vocabulary.words,
        vectors=table[:size, :dim] + table[size:, :dim],
        losses=torch.stack(losses).float().cpu(),
    )
