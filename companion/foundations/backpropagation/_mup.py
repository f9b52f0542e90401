r"""Maximal update parametrization: how weights and learning rates depend on the width.

A wide network starts with every signal at its size, yet one step of Adam changes the hidden signal
in proportion to the width, since each of the :math:`n` inputs of a unit pushes in the same
direction. The rules here undo that, so that a learning rate found on a narrow network fits a wide
one.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import check_in_range, randn

__all__ = ["Parametrization", "Role", "Scaling", "WidthMLP", "width_scaling"]

Parametrization = Literal["mup", "standard"]
Role = Literal["hidden", "input", "output"]


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What the width does to one weight matrix.

    Attributes:
        variance: Variance of its entries at the start.
        learning_rate: Factor of the learning rate of Adam.
        multiplier: Factor of the product with the matrix.
    """

    variance: float
    learning_rate: float
    multiplier: float


def width_scaling(
    role: Role,
    *,
    fan_in: int,
    base_fan_in: int,
    parametrization: Parametrization = "mup",
    gain: float = 1.0,
) -> Scaling:
    r"""Return variance, learning rate of Adam and multiplier of a weight matrix.

    With :math:`n` for ``fan_in`` and :math:`n_0` for ``base_fan_in``, the width at which both
    parametrizations agree:

    ==========  =============  ====================  ====================
    role        variance       rate (mup)            multiplier (mup)
    ==========  =============  ====================  ====================
    input       :math:`1/n`    1                     1
    hidden      :math:`1/n`    :math:`n_0 / n`       1
    output      :math:`1/n_0`  1                     :math:`n_0 / n`
    ==========  =============  ====================  ====================

    In the standard parametrization the variance is :math:`1/n` and both factors are 1 throughout.

    Args:
        role: ``"input"`` maps data of fixed size to the width, ``"hidden"`` the width to itself,
            ``"output"`` the width to a result of fixed size.
        fan_in: Number of inputs of the matrix.
        base_fan_in: The same number in the network for which the learning rate was found. For
            ``"input"`` it is not used.
        parametrization: ``"mup"`` or ``"standard"``.
        gain: Factor of the deviation, above 0, such as :math:`\sqrt 2` for ReLU.

    Returns:
        The three numbers.

    Raises:
        ValueError: If a name is unknown, a size is not positive, or the gain is not above 0.

    References:
        G. Yang et al., arXiv:2203.03466, Table 8, with widths counted in units of the base width.
        Table 3 there moves the multiplier of the output into variance :math:`n_0 / n^2` and rate
        :math:`n_0 / n`, which trains the same function. Weights of attention count as hidden; the
        scores are scaled by :math:`1 / d_k` in place of :math:`1 / \sqrt{d_k}`.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> width_scaling("hidden", fan_in=256, base_fan_in=64)
        Scaling(variance=0.00390625, learning_rate=0.25, multiplier=1.0)
    """
    if role not in ("hidden", "input", "output"):
        raise ValueError(f"role must be 'input', 'hidden' or 'output', got {role!r}")
    if parametrization not in ("mup", "standard"):
        raise ValueError(f"parametrization must be 'mup' or 'standard', got {parametrization!r}")
    if fan_in < 1 or base_fan_in < 1:
        raise ValueError(f"sizes must be 1 or more, got {fan_in} and {base_fan_in}")
    check_in_range("gain", gain, low=0.0, open_low=True, open_high=True)
    if parametrization == "standard" or role == "input":
        return Scaling(variance=gain**2 / fan_in, learning_rate=1.0, multiplier=1.0)
    ratio = base_fan_in / fan_in
    if role == "hidden":
        return Scaling(variance=gain**2 / fan_in, learning_rate=ratio, multiplier=1.0)
    return Scaling(variance=gain**2 / base_fan_in, learning_rate=1.0, multiplier=ratio)


class WidthMLP(nn.Module):
    r"""A ReLU network whose width can change without a new learning rate.

    :math:`d_{in} \to n \to \dots \to n \to d_{out}`, with zero biases at the start.

    Args:
        d_in: Size of the data.
        width: :math:`n`.
        d_out: Size of the result.
        base_width: :math:`n_0`, the width at which both parametrizations agree.
        hidden: Number of :math:`n \times n` matrices, 0 or more.
        parametrization: ``"mup"`` or ``"standard"``.
        generator: Draws the weights.
        device: Where the weights are moved; by default they stay with the generator.
        dtype: Floating dtype; by default PyTorch's default dtype.

    Attributes:
        weights: The matrices, inputs first, of shape ``(d_in, d_out)`` each.
        biases: The biases.
        scalings: What the width does to each matrix.

    Raises:
        ValueError: As in :func:`width_scaling`, or if the number of hidden matrices is negative.

    References:
        G. Yang et al., arXiv:2203.03466.

    Book: :doc:`/book/foundations/backpropagation`

    Example:
        >>> model = WidthMLP(64, 32, 10, base_width=16, generator=torch.Generator().manual_seed(0))
        >>> model(torch.ones(5, 64)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        d_in: int,
        width: int,
        d_out: int,
        *,
        base_width: int,
        generator: torch.Generator,
        hidden: int = 2,
        parametrization: Parametrization = "mup",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if hidden < 0:
            raise ValueError(f"hidden must be 0 or more, got {hidden}")
        roles: list[Role] = ["input", *(["hidden"] * hidden), "output"]  # type: ignore[list-item]
        sizes = [d_in, *([width] * (hidden + 1)), d_out]
        self.scalings: list[Scaling] = []
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for role, n_in, n_out in zip(roles, sizes[:-1], sizes[1:], strict=True):
            scaling = width_scaling(
                role,
                fan_in=n_in,
                base_fan_in=base_width,
                parametrization=parametrization,
                # ReLU follows all but the last matrix.
                gain=1.0 if role == "output" else 2**0.5,
            )
            drawn = randn(n_in, n_out, generator=generator, device=device, dtype=dtype)
            self.scalings.append(scaling)
            self.weights.append(nn.Parameter(scaling.variance**0.5 * drawn))
            self.biases.append(nn.Parameter(drawn.new_zeros(n_out)))

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Return the logits.

        Args:
            x: Data, one row each.

        Returns:
            One row of logits for each row of data.
        """
        last = len(self.scalings) - 1
        for layer, scaling in enumerate(self.scalings):
            x = scaling.multiplier * (x @ self.weights[layer]) + self.biases[layer]
            x = torch.relu(x) if layer < last else x
        return x

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the parameters in groups for Adam, each with its learning rate.

        Args:
            lr: The learning rate at the base width, above 0.

        Returns:
            One group for each weight matrix and one for the biases, whose rate does not change.

        Raises:
            ValueError: If the learning rate is not above 0.
        """
        check_in_range("lr", lr, low=0.0, open_low=True, open_high=True)
        groups: list[dict[str, Any]] = [
            {"params": [weight], "lr": lr * scaling.learning_rate}
            for weight, scaling in zip(self.weights, self.scalings, strict=True)
        ]
        return [*groups, {"params": list(self.biases), "lr": lr}]
