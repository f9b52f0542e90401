"""How much a class of functions can fit: Rademacher complexity, and random features."""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_floating, check_in_range, check_shape, rand, randn

__all__ = ["rademacher_bound", "rademacher_linear", "random_features", "random_frequencies"]


def rademacher_linear(
    X: Float[Tensor, "n d"], signs: Float[Tensor, "trials n"], *, radius: float
) -> Float[Tensor, ""]:
    r"""Return the empirical Rademacher complexity of linear functions of bounded norm.

    .. math:: \hat{\mathfrak R}(X) = \mathbb E_\sigma \sup_{\lVert w \rVert \le B}
        \frac1n \sum_i \sigma_i\, x_i w = \frac Bn\, \mathbb E_\sigma
        \Big\lVert \sum_i \sigma_i x_i \Big\rVert

    Args:
        X: The sample, one row an example.
        signs: Rows of :math:`\pm 1`. All :math:`2^n` rows give the exact value; random rows
            estimate it without bias.
        radius: Largest norm :math:`B \ge 0` of the weights.

    Returns:
        The mean over the rows of signs, in the unit of :math:`xw`. At most
        :func:`rademacher_bound`.

    Raises:
        ValueError: If shapes or dtypes do not fit, or the radius is negative.

    References:
        P. L. Bartlett and S. Mendelson, JMLR 3, 2002; with the factor :math:`1/n`, not
        :math:`2/n`, and without absolute values inside the supremum.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        >>> rademacher_linear(torch.tensor([[3.0], [1.0]]), signs, radius=2.0)
        tensor(3.)
    """
    check_floating("X", X)
    check_shape("X", X, (None, None))
    check_shape("signs", signs, (None, len(X)))
    check_in_range("radius", radius, low=0.0, open_high=True)
    norms: Tensor = torch.linalg.vector_norm(signs.to(X) @ X, dim=1)
    return radius / len(X) * norms.mean()


def rademacher_bound(X: Float[Tensor, "n d"], *, radius: float) -> Float[Tensor, ""]:
    r"""Return the classical upper bound of :func:`rademacher_linear`.

    .. math:: \hat{\mathfrak R}(X) \le \frac Bn \sqrt{\sum_i \lVert x_i \rVert^2}

    The dimension does not appear. Equality holds for orthogonal examples.

    Args:
        X: The sample, one row an example.
        radius: Largest norm :math:`B \ge 0` of the weights.

    Returns:
        The bound, in the unit of :math:`xw`.

    Raises:
        ValueError: If shapes or dtypes do not fit, or the radius is negative.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> rademacher_bound(torch.tensor([[3.0], [4.0]]), radius=2.0)
        tensor(5.)
    """
    check_floating("X", X)
    check_shape("X", X, (None, None))
    check_in_range("radius", radius, low=0.0, open_high=True)
    norm: Tensor = torch.linalg.vector_norm(X)
    return radius / len(X) * norm


def random_frequencies(
    inputs: int,
    features: int,
    *,
    bandwidth: float,
    generator: torch.Generator,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "inputs features"], Float[Tensor, " features"]]:
    r"""Draw the frequencies and phases of random Fourier features.

    .. math:: \omega \sim \mathcal N(0, \gamma^{-2} I), \qquad b \sim \mathrm{Uniform}[0, 2\pi)

    Args:
        inputs: Number of inputs, 1 or more.
        features: Number :math:`D` of features, 1 or more.
        bandwidth: :math:`\gamma > 0`, the distance over which the kernel falls.
        generator: The source of randomness.
        device: Where the tensors are moved; by default they stay with the generator.
        dtype: Floating dtype, by default PyTorch's default.

    Returns:
        Frequencies and phases (radians). Cutting off the last columns leaves the first as they
        are, so nested models share their features.

    Raises:
        ValueError: If a size or the bandwidth is out of its domain.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> W, b = random_frequencies(3, 7, bandwidth=2.0, generator=torch.Generator())
        >>> W.shape, b.shape
        (torch.Size([3, 7]), torch.Size([7]))
    """
    if inputs < 1 or features < 1:
        raise ValueError(f"need at least one input and one feature, got {inputs} and {features}")
    check_in_range("bandwidth", bandwidth, low=0.0, open_low=True, open_high=True)
    W = randn(inputs, features, generator=generator, device=device, dtype=dtype) / bandwidth
    return W, 2 * torch.pi * rand(features, generator=generator, device=device, dtype=dtype)


def random_features(
    x: Float[Tensor, "*batch inputs"],
    W: Float[Tensor, "inputs features"],
    b: Float[Tensor, " features"],
) -> Float[Tensor, "*batch features"]:
    r"""Return random Fourier features, whose products approximate a Gaussian kernel.

    .. math:: \phi(x) = \sqrt{2/D}\, \cos(xW + b), \qquad
        \mathbb E\, \phi(x) \phi(x')^\top = e^{-\lVert x - x' \rVert^2 / 2\gamma^2}

    Args:
        x: Inputs.
        W: Frequencies, from :func:`random_frequencies`.
        b: Phases in radians.

    Returns:
        Features, between :math:`-\sqrt{2/D}` and :math:`\sqrt{2/D}`.

    Raises:
        ValueError: If shapes or dtypes do not fit.

    References:
        A. Rahimi and B. Recht, "Random features for large-scale kernel machines", NIPS 2007.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> random_features(torch.zeros(1, 3), torch.ones(3, 2), torch.zeros(2))
        tensor([[1., 1.]])
    """
    check_floating("x", x)
    check_shape("W", W, (x.shape[-1] if x.ndim else None, None))
    check_shape("b", b, (W.shape[1],))
    return sqrt(2 / W.shape[1]) * torch.cos(x @ W + b)
