"""The loop resumes exactly, its schedules have the shapes they claim, and each objective has the minimum it should."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.errors import DiffusionError
from diffusion.networks.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import stream
from diffusion.text.clip import Clip, ClipConfig, TextConfig, contrastive_loss
from diffusion.training.autoencoder import reconstruction_loss
from diffusion.training.denoiser import TextConditionedDenoiser, denoising_loss, stratified_timesteps
from diffusion.training.figures import by_noise
from diffusion.training.loop import PACE_STEPS, LoopConfig, TrainState, train
from diffusion.training.muon import Muon, orthogonalised

pytestmark = pytest.mark.oracle


def linear_regression(steps: int) -> tuple[TrainState, object, LoopConfig]:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    inputs = torch.linspace(-1, 1, 96).reshape(32, 3)
    config = LoopConfig(num_steps=steps, batch_size=8, learning_rate=1e-2, warmup_steps=2)

    def loss(rows, generator):
        noise = torch.empty(len(rows), 3).uniform_(generator=generator)
        error = module(inputs[rows] + 0.01 * noise).float() - inputs[rows].sum(dim=1, keepdim=True)
        return error.square().mean(), {}

    return TrainState(module, config), loss, config


def test_resumed_training_is_bit_equal(tmp_path: Path) -> None:
    state, loss, config = linear_regression(12)
    list(train(state, loss, config, num_rows=32, device="cpu"))

    first, loss, config = linear_regression(12)
    steps = train(first, loss, config, num_rows=32, device="cpu")
    for _ in range(5):
        next(steps)
    first.save(tmp_path / "checkpoint.pt")
    second, loss, config = linear_regression(12)
    second.load(tmp_path / "checkpoint.pt")
    assert second.step == 5
    list(train(second, loss, config, num_rows=32, device="cpu"))
    torch.testing.assert_close(second.module.weight, state.module.weight, rtol=0, atol=0)
    torch.testing.assert_close(second.ema, state.ema, rtol=0, atol=0)


def test_learning_rate_warms_up_holds_and_falls_to_zero() -> None:
    config = LoopConfig(num_steps=1000, learning_rate=1.0, warmup_steps=100, decay_fraction=0.4)
    assert config.learning_rate_at(0) == 0.01
    assert config.learning_rate_at(100) == config.learning_rate_at(599) == 1.0
    assert config.learning_rate_at(800) == pytest.approx(0.5)
    assert config.learning_rate_at(999) < 1e-4


def test_figures_by_noise_are_means_over_thirds_of_the_timesteps() -> None:
    values, t = torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0]), torch.tensor([0, 332, 334, 666, 999])
    assert by_noise(values, t, 1000) == {"low": 1.5, "middle": 3.5, "high": 9.0}
    assert by_noise(values[:2], t[:2], 1000, prefix="accuracy_") == {"accuracy_low": 1.5}


def test_the_averaged_weights_are_swapped_in_and_out() -> None:
    state, loss, config = linear_regression(4)
    list(train(state, loss, config, num_rows=32, device="cpu"))
    trained = state.module.weight.detach().clone()
    average = state.ema[0].clone()
    assert not torch.equal(average, trained)
    with state.averaged() as module:
        torch.testing.assert_close(module.weight, average, rtol=0, atol=0)
    torch.testing.assert_close(state.module.weight, trained, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    state, _, config = linear_regression(4)

    def loss(rows, generator):
        return state.module.weight.sum() * float("nan"), {}

    with pytest.raises(FloatingPointError, match="became nan at step 0; resume from the last checkpoint"):
        list(train(state, loss, config, num_rows=32, device="cpu"))


def test_stratified_timesteps_follow_the_logit_normal() -> None:
    t = stratified_timesteps(1000, 1000, stream(0, "t"))
    assert t.min() >= 0 and t.max() <= 999 and bool((t.diff() >= 0).all())
    share = (t + 0.5) / 1000
    logits = torch.logit(share)
    torch.testing.assert_close(logits.mean(), torch.tensor(0.25), atol=0.01, rtol=0)
    torch.testing.assert_close(logits.std(), torch.tensor(1.25), atol=0.02, rtol=0)


class PerfectDenoiser(nn.Module):
    """v of a point mass at x0: eps = (x_t - a x0) / s."""

    def __init__(self, schedule: NoiseSchedule, x0: torch.Tensor) -> None:
        super().__init__()
        self.schedule, self.x0 = schedule, x0
        self.contexts: list[torch.Tensor] = []

    def forward(self, x_t, t, context):
        self.contexts.append(context)
        alpha, sigma = (w.to(x_t.dtype)[:, None, None, None] for w in (self.schedule.alpha(t), self.schedule.sigma(t)))
        return alpha * (x_t - alpha * self.x0) / sigma - sigma * self.x0


def test_denoising_loss_is_zero_for_the_perfect_denoiser_and_drops_a_tenth_of_the_text() -> None:
    schedule = NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    x0 = torch.full((1, 2, 4, 4), 0.3)
    denoiser = PerfectDenoiser(schedule, x0)
    text = nn.Embedding(10, 5)
    towers = nn.Module()
    towers.text = text
    loss = denoising_loss(
        TextConditionedDenoiser(denoiser, towers),
        schedule,
        latents=lambda rows: x0.expand(len(rows), -1, -1, -1),
        ids=lambda rows: torch.full((len(rows), 3), 7),
        empty_ids=torch.zeros(3, dtype=torch.int64),
    )
    value, bands = loss(torch.arange(400), stream(0, "loss"))
    assert value.item() < 1e-6
    assert set(bands) == {"low", "middle", "high"}
    dropped = (denoiser.contexts[0][:, 0] == text.weight[0]).all(dim=-1).float().mean().item()
    assert 0.06 < dropped < 0.14


def test_the_text_tower_learns_from_denoising_and_from_the_contrast() -> None:
    torch.manual_seed(0)
    vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 32, "head_width": 32}
    towers = Clip(ClipConfig(16, TextConfig(vocab_size=20, context_length=6, width=32, heads=1, layers=1), vision))
    unet = UNet2DCondition(
        UNetConfig(
            sample_size=4,
            in_channels=2,
            out_channels=2,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            block_out_channels=(32,),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=1,
        )
    )
    denoiser = TextConditionedDenoiser(unet, towers)
    ids = torch.randint(1, 19, (8, 6), generator=torch.Generator().manual_seed(0))
    parts = {
        "latents": lambda rows: torch.ones(len(rows), 2, 4, 4),
        "ids": lambda rows: ids[rows],
        "empty_ids": torch.zeros(6, dtype=torch.int64),
    }
    schedule = NoiseSchedule(prediction_type="v_prediction")
    pictures = torch.linspace(0, 1, 8 * 3 * 16 * 16).reshape(8, 3, 16, 16)

    denoising_loss(denoiser, schedule, **parts)(torch.arange(8), stream(0, "loss"))[0].backward()
    assert all(p.grad is None for p in towers.visual.parameters())
    assert towers.text.tower.token_embedding.weight.grad.abs().sum() > 0

    joint = denoising_loss(denoiser, schedule, **parts, images=lambda rows: pictures[rows], contrastive_weight=0.5)
    value, figures = joint(torch.arange(8), stream(0, "loss"))
    assert value.item() == pytest.approx(figures["denoising"] + 0.5 * figures["contrast"], rel=1e-5)
    value.backward()
    assert towers.visual.proj.grad.abs().sum() > 0


def test_orthogonalised_keeps_the_directions_and_evens_the_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((12, 40), (40, 12)):
        matrix = torch.empty(shape).normal_(generator=generator)
        u, s, vh = torch.linalg.svd(orthogonalised(matrix).float(), full_matrices=False)
        assert s.min() > 0.6 and s.max() < 1.3
        u0, _, vh0 = torch.linalg.svd(matrix, full_matrices=False)
        torch.testing.assert_close((u @ vh), (u0 @ vh0), atol=0.15, rtol=0)


def test_muon_updates_matrices_of_one_shape_together_as_each_alone() -> None:
    """Jordan's rule by hand, matrix by matrix; nine equal matrices take no more products than one."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(6, 10)] * 9 + [(12, 5), (6, 2, 1, 5)]
    parameters = [nn.Parameter(torch.empty(shape).normal_(generator=generator)) for shape in shapes]
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.empty(parameter.shape).normal_(generator=generator)
    optimizer = Muon(parameters, lr=0.1, momentum=0.9, weight_decay=0.5)
    with CountedOps() as ops:
        optimizer.step()
    for parameter, start in zip(parameters, before, strict=True):
        assert parameter.grad is not None
        direction = parameter.grad * (0.1 + 0.9 * 0.1)  # Nesterov, from a momentum of nothing
        matrix = direction.flatten(1)
        update = orthogonalised(matrix).float().view_as(parameter) * 0.2 * max(matrix.shape) ** 0.5
        torch.testing.assert_close(parameter.detach(), start * (1 - 0.1 * 0.5) - 0.1 * update, atol=5e-3, rtol=0)
    assert ops.products == 2 * 5 * 3, "two shapes, five rounds of three products"


