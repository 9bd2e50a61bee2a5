"""Drawing from a trained denoiser with any sampler of `diffusion.samplers`, one random stream a sample."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffusion.classifier_guidance import Guide
from diffusion.errors import DiffusionError
from diffusion.guidance import classifier_free
from diffusion.models.base import SampleRequest, pictures_for
from diffusion.models.noisy_classifier import classifier_guide
from diffusion.parameterisation import Prediction
from diffusion.process import Schedule
from diffusion.requests import Condition, DenoiseRequest, Guidance, run
from diffusion.samplers import SAMPLERS, Sampler
from diffusion.samplers.ddim_inversion import ddim_inversion
from diffusion.samplers.timesteps import check_sampler
from diffusion.seeding import normal_rows, sent, step_noise, stream

Predict = Callable[[Tensor, Tensor], Prediction]
"""(x_t (B, ...), t (B,) long) -> the model's guided prediction."""

CLASSIFIER_OPTIONS: Mapping[str, Any] = {"classifier": None, "classifier_scale": 1.0}
"""A `NoisyClassifier` that guides towards the request's labels, or None, and its s (2105.05233)."""

INVERSION_OPTIONS: Mapping[str, Any] = {"invert": None, "num_corrections": 0}
"""A picture (C, H, W) in [-1, 1], or one a sample, that DDIM draws again from its own noise (2010.02502 section 5.4) in the
place of random noise, or None; and `num_corrections` of `ddim_inversion`."""


def draw(
    request: SampleRequest,
    *,
    shape: tuple[int, ...],
    schedule: Schedule,
    predict: Predict,
    sampler: str,
    num_steps: int,
    device: torch.device,
    defaults: Mapping[str, Any],
    guide: Guide | None = None,
) -> Tensor:
    """Runs the request's sampler over a part of the schedule.

    Args:
        shape: (C, H, W) or (D,) of one sample.
        sampler, num_steps: the model's own, where the request names none.
        defaults: the model's own values of options: "spacing" (of the timesteps), "clip_x0" (predicted x0 is kept in
            [-1, 1]), and those of its sampler. A request may change each, and the options of the sampler that it names,
            and CLASSIFIER_OPTIONS, for its labels, and INVERSION_OPTIONS.
        guide: guidance by another network's gradient, see `diffusion.classifier_guidance.guided_by`.

    Returns:
        (B, *shape) float32. Row b depends on seeds[b] alone: its start noise is the stream (seed, "start"), the noise of
        step i the stream (seed, "noise", "step", i).

    Raises:
        DiffusionError: an unknown sampler, option or spacing; more steps than the schedule has; inversion of another
            sampler than DDIM, or of a picture of another size.
    """
    function = sampler_named(request.sampler or sampler)
    check_sampler(request.sampler or sampler, schedule)
    common = {"spacing": schedule.timestep_spacing, "clip_x0": False, **CLASSIFIER_OPTIONS, **INVERSION_OPTIONS}
    known = common | sampler_options(function)
    options = request.options_over(known | {key: value for key, value in defaults.items() if key in known})
    spacing, clip_x0 = options.pop("spacing"), options.pop("clip_x0")
    classifier, classifier_scale = (options.pop(name) for name in CLASSIFIER_OPTIONS)
    if classifier is not None:
        guide = classifier_guide(classifier, request.labels, scale=classifier_scale, schedule=schedule, device=device)
    invert, num_corrections = (options.pop(name) for name in INVERSION_OPTIONS)
    timesteps = schedule.timesteps(request.num_steps if request.num_steps is not None else num_steps, spacing=spacing)
    # A model's own conditions are inside `predict`: rows keep their order from request to request.
    chain: dict[str, Any] = {
        "schedule": schedule,
        "timesteps": timesteps,
        "condition": Condition(torch.empty(len(request.seeds), 0, 0, device=device)),
        "guidance": Guidance(scale=1.0),
    }

    def answer(asked: DenoiseRequest) -> Prediction:
        return _clipped(predict(asked.x_t, sent(asked.t, asked.x_t.device)), asked.x_t, clip_x0)

    with torch.no_grad():
        if invert is None:
            x_T = normal_rows(shape, [stream(seed, "start") for seed in request.seeds], device=device)
        else:
            if function is not SAMPLERS["ddim"]:
                raise DiffusionError.explained(
                    f"options.invert is given and the sampler is {request.sampler or sampler!r}",
                    expected="'ddim'",
                    fix="use sampler=ddim",
                    why="only its steps are run backwards",
                )
            pictures = pictures_for(invert, shape, len(request.seeds), option="invert").to(device)
            x_T = run(ddim_inversion(pictures, num_corrections=num_corrections, **chain), answer)
        sampling = function(x_T, noise=step_noise([(seed, "noise") for seed in request.seeds], shape), **chain, **options)
        if guide is not None:
            sampling = guide(sampling, timesteps, options.get("variance"))
        return run(sampling, answer)


