"""Where tensors live and in which precision.

Functions of this library follow the device and dtype of their inputs. The two helpers here serve
the places where nothing is given yet: scripts, experiments and loaders.
"""

import torch

__all__ = ["resolve_device", "resolve_dtype"]


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Return the requested device, or the best one of this machine.

    Args:
        device: A device or its name. ``None`` picks CUDA, then MPS, then the CPU.

    Returns:
        The device.

    Raises:
        ValueError: If the device is requested by name and this machine does not have it.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: use 'cpu', 'cuda', 'cuda:0' or 'mps'") from (
            error
        )
    if resolved.type == "cuda":
        count = torch.cuda.device_count()
        if (resolved.index or 0) >= count:
            raise ValueError(f"device {str(device)!r} asked for, but {count} CUDA devices are here")
    elif resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' asked for, but this machine has none")
    return resolved


def resolve_dtype(
    dtype: str | torch.dtype | None = None, *, device: str | torch.device = "cpu"
) -> torch.dtype:
    """Return the requested floating dtype, or a good one for training on the device.

    Args:
        dtype: A floating dtype or its name, such as ``"bfloat16"``. ``None`` picks bfloat16 on a
            CUDA device that computes in it, and float32 elsewhere.
        device: The device that will compute.

    Returns:
        The dtype.

    Raises:
        ValueError: If the name is not a floating dtype of PyTorch.

    Example:
        >>> resolve_dtype("float64")
        torch.float64
    """
    if dtype is None:
        on_cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
        return torch.bfloat16 if on_cuda and torch.cuda.is_bf16_supported() else torch.float32
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(f"{dtype!r} is not a floating dtype: use 'float32', 'bfloat16', ...")
    return resolved
