"""Checks and broadcasting that all paths of attention share. Nothing here reads a value."""

from contextlib import AbstractContextManager, nullcontext
from math import sqrt

import torch
from torch import Tensor

from companion.transformer.attention._masks import Mask


def check_inputs(Q: Tensor, K: Tensor, V: Tensor) -> None:
    """Require queries, keys and values that belong together."""
    q, k, v = Q.shape, K.shape, V.shape
    axes = len(q)
    kinds = (Q.dtype, K.dtype, V.dtype)
    # What nearly every call is, in one microsecond; the rest finds out what is wrong.
    usual = axes == 4 and k == v and q[0] == k[0] and q[3] == k[3] and k[1] and q[1] % k[1] == 0
    if usual and kinds[0] == kinds[1] == kinds[2] and kinds[0].is_floating_point:
        return
    if not 2 <= axes <= 4 or len(k) != axes or len(v) != axes:
        raise ValueError(
            "Q, K and V must have the same number of axes, 2 to 4, "
            f"got shapes {tuple(q)}, {tuple(k)} and {tuple(v)}"
        )
    if q[-1] != k[-1]:
        raise ValueError(
            "queries and keys must have the same width, got "
            f"Q {tuple(q)} with {q[-1]} and K {tuple(k)} with {k[-1]}"
        )
    if k[:-1] != v[:-1]:
        raise ValueError(f"there must be a value for each key, got K {tuple(k)} and V {tuple(v)}")
    if axes > 2 and q[0] != k[0]:
        raise ValueError(f"the batch sizes of Q {tuple(q)} and K {tuple(k)} differ")
    if axes == 4 and q[1] != k[1] and (k[1] == 0 or q[1] % k[1]):
        raise ValueError(
            f"the {k[1]} heads of K and V must divide the {q[1]} heads of Q, "
            f"got Q {tuple(q)} and K {tuple(k)}"
        )
    if not all(kind.is_floating_point for kind in kinds):
        raise ValueError(f"Q, K and V must be floating, got {kinds[0]}, {kinds[1]} and {kinds[2]}")
    if not (kinds[0] == kinds[1] == kinds[2] or autocast(Q)):
        raise ValueError(
            f"Q, K and V must have the same dtype, got {kinds[0]}, {kinds[1]} and {kinds[2]}"
        )


def autocast(tensor: Tensor) -> bool:
    """Tell whether autocast is on. Meta tensors have none to ask for."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Do what autocast does before a matrix product, so that every path returns its dtype."""
    if not autocast(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast does not narrow what was made wide on purpose."""
    if not autocast(tensor):
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def default_scale(Q: Tensor, scale: float | None) -> float:
    """Return the factor of the scores."""
    return 1 / sqrt(max(Q.shape[-1], 1)) if scale is None else scale


def lift(tensor: Tensor) -> Tensor:
    """Give (batch, tokens, width) an axis of one head, and (tokens, width) one of batch too."""
    axes = tensor.ndim
    if axes == 4:
        return tensor
    return tensor.unsqueeze(1) if axes == 3 else tensor.view(1, 1, *tensor.shape)


def drop(tensor: Tensor, axes: int) -> Tensor:
    """Take away the axes that :func:`lift` added."""
    if axes == 4:
        return tensor
    return tensor.squeeze(1) if axes == 3 else tensor.squeeze(0).squeeze(0)


def lift_addend(name: str, tensor: Tensor, Q: Tensor, K: Tensor) -> Tensor:
    """Check that a mask or bias broadcasts to the scores, and give it four axes."""
    have, q = tensor.shape, Q.shape
    want = (*q[:-1], K.shape[-2])
    extra = len(want) - len(have)
    if extra < 0 or any(a != 1 and a != b for a, b in zip(have, want[extra:], strict=True)):
        hint = ""
        if name == "mask" and tuple(have) == (q[0], K.shape[-2]):
            hint = ": for keys of padding pass padding(real)"
        raise ValueError(
            f"{name} of shape {tuple(have)} does not broadcast to the scores' {want}{hint}"
        )
    if len(have) == 4:
        return tensor
    if len(want) == 3 and len(have) == 3:
        return tensor.unsqueeze(1)
    return tensor.view((1,) * (4 - len(have)) + tuple(have))


def lift_mask(mask: Mask | Tensor | None, Q: Tensor, K: Tensor) -> Tensor | None:
    """Return a mask as a Bool tensor of four axes, or ``None`` where every key may be read."""
    if mask is None:
        return None
    if isinstance(mask, Mask):
        axes, n, m = Q.ndim, Q.shape[-2], K.shape[-2]
        batch = Q.shape[0] if axes > 2 else 1
        mask.check(n, m, batch=batch, device=Q.device)
        if mask.allows_all(n, m):
            return None
        heads = Q.shape[1] if axes == 4 else 1
        return mask.dense(n, m, device=Q.device, batch=batch, heads=heads)
    if mask.dtype != torch.bool:
        hint = "pass an additive one as bias" if mask.is_floating_point() else "use mask.bool()"
        raise ValueError(
            f"mask must be Bool, True where a key may be read, got {mask.dtype}: {hint}"
        )
    return lift_addend("mask", mask, Q, K)


def lift_bias(bias: Tensor | None, Q: Tensor, K: Tensor) -> Tensor | None:
    """Return a bias with four axes."""
    if bias is None:
        return None
    if not bias.is_floating_point():
        raise ValueError(f"bias must be floating, got {bias.dtype}: pass a Bool tensor as mask")
    return lift_addend("bias", bias, Q, K)
