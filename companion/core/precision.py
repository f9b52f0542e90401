"""In which precision to compute: float32 or better, whatever the inputs are."""

import torch
from jaxtyping import Shaped
from torch import Tensor

__all__ = ["wide", "wide_dtype"]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 where the dtype is that already.

    Args:
        dtype: The dtype of an input.

    Returns:
        The dtype to compute in: half precision and integers become float32.

    Example:
        >>> wide_dtype(torch.bfloat16), wide_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def wide(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the tensor in float32, or in float64 where it is that already.

    Sums of float16 may pass 65,504, and sums of ones in bfloat16 stop at 256. So what is summed
    is made wide first.

    Args:
        tensor: Any tensor.

    Returns:
        The tensor itself where it is wide, a copy otherwise. Gradients pass.

    Example:
        >>> wide(torch.ones(300, dtype=torch.bfloat16)).cumsum(0)[-1]
        tensor(300.)
    """
    return tensor.to(wide_dtype(tensor.dtype))
