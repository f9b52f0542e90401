"""What the functions of this chapter share: checks, gates, and masks of padding."""

import torch
from torch import Tensor

from companion.core import can_read, check_shape
from companion.transformer.attention import Mask
from companion.transformer.attention._inputs import check_inputs


def check_qkv(Q: Tensor, K: Tensor, V: Tensor, *, causal: bool, real: Tensor | None) -> int:
    """Require inputs that belong together, and return how many keys come before the first query."""
    for name, tensor in (("Q", Q), ("K", K), ("V", V)):
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} must have shape (batch, heads, tokens, width), got {tuple(tensor.shape)}"
            )
    # Here, before blocks are made of the tokens: 5 keys and 6 values make as many blocks of 3.
    check_inputs(Q, K, V)
    batch, n, m = Q.shape[0], Q.shape[2], K.shape[2]
    if causal and n > m:
        raise ValueError(f"causal queries are the last of the keys, got {n} queries and {m} keys")
    if real is not None:
        check_real(real, (batch, m))
    return m - n


def check_real(real: Tensor, shape: tuple[int, int]) -> None:
    """Require a Bool tensor that says where tokens are."""
    check_shape("real", real, shape)
    if real.dtype != torch.bool:
        raise ValueError(f"real must be Bool, True for tokens, False for padding, got {real.dtype}")


def mix(outputs: list[Tensor], gates: Tensor, readable: list[Tensor]) -> Tensor:
    """Add outputs (batch, heads, n, value) with gates (..., outputs), those of nothing left out.

    Where a query can read nothing at some scale, that scale's gate goes to the others in
    proportion, so that equal values still give that value.
    """
    want = outputs[0].shape[:3]
    fits = gates.ndim <= 4 and all(
        have in (1, size) for have, size in zip(gates.shape[-2::-1], want[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"gates must broadcast to (batch, heads, queries) = {tuple(want)} before their last "
            f"axis, got {tuple(gates.shape)}"
        )
    some = torch.stack([torch.broadcast_to(r, want) for r in readable], -1)
    kept = torch.where(some, gates.to(outputs[0].dtype), 0.0)
    total = kept.sum(-1, keepdim=True)
    shares = kept / total.masked_fill(total == 0, 1.0)
    return (torch.stack(outputs, -1) * shares[..., None, :]).sum(-1)


def real_keys(
    mask: Mask | Tensor | None, x: Tensor, m: int, *, heads: int, causal: bool
) -> Tensor | None:
    """Read off a mask which keys are tokens, and refuse a mask that says more than that.

    A fast path with blocks can honor padding, and nothing else that a mask may say. So the row of
    the last query is taken as padding, and three rows are compared with what padding, and
    causality where it is wanted, would allow.
    """
    if mask is None:
        # One new token reads all that came before, so its mask may be left out.
        if causal and x.shape[1] > 1:
            raise ValueError("causal attention needs the mask causal(), got none")
        return None
    batch, n, _ = x.shape
    if isinstance(mask, Mask) and (mask.is_causal if causal else mask.allows_all(n, m)) and n == m:
        return None
    rows = sorted({0, n // 2, n - 1})
    given = torch.cat([_row(mask, row, n, m, x, heads) for row in rows], 2)
    if given.shape[1] != 1:
        raise ValueError("a mask that differs from head to head cannot be honored here")
    given = given.expand(batch, 1, -1, m)[:, 0]
    real = given[:, -1]
    keys = torch.arange(m, device=x.device)
    for index, row in enumerate(rows):
        past = keys <= row + m - n if causal else keys >= 0
        if can_read(given) and not torch.equal(given[:, index], real & past):
            kind = "causal() and padding(real)" if causal else "padding(real)"
            raise ValueError(f"this attention honors {kind} only; the mask says more")
    return real


def _row(mask: Mask | Tensor, row: int, n: int, m: int, x: Tensor, heads: int) -> Tensor:
    if isinstance(mask, Mask):
        batch, device = x.shape[0], x.device
        mask.check(n, m, batch=batch, device=device)
        return mask.shifted(row).dense(1, m, device=device, batch=batch, heads=heads)
    lifted = mask.view((1,) * (4 - mask.ndim) + tuple(mask.shape))
    return lifted.expand(*lifted.shape[:2], n, m)[:, :, row : row + 1]
