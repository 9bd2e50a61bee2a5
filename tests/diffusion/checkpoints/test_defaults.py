"""How priors are drawn with unless told otherwise, from their configurations and names alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffusion.checkpoints.defaults import _FLOWS, DISTILLED, FAMILIES, defaults_of
from diffusion.checkpoints.source import DISTILLED as KINDS
from diffusion.checkpoints.source import Source
from diffusion.flow_schedule import FlowSchedule
from diffusion.samplers import SAMPLERS, timesteps_for
from diffusion.schedule import NoiseSchedule


def folder_of(tmp_path: Path, *, scheduler: dict[str, Any], unet: dict[str, Any] | None = None, xl: bool = False) -> Path:
    for name, content in (("unet/config.json", unet or {}), ("scheduler/scheduler_config.json", scheduler)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    if xl:
        (tmp_path / "text_encoder_2").mkdir()
    return tmp_path


def values_of(location: Path | str) -> tuple[Any, ...]:
    values = defaults_of(Source.parse(str(location))).values
    names = ("num_steps", "guidance_scale", "guidance_rescale", "sampler", "timestep_spacing")
    return tuple(values[name] for name in names)


def test_the_toybox_and_priors_of_ours_have_their_own(tmp_path: Path) -> None:
    (tmp_path / "dreamkiln.json").write_text("{}")
    assert defaults_of(Source("toybox")).values == defaults_of(Source(str(tmp_path))).values == {}
    (tmp_path / "dreamkiln.json").write_text('{"defaults": {"sampler": "euler", "num_steps": 30, "size": 64}}')
    found = defaults_of(Source(str(tmp_path)))
    assert found.values == {"sampler": "euler", "num_steps": 30} and found.origins["sampler"] == "dreamkiln.json"


@pytest.mark.parametrize(
    ("scheduler", "options", "expected"),
    [
        ({"_class_name": "PNDMScheduler"}, {}, (50, 7.5, 0.0, "pndm", None)),
        ({"_class_name": "EulerDiscreteScheduler"}, {"xl": True}, (50, 5.0, 0.0, "euler", None)),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            {},
            (25, 7.5, 0.0, "dpmpp_2m", "karras"),
        ),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, {}, (50, 7.5, 0.7, "ddim", None)),
        ({}, {"unet": {"cross_attention_dim": 1024}}, (25, 7.5, 0.0, "dpmpp_2m", "karras")),
        ({"_class_name": "LCMScheduler"}, {"unet": {"time_cond_proj_dim": 256}}, (4, 8.5, 0.0, "lcm", None)),
    ],
)
def test_a_folder_s_own_configuration_counts(scheduler: Any, options: Any, expected: Any, tmp_path: Path) -> None:
    assert values_of(folder_of(tmp_path, scheduler=scheduler, **options)) == expected


@pytest.mark.parametrize(
    ("name", "tensor", "expected"),
    [
        ("model", "cond_stage_model.transformer.x", (25, 7.5, 0.0, "dpmpp_2m", "karras")),
        ("model", "conditioner.embedders.1.model.x", (50, 5.0, 0.0, "euler", "leading")),
        ("sd_xl_turbo_1.0", "conditioner.embedders.1.model.x", (4, 1.0, 0.0, "euler_ancestral", "trailing")),
        ("sdxl_lightning_8step", "conditioner.embedders.1.model.x", (8, 1.0, 0.0, "euler", "trailing")),
        ("Hyper-SDXL-1step", "conditioner.embedders.1.model.x", (1, 1.0, 0.0, "ddim", "trailing")),
    ],
)
def test_a_file_s_names_and_its_own_name_count(name: str, tensor: str, expected: Any, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.safetensors"
    save_file({tensor: torch.zeros(1)}, path)
    assert values_of(path) == expected
    if expected[1] == 1.0:
        assert "is taken for a model distilled to few steps" in defaults_of(Source(str(path))).note
        assert defaults_of(Source(str(path))).distilled in name.lower()
        assert defaults_of(Source(str(path))).image_size == (512 if "turbo" in name else 1024)
        assert values_of(f"{path}?distilled=none") == (50, 5.0, 0.0, "euler", "leading")
        assert defaults_of(Source.parse(f"{path}?distilled=none")).distilled == ""


def test_a_lora_and_the_option_count_and_ordinary_names_do_not(tmp_path: Path) -> None:
    path = tmp_path / "photo.safetensors"
    save_file({"cond_stage_model.transformer.x": torch.zeros(1)}, path)
    assert values_of(f"{path}?lora=lcm-lora-sdv1-5.safetensors:1")[3] == "lcm"
    assert values_of(f"{path}?distilled=turbo")[4] == "trailing"
    assert defaults_of(Source.parse(f"{path}?distilled=turbo")).note == ""
    assert defaults_of(Source.parse(f"{path}?lora=lcm-lora-sdv1-5.safetensors")).distilled == "lcm-lora"
    for ordinary in ("hyperrealism_v3", "balcmint"):
        other = path.rename(tmp_path / f"{ordinary}.safetensors")
        assert values_of(other)[1] == 7.5
        path = other


def test_every_default_is_one_that_its_sampler_takes() -> None:
    for name, (steps, _, _, sampler, spacing) in (FAMILIES | DISTILLED).items():
        assert sampler in SAMPLERS
        # Flows begin at their last level, however few steps they take.
        is_flow = name in _FLOWS or name == "steps"
        schedule = FlowSchedule() if is_flow else NoiseSchedule()
        first = float(timesteps_for(sampler, schedule, steps, spacing=spacing)[0])
        assert first == 1000 if is_flow else first >= 0.9 * 999 and (steps > 10 or first == 999)
    assert {"none", *DISTILLED} == set(KINDS)
