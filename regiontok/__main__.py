"""``python -m regiontok``."""

import sys

from regiontok.cli import main

if __name__ == "__main__":
    sys.exit(main())
