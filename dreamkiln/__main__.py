"""Where the command `dreamkiln` begins; `python -m dreamkiln` is the same."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns its exit code."""
    from orchestrator.cli.__main__ import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
