"""Editing a picture from the command line: what is kept, what the fingerprint holds, and what bad input earns."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.schedule import NoiseSchedule
from jobs.errors import InputError, Interrupted
from jobs.images import EditSource, images
from jobs.kinds import spec_from_json
from jobs.prior_client import PriorInfo
from jobs.specs import ImagesSpec
from nerf3d.toybox.items import make_item
from nerf3d.toybox.render import render_items
from orchestrator.cli.main import main
from orchestrator.prior.local import LocalPrior, load_prior
from orchestrator.run.edit_pictures import EditPictures
from orchestrator.run.perform import perform
from orchestrator.settings.groups import RuntimeSettings
from tests.fakes import FakePrior, load_fake_prior
from tests.orchestrator.run.test_perform import StopAt, digests, manifest

INLINE = RuntimeSettings(kind="inline", num_threads=1)


def noisy_picture(size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def right_half(size: int = 16) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[:, size // 2 :] = 255
    return mask


def toybox_picture() -> torch.Tensor:
    """(3, 64, 64) in [0, 1]"""
    pictures, _ = render_items([make_item(4)])
    return pictures[0]


def save(folder, image: np.ndarray, name: str = "picture.png"):
    Image.fromarray(image).save(folder / name)
    return folder / name


def drawn(folder, index: int = 0) -> np.ndarray:
    with Image.open(folder / f"{index:09d}.png") as image:
        return np.asarray(image)


PICTURES = EditPictures(noisy_picture(), right_half())
SPEC = ImagesSpec(prompt="a blue ball", num_images=4, num_steps=5, chunk_size=2, **PICTURES.hashes)


def run(spec: ImagesSpec, out, pictures: EditPictures | None = PICTURES, **more):
    return perform(spec, out=out, runtime=INLINE, load_prior=load_fake_prior, pictures=pictures, **more)


# ------------------------------------------------------------------------------------------------ the pixels


def test_a_picture_of_the_priors_size_is_not_touched():
    source = EditPictures(noisy_picture(), None).fit((16, 16))
    np.testing.assert_array_equal((source.image * 255).round().byte().permute(1, 2, 0).numpy(), noisy_picture())
    assert source.mask is None


def test_a_larger_picture_is_cropped_to_its_middle_and_shrunk_without_aliasing():
    image = np.zeros((96, 160, 3), np.uint8)
    image[:, 32:128] = 255 * (np.indices((96, 96)).sum(0) % 2)[..., None]  # a checkerboard that plain striding turns flat
    source = EditPictures(image).fit((16, 16))
    assert source.image.shape == (3, 16, 16)
    assert float((source.image[:, 2:-2, 2:-2] - 0.5).abs().max()) < 0.02


def test_a_picture_keeps_its_aspect_unless_the_job_or_the_prior_says_otherwise():
    wide = EditPictures(np.zeros((90, 160, 3), np.uint8))
    info = PriorInfo(name="any", weights_hash="", image_size=512, schedule=NoiseSchedule(), size_multiple=8)
    assert wide.size_in(SPEC, info) == (384, 680)  # 90:160 at about 512 x 512 pixels
    assert wide.size_in(dataclasses.replace(SPEC, width=256, height=512), info) == (512, 256)
    assert wide.size_in(dataclasses.replace(SPEC, width=512), info) == (512, 512)
    assert wide.size_in(SPEC, dataclasses.replace(info, vocabulary=("a",))) == (512, 512)
    tall = np.zeros((64, 32, 3), np.uint8)
    tall[16:48] = 255
    cut = EditPictures(tall).fit((8, 8)).image
    assert bool((cut > 0.99).all())  # the middle of it


def test_the_masks_edge_is_soft_inwards_only():
    source = PICTURES.fit((16, 16), feather=1.0)
    assert source.mask is not None
    row = source.mask[0, 5]
    assert torch.equal(row[:8], torch.zeros(8))
    assert 0.6 < row[8] < row[9] < row[10] and float(row[11:].min()) > 0.999
    hard = PICTURES.fit((16, 16)).mask
    assert hard is not None and torch.equal(hard[0] * 255, torch.tensor(right_half()).float())


def test_transparency_is_white_in_a_picture_and_black_in_a_mask(tmp_path):
    strokes = np.zeros((4, 4, 4), np.uint8)
    strokes[0] = (255, 255, 255, 255)
    strokes[1] = (200, 0, 0, 255)
    path = save(tmp_path, strokes)
    pictures = EditPictures.read(path, path)
    assert pictures.image[3, 3].tolist() == [255, 255, 255] and pictures.image[1, 0].tolist() == [200, 0, 0]
    assert pictures.mask is not None and pictures.mask[:, 0].tolist() == [255, 60, 0, 0]


def test_the_hash_is_of_the_pixels_not_of_the_file(tmp_path):
    Image.fromarray(noisy_picture()).save(tmp_path / "a.png", compress_level=0)
    Image.fromarray(noisy_picture()).save(tmp_path / "b.bmp")
    hashes = [EditPictures.read(tmp_path / name).hashes for name in ("a.png", "b.bmp")]
    assert hashes[0] == hashes[1] and hashes[0] != EditPictures(noisy_picture(seed=1)).hashes
    assert EditPictures(np.zeros((2, 8, 3), np.uint8)).hashes != EditPictures(np.zeros((8, 2, 3), np.uint8)).hashes


# -------------------------------------------------------------------------------------------------- the spec


def test_the_fingerprint_knows_the_picture_the_mask_and_the_strength():
    others = [
        SPEC,
        dataclasses.replace(SPEC, init_image="0" * 64),
        dataclasses.replace(SPEC, mask="0" * 64),
        dataclasses.replace(SPEC, strength=0.5),
        dataclasses.replace(SPEC, mask_feather=0.0),
        dataclasses.replace(SPEC, guidance_interval=(100, 900)),
    ]
    assert len({spec.fingerprint() for spec in others}) == len(others)
    assert spec_from_json(SPEC.to_json()) == SPEC


def test_the_strength_that_nobody_gave():
    assert ImagesSpec(prompt="a", init_image="0" * 64).strength == 0.6
    assert SPEC.strength == 1.0 and ImagesSpec(prompt="a").strength is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strength": 1.2, "init_image": "0" * 64}, "strength is 1.2, but 0 to 1"),
        ({"mask": "0" * 64}, "a mask but no picture"),
        ({"mask_feather": -1}, "mask_feather is -1"),
        ({"guidance_interval": (500, 200)}, r"guidance_interval is \[500, 200\]"),
    ],
)
def test_settings_that_are_refused(changes, reason):
    with pytest.raises(InputError, match=reason):
        ImagesSpec(prompt="a chair", **changes)


# --------------------------------------------------------------------------------------------------- the job


def test_the_recipe_hands_the_prior_what_the_spec_says():
    asked = []

    class Listening(LocalPrior):
        def generate(self, request):
            asked.append(request)
            return super().generate(request)

    source = PICTURES.fit((16, 16))
    spec = dataclasses.replace(SPEC, strength=0.5, negative_prompt="red", guidance_interval=(100, 900), guidance_rescale=0.2)
    list(images(spec, Listening(FakePrior()), source=source))
    request = asked[0]
    assert request.strength == 0.5 and request.negative_prompt == "red"
    assert request.guidance.interval == (100, 900) and request.guidance.rescale == 0.2
    torch.testing.assert_close(request.init_images, source.image.expand(2, -1, -1, -1))
    torch.testing.assert_close(request.masks, source.mask.expand(2, -1, -1, -1))


def test_a_job_without_its_picture_is_refused():
    with pytest.raises(InputError, match="is not there; start the job with --init-image"):
        list(images(SPEC, LocalPrior(FakePrior())))


def test_what_the_mask_keeps_is_in_the_file_to_the_last_bit(tmp_path):
    run(SPEC, tmp_path)
    for index in range(4):
        np.testing.assert_array_equal(drawn(tmp_path, index)[:, :8], noisy_picture()[:, :8])
        assert np.abs(drawn(tmp_path, index)[:, 8:].astype(int) - noisy_picture()[:, 8:]).mean() > 20


def test_the_two_ends_of_strength(tmp_path):
    plain = EditPictures(noisy_picture())
    spec = ImagesSpec(prompt="a blue ball", num_images=1, num_steps=5, **plain.hashes)
    run(dataclasses.replace(spec, strength=0.0), tmp_path / "none", plain)
    np.testing.assert_array_equal(drawn(tmp_path / "none"), noisy_picture())
    run(dataclasses.replace(spec, strength=1.0), tmp_path / "all", plain)
    run(ImagesSpec(prompt="a blue ball", num_images=1, num_steps=5), tmp_path / "without", None)
    np.testing.assert_array_equal(drawn(tmp_path / "all"), drawn(tmp_path / "without"))


def test_the_folder_keeps_the_pictures_and_the_files_say_how_they_were_made(tmp_path):
    run(SPEC, tmp_path)
    assert {"init.png", "mask.png"} <= set(digests(tmp_path))
    copies = EditPictures.read(tmp_path / "init.png", tmp_path / "mask.png")
    assert copies.hashes == PICTURES.hashes == {key: manifest(tmp_path)["spec"][key] for key in ("init_image", "mask")}
    with Image.open(tmp_path / "000000002.png") as image:
        text = image.text
    assert text["strength"] == "1.0" and text["init_image_sha256"] == SPEC.init_image and text["mask_sha256"] == SPEC.mask
    assert text["guidance_interval"] == "0-1000"


def test_a_stopped_edit_goes_on_from_the_copies_in_its_folder(tmp_path):
    run(SPEC, tmp_path / "whole")
    with pytest.raises(Interrupted, match="2 of 4 images"):
        run(SPEC, tmp_path / "parts", display=StopAt("draw", 2))
    outcome = run(SPEC, tmp_path / "parts", None)
    assert outcome.did == "resume"
    pictures = {name: value for name, value in digests(tmp_path / "whole").items() if name.endswith(".png")}
    assert pictures.items() <= digests(tmp_path / "parts").items()


def test_a_copy_that_was_edited_is_not_taken_for_the_picture(tmp_path):
    with pytest.raises(Interrupted):
        run(SPEC, tmp_path, display=StopAt("draw", 2))
    save(tmp_path, noisy_picture(seed=5), "init.png")
    with pytest.raises(InputError, match=r"init\.png and mask\.png in .* are not what the job was begun with"):
        run(SPEC, tmp_path, None)


def test_another_picture_is_another_job(tmp_path):
    run(SPEC, tmp_path)
    other = EditPictures(noisy_picture(seed=3), right_half())
    with pytest.raises(InputError, match="belongs to another job"):
        run(dataclasses.replace(SPEC, **other.hashes), tmp_path, other)


# ------------------------------------------------------------------------------------------- the command line


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["images", "a red mushroom", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.strip().splitlines()) == 1, captured.err
    return captured.err


def test_bad_pictures_earn_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = save(tmp_path, noisy_picture())
    small, black = save(tmp_path, right_half(8), "small.png"), save(tmp_path, right_half() * 0, "black.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:200])
    deep = save(tmp_path, np.zeros((8, 8), np.uint16), "deep.png")
    assert "--mask mask.png says how to change a picture, but there is none" in refused(capsys, "--mask", "mask.png")
    assert "--strength 0.5 says how" in refused(capsys, "--strength", "0.5")
    assert "There is no picture nowhere.png" in refused(capsys, "--init-image", "nowhere.png")
    assert "text.png could not be read as a picture" in refused(capsys, "--init-image", tmp_path / "text.png")
    assert "cut.png could not be read as a picture" in refused(capsys, "--init-image", tmp_path / "cut.png")
    assert "could not be read as a picture" in refused(capsys, "--init-image", tmp_path)
    assert "save it with 8 bits a channel" in refused(capsys, "--init-image", deep)
    assert "strength is 1.5, but 0 to 1" in refused(capsys, "--init-image", picture, "--strength", "1.5")
    assert "small.png has 8x8 pixels, but the picture" in refused(capsys, "--init-image", picture, "--mask", small)
    assert "is black everywhere" in refused(capsys, "--init-image", picture, "--mask", black)
    assert "There is no picture" in refused(capsys, "--init-image", picture, "--mask", "nomask.png")


def test_a_huge_picture_is_refused_before_it_is_decoded(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.run.edit_pictures.MAX_PIXELS", 255)
    assert "has 16x16 pixels; give a picture of at most 255" in refused(capsys, "--init-image", save(tmp_path, noisy_picture()))


def test_the_toybox_prior_repaints_what_the_mask_says(capsys, tmp_path):
    """The command as a user gives it: the surroundings of a rendered thing stay, and the middle becomes another."""
    picture = (toybox_picture() * 255).round().byte().permute(1, 2, 0).numpy()
    mask = np.zeros((64, 64), np.uint8)
    mask[16:52, 16:52] = 255
    given = [save(tmp_path, picture), save(tmp_path, mask, "mask.png")]
    out = tmp_path / "run"
    arguments = ["images", "a green ball", "--init-image", given[0], "--mask", given[1], "--num-images", 2, "--steps", 8]
    arguments += ["--negative-prompt", "a red ball", "--guidance-rescale", 0.4, "images.guidance_interval=[50,950]"]
    assert main([*map(str, arguments), "--out", str(out), "--runtime", "inline", "runtime.num_threads=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    spec = manifest(out)["spec"]
    assert spec["negative_prompt"] == "a red ball" and spec["guidance_rescale"] == 0.4 and spec["strength"] == 1.0
    for index in range(2):
        result = drawn(out, index)
        np.testing.assert_array_equal(result[mask == 0], picture[mask == 0])
        assert np.abs(result[mask > 0].astype(int) - picture[mask > 0]).mean() > 5


def test_more_strength_moves_the_toybox_prior_further_from_the_picture():
    prior = load_prior("toybox")
    source = EditSource(toybox_picture())
    spec = ImagesSpec(prompt="a blue table", num_images=2, num_steps=10, init_image="0" * 64)
    distances = []
    for strength in (0.2, 0.5, 0.9):
        events = images(dataclasses.replace(spec, strength=strength), prior, source=source)
        pictures = [torch.tensor(event.image) for event in events if hasattr(event, "image")]
        difference = torch.stack(pictures).permute(0, 3, 1, 2) / 255 - source.image
        distances.append(float(difference.square().mean().sqrt()))
    assert distances[0] < distances[1] < distances[2]
