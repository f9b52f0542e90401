"""The command line: ``companion train`` and ``companion generate``."""

from companion.command._main import main

__all__ = ["main"]
