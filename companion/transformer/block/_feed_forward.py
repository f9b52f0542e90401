r"""The feed-forward network of a Transformer block: two matrices with a nonlinearity between.

It acts on every token by itself. In formulas matrices are :math:`(d_{in}, d_{out})` and tokens are
rows; inside the modules they are ``nn.Linear``, whose ``weight`` is the transpose.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import HasSites
from companion.foundations import backpropagation

__all__ = ["ACTIVATIONS", "Activation", "FeedForward", "GatedFeedForward"]

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]

#: Those of the one table of activation functions that a block may have, by name. A plain
#: dictionary: torch.compile does not look into a read-only one once it has seen any change.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: backpropagation.ACTIVATIONS[name] for name in get_args(Activation)
}


class FeedForward(HasSites):
    r"""Widen, bend, narrow.

    .. math:: \mathrm{FFN}(x) = \phi(x W_1 + b_1) W_2 + b_2

    Args:
        dim: Size :math:`d` of a token.
        ff_dim: Number :math:`d_{ff}` of hidden units.
        activation: :math:`\phi`: ``"gelu"``, its approximation ``"gelu_tanh"``, ``"relu"`` or
            ``"silu"``.
        bias: Whether there are :math:`b_1` and :math:`b_2`.
        device: Where the parameters are made.
        dtype: Their dtype.

    Attributes:
        up: ``nn.Linear`` with :math:`W_1^\top` and :math:`b_1`.
        down: ``nn.Linear`` with :math:`W_2^\top` and :math:`b_2`.
        sites: ``hidden``, what the second matrix reads, for :func:`companion.core.watch`.

    Raises:
        ValueError: If a size is below 1 or the activation is unknown.

    Numerics:
        :math:`4 n d d_{ff}` floating-point operations for ``n`` tokens, and :math:`2 d d_{ff}`
        weights.

    References:
        A. Vaswani et al., arXiv:1706.03762, eq. 2, with ReLU.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> FeedForward(3, 12)(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 3])
    """

    sites = ("hidden",)

    def __init__(
        self,
        dim: int,
        ff_dim: int,
        *,
        activation: Activation = "gelu",
        bias: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(dim, ff_dim, activation)
        self.activation = activation
        self.up = nn.Linear(dim, ff_dim, bias=bias, device=device, dtype=dtype)
        self.down = nn.Linear(ff_dim, dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Apply the network to each row of ``x``."""
        hidden = self.site("hidden", ACTIVATIONS[self.activation](self.up(x)))
        out: Tensor = self.down(hidden)
        return out

    def linear_maps(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Name the maps for :func:`companion.core.replace_linears`.

        Returns:
            For ``up`` and ``down``, the rows of each map.
        """
        dim, width = self.down.weight.shape
        return {"up": {"up": (0, width)}, "down": {"down": (0, dim)}}

    @property
    def key_vectors(self) -> Float[Tensor, "ff_dim dim"]:
        """The keys of the memory that the network is: the columns of :math:`W_1`, as rows."""
        return self.up.weight

    @property
    def value_vectors(self) -> Float[Tensor, "ff_dim dim"]:
        """The values of that memory: the rows of :math:`W_2`."""
        return self.down.weight.mT

    def extra_repr(self) -> str:
        """Show the activation in ``repr``."""
        return f"activation={self.activation!r}"


class GatedFeedForward(HasSites):
    r"""Feed-forward network whose hidden units are multiplied by a gate.

    .. math:: \mathrm{FFN}(x) = \left( \phi(x W_g) \odot x W_u \right) W_d

    With :math:`\phi = \mathrm{SiLU}` it is SwiGLU, with GELU it is GEGLU.

    Args:
        dim: Size :math:`d` of a token.
        ff_dim: Number :math:`d_{ff}` of hidden units.
        activation: :math:`\phi`, as in :class:`FeedForward`.
        bias: Whether the three linear maps have biases.
        device: Where the parameters are made.
        dtype: Their dtype.

    Attributes:
        gate_up: ``nn.Linear`` to ``2 * ff_dim`` outputs: the rows of :math:`W_g^\top`, then those
            of :math:`W_u^\top`. One product in place of two.
        down: ``nn.Linear`` with :math:`W_d^\top`.
        sites: ``hidden``, what :math:`W_d` reads, for :func:`companion.core.watch`.

    Raises:
        ValueError: If a size is below 1 or the activation is unknown.

    Numerics:
        :math:`6 n d d_{ff}` floating-point operations for ``n`` tokens, and :math:`3 d d_{ff}`
        weights. Two thirds of the hidden units of :class:`FeedForward` cost as much as it.

    References:
        N. Shazeer, arXiv:2002.05202, eq. 6.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> GatedFeedForward(3, 8)(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 3])
    """

    sites = ("hidden",)

    def __init__(
        self,
        dim: int,
        ff_dim: int,
        *,
        activation: Activation = "silu",
        bias: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(dim, ff_dim, activation)
        self.activation = activation
        self.gate_up = nn.Linear(dim, 2 * ff_dim, bias=bias, device=device, dtype=dtype)
        self.down = nn.Linear(ff_dim, dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Apply the network to each row of ``x``."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(self.site("hidden", ACTIVATIONS[self.activation](gate) * up))
        return out

    def linear_maps(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Name the maps for :func:`companion.core.replace_linears`: two share one matrix.

        Returns:
            For ``gate_up`` and ``down``, the rows of each map.
        """
        dim, width = self.down.weight.shape
        fused = {"gate": (0, width), "up": (width, 2 * width)}
        return {"gate_up": fused, "down": {"down": (0, dim)}}

    def extra_repr(self) -> str:
        """Show the activation in ``repr``."""
        return f"activation={self.activation!r}"


def _check_sizes(dim: int, ff_dim: int, activation: str) -> None:
    if dim < 1 or ff_dim < 1:
        raise ValueError(f"sizes must be 1 or more, got dim = {dim} and ff_dim = {ff_dim}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
