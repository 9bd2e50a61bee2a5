"""What travels between a prior's actor and its clients: messages whose tensors are arrays, and errors as values."""

from __future__ import annotations

import dataclasses
import inspect
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jobs.errors import DreamKilnError, UnexpectedError

__all__ = ["Raised", "Wire"]


class Raised:
    """An exception on its way between actors: the exception itself if it is ours, otherwise its words."""

    def __init__(self, error: BaseException) -> None:
        if isinstance(error, DreamKilnError):
            self.error: DreamKilnError = error
        else:
            self.error = UnexpectedError(f"{type(error).__name__}: {error}")
        self.error.add_note("".join(traceback.format_exception(error)))
        self.notes = self.error.__notes__

    def reraise(self) -> None:
        """Raise it here, with the other side's traceback as a note."""
        self.error.__notes__ = self.notes
        raise self.error


class Wire:
    """A dataclass whose tensors travel as arrays: torch's own pickling takes a quarter longer.

    Functions in it travel whole, so that the other side needs no copy of the file they stand in.
    """

    def __init__(self, message: Any) -> None:
        self._kind = type(message)
        values = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
        for function in filter(callable, values.values()):
            _ship_module_of(function)
        self._tensors = {name: value.cpu().numpy() for name, value in values.items() if isinstance(value, Tensor)}
        self._rest = {name: value for name, value in values.items() if name not in self._tensors}

    def open(self) -> Any:
        """The message again; its tensors are copies, because what Ray hands out is read-only."""
        return self._kind(**self._rest, **{name: torch.from_numpy(array.copy()) for name, array in self._tensors.items()})


def _ship_module_of(function: Callable[..., Any]) -> None:
    from ray import cloudpickle

    if (module := inspect.getmodule(inspect.unwrap(function))) is not None:
        cloudpickle.register_pickle_by_value(module)
