"""Specs: what is refused, what survives JSON, what changes the fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.distillation import DistillationConfig
from diffusion.samplers import SAMPLERS
from jobs import codec
from jobs.errors import InputError
from jobs.kinds import spec_from_json
from jobs.specs import MESH_FORMATS, ImagesSpec, TextTo3DSpec
from jobs.words.prompts import check_prompt, slug
from nerf3d.fields import FieldConfig
from nerf3d.fit import FitConfig
from nerf3d.mesh import MeshConfig
from nerf3d.regularisers import Schedule

words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1, max_size=60).filter(
    lambda text: any(c.isalnum() for c in text)
)
seeds = st.integers(0, 2**62)
shares = st.floats(0, 1, allow_nan=False)
schedules = st.builds(Schedule, start=shares, end=st.none() | shares)

images_specs = st.builds(
    ImagesSpec,
    prompt=words,
    num_images=st.integers(1, 1000),
    seed=seeds,
    num_steps=st.integers(1, 1000),
    guidance_scale=st.floats(-100, 1000),
    guidance_rescale=shares,
    sampler=st.sampled_from(sorted(SAMPLERS)),
    negative_prompt=st.just("") | words,
    chunk_size=st.integers(1, 64),
)
text_to_3d_specs = st.builds(
    TextTo3DSpec,
    prompt=words,
    seed=seeds,
    formats=st.lists(st.sampled_from(MESH_FORMATS), min_size=1).map(tuple),
    fit=st.builds(
        FitConfig,
        num_steps=st.integers(1, 5000),
        render_sizes=st.just(((0.0, 16), (0.5, 32))),
        sparsity=schedules,
        field=st.builds(FieldConfig, kind=st.sampled_from(["dense_pyramid", "hash_grid"])),
    ),
    distillation=st.builds(DistillationConfig, form=st.sampled_from(["x0", "sds"]), guidance_rescale=shares),
    mesh=st.builds(MeshConfig, resolution=st.integers(8, 256)),
)


@given(images_specs | text_to_3d_specs)
def test_a_spec_survives_json(spec):
    text = json.dumps(spec.to_json())
    again = spec_from_json(text)
    assert again == spec
    assert again.fingerprint() == spec.fingerprint()
    assert "/" not in spec.name and spec.name == spec.name.strip(".") and spec.name


@given(text_to_3d_specs, text_to_3d_specs)
def test_specs_that_differ_in_what_shapes_the_mesh_have_other_fingerprints(one, other):
    same = dataclasses.replace(one, formats=("glb",)) == dataclasses.replace(other, formats=("glb",))
    assert (one.fingerprint() == other.fingerprint()) == same


def test_the_fingerprint_does_not_depend_on_the_process():
    spec = ImagesSpec(prompt="a red chair")
    plain = {"class": "ImagesSpec", "value": codec.to_plain(spec, for_fingerprint=True)}
    assert codec.canonical_json({"b": 1, "a": (2.5, None)}) == '{"a":[2.5,null],"b":1}'
    assert spec.fingerprint() == hashlib.sha256(codec.canonical_json(plain).encode()).hexdigest()


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "prompt is empty"),
        ("  \n ", "prompt is empty"),
        ("x" * 10_000, "10,000 characters, but at most 2,000"),
        ("🍄🍄 !!", "no letter or digit"),
        ("a red\udcffchair", "no valid UTF-8: byte 0xFF at position 5"),
        ("a red\x00chair", r"control character U\+0000 at position 5"),
        ("a \ud800 chair", r"U\+D800"),
    ],
)
def test_prompts_that_are_refused(prompt, reason):
    for spec in (ImagesSpec, TextTo3DSpec):
        with pytest.raises(InputError, match=reason):
            spec(prompt=prompt)


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "..", "C:\\x", "/", "a/../b", "蘑菇", "🍄 a", "." * 50 + "a"])
def test_no_prompt_leads_out_of_the_folder(prompt):
    name = slug(prompt)
    assert name and all(c.isascii() and (c.isalnum() or c == "-") for c in name)


def test_the_longest_prompt_is_allowed_and_space_is_made_even():
    assert len(check_prompt("x" * 2000)) == 2000
    assert check_prompt("  a\tred \n chair ") == "a red chair"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_images": 0}, "num_images is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63 - 1}, "seed is 9223372036854775822"),
        ({"num_steps": 1001}, "num_steps is 1,001"),
        ({"sampler": "dim"}, r"no sampler 'dim' \(did you mean ddim"),
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"negative_prompt": "\x07"}, "negative prompt holds the control character"),
    ],
)
def test_image_settings_that_are_refused(changes, reason):
    with pytest.raises(InputError, match=reason):
        ImagesSpec(prompt="a chair", **changes)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("{", "not JSON"),
        ({"kind": "video"}, "kind 'video'; it must be one of text-to-3d, images"),
        ([], r"kind \[\]"),
        ({"kind": "images"}, "missing 1 required"),
        ({"kind": "images", "prompt": "a", "num_image": 3}, r"'num_image' \(did you mean num_images"),
        ({"kind": "images", "prompt": "a", "num_images": "3"}, "num_images is '3', but a whole number"),
        ({"kind": "images", "prompt": "a", "num_images": True}, "num_images is True"),
        ({"kind": "text-to-3d", "prompt": "a", "formats": ["fbx"]}, "no mesh format 'fbx'"),
        ({"kind": "text-to-3d", "prompt": "a", "formats": []}, "at least one of glb"),
        ({"kind": "text-to-3d", "prompt": "a", "formats": "glb"}, "a list such as"),
        ({"kind": "text-to-3d", "prompt": "a", "fit": {"num_steps": 0}}, "fit was refused: num_steps is 0"),
        ({"kind": "text-to-3d", "prompt": "a", "fit": {"field": {"kind": "cube"}}}, "kind is cube; give one of dense_pyramid"),
        ({"kind": "text-to-3d", "prompt": "a", "fit": 3}, "fit is 3, but a table"),
        ({"kind": "text-to-3d", "prompt": "a", "distillation": {"form": "x1"}}, "expected one of 'x0', 'x0_latents', 'sds'"),
        ({"kind": "text-to-3d", "prompt": "a", "mesh": {"iso": float("nan")}}, "mesh.iso is nan, but a finite number"),
    ],
)
def test_job_descriptions_that_are_refused(data, reason):
    with pytest.raises(InputError, match=reason):
        spec_from_json(data)


def test_a_bare_number_is_a_constant_schedule():
    data = {"kind": "text-to-3d", "prompt": "a", "fit": {"sparsity": 0.5}}
    assert spec_from_json(data).fit.sparsity == Schedule(0.5)


def test_formats_keep_their_order_once():
    assert TextTo3DSpec(prompt="a", formats=("obj", "glb", "obj")).formats == ("obj", "glb")
