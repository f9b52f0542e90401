"""The companion library of *The Mathematics of Large Language Models*.

Every formula that the book derives is implemented here in PyTorch and imported by the chapter
that derives it. A chapter, its module and its tests have the same path: the chapter
``book/foundations/embeddings`` uses ``companion.foundations.embeddings``, which
``tests/foundations/test_embeddings.py`` tests.

Sub-packages load on first use, so ``import companion`` costs little more than ``import torch``. So
do the trained models and what is done with them, which are here as well as in
:mod:`companion.models`.

Example:
    >>> import companion
    >>> companion.__version__
    '1.0.0'
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.models import generate, load_pretrained, minilm, save_pretrained, smollm2

__version__ = "1.0.0"

#: Sub-packages in reading order. Imports between them run in this direction only.
_PACKAGES = (
    "core",
    "verify",
    "data",
    "foundations",
    "transformer",
    "pretraining",
    "models",
    "efficiency",
    "generation",
    "knowledge",
    "trust",
    "frontiers",
    "command",
)

#: What :mod:`companion.models` offers at the top.
_MODELS = ("generate", "load_pretrained", "minilm", "save_pretrained", "smollm2")

__all__ = [
    "__version__",
    "command",
    "core",
    "data",
    "efficiency",
    "foundations",
    "frontiers",
    "generate",
    "generation",
    "knowledge",
    "load_pretrained",
    "minilm",
    "models",
    "pretraining",
    "save_pretrained",
    "smollm2",
    "transformer",
    "trust",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _MODELS:
        return getattr(importlib.import_module(f"{__name__}.models"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
