"""What the losses of this package ask of their inputs."""

from torch import Tensor

from companion.core import can_read, check_floating, check_shape, wide

__all__ = ["check_joint", "check_pair", "check_rows"]


def check_rows(name: str, tensor: Tensor, *, least: int = 1) -> None:
    """Require a floating matrix with enough rows."""
    check_floating(name, tensor)
    check_shape(name, tensor, (None, None))
    if tensor.shape[0] < least:
        raise ValueError(f"{name} needs at least {least} rows, got {tensor.shape[0]}")
    if tensor.shape[1] < 1:
        raise ValueError(f"{name} needs at least one column, got shape {tuple(tensor.shape)}")


def check_pair(
    U: Tensor, V: Tensor, *, names: tuple[str, str] = ("U", "V"), least: int = 1
) -> None:
    """Require two views of one batch: row ``i`` of both belongs to one example."""
    first, second = names
    check_rows(first, U, least=least)
    check_rows(second, V, least=least)
    if U.shape != V.shape:
        raise ValueError(
            f"{first} and {second} are two views of one batch and must have one shape, "
            f"got {tuple(U.shape)} and {tuple(V.shape)}"
        )
    if U.dtype != V.dtype:
        raise ValueError(f"{first} is {U.dtype} but {second} is {V.dtype}: convert one")


def check_joint(joint: Tensor) -> None:
    """Require a table of probabilities with positive margins."""
    check_floating("joint", joint)
    check_shape("joint", joint, (None, None))
    if not can_read(joint):
        return
    table = joint.detach()
    least, total = float(table.min()), float(wide(table).sum())
    if not least >= 0:
        raise ValueError(f"joint holds probabilities, but the least entry is {least}")
    # Float32 rounds a sum of many small numbers at about this level.
    if not abs(total - 1) <= 1e-5:
        raise ValueError(f"joint must sum to 1, got {total}: divide by the sum")
    if not bool((table.sum(0) > 0).all() and (table.sum(1) > 0).all()):
        raise ValueError("every row and column of joint needs some probability: leave out the rest")
