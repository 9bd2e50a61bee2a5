"""Requests with LoRAs and words of their own on one resident prior: shared forwards, strict results, faults, memory."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusion.engine import EngineConfig
from diffusion.requests import Guidance
from jobs.errors import InputError
from jobs.prior_client import DistillationQuery, GenerateRequest, LossQuery, with_adapters
from jobs.specs import find_embeddings, find_loras
from orchestrator.prior.local import LocalPrior, load_prior
from orchestrator.prior.resident import ResidentPrior
from tests.fakes import save_tiny_lora, save_tiny_prior


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_prior(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("loras")
    return [save_tiny_lora(place / f"{i}.safetensors", folder, seed=i) for i in range(3)]


def pictures(*seeds: int, prompt: str = "a red table", **changes: Any) -> GenerateRequest:
    settings = {"num_steps": 3, "guidance": Guidance(scale=3.0), **changes}
    return GenerateRequest(prompts=(prompt,) * len(seeds), seeds=seeds, **settings)


def query(seed: int, kind: type = DistillationQuery, **changes: Any) -> Any:
    return kind(
        images=torch.rand(2, 3, 16, 16, generator=torch.manual_seed(seed)),
        prompts=("a blue table, front view", "a blue table"),
        t=torch.tensor([300, 700]),
        noise_keys=((seed, "noise", 0), (seed, "noise", 1)),
        **changes,
    )


def together(prior: LocalPrior, *requests: GenerateRequest | DistillationQuery) -> tuple[list[Any], int]:
    """Answers or errors of requests that are there at once, and how many forwards they took."""
    begin = {GenerateRequest: prior.begin_generate, DistillationQuery: prior.begin_distill}
    pending = [begin[type(request)](request, job=f"job {i}") for i, request in enumerate(requests)]
    forwards = 0
    while prior.engine.live:
        forwards += prior.engine.step().batch_rows > 0
    answers: list[Any] = []
    for one in pending:
        try:
            answers.append(one.result())
        except InputError as error:
            answers.append(error)
    return answers, forwards


def test_a_request_with_a_lora_is_what_the_merged_prior_answers(folder: Path, files: list[Path]) -> None:
    loras = find_loras([f"{files[0]}:0.8", f"{files[1]}:-0.5"])
    prior, merged = load_prior(str(folder)), load_prior(f"{folder}?lora={files[0]}:0.8&lora={files[1]}:-0.5")
    plain = prior.generate(pictures(1, 2))
    given, expected = with_adapters(prior, loras).generate(pictures(1, 2)), merged.generate(pictures(1, 2))
    assert np.abs(given.astype(int) - expected).max() <= 1 and np.abs(plain.astype(int) - expected).max() > 5
    previews = with_adapters(prior, loras).generate_with_previews(pictures(1, 2), every=2)
    assert next(previews).images.shape == (2, 16, 16, 3)
    asked = with_adapters(prior, loras)
    gradients = [one.distill(query(5)).gradient for one in (asked, merged, prior)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-5 * float(gradients[1].abs().max()))
    assert (gradients[1] - gradients[2]).abs().max() > 0.01 * gradients[1].abs().max()
    losses = [one.losses(query(5, LossQuery)) for one in (asked, merged, prior)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    assert (losses[1] - losses[2]).abs().max() > 1e-3
    assert with_adapters(prior, ()) is prior and asked.info().weights_hash == prior.info().weights_hash
    assert asked.unknown_words(["a dragon"]) == ["dragon"] and asked.prompt_warnings(["a table"]) == []


def test_strict_results_are_bit_identical_alone_and_among_other_loras(folder: Path, files: list[Path]) -> None:
    a, b, c = (find_loras([f"{file}:0.9"]) for file in files)
    mine = [pictures(7, 8, strict=True, adapters=a), query(3, strict=True, adapters=a)]
    alone = [together(load_prior(str(folder)), request)[0][0] for request in mine]
    others = [
        pictures(1, 7, strict=True),
        pictures(7, 8, strict=True, adapters=b),
        pictures(4, 5, 6, adapters=a),
        query(4, adapters=a),
        query(3, strict=True, adapters=c),
    ]
    crowd, _ = together(load_prior(str(folder)), *others, *mine)
    np.testing.assert_array_equal(crowd[5], alone[0])
    assert torch.equal(crowd[6].gradient, alone[1].gradient)
    assert not np.array_equal(crowd[1], crowd[5]) and not torch.equal(crowd[4].gradient, crowd[6].gradient)


def test_requests_with_one_lora_share_forwards_and_those_with_others_take_turns(folder: Path, files: list[Path]) -> None:
    a, b = (find_loras([str(file)]) for file in files[:2])
    prior = LocalPrior(load_prior(str(folder))._prior, config=EngineConfig(row_cap=16))
    _, same = together(prior, *(pictures(seed, adapters=a) for seed in range(4)))
    _, two = together(prior, *(pictures(seed, adapters=(a, b)[seed % 2]) for seed in range(4)))
    _, scales = together(prior, *(pictures(seed, adapters=find_loras([f"{files[0]}:0.{seed + 1}"])) for seed in range(4)))
    assert (same, two, scales) == (3, 6, 12)


def test_requests_with_words_of_their_own_share_forwards_with_others(folder: Path, files: list[Path], tmp_path: Path) -> None:
    words = [tmp_path / f"{name}.safetensors" for name in ("oak", "elm")]
    for seed, file in enumerate(words):
        save_file({"<wood>": torch.randn(2, 32, generator=torch.manual_seed(seed))}, file)
    oak, elm = (find_embeddings([str(file)]) for file in words)
    prompt = "a <wood> table"
    alone = []
    for how in ("", f"?embedding={words[0]}", f"?embedding={words[1]}", f"?lora={files[0]}&embedding={words[0]}"):
        (answer,), _ = together(load_prior(f"{folder}{how}"), pictures(1, prompt=prompt, strict=True))
        alone.append(answer)
    asked = [pictures(1, prompt=prompt, strict=True, adapters=given) for given in ((), oak, elm)]
    shared, _ = together(load_prior(str(folder)), *asked)
    for answer, expected in zip(shared, alone, strict=False):
        np.testing.assert_array_equal(answer, expected)
    assert not np.array_equal(shared[1], shared[2])
    several = LocalPrior(load_prior(str(folder))._prior, config=EngineConfig(row_cap=16))
    _, forwards = together(
        several, *(pictures(seed, prompt=prompt, adapters=given) for seed, given in enumerate(((), oak, elm)))
    )
    assert forwards == 3  # the words are other texts of one network
    prior = load_prior(str(folder))
    both = (*find_loras([str(files[0])]), *oak)
    mixed, _ = together(prior, *asked, pictures(1, prompt=prompt, strict=True, adapters=both), query(3, adapters=elm))
    np.testing.assert_array_equal(mixed[2], alone[2])
    assert np.abs(mixed[3].astype(int) - alone[3]).max() <= 1 and torch.isfinite(mixed[4].gradient).all()


def test_a_lora_that_does_not_fit_fails_its_own_request(folder: Path, files: list[Path], tmp_path: Path) -> None:
    name = "unet.mid_block.attentions.0.proj_in"
    bad = tmp_path / "other_base.safetensors"
    save_file({f"{name}.lora_A.weight": torch.ones(2, 320), f"{name}.lora_B.weight": torch.ones(320, 2)}, bad)
    gone = tmp_path / "gone.safetensors"
    gone.write_bytes(files[0].read_bytes())
    loras = [find_loras([str(path)]) for path in (bad, gone, files[0])]
    gone.unlink()
    prior = load_prior(str(folder))
    asked = [pictures(1, adapters=one) for one in (*loras[:1], (), *loras[2:])]
    answers, _ = together(prior, *asked, query(2, adapters=loras[0]))
    assert answers[1].shape == answers[2].shape == (1, 16, 16, 3)
    for error in (answers[0], answers[3]):
        assert str(error).startswith(f"The LoRA {bad} changes {name} as 320 x 320, and the model has it as 64 x 64; use one")
    with pytest.raises(InputError, match=r"There is no LoRA .*gone\.safetensors; give a file"):
        load_prior(str(folder)).generate(pictures(1, adapters=loras[1]))


def test_requests_wait_for_room_and_the_bytes_of_loras_are_told(folder: Path, files: list[Path]) -> None:
    loras = [find_loras([str(file)]) for file in files]
    local = load_prior(str(folder))
    weights = local.num_bytes
    local.generate(pictures(1, adapters=loras[0]))
    size = local.num_bytes - weights
    assert size == local._prior.adapters.num_bytes > 0
    expected = [load_prior(str(folder)).generate(pictures(1, adapters=one)) for one in loras]
    local._prior.adapters.max_bytes = size  # of one: each goes when the next comes
    resident = ResidentPrior(local, measure=False)
    futures: list[Future[Any]] = [resident.start_generate(pictures(1, adapters=one), job=str(i)) for i, one in enumerate(loras)]
    for future, one in zip(futures, expected, strict=True):
        np.testing.assert_array_equal(future.result(timeout=60), one)
    assert resident.num_bytes == weights + size
    resident.close()
