"""How a given mesh is painted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from diffusion.checkpoints.lora_files import AdapterFile, Embedding, Lora
from diffusion.distillation import DistillationConfig
from jobs import codec
from jobs.specs import Spec, check_formats, check_seed
from jobs.words.prompts import check_prompt
from nerf3d.surface import PaintConfig

__all__ = ["TextureSpec"]


@dataclass(frozen=True, kw_only=True)
class TextureSpec(Spec):
    """One mesh and one sentence to the same mesh with a texture.

    Args:
        prompt: the sentence, 1 to 2,000 characters.
        mesh_sha256: sha256 of the mesh's file, which travels beside the spec.
        up: the file's upward axis.
        seed, prior, strict, formats, loras, embeddings: as `jobs.specs.TextTo3DSpec` takes them.
        texture, distillation: the settings of the two packages that do the work.

    Raises:
        InputError: a value that is not allowed, named.
    """

    kind: ClassVar[str] = "texture"

    prompt: str
    mesh_sha256: str
    up: str = "y"
    seed: int = 0
    prior: str = "toybox"
    strict: bool = False
    formats: tuple[str, ...] = field(default=("glb",), metadata=codec.NOT_IN_FINGERPRINT)
    loras: tuple[Lora, ...] = field(default=(), metadata=codec.IN_FINGERPRINT_IF_SET)
    embeddings: tuple[Embedding, ...] = field(default=(), metadata=codec.IN_FINGERPRINT_IF_SET)
    texture: PaintConfig = field(default_factory=PaintConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", check_prompt(self.prompt))
        check_prompt(self.distillation.negative_prompt, name="negative prompt", allow_empty=True)
        object.__setattr__(self, "formats", check_formats(self.formats))
        check_seed(self.seed)

    @property
    def adapters(self) -> tuple[AdapterFile, ...]:
        """Its LoRAs, and after them its textual inversions."""
        return (*self.loras, *self.embeddings)

    @property
    def title(self) -> str:
        """The prompt."""
        return self.prompt
