r"""Four ways to score a fact (head, relation, tail). Large is likely, in all of them."""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_floating

__all__ = ["complex_bilinear", "distmult", "rotate_score", "transe", "turn"]


def transe(
    head: Float[Tensor, "*#batch dim"],
    relation: Float[Tensor, "*#batch dim"],
    tail: Float[Tensor, "*#batch dim"],
    *,
    norm: int = 2,
) -> Float[Tensor, "*batch"]:
    r"""Score a fact by a translation: :math:`f = -\lVert h + r - t \rVert_p`.

    Args:
        head: Vectors of heads.
        relation: Vectors of relations.
        tail: Vectors of tails.
        norm: :math:`p`, 1 or 2.

    Returns:
        Scores, 0 or below.

    Raises:
        ValueError: If widths differ, or the norm is neither 1 nor 2.

    Numerics:
        At :math:`h + r = t` the norm has no derivative; the gradient there is 0.

    References:
        Bordes et al. 2013, "Translating Embeddings for Modeling Multi-relational Data", NeurIPS.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> h, r, t = torch.tensor([[1.0, 2.0], [3.0, 0.0], [1.0, 2.0]])
        >>> transe(h, r, t), transe(h, r, t, norm=1)
        (tensor(-3.), tensor(-3.))
    """
    _check_widths(head, relation, tail)
    check_norm(norm)
    length: Tensor = torch.linalg.vector_norm(head + relation - tail, ord=norm, dim=-1)
    return -length


def distmult(
    head: Float[Tensor, "*#batch dim"],
    relation: Float[Tensor, "*#batch dim"],
    tail: Float[Tensor, "*#batch dim"],
) -> Float[Tensor, "*batch"]:
    r"""Score a fact by a diagonal bilinear form: :math:`f = \sum_i h_i r_i t_i`.

    It is symmetric: head and tail can change places, whatever the relation.

    Args:
        head: Vectors of heads.
        relation: Vectors of relations.
        tail: Vectors of tails.

    Returns:
        Scores.

    Raises:
        ValueError: If widths differ.

    References:
        Yang et al. 2015, arXiv:1412.6575.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> distmult(torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0]), torch.tensor([5.0, 2.0]))
        tensor(1.)
    """
    _check_widths(head, relation, tail)
    return (head * relation * tail).sum(-1)


def complex_bilinear(
    head: Float[Tensor, "*#batch dim"],
    relation: Float[Tensor, "*#batch dim"],
    tail: Float[Tensor, "*#batch dim"],
) -> Float[Tensor, "*batch"]:
    r"""Score a fact as ComplEx does: :math:`f = \Re \sum_i h_i r_i \bar t_i` over complex numbers.

    Complex vectors are real ones of twice the width: all real parts, then all imaginary parts. In
    real numbers

    .. math:: f = \sum_i h'_i r'_i t'_i + h'_i r''_i t''_i + h''_i r'_i t''_i - h''_i r''_i t'_i

    Args:
        head: Vectors of heads.
        relation: Vectors of relations.
        tail: Vectors of tails.

    Returns:
        Scores.

    Raises:
        ValueError: If widths differ or are odd.

    References:
        Trouillon et al. 2016, arXiv:1606.06357.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> i, one = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
        >>> complex_bilinear(i, i, one)
        tensor(-1.)
    """
    _check_widths(head, relation, tail)
    return (complex_product(head, relation) * tail).sum(-1)


def rotate_score(
    head: Float[Tensor, "*#batch dim"],
    phase: Float[Tensor, "*#batch half"],
    tail: Float[Tensor, "*#batch dim"],
    *,
    norm: int = 2,
) -> Float[Tensor, "*batch"]:
    r"""Score a fact by a rotation: :math:`f = -\lVert h \circ e^{i\theta} - t \rVert`.

    Each pair of components of the head, a complex number, is turned by an angle of its own.

    Args:
        head: Vectors of heads: all real parts, then all imaginary parts.
        phase: Angles :math:`\theta` of relations, in radians, half as many as the width.
        tail: Vectors of tails.
        norm: 2 for the root of the sum of squared moduli, 1 for the sum of moduli, which the
            authors' code takes.

    Returns:
        Scores, 0 or below.

    Raises:
        ValueError: If widths do not fit, or the norm is neither 1 nor 2.

    References:
        Sun et al. 2019, arXiv:1902.10197.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> one, i = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> bool(rotate_score(one, torch.tensor([torch.pi / 2]), i) > -1e-6)
        True
    """
    check_norm(norm)
    _check_widths(head, tail)
    turned = turn(head, phase)
    return -moduli_norm(turned - tail, norm=norm)


def turn(
    vectors: Float[Tensor, "*#batch dim"], phase: Float[Tensor, "*#batch half"]
) -> Float[Tensor, "*batch dim"]:
    r"""Multiply complex numbers by :math:`e^{i\theta}`: turn them by an angle.

    Args:
        vectors: All real parts, then all imaginary parts.
        phase: Angles in radians, half as many as the width.

    Returns:
        Turned vectors, each as long as before.

    Raises:
        ValueError: If the width is not twice the number of angles.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> turn(torch.tensor([1.0, 0.0]), torch.tensor([torch.pi])).round()
        tensor([-1., -0.])
    """
    check_floating("vectors", vectors)
    if vectors.shape[-1] != 2 * phase.shape[-1]:
        raise ValueError(
            f"vectors of width {vectors.shape[-1]} need {vectors.shape[-1] / 2:g} angles, "
            f"got {phase.shape[-1]}: a complex number is two components"
        )
    return complex_product(vectors, torch.cat([phase.cos(), phase.sin()], -1))


def complex_product(a: Tensor, b: Tensor) -> Tensor:
    """Product of complex numbers in halves; an odd width is refused."""
    if a.shape[-1] % 2:
        raise ValueError(f"complex vectors have an even width, real parts first, got {a.shape[-1]}")
    (x, y), (u, v) = a.chunk(2, -1), b.chunk(2, -1)
    return torch.cat([x * u - y * v, x * v + y * u], -1)


def conjugate(a: Tensor) -> Tensor:
    """Change the sign of the second half."""
    x, y = a.chunk(2, -1)
    return torch.cat([x, -y], -1)


def moduli_norm(difference: Tensor, *, norm: int) -> Tensor:
    """Length of complex vectors in halves. The gradient at 0 is 0."""
    pairs = torch.stack(difference.chunk(2, -1))
    moduli: Tensor = torch.linalg.vector_norm(pairs, dim=0)
    length: Tensor = torch.linalg.vector_norm(moduli, ord=norm, dim=-1)
    return length


def check_norm(norm: int) -> None:
    """Refuse all but 1 and 2."""
    if norm not in (1, 2):
        raise ValueError(f"norm must be 1 or 2, got {norm}")


def _check_widths(*vectors: Tensor) -> None:
    widths = [vector.shape[-1] for vector in vectors]
    check_floating("vectors", vectors[0])
    if len(set(widths)) > 1:
        raise ValueError(f"heads, relations and tails must have one width, got {widths}")
