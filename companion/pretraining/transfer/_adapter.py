"""Adapters: small networks with a bottleneck behind the layers of a frozen model."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import check_count, randn
from companion.pretraining.transfer._freezing import freeze
from companion.transformer.block import Block
from companion.transformer.block._feed_forward import ACTIVATIONS, Activation

__all__ = ["Adapter", "add_adapters"]


class Adapter(nn.Module):
    r"""Narrow, bend, widen, and add: a correction of what a layer returns.

    .. math:: \mathrm{Adapter}(x) = x + \phi(x W_1 + b_1)\, W_2 + b_2

    :math:`W_2` and :math:`b_2` start at zero, so the adapter starts as the identity.

    Args:
        dim: Width of the tokens.
        width: Width of the bottleneck, 1 or more.
        generator: Draws :math:`W_1` from a normal distribution of variance :math:`1/d`.
        activation: :math:`\phi`: ``"gelu"``, ``"gelu_tanh"``, ``"relu"`` or ``"silu"``.
        device: Where the parameters are made.
        dtype: Their type.

    Attributes:
        down: ``nn.Linear`` with :math:`W_1^\top` and :math:`b_1`.
        up: ``nn.Linear`` with :math:`W_2^\top` and :math:`b_2`.

    Raises:
        ValueError: If a size is below 1 or the activation is unknown.

    References:
        Houlsby et al. 2019, arXiv:1902.00751, sec. 2.1. They start both matrices near zero.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> adapter = Adapter(5, 2, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(adapter(torch.ones(3, 5)), torch.ones(3, 5))
        True
    """

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        generator: torch.Generator,
        activation: Activation = "gelu",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("width", width)
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation must be one of {known}, got {activation!r}")
        self.activation = activation
        # Made without drawing from the global generator, and filled below.
        target = torch.get_default_device() if device is None else torch.device(device)
        self.down = nn.Linear(dim, width, device="meta", dtype=dtype).to_empty(device=target)
        self.up = nn.Linear(width, dim, device="meta", dtype=dtype).to_empty(device=target)
        drawn = randn(width, dim, generator=generator, device=target, dtype=dtype)
        with torch.no_grad():
            self.down.weight.copy_(drawn * dim**-0.5)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Correct each row of ``x``."""
        out: Tensor = x + self.up(ACTIVATIONS[self.activation](self.down(x)))
        return out


def add_adapters(
    model: nn.Module,
    *,
    width: int,
    generator: torch.Generator,
    activation: Activation = "gelu",
) -> tuple[str, ...]:
    """Freeze a model and put an adapter behind attention and feed-forward layer of each block.

    An adapter corrects what the layer adds to the residual stream, before it is added. The model
    is changed in place.

    Args:
        model: An encoder, decoder, or anything that has their blocks inside.
        width: As in :class:`Adapter`.
        generator: As there; the blocks draw from it in order.
        activation: As there.

    Returns:
        The names of the layers that got an adapter.

    Raises:
        ValueError: If the model has no blocks, or has adapters already.

    References:
        Houlsby et al. 2019, arXiv:1902.00751, fig. 2. They train the layer norms as well; here
        those stay frozen unless the caller thaws them.

    Book: :doc:`/book/pretraining/transfer`
    """
    blocks = [(path, m) for path, m in model.named_modules() if isinstance(m, Block)]
    if not blocks:
        raise ValueError("the model has no blocks that could have adapters")
    if any(isinstance(module, Adapter) for module in model.modules()):
        raise ValueError("the model has adapters already")
    freeze(model)
    names: list[str] = []
    for path, block in blocks:
        like = block.attention.qkv.weight
        made = [
            Adapter(
                block.attention.dim,
                width,
                generator=generator,
                activation=activation,
                device=like.device,
                dtype=like.dtype,
            )
            for _ in range(2)
        ]
        attention: nn.Module = block.attention
        attention.out = nn.Sequential(block.attention.out, made[0])
        block.feed_forward = nn.Sequential(block.feed_forward, made[1])
        names += [f"{path}.attention.out", f"{path}.feed_forward"]
    return tuple(name.removeprefix(".") for name in names)
