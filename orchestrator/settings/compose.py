"""Hydra's configuration groups and `key=value` overrides, turned into typed settings. `sweep` alone imports hydra besides."""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion.checkpoints.defaults import Defaults, defaults_of
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.source import Source
from diffusion.distillation import DistillationConfig
from jobs import codec
from jobs.errors import InputError
from jobs.specs import ImagesSpec, TextTo3DSpec, find_embeddings, find_loras
from jobs.texture.spec import TextureSpec
from nerf3d.fields import FieldConfig
from nerf3d.fit import PRESETS, FitConfig
from nerf3d.mesh import MeshConfig
from nerf3d.surface import PaintConfig
from orchestrator.settings.groups import ExportSettings, PriorSettings, RuntimeSettings
from orchestrator.settings.recipes import RECIPES, recipe_values

__all__ = ["Settings", "choices", "compose", "setting_names"]

P = ParamSpec("P")
R = TypeVar("R")
CONFIG_FOLDER = Path(__file__).parent / "config"
NOT_IMAGES_SETTINGS = ("prompt", "seed", "prior", "strict", "init_image", "mask", "loras", "embeddings")
_OVERRIDE = re.compile(r"(?P<sign>[+~]*)(?P<key>[A-Za-z_][\w./@]*)(=(?P<value>.*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a verb was configured with.

    Args:
        origins: dotted key -> where a value that the prior brought comes from.
        recipe: the name of the 3D recipe, see `orchestrator.settings.recipes`.
    """

    prior: PriorSettings
    fit: FitConfig
    distillation: DistillationConfig
    mesh: MeshConfig
    texture: PaintConfig
    images: Mapping[str, Any]
    export: ExportSettings
    runtime: RuntimeSettings
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    recipe: str = "toybox"

    @functools.cached_property
    def prior_of_job(self) -> dict[str, Any]:
        """What specs say of the prior: source, strictness, adapters, each hashed once. Raises InputError for a missing one."""
        adapters = {"loras": find_loras(self.prior.loras), "embeddings": find_embeddings(self.prior.embeddings)}
        return {"prior": self.prior.source, "strict": self.prior.strict, **adapters}

    def text_to_3d(self, prompt: str, *, seed: int) -> TextTo3DSpec:
        """The spec of one 3D job."""
        return TextTo3DSpec(
            prompt=prompt,
            seed=seed,
            **self.prior_of_job,
            recipe=self.recipe,
            formats=self.export.formats,
            clip=self.prior.clip,
            fit=self.fit,
            distillation=self.distillation,
            mesh=self.mesh,
        )

    def image_job(self, prompt: str, *, seed: int, **pictures: str | None) -> ImagesSpec:
        """The spec of one image job. pictures: its fields `init_image` and `mask`, if it edits one."""
        fields = {"prompt": prompt, "seed": seed, **self.prior_of_job, **self.images, **pictures}
        return codec.from_plain(ImagesSpec, fields, path="images")

    def texture_job(self, prompt: str, *, seed: int, mesh_sha256: str, up: str) -> TextureSpec:
        """The spec of one texture job. mesh_sha256, up: of the mesh's file."""
        return TextureSpec(
            prompt=prompt,
            mesh_sha256=mesh_sha256,
            up=up,
            seed=seed,
            **self.prior_of_job,
            formats=self.export.formats,
            texture=self.texture,
            distillation=self.distillation,
        )

    def tables(self) -> dict[str, tuple[type, dict[str, Any]]]:
        """Group -> the class whose docstring explains its settings, and their plain values."""
        fit = codec.to_plain(self.fit)
        return {
            "prior": (PriorSettings, codec.to_plain(self.prior)),
            "field": (FieldConfig, fit.pop("field")),
            "fit": (FitConfig, fit),
            "distillation": (DistillationConfig, codec.to_plain(self.distillation)),
            "mesh": (MeshConfig, codec.to_plain(self.mesh)),
            "texture": (PaintConfig, codec.to_plain(self.texture)),
            "images": (ImagesSpec, dict(self.images)),
            "export": (ExportSettings, codec.to_plain(self.export)),
            "runtime": (RuntimeSettings, codec.to_plain(self.runtime)),
        }


OPTIONS = ("seed", "out", "prompts", "format", "user", "priority", "key", "state", "best_of", "metric", "json", "local")
"""Of the verbs that make something: what nobody needs to know to be no setting."""


_hydra = threading.RLock()
"""Hydra keeps one state for the whole process."""


def _one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def alone(*arguments: P.args, **named: P.kwargs) -> R:
        with _hydra:
            return function(*arguments, **named)

    return alone


@_one_at_a_time
def setting_names() -> list[str]:
    """Dotted names of everything that can be set."""
    _register()
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3", job_name="dreamkiln"):
        return list(_leaves(_plain([])))


@_one_at_a_time
def compose(overrides: Sequence[str] = (), *, options: Mapping[str, Any] | None = None) -> Settings:
    """The settings after the groups, the preset, the user's overrides and, last, the command's own options.

    Args:
        overrides: Hydra overrides, `group=choice` or `group.key=value`.
        options: dotted key -> value, set as they are, without Hydra's grammar (a path may hold any character). None
            values are skipped. The key "preset" or a group's name chooses.

    Raises:
        InputError: an override that is not one, an unknown key or choice (named, with near matches), or a bad value.
    """
    given = {key: value for key, value in (options or {}).items() if value is not None}
    every = [*(f"{key}={value}" for key, value in given.items() if "." not in key), *overrides]
    chosen = dict(override.split("=", 1) for override in every if override.startswith(("recipe=", "preset=")))
    tree = _compose_tree([override for override in every if not override.startswith("recipe=")], checked=every)
    told = {*given, *(override.partition("=")[0] for override in overrides)}
    defaults = _defaults_of(str(given.get("prior.source", tree["prior"]["source"])))
    preset = chosen.get("preset", "default")
    recipe = chosen.get("recipe") or RECIPES[defaults.recipe].fine * (preset == "fine") or defaults.recipe
    origins = {**_take_defaults_of_prior(tree, defaults, told), **_take_recipe(tree, recipe, defaults, preset, told)}
    for key, value in given.items():
        if "." in key:
            group, name = key.split(".", 1)
            tree[group][name] = value
    return _typed(tree, {**origins, **_take_rates_of_field(tree, told)}, recipe)


def _defaults_of(source: str) -> Defaults:
    """Of a prior. Raises InputError where it names a recipe that there is not."""
    try:
        defaults = defaults_of(Source.parse(source))
    except PriorError:
        return Defaults()  # the prior is refused with a sentence of its own
    if defaults.recipe not in RECIPES:
        raise InputError(
            f"The prior {source} names the recipe {defaults.recipe!r} in its dreamkiln.json; there are: {', '.join(RECIPES)}."
        )
    return defaults


def _take_recipe(tree: dict[str, Any], recipe: str, defaults: Defaults, preset: str, told: Set[str]) -> dict[str, str]:
    """Put a recipe's values where the user chose no others, and show the prior pictures of its own size.

    Returns:
        Dotted key -> where its value comes from.
    """
    origins = {}
    for key, value, origin in recipe_values(recipe, preset=preset, told=told):
        group, name = key.split(".")
        if isinstance(value, Mapping):
            value = {inner: tree[group][name][inner] if f"{key}.{inner}" in told else value[inner] for inner in value}
        tree[group][name], origins[key] = value, origin
    if defaults.image_size is not None and "fit.guide_size" not in told:
        tree["fit"]["guide_size"], origins["fit.guide_size"] = defaults.image_size, "the prior's own size"
    return origins


def _take_rates_of_field(tree: dict[str, Any], told: Set[str]) -> dict[str, str]:
    """Put the learning rates that `FitConfig.preset` gives the field where nobody chose others; see there why.

    Returns:
        Dotted key -> where its value comes from.
    """
    if tree["field"]["kind"] != "hash_grid":
        return {}
    usual, own = FitConfig(), FitConfig.preset("default", field=FieldConfig(kind="hash_grid"))
    origins = {}
    for name in ("density_rate", "colour_rate"):
        if f"fit.{name}" not in told and tree["fit"][name] == getattr(usual, name):
            tree["fit"][name], origins[f"fit.{name}"] = getattr(own, name), "the hash grid's own rate"
    return origins


def _take_defaults_of_prior(tree: dict[str, Any], defaults: Defaults, told: Set[str]) -> dict[str, str]:
    """Put the values that a prior's owners expect where nobody chose another: none of the toybox's reaches another prior.

    Args:
        told: the dotted keys that the user has set.

    Returns:
        Dotted key -> where its value comes from.
    """
    ours = codec.to_plain(ImagesSpec(prompt="any"))
    origins = {}
    for name, value in defaults.values.items():
        if f"images.{name}" not in told and tree["images"][name] == ours[name]:
            tree["images"][name], origins[f"images.{name}"] = value, defaults.origins[name]
    if defaults.family:
        layer = f"prompts are read from the text towers' {defaults.clip_layer} layer, unless ?clip_skip= says otherwise"
        origins["prior.source"] = f"{defaults.family}; {layer}"
    if defaults.family and defaults.image_size is not None:
        sides = [side for side in ("images.width", "images.height") if side not in told]
        origins |= dict.fromkeys(sides, f"the prior's own {defaults.image_size} pixels")
    return origins


def choices() -> dict[str, list[str]]:
    """Group -> the names that `group=name` takes."""
    groups = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in CONFIG_FOLDER.iterdir()}
    return {name: names for name, names in sorted(groups.items()) if names} | {"fit": list(PRESETS), "recipe": list(RECIPES)}


