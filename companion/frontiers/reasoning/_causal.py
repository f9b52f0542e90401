r"""Seeing and doing: a table of what was observed, and what an intervention would bring."""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import can_read, check_floating, check_shape, wide

__all__ = ["backdoor", "observed"]


def observed(joint: Float[Tensor, "z x y"]) -> Float[Tensor, "x y"]:
    r"""Read what was seen together: :math:`p(y \mid x)`.

    Args:
        joint: :math:`p(z, x, y)`, or counts.

    Returns:
        A row for each x.

    Raises:
        ValueError: If an entry is below 0, or an x never occurs.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> observed(torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]))
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])
    """
    table = _table(joint)
    seen = table.sum(0)
    total = seen.sum(-1, keepdim=True)
    if can_read(joint) and bool((total == 0).any()):
        raise ValueError("a value of x never occurs: leave it out, or see more")
    return seen / total


def backdoor(joint: Float[Tensor, "z x y"]) -> Float[Tensor, "x y"]:
    r"""Compute what setting x would bring, where z blocks every back door from x to y.

    .. math:: p(y \mid \mathrm{do}(x)) = \sum_z p(z)\, p(y \mid x, z)

    Args:
        joint: :math:`p(z, x, y)`, or counts. That z is enough is an assumption about the world,
            which no table can show: z must not follow from x, and must block what leads into x.

    Returns:
        A row for each x.

    Raises:
        ValueError: If an entry is below 0, or some x never occurs with a z that does: there the
            table does not say what x would have brought.

    References:
        Pearl 2009, *Causality*, theorem 3.3.2, doi:10.1017/CBO9780511803161.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> joint = torch.tensor([[[8.0, 2.0], [1.0, 1.0]], [[1.0, 1.0], [2.0, 8.0]]])
        >>> backdoor(joint)
        tensor([[0.6500, 0.3500],
                [0.3500, 0.6500]])
    """
    table = _table(joint)
    of_z = table.sum((1, 2))
    of_zx = table.sum(2)
    if can_read(joint) and bool(((of_zx == 0) & (of_z > 0)[:, None]).any()):
        raise ValueError(
            "some x never occurs with a z that does: there its effect is not in the data"
        )
    given = table / torch.where(of_zx == 0, 1.0, of_zx)[..., None]
    return torch.einsum("z,zxy->xy", of_z / of_z.sum(), given)


def _table(joint: Tensor) -> Tensor:
    check_floating("joint", joint)
    check_shape("joint", joint, (None, None, None))
    if can_read(joint) and (bool((joint < 0).any()) or float(joint.sum()) <= 0):
        raise ValueError("joint must hold counts or probabilities, none below 0 and not all 0")
    return wide(joint)
