"""The command line: train a language model, let it write, hold it in fewer bits.

Each command is a module with ``HELP``, ``add_arguments`` and ``run``, and a row of the table in
``_main``. They import what is heavy when they run, so that ``--help`` answers at once.
"""

from companion.command._main import main

__all__ = ["main"]
