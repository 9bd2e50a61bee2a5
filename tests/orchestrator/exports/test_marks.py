"""Pictures as other programs read them: AUTOMATIC1111's parameters by a public reader, and the IPTC's mark."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from jobs.events import ImageReady
from jobs.specs import ImagesSpec
from orchestrator.exports import Placement, write_glb
from orchestrator.exports.marks import DIGITAL_SOURCE_TYPE, SWITCH, XMP_KEY, marked, parameters
from orchestrator.exports.png_metadata import read_png_metadata, write_png
from orchestrator.run.artefacts import write_image
from tests.orchestrator.exports.sample_meshes import tower

SPEC = ImagesSpec(
    prompt="a (red:1.2) fox, über snow: 8k",
    negative_prompt="blurry, low quality",
    seed=42,
    num_steps=25,
    guidance_scale=7.5,
    sampler="dpmpp_2m",
    timestep_spacing="karras",
    prior="models/sd15",
)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    event = ImageReady(index=0, seed=42, image=np.zeros((24, 16, 3), np.uint8))
    return write_image(event, tmp_path, SPEC, prior_hash="0123456789abcdef")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_public_reader_finds_prompt_and_settings(picture: Path) -> None:
    from sd_parsers import ParserManager

    info = ParserManager().parse(picture)
    assert info is not None and [prompt.value for prompt in info.prompts] == [SPEC.prompt]
    assert [prompt.value for prompt in info.negative_prompts] == [SPEC.negative_prompt]
    (sampler,) = info.samplers
    assert sampler.name == "DPM++ 2M" and str(sampler.parameters["seed"]) == "42"
    assert str(sampler.parameters["steps"]) == "25" and str(sampler.parameters["cfg_scale"]) == "7.5"


def test_our_own_keys_stay_beside(picture: Path) -> None:
    found = read_png_metadata(picture)
    assert found["sampler"] == "dpmpp_2m" and found["seed"] == "42"
    line = found["parameters"].splitlines()[-1]
    assert "Schedule type: Karras" in line and "Size: 16x24" in line and "Model hash: 0123456789" in line


def test_the_mark_is_xmp_that_names_the_source(picture: Path) -> None:
    with Image.open(picture) as image:
        image.load()
        text = str(image.text[XMP_KEY])
    packet = text[text.index("<x:xmpmeta") : text.index("<?xpacket end")]
    (source,) = ElementTree.fromstring(packet).iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert source.text == DIGITAL_SOURCE_TYPE and DIGITAL_SOURCE_TYPE.endswith("/trainedAlgorithmicMedia")


def test_settings_with_commas_are_quoted_and_nothing_is_made_up(tmp_path: Path) -> None:
    text = parameters({"prompt": "a", "sampler": "odd, one", "seed": "1"}, size=(8, 8))
    assert 'Sampler: "odd, one"' in text and "Steps" not in text and "Negative" not in text
    path = write_png(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.png", marked({"prompt": "a"}, size=(8, 8)))
    assert read_png_metadata(path)["prompt"] == "a"


@pytest.mark.parametrize(("value", "there"), [("0", False), ("off", False), ("1", True), ("", True)])
def test_the_mark_can_be_switched_off(value: str, there: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(SWITCH, value)
    found = marked({"prompt": "a fox"}, size=(8, 8))
    assert (XMP_KEY in found) is there and "parameters" in found
    [path] = write_glb(tower(), tmp_path / "mesh.glb", Placement())
    assert (DIGITAL_SOURCE_TYPE.encode() in path.read_bytes()) is there
