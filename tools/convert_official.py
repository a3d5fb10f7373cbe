"""The authors' published files → a preset: ``dawn convert`` as a script.

python tools/convert_official.py DIR -o OUT [--size 128|256] [--name NAME]
"""

from __future__ import annotations

import sys

from dawn.apps.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
