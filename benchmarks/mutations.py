"""Wrong coefficients, signs and timesteps, put into the samplers and losses one at a time: does a test notice?

    python -m benchmarks.mutations                      every row of the table
    python -m benchmarks.mutations --only pndm          the rows of files with "pndm" in their path

A row replaces one text of one file in a temporary copy of the repository, and the tests that stand for that file run
there. A mutant that they pass has survived: the tests are blind to that mistake. Exit code 1 if one did.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/mutations.json"
OUTPUT = "pytest-output.txt"
TIMEOUT_SECONDS = 300
# Loaded once, before the first fork: what takes the tests seconds to import and is not ours.
PRELOADED = (
    "torch",
    "numpy",
    "pytest",
    "hypothesis",
    "scipy.integrate",
    "scipy.stats",
    "torchvision",
    "safetensors.torch",
    *(
        f"diffusers.schedulers.scheduling_{name}"
        for name in (
            "ddim",
            "ddpm",
            "pndm",
            "euler_discrete",
            "euler_ancestral_discrete",
            "heun_discrete",
            "dpmsolver_multistep",
        )
    ),
)
UNUSED_PLUGINS = ("hydra_pytest", "anyio", "typeguard")


@dataclass(frozen=True)
class Mutation:
    """In `file`, relative to the repository, the only occurrence of `original` becomes `mutated`."""

    file: str
    original: str
    mutated: str


TESTS: dict[str, tuple[str, ...]] = {
    "diffusion/analog_bits.py": ("test_bit_diffusion.py",),
    "diffusion/noise_levels.py": ("test_annealed_langevin.py",),
    "diffusion/samplers/annealed_langevin.py": ("test_annealed_langevin.py",),
    "diffusion/samplers/bit_diffusion.py": ("test_bit_diffusion.py",),
    "diffusion/samplers/chain.py": ("test_samplers.py", "test_samplers_against_diffusers.py"),
    "diffusion/samplers/ddim.py": ("test_samplers.py", "test_samplers_against_diffusers.py"),
    "diffusion/samplers/ddim_inversion.py": ("test_ddim_inversion.py",),
    "diffusion/samplers/ddpm.py": ("test_samplers.py", "test_ddpm_exact.py", "test_samplers_against_diffusers.py"),
    "diffusion/samplers/dpmpp_2m.py": ("test_samplers_against_diffusers.py", "test_samplers.py"),
    "diffusion/samplers/dpmpp_2m_sde.py": ("test_samplers_against_diffusers.py",),
    "diffusion/samplers/unipc.py": ("test_samplers_against_diffusers.py", "test_published_loops.py"),
    "diffusion/samplers/lcm.py": ("test_samplers_against_diffusers.py", "test_published_loops.py"),
    "diffusion/samplers/timesteps.py": ("test_published_loops.py",),
    "diffusion/samplers/euler.py": ("test_samplers.py", "test_samplers_against_diffusers.py"),
    "diffusion/samplers/euler_ancestral.py": ("test_samplers_against_diffusers.py", "test_samplers.py"),
    "diffusion/samplers/flow_heun.py": ("test_flow_schedule.py",),
    "diffusion/samplers/heun.py": ("test_samplers_against_diffusers.py", "test_samplers.py"),
    "diffusion/samplers/image_to_image.py": ("test_image_to_image.py",),
    "diffusion/samplers/pndm.py": ("test_samplers_against_diffusers.py", "test_samplers.py"),
    "diffusion/samplers/sdedit.py": ("test_sdedit.py",),
    "diffusion/flow_schedule.py": ("test_flow_schedule.py",),
    "diffusion/networks/flux2.py": ("test_flux2.py",),
    "diffusion/models/rectified_flow.py": ("test_rectified_flow.py",),
    "diffusion/process.py": ("test_flow_schedule.py",),
    "diffusion/schedule.py": ("test_schedule.py", "test_denoising_loss.py"),
    "diffusion/parameterisation.py": ("test_parameterisation.py", "test_flow_schedule.py"),
    "diffusion/guidance.py": ("test_guidance.py", "test_multi_view.py"),
    "diffusion/classifier_guidance.py": ("test_classifier_guidance.py",),
    "diffusion/distillation.py": ("test_distillation.py", "test_flow_schedule.py"),
    "diffusion/variational_bound.py": ("test_ddpm_exact.py",),
    "diffusion/training/importance.py": ("test_ddpm_exact.py",),
    "diffusion/training/denoiser.py": ("test_training.py",),
    "diffusion/models/ddpm.py": ("test_ddpm_exact.py",),
    "diffusion/models/improved_ddpm.py": ("test_ddpm_exact.py",),
    "diffusion/models/denoising_score_matching.py": ("test_score_matching.py",),
    "diffusion/models/sliced_score_matching.py": ("test_score_matching.py",),
    "diffusion/models/ncsn.py": ("test_ncsn.py",),
    "diffusion/models/bit_diffusion.py": ("test_bit_diffusion.py",),
    "diffusion/models/text_to_pixels.py": ("test_noised_training.py", "test_glide.py"),
    "diffusion/models/glide_inpainting.py": ("test_glide.py",),
    "diffusion/models/glide_upsampler.py": ("test_glide.py",),
    "diffusion/models/noisy_classifier.py": ("test_noised_training.py", "test_classifier_guidance.py"),
    "diffusion/models/noisy_clip.py": ("test_noised_training.py", "test_glide.py"),
}
"""File -> the tests in tests/diffusion that stand for it, those that fail soonest first."""


def _rows(file: str, *changes: tuple[str, str]) -> list[Mutation]:
    return [Mutation(file, original, mutated) for original, mutated in changes]


EARLIER, LATER = "max(here.t - 1, 0)", "min(here.t + 1, schedule.last)"

MUTATIONS: list[Mutation] = [
    *_rows(
        "diffusion/samplers/chain.py",
        ("straight = there.alpha * prediction.x0 +", "straight = here.alpha * prediction.x0 +"),
        ("+ there.sigma * prediction.eps", "- there.sigma * prediction.eps"),
        ("there.sigma - here.ratio * there.alpha", "there.sigma + here.ratio * there.alpha"),
        ("(1 - final_abar) ** 0.5", "(1 - final_abar)"),
        ("2 * there.ratio + 3", "3 * there.ratio + 3"),
        ("2 * there.ratio + 3", "1.5 * there.ratio + 3"),
        ("2 * there.ratio + 3", "2 * there.ratio"),
    ),
    *_rows(
        "diffusion/samplers/dpmpp_2m_sde.py",
        ("ask(x, here.t,", f"ask(x, {LATER},"),
        ("decay = there.ratio / here.ratio", "decay = (there.ratio / here.ratio) ** 2"),
        ("(1 - decay**2) * x0", "(1 - decay) * x0"),
        ("math.sqrt(1 - decay**2)", "math.sqrt(1 - decay)"),
        ("previous = prediction.x0", "previous = x0"),
    ),
    *_rows(
        "diffusion/samplers/unipc.py",
        ("ask(x, here.t,", f"ask(x, {LATER},"),
        ("difference / 2", "difference / 3"),
        ("b_1 = (shrink / -h - 1) / shrink", "b_1 = (shrink / -h + 1) / shrink"),
        ("- 1 / 2) / shrink", "- 1 / 3) / shrink"),
        ("(1 - r)", "(1 + r)"),
        ("(b_1 - before) * difference", "b_1 * difference"),
        ("start = x\n", "start = x_T\n"),
    ),
    *_rows(
        "diffusion/samplers/flow_heun.py",
        ("ask(x, here.t,", "ask(x, max(here.t - 1, 0.0),"),
        ("(slope + ahead.velocity) / 2", "(slope + ahead.velocity) / 3"),
        ("ask(carried, there.t,", "ask(carried, here.t,"),
        ("if there.t >= 0:", "if False:"),
        ("scale_there * (x / scale", "scale_there * (x"),
        ("- here.sigma / scale)", "+ here.sigma / scale)"),
    ),
    *_rows(
        "diffusion/models/rectified_flow.py",
        ("return (eps - x0 - output)", "return (eps + x0 - output)"),
        ("torch.sigmoid(z + self", "torch.sigmoid(z - self"),
        ("1000 * uniform(", "500 * uniform("),
    ),
    *_rows(
        "diffusion/networks/flux2.py",
        ("F.silu(gate) * value", "gate * F.silu(value)"),
        ("scale, shift = self.norm_out(temb)", "shift, scale = self.norm_out(temb)"),
        ("shift, scale, gate = modulation", "scale, shift, gate = modulation"),
        ("x_BLD + gate * self.attn(", "x_BLD + self.attn("),
        ("stream + gate_ff * ff(", "stream + gate * ff("),
        ("self.double_stream_modulation_txt(temb)", "self.double_stream_modulation_img(temb)"),
        ("temb = F.silu(", "temb = ("),
        ("row[:, None].expand(-1, width, -1, -1)", "row[:1, None].expand(height, width, -1, -1)"),
        ("torch.cat([*at_origin, place], dim=1)", "torch.cat([*at_origin, place[:1].expand(rows, -1, -1)], dim=1)"),
        ("rotated(self.norm_q(query), rotations)", "self.norm_q(query)"),
        ("rounds_angles=False", "rounds_angles=True"),
        ("F.pixel_unshuffle(x_BCHW, patch)", "F.pixel_unshuffle(x_BCHW.transpose(2, 3), patch).transpose(2, 3)"),
    ),
    *_rows(
        "diffusion/flow_schedule.py",
        ("t.double() / self.num_train_timesteps", "t.double() / (self.num_train_timesteps - 1)"),
        ("return 1 - self.sigma(t)", "return (1 - self.sigma(t).square()).sqrt()"),
        ("self.shift * sigmas / (1 +", "sigmas / (1 +"),
        ("(self.shift - 1) * sigmas)", "self.shift * sigmas)"),
        ("low = self.shifted(low)", "low = low"),
        ("low.new_tensor(1 / num_steps)", "low.new_tensor(1 / (num_steps + 1))"),
        ("(many - few) / 190", "(many - few) / 200"),
        ("* (num_steps - 10)", "* num_steps"),
        ("num_patches > self.max_image_seq_len", "num_patches < self.max_image_seq_len"),
        ("math.exp(self.base_shift", "(self.base_shift"),
        ("latents[0] // patch", "latents[0]"),
    ),
    *_rows(
        "diffusion/process.py",
        ("+ per_row(self.sigma(t), x0) * eps", "- per_row(self.sigma(t), x0) * eps"),
        ("per_row(self.sigma(t), x0) * eps", "per_row(self.sigma(t), x0).sqrt() * eps"),
        ("(self.alpha(t) / self.sigma(t)).square()", "self.alpha(t) / self.sigma(t)"),
    ),
    *_rows(
        "diffusion/samplers/lcm.py",
        ("ask(x, here.t,", f"ask(x, {LATER},"),
        ("TIMESTEP_SCALING * here.t", "TIMESTEP_SCALING + here.t"),
        ("there.alpha * x + there.sigma * drawn", "there.alpha * x + here.sigma * drawn"),
    ),
    *_rows(
        "diffusion/samplers/timesteps.py",
        ("(total // (num_steps + 1))", "(total // num_steps)"),
        ("(schedule.last / num_steps)).round()", "(schedule.last / (num_steps + 1))).round()"),
        ("high ** (1 / KARRAS_RHO)", "high ** (1 / 6)"),
        ("LCM_TIMESTEPS / num_steps)).floor()", "LCM_TIMESTEPS / num_steps)).ceil()"),
    ),
    *_rows(
        "diffusion/samplers/ddim.py",
        ("ask(x, here.t,", f"ask(x, {EARLIER},"),
        ("ask(x, here.t,", f"ask(x, {LATER},"),
        ("(here.alpha / there.alpha * there.sigma) ** 2", "here.alpha / there.alpha * there.sigma**2"),
        ("eta * (there.sigma / here.sigma)", "eta"),
        ("there.sigma**2 - spread**2", "there.sigma**2 + spread**2"),
        ("x = there.alpha * prediction.x0", "x = here.alpha * prediction.x0"),
        ("+ direction * prediction.eps", "- direction * prediction.eps"),
        (", final_abar=schedule.final_alphas_cumprod", ""),
        ("x + spread * drawn", "x - spread * drawn"),
    ),
    *_rows(
        "diffusion/samplers/ddpm.py",
        ("ask(x, here.t,", f"ask(x, {EARLIER},"),
        ("ask(x, here.t,", f"ask(x, {LATER},"),
        ("kept = (here.alpha / there.alpha) ** 2", "kept = here.alpha / there.alpha"),
        ("g = there.alpha * beta", "g = here.alpha * beta"),
        ("h = kept**0.5 * there.sigma**2", "h = kept * there.sigma**2"),
        ("g * prediction.x0 + h * x", "g * prediction.x0 - h * x"),
        ("last = len(steps) - 2", "last = len(steps) - 3"),
        ("last = len(steps) - 2", "last = len(steps) - 1"),
        ("small = beta * there.sigma**2", "small = beta * there.sigma"),
        ("(beta / small) ** _share", "(small / beta) ** _share"),
        ('beta if variance == "fixed_large" else small', 'small if variance == "fixed_large" else beta'),
        ("x + spread**0.5 * drawn", "x + spread * drawn"),
    ),
    *_rows(
        "diffusion/samplers/dpmpp_2m.py",
        ("ask(x, here.t,", f"ask(x, {EARLIER},"),
        ("ask(x, here.t,", f"ask(x, {LATER},"),
        (
            "r = log_snr_step(before, here) / log_snr_step(here, there)",
            "r = log_snr_step(here, there) / log_snr_step(before, here)",
        ),
        ("/ (2 * r)", "/ r"),
        ("x0 + (x0 - previous)", "x0 - (x0 - previous)"),
        ("(there.sigma / here.sigma) * x", "(there.alpha / here.alpha) * x"),
        ("there.alpha - there.sigma * here.alpha", "there.alpha + there.sigma * here.alpha"),
        ("previous = prediction.x0", "previous = x0"),
    ),
    *_rows("diffusion/samplers/euler.py", ("ask(x, here.t,", f"ask(x, {EARLIER},"), ("ask(x, here.t,", f"ask(x, {LATER},")),
    *_rows(
        "diffusion/samplers/euler_ancestral.py",
        ("ask(x, here.t,", f"ask(x, {EARLIER},"),
        ("ask(x, here.t,", f"ask(x, {LATER},"),
        ("(1 - (there.ratio / here.ratio) ** 2)", "(1 - there.ratio / here.ratio)"),
        ("there.ratio**2 - up**2", "there.ratio**2 + up**2"),
        ("there.alpha * down", "here.alpha * down"),
        ("there.alpha * up * drawn", "up * drawn"),
    ),
    *_rows(
        "diffusion/samplers/heun.py",
        ("prediction = yield ask(x, here.t,", f"prediction = yield ask(x, {EARLIER},"),
        ("prediction = yield ask(x, here.t,", f"prediction = yield ask(x, {LATER},"),
        ("ahead = yield ask(x, there.t,", "ahead = yield ask(x, here.t,"),
        ("ahead = yield ask(x, there.t,", "ahead = yield ask(x, there.t + 1,"),
        (" and not (first_order_from_noise and not use_second_order(here, there))", ""),
        ("ahead.eps) / 2", "ahead.eps) / 3"),
        ("prediction.eps + ahead.eps", "prediction.eps - ahead.eps"),
        ("there.t >= 0", "there.t > 0"),
    ),
    *_rows(
        "diffusion/samplers/pndm.py",
        ("prediction = yield ask(x, here.t,", f"prediction = yield ask(x, {EARLIER},"),
        ("prediction = yield ask(x, here.t,", f"prediction = yield ask(x, {LATER},"),
        ("3 / 2, -1 / 2", "4 / 3, -1 / 3"),
        ("23 / 12, -16 / 12, 5 / 12", "22 / 12, -15 / 12, 5 / 12"),
        ("37 / 24", "36 / 24"),
        ("55 / 24, -59 / 24", "56 / 24, -60 / 24"),
        ("maxlen=4", "maxlen=3"),
        ("ahead.eps) / 2", "ahead.eps) / 3"),
        ("len(history) == 1", "len(history) <= 2"),
        ("2 * second.eps + 2 * third.eps", "3 * second.eps + third.eps"),
        ("len(history) <= 3", "len(history) <= 2"),
        ("(here.t - there.t) // 2", "(here.t - there.t) // 3"),
        ("transfer(prediction, here, there), there.t,", "transfer(prediction, here, there), there.t + 1,"),
        ("third.eps), there.t,", "third.eps), there.t + 1,"),
        ("if first_order_from_noise and not use_second_order(here, there)", "if False"),
        ("transfer(prediction, here, there, third.eps)", "transfer(prediction, here, there, second.eps)"),
        (", final_abar=schedule.final_alphas_cumprod", ""),
    ),
    *_rows(
        "diffusion/samplers/sdedit.py",
        ("kept[0].expand", "kept[-1].expand"),
        ("len(timesteps) - int(len(timesteps) * strength)", "len(timesteps) - int(len(timesteps) * strength) + 1"),
        ("torch.lerp(answer.x0, known.x0, weight)", "torch.lerp(known.x0, answer.x0, weight)"),
        ("torch.lerp(answer.eps, known.eps, weight)", "answer.eps"),
        ("torch.lerp(edited, reference,", "torch.lerp(reference, edited,"),
        ('schedule.sigma(request.t), "sample"', 'schedule.sigma(request.t).square(), "sample"'),
        ("reference, start_noise, kept[0]", "reference, -start_noise, kept[0]"),
    ),
    *_rows(
        "diffusion/samplers/image_to_image.py",
        ("(F.adaptive_max_pool2d(masks, reference.shape[2:]) == 0)", "(F.adaptive_max_pool2d(masks, reference.shape[2:]) > 0)"),
        ("torch.lerp(images.to(drawn), drawn,", "torch.lerp(drawn, images.to(drawn),"),
    ),
    *_rows(
        "diffusion/samplers/ddim_inversion.py",
        ("max(here.t, steps[-2].t)", "there.t"),
        ("yield ask(found, there.t,", "yield ask(found, max(here.t, 0),"),
        ("(there.alpha / here.alpha) * x", "(here.alpha / there.alpha) * x"),
        ("there.sigma - here.sigma", "there.sigma + here.sigma"),
        (", final_abar=schedule.final_alphas_cumprod", ", final_abar=0.999"),
    ),
    *_rows(
        "diffusion/samplers/annealed_langevin.py",
        ("(sigma / levels[-1]) ** 2", "(sigma / levels[-1])"),
        ("(2 * step_size) ** 0.5", "step_size**0.5"),
        ("x + step_size * score", "x - step_size * score"),
        ("levels[-1] ** 2 * score", "levels[-1] * score"),
        ("first_index=index * steps_per_level", "first_index=index"),
    ),
    *_rows(
        "diffusion/samplers/bit_diffusion.py",
        ("torch.cos((t + 0.0002)", "torch.cos((t + 0.02)"),
        ("t_now = 1 - index / num_steps", "t_now = 1 - (index + 1) / num_steps"),
        ("index + 1 + time_difference", "index + 1 - time_difference"),
        ("(x - here**0.5 * estimate)", "(x + here**0.5 * estimate)"),
        ("x = there**0.5 * estimate", "x = here**0.5 * estimate"),
        ("(1 - there) ** 0.5 * eps", "(1 - here) ** 0.5 * eps"),
        ("alpha = here / there", "alpha = (here / there) ** 0.5"),
        ("answer.clamp(-scale, scale)", "answer"),
    ),
    *_rows(
        "diffusion/analog_bits.py",
        ("(num_symbols - 1).bit_length()", "num_symbols.bit_length()"),
        ("(2.0 * bits - 1)", "(1 - 2.0 * bits)"),
        ("(2.0 * bits - 1)", "(bits - 1)"),
        ("(grouped > 0)", "(grouped < 0)"),
        ("num_bits_for(num_symbols) - 1, -1, -1", "num_bits_for(num_symbols), 0, -1"),
        (".argmax(2)", ".argmin(2)"),
    ),
    *_rows(
        "diffusion/noise_levels.py",
        ("limit = 2 / (2 - k)", "limit = 1 / (2 - k)"),
        ("** (2 * steps_per_level)", "** steps_per_level"),
        ("float(sigmas[-1]) ** 2", "float(sigmas[-1])"),
        ("math.sqrt(2 * dim)", "math.sqrt(dim)"),
        ("_normal_cdf(apart - 3 * gamma)", "_normal_cdf(apart - 2 * gamma)"),
        ("_overlap(gamma, dim) > 0.5", "_overlap(gamma, dim) > 0.25"),
        ("100 ** (1 / 9)", "100 ** (1 / 10)"),
    ),
    *_rows(
        "diffusion/schedule.py",
        ("(u + 0.008) / 1.008", "(u + 0.08) / 1.08"),
        ("clamp(max=0.999)", "clamp(max=0.99)"),
        ("total, dtype=torch.float64).square()", "total, dtype=torch.float64)"),
        ("return (1 - self.abar(t)).sqrt()", "return 1 - self.abar(t)"),
        ("return abar / (1 - abar)", "return (1 - abar) / abar"),
        (".round().long().flip(0) - 1", ".round().long().flip(0) - 2"),
        ("(first / (first - last))", "((first - last) / first)"),
    ),
    *_rows(
        "diffusion/parameterisation.py",
        ("(x_t - s * output) / a", "(x_t + s * output) / a"),
        ("(s * x_t + a * output) / length", "(s * x_t - a * output) / length"),
        ("(a * x_t - s * output) / length", "(a * x_t + s * output) / length"),
        ("alpha.double().square() + sigma.double().square()", "alpha.double() + sigma.double()"),
        ("(x_t + a * output) / total", "(x_t - a * output) / total"),
        ("(x_t - s * output) / total", "(x_t - a * output) / total"),
        ("return self.eps - self.x0", "return self.x0 - self.eps"),
        ("(x_t - a * output) / s", "(x_t - a * output) / a"),
        ("eps = -s * output", "eps = s * output"),
        ("* self.eps - per_row(self.sigma, self.eps) * self.x0", "* self.eps + per_row(self.sigma, self.eps) * self.x0"),
        ("return -self.eps / per_row(self.sigma, self.eps)", "return self.eps / per_row(self.sigma, self.eps)"),
    ),
    *_rows(
        "diffusion/guidance.py",
        ("cond if scale == 1 else uncond + scale * (cond - uncond)", "cond if scale == 1 else cond + scale * (cond - uncond)"),
        ("torch.where(s == 1, cond, uncond + s * (cond - uncond))", "torch.where(s == 1, cond, uncond + s * (uncond - cond))"),
        ("std_cond / std_guided", "std_guided / std_cond"),
        ("1 + weight * (ratio - 1)", "1 - weight * (ratio - 1)"),
        ("t <= guidance.interval[1]", "t < guidance.interval[1]"),
        ("t >= guidance.interval[0]", "t > guidance.interval[0]"),
        ("torch.cat([negative, condition.tokens])", "torch.cat([condition.tokens[guided], negative])"),
        ("rescale(guided.x0, conditional.x0, phi, num", "rescale(conditional.x0, guided.x0, phi, num"),
        ("rescale(output, cond, phi, num", "rescale(output, uncond, phi, num"),
    ),
    *_rows(
        "diffusion/classifier_guidance.py",
        ("answer.eps - sigma * tilt", "answer.eps + sigma * tilt"),
        ("sigma**2 / alpha * tilt", "sigma / alpha * tilt"),
        ("answer.x0 + shift * scale", "answer.x0 - shift * scale"),
        ("/ (there.alpha * beta)", "/ (here.alpha * beta)"),
        ("* (beta / small) ** share", "* (beta / small) ** (1 - share)"),
        (
            "tilt = scale * gradient(request.x_t, sent(request.t, request.x_t.device))",
            "tilt = scale * gradient(request.x_t, sent((request.t - 1).clamp(min=0), request.x_t.device))",
        ),
        ("return sigma_squared * here.sigma**2", "return sigma_squared**0.5 * here.sigma**2"),
        ('beta if variance == "fixed_large" else small', 'small if variance == "fixed_large" else beta'),
    ),
    *_rows(
        "diffusion/models/text_to_pixels.py",
        ("said[: len(x_t)], said[len(x_t) :], scale", "said[len(x_t) :], said[: len(x_t)], scale"),
        ("add_noise(x0, eps, t), t, self", "add_noise(x0, eps, t), (t - 1).clamp(min=0), self"),
        ("training_target(x0, eps,", "training_target(x0, -eps,"),
    ),
    *_rows(
        "diffusion/models/glide_inpainting.py",
        ("[known.mask * known.picture, known.mask]", "[known.picture, known.mask]"),
        ("[mask * batch.x, mask]", "[(1 - mask) * batch.x, mask]"),
    ),
    *_rows(
        "diffusion/models/glide_upsampler.py",
        (".round() / 127.5 - 1", " / 127.5 - 1"),
        ("align_corners=False", "align_corners=True"),
    ),
    *_rows(
        "diffusion/models/noisy_clip.py",
        ("self.logit_scale.exp().clamp(max=100) * self.encode_text(captions)", "self.encode_text(captions)"),
        ("add_noise(batch.x, eps, t), t)", "add_noise(batch.x, eps, t), 0 * t)"),
    ),
    *_rows(
        "diffusion/models/noisy_classifier.py",
        ("add_noise(batch.x, eps, t), t)", "add_noise(batch.x, eps, t), 0 * t)"),
        ("add_noise(batch.x, eps, t), t)", "add_noise(batch.x, eps, 0 * t), t)"),
    ),
    *_rows(
        "diffusion/distillation.py",
        ("(step.images - target)", "(target - step.images)"),
        ("prediction.eps.detach() - step.noise", "prediction.eps.detach() + step.noise"),
        ("velocity.detach() - (step.noise - step.latents)", "velocity.detach() - (step.noise + step.latents)"),
        ("return schedule.sigma(t).square()", "return schedule.sigma(t)"),
        ("schedule.alpha(t) * schedule.sigma(t).square()", "schedule.alpha(t) * schedule.sigma(t)"),
        ("done * (config.t_max_end - config.t_max_start)", "done * (config.t_max_start - config.t_max_end)"),
        ("DenoiseRequest(x_t, t,", "DenoiseRequest(x_t, (t - 1).clamp(min=0),"),
        ("add_noise(latents, noise, t)", "add_noise(latents, -noise, t)"),
        ("step.weighted(step.images", "(step.images"),
        ("step.weighted(step.prediction.eps", "(step.prediction.eps"),
        ("step.weighted(step.prediction.velocity", "(step.prediction.velocity"),
        ("low + place.double() * (high - low)", "low + place.double() * high"),
        ("(order + uniform((num,), generator)) / num", "uniform((num,), generator)"),
    ),
    *_rows(
        "diffusion/variational_bound.py",
        ("beta = 1 - here / there", "beta = 1 - (here / there) ** 0.5"),
        ("small = beta * (1 - there) / (1 - here)", "small = beta * (1 - here) / (1 - there + 1e-3)"),
        ("small[-2:-1] if len(small) > 1 else beta", "beta[-1:] if len(small) > 1 else beta"),
        ("there.sqrt() * beta / (1 - here)", "here.sqrt() * beta / (1 - here)"),
        ("(here / there).sqrt() * (1 - there)", "(here / there) * (1 - there)"),
        ("(1 - share) * per_row(self.log_small", "share * per_row(self.log_small"),
        ("ratio = (log_variance - other_log_variance)", "ratio = (other_log_variance - log_variance)"),
        ("ratio + gap - 1", "ratio - gap - 1"),
        ("math.log(2 * math.pi) + log_variance", "math.log(2 * math.pi) - log_variance"),
        ("inverse = (-0.5 * log_variance).exp()", "inverse = (-log_variance).exp()"),
        ("half = 1 / (LEVELS - 1)", "half = 1 / LEVELS"),
        ("2 * sigma.log(), torch.zeros_like(x0)", "sigma.log(), torch.zeros_like(x0)"),
        ("index == len(timesteps) - 1", "index == len(timesteps) - 2"),
    ),
    *_rows(
        "diffusion/training/importance.py",
        ("square().mean(dim=1).sqrt()", "square().mean(dim=1)"),
        ("1 / (len(p) * p[t])", "1 / p[t]"),
        ("+ UNIFORM_SHARE / total", "+ UNIFORM_SHARE"),
        ("% HISTORY] = loss", "% 1] = loss"),
    ),
    *_rows(
        "diffusion/training/denoiser.py",
        ("alpha * eps - sigma * x0", "alpha * eps + sigma * x0"),
        ("alpha * eps - sigma * x0", "sigma * eps - alpha * x0"),
        ("alpha * x0 + sigma * eps", "alpha * x0 - sigma * eps"),
        ("LOGIT_MEAN + LOGIT_SPREAD", "LOGIT_MEAN - LOGIT_SPREAD"),
    ),
    *_rows(
        "diffusion/models/ddpm.py",
        ("add_noise(x0, eps, t)", "add_noise(x0, -eps, t)"),
        ("add_noise(x0, eps, t), t,", "add_noise(x0, eps, t), (t - 1).clamp(min=0),"),
        ("(target - output).square()", "(target + output).square()"),
        ("training_target(x0, eps,", "training_target(x0, -eps,"),
        ("num_train_timesteps, (len(batch),)", "num_train_timesteps // 2, (len(batch),)"),
        ('"variance": "fixed_large"', '"variance": "fixed_small"'),
    ),
    *_rows(
        "diffusion/models/improved_ddpm.py",
        ("simple + config.vlb_weight * vlb", "simple - config.vlb_weight * vlb"),
        ("vlb = total * vlb", "vlb = vlb / total"),
        ("predicted.detach() if stop_at_mean else predicted", "predicted if stop_at_mean else predicted.detach()"),
        ("self.schedule.last - t)", "(self.schedule.last - t - 1).clamp(min=0))"),
        ("clean=t == 0", "clean=t == 1"),
        ("(share + 1) / 2", "(share - 1) / 2"),
        ("t * (1000.0 /", "t * (999.0 /"),
        ("return (weight * losses).mean()", "return losses.mean()"),
        ('"variance": "learned"', '"variance": "fixed_large"'),
    ),
    *_rows(
        "diffusion/models/denoising_score_matching.py",
        ("sigma) + noise / s", "sigma) - noise / s"),
        ("return 0.5 * sigma", "return sigma"),
        ("score(x + s * noise, sigma)", "score(x + noise, sigma)"),
    ),
    *_rows(
        "diffusion/models/sliced_score_matching.py",
        ("return curvature + 0.5 * square", "return curvature + square"),
        ("return curvature + 0.5 * square", "return 0.5 * square - curvature"),
        ("_dot(gradient, directions)", "_dot(gradient, torch.ones_like(directions))"),
    ),
    *_rows(
        "diffusion/models/ncsn.py",
        ("sigma=sigma, sigma_power=2", "sigma=sigma, sigma_power=0"),
        ("langevin_step_size(sigmas, options", "0.5 * langevin_step_size(sigmas, options"),
    ),
    *_rows(
        "diffusion/models/bit_diffusion.py",
        ("per_row((1 - level).sqrt(), bits) * noise", "per_row(1 - level, bits) * noise"),
        ("(estimate(x_t, t, shown) - bits)", "(estimate(x_t, t, shown) + bits)"),
        ("torch.cat((guess.to(bits), others))", "torch.cat((-guess.to(bits), others))"),
    ),
]


def mutated_text(mutation: Mutation, text: str) -> str:
    """The file's text with the mutation in it.

    Raises:
        ValueError: `original` does not occur exactly once.
    """
    if (found := text.count(mutation.original)) != 1:
        raise ValueError(f"{mutation.file} has {mutation.original!r} {found} times; a row of the table needs it exactly once")
    return text.replace(mutation.original, mutation.mutated)


@contextlib.contextmanager
def copy_of_repository() -> Iterator[Path]:
    """A temporary folder with the package and its tests, free to be changed."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        root = Path(name)
        heavy = shutil.ignore_patterns("__pycache__", "toybox_prior")
        for folder in ("diffusion", "jobs", "nerf3d", "orchestrator", "tests"):
            shutil.copytree(ROOT / folder, root / folder, ignore=heavy)
        (root / "diffusion/toybox_prior").symlink_to(ROOT / "diffusion/toybox_prior")
        shutil.copy(ROOT / "pyproject.toml", root)
        yield root


