"""The recipe of a texture job: a mesh that is there already is painted as a sentence says."""

from __future__ import annotations

from jobs.texture.recipe import TextureResult, texture
from jobs.texture.spec import TextureSpec

__all__ = ["TextureResult", "TextureSpec", "texture"]
