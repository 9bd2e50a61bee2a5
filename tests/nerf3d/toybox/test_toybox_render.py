"""What the renderer promises about colours, coverage, batches and devices."""

import pytest
import torch
from torch.testing import assert_close

from nerf3d.cameras import Cameras
from nerf3d.toybox.items import make_item
from nerf3d.toybox.render import render_items, render_object
from nerf3d.toybox.truth import object_from_prompt

ITEMS = [make_item(index) for index in range(24)]


def test_shapes_and_ranges():
    rgb, alpha = render_items(ITEMS, size=32)
    assert rgb.shape == (24, 3, 32, 32) and alpha.shape == (24, 1, 32, 32)
    assert rgb.min() >= 0 and rgb.max() <= 1
    assert set((alpha * 4).unique().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert (alpha[..., 0, :].amax() == 0) and (alpha.amax((1, 2, 3)) == 1).all(), "an object fills the frame and fits it"


def test_an_image_does_not_depend_on_its_neighbours():
    rgb, alpha = render_items(ITEMS, size=32)
    for chunk in (1, 7):
        again, mask = render_items(ITEMS, size=32, images_per_chunk=chunk)
        assert_close(again, rgb, atol=0, rtol=0)
        assert_close(mask, alpha, atol=0, rtol=0)


def test_background_shows_where_nothing_is():
    rgb, alpha = render_items(ITEMS, size=32)
    background = torch.tensor([item.background for item in ITEMS])[:, :, None, None].expand_as(rgb)
    empty = (alpha == 0).expand_as(rgb)
    assert_close(rgb[empty], background[empty])


def test_lambert_lies_between_ambient_and_full_albedo():
    lit, alpha = render_items(ITEMS, size=32, supersample=1)
    plain, _ = render_items(ITEMS, size=32, supersample=1, shading="albedo")
    white, _ = render_items(ITEMS, size=32, supersample=1, shading="textureless")
    inside = (alpha > 0).expand_as(lit)
    ambient = torch.tensor([item.ambient for item in ITEMS])[:, None, None, None].expand_as(lit)
    assert (white[inside] >= ambient[inside] - 1e-6).all()
    assert_close(lit[inside], (plain * white)[inside])


def test_normals_face_the_camera():
    ball = object_from_prompt("a red ball")
    cameras = Cameras.orbit([0, 90, 200], [0, 30, -5])
    rgb, alpha = render_object(ball.parts, cameras, 33, supersample=1, shading="normal")
    centre = rgb[:, :, 16, 16] * 2 - 1
    towards = torch.nn.functional.normalize(cameras.camera_to_world[:, :3, 3], dim=-1)
    assert (alpha[:, 0, 16, 16] == 1).all()
    assert_close(centre, towards, atol=2e-3, rtol=0)


def test_named_parts_are_on_the_promised_side():
    """A mug's handle is on +X: on the right of the front view, on the left from behind, hidden from the right side."""
    mug = object_from_prompt("a red mug with a blue handle")
    rgb, _ = render_object(mug.parts, Cameras.orbit([0, 180, 270], [5] * 3), 48, shading="albedo")
    blue = (rgb[:, 2] > 0.6) & (rgb[:, 0] < 0.3)
    columns = torch.arange(48.0)
    assert (blue[0] * columns).sum() / blue[0].sum() > 30
    assert (blue[1] * columns).sum() / blue[1].sum() < 18
    assert blue[2].sum() == 0


def test_a_duck_shows_its_beak_in_front():
    duck = object_from_prompt("a yellow duck with a blue beak")
    rgb, _ = render_object(duck.parts, Cameras.orbit([0, 180], [5] * 2), 48, shading="albedo")
    blue = ((rgb[:, 2] > 0.6) & (rgb[:, 0] < 0.3)).sum((1, 2))
    assert blue[0] > 10 and blue[1] == 0


def test_unknown_shading_is_refused():
    with pytest.raises(ValueError, match="shading is 'phong'"):
        render_items(ITEMS[:1], shading="phong")


@pytest.mark.requires_cuda
def test_cuda_draws_the_same():
    rgb, alpha = render_items(ITEMS)
    on_gpu, mask = render_items(ITEMS, device="cuda")
    assert ((on_gpu.cpu() - rgb).abs().amax(1) > 0.02).float().mean() < 1e-3
    assert (mask.cpu() != alpha).float().mean() < 1e-3
