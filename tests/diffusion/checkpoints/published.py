"""The published configurations of Stable Diffusion, and small pipelines of the same structure with random weights.

The values are those of the configuration files in the repositories stable-diffusion-v1-5, stable-diffusion-2-1-base,
stable-diffusion-2-1 and stable-diffusion-xl-base-1.0; only fields that shape the networks or the schedule are kept.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffusion.text.tokenizer import full_table

SD_BLOCKS = {
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
}
SCHEDULE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
    "trained_betas": None,
}
VAE = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
CLIP_L = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
SD2_UNET = {
    **SD_BLOCKS,
    "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "layers_per_block": 2,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "use_linear_projection": True,
}
OPENCLIP_H = {
    **CLIP_L,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}

PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": {
            **SD_BLOCKS,
            "act_fn": "silu",
            "attention_head_dim": 8,
            "center_input_sample": False,
            "cross_attention_dim": 768,
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": 4,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-5,
            "norm_num_groups": 32,
            "out_channels": 4,
            "sample_size": 64,
        },
        "vae": VAE,
        "text_encoder": CLIP_L,
        "scheduler": {"_class_name": "PNDMScheduler", **SCHEDULE},
    },
    "sd2-base": {
        "unet": {**SD2_UNET, "sample_size": 64, "upcast_attention": False},
        "vae": {**VAE, "scaling_factor": 0.18215},
        "text_encoder": OPENCLIP_H,
        "scheduler": {"_class_name": "PNDMScheduler", **SCHEDULE, "prediction_type": "epsilon"},
    },
    "sd2-v": {
        "unet": {**SD2_UNET, "sample_size": 96, "upcast_attention": True},
        "vae": {**VAE, "sample_size": 768},
        "text_encoder": OPENCLIP_H,
        "scheduler": {"_class_name": "DDIMScheduler", **SCHEDULE, "prediction_type": "v_prediction"},
    },
    "sdxl": {
        "unet": {
            "act_fn": "silu",
            "addition_embed_type": "text_time",
            "addition_embed_type_num_heads": 64,
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "layers_per_block": 2,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "upcast_attention": None,
            "use_linear_projection": True,
        },
        "vae": {**VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": CLIP_L,
        "text_encoder_2": {
            **CLIP_L,
            "architectures": ["CLIPTextModelWithProjection"],
            "hidden_act": "gelu",
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 20,
            "num_hidden_layers": 32,
            "projection_dim": 1280,
        },
        "scheduler": {
            "_class_name": "EulerDiscreteScheduler",
            **SCHEDULE,
            "interpolation_type": "linear",
            "prediction_type": "epsilon",
            "sample_max_value": 1.0,
            "timestep_spacing": "leading",
            "use_karras_sigmas": False,
        },
    },
}
MODELS = sorted(PUBLISHED)

# Two more structures of Stable Diffusion 1.5: RunwayML's inpainting model, and a latent consistency model (2310.04378).
_SD15 = PUBLISHED["sd15"]
PUBLISHED["inpainting"] = {**_SD15, "unet": {**_SD15["unet"], "in_channels": 9}}
PUBLISHED["lcm"] = {
    **_SD15,
    "unet": {**_SD15["unet"], "time_cond_proj_dim": 256},
    "scheduler": {"_class_name": "LCMScheduler", **SCHEDULE, "original_inference_steps": 50, "timestep_scaling": 10.0},
}


def _reduced_text(config: dict[str, Any], width: int, layers: int) -> dict[str, Any]:
    return {
        **config,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "projection_dim": width,
    }


def reduced(model: str) -> dict[str, dict[str, Any]]:
    """The same blocks, heads and switches at a fraction of the width and 8x8 latents."""
    published = PUBLISHED[model]
    levels = len(published["unet"]["block_out_channels"])
    two_towers = "text_encoder_2" in published
    unet = {
        **published["unet"],
        "block_out_channels": [16, 32, 32, 32][:levels],
        "norm_num_groups": 8,
        "cross_attention_dim": 80 if two_towers else 32,
        "attention_head_dim": [2, 4, 4, 4][:levels] if model.startswith("sd2") or two_towers else 8,
        "sample_size": 8,
    }
    if two_towers:
        unet |= {"addition_time_embed_dim": 16, "projection_class_embeddings_input_dim": 48 + 6 * 16}
        unet["transformer_layers_per_block"] = [1, 2, 3]
    small = {
        "unet": unet,
        "vae": {**published["vae"], "block_out_channels": [16, 32, 32, 32], "norm_num_groups": 8},
        "text_encoder": _reduced_text(published["text_encoder"], 32, 3),
        "scheduler": published["scheduler"],
    }
    if two_towers:
        small["text_encoder_2"] = _reduced_text(published["text_encoder_2"], 48, 4)
    return small


def write_tokenizer(folder: Path, pad: str) -> None:
    """A tokenizer folder as OpenAI's CLIP and the repositories have it, with CLIP's whole table."""
    folder.mkdir(parents=True)
    table = full_table()
    start, end = "<|startoftext|>", "<|endoftext|>"
    names = {"<start_of_text>": start, "<end_of_text>": end}
    vocabulary = {names.get(token, token): number for token, number in table.bpe.encoder.items()}
    special = {
        "bos_token": {"content": start, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False},
        "eos_token": {"content": end, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False},
        "pad_token": pad,
        "unk_token": {"content": end, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False},
    }
    config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "pad_token": end}
    merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in table.merges), ""])
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def pads(model: str) -> list[str]:
    """The padding token of each tokenizer."""
    end = "<|endoftext|>"
    return [end, "!"] if model == "sdxl" else ["!"] if model.startswith("sd2") else [end]


# Model -> (pipeline, folder).
Saved = Callable[[str], tuple[Any, Path]]


def random_pipeline(model: str, folder: Path, **unet: Any) -> Any:
    """A diffusers pipeline of reduced networks with random weights, saved to `folder` and read back from there.

    unet: fields of its configuration in place of the reduced ones.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    small = reduced(model)
    parts: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel.from_config({**small["unet"], **unet}),
        "vae": diffusers.AutoencoderKL.from_config(small["vae"]),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**small["text_encoder"])),
        "scheduler": getattr(diffusers, small["scheduler"]["_class_name"]).from_config(small["scheduler"]),
    }
    for i, pad in enumerate(pads(model)):
        name = "tokenizer" if i == 0 else "tokenizer_2"
        write_tokenizer(folder / "tables" / name, pad)
        parts[name] = CLIPTokenizer.from_pretrained(folder / "tables" / name)
    if model == "sdxl":
        parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**small["text_encoder_2"]))
        pipeline = diffusers.StableDiffusionXLPipeline(**parts)
    else:
        checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        kinds = {"inpainting": diffusers.StableDiffusionInpaintPipeline, "lcm": diffusers.LatentConsistencyModelPipeline}
        pipeline = kinds.get(model, diffusers.StableDiffusionPipeline)(**parts, **checker)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        if part is not None:
            _spread_norms(part)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    # diffusers saves tokenizers in a newer form than the published one.
    for table in (folder / "tables").iterdir():
        shutil.rmtree(folder / table.name)
        table.rename(folder / table.name)
    return pipeline


