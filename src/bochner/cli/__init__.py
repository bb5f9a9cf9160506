"""The command line: parsing and printing only."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `bochner`; says what to install if the command line's libraries are missing."""
    try:
        from bochner.cli.commands import bochner
    except ImportError as error:
        print(
            f'the command line needs click and rich: pip install "bochner[cli]" ({error})',
            file=sys.stderr,
        )
        sys.exit(2)
    bochner()
