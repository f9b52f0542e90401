"""Entry of ``python -m companion``: train a language model on text, and let it write."""

import sys

from companion.command import main

if __name__ == "__main__":
    sys.exit(main())
