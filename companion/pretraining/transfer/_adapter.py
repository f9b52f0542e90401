"""Adapters: small networks with a bottleneck behind the layers of a frozen model."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import LinearLike, LinearPlace, check_count, randn, replace_linears
from companion.pretraining.transfer._freezing import freeze
from companion.transformer.block._feed_forward import ACTIVATIONS, Activation

__all__ = ["AdaptedLinear", "Adapter", "add_adapters"]


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

    def linear_maps(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Name no maps: :func:`companion.core.replace_linears` leaves an adapter as it is.

        Returns:
            Nothing.
        """
        return {}


class AdaptedLinear(nn.Module):
    """A linear layer, and the adapter that corrects what it returns.

    Args:
        base: The layer. It is kept, not copied.
        adapter: The adapter.

    Book: :doc:`/book/pretraining/transfer`
    """

    def __init__(self, base: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Apply the layer, then the adapter."""
        out: Tensor = self.adapter(self.base(x))
        return out


def add_adapters(
    model: nn.Module,
    *,
    width: int,
    generator: torch.Generator,
    activation: Activation = "gelu",
) -> tuple[str, ...]:
    """Freeze a model and put an adapter behind attention and feed-forward layer of each block.

    An adapter corrects what the layer adds to the residual stream, before it is added: it stands
    behind the last map of either, ``out`` or ``down``. Cross-attention has none. The model is
    changed in place.

    Args:
        model: An encoder, decoder, or anything that has their blocks inside.
        width: As in :class:`Adapter`.
        generator: As there; the blocks draw from it in order.
        activation: As there.

    Returns:
        The names of the linear layers that got an adapter.

    Raises:
        ValueError: If the model has no such layers, or has adapters already. Nothing is changed
            then.

    References:
        Houlsby et al. 2019, arXiv:1902.00751, fig. 2. They train the layer norms as well; here
        those stay frozen unless the caller thaws them.

    Book: :doc:`/book/pretraining/transfer`
    """
    check_count("width", width)
    if any(isinstance(module, Adapter) for module in model.modules()):
        raise ValueError("the model has adapters already")

    def make(linear: nn.Linear | LinearLike, place: LinearPlace) -> AdaptedLinear:
        like = linear.weight
        adapter = Adapter(
            like.shape[0],
            width,
            generator=generator,
            activation=activation,
            device=like.device,
            dtype=like.dtype,
        )
        return AdaptedLinear(linear, adapter)

    old = replace_linears(model, ["*attention*.out", "*feed_forward*.down"], make)
    freeze(model)
    for module in model.modules():
        if isinstance(module, Adapter):
            module.requires_grad_(True)
    return tuple(old)
