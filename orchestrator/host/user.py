"""Who runs this."""

from __future__ import annotations

import getpass
import os

__all__ = ["user_name"]


def user_name() -> str:
    """The user's name; the number where it has no name, as in a container with a user of its own."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid-{os.getuid()}"
