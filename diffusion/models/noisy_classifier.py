"""The noise-aware classifier p(y | x_t, t) of classifier guidance (2105.05233 section 4).

It is trained on x_t of the very schedule that it will guide, at all timesteps, because a classifier of clean pictures
knows nothing of noisy ones. `diffusion/classifier_guidance.py` says how it guides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.classifier_guidance import Guide, LogProb, check_same_schedule, class_log_prob, gradient_of, guided_by
from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, Model, SampleRequest, described
from diffusion.models.schedules import LINEAR
from diffusion.networks.mlp import MLP, MLPConfig
from diffusion.networks.noisy_encoder import NoisyEncoder, NoisyEncoderConfig
from diffusion.process import Schedule
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal
from diffusion.training.figures import by_noise


@dataclass(frozen=True)
class NoisyClassifierConfig:
    """Sizes of the classifier, and the schedule of the model that it will guide (DDPM's by default)."""

    network: NoisyEncoderConfig | MLPConfig = field(default_factory=NoisyEncoderConfig)
    schedule: NoiseSchedule = LINEAR
    num_classes: int = 10


class NoisyClassifier(Model):
    """log p(y | x_t, t) up to a constant, for pictures or points."""

    name = "noisy_classifier"
    draws = False
    Config = NoisyClassifierConfig

    def __init__(self, config: NoisyClassifierConfig) -> None:
        super().__init__(config)
        if isinstance(config.network, MLPConfig):
            sizes = config.network
            self.network: MLP | NoisyEncoder = MLP(sizes.in_dim, sizes.hidden, config.num_classes, layers=sizes.layers)
        else:
            self.network = NoisyEncoder(config.network, config.num_classes)

    @classmethod
    def default_config(cls, shape: tuple[int, ...], num_classes: int | None) -> NoisyClassifierConfig:
        """As `Model.default_config`.

        Raises:
            DiffusionError: the data has no labels.
        """
        if num_classes is None:
            raise DiffusionError.explained(
                "the data has no labels", expected="a label for every item", fix="use data=toybox or other labelled data"
            )
        network = MLPConfig(in_dim=shape[0]) if len(shape) == 1 else _encoder_for(shape)
        return cls.Config(network=network, num_classes=num_classes)

    @property
    def condition(self) -> Literal["labels"]:
        """It is trained on labels."""
        return "labels"

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits (B, num_classes) for x_t (B, ...) at timesteps (B,); differentiable in x_t."""
        return self.network(x_t, t)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy at uniform timesteps, each row its own.

        Raises:
            DiffusionError: a batch without labels.
        """
        if batch.labels is None:
            raise DiffusionError.explained(
                "the batch has no labels", expected="one for every item", fix="train the classifier on labelled data"
            )
        schedule, labels = self.config.schedule, batch.labels
        t = torch.randint(schedule.num_train_timesteps, (len(batch),), generator=generator).to(batch.x.device)
        eps = normal(batch.x.shape, generator, device=batch.x.device)
        logits = self(schedule.add_noise(batch.x, eps, t), t).float()
        right = (logits.argmax(dim=-1) == labels).float()
        shares = by_noise(right, t, schedule.num_train_timesteps, prefix="accuracy_")
        return F.cross_entropy(logits, labels), {"accuracy": right.mean().item(), **shares}

    def log_prob(self, labels: Tensor) -> LogProb:
        """log p(y | x_t, t) of these labels (B,), one a row, as guidance differentiates it.

        Raises:
            DiffusionError: a label that was not trained.
        """
        if int(labels.min()) < 0 or int(labels.max()) >= self.config.num_classes:
            raise DiffusionError.explained(
                f"the labels run from {int(labels.min())} to {int(labels.max())}",
                expected=f"0 to {self.config.num_classes - 1}",
                fix="use the labels that the classifier was trained with",
            )
        return class_log_prob(self, labels)

    def sample(self, request: SampleRequest) -> Tensor:
        """Raises DiffusionError: a classifier says what is in a picture and draws none."""
        raise DiffusionError.explained(
            "a noisy classifier draws nothing by itself",
            expected="a diffusion model for it to guide",
            fix="give it to one as options.classifier=FOLDER, with labels=...",
        )


def classifier_guide(
    classifier: Any, labels: Sequence[int] | None, *, scale: float, schedule: Schedule, device: torch.device
) -> Guide:
    """Guidance of a model with this schedule towards labels, one a row.

    Raises:
        DiffusionError: another model than a `NoisyClassifier`, one of another schedule, or labels missing or unknown to it.
    """
    if not isinstance(classifier, NoisyClassifier):
        raise DiffusionError.explained(
            f"options.classifier is {described(classifier)}",
            expected="a noisy_classifier",
            fix="give the folder of one, trained with objective=noisy_classifier",
        )
    if labels is None:
        raise DiffusionError.explained(
            "there is a classifier and no labels to guide to", expected="labels", fix="give labels=..., or leave it out"
        )
    check_same_schedule(classifier.config.schedule, schedule, name="noisy_classifier")
    log_prob = classifier.to(device).log_prob(torch.tensor(labels))
    return guided_by(gradient_of(log_prob), scale=scale, schedule=schedule)


def _encoder_for(shape: tuple[int, ...]) -> NoisyEncoderConfig:
    return replace(NoisyEncoderConfig(), in_channels=shape[0], sample_size=shape[-1])
