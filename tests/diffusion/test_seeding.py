"""Random streams: named, recorded, independent of everything else."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from diffusion.errors import DiffusionError
from diffusion.seeding import normal, normal_rows, step_noise, stream, uniform

# Drawn once and written down: these numbers are part of "same seed, same picture".
RECORDED_NORMAL = [1.3003616, 0.3205679, -1.6867303, -0.1107895]
RECORDED_UNIFORM = [0.5348117, 0.3038697, 0.426644, 0.1547337]


def test_recorded_values() -> None:
    torch.testing.assert_close(normal((4,), stream(7, "image", 3)), torch.tensor(RECORDED_NORMAL), rtol=0, atol=1e-6)
    torch.testing.assert_close(uniform((4,), stream(-1)), torch.tensor(RECORDED_UNIFORM), rtol=0, atol=1e-7)


def test_another_process_draws_the_same() -> None:
    """Python's own hash of strings changes from process to process; ours must not."""
    code = "from diffusion.seeding import *; print(normal((4,), stream(7, 'image', 3)).tolist())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(normal((4,), stream(7, "image", 3)).tolist())


def test_every_part_of_the_name_counts() -> None:
    names = [(0,), (1,), (0, 1), (0, "1"), (0, 1, 2), (0, 12), (0, "a", "b"), (0, "ab"), (0, "a|3:b"), (-1,), (2**40,)]
    drawn = {tuple(normal((4,), stream(*name)).tolist()) for name in names}
    assert len(drawn) == len(names)


def test_seeds_differ_beyond_32_bits() -> None:
    """torch's CPU generator keeps 32 bits of a seed: these two would be the same picture."""
    alike = [torch.Generator().manual_seed(seed) for seed in (5, 5 + 2**32)]
    assert torch.equal(normal((4,), alike[0]), normal((4,), alike[1]))
    assert not torch.equal(normal((4,), stream(5)), normal((4,), stream(5 + 2**32)))


def test_streams_are_normal_and_uncorrelated() -> None:
    x = normal_rows((64,), [stream(0, index) for index in range(2000)])
    assert abs(float(x.mean())) < 0.02 and abs(float(x.std()) - 1) < 0.02
    correlation = np.corrcoef(x.T.numpy()) - np.eye(64)
    assert float(np.abs(correlation).max()) < 5 / 2000**0.5
    u = uniform((10_000,), stream(3))
    assert float(u.min()) >= 0 and float(u.max()) < 1 and abs(float(u.mean()) - 0.5) < 0.02


def test_a_row_does_not_know_its_neighbours() -> None:
    together = normal_rows((3, 5, 5), [stream(0, index) for index in range(4)])
    alone = normal((3, 5, 5), stream(0, 2))
    assert torch.equal(together[2], alone)
    assert together.dtype == torch.float32
    assert torch.equal(normal((3,), stream(0), dtype=torch.float64), normal((3,), stream(0)).double())


def test_step_noise_has_no_memory() -> None:
    noise = step_noise([(0, "image", 4), (0, "image", 5)], (2, 3, 3))
    later, again = noise(3), noise(3)
    assert later.shape == (2, 2, 3, 3) and torch.equal(later, again)
    assert not torch.equal(noise(0), later)
    assert torch.equal(step_noise([(0, "image", 5)], (2, 3, 3))(3)[0], later[1])


@pytest.mark.parametrize("key", [1.5, True, None, ("a",)])
def test_refuses_keys_without_a_stable_name(key: object) -> None:
    with pytest.raises(DiffusionError, match=r"random stream's key .* expected an integer or a string"):
        stream(0, key)  # type: ignore[arg-type]


def test_refuses_a_torch_whose_generator_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion.seeding._STATE_BYTES", 17)
    with pytest.raises(RuntimeError, match="state of 5056 bytes; expected 17; install the torch version"):
        stream(0)
