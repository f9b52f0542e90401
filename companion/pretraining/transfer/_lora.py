r"""LoRA: a trained change of low rank beside a frozen matrix, and its merging into the matrix.

Inside :class:`torch.nn.Linear` a weight is the transpose of the book's :math:`W`; the factors
:math:`A` and :math:`B` here are stored as the book writes them, so that the change is
:math:`\frac{\alpha}{r} A B`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import (
    LinearLike,
    LinearPlace,
    check_count,
    check_in_range,
    rand,
    replace_linears,
    restore_linears,
)
from companion.pretraining.transfer._freezing import freeze

__all__ = ["LoRALinear", "add_lora", "merge_lora", "remove_lora", "unmerge_lora"]


class LoRALinear(LinearLike):
    r"""A frozen linear layer plus a trained change of low rank.

    .. math:: Y = X W_0 + \frac{\alpha}{r}\,(X A)\,B + b

    :math:`A` of shape :math:`(d_{in}, r)` starts random and :math:`B` of shape
    :math:`(r, d_{out})` at zero, so the layer starts as what it was. The change may be confined
    to blocks of outputs, each with factors of its own: in a fused map to queries, keys and values
    it may then touch the queries and the values alone.

    Args:
        base: The layer, or what acts like one (:class:`companion.core.LinearLike`). It is kept,
            not copied, and its parameters are frozen.
        rank: :math:`r`, 1 or more, the same for each block.
        alpha: :math:`\alpha > 0`.
        generator: Draws :math:`A`, uniform on :math:`\pm 1/\sqrt{d_{in}}`.
        rank_stabilized: Divide :math:`\alpha` by :math:`\sqrt r` instead of :math:`r`.
        rows: Blocks of outputs as (first, end), in order and apart; by default one, of all outputs.
        dtype: Type of the factors; by default that of the base. A frozen base in half precision
            may have factors in float32.

    Attributes:
        A: The first factors side by side, shape (d_in, blocks * rank).
        B: A list with the second factor of each block, shape (rank, outputs of the block).
        merged: Whether the change is part of the base's weight at present. It belongs to the
            ``state_dict``, as a tensor: a layer that loads the state of another one computes what
            that one computes, whether either is merged or not.

    Raises:
        ValueError: If the base is no linear layer, a number is out of range, or blocks overlap.

    Numerics:
        :math:`r (d_{in} + d_{out})` trained numbers in place of :math:`d_{in} d_{out}`. The
        product of the factors is never formed in :meth:`forward`.

    References:
        Hu et al. 2022, arXiv:2106.09685, eq. 3 and sec. 4.1, who draw :math:`A` from a normal
        distribution; the uniform one is that of their code and of the library ``peft``.
        Rank-stabilized: Kalajdzievski 2023, arXiv:2312.03732.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> base = nn.Linear(5, 7, dtype=torch.float64)
        >>> layer = LoRALinear(base, rank=2, alpha=4.0, generator=g)
        >>> x = torch.ones(3, 5, dtype=torch.float64)
        >>> torch.equal(layer(x), base(x))
        True
    """

    def __init__(
        self,
        base: nn.Linear | LinearLike,
        *,
        rank: int,
        alpha: float,
        generator: torch.Generator,
        rank_stabilized: bool = False,
        rows: Sequence[tuple[int, int]] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(base, nn.Linear | LinearLike):
            raise ValueError(f"LoRA changes a linear layer, got {type(base).__name__}")
        check_count("rank", rank)
        check_in_range("alpha", alpha, low=0.0, open_low=True, open_high=True)
        outputs, inputs = base.weight.shape
        blocks = [(0, outputs)] if rows is None else [(int(a), int(b)) for a, b in rows]
        ends = [0, *(end for block in blocks for end in block), outputs]
        apart = all(a <= b for a, b in pairwise(ends))
        if not blocks or not apart or any(first == end for first, end in blocks):
            raise ValueError(
                f"rows must be blocks (first, end) within {outputs} outputs, in order and apart, "
                f"got {blocks}"
            )
        freeze(base)
        self.base = base
        self.rank, self.alpha = rank, alpha
        self.rank_stabilized = rank_stabilized
        self.rows = tuple(blocks)
        self.merged = False
        device, dtype = base.weight.device, dtype or base.weight.dtype
        bound = inputs**-0.5
        columns = len(blocks) * rank
        drawn = rand(inputs, columns, generator=generator, device=device, dtype=dtype)
        self.A = nn.Parameter((2 * drawn - 1) * bound)
        self.B = nn.ParameterList(
            torch.zeros(rank, end - first, device=device, dtype=dtype) for first, end in blocks
        )

    @property
    def scale(self) -> float:
        """The factor of the change: alpha over the rank, or over its root."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def extra_repr(self) -> str:
        """Name the sizes when the module is printed."""
        return f"rank={self.rank}, alpha={self.alpha}, rows={self.rows}, merged={self.merged}"

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Apply the layer and its change."""
        y: Tensor = self.base(x)
        if self.merged:
            return y
        down = torch.split(x.to(self.A.dtype) @ self.A, self.rank, -1)
        pieces: list[Tensor] = []
        done = 0
        for (first, end), low, up in zip(self.rows, down, self.B, strict=True):
            if first > done:
                pieces.append(y[..., done:first])
            pieces.append(y[..., first:end] + (self.scale * (low @ up)).to(y.dtype))
            done = end
        if done < y.shape[-1]:
            pieces.append(y[..., done:])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)

    def change(self) -> Float[Tensor, "d_in d_out"]:
        """Form the change of the book's :math:`W`, zero outside of the blocks."""
        pieces: list[Tensor] = []
        done = 0
        for (first, end), low, up in zip(
            self.rows, torch.split(self.A, self.rank, 1), self.B, strict=True
        ):
            pieces.append(self.A.new_zeros(len(self.A), first - done))
            pieces.append(self.scale * (low @ up))
            done = end
        pieces.append(self.A.new_zeros(len(self.A), self.base.weight.shape[0] - done))
        return torch.cat(pieces, 1)

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:  # type: ignore[override]
        """The weight that the layer acts with, laid out as that of ``nn.Linear``."""
        held = self.base.weight
        return held if self.merged else _shifted(held, self.change().T)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The base's bias."""
        return self.base.bias

    @torch.no_grad()
    def merge(self) -> None:
        """Make the change part of the base's weight, so that the layer costs nothing more.

        The sum is formed in the wider of the two types and rounded once to the base's. The weight
        becomes a new tensor: one that is tied to it elsewhere stays as it is.

        Raises:
            ValueError: If it is merged already, or the base is no ``nn.Linear``.
        """
        if self.merged:
            raise ValueError("the change is merged already: unmerge it first")
        if not isinstance(self.base, nn.Linear):
            raise ValueError(
                f"a change cannot become part of a {type(self.base).__name__}: "
                "put nn.Linear layers back first"
            )
        self._add(1.0)
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract the change again. What merging rounded away does not come back.

        Raises:
            ValueError: If it is not merged.
        """
        if not self.merged:
            raise ValueError("the change is not merged: there is nothing to take out")
        self._add(-1.0)
        self.merged = False

    def _add(self, sign: float) -> None:
        held = self.base.weight
        made = _shifted(held, sign * self.change().T)
        self.base.weight = nn.Parameter(made, requires_grad=held.requires_grad)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}merged"] = torch.tensor(self.merged, device=self.A.device)

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
        name = f"{prefix}merged"
        # Taken out before the module looks at what belongs to it, and put back for other modules.
        merged = state_dict.pop(name, None)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if merged is None:
            missing_keys.append(name)
            return
        state_dict[name] = merged
        # The weight that belongs to it is loaded next, by the base.
        self.merged = bool(merged)


def _shifted(weight: Tensor, change: Tensor) -> Tensor:
    """Add in the wider type, and round once to the weight's."""
    wide = torch.promote_types(weight.dtype, change.dtype)
    return (weight.to(wide) + change.to(wide)).to(weight.dtype)