def _spread_norms(module: torch.nn.Module) -> None:
    """Norms start at 1 and 0, and a mistake in copying such weights would be invisible."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.GroupNorm | torch.nn.LayerNorm):
                part.weight.add_(0.1 * torch.randn_like(part.weight))
                part.bias.add_(0.1 * torch.randn_like(part.bias))


SD3 = {
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
"""Stable Diffusion 3 medium's transformer; 3.5 medium's differs in the three settings below."""
SD35_MEDIUM = {**SD3, "pos_embed_max_size": 384, "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm"}
SD3_VAE = {
    **VAE,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
REDUCED_SD3 = {
    "caption_projection_dim": 128,
    "joint_attention_dim": 208,
    "num_attention_heads": 2,
    "num_layers": 3,
    "pooled_projection_dim": 192,
    "pos_embed_max_size": 12,
    "sample_size": 8,
}
T5 = {"d_ff": 48, "d_kv": 8, "d_model": 208, "feed_forward_proj": "gated-gelu", "num_heads": 4, "num_layers": 2}


def write_t5_tokenizer(folder: Path) -> Any:
    """A small unigram tokenizer as T5's is saved: padding 0, end 1, unknown 2."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [(f"\u2581{letter}", -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"] + [
        (letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789,.'\u2581"
    ]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters, ("\u2581mushroom", -2.0), ("\u2581red", -2.0)]
    table = Tokenizer(models.Unigram(pieces, unk_id=2))
    table.normalizer = normalizers.NFKC()
    table.pre_tokenizer = pre_tokenizers.Metaspace()
    table.decoder = decoders.Metaspace()
    table.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=table, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return fast


