r"""PyTorch's products of activations with packed integer weights, on a CPU.

Both kernels take activations in bfloat16 and add up in float32. (They take float32 activations,
too, but without the vector instructions of the machine: with AVX2 that is slower than the product
of float32 matrices, measured.) For 4 bits the weight is packed in an order that depends on the
vector width of the machine, so packed bytes are never stored: see :func:`pack_int4`.
"""

from functools import cache

import torch
from torch import Tensor

__all__ = [
    "KERNEL_GROUPS",
    "KERNEL_ROWS",
    "KERNEL_STEP",
    "aligned",
    "int4_product",
    "int8_product",
    "pack_int4",
    "unpack_int4",
]

#: Group sizes that the 4-bit kernel takes.
KERNEL_GROUPS = (32, 64, 128, 256)
#: With more rows than this the weight is expanded, and multiplied in floating point.
KERNEL_ROWS = 24
#: The 8-bit kernel reads so many inputs at a time, also past the end of a shorter row.
KERNEL_STEP = 16


@cache
def _layout() -> tuple[int, tuple[int, ...]] | None:
    """How this machine packs: rows of a block, and in which order they lie for each input.

    Found by packing numbers that name their rows, and confirmed on a matrix with different numbers
    in both directions. ``None`` where the layout is of another kind: then nothing is packed.
    """
    for rows in (64, 32, 16):
        numbers = torch.arange(2 * rows)[:, None].expand(2 * rows, 32)
        low, high = (_nibbles(numbers >> shift & 15) for shift in (0, 4))
        order = (low + 16 * high)[:rows]
        if sorted(order.tolist()) != list(range(rows)):
            continue
        found = rows, tuple(order.tolist())
        mixed = (torch.arange(2 * rows)[:, None] * 7 + torch.arange(96) * 5 + 3) % 16
        if torch.equal(_unpacked(_pack(mixed), *found), mixed):
            return found
    return None


def _pack(codes: Tensor) -> Tensor:
    packed: Tensor = torch._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    return packed


def _nibbles(codes: Tensor) -> Tensor:
    flat = _pack(codes).flatten()
    return torch.stack([flat & 15, flat >> 4], -1).flatten().long()


def _unpacked(packed: Tensor, rows: int, order: tuple[int, ...]) -> Tensor:
    blocks = packed.view(-1, 2 * packed.shape[1], rows // 2)  # block of rows, input, pair
    both = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2)
    inverse = torch.tensor(order, device=packed.device).argsort()
    return both[..., inverse].mT.flatten(0, 1)


def pack_int4(codes: Tensor) -> Tensor | None:
    """Pack codes from 0 to 15, (outputs, inputs), for the kernel of this machine.

    Returns:
        Two codes to a byte; outputs are filled up with zeros to whole blocks. ``None`` where this
        machine has no layout that can be read back.
    """
    found = _layout()
    if found is None:
        return None
    missing = -codes.shape[0] % found[0]
    return _pack(torch.nn.functional.pad(codes, (0, 0, 0, missing)))


def unpack_int4(packed: Tensor, outputs: int) -> Tensor:
    """Undo :func:`pack_int4`: codes from 0 to 15, uint8, (outputs, inputs)."""
    found = _layout()
    assert found is not None  # nothing was packed otherwise
    return _unpacked(packed, *found)[:outputs]


def int4_product(x: Tensor, packed: Tensor, grid: Tensor, group: int, outputs: int) -> Tensor:
    r"""Multiply rows by a packed weight: :math:`x \hat W^\top` with :math:`\hat w = s(q-8)+c`.

    Args:
        x: (rows, inputs), bfloat16.
        packed: From :func:`pack_int4`.
        grid: Steps and centers, (groups, outputs, 2), bfloat16, filled up as the codes are.
        group: Inputs that share a step.
        outputs: How many outputs are not filling.
    """
    made: Tensor = torch._weight_int4pack_mm_for_cpu(x, packed, group, grid)
    return made[:, :outputs]


def aligned(tensor: Tensor) -> Tensor:
    """Return a tensor that begins where the kernels can read: at a multiple of 64 bytes.

    What PyTorch allocates begins there; a part of a tensor, or what a file maps, need not. With
    AVX-512 the kernels load 16 bytes by an instruction that ends the process at any other address.
    """
    return tensor.clone() if tensor.data_ptr() % 64 else tensor


def int8_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Multiply rows, bfloat16, by 8-bit codes (outputs, inputs) with a step for each output.

    Both are :func:`aligned`, and their rows have a multiple of ``KERNEL_STEP`` inputs.
    """
    made: Tensor = torch._weight_int8pack_mm(x, codes, scale)
    return made