def _compose_tree(overrides: Sequence[str], *, checked: Sequence[str]) -> dict[str, Any]:
    _register()
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3", job_name="dreamkiln"):
        if checked:
            reference = _plain([])
            for override in checked:
                _check_override(override, reference)
        try:
            return _plain(overrides)
        except (HydraException, OmegaConfBaseException) as error:
            sentence = " ".join(str(error).split("\n")[0].split())
            raise InputError(f"The settings {' '.join(overrides)!r} could not be read: {sentence}.") from error


def _plain(overrides: Sequence[str]) -> dict[str, Any]:
    return OmegaConf.to_container(hydra_compose("config", overrides=list(overrides)), resolve=True)  # type: ignore


def _register() -> None:
    """Hands Hydra every default, read from the dataclasses that own them."""
    store = ConfigStore.instance()
    images = {k: v for k, v in codec.to_plain(ImagesSpec(prompt="any")).items() if k not in NOT_IMAGES_SETTINGS}
    base = {
        "prior": codec.to_plain(PriorSettings()),
        "field": codec.to_plain(FieldConfig()),
        "distillation": codec.to_plain(DistillationConfig()),
        "mesh": codec.to_plain(MeshConfig()),
        "texture": codec.to_plain(PaintConfig()),
        "images": images,
        "export": codec.to_plain(ExportSettings()),
        "runtime": codec.to_plain(RuntimeSettings()),
    }
    store.store(name="base", node=base)
    for name in PRESETS:
        node = codec.to_plain(FitConfig.preset(name))
        node.pop("field")  # a group of its own
        store.store(group="fit", name=name, node=node)


