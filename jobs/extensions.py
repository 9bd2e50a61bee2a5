"""Code of one's own in a setting: `module:name` or `file.py:name` instead of a form or a field that ships.

Only the process that runs the job imports such code; a shared prior is sent the function itself, so it needs no restart and no
copy of the file. The source's sha256 is in the manifest, and a job that was begun with other code is not continued.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from diffusion.distillation import Denoised, Distilled
from diffusion.errors import DiffusionError
from diffusion.requests import Request
from jobs.errors import DreamKilnError, InputError
from nerf3d.fields import Field, FieldConfig

__all__ = ["absolute_name", "code_hashes", "is_extension", "load_extension", "name_of", "own_field", "own_form"]


def is_extension(name: str) -> bool:
    """Whether a setting names code of one's own rather than something that ships."""
    return ":" in name


def load_extension(name: str) -> Callable[..., Any]:
    """What `module:name` or `file.py:name` names.

    Raises:
        InputError: there is no such file, module or name in it, it cannot be imported, or what it names cannot be called.
    """
    place, attribute = _split(name)
    try:
        module = _file_module(_file(place)) if place.endswith(".py") else importlib.import_module(place)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        if error.name and place.startswith(error.name):
            raise InputError(
                f"There is no module {place!r} for {name!r}; install it, or give the file: {place}.py:{attribute}."
            ) from error
        raise InputError(blame(name, error)) from error
    except Exception as error:
        raise InputError(blame(name, error)) from error
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        what = "has no such name" if found is None else f"has a {type(found).__name__} there"
        raise InputError(f"{name!r} names a function or class of one's own, but {place} {what}; give one that can be called.")
    return found


def own_form(name: str) -> Any:
    """A form of score distillation that is code of one's own, loaded and guarded; the name itself where it ships.

    Raises:
        InputError: as `load_extension`; and from the form, for whatever that raises or returns instead of an answer.
    """
    if not is_extension(name):
        return name
    form = load_extension(name)

    @functools.wraps(form)
    def guarded(step: Denoised) -> Generator[Request, Any, Distilled]:
        try:
            answer = form(step)
            if isinstance(answer, Generator):
                answer = yield from answer
        except (DreamKilnError, DiffusionError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(blame(name, error)) from error
        if not isinstance(answer, Distilled):
            raise InputError(f"{name!r} returned a {type(answer).__name__}; a form returns a Distilled with the gradient.")
        return answer

    return guarded


def own_field(name: str) -> Callable[..., Any]:
    """A field that is code of one's own, whose errors are named as its own."""
    make = load_extension(name)

    def guarded(config: FieldConfig, *, seed: int) -> Field:
        try:
            field = make(config, seed=seed)
        except Exception as error:
            raise InputError(blame(name, error)) from error
        if not isinstance(field, Field):
            raise InputError(f"{name!r} made a {type(field).__name__}; a field is a subclass of nerf3d.fields.Field.")
        return field

    return guarded


def code_hashes(*names: str) -> dict[str, str]:
    """Name -> `source_hash` of those that are code of one's own."""
    return {name: source_hash(name) for name in names if is_extension(name)}


def name_of(thing: str | Callable[..., Any]) -> str:
    """The name under which another process finds a function or class: its file's, or its module's if that is installed.

    Raises:
        InputError: it stands in no file, or inside another function.
    """
    if isinstance(thing, str):
        return absolute_name(thing)
    module, attribute = thing.__module__, thing.__qualname__
    try:
        file = Path(inspect.getsourcefile(thing) or "").absolute()
    except TypeError:
        file = Path()
    if "<" in attribute or file.suffix != ".py":
        raise InputError(f"{attribute} cannot be found again by another process; define it at the top of a file or a module.")
    is_installed = module != "__main__" and "site-packages" in file.parts
    return f"{module}:{attribute}" if is_installed else f"{file}:{attribute}"


def absolute_name(name: str) -> str:
    """The same code, named so that it is found from every folder: a module beside the command becomes its file."""
    if not is_extension(name):
        return name
    place, attribute = _split(name)
    file = Path(place) if place.endswith(".py") else Path(f"{place.replace('.', '/')}.py")
    return f"{file.expanduser().absolute()}:{attribute}" if place.endswith(".py") or file.is_file() else name


def source_hash(name: str) -> str:
    """sha256 (hex) of the source that a name's code stands in. Raises InputError as `load_extension`."""
    place, _ = _split(name)
    if place.endswith(".py"):
        return hashlib.sha256(_file(place).read_bytes()).hexdigest()
    return hashlib.sha256(inspect.getsource(inspect.getmodule(load_extension(name)) or sys).encode()).hexdigest()


def blame(name: str, error: BaseException) -> str:
    """One sentence about an error in code of one's own, with the last line of that code that ran."""
    place, _ = _split(name)
    stem = Path(place).name if place.endswith(".py") else f"{place.rpartition('.')[2]}.py"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == stem]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    where = f" in line {lines[-1]}" if lines else ""
    return f"{name!r} failed{where} ({type(error).__name__}: {error}); mend it, and begin again in a new --out."


def _split(name: str) -> tuple[str, str]:
    place, _, attribute = name.rpartition(":")
    if not place or not all(part.isidentifier() for part in attribute.split(".")):
        raise InputError(f"{name!r} names no code; write module:name or file.py:name.")
    return place, attribute


def _file(place: str) -> Path:
    file = Path(place)
    if not file.is_file():
        raise InputError(f"There is no file {place}; give the place of the code as file.py:name, or install it as a module.")
    return file


def _file_module(file: Path) -> ModuleType:
    """The file as a module; one that has changed since is another module."""
    name = f"dreamkiln_extension_{hashlib.sha256(str(file.absolute()).encode() + file.read_bytes()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if str(file.absolute().parent) not in sys.path:
        sys.path.append(str(file.absolute().parent))  # behind everything else: its neighbours, if it imports any
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
