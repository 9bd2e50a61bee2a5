"""What other programs look for in a picture: AUTOMATIC1111's `parameters`, and the mark of a picture made by a model."""

from __future__ import annotations

import os
from collections.abc import Mapping

from orchestrator.exports.transform import generator_name

__all__ = ["DIGITAL_SOURCE_TYPE", "SWITCH", "XMP_KEY", "marked", "parameters", "says_source"]

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's word for media made by a trained model."""
SWITCH = "DREAMKILN_AI_MARK"
"""The environment variable that leaves the IPTC's mark out of pictures and meshes where it is 0, off, no or false."""
XMP_KEY = "XML:com.adobe.xmp"
"""Where PNG files keep XMP (XMP specification part 3, section 1.1.5)."""

# AUTOMATIC1111's names of samplers and of their noise levels, which other programs choose theirs by.
_SAMPLERS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "pndm_prk": "PNDM",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
}
_SCHEDULES = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta"}
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    f"<Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def says_source() -> bool:
    """Whether files say that a trained model made them, as they do unless switched off."""
    return os.environ.get(SWITCH, "1").strip().lower() not in ("0", "off", "no", "false")


def marked(metadata: Mapping[str, str], *, size: tuple[int, int]) -> dict[str, str]:
    """A generated picture's metadata with the two marks beside our own keys; size is (width, height)."""
    source = {XMP_KEY: _XMP} if says_source() else {}
    return {**metadata, "parameters": parameters(metadata, size=size), **source}


def parameters(metadata: Mapping[str, str], *, size: tuple[int, int]) -> str:
    """The text that AUTOMATIC1111 writes under `parameters`, from our keys: prompt, negative prompt, and a line of settings.

    Settings with a comma or a colon in them are quoted, as its reader expects.
    """
    sampler, spacing = metadata.get("sampler", ""), metadata.get("timestep_spacing", "")
    settings = {
        "Steps": metadata.get("steps"),
        "Sampler": _SAMPLERS.get(sampler, sampler) or None,
        "Schedule type": _SCHEDULES.get(spacing),
        "CFG scale": metadata.get("guidance_scale"),
        "Seed": metadata.get("seed"),
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": (metadata.get("prior_hash") or "")[:10] or None,
        "Denoising strength": metadata.get("strength"),
        "Version": generator_name(),
    }
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items() if value is not None)
    negative = metadata.get("negative_prompt")
    return "\n".join([metadata.get("prompt", ""), *([f"Negative prompt: {negative}"] if negative else []), line])


def _quoted(value: str) -> str:
    return f'"{value}"' if any(sign in value for sign in ",:\n") else value
