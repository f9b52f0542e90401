"""The companion library of *The Mathematics of Large Language Models*.

Every formula that the book derives is implemented here in PyTorch and imported by the chapter
that derives it. A chapter, its module and its tests have the same path: the chapter
``book/foundations/embeddings`` uses ``companion.foundations.embeddings``, which
``tests/foundations/test_embeddings.py`` tests.

Sub-packages load on first use, so ``import companion`` costs little more than ``import torch``.

Example:
    >>> import companion
    >>> companion.__version__
    '0.3.0'
"""

import importlib
from types import ModuleType

__version__ = "0.3.0"

#: Sub-packages in reading order. Imports between them run in this direction only.
_PACKAGES = (
    "core",
    "verify",
    "data",
    "foundations",
    "transformer",
    "pretraining",
    "models",
    "command",
)

__all__ = ["__version__", *_PACKAGES]


def __getattr__(name: str) -> ModuleType:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
