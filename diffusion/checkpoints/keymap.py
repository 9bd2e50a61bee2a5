"""Key maps: one published layout of tensor names against the names of our modules, usable in both directions.

A map is a list of `Pair`s, one a tensor of ours. It is built from a declarative table of module names and the state dict
that the module has (on the meta device), so no key can be forgotten, and checks a file's keys in the file's own names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffusion.checkpoints.errors import PriorError

Form = Literal["same", "matrix", "transposed", "swapped"]


@dataclass(frozen=True)
class Pair:
    """One tensor of ours and where a file has it.

    Args:
        ours: its name in our state dict.
        theirs: its name in the file; several are stacked along the first dimension in ours (q, k and v in one).
        form: "matrix" where the file has a 1x1 convolution (O, I, 1, 1) and we a matrix (O, I); "transposed" where the
            file has the transpose; "swapped" where the file has the second half before the first.
    """

    ours: str
    theirs: tuple[str, ...]
    form: Form = "same"

    def to_published(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Views of our tensor in the file's shapes, one for each of its names; copies where halves are swapped."""
        match self.form:
            case "matrix":
                tensor = tensor[:, :, None, None]
            case "transposed":
                tensor = tensor.T
            case "swapped":
                tensor = torch.cat(tensor.chunk(2)[::-1])
        return tensor.chunk(len(self.theirs))

    def to_ours(self, tensors: list[Tensor]) -> Tensor:
        """The file's tensors in our shape."""
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        match self.form:
            case "matrix":
                return tensor.flatten(1)
            case "transposed":
                return tensor.T
            case "swapped":
                return torch.cat(tensor.chunk(2)[::-1])
        return tensor


@dataclass(frozen=True)
class KeyMap:
    """A published layout against our state dict.

    Args:
        pairs: every tensor of ours, once.
        ignored: names that files of this layout may hold beside them and that carry no weights, such as `position_ids`.
        renamed: (regular expression, replacement) from other spellings that files have to that of `pairs`.
        transposed: another name that files have -> the name of `pairs` of which it holds the transpose.
    """

    pairs: tuple[Pair, ...]
    ignored: frozenset[str] = frozenset()
    renamed: tuple[tuple[str, str], ...] = ()
    transposed: Mapping[str, str] = field(default_factory=dict)

    def to_published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under the published names; views, so that writing into them changes ours."""
        return {
            name: part
            for pair in self.pairs
            for name, part in zip(pair.theirs, pair.to_published(tensors[pair.ours]), strict=True)
        }

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published tensors under our names; they must be complete, see `check`."""
        return {pair.ours: pair.to_ours([tensors[name] for name in pair.theirs]) for pair in self.pairs}

    def read(
        self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], source: Path, *, prefix: str = ""
    ) -> dict[str, Tensor]:
        """`to_ours` after a check of every name and shape.

        Args:
            tensors: of a file, without `prefix`. like: our state dict, for the shapes; it may be on the meta device.
            source: the file or folder, prefix: what its names begin with; both for the message.

        Raises:
            PriorError: missing, unexpected or mis-shaped keys, by the file's own names.
        """
        known = {self._spelling(name): tensor for name, tensor in tensors.items()}
        known = {name: tensor for name, tensor in known.items() if name not in self.ignored}
        expected = self.to_published(like)
        for other, name in self.transposed.items():
            if other in known and name in expected and name not in known:
                known[name] = known.pop(other).T
        known = {name: _in_form(tensor, expected.get(name)) for name, tensor in known.items()}
        check_keys(known, expected, source, prefix=prefix)
        return self.to_ours(known)

    def _spelling(self, name: str) -> str:
        for old, new in self.renamed:
            name = re.sub(old, new, name)
        return name


def _in_form(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A matrix as the 1x1 convolution that is expected, or the other way round; anything else as it is."""
    if like is None or tensor.shape == like.shape or {tensor.ndim, like.ndim} != {2, 4} or tensor.shape[:2] != like.shape[:2]:
        return tensor
    return tensor.reshape(like.shape) if tensor.numel() == like.numel() else tensor


def check_keys(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path, *, prefix: str = "") -> None:
    """Compares the names and shapes of a file's tensors with those that a network expects.

    Raises:
        PriorError: naming up to three misfits.
    """
    problems = [f"missing {prefix}{name} {tuple(tensor.shape)}" for name, tensor in expected.items() if name not in given]
    problems += [f"unexpected {prefix}{name}" for name in given if name not in expected]
    problems += [
        f"{prefix}{name} is {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        where = f"{source} do not fit its config.json" if source.is_dir() else f"{source} do not fit the model"
        raise PriorError(f"the weights in {where}: {'; '.join(problems[:3])}{more}; take all files from the same model")


def module_pairs(table: Mapping[str, str], keys: Iterable[str]) -> list[Pair]:
    """One pair for each of our keys: the longest module name of the table (ours -> theirs) that begins it is replaced.

    Raises:
        KeyError: a key under no module of the table.
    """
    pairs = []
    for key in keys:
        parts = key.split(".")
        ours = next(
            (head for head in (".".join(parts[:n]) for n in range(len(parts), 0, -1)) if head in table),
            None,
        )
        if ours is None:
            raise KeyError(f"no module of the table holds {key}")
        pairs.append(Pair(key, (table[ours] + key[len(ours) :],)))
    return pairs


def identity(
    keys: Iterable[str], *, ignored: frozenset[str] = frozenset(), renamed: tuple[tuple[str, str], ...] = ()
) -> KeyMap:
    """A layout with our own names; see `KeyMap`."""
    return KeyMap(tuple(Pair(key, (key,)) for key in keys), ignored, renamed)