def add_lora(
    model: nn.Module,
    *,
    targets: Sequence[str],
    rank: int,
    alpha: float,
    generator: torch.Generator,
    rank_stabilized: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[str, ...]:
    """Freeze a model and put LoRA beside some of its linear maps. The model is changed in place.

    ``query``, ``key`` and ``value`` are blocks of the fused map of
    :class:`~companion.transformer.multi_head.MultiHeadAttention`, ``out`` is its last map;
    ``up``, ``down`` and, where there is one, ``gate`` are those of the feed-forward layer;
    ``head`` is the output layer of a decoder. Cross-attention counts as attention. See
    :func:`companion.core.replace_linears` for more names, and for what happens to a head that is
    tied: it gets a copy of the table, and ``config.tied`` of the model becomes False.

    Args:
        model: An encoder, decoder, or anything that has their layers inside.
        targets: Which maps, by these names, or by paths such as ``"blocks.3.attention.query"``, in
            which a ``*`` stands for any characters.
        rank: As in :class:`LoRALinear`, for each map.
        alpha: As there.
        generator: As there; the layers draw from it in order.
        rank_stabilized: As there.
        dtype: As there.

    Returns:
        The names of the changed layers.

    Raises:
        ValueError: If a target is named twice or missing in the model, the model has LoRA
            already, or a number is out of range. Nothing is changed then.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> from companion.transformer.block import Decoder, TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> g = torch.Generator().manual_seed(0)
        >>> add_lora(Decoder(config), targets=["query", "value"], rank=2, alpha=4.0, generator=g)
        ('blocks.0.attention.qkv', 'blocks.1.attention.qkv')
    """
    if len(set(targets)) < len(targets):
        raise ValueError(f"each target can be named once, got {list(targets)}")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("the model has LoRA already: remove it with remove_lora first")
    check_count("rank", rank)
    check_in_range("alpha", alpha, low=0.0, open_low=True, open_high=True)

    def make(linear: nn.Linear | LinearLike, place: LinearPlace) -> LoRALinear:
        return LoRALinear(
            linear,
            rank=rank,
            alpha=alpha,
            generator=generator,
            rank_stabilized=rank_stabilized,
            rows=list(place.maps.values()),
            dtype=dtype,
        )

    old = replace_linears(model, targets, make)
    freeze(model)
    for layer in _layers(model).values():
        layer.A.requires_grad_(True)
        layer.B.requires_grad_(True)
    return tuple(old)


def _layers(model: nn.Module) -> dict[str, LoRALinear]:
    layers = {
        path: module
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, LoRALinear)
    }
    if not layers:
        raise ValueError("the model has no LoRA: add it with add_lora")
    return layers


