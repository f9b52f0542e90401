"""Bounds on mutual information that can be computed from samples and a critic."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_floating, check_in_range, wide
from companion.foundations.cross_entropy import logsumexp
from companion.foundations.embeddings import pmi
from companion.pretraining.self_supervised._checks import check_joint

__all__ = [
    "gaussian_log_ratio",
    "gaussian_mutual_information",
    "mi_ba",
    "mi_dv",
    "mi_info_nce",
    "mi_nwj",
    "mutual_information",
]


def mutual_information(joint: Float[Tensor, "x y"]) -> Float[Tensor, ""]:
    r"""Return the mutual information of two discrete variables, in nats.

    .. math:: I(X; Y) = \sum_{x,y} p(x, y) \log \frac{p(x, y)}{p(x)\, p(y)}

    Args:
        joint: Probabilities :math:`p(x, y)`, one row a value of :math:`X`.

    Returns:
        From 0, for independent variables, to the smaller of the two entropies.

    Raises:
        ValueError: If the table is no joint distribution, or a row or column is empty.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> mutual_information(torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=torch.float64))
        tensor(0.6931, dtype=torch.float64)
    """
    check_joint(joint)
    table = wide(joint)
    # A pair that never occurs adds nothing; its logarithm must not be multiplied by zero.
    return (table * pmi(table).masked_fill(table == 0, 0.0)).sum()


def gaussian_mutual_information(rho: float, *, dim: int = 1) -> float:
    r"""Return the mutual information of Gaussian vectors with correlated components, in nats.

    .. math:: I(X; Y) = -\frac d2 \log(1 - \rho^2)

    Args:
        rho: Correlation :math:`\rho` of :math:`x_c` with :math:`y_c`, in (-1, 1). All other
            pairs of components are independent.
        dim: Number of components :math:`d`.

    Returns:
        0 or more.

    Raises:
        ValueError: If an argument is out of its domain.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> round(gaussian_mutual_information(0.6, dim=2), 4)
        0.4463
    """
    check_in_range("rho", rho, low=-1.0, high=1.0, open_low=True, open_high=True)
    check_count("dim", dim)
    return -dim / 2 * math.log1p(-(rho**2))


def gaussian_log_ratio(
    X: Float[Tensor, "*batch n dim"], Y: Float[Tensor, "*batch m dim"], *, rho: float
) -> Float[Tensor, "*batch n m"]:
    r"""Return the optimal critic of correlated Gaussians for every pair of rows.

    .. math:: \log \frac{p(y_j \mid x_i)}{p(y_j)} = -\frac d2 \log(1 - \rho^2)
        - \frac{\rho^2 \lVert x_i \rVert^2 - 2 \rho\, x_i \cdot y_j + \rho^2 \lVert y_j \rVert^2}
        {2 (1 - \rho^2)}

    Args:
        X: Samples of the first vector, standard normal.
        Y: Samples of the second: normal with mean :math:`\rho x` and variance
            :math:`1 - \rho^2` in each component.
        rho: Correlation :math:`\rho` in (-1, 1).

    Returns:
        The matrix of scores, in nats.

    Raises:
        ValueError: If the widths differ, or the correlation is out of its domain.

    Book: :doc:`/book/pretraining/self_supervised`
    """
    check_floating("X", X)
    check_floating("Y", Y)
    if X.shape[-1] != Y.shape[-1] or X.shape[:-2] != Y.shape[:-2]:
        raise ValueError(
            f"X and Y must agree in width and batch, got {tuple(X.shape)} and {tuple(Y.shape)}"
        )
    constant = gaussian_mutual_information(rho, dim=X.shape[-1])
    squares = (X**2).sum(-1)[..., :, None] + (Y**2).sum(-1)[..., None, :]
    return constant - (rho**2 * squares - 2 * rho * (X @ Y.mT)) / (2 * (1 - rho**2))


def mi_ba(
    log_conditional: Float[Tensor, " n"], *, entropy: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    r"""Return the bound of Barber and Agakov: how well one variable is predicted from the other.

    .. math:: I(X; Y) \ge H(X) + \mathbb E \log q(x \mid y)

    Args:
        log_conditional: :math:`\log q(x_i \mid y_i)` of samples of the joint distribution, for
            any conditional distribution :math:`q`; minus the losses of a predictor.
        entropy: :math:`H(X)` in nats. It must be known: an estimate of it from above voids the
            bound.

    Returns:
        The estimate in nats. Its expectation is the bound; a single one may exceed :math:`I`.

    Raises:
        ValueError: If there is no sample.

    References:
        Barber and Agakov 2003, "The IM algorithm: a variational approach to information
        maximization".

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> mi_ba(torch.tensor([-0.25, -0.75]), entropy=2.0)
        tensor(1.5000)
    """
    check_floating("log_conditional", log_conditional)
    if log_conditional.shape[0] < 1:
        raise ValueError("log_conditional needs at least one sample")
    return wide(log_conditional).mean() + entropy


def mi_info_nce(scores: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    r"""Return the InfoNCE estimate of mutual information from a critic's scores.

    .. math:: \hat I_{NCE} = \log N
        + \frac1N \sum_i \log \frac{e^{f(x_i, y_i)}}{\sum_j e^{f(x_i, y_j)}} \le \log N

    Its expectation is at most :math:`I(X; Y)`, for every critic :math:`f`.

    Args:
        scores: :math:`f(x_i, y_j)` in nats for N independent pairs; pairs that belong together
            stand on the diagonal. A constant added to a row changes nothing.

    Returns:
        The estimate in nats, at most :math:`\log N`; it may be negative.

    Raises:
        ValueError: If the matrix is not square.

    References:
        van den Oord et al. 2018, arXiv:1807.03748, section 2.3; Poole et al. 2019,
        arXiv:1905.06922, section 2.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> mi_info_nce(torch.zeros(5, 5))
        tensor(0.)
    """
    _check_square(scores)
    s = wide(scores)
    return (_pairs(s) - logsumexp(s)).mean(-1) + math.log(s.shape[-1])


def mi_dv(
    scores: Float[Tensor, "*batch x y"], *, joint: Float[Tensor, "x y"] | None = None
) -> Float[Tensor, "*batch"]:
    r"""Return the estimate of Donsker and Varadhan from a critic's scores.

    .. math:: \hat I_{DV} = \frac1N \sum_i f(x_i, y_i)
        - \log \frac1{N(N-1)} \sum_{i \ne j} e^{f(x_i, y_j)}

    With expectations in place of both means this is at most :math:`I(X; Y)`, for every critic.
    With means over samples it is *no* bound: the logarithm of a mean is too small on average, so
    the estimate is too large.

    Args:
        scores: :math:`f(x_i, y_j)` in nats for N independent pairs, those that belong together on
            the diagonal. With ``joint`` a table of :math:`f(x, y)` instead.
        joint: Probabilities :math:`p(x, y)` of a finite model. Then both expectations are exact.

    Returns:
        The estimate in nats, or the exact bound.

    Raises:
        ValueError: If the matrix is not square or has one row, or the table does not fit.

    References:
        Donsker and Varadhan 1983, doi:10.1002/cpa.3160360204; as an estimator: Belghazi et al.
        2018, arXiv:1801.04062. Its bias: Poole et al. 2019, arXiv:1905.06922, section 2.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> mi_dv(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(1.)
    """
    mean, log_partition = _mean_and_log_partition(scores, joint)
    return mean - log_partition


def mi_nwj(
    scores: Float[Tensor, "*batch x y"], *, joint: Float[Tensor, "x y"] | None = None
) -> Float[Tensor, "*batch"]:
    r"""Return the estimate of Nguyen, Wainwright and Jordan from a critic's scores.

    .. math:: \hat I_{NWJ} = \frac1N \sum_i f(x_i, y_i)
        - \frac1{N(N-1)} \sum_{i \ne j} e^{f(x_i, y_j) - 1}

    Its expectation is at most :math:`I(X; Y)` for every critic, and equal to it for
    :math:`f = 1 + \log p(y \mid x) / p(y)`: mind the one. Its variance grows like :math:`e^I`.

    Args:
        scores: As in :func:`mi_dv`.
        joint: As in :func:`mi_dv`.

    Returns:
        The estimate in nats, or the exact bound.

    Raises:
        ValueError: If the matrix is not square or has one row, or the table does not fit.

    References:
        Nguyen, Wainwright and Jordan 2010, arXiv:0809.0853; in this form Poole et al. 2019,
        arXiv:1905.06922, section 2.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> mi_nwj(torch.ones(3, 3))
        tensor(0.)
    """
    mean, log_partition = _mean_and_log_partition(scores, joint)
    return mean - torch.exp(log_partition - 1)


def _check_square(scores: Tensor, *, least: int = 1) -> None:
    check_floating("scores", scores)
    n = scores.shape[-1] if scores.ndim >= 2 else 0
    if n < least or scores.shape[-2] != n:
        raise ValueError(
            f"scores must be a square matrix of at least {least} rows, pairs on the diagonal, "
            f"got {tuple(scores.shape)}"
        )


def _pairs(s: Tensor) -> Tensor:
    """The diagonal, read in a way that compiles without a warning of PyTorch's own code."""
    index = torch.arange(s.shape[-1], device=s.device)
    return s.masked_fill(index[:, None] != index, 0.0).sum(-1)


def _mean_and_log_partition(scores: Tensor, joint: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean score under the joint distribution, and log E exp(score) under the product."""
    if joint is None:
        _check_square(scores, least=2)
        s = wide(scores)
        n = s.shape[-1]
        index = torch.arange(n, device=s.device)
        others = s.masked_fill(index[:, None] == index, float("-inf")).flatten(-2)
        return _pairs(s).mean(-1), logsumexp(others) - math.log(n * (n - 1))
    check_floating("scores", scores)
    check_joint(joint)
    if scores.shape[-2:] != joint.shape:
        raise ValueError(
            f"scores must be a table like joint, got {tuple(scores.shape)} and {tuple(joint.shape)}"
        )
    s, p = wide(scores), wide(joint)
    # Pairs that never occur may have the score minus infinity.
    mean = (p * s.masked_fill(p == 0, 0.0)).sum((-2, -1))
    log_product = p.sum(1).log()[:, None] + p.sum(0).log()
    return mean, logsumexp((s + log_product).flatten(-2))
