"""Layers that hold their weight in 8 bits or fewer, and stand in the place of those that do not."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from companion.core import LinearLike, check_shape
from companion.efficiency.quantization._affine import int8_matmul, symmetric_scale, to_codes
from companion.efficiency.quantization._kernels import (
    KERNEL_GROUPS,
    KERNEL_ROWS,
    KERNEL_STEP,
    aligned,
    int4_product,
    int8_product,
    pack_int4,
    unpack_int4,
)
from companion.efficiency.quantization._weights import WeightCodes

__all__ = ["QuantizedEmbedding", "QuantizedLinear"]

#: What a layer is made of, in the order in which it is stored.
_PARTS = ("codes", "scale", "center", "divide", "bias")


class QuantizedLinear(LinearLike):
    r"""A linear layer whose weight is held as integers.

    .. math:: Y = \big(X \operatorname{diag}(t)^{-1}\big)\,\hat W + b, \qquad
        \hat w = s\,q + c \text{ in each group}

    Args:
        weight: Codes and grids, of 8, 4, 3 or 2 bits.
        bias: :math:`b`, (outputs,).
        divide: :math:`t`, (inputs,): what each input is divided by, where the weight was multiplied
            by it before it was rounded (SmoothQuant, AWQ).
        round_activations: Round each input row to 8 bits with a step of its own, and multiply
            integers: W8A8. For symmetric 8-bit weights with one step a row.
        dtype: Type in which :attr:`weight` is given and inputs of other types are not computed;
            outputs have the type of the inputs.

    Attributes:
        bits: 8, 4, 3 or 2.
        group: Inputs that share a step.

    Raises:
        ValueError: If the weight has other bits, or a shape does not fit.

    Numerics:
        On a CPU up to 24 rows in float32 or bfloat16 go through PyTorch's kernels for packed
        weights: inputs are rounded to bfloat16, sums are in float32, and outputs are rounded to
        bfloat16, a relative error of :math:`2^{-9}` at each end. More rows, gradients of the
        inputs, other types, groups that the kernel does not know, and other devices expand the
        weight and multiply in floating point. So a long prompt and single tokens differ by the
        rounding to bfloat16. 4-bit codes are packed for the machine at hand; the ``state_dict``
        holds plain pairs, which any machine reads. 3 and 2 bits have no kernel: their codes lie in
        planes, the k-th bits of eight neighbors in one byte, and are always expanded. They save
        memory and no time.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> from companion.efficiency.quantization import round_weights
        >>> linear = nn.Linear(64, 5, bias=False)
        >>> layer = QuantizedLinear(round_weights(linear.weight.detach(), bits=4))
        >>> layer(torch.ones(2, 64)).shape
        torch.Size([2, 5])
    """

    codes: Tensor
    scale: Tensor
    center: Tensor | None
    divide: Tensor | None
    like: Tensor

    def __init__(
        self,
        weight: WeightCodes,
        *,
        bias: Float[Tensor, " d_out"] | None = None,
        divide: Float[Tensor, " d_in"] | None = None,
        round_activations: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if weight.bits not in (2, 3, 4, 8):
            raise ValueError(f"a layer holds 2, 3, 4 or 8 bits, got a weight of {weight.bits}")
        self.d_out, self.d_in = weight.codes.shape
        self.bits, self.group = weight.bits, weight.group
        self.round_activations = round_activations
        if self.bits == 4 and self.d_in % 2:
            raise ValueError(f"4-bit weights need an even number of inputs, got {self.d_in}")
        if self.bits < 4 and self.d_in % 8:
            raise ValueError(
                f"{self.bits}-bit weights need a multiple of 8 inputs, got {self.d_in}"
            )
        if round_activations and (
            self.bits != 8 or self.group != self.d_in or weight.center is not None
        ):
            raise ValueError(
                "rounded activations need symmetric 8-bit weights with one step a row, got "
                f"{self.bits} bits, groups of {self.group}"
            )
        if bias is not None:
            check_shape("bias", bias, (self.d_out,))
        if divide is not None:
            check_shape("divide", divide, (self.d_in,))
        codes = _stored(weight.codes, self.bits)
        self.packed = False
        self.register_buffer("codes", codes)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("center", weight.center)
        self.register_buffer("divide", divide)
        self.register_buffer("bias", bias)
        # Follows .to(dtype), and says what type the layer stands for.
        self.register_buffer(
            "like", torch.empty(0, dtype=dtype, device=codes.device), persistent=False
        )
        self._for_kernel()

    @property
    def bytes(self) -> int:
        """How many bytes the layer holds."""
        held = [getattr(self, part) for part in (*_PARTS, "_grid")]
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:  # type: ignore[override]
        """The weight that the layer acts with, expanded: ``diag(1/t)`` is part of it."""
        return self._expanded(self.like.dtype)

    def extra_repr(self) -> str:
        """Name the sizes when the module is printed."""
        return f"{self.d_in}, {self.d_out}, bits={self.bits}, group={self.group}"

    def weight_codes(self) -> WeightCodes:
        """Return codes and grids, as they were given."""
        if not self.packed:
            return WeightCodes(_read(self.codes), self.scale, self.center, self.bits)
        codes = unpack_int4(self.codes, self.d_out)
        grid = self._grid[:, : self.d_out]
        center = grid[..., 1].T if self.has_center else None
        return WeightCodes(codes.to(torch.int8) - 8, grid[..., 0].T, center, 4)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Apply the layer to each row of ``x``."""
        if self.round_activations:
            y = self._integers(x)
        elif self._fast(x):
            rows = x.reshape(-1, self.d_in)
            if self.divide is not None:
                rows = rows / self.divide
            rows = rows.to(torch.bfloat16).contiguous()
            if x.dtype == torch.bfloat16:  # else it was made just now
                rows = aligned(rows)
            if self.bits == 8:
                y = int8_product(rows, self.codes, self._scales())
            else:
                y = int4_product(rows, self.codes, self._grid, self.group, self.d_out)
            y = y.to(x.dtype).view(*x.shape[:-1], self.d_out)
        else:
            y = nn.functional.linear(x, self._expanded(x.dtype))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _fast(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
            return False
        if x.requires_grad and torch.is_grad_enabled():
            return False
        if x.numel() > KERNEL_ROWS * self.d_in:
            return False
        if self.bits != 8:
            return self.packed
        whole = self.group == self.d_in and self.d_in % KERNEL_STEP == 0
        return whole and self.center is None and self.codes.device.type == "cpu"

    def _scales(self) -> Tensor:
        return self.scale[:, 0].to(torch.bfloat16)

    def _integers(self, x: Tensor) -> Tensor:
        """Round the rows, multiply integers, and put both steps back."""
        rows = x if self.divide is None else x / self.divide.to(x.dtype)
        high = torch.promote_types(x.dtype, torch.float32)
        step = symmetric_scale(rows.to(high), dim=-1)
        codes = to_codes(rows.to(high), step, low=-127, high=127).to(torch.int8)
        product = int8_matmul(codes, self.codes.T)
        return (product.to(high) * step * self.scale[:, 0].to(high)).to(x.dtype)

    def _expanded(self, dtype: torch.dtype) -> Tensor:
        high = torch.promote_types(dtype, torch.float32)
        values = self.weight_codes().values(high)
        if self.divide is not None:
            values = values / self.divide.to(high)
        return values.to(dtype)

    # Packed codes belong to this machine: they are made plain before anything moves or is stored.

    def _for_kernel(self) -> None:
        if self.codes.device.type != "cpu":
            return
        if self.bits == 8:
            self.codes = aligned(self.codes)
        if self.bits != 4 or self.packed:
            return
        if self.group not in KERNEL_GROUPS:
            return
        packed = pack_int4((_read(self.codes) + 8).to(torch.uint8))
        if packed is None:
            return
        self.has_center = self.center is not None
        center = torch.zeros_like(self.scale) if self.center is None else self.center
        grid = torch.stack([self.scale, center], -1).to(torch.bfloat16).transpose(0, 1)
        grid = nn.functional.pad(grid, (0, 0, 0, packed.shape[0] - self.d_out))
        self.codes, self._grid = packed, grid.contiguous()
        self.scale = self.scale[:0]
        self.center = None
        self.packed = True

    def _make_plain(self) -> None:
        if self.packed:
            plain = self.weight_codes()
            self.codes = _stored(plain.codes, 4)
            self.scale, self.center = plain.scale.contiguous(), plain.center
            self._grid = None
            self.packed = False

    has_center: bool = False
    _grid: Any = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._make_plain()
        made = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._for_kernel()
        return made

    def parts(self) -> dict[str, Tensor]:
        """Return what is stored: grids and plain codes, as pairs or planes below 8 bits."""
        plain = self.weight_codes()
        codes = _stored(plain.codes, self.bits)
        values = (codes, plain.scale, plain.center, self.divide, self.bias)
        named = zip(_PARTS, values, strict=True)
        return {name: value.contiguous() for name, value in named if value is not None}

    @classmethod
    def from_parts(
        cls,
        parts: Mapping[str, Tensor],
        *,
        round_activations: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> "QuantizedLinear":
        """Make a layer of what :meth:`parts` returned.

        Args:
            parts: Tensors by name; their types and shapes say the rest.
            round_activations: As for the class.
            dtype: As for the class.

        Raises:
            ValueError: If a tensor is missing or does not fit.
        """
        missing = [name for name in ("codes", "scale") if name not in parts]
        if missing:
            raise ValueError(f"a quantized layer needs {' and '.join(missing)}")
        codes, scale = parts["codes"], parts["scale"]
        planes = codes.dtype == torch.uint8 and codes.ndim == 3 and codes.shape[1] in (2, 3)
        if not planes and (codes.dtype not in (torch.int8, torch.uint8) or codes.ndim != 2):
            raise ValueError(
                "codes must be a matrix of int8 or uint8, or 2 or 3 planes of uint8, got "
                f"{codes.dtype} of shape {tuple(codes.shape)}"
            )
        bits = codes.shape[1] if planes else 8 if codes.dtype == torch.int8 else 4
        codes = _read(codes)
        if scale.ndim != 2 or len(scale) != len(codes) or codes.shape[1] % scale.shape[1]:
            raise ValueError(
                f"codes {tuple(codes.shape)} and scale {tuple(scale.shape)} do not fit"
            )
        center = parts.get("center")
        if center is not None:
            check_shape("center", center, tuple(scale.shape))
        weight = WeightCodes(codes, scale, center, bits)
        return cls(
            weight,
            bias=parts.get("bias"),
            divide=parts.get("divide"),
            round_activations=round_activations,
            dtype=dtype,
        )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, tensor in self.parts().items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._make_plain()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._for_kernel()


class QuantizedEmbedding(nn.Module):
    """A table of tokens held in 8 bits, with a step for each row; an output layer may share it.

    Args:
        table: The weight, as a :class:`QuantizedLinear` of 8 bits.

    Raises:
        ValueError: If the table has other bits.

    Book: :doc:`/book/efficiency/quantization`

    Example:
        >>> from companion.efficiency.quantization import round_weights
        >>> rows = torch.tensor([[1.0, -0.5], [0.25, 0.5]])
        >>> table = QuantizedLinear(round_weights(rows, bits=8, group=None, symmetric=True))
        >>> QuantizedEmbedding(table)(torch.tensor([1, 0])).round(decimals=1)
        tensor([[ 0.3000,  0.5000],
                [ 1.0000, -0.5000]])
    """

    def __init__(self, table: QuantizedLinear) -> None:
        super().__init__()
        if table.bits != 8:
            raise ValueError(f"a table of tokens holds 8 bits, got {table.bits}")
        self.table = table

    @property
    def weight(self) -> Float[Tensor, "vocab dim"]:
        """The table, expanded in full."""
        return self.table.weight

    def linear_maps(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Name no map: a table is looked up, not multiplied.

        Returns:
            Nothing.
        """
        return {}

    def forward(self, ids: Integer[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Look rows up."""
        codes, scale = self.table.codes[ids], self.table.scale[ids]
        dtype = self.table.like.dtype
        return codes.to(dtype) * scale.to(dtype)


def _stored(codes: Tensor, bits: int) -> Tensor:
    """Signed codes, (outputs, inputs), as few bytes: int8, pairs, or planes of bits."""
    if bits == 8:
        return codes
    unsigned = (codes + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 4:  # two in a byte: the even input low, the odd one high
        pairs: Tensor = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
        return pairs
    eights = unsigned.unflatten(1, (-1, 8))
    planes = [_byte(eights >> k & 1) for k in range(bits)]
    return torch.stack(planes, 1)  # (outputs, bits, inputs / 8)


def _byte(eights: Tensor) -> Tensor:
    """Eight bits, the last axis, in one byte: the first is the lowest."""
    places = torch.arange(8, dtype=torch.uint8, device=eights.device)
    return (eights << places).sum(-1, dtype=torch.uint8)


def _read(stored: Tensor) -> Tensor:
    """Undo :func:`_stored`. Bytes tell by their type and shape what they are."""
    if stored.dtype == torch.int8:
        return stored
    if stored.ndim == 2:
        unsigned, bits = torch.stack([stored & 15, stored >> 4], -1).flatten(-2), 4
    else:
        bits = stored.shape[1]
        places = torch.arange(8, dtype=torch.uint8, device=stored.device)
        spread = (stored[..., None] >> places & 1).flatten(-2)  # (outputs, bits, inputs)
        unsigned = torch.stack([spread[:, k] << k for k in range(bits)]).sum(0, dtype=torch.uint8)
    signed: Tensor = unsigned.to(torch.int8) - 2 ** (bits - 1)
    return signed