def merge_lora(model: nn.Module) -> None:
    """Merge all changes into the weights of their layers, in place.

    Args:
        model: A model with :class:`LoRALinear` layers, none of them merged.

    Raises:
        ValueError: If there is no LoRA, or it is merged already.

    Book: :doc:`/book/pretraining/transfer`
    """
    for layer in dict.fromkeys(_layers(model).values()):  # once each, wherever it stands
        layer.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Take all merged changes out of the weights again, in place.

    Args:
        model: A model with merged :class:`LoRALinear` layers.

    Raises:
        ValueError: If there is no LoRA, or it is not merged.

    Numerics:
        The weights return up to the rounding of one addition and one subtraction.

    Book: :doc:`/book/pretraining/transfer`
    """
    for layer in dict.fromkeys(_layers(model).values()):
        layer.unmerge()


def remove_lora(model: nn.Module) -> None:
    """Put the base layers back, with their changes if those are merged, and without if not.

    Args:
        model: A model with :class:`LoRALinear` layers; it is changed in place. Its parameters
            stay frozen, and a head that was untied stays so.

    Raises:
        ValueError: If there is no LoRA.

    Book: :doc:`/book/pretraining/transfer`
    """
    restore_linears(model, {path: layer.base for path, layer in _layers(model).items()})