def _typed(tree: Mapping[str, Any], origins: Mapping[str, str], recipe: str) -> Settings:
    field = codec.from_plain(FieldConfig, tree["field"], path="field")
    fit = codec.from_plain(FitConfig, {**tree["fit"], "field": field}, path="fit")
    images = dict(tree["images"])
    codec.from_plain(ImagesSpec, {"prompt": "any", **images}, path="images")
    return Settings(
        prior=codec.from_plain(PriorSettings, tree["prior"], path="prior"),
        fit=fit,
        distillation=codec.from_plain(DistillationConfig, tree["distillation"], path="distillation"),
        mesh=codec.from_plain(MeshConfig, tree["mesh"], path="mesh"),
        texture=codec.from_plain(PaintConfig, tree["texture"], path="texture"),
        images=images,
        export=codec.from_plain(ExportSettings, tree["export"], path="export"),
        runtime=codec.from_plain(RuntimeSettings, tree["runtime"], path="runtime"),
        origins=origins,
        recipe=recipe,
    )


def _check_override(override: str, reference: Mapping[str, Any]) -> None:
    """Refuse, in one sentence, what Hydra would explain in a screenful."""
    match = _OVERRIDE.fullmatch(override)
    if match is None or match["value"] is None:
        raise InputError(
            f"{override!r} is neither an option nor a setting such as fit.num_steps=200; if it belongs to the prompt, "
            "put the whole prompt in quotes."
        )
    key, value = match["key"], match["value"]
    if match["sign"]:
        raise InputError(f"{override!r} would add or remove a setting; only existing ones can be changed: {key}=….")
    if "." not in key:
        _check_choice(key, value, reference)
    elif key not in (names := list(_leaves(reference))):
        table = reference.get(key.split(".")[0])
        where, known = (key.split(".")[0], table) if isinstance(table, Mapping) else ("the configuration", reference)
        hint = codec.near_matches(key, names)
        raise InputError(f"There is no setting {key!r}{hint}; {where} has: {', '.join(known)}.")


def _check_choice(group: str, value: str, reference: Mapping[str, Any]) -> None:
    groups = choices()
    if group not in groups and isinstance(reference.get(group), Mapping):
        settings = ", ".join(f"{group}.{name}" for name in reference[group])
        raise InputError(f"{group} has no variants to choose from, so {group}={value} sets nothing; it has: {settings}.")
    if group not in groups and group in OPTIONS:
        raise InputError(f"{group} is no setting but an option: --{group.replace('_', '-')} {value}.")
    if group not in groups:
        known = sorted({*groups, *_leaves(reference)})
        raise InputError(f"There is no setting {group!r}{codec.near_matches(group, known)}; groups: {', '.join(groups)}.")
    if value not in groups[group]:
        hint = codec.near_matches(value, groups[group])
        raise InputError(f"There is no {group} {value!r}{hint}; choose one of {', '.join(groups[group])}.")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of everything that can be set, tables included."""
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
