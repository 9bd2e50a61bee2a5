"""From a network's configuration to the network: pixels through a UNet, points through an MLP, one call for both."""

from dataclasses import replace
from typing import Any

from diffusion.errors import DiffusionError
from diffusion.networks.joint_transformer import JointTransformer, JointTransformerConfig, begin
from diffusion.networks.mlp import MLP, MLPConfig
from diffusion.networks.pixel_unet import PixelUNet, PixelUNetConfig

NetworkConfig = PixelUNetConfig | MLPConfig | JointTransformerConfig
Network = PixelUNet | MLP | JointTransformer
"""forward(x (B, ...), t (B,), *, labels=None (B,), context=None (B, S, D)) -> (B, ...); a transformer always has a context."""


def build_network(config: NetworkConfig) -> Network:
    """The untrained network of a configuration."""
    match config:
        case PixelUNetConfig():
            return PixelUNet(config)
        case JointTransformerConfig():
            return begin(JointTransformer(config))
        case MLPConfig(in_dim, hidden, out_dim, layers, num_classes):
            return MLP(in_dim, hidden, out_dim, layers=layers, num_classes=num_classes)


def network_config_for(shape: tuple[int, ...], default: Any) -> NetworkConfig:
    """`default`, made to fit data of shape (C, H, W), or, for points (D,), the default MLP.

    Raises:
        DiffusionError: pictures that are not square, or a shape that is neither.
    """
    match shape:
        case (dim,):
            return MLPConfig(in_dim=dim, out_dim=dim)
        case (channels, height, width) if height == width:
            base = default if isinstance(default, PixelUNetConfig) else PixelUNetConfig()
            return replace(base, sample_size=height, in_channels=channels, out_channels=channels)
    raise DiffusionError.explained(
        f"an item of the data has shape {shape}", expected="(D,) or a square (C, H, W)", fix="crop or resize it"
    )


def with_channels(config: NetworkConfig, *, inputs: int | None = None, outputs: int | None = None) -> NetworkConfig:
    """The configuration with other numbers of input and output channels (dimensions, for points); None keeps them."""
    if isinstance(config, MLPConfig):
        return replace(config, in_dim=inputs or config.in_dim, out_dim=outputs or config.out_dim)
    return replace(config, in_channels=inputs or config.in_channels, out_channels=outputs or config.out_channels)