def sampler_named(name: str) -> Sampler:
    """A sampler of the registry.

    Raises:
        DiffusionError: there is none of that name.
    """
    if name not in SAMPLERS:
        raise DiffusionError.explained(
            f"there is no sampler {name!r}", expected="one of " + ", ".join(map(repr, SAMPLERS)), fix="use one of these"
        )
    return SAMPLERS[name]


def sampler_options(sampler: Sampler) -> dict[str, Any]:
    """What a sampler takes beyond the common signature, with its defaults: {"eta": 0.0} of DDIM."""
    parameters = inspect.signature(sampler).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "noise"}


def request_labels(request: SampleRequest, num_classes: int | None, device: torch.device) -> Tensor | None:
    """The labels of a request, (B,) long; None where it has none.

    Raises:
        DiffusionError: labels for a model without, labels out of range, guidance without labels, or prompts.
    """
    if request.prompts is not None:
        raise DiffusionError.explained(
            "this model was given prompts", expected="labels or nothing", fix="leave the prompt out", why="it reads no text"
        )
    if request.labels is None:
        if request.guidance_scale != 1:
            raise DiffusionError.explained(
                f"the guidance scale is {request.guidance_scale:g} without labels",
                expected="1",
                fix="give labels or leave it out",
            )
        return None
    if num_classes is None and request.options.get("classifier") is not None:
        return None  # The labels are for the classifier.
    if num_classes is None:
        raise DiffusionError.explained(
            f"labels {request.labels} were given to a model that was trained without",
            expected="no labels",
            fix="leave them out, train with network.num_classes set, or give options.classifier",
        )
    if not all(0 <= label < num_classes for label in request.labels):
        raise DiffusionError.explained(
            f"the labels are {request.labels}", expected=f"0 to {num_classes - 1}", fix="give labels of the training data"
        )
    return torch.tensor(request.labels, dtype=torch.long, device=device)


def guided_output(
    network: Callable[..., Tensor], x_t: Tensor, t: Tensor, *, labels: Tensor | None, scale: float, channels: int
) -> Tensor:
    """The network's output with classifier-free guidance on its first `channels` channels (2207.12598).

    The others, which say a variance, stay the conditional ones. Label num_classes, in the rows of the unconditional half,
    is "no label": a network that is called without labels means the same.
    """
    cond = network(x_t, t, labels=labels)
    if labels is None or scale == 1:
        return cond
    uncond = network(x_t, t)
    return torch.cat([classifier_free(uncond[:, :channels], cond[:, :channels], scale), cond[:, channels:]], dim=1)


def dropped_labels(labels: Tensor | None, num_classes: int | None, share: float, generator: torch.Generator) -> Tensor | None:
    """Training labels with `share` of them replaced by "no label" (2207.12598 algorithm 1).

    Raises:
        DiffusionError: the network has labels and the data has none.
    """
    if num_classes is None:
        return None
    if labels is None:
        raise DiffusionError.explained(
            f"the network has {num_classes} classes and the data no labels", expected="a label an item", fix="unset num_classes"
        )
    dropped = torch.empty(len(labels)).uniform_(generator=generator) < share
    return torch.where(dropped.to(labels.device), num_classes, labels)


def _clipped(prediction: Prediction, x_t: Tensor, clip_x0: bool) -> Prediction:
    """x0 kept in [-1, 1], and eps made to fit it."""
    if not clip_x0:
        return prediction
    fitted = Prediction.from_output(prediction.x0.clamp(-1, 1), x_t, prediction.alpha, prediction.sigma, "sample")
    return replace(fitted, variance_share=prediction.variance_share)
