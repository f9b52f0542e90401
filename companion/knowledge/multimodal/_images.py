r"""Pictures as sequences and as features: patches, residual blocks, EfficientNet-Lite0."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from companion import data
from companion.core import check_count, check_shape

__all__ = [
    "EfficientNetLite",
    "PatchEmbedding",
    "ResidualBlock",
    "efficientnet_lite0",
    "patches",
]


def patches(
    images: Float[Tensor, "batch channels height width"], size: int
) -> Float[Tensor, "batch patches features"]:
    r"""Cut pictures into squares, each flattened into a row.

    Squares come row by row. A row holds the first channel of its square, row by row, then the
    second: entry :math:`c P^2 + i P + j` is the pixel :math:`(i, j)` of channel :math:`c`.

    Args:
        images: The pictures.
        size: :math:`P`, the side of a square, which divides height and width.

    Returns:
        :math:`(H/P)(W/P)` rows of width :math:`C P^2` for each picture.

    Raises:
        ValueError: If the size does not divide.

    References:
        Dosovitskiy et al. 2021, arXiv:2010.11929, sec. 3.1 (which flattens pixels first, then
        channels: the same up to the order of the rows of the map that follows).

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> patches(torch.arange(8.0).view(1, 1, 2, 4), 2)
        tensor([[[0., 1., 4., 5.],
                 [2., 3., 6., 7.]]])
    """
    check_shape("images", images, (None, None, None, None))
    check_count("size", size)
    batch, channels, height, width = images.shape
    if height % size or width % size:
        raise ValueError(
            f"patches of {size} do not divide pictures of {height} x {width}: pad or resize them"
        )
    cut = images.reshape(batch, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)


class PatchEmbedding(nn.Module):
    r"""A vector for each patch: a linear map of its pixels, which is a convolution.

    .. math:: X = \mathrm{patches}_P(I)\, W + b

    With the kernel :math:`K_{dcij} = W_{(cP^2 + iP + j), d}` it is a convolution with stride
    :math:`P`, and computed as one. Positions are added by what reads the patches.

    Args:
        channels: Channels of the pictures.
        size: Side of a patch.
        dim: Width of the vectors.

    Raises:
        ValueError: If a size is below 1.

    References:
        Dosovitskiy et al. 2021, arXiv:2010.11929, eq. 1.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> PatchEmbedding(3, 4, dim=5)(torch.ones(2, 3, 8, 12)).shape
        torch.Size([2, 6, 5])
    """

    def __init__(self, channels: int, size: int, *, dim: int) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("size", size), ("dim", dim)):
            check_count(name, value)
        self.size = size
        self.conv = nn.Conv2d(channels, dim, size, stride=size)

    @property
    def weight(self) -> Float[Tensor, "features dim"]:
        """The matrix :math:`W` of the formula."""
        return self.conv.weight.flatten(1).T

    def positions(self, images: Tensor) -> int:
        """How many patches pictures have.

        Args:
            images: The pictures.

        Returns:
            Their number.

        Raises:
            ValueError: If the shape does not fit, or patches do not divide it.
        """
        check_shape("images", images, (None, self.conv.in_channels, None, None))
        height, width = images.shape[2:]
        if height % self.size or width % self.size:
            raise ValueError(
                f"patches of {self.size} do not divide pictures of {height} x {width}: "
                "pad or resize them"
            )
        return (height // self.size) * (width // self.size)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches dim"]:
        """Embed.

        Args:
            images: The pictures.

        Returns:
            Vectors, patches row by row.

        Raises:
            ValueError: As :meth:`positions`.
        """
        self.positions(images)
        embedded: Tensor = self.conv(images)
        return embedded.flatten(2).mT


class ResidualBlock(nn.Module):
    r"""Two convolutions and a way around them.

    .. math:: y = \phi\bigl(F(x) + S(x)\bigr), \qquad
        F = \mathrm{BN} \circ K_2 \circ \phi \circ \mathrm{BN} \circ K_1

    :math:`\phi` is the ReLU. :math:`S` is the identity where shapes agree, and a convolution of
    size 1 with batch normalization where they do not.

    Args:
        channels: Channels of the input.
        out: Channels of the output.
        stride: Step of the first convolution, and of the way around.

    Raises:
        ValueError: If a size is below 1.

    References:
        He et al. 2016, arXiv:1512.03385, sec. 3.2, option B.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> ResidualBlock(3, 5, stride=2)(torch.ones(2, 3, 8, 12)).shape
        torch.Size([2, 5, 4, 6])
    """

    def __init__(self, channels: int, out: int, *, stride: int = 1) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("out", out), ("stride", stride)):
            check_count(name, value)
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.around: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.around = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out _ _"]:
        """Apply the block.

        Args:
            x: Feature maps.

        Returns:
            Feature maps, smaller by the stride.
        """
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.around(x))


#: Expansion, kernel, stride, output channels, repeats of each stage of EfficientNet-B0.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class _SamePadding(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) entries, as TensorFlow pads it."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(
            reversed(x.shape[2:]),
            reversed(self.kernel_size),
            reversed(self.stride),
            strict=True,
        ):
            need = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [need // 2, need - need // 2]  # one more on the right where it is odd
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _step(channels: int, out: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
    conv = _SamePadding(channels, out, kernel, stride, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out, eps=1e-3)]


class _Bottleneck(nn.Module):
    """Widen, mix each channel over space, and narrow again; add the input where shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = channels * expand
        widen = [*_step(channels, inner, 1, 1, 1), nn.ReLU6()] if expand > 1 else []
        self.steps = nn.Sequential(
            *widen,
            *_step(inner, inner, kernel, stride, inner),
            nn.ReLU6(),
            *_step(inner, out, 1, 1, 1),
        )
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.steps(x)
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    r"""The image classifier EfficientNet-Lite0: features of pictures, and their classes.

    A first convolution, 16 inverted bottlenecks in seven stages, a last convolution to 1,280
    channels, their mean over space, and a linear map to 1,000 classes. In a bottleneck

    .. math:: y = [x +]\; \mathrm{BN}\, N\bigl(\phi(\mathrm{BN}\, D\, \phi(\mathrm{BN}\, E x))\bigr)

    :math:`E` widens six times, :math:`D` filters each channel by itself, :math:`N` narrows, and
    :math:`\phi = \min(\max(\cdot, 0), 6)`.

    Args:
        classes: Outputs of the last map.

    Raises:
        ValueError: If there is no class.

    References:
        Tan and Le 2019, arXiv:1905.11946, table 1; Sandler et al. 2018, arXiv:1801.04381 (the
        bottleneck). The variant for phones has ReLU6 in place of Swish, and no squeeze and
        excitation.

    Book: :doc:`/book/knowledge/multimodal`
    """

    def __init__(self, *, classes: int = 1000) -> None:
        super().__init__()
        check_count("classes", classes)
        self.stem = nn.Sequential(*_step(3, 32, 3, 2, 1), nn.ReLU6())
        blocks: list[nn.Module] = []
        channels = 32
        for expand, kernel, stride, out, repeats in STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(_Bottleneck(channels, out, kernel, step, expand))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_step(channels, 1280, 1, 1, 1), nn.ReLU6())
        self.classify = nn.Linear(1280, classes)

    def features(
        self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 1280"]:
        """Describe each picture by 1,280 numbers, 0 or more.

        Args:
            images: RGB from 0 to 255; trained on 224 x 224.

        Returns:
            What the last map reads.

        Raises:
            ValueError: If the shape does not fit.
        """
        check_shape("images", images, (None, 3, None, None))
        x = (images.to(self.classify.weight.dtype) - 127) / 128
        maps: Tensor = self.head(self.blocks(self.stem(x)))
        return maps.mean(dim=(2, 3))

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Score the classes.

        Args:
            images: RGB from 0 to 255.

        Returns:
            Logits.

        Raises:
            ValueError: If the shape does not fit.
        """
        logits: Tensor = self.classify(self.features(images))
        return logits


def efficientnet_lite0(
    *, directory: str | Path | None = None, device: str | torch.device | None = None
) -> EfficientNetLite:
    """EfficientNet-Lite0, trained on ImageNet.

    Args:
        directory: Where the file is (see :func:`companion.data.efficientnet_lite0`); by default the
            installed data.
        device: Where the model is put; by default the CPU.

    Returns:
        The model in evaluation mode: its batch normalization uses the stored statistics.

    Raises:
        companion.data.MissingDataError: If the data are not installed.
        companion.data.CorruptDataError: If the file differs from the pinned one.

    References:
        Tan and Le 2019, arXiv:1905.11946.

    Book: :doc:`/book/knowledge/multimodal`
    """
    held = data.efficientnet_lite0(directory=directory).weights
    with torch.device("meta"):
        model = EfficientNetLite()
    renamed = _names(list(held))
    state = {renamed[name]: tensor for name, tensor in held.items()}
    # Counters of batches serve training alone; the file has none.
    counters = {
        name: torch.zeros((), dtype=torch.long)
        for name in model.state_dict()
        if name.endswith("num_batches_tracked")
    }
    model.load_state_dict({**state, **counters}, assign=True)
    return model.to(device=device).eval()


def _names(theirs: Sequence[str]) -> dict[str, str]:
    outside = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1"}
    outside["_fc"] = "classify"
    parts = ("_expand_conv", "_bn0", None, "_depthwise_conv", "_bn1", None, "_project_conv", "_bn2")
    renamed = {}
    for name in theirs:
        pieces = name.split(".")
        if pieces[0] == "_blocks":
            places = parts if pieces[1] != "0" else parts[3:]
            pieces = ["blocks", pieces[1], "steps", str(places.index(pieces[2])), pieces[3]]
        else:
            pieces = [outside[pieces[0]], pieces[1]]
        renamed[name] = ".".join(pieces)
    return renamed
