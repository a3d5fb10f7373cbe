"""``python -m dawn``: the command line."""

from __future__ import annotations

import sys

from dawn.apps.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