def passes(root: Path, tests: Sequence[str]) -> bool:
    """Whether the tests pass in a copy, run in a fork of this process, which has loaded torch already."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _test_and_exit(root, tests)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _test_and_exit(root: Path, tests: Sequence[str]) -> None:
    """The fork's whole life; whatever happens, it must not go on as a second parent."""
    try:
        with (root / OUTPUT).open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.chdir(root)
        sys.path[:0] = [str(root)]
        sys.dont_write_bytecode = True
        import pytest

        # What is preloaded brings a plugin of pytest's with it, too late to be instrumented.
        options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        options += [f"-pno:{plugin}" for plugin in UNUSED_PLUGINS]
        os._exit(int(pytest.main([*options, *(f"tests/diffusion/{test}" for test in tests)])))
    except BaseException:
        traceback.print_exc()
        os._exit(70)


def failed_test(root: Path) -> str | None:
    """The test that the last run in a copy stopped at; None where it did not come so far (it hung, or did not import)."""
    said = (root / OUTPUT).read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^FAILED tests/diffusion/(\S+)", said, flags=re.MULTILINE)
    return found[1] if found else None


def run(mutations: Sequence[Mutation]) -> list[dict[str, object]]:
    """One row of the report for each mutation.

    Raises:
        RuntimeError: the tests of a file fail without any mutation.
    """
    _preload()
    report: list[dict[str, object]] = []
    with copy_of_repository() as root:
        for tests in sorted({TESTS[mutation.file] for mutation in mutations}):
            if not passes(root, tests):
                said = (root / OUTPUT).read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"{', '.join(tests)} fail without a mutation; mend them first:\n{said}")
        for mutation in mutations:
            path = root / mutation.file
            text = path.read_text(encoding="utf-8")
            path.write_text(mutated_text(mutation, text), encoding="utf-8")
            started = time.monotonic()
            caught = not passes(root, TESTS[mutation.file])
            path.write_text(text, encoding="utf-8")
            report.append({**asdict(mutation), "caught": caught, "caught_by": failed_test(root) if caught else None})
            word = "caught  " if caught else "SURVIVED"
            print(f"{word} {time.monotonic() - started:5.1f} s  {mutation.file}: {mutation.original} -> {mutation.mutated}")
    return report


def _preload() -> None:
    from diffusion.torchvision_shim import ensure_torchvision_imports

    ensure_torchvision_imports()
    for module in PRELOADED:
        importlib.import_module(module)
    # The tests have to import the copy's.
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusion"]:
        del sys.modules[name]


def main(arguments: list[str] | None = None) -> int:
    """Runs the table, or a part of it; writes benchmarks/results/mutations.json when all of it ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows of files with this in their path")
    only = parser.parse_args(arguments).only
    report = run([mutation for mutation in MUTATIONS if only in mutation.file])
    survived = sum(not row["caught"] for row in report)
    print(f"{len(report) - survived} of {len(report)} mutations were caught")
    if not only:
        RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
