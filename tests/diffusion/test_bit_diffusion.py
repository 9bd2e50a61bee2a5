"""Analog bits, self-conditioning and sampling of bit diffusion, against discrete distributions that are known exactly."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion.analog_bits import from_bits, num_bits_for, to_bits
from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, SampleRequest
from diffusion.models.bit_diffusion import TOYBOX_PALETTE, BitDiffusion, BitDiffusionConfig, bit_diffusion_loss
from diffusion.networks.mlp import MLPConfig
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.requests import run
from diffusion.samplers.bit_diffusion import EstimateRequest, bit_diffusion, gamma
from diffusion.seeding import normal, step_noise, stream

pytestmark = pytest.mark.oracle

TINY = PixelUNetConfig(sample_size=8, block_out_channels=(8, 16), attention_levels=(False, True))


# -- analog bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_symbols", [2, 3, 5, 8, 16, 150, 255, 256, 1000])
def test_every_integer_survives_the_round_trip(num_symbols: int) -> None:
    symbols = torch.arange(num_symbols).reshape(1, 1, -1)
    bits = to_bits(symbols, num_symbols, scale=0.5)
    assert bits.shape == (1, math.ceil(math.log2(num_symbols)), num_symbols)
    assert set(bits.unique().tolist()) == {-0.5, 0.5}
    assert torch.equal(from_bits(bits, num_symbols), symbols)


def test_bits_are_written_most_significant_first() -> None:
    bits = to_bits(torch.tensor([[6, 1]]), 8)
    assert bits.tolist() == [[1.0, 1.0, -1.0, -1.0, -1.0, 1.0]]


@given(st.integers(2, 300), st.integers(0, 10**6))
def test_whatever_a_network_says_is_decoded_to_a_symbol(num_symbols: int, seed: int) -> None:
    """And to the nearest codeword among the K, as a search over all of them finds it."""
    noise = normal((2, 2 * num_bits_for(num_symbols), 3), stream(seed))
    symbols = from_bits(noise, num_symbols)
    assert symbols.shape == (2, 2, 3)
    assert int(symbols.min()) >= 0 and int(symbols.max()) < num_symbols
    codewords = to_bits(torch.arange(num_symbols)[:, None], num_symbols)
    said = noise.unflatten(1, (2, -1)).movedim(2, -1).reshape(-1, codewords.shape[1])
    distance = torch.cdist(said.double(), codewords.double())
    chosen = distance.gather(1, symbols.reshape(-1, 1))
    torch.testing.assert_close(chosen[:, 0], distance.amin(1), rtol=0, atol=1e-6)


@given(st.integers(2, 300), st.integers(0, 10**6))
def test_round_trip_of_maps(num_symbols: int, seed: int) -> None:
    maps = torch.randint(num_symbols, (2, 3, 4, 5), generator=stream(seed))
    assert torch.equal(from_bits(to_bits(maps, num_symbols), num_symbols), maps)


def test_bad_symbols_are_explained() -> None:
    with pytest.raises(DiffusionError, match="the symbols run from 0 to 5; expected 0 to 4"):
        to_bits(torch.tensor([[0, 5]]), 5)
    with pytest.raises(DiffusionError, match=r"the symbols are torch.float32; expected integers"):
        to_bits(torch.zeros(1, 1), 5)
    with pytest.raises(DiffusionError, match="there are 4 channels of bits; expected a multiple of 3"):
        from_bits(torch.zeros(1, 4), 5)
    with pytest.raises(DiffusionError, match="there are 1 symbols; expected at least 2"):
        num_bits_for(1)


# -- sampling a distribution that is known ---------------------------------------------------------

PMF = torch.tensor([0.3, 0.05, 0.2, 0.05, 0.1, 0.02, 0.18, 0.1], dtype=torch.float64)


class ExactEstimate:
    """E[x_0 | x_t] over finitely many codewords: a softmax average. Keeps what it was asked."""

    def __init__(self, pmf: Tensor, scale: float = 1.0) -> None:
        self.pmf = pmf
        self.codewords = to_bits(torch.arange(len(pmf))[:, None], len(pmf), scale=scale).double()
        self.asked: list[EstimateRequest] = []

    def __call__(self, request: EstimateRequest) -> Tensor:
        self.asked.append(request)
        level = gamma(request.t)[:, None]
        # Codewords are equally long, so that of |x - sqrt(gamma) b|^2 the inner product alone matters.
        logits = level.sqrt() / (1 - level) * (request.x_t.double() @ self.codewords.T)
        return torch.softmax(self.pmf.log() + logits, dim=1) @ self.codewords


def total_variation(symbols: Tensor, pmf: Tensor) -> float:
    return 0.5 * float((torch.bincount(symbols, minlength=len(pmf)) / len(symbols) - pmf).abs().sum())


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("step", ["ddim", "ddpm"])
def test_samples_have_the_true_distribution(step: Any, scale: float) -> None:
    """8 symbols, n = 20000: total variation below 0.012, where exact samples have 0.006 on average and 0.011 at most."""
    n, generator = 20_000, stream(1)
    chain = bit_diffusion(
        normal((n, 3), stream(0), dtype=torch.float64),
        num_steps=100,
        step=step,
        noise=lambda _: normal((n, 3), generator),
        scale=scale,
    )
    assert total_variation(from_bits(run(chain, ExactEstimate(PMF, scale)), 8)[:, 0], PMF) < 0.012


def test_symbols_that_do_not_fill_their_bits() -> None:
    """Five symbols in three bits: all are legal, with their own shares."""
    pmf, n = torch.tensor([0.4, 0.1, 0.2, 0.05, 0.25], dtype=torch.float64), 20_000
    chain = bit_diffusion(normal((n, 3), stream(0), dtype=torch.float64), num_steps=100)
    symbols = from_bits(run(chain, ExactEstimate(pmf)), 5)[:, 0]
    assert int(symbols.max()) <= 4
    assert total_variation(symbols, pmf) < 0.012


def test_the_asymmetric_interval_changes_where_a_step_ends_and_not_what_it_is_told() -> None:
    """Times told: 1 - i / N. Each x_t lies on the line to the level of max(1 - (i + 1 + td) / N, 0)."""
    oracle = ExactEstimate(PMF)
    start = normal((4, 3), stream(0), dtype=torch.float64)
    run(bit_diffusion(start, num_steps=5, time_difference=1.5), oracle)
    asked = [float(request.t[0]) for request in oracle.asked]
    assert asked == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    ends = [0.5, 0.3, 0.1, 0.0]
    for here, there, end in zip(oracle.asked, oracle.asked[1:], ends, strict=False):
        now, then = gamma(here.t)[:, None], gamma(torch.tensor(end, dtype=torch.float64))
        x0 = oracle(here)
        eps = (here.x_t - now.sqrt() * x0) / (1 - now).sqrt()
        torch.testing.assert_close(there.x_t, then.sqrt() * x0 + (1 - then).sqrt() * eps, rtol=0, atol=1e-12)


def test_every_ddpm_step_is_the_papers_formula() -> None:
    """x' = (x - (1 - alpha) / sqrt(1 - gamma) eps) / sqrt(alpha) + sqrt(1 - alpha) z with alpha = gamma / gamma'."""
    oracle, noise = ExactEstimate(PMF), step_noise([(0,), (1,)], (3,))
    run(bit_diffusion(normal((2, 3), stream(0), dtype=torch.float64), num_steps=6, step="ddpm", noise=noise), oracle)
    for index in range(5):
        here, there = oracle.asked[index], oracle.asked[index + 1]
        now, alpha = gamma(here.t)[:, None], (gamma(here.t) / gamma(there.t))[:, None]
        eps = (here.x_t - now.sqrt() * oracle(here)) / (1 - now).sqrt()
        mean = (here.x_t - (1 - alpha) / (1 - now).sqrt() * eps) / alpha.sqrt()
        torch.testing.assert_close(there.x_t, mean + (1 - alpha).sqrt() * noise(index), rtol=0, atol=1e-12)


def test_the_last_estimate_is_shown_clipped_and_returned() -> None:
    answers = [torch.full((1, 2), value) for value in (0.3, 5.0, -7.0)]
    asked: list[EstimateRequest] = []

    def answer(request: EstimateRequest) -> Tensor:
        asked.append(request)
        return answers[len(asked) - 1]

    end = run(bit_diffusion(normal((1, 2), stream(0)), num_steps=3, scale=0.5), answer)
    shown = [request.previous[0, 0].item() for request in asked]
    assert shown == pytest.approx([0.0, 0.3, 0.5])
    torch.testing.assert_close(end, torch.full((1, 2), -0.5))
    asked.clear()
    run(bit_diffusion(normal((1, 2), stream(0)), num_steps=3, self_condition=False), answer)
    assert all(not request.previous.any() for request in asked)


def test_gamma_falls_from_one_to_zero() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    level = gamma(t)
    assert bool((level.diff() < 0).all())
    assert float(level[0]) == pytest.approx(1, abs=1e-6) and 0 < float(level[-1]) < 1e-6
    assert float(level[50]) == pytest.approx(math.cos(0.5002 / 1.00025 * math.pi / 2) ** 2, abs=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0 and time_difference 0; expected at least one step"),
        ({"time_difference": -1.0}, "time_difference -1"),
        ({"step": "euler"}, "the step is 'euler'; expected 'ddim' or 'ddpm'"),
        ({"step": "ddpm"}, "adds noise and was given none"),
    ],
)
def test_bad_arguments_are_explained(change: dict[str, Any], message: str) -> None:
    arguments: Any = {"num_steps": 3} | change
    with pytest.raises(DiffusionError, match=message):
        run(bit_diffusion(torch.zeros(1, 2), **arguments), lambda request: request.x_t)


# -- the objective ---------------------------------------------------------------------------------


def test_the_loss_at_the_exact_estimate_is_the_posterior_variance() -> None:
    """Two symbols of one bit: E Var[b | x_t] = 1 - E tanh^2 at b = +-1 with equal shares, by quadrature."""
    n, t = 20_000, 0.6
    level = gamma(torch.tensor(t, dtype=torch.float64))
    a, s = level.sqrt(), (1 - level).sqrt()
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    expected = float(torch.trapezoid(density * (1 - torch.tanh(a * (a + s * z) / s**2) ** 2), z))
    bits = to_bits(torch.randint(2, (n, 1), generator=stream(0)), 2).double()
    losses = bit_diffusion_loss(
        lambda x, time, shown: torch.tanh(a * x / s**2),
        bits,
        noise=normal((n, 1), stream(1), dtype=torch.float64),
        t=torch.full((n,), t, dtype=torch.float64),
        num_self_conditioned=0,
    )
    assert abs(float(losses.mean()) - expected) < 4 * float(losses.std()) / n**0.5


def test_self_conditioning_shows_its_own_estimate_without_gradient() -> None:
    """The first rows see the clipped first estimate, the others zeros; gradients flow through the second call alone."""
    weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    calls: list[tuple[Tensor, Tensor, bool]] = []

    def estimate(x: Tensor, t: Tensor, shown: Tensor) -> Tensor:
        calls.append((x, shown, torch.is_grad_enabled()))
        return weight * x + shown

    bits = to_bits(torch.tensor([[5], [2], [7], [0]]), 8).double()
    noise, t = normal((4, 3), stream(0), dtype=torch.float64), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    losses = bit_diffusion_loss(estimate, bits, noise=noise, t=t, num_self_conditioned=2)
    losses.sum().backward()

    x_t = gamma(t).sqrt()[:, None] * bits + (1 - gamma(t)).sqrt()[:, None] * noise
    (first, nothing, with_gradient), (second, shown, _) = calls
    assert not with_gradient and not nothing.any()
    torch.testing.assert_close(first, x_t[:2])
    torch.testing.assert_close(second, x_t)
    expected = torch.cat([(3 * x_t[:2]).clamp(-1, 1), torch.zeros(2, 3, dtype=torch.float64)])
    torch.testing.assert_close(shown, expected)
    residual = 3 * x_t + expected - bits
    torch.testing.assert_close(losses.detach(), residual.square().mean(1))
    torch.testing.assert_close(weight.grad, (2 * residual * x_t).mean(1).sum())


# -- the model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("palette", [TOYBOX_PALETTE, ("#000000", "#ff0000", "#ffffff"), None], ids=["16", "3", "bytes"])
def test_every_sampled_value_is_legal(palette: Any) -> None:
    """Of an untrained network, that is of anything."""
    model = BitDiffusion(BitDiffusionConfig(network=TINY, palette=palette))
    for sampler in ("ddim", "ddpm"):
        pictures = model.sample(SampleRequest(seeds=(0, 1), sampler=sampler, num_steps=3, options={"time_difference": 1.0}))
        assert pictures.shape == (2, 3, 8, 8) and pictures.dtype == torch.float32
        pixels = ((pictures + 1) * 127.5).movedim(1, -1).reshape(-1, 3)
        torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-4)
        assert float(pixels.min()) >= -1e-4 and float(pixels.max()) <= 255 + 1e-4
        if palette is not None:
            seen = {"#" + bytes(pixel).hex() for pixel in pixels.round().int().tolist()}
            assert seen <= set(palette) and len(seen) > 1


def test_pictures_become_their_nearest_palette_colours() -> None:
    model = BitDiffusion(BitDiffusionConfig(network=TINY))
    colours = torch.tensor([list(bytes.fromhex(colour[1:])) for colour in TOYBOX_PALETTE]).float()
    # Every palette colour, slightly off, in a row of pixels.
    pictures = ((colours + 3) / 127.5 - 1).T.reshape(1, 3, 2, 8)
    symbols = model.to_symbols(pictures)
    assert symbols.flatten().tolist() == list(range(16))
    torch.testing.assert_close(model.to_pictures(symbols), (colours / 127.5 - 1).T.reshape(1, 3, 2, 8))


def test_bytes_are_kept_exactly() -> None:
    model = BitDiffusion(BitDiffusionConfig(network=TINY, palette=None))
    values = torch.arange(256).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    assert torch.equal(model.to_symbols(values.float() / 127.5 - 1), values)
    assert torch.equal(model.to_symbols(model.to_pictures(values)), values)


def test_the_network_carries_the_bits_twice() -> None:
    """x_t and the previous estimate in, one estimate out; t in units of about 1000."""
    model = BitDiffusion(BitDiffusionConfig(network=TINY))
    assert (model.network.config.in_channels, model.network.config.out_channels) == (8, 4)
    assert BitDiffusionConfig(network=TINY, palette=None).num_channels == 24
    seen: list[tuple[Tensor, Tensor]] = []

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append((x, t))
            return x[:, :4]

    model.network = Network()
    x, previous = normal((2, 4, 8, 8), stream(0)), normal((2, 4, 8, 8), stream(1))
    model.estimate(x, torch.tensor([0.0, 1.0], dtype=torch.float64), previous)
    torch.testing.assert_close(seen[0][0], torch.cat((x, previous), dim=1))
    assert seen[0][1].tolist() == [0.0, 999.0]
    seen.clear()
    model.loss(Batch(normal((6, 3, 8, 8), stream(2)).clamp(-1, 1)), stream(3))
    assert [len(call[0]) for call in seen] == [3, 6]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_sample_does_not_depend_on_its_neighbours(sampler: str) -> None:
    model = BitDiffusion(BitDiffusionConfig(network=TINY))
    many = model.sample(SampleRequest(seeds=(5, 6, 7), sampler=sampler, num_steps=4))
    assert torch.equal(many[1:2], model.sample(SampleRequest(seeds=(6,), sampler=sampler, num_steps=4)))
    assert not torch.equal(many[0], many[1])


def test_training_learns_a_distribution_of_pictures() -> None:
    """Pictures of one colour, red three times as often as blue: total variation below 0.15, hardly a wrong pixel."""
    palette = ("#000000", "#ff0000", "#0000ff", "#ffffff")
    network = PixelUNetConfig(sample_size=4, block_out_channels=(16,), attention_levels=(True,))
    model = BitDiffusion(BitDiffusionConfig(network=network, palette=palette, num_steps=20))
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=stream(0, "init"))
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    flat = model.to_pictures(torch.tensor([1, 2]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4))
    for step in range(150):
        generator = stream(0, "train", step)
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / 150)
        blue = (torch.empty(32).uniform_(generator=generator) < 0.25).long()
        loss, _ = model.loss(Batch(flat[blue]), generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    symbols = model.to_symbols(model.sample(SampleRequest(seeds=tuple(range(120))))).flatten(1)
    pmf = torch.tensor([0.0, 0.75, 0.25, 0.0], dtype=torch.float64)
    assert total_variation(symbols.flatten(), pmf) < 0.15
    assert float((symbols == symbols.mode(dim=1, keepdim=True).values).double().mean()) > 0.98


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": MLPConfig()}, r"points of shape \(2,\); expected pictures"),
        ({"palette": ("#000000",)}, "the palette has 1 colours; expected 2 to 256"),
        ({"bit_scale": 0.0}, "bit_scale is 0 and self_condition_rate 0.5; expected a positive scale"),
        ({"self_condition_rate": 1.5}, "self_condition_rate 1.5"),
        ({"palette": ("red", "#00ff00")}, "the palette is red, #00ff00; expected colours as '#rrggbb'"),
        ({"palette": ("#00ff", "#00ff00")}, "expected colours as '#rrggbb'"),
    ],
)
def test_bad_configurations_are_explained(change: dict[str, Any], message: str) -> None:
    arguments: Any = {"network": TINY} | change
    with pytest.raises(DiffusionError, match=message):
        BitDiffusion(BitDiffusionConfig(**arguments))


def test_bad_requests_are_explained() -> None:
    model = BitDiffusion(BitDiffusionConfig(network=TINY))
    with pytest.raises(DiffusionError, match="the sampler is 'heun'; expected one of 'ddim', 'ddpm'"):
        model.sample(SampleRequest(seeds=(0,), sampler="heun"))
    with pytest.raises(DiffusionError, match="trained without"):
        model.sample(SampleRequest(seeds=(0,), labels=(1,)))
    with pytest.raises(DiffusionError, match="no option 'eta'; expected one of 'time_difference'"):
        model.sample(SampleRequest(seeds=(0,), options={"eta": 1.0}))
