"""Entry of ``python -m companion``, the same as the command ``companion``."""

import sys

from companion.command import main

if __name__ == "__main__":
    sys.exit(main())
