"""Where the command `dreamkiln` begins; `python -m dreamkiln` is the same."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    from orchestrator.cli.__main__ import main as command

    command()


if __name__ == "__main__":
    main()
