"""How each family of priors is distilled into an object: whole recipes, each with where its numbers come from.

A family's recipe is chosen by the prior (`diffusion.checkpoints.defaults`) or by `recipe=NAME`. What the user sets counts more,
and a group chosen by name, such as `distillation=x0` or `field=dense_pyramid`, takes the place of the recipe's part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

__all__ = ["RECIPES", "Recipe", "recipe_values"]

DRAFT_SHARE = 0.4
"""Of a recipe's steps that preset=draft takes, as the toybox's draft takes of its default."""


@dataclass(frozen=True)
class Recipe:
    """Values by dotted setting, and the source that they were taken from. fine: the recipe that preset=fine takes instead."""

    source: str
    values: Mapping[str, Any]
    fine: str = ""


def _schedule(start: float, end: float | None = None, begin: float = 0.0, until: float = 1.0) -> dict[str, float | None]:
    return {"start": start, "end": end, "begin": begin, "until": until}


_NO_OTHER_TERMS = {
    f"fit.{term}": _schedule(0.0)
    for term in ("opaqueness", "background", "depth_variance", "density_variation", "colour_variation", "outer_density")
}
# threestudio's blob_magic3d, 10 (1 - |x| / 0.5), is -10 + 20 (1 - |x|) within our sphere of 1.
_FIELD = {
    "field.kind": "hash_grid",
    "field.density_scale": 1.0,
    "field.density_bias": -10.0,
    "field.blob_scale": 20.0,
    "field.blob_radius": 1.0,
    "field.num_levels": 16,
    "field.features_per_level": 2,
    "field.log2_table_size": 19,
    "field.base_resolution": 16,
    "field.finest_resolution": 4096,
    "field.hidden_width": 64,
    "fit.density_rate": 0.01,
    "fit.colour_rate": 0.01,
}
# What grows with a fit's length is given in steps there, and in shares of the fit here.
_STEPS = 10_000


def _dreamfusion(num_steps: int) -> dict[str, Any]:
    """The published numbers, for a fit that goes on for so many steps."""
    return {
        **_FIELD,
        **_NO_OTHER_TERMS,
        "fit.num_steps": num_steps,
        "fit.num_views": 1,
        "fit.render_sizes": [[0.0, 64]],
        "fit.guide_size": 512,
        "fit.num_samples": 512,
        "fit.elevations": [-10.0, 45.0, 45.0],
        "fit.low_view_share": 1.0,
        "fit.sphere_share": 0.5,
        "fit.radius": 1.75,
        "fit.radius_range": [1.5, 2.0],
        "fit.fov_degrees": 55.0,
        "fit.fov_range": [40.0, 70.0],
        "fit.lit_from": 2001 / num_steps,
        "fit.lit_share": 0.75,
        "fit.textureless_share": 0.5,
        "fit.lights": "around",
        "fit.backgrounds": "learned",
        "fit.background_rate": 0.001,
        "fit.rate_decay": 1.0,
        "fit.guide_reduction": "sum",
        "fit.guide_weight": _schedule(1.0),
        "fit.sparsity": _schedule(1.0),
        "fit.orientation": _schedule(10.0, 1000.0, 0.0, 5000 / num_steps),
        "fit.occupancy_resolution": 32,
        "fit.occupancy_every": 16,
        "fit.occupancy_threshold": 0.01,
        "distillation.form": "sds",
        "distillation.weighting": "sigma2",
        "distillation.guidance_scale": 101.0,
        "distillation.guidance_rescale": 0.0,
        "distillation.negative_prompt": "",
        "distillation.t_min": 0.02,
        "distillation.t_max_start": 0.98,
        "distillation.t_max_end": 0.98,
        "distillation.view_words": "four",
        "distillation.front_degrees": 45.0,
        "distillation.back_degrees": 45.0,
        "distillation.overhead_degrees": 60.0,
    }


_SECOND_STAGE = 5_000
_MVDREAM = {
    **_dreamfusion(_STEPS),
    "fit.num_views": 8,
    "fit.render_sizes": [[0.0, 64], [0.5, 256]],
    "fit.guide_size": 256,
    "fit.elevations": [0.0, 30.0, 30.0],
    "fit.sphere_share": 0.0,
    "fit.fov_degrees": 37.5,
    "fit.fov_range": [15.0, 60.0],
    "fit.radius": 2.7,
    "fit.radius_range": [0.8, 1.0],
    "fit.radius_by_fov": True,
    "fit.backgrounds": "learned",
    "distillation.form": "x0_latents",
    "distillation.weighting": "uniform",
    "distillation.guidance_scale": 50.0,
    "distillation.guidance_rescale": 0.5,
    "distillation.rescale_over": "group",
    "distillation.shared_timestep": "batch",
    "distillation.t_min_start": 0.98,
    "distillation.t_max_end": 0.5,
    "distillation.anneal_until": 0.8,
    "distillation.view_words": "none",
}

_RFDS_STEPS = 15_000
# Its loss is a mean over 16 x 64 x 64 latents, whose random weight is 1/2 in the mean, of a square without the factor 1/2.
_RFDS = {
    **_dreamfusion(_RFDS_STEPS),
    "fit.render_sizes": [[0.0, 256], [5000 / _RFDS_STEPS, 512]],
    # From 1 there; here cameras stay outside the object's sphere.
    "fit.radius": 1.275,
    "fit.radius_range": [1.05, 1.5],
    "fit.lit_share": 0.0,
    "fit.textureless_share": 0.0,
    "fit.guide_weight": _schedule(1 / (16 * 64 * 64)),
    "fit.sparsity": _schedule(0.1),
    "fit.opaqueness": _schedule(0.1),
    "fit.orientation": _schedule(0.0),
    "distillation.form": "flow",
    "distillation.weighting": "uniform",
    "distillation.guidance_scale": 100.0,
    "distillation.negative_prompt": "unrealistic, blurry, low quality, oversaturation.",
    "distillation.t_min": 0.02,
    "distillation.t_max_start": 0.7,
    "distillation.t_max_end": 0.7,
    "distillation.front_degrees": 30.0,
    "distillation.back_degrees": 30.0,
}

RECIPES: dict[str, Recipe] = {
    "toybox": Recipe("measured with the toybox prior (docs/benchmarks.md)", {}),
    "dreamfusion-sd": Recipe(
        "threestudio's configs/dreamfusion-sd.yaml, after DreamFusion (arXiv:2209.14988)",
        _dreamfusion(_STEPS),
        fine="dreamfusion-sd-refined",
    ),
    "dreamfusion-sd-refined": Recipe(
        "dreamfusion-sd, then 5,000 steps at 256 pixels with timesteps up to 0.5, as Magic3D refines (arXiv:2211.10440)",
        {
            **_dreamfusion(_STEPS + _SECOND_STAGE),
            "fit.render_sizes": [[0.0, 64], [_STEPS / (_STEPS + _SECOND_STAGE), 256]],
            "distillation.t_max_end": 0.5,
            "distillation.anneal_from": _STEPS / (_STEPS + _SECOND_STAGE),
            "distillation.anneal_until": _STEPS / (_STEPS + _SECOND_STAGE),
        },
    ),
    "rfds-sd3": Recipe("RFDS's configs/rfds_sd3.yaml, after Yang et al. (arXiv:2406.03293)", _RFDS),
    "mvdream-sd21": Recipe("MVDream-threestudio's configs/mvdream-sd21.yaml, after MVDream (arXiv:2308.16512)", _MVDREAM),
}


def recipe_values(name: str, *, preset: str, told: Set[str]) -> Iterator[tuple[str, Any, str]]:
    """(dotted setting, value, where it comes from) of a recipe, but for what the user has set.

    Args:
        preset: draft takes DRAFT_SHARE of the steps.
        told: dotted settings, and groups, that the user has chosen.
    """
    recipe = RECIPES[name]
    for key, value in recipe.values.items():
        group = "field" if key in _FIELD else key.split(".")[0]
        if key in told or group in told or (key in _FIELD and "field.kind" in told):
            continue
        if key == "fit.num_steps" and preset == "draft":
            yield key, round(value * DRAFT_SHARE), f"preset draft: two fifths of the steps of recipe {name}"
        else:
            yield key, value, f"recipe {name}"
