"""Views of small pictures, and the networks that read them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import check_count, check_in_range, rand, randn, wide
from companion.pretraining.self_supervised._checks import check_rows

__all__ = ["projector", "random_affine"]


def random_affine(
    images: Float[Tensor, "n pixels"],
    *,
    generator: torch.Generator,
    turn: float = 0.35,
    stretch: float = 0.2,
    shift: float = 0.25,
    noise: float = 0.1,
) -> Float[Tensor, "n pixels"]:
    """Return a view of each square picture: turned, stretched, shifted and noisy at random.

    Args:
        images: Grey pictures as rows of pixels, from left to right and top to bottom.
        generator: The source of randomness.
        turn: Largest angle in radians, either way.
        stretch: Largest logarithm of the factor of each axis, either way.
        shift: Largest shift of each axis, as a share of half the picture.
        noise: Standard deviation of the noise that is added to each pixel.

    Returns:
        The views, with zeros (paper) where a picture moved away.

    Raises:
        ValueError: If the pixels make no square, or a size is negative.

    Numerics:
        Bilinear interpolation, in float32 or better; returned in the dtype of the images.

    Book: :doc:`/book/pretraining/self_supervised`
    """
    check_rows("images", images)
    for name, value in (("turn", turn), ("stretch", stretch), ("shift", shift), ("noise", noise)):
        check_in_range(name, value, low=0.0, open_high=True)
    n, pixels = images.shape
    side = round(pixels**0.5)
    if side**2 != pixels:
        raise ValueError(f"{pixels} pixels make no square")
    x = wide(images)

    def uniform(largest: float) -> Tensor:
        return largest * (2 * rand(n, generator=generator, device=x.device).to(x.dtype) - 1)

    angle = uniform(turn)
    across, down = uniform(stretch).exp(), uniform(stretch).exp()
    rows = [across * angle.cos(), -across * angle.sin(), uniform(shift)]
    rows += [down * angle.sin(), down * angle.cos(), uniform(shift)]
    grid = F.affine_grid(
        torch.stack(rows, 1).view(n, 2, 3), [n, 1, side, side], align_corners=False
    )
    moved = F.grid_sample(x.view(n, 1, side, side), grid, align_corners=False).view(n, pixels)
    grain = randn(n, pixels, generator=generator, device=x.device).to(x.dtype)
    return (moved + noise * grain).to(images.dtype)


def projector(widths: Sequence[int], *, generator: torch.Generator) -> nn.Sequential:
    """Make the small network of these methods: linear, batch norm, ReLU, again, and linear.

    Args:
        widths: Number of inputs, of units in each hidden layer, and of outputs.
        generator: The source of the weights: normal with variance two over the inputs.

    Returns:
        Three modules a layer, the last one bare. It reads ``(n, inputs)``, in training with two
        or more rows.

    Raises:
        ValueError: If there are fewer than two widths, or one is below 1.

    References:
        The shape of the heads in Chen et al. 2020, arXiv:2002.05709, and Chen and He 2021,
        arXiv:2011.10566. The weights: He et al. 2015, arXiv:1502.01852.

    Book: :doc:`/book/pretraining/self_supervised`
    """
    if len(widths) < 2:
        raise ValueError(f"widths must hold inputs and outputs, got {list(widths)}")
    for width in widths:
        check_count("a width", width)
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        # On meta, since PyTorch's own start draws from the global generator.
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")
        drawn = randn(outputs, inputs, generator=generator) * (2 / inputs) ** 0.5
        linear.weight = nn.Parameter(drawn.to(torch.get_default_device()))
        parts += [linear, nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-2])
