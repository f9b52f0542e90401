"""The spectral contrastive loss: a low-rank factorization in disguise."""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, wide
from companion.pretraining.self_supervised._checks import check_joint, check_pair, check_rows

__all__ = ["normalized_adjacency", "spectral_contrastive", "spectral_optimum"]


def spectral_contrastive(
    U: Float[Tensor, "x dim"],
    V: Float[Tensor, "y dim"],
    *,
    joint: Float[Tensor, "x y"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return the spectral contrastive loss.

    .. math:: L = -2\, \mathbb E_{p(x,y)}[u_x \cdot v_y]
        + \mathbb E_{p(x) p(y)}\big[(u_x \cdot v_y)^2\big]

    On a batch of N pairs the first mean is over the pairs :math:`(i, i)`, the second over all
    :math:`(i, j)` with :math:`i \ne j`, so both are unbiased.

    Args:
        U: One view of each example. With ``joint``: the representation of each value of
            :math:`X`.
        V: The other view, in the same order. With ``joint``: that of each value of :math:`Y`.
        joint: Probabilities :math:`p(x, y)` of a finite model. Then both expectations are exact.

    Returns:
        The loss, at least :math:`-\sum_i s_i^2` over the ``dim`` largest singular values of
        :func:`normalized_adjacency` in expectation. Float32, or float64 for float64 inputs.

    Raises:
        ValueError: If shapes or dtypes do not fit, there are fewer than two pairs, or the table
            is no distribution.

    References:
        HaoChen, Wei, Gaidon and Ma 2021, arXiv:2106.04156, section 3.2. There both views share
        one encoder and one distribution; two encoders are covered here.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> spectral_contrastive(torch.eye(2), torch.eye(2))
        tensor(-2.)
    """
    if joint is None:
        check_pair(U, V, least=2)
        first, second = wide(U), wide(V)
        products, n = first @ second.T, U.shape[0]
        positives = (first * second).sum(-1)
        others = (products**2).sum() - (positives**2).sum()
        return -2 * positives.mean() + others / (n * (n - 1))
    check_rows("U", U)
    check_rows("V", V)
    check_joint(joint)
    if (U.shape[0], V.shape[0]) != tuple(joint.shape) or U.shape[1] != V.shape[1]:
        raise ValueError(
            "U and V need one row for each row and column of joint, and one width, "
            f"got {tuple(U.shape)}, {tuple(V.shape)} and {tuple(joint.shape)}"
        )
    products, p = wide(U) @ wide(V).T, wide(joint)
    product = p.sum(1)[:, None] * p.sum(0)
    return (product * products**2 - 2 * p * products).sum()


def normalized_adjacency(joint: Float[Tensor, "x y"]) -> Float[Tensor, "x y"]:
    r"""Return the joint distribution divided by the roots of its margins.

    .. math:: \bar A_{xy} = \frac{p(x, y)}{\sqrt{p(x)\, p(y)}}

    Args:
        joint: Probabilities :math:`p(x, y)`. For the two views of an augmentation graph it is
            symmetric.

    Returns:
        A matrix whose largest singular value is 1, with the roots of the margins as its singular
        vectors.

    Raises:
        ValueError: If the table is no joint distribution, or a row or column is empty.

    References:
        HaoChen et al. 2021, arXiv:2106.04156, section 3.1. For two different margins it is the
        matrix of canonical correlation analysis of indicator variables.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> normalized_adjacency(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    check_joint(joint)
    p = wide(joint)
    return p / (p.sum(1)[:, None] * p.sum(0)).sqrt()


def spectral_optimum(
    joint: Float[Tensor, "x y"], *, dim: int
) -> tuple[Float[Tensor, "x dim"], Float[Tensor, "y dim"]]:
    r"""Return representations that minimize the spectral contrastive loss of a finite model.

    .. math:: u_x = \frac{\Phi_x S^{1/2}}{\sqrt{p(x)}}, \qquad
        v_y = \frac{\Psi_y S^{1/2}}{\sqrt{p(y)}}, \qquad
        \bar A \approx \Phi S \Psi^\top

    with the ``dim`` largest singular values :math:`S` and their vectors (Eckart and Young).

    Args:
        joint: Probabilities :math:`p(x, y)`.
        dim: Width of the representations, 1 up to the smaller side of the table.

    Returns:
        One row for each value of :math:`X`, and one for each of :math:`Y`; unique up to a common
        invertible map :math:`U M, V M^{-\top}` where the singular values differ.

    Raises:
        ValueError: If the table is no joint distribution, or the width does not fit.

    References:
        HaoChen et al. 2021, arXiv:2106.04156, lemma 3.2.

    Book: :doc:`/book/pretraining/self_supervised`
    """
    check_count("dim", dim)
    if dim > min(joint.shape):
        raise ValueError(f"dim must be at most {min(joint.shape)}, got {dim}")
    left, s, right = torch.linalg.svd(normalized_adjacency(joint), full_matrices=False)
    root = s[:dim].sqrt()
    p = wide(joint)
    U = left[:, :dim] * root / p.sum(1)[:, None].sqrt()
    V = right[:dim].T * root / p.sum(0)[:, None].sqrt()
    return U, V
