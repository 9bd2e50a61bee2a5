"""The sizes of the toybox prior's parts and how long each is trained."""

from dataclasses import replace

from diffusion.networks.autoencoder_tiny import AutoencoderTinyConfig
from diffusion.networks.multi_view import MultiViewConfig
from diffusion.networks.unet import UNetConfig
from diffusion.schedule import NoiseSchedule
from diffusion.text.clip import ClipConfig, TextConfig
from diffusion.text.tokenizer import Tokenizer
from diffusion.training.loop import LoopConfig
from nerf3d.toybox.items import ELEVATION_JITTER
from nerf3d.toybox.words import vocabulary

CONTEXT_LENGTH = 24
IMAGE_SIZE = 64

# No blocks at full resolution: on a CPU they would cost more than all the others together.
AUTOENCODER = AutoencoderTinyConfig(
    encoder_block_out_channels=(32, 32, 32),
    decoder_block_out_channels=(32, 32, 32),
    num_encoder_blocks=(0, 1, 2),
    num_decoder_blocks=(2, 1, 0),
    latent_channels=8,
)
# Heads of about 64 where tokens are many: CPU attention costs heads x tokens^2.
UNET = UNetConfig(
    sample_size=16,
    in_channels=8,
    out_channels=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(64, 192, 224),
    layers_per_block=1,
    cross_attention_dim=192,
    attention_head_dim=(1, 3, 4),
    use_linear_projection=True,
    addition_embed_type="text",
    addition_embed_type_num_heads=3,
)
# What the denoiser becomes when it is told its cameras; the features of places go where its transformers are (8x8 and 4x4).
MULTI_VIEW = MultiViewConfig(num_views=4, position_levels=(1, 2), elevation_jitter=ELEVATION_JITTER)
SCHEDULE = NoiseSchedule(
    beta_schedule="squaredcos_cap_v2",
    prediction_type="v_prediction",
    timestep_spacing="trailing",
    set_alpha_to_one=True,
)

LOOPS = {
    "autoencoder": LoopConfig(num_steps=3300, batch_size=16, learning_rate=2e-3, ema_decay=0.998),
    "decoder": LoopConfig(num_steps=6000, batch_size=16, learning_rate=1e-3, ema_decay=0.998),
    "clip": LoopConfig(num_steps=480, batch_size=128, learning_rate=1e-3, warmup_steps=60, ema_decay=0.995),
    "judge": LoopConfig(num_steps=1600, batch_size=128, learning_rate=1e-3, warmup_steps=60, ema_decay=0.995, seed=7),
    "denoiser": LoopConfig(num_steps=5000, batch_size=96, learning_rate=1.2e-3, optimizer="muon"),
    "views": LoopConfig(
        num_steps=4200, batch_size=96, learning_rate=1e-3, warmup_steps=50, decay_fraction=0.5, optimizer="muon"
    ),
}


def toybox_tokenizer() -> Tokenizer:
    """CLIP's tokenizer cut down to the toybox's words."""
    return Tokenizer.for_words(vocabulary(), CONTEXT_LENGTH)


def text_config(tokenizer: Tokenizer) -> TextConfig:
    """The conditioning tower."""
    return TextConfig(vocab_size=tokenizer.vocab_size, context_length=CONTEXT_LENGTH)


def clip_config(tokenizer: Tokenizer) -> ClipConfig:
    """The pair whose text half conditions the prior: two transformers."""
    vision = {"image_size": IMAGE_SIZE, "patch_size": 16, "layers": 4, "width": 192, "head_width": 64}
    return ClipConfig(192, text_config(tokenizer), vision)


def judge_config(tokenizer: Tokenizer) -> ClipConfig:
    """The judge, of another architecture: a ResNet and a narrower text tower. Never used for conditioning."""
    vision = {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 24, "head_width": 64}
    return ClipConfig(128, replace(text_config(tokenizer), width=128, heads=2, layers=2), vision)