class CountedOps(TorchDispatchMode):
    """Counts matrix products."""

    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.mm, torch.ops.aten.baddbmm)
        return func(*args, **(kwargs or {}))


def test_muon_fits_a_linear_map_of_convolutions_and_resumes_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1))
    x = torch.linspace(-1, 1, 4 * 2 * 5 * 5).reshape(4, 2, 5, 5)
    config = LoopConfig(num_steps=80, batch_size=4, learning_rate=2e-2, warmup_steps=2, optimizer="muon")

    def loss(rows, generator):
        return (module(x[rows]).float() - 0.5 * x[rows]).square().mean(), {}

    state = TrainState(module, config)
    assert [type(optimizer).__name__ for optimizer in state.optimizers] == ["AdamW", "Muon"]
    progress = []
    for item in train(state, loss, config, num_rows=4, device="cpu"):
        progress.append(item)
        if item.step == 40:
            state.save(tmp_path / "checkpoint.pt")
    assert progress[-1].metrics["loss"] < 0.02 * progress[0].metrics["loss"]
    final = [p.detach().clone() for p in module.parameters()]

    again = TrainState(module, config)
    again.load(tmp_path / "checkpoint.pt")
    list(train(again, loss, config, num_rows=4, device="cpu"))
    torch.testing.assert_close(list(module.parameters()), [nn.Parameter(p) for p in final], rtol=0, atol=0)
    with pytest.raises(DiffusionError, match="was written with 2 optimisers, this run has 1"):
        TrainState(module, LoopConfig(num_steps=80)).load(tmp_path / "checkpoint.pt")