def random_stable_diffusion_3(folder: Path, *, with_t5: bool = True, is_35: bool = False) -> Any:
    """`random_pipeline` of Stable Diffusion 3 or 3.5, heads of 64 as published, 8x8 latents of 16 channels."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel
    from transformers import T5Config as PublishedT5Config

    torch.manual_seed(0)
    more = {"dual_attention_layers": [0, 1], "qk_norm": "rms_norm"} if is_35 else {}
    towers = [
        {**CLIP_L, "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, "projection_dim": 64},
        {**CLIP_L, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "projection_dim": 128},
    ]
    towers[1]["hidden_act"] = "gelu"
    parts: dict[str, Any] = {
        "transformer": diffusers.SD3Transformer2DModel.from_config({**SD3, **REDUCED_SD3, **more}),
        "vae": diffusers.AutoencoderKL.from_config(
            {**SD3_VAE, "block_out_channels": [16, 32, 32, 32], "norm_num_groups": 16, "sample_size": 64}
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    for i, (tower, pad) in enumerate(zip(towers, ("<|endoftext|>", "!"), strict=True)):
        end = "" if i == 0 else "_2"
        parts[f"text_encoder{end}"] = CLIPTextModelWithProjection(CLIPTextConfig(**{**tower, "num_hidden_layers": 3}))
        write_tokenizer(folder / "tables" / f"tokenizer{end}", pad)
        parts[f"tokenizer{end}"] = CLIPTokenizer.from_pretrained(folder / "tables" / f"tokenizer{end}")
    parts["text_encoder_3"] = parts["tokenizer_3"] = None
    if with_t5:
        parts["tokenizer_3"] = write_t5_tokenizer(folder / "tables/tokenizer_3")
        parts["text_encoder_3"] = T5EncoderModel(PublishedT5Config(**T5, vocab_size=100)).eval()  # it has dropout
    # CLIP-L's own projection is the identity in the published folder, so that single files need not hold it.
    parts["text_encoder"].text_projection.weight.data.copy_(torch.eye(64))
    for network in (parts["transformer"], parts["text_encoder_3"]):
        for name, weight in [] if network is None else network.named_parameters():
            weight.data.normal_(mean=float("norm" in name and name.endswith("norm.weight")), std=0.1)
    pipeline = diffusers.StableDiffusion3Pipeline(**parts)
    _spread_norms(pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    for table in (folder / "tables").iterdir():
        shutil.rmtree(folder / table.name)
        table.rename(folder / table.name)
    return pipeline


QWEN3_4B = {
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
"""Z-Image's and FLUX.2 klein 4B's text tower, Qwen3-4B."""
REDUCED_QWEN3 = {
    "head_dim": 16,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
# Those branches of the published template that a single question of a user meets.
QWEN3_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}{%- endif %}"
)


def write_qwen_tokenizer(folder: Path) -> Any:
    """A small table of byte pairs in Qwen's tokenizer, saved as published: all bytes, six pairs, its special words."""
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    merges = [("r", "e"), ("re", "d"), ("\u0120", "m"), ("u", "s"), ("a", "t"), ("\u0120", "a")]
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Qwen2Tokenizer(vocabulary, merges, chat_template=QWEN3_TEMPLATE)
    tokenizer.add_tokens([AddedToken(word, special=True) for word in ("<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken(word, special=False) for word in ("<think>", "</think>")])
    tokenizer.save_pretrained(folder)
    return tokenizer


def widened_qwen3_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """transformers' norm rounds to float32 what comes in, in float64 too; here it is the mean square alone."""
    return self.weight * (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def random_qwen3(**more: Any) -> Any:
    """transformers' Qwen3 with random weights, norms included."""
    from transformers import Qwen3Config, Qwen3Model

    network = Qwen3Model(Qwen3Config(**{**QWEN3_4B, **REDUCED_QWEN3, **more})).eval()
    for name, weight in network.named_parameters():
        weight.data.normal_(mean=float("norm" in name), std=0.2)
    return network


Z_IMAGE = {
    "all_f_patch_size": [1],
    "all_patch_size": [2],
    "axes_dims": [32, 48, 48],
    "axes_lens": [1024, 512, 512],
    "cap_feat_dim": 2560,
    "dim": 3840,
    "in_channels": 16,
    "n_heads": 30,
    "n_kv_heads": 30,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
}
"""Z-Image's transformer, base and Turbo."""
REDUCED_Z_IMAGE = {"axes_dims": [8, 4, 4], "cap_feat_dim": 48, "dim": 48, "n_heads": 3, "n_kv_heads": 3, "n_layers": 3}


def widened(module: Any, **replaced: str) -> Any:
    """A module of diffusers with some of its words replaced: where it rounds to float32 what is float64."""
    import inspect
    import types

    source = inspect.getsource(module)
    for old, new in replaced.items():
        assert old in source
        source = source.replace(old, new)
    copy = types.ModuleType(module.__name__)
    copy.__package__, copy.__file__ = module.__package__, module.__file__
    exec(compile(source, module.__file__, "exec"), vars(copy))
    return copy


Z_IMAGE_VAE = {**SD3_VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159}
"""FLUX.1's."""


def random_z_image(folder: Path, *, shift: float = 6.0) -> Any:
    """`random_pipeline` of Z-Image, base by its shift or Turbo (3), with 8x8 latents of 16 channels as its own size."""
    import diffusers

    torch.manual_seed(0)
    vae = {**Z_IMAGE_VAE, "block_out_channels": [16, 32, 32, 32], "norm_num_groups": 16, "sample_size": 64}
    parts: dict[str, Any] = {
        "transformer": diffusers.ZImageTransformer2DModel(**{**Z_IMAGE, **REDUCED_Z_IMAGE}),
        "vae": diffusers.AutoencoderKL.from_config(vae),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
        "text_encoder": random_qwen3(),
        "tokenizer": write_qwen_tokenizer(folder / "tokenizer"),
    }
    for name, weight in parts["transformer"].named_parameters():
        weight.data.normal_(mean=float("norm" in name), std=0.1)
    pipeline = diffusers.ZImagePipeline(**parts)
    _spread_norms(pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    config = folder / "transformer/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 8}))
    return pipeline


KLEIN = {
    "attention_head_dim": 128,
    "axes_dims_rope": [32, 32, 32, 32],
    "eps": 1e-6,
    "guidance_embeds": False,
    "in_channels": 128,
    "joint_attention_dim": 7680,
    "mlp_ratio": 3.0,
    "num_attention_heads": 24,
    "num_layers": 5,
    "num_single_layers": 20,
    "out_channels": None,
    "patch_size": 1,
    "rope_theta": 2000,
    "timestep_guidance_channels": 256,
}
"""FLUX.2-klein-4B's transformer, base and distilled."""
REDUCED_KLEIN = {"attention_head_dim": 16, "axes_dims_rope": [4, 4, 4, 4], "num_attention_heads": 3, "joint_attention_dim": 144}
REDUCED_KLEIN |= {"num_layers": 2, "num_single_layers": 3}
KLEIN_VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 32, "norm_num_groups": 32, "sample_size": 1024}
KLEIN_VAE |= {name: VAE[name] for name in ("act_fn", "down_block_types", "up_block_types", "layers_per_block")}
KLEIN_VAE |= {"batch_norm_eps": 1e-4, "batch_norm_momentum": 0.1, "patch_size": [2, 2]}
KLEIN_LAYERS = (1, 2, 3)
"""Of the reduced tower's four, as 9, 18 and 27 are of 36."""


def random_klein_transformer() -> Any:
    """diffusers' class at a reduced width, with random weights."""
    import diffusers

    network = diffusers.Flux2Transformer2DModel(**{**KLEIN, **REDUCED_KLEIN}).eval()
    for name, weight in network.named_parameters():
        weight.data.normal_(mean=float("norm_" in name and "norm_out" not in name), std=0.1)
    return network


def random_klein_autoencoder() -> Any:
    """diffusers' class at a reduced width, with random weights and statistics."""
    import diffusers

    vae = diffusers.AutoencoderKLFlux2(
        **{**KLEIN_VAE, "block_out_channels": [16, 32, 32, 32], "norm_num_groups": 16, "sample_size": 64}
    )
    _spread_norms(vae)
    vae.bn.running_mean.normal_(std=0.5)
    vae.bn.running_var.uniform_(0.5, 3)
    return vae.eval()


def random_klein(folder: Path, *, is_distilled: bool = False) -> Any:
    """`random_pipeline` of FLUX.2 klein, base or distilled, with 8x8 latents of 32 channels as its own size."""
    import diffusers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    tower = Qwen3ForCausalLM(Qwen3Config(**{**QWEN3_4B, **REDUCED_QWEN3})).eval()
    for name, weight in tower.named_parameters():
        weight.data.normal_(mean=float("norm" in name), std=0.2)
    tokenizer = write_qwen_tokenizer(folder / "tokenizer")
    pipeline = diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=random_klein_autoencoder(),
        text_encoder=tower,
        tokenizer=tokenizer,
        transformer=random_klein_transformer(),
        is_distilled=is_distilled,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    config = folder / "transformer/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 8}))
    return pipeline
