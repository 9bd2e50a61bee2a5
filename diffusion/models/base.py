"""What every model of the family is: a network with its objective and its way to draw samples.

A file of this folder is one model of one paper. Training, files and the command line know this class alone.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from diffusion.errors import DiffusionError
from diffusion.networks.build import network_config_for


@dataclass(frozen=True, eq=False)
class Batch:
    """Training data.

    Args:
        x: (B, C, H, W) in [-1, 1], or (B, D) for points.
        labels: (B,) int64 in [0, num_classes).
        captions: B strings.
    """

    x: Tensor
    labels: Tensor | None = None
    captions: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class SampleRequest:
    """One sample a seed, each from its own random stream (seed, ...): it never depends on its neighbours.

    Args:
        seeds: B integers.
        sampler: a name; None for the paper's own.
        num_steps: network calls, or Langevin levels; None for the paper's own.
        labels, prompts: one a seed, for models that are conditioned on them.
        guidance_scale: s in uncond + s (cond - uncond).
        options: of one model or sampler, such as {"eta": 1.0}.

    Raises:
        DiffusionError: no seed, or as many labels or prompts as there are not seeds.
    """

    seeds: tuple[int, ...]
    sampler: str | None = None
    num_steps: int | None = None
    labels: tuple[int, ...] | None = None
    prompts: tuple[str, ...] | None = None
    guidance_scale: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise DiffusionError.explained("there are no seeds", expected="one a sample", fix="give at least one")
        for name in ("labels", "prompts"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.seeds):
                raise DiffusionError.explained(
                    f"there are {len(given)} {name} for {len(self.seeds)} seeds", expected="one a seed", fix="repeat them"
                )

    def options_over(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The options, with `defaults` where they are silent.

        Raises:
            DiffusionError: an option that `defaults` does not have, or a value of another type than its default.
        """
        for key, value in self.options.items():
            if key not in defaults:
                raise DiffusionError.explained(
                    f"there is no option {key!r}", expected=_one_of(defaults, "no options at all"), fix="use one of these"
                )
            wanted = type(defaults[key])
            fits = isinstance(value, (int, float) if wanted is float else wanted)
            if defaults[key] is not None and (not fits or isinstance(value, bool) != (wanted is bool)):
                raise DiffusionError.explained(
                    f"the option {key!r} is {value!r}",
                    expected=f"a value like its default, {defaults[key]!r}",
                    fix="write it like that",
                )
        return {**defaults, **self.options}


class Model(nn.Module, ABC):
    """A model in training or in use.

    `Config` is a frozen dataclass of JSON values. Its field `network`, where there is one, is a
    `diffusion.networks.build.NetworkConfig` and says what the samples are: pictures (C, H, W) or points (D,).
    """

    name: ClassVar[str]
    """As on the command line."""

    Config: ClassVar[type]

    draws: ClassVar[bool] = True
    """False for those that guide others and draw nothing by themselves."""

    loop_settings: ClassVar[Mapping[str, Any]] = {}
    """Fields of `diffusion.training.loop.LoopConfig` in which this model's training differs from the common default."""

    preview: ClassVar[Mapping[str, Any]] = {}
    """Arguments of `SampleRequest` for the pictures that a training shows: quicker than the paper's own sampling."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The scalar to minimise, and figures to report; all randomness comes from `generator`, a CPU generator."""

    @abstractmethod
    def sample(self, request: SampleRequest) -> Tensor:
        """(B, C, H, W) in [-1, 1] or (B, D), float32, without gradient.

        Raises:
            DiffusionError: an unknown sampler or option, more steps than the schedule has, or a condition that the
                model does not take.
        """

    @classmethod
    def default_config(cls, shape: tuple[int, ...], num_classes: int | None) -> Any:
        """The configuration that trains on data of that shape, before the user's own settings.

        Args:
            shape: (C, H, W) or (D,) of one item.
            num_classes: how many labels the data has, for models that cannot do without them; here unused.
        """
        config = cls.Config()
        if not hasattr(config, "network"):
            return config
        return replace(config, network=network_config_for(shape, config.network))

    @property
    def condition(self) -> Literal["labels", "captions"] | None:
        """What a sample may be conditioned on: labels, where the network has classes."""
        network = getattr(self.config, "network", None)
        return None if getattr(network, "num_classes", None) is None else "labels"

    def preview_request(self, batch: Batch) -> Mapping[str, Any]:
        """`preview`, or what depends on the data of the pictures that are shown, one a sample."""
        return self.preview

    def start_from(self, trained: "Model") -> None:
        """Takes the weights of a trained model, of the same kind and sizes, as the beginning of training.

        Raises:
            DiffusionError: they do not fit.
        """
        self.take_weights(trained, trained.state_dict())

    def take_weights(self, trained: "Model", weights: Mapping[str, Tensor]) -> None:
        """Loads weights that come from `trained`.

        Raises:
            DiffusionError: they do not fit; it names the settings in which the two networks differ.
        """
        ours, theirs = ({name: tuple(value.shape) for name, value in w.items()} for w in (self.state_dict(), weights))
        misfits = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if not misfits:
            self.load_state_dict(weights)
            return
        networks = (getattr(model.config, "network", None) for model in (trained, self))
        found, expected = _differing_settings(*networks)
        if not found:
            found, expected = f"{misfits[0]} is {theirs.get(misfits[0], 'missing')}", f"{ours.get(misfits[0], 'none')}"
        raise DiffusionError.explained(
            f"the weights of the {trained.name} do not fit: its {found}",
            expected=f"{expected}, as in this {self.name}",
            fix="give both the same network.… settings",
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) or (D,) of one sample."""
        return self.config.network.shape

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


def described(value: Any) -> str:
    """What was given for an option that should be a model: a text as it is, else its type."""
    return repr(value) if isinstance(value, str) else f"a {type(value).__name__}"


def pictures_for(value: Any, shape: tuple[int, ...], count: int, *, option: str) -> Tensor:
    """An option that is a picture for each sample, or one for all of them, as (B, C, H, W); points (D,) as (B, D).

    Args:
        value: (B or 1, C, H, W) or (C, H, W). shape: the (C, H, W) that it must have. count: B.

    Raises:
        DiffusionError: not a tensor, or of another shape.
    """
    given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    dims = len(shape)
    if not isinstance(value, Tensor) or value.ndim not in (dims, dims + 1) or value.shape[-dims:] != torch.Size(shape):
        raise DiffusionError.explained(
            f"options.{option} is {given}", expected=f"a picture {shape} or one for each sample", fix="resize it to that"
        )
    pictures = value[None] if value.ndim == dims else value
    if len(pictures) not in (1, count):
        raise DiffusionError.explained(
            f"options.{option} has {len(pictures)} pictures for {count} samples",
            expected="one, or one a sample",
            fix="repeat it",
        )
    return pictures.float().expand(count, *shape)


def _differing_settings(theirs: Any, ours: Any) -> tuple[str, str]:
    """The settings "network.NAME=VALUE" in which the weights of two networks of one kind differ, of each; else nothing."""
    if theirs is None or type(theirs) is not type(ours):
        return "", ""
    names = [field.name for field in fields(theirs) if field.name != "sample_size"]
    differing = [name for name in names if getattr(theirs, name) != getattr(ours, name)]
    written = [", ".join(f"network.{name}={json.dumps(getattr(one, name))}" for name in differing) for one in (theirs, ours)]
    return written[0], written[1]


def _one_of(names: Mapping[str, Any], none: str) -> str:
    return "one of " + ", ".join(map(repr, names)) if names else none