def test_the_autoencoder_learns_a_flat_picture() -> None:
    torch.manual_seed(0)
    config = AutoencoderTinyConfig(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(0, 1),
        num_decoder_blocks=(1, 0),
        latent_channels=2,
    )
    module = AutoencoderTiny(config)
    pictures = torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 3, 8, 8)
    state = TrainState(module, LoopConfig(num_steps=1, weight_decay=0.0))
    loop = LoopConfig(num_steps=120, batch_size=4, learning_rate=5e-3, warmup_steps=5)
    progress = list(train(state, reconstruction_loss(module, lambda rows: pictures[rows]), loop, num_rows=2, device="cpu"))
    assert progress[-1].metrics["psnr"] > 20 > progress[0].metrics["psnr"]
    assert progress[-1].metrics["ssim"] > progress[0].metrics["ssim"]
    assert progress[-1].seconds_left == 0
    assert progress[0].pace == progress[0].seconds
    pace = progress[0].pace + (progress[1].seconds - progress[0].pace) / PACE_STEPS
    assert progress[1].seconds_left == pytest.approx((progress[1].num_steps - 2) * pace)


def test_distractors_count_against_images_alone() -> None:
    images, texts, wrong = (nn.functional.normalize(torch.randn(n, 5, dtype=torch.float64), dim=-1) for n in (4, 4, 3))
    scale = torch.tensor(1.5, dtype=torch.float64)
    all_logits = scale.exp() * images @ torch.cat([texts, wrong]).T
    own = all_logits.diagonal()
    of_images = (all_logits.logsumexp(dim=1) - own).mean()
    of_texts = (all_logits[:, :4].logsumexp(dim=0) - own).mean()
    value = contrastive_loss(images, texts, scale, distractors_DE=wrong)
    torch.testing.assert_close(value, (of_images + of_texts) / 2)
    assert value > contrastive_loss(images, texts, scale)
