"""Degrees of truth between 0 and 1: what *and*, *or*, *if* become, and their gradients."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import can_read, check_floating, check_same_shape

__all__ = ["TNorm", "residuum", "t_conorm", "t_norm"]

TNorm = Literal["product", "godel", "lukasiewicz"]
_KINDS = ("product", "godel", "lukasiewicz")


def t_norm(
    a: Float[Tensor, "*batch"], b: Float[Tensor, "*batch"], *, kind: TNorm
) -> Float[Tensor, "*batch"]:
    r"""Compute the degree to which two statements hold together.

    .. math:: a \otimes b = ab, \qquad \min(a, b), \qquad \max(0,\; a + b - 1)

    Args:
        a: Degree of the first statement, from 0 to 1.
        b: Degree of the second.
        kind: ``"product"``, ``"godel"``, or ``"lukasiewicz"``.

    Returns:
        A degree. All three agree with *and* at 0 and 1, and differ between.

    Raises:
        ValueError: If the shapes differ, a degree lies outside 0 to 1, or the kind is unknown.

    Numerics:
        The gradient of Gödel's reaches the smaller degree alone (half each at a tie), that of
        Łukasiewicz's is 0 where :math:`a + b < 1`.

    References:
        Van Krieken, Acar and van Harmelen 2022, doi:10.1016/j.artint.2021.103602.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> half = torch.tensor(0.5)
        >>> [float(t_norm(half, half, kind=k)) for k in ("product", "godel", "lukasiewicz")]
        [0.25, 0.5, 0.0]
    """
    _check(a, b, kind)
    if kind == "product":
        return a * b
    if kind == "godel":
        return torch.minimum(a, b)
    return (a + b - 1).clamp(min=0)


def t_conorm(
    a: Float[Tensor, "*batch"], b: Float[Tensor, "*batch"], *, kind: TNorm
) -> Float[Tensor, "*batch"]:
    r"""Compute the degree to which one of two statements holds, by De Morgan's rule.

    .. math:: a \oplus b = 1 - (1 - a) \otimes (1 - b)

    Args:
        a: Degree of the first statement.
        b: Degree of the second.
        kind: As in :func:`t_norm`.

    Returns:
        A degree: :math:`a + b - ab`, :math:`\max(a, b)`, or :math:`\min(1, a + b)`.

    Raises:
        ValueError: As :func:`t_norm`.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> float(t_conorm(torch.tensor(0.5), torch.tensor(0.5), kind="product"))
        0.75
    """
    _check(a, b, kind)
    if kind == "product":
        return a + b - a * b
    if kind == "godel":
        return torch.maximum(a, b)
    return (a + b).clamp(max=1)


def residuum(
    a: Float[Tensor, "*batch"], b: Float[Tensor, "*batch"], *, kind: TNorm
) -> Float[Tensor, "*batch"]:
    r"""Compute the degree of *if a then b*: the largest that brings a no further than b.

    .. math:: a \Rightarrow b = \max\{c : a \otimes c \le b\}

    Args:
        a: Degree of the condition.
        b: Degree of the conclusion.
        kind: As in :func:`t_norm`.

    Returns:
        1 where :math:`a \le b`; elsewhere :math:`b/a`, :math:`b`, or :math:`1 - a + b`.

    Raises:
        ValueError: As :func:`t_norm`.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> float(residuum(torch.tensor(0.8), torch.tensor(0.4), kind="product"))
        0.5
    """
    _check(a, b, kind)
    holds = a <= b
    if kind == "product":
        safe = torch.where(holds, 1.0, a)  # keeps the gradient finite where a is 0
        return torch.where(holds, 1.0, b / safe)
    if kind == "godel":
        return torch.where(holds, 1.0, b)
    return (1 - a + b).clamp(max=1)


def _check(a: Tensor, b: Tensor, kind: str) -> None:
    if kind not in _KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(_KINDS)}")
    check_floating("a", a)
    check_floating("b", b)
    check_same_shape("a", a, "b", b)
    for name, degree in (("a", a), ("b", b)):
        if can_read(degree) and not bool(((degree >= 0) & (degree <= 1)).all()):
            raise ValueError(f"{name} must hold degrees from 0 to 1")
