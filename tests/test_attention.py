"""Local attention and everything that has to be the same in chunks as in one piece."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dawn.config import A2VConfig, PBNetConfig, SamplerConfig
from dawn.engines import lite as generation
from dawn.engines.lite import FlowSampling, sample_expression, sample_head
from dawn.models import attention
from dawn.models.attention import (
    LocalSelfAttention,
    band_mask,
    banded_attention,
    chunks,
    local_attention,
    relative_bands,
    relative_buckets,
    rotate,
)
from dawn.models.lite.a2v import A2VTransformer, Conditions
from dawn.models.lite.pbnet import PBNet, smooth_noise, smoothing_reach

A2V = A2VConfig(audio_size=12, motion_size=6, source_size=8, width=16, layers=2, heads=2, window_frames=3)
PB = PBNetConfig(
    audio_size=12, width=16, layers=2, heads=2, latent_size=3, window_frames=4, latent_smoothing_frames=(1.0, 3.0)
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lively(network: nn.Module) -> nn.Module:
    """All weights random: layers that start at zero would hide faults."""
    generator = seeded(0)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def dense(q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None = None) -> Tensor:
    frames = torch.arange(q.shape[2])
    allowed = ((frames[:, None] - frames[None]).abs() <= window).expand(q.shape[0], 1, -1, -1)
    if valid is not None:
        allowed = allowed & valid[:, None, None]
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~allowed, float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("frames", [5, 191, 193, 400])
@pytest.mark.parametrize("window", [3, 50])
def test_banded_is_dense_under_a_mask(frames: int, window: int) -> None:
    q, k, v = torch.randn(3, 2, 2, frames, 8, generator=seeded(frames))
    torch.testing.assert_close(local_attention(q, k, v, window), dense(q, k, v, window), atol=1e-5, rtol=0)
    valid = torch.rand(2, frames, generator=seeded(1)) < 0.8
    valid[:, ::2] = True  # every window sees something
    made = local_attention(q, k, v, window, valid=valid)
    torch.testing.assert_close(made, dense(q, k, v, window, valid), atol=1e-5, rtol=0)


def test_block_size_does_not_matter() -> None:
    q, k, v = torch.randn(3, 1, 2, 300, 8, generator=seeded(2))
    torch.testing.assert_close(local_attention(q, k, v, 9, block=17), local_attention(q, k, v, 9, block=128))


def test_padding_far_from_any_frame_is_harmless() -> None:
    """Clips of 30 frames padded to 100: late queries see no key at all, and must not become NaN, nor their gradient."""
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 2, 100, 8, generator=seeded(3)))
    valid = (torch.arange(100) < 30)[None]
    out = local_attention(q, k, v, 10, valid=valid)
    assert bool(torch.isfinite(out).all())
    out[:, :, :30].square().sum().backward()
    assert all(bool(torch.isfinite(x.grad).all()) for x in (q, k, v))  # type: ignore[union-attr]


def test_band_mask() -> None:
    mask = band_mask(3, 7, -2, 1, torch.device("cpu"))
    assert mask.int().tolist() == [[0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 0]]


def test_rotary_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 2, 20, 16, generator=seeded(4), dtype=torch.float64)
    here, there = (rotate(q, s) @ rotate(k, s).transpose(-1, -2) for s in (0, 137))
    torch.testing.assert_close(here, there, atol=1e-3, rtol=0)
    same = q[:, :, :1].expand_as(q)
    scores = rotate(same) @ rotate(same).transpose(-1, -2)
    torch.testing.assert_close(scores[..., 0, 3], scores[..., 5, 8], atol=1e-4, rtol=0)
    assert float((scores[..., 0, 3] - scores[..., 0, 4]).abs().min()) > 1e-3, "and they do depend on it"


def test_rotary_turns_the_whole_head_and_keeps_lengths() -> None:
    x = torch.randn(1, 1, 9, 16, generator=seeded(5))
    turned = rotate(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 0, :], x[..., 0, :])
    assert float((turned[..., 8, :] - x[..., 8, :]).abs().min()) > 0, "no dimension is left out"


def changed_frames(before: Tensor, after: Tensor) -> list[int]:
    """Frames in which two (1, T, D) differ by more than rounding."""
    return torch.nonzero((before - after).abs().amax((0, 2)) > 1e-6).flatten().tolist()


@pytest.mark.parametrize("frames", [60, 260])
def test_attention_reaches_its_window_and_no_further(frames: int) -> None:
    layer = lively(LocalSelfAttention(16, 2, 5))
    x = torch.randn(1, frames, 16, generator=seeded(6))
    y = x.clone()
    y[0, 30] += 1
    assert changed_frames(layer(x), layer(y)) == list(range(25, 36))


def a2v_input(frames: int) -> dict[str, Tensor]:
    g = seeded(7)
    return {
        "x": torch.randn(1, frames, 6, generator=g),
        "time": torch.tensor([0.3]),
        "audio": torch.randn(1, frames, 12, generator=g),
        "head": torch.randn(1, frames, 8, generator=g),
        "source": torch.randn(1, 8, generator=g),
    }


def run_a2v(network: A2VTransformer, values: dict[str, Tensor]) -> Tensor:
    conditions = Conditions(network.embed_audio(values["audio"]), values["head"], values["source"])
    return network(values["x"], values["time"], conditions)


@pytest.mark.parametrize("name", ["x", "audio", "head"])
def test_a2v_reach(name: str) -> None:
    network = lively(A2VTransformer(A2V))
    assert isinstance(network, A2VTransformer)
    values = a2v_input(60)
    other = {**values, name: values[name].clone()}
    other[name][0, 30] += torch.randn(values[name].shape[-1], generator=seeded(16))
    changed = changed_frames(run_a2v(network, values), run_a2v(network, other))
    reach = network.reach_frames
    assert min(changed) >= 30 - reach and max(changed) <= 30 + reach
    far = A2V.layers * A2V.window_frames
    assert min(changed) <= 30 - far and max(changed) >= 30 + far, "the promise is not much wider than the truth"


def test_pbnet_reach() -> None:
    network = lively(PBNet(PB))
    assert isinstance(network, PBNet)
    latent, audio, first = torch.randn(1, 90, 3), torch.randn(1, 90, 12), torch.randn(1, 8)
    other = latent.clone()
    other[0, 45] += 5
    changed = changed_frames(network.decode(latent, first, audio), network.decode(other, first, audio))
    assert min(changed) >= 45 - network.reach_frames and max(changed) <= 45 + network.reach_frames
    assert min(changed) < 45 - PB.layers * PB.window_frames


def test_chunks_cover_all_frames_once() -> None:
    for length, reach, size in ((10, 3, 4), (8, 0, 4), (1, 5, 4), (100, 7, 33)):
        seen = []
        for start, stop, low, high in chunks(length, reach, size):
            seen += range(start, stop)
            assert low == max(0, start - reach) and high == min(length, stop + reach)
        assert seen == list(range(length))


def in_chunks_of(size: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the generation work in chunks of this size; returns a list that counts them."""
    count: list[int] = []

    def counted(length: int, reach: int) -> list[tuple[int, int, int, int]]:
        made = list(chunks(length, reach, size))
        count.append(len(made))
        return made

    monkeypatch.setattr(generation, "chunks", counted)
    return count


@pytest.mark.parametrize("guidance", [1.0, 1.7])
def test_expression_in_chunks_is_the_whole(guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    network = lively(A2VTransformer(A2V))
    assert isinstance(network, A2VTransformer)
    v = a2v_input(97)
    make = partial(
        sample_expression, network, v["audio"][0], v["head"][0], v["source"][0], FlowSampling(3, guidance, 0.5)
    )
    whole = make(seeded(8))
    count = in_chunks_of(20, monkeypatch)
    torch.testing.assert_close(make(seeded(8)), whole, atol=2e-5, rtol=1e-5)
    assert set(count) == {5}


def test_head_in_chunks_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network = lively(PBNet(PB))
    assert isinstance(network, PBNet)
    audio, first = torch.randn(97, 12, generator=seeded(9)), torch.randn(8, generator=seeded(10))
    whole = sample_head(network, audio, first, SamplerConfig(), seeded(11))
    count = in_chunks_of(20, monkeypatch)
    pieces = sample_head(network, audio, first, SamplerConfig(), seeded(11))
    torch.testing.assert_close(pieces, whole, atol=2e-5, rtol=1e-5)
    assert count == [5]


def test_more_sound_leaves_earlier_frames_alone() -> None:
    network = lively(A2VTransformer(A2V))
    assert isinstance(network, A2VTransformer)
    v = a2v_input(80)
    short = sample_expression(
        network, v["audio"][0, :60], v["head"][0, :60], v["source"][0], FlowSampling(2, 1.0, 0.0), seeded(0)
    )
    long = sample_expression(network, v["audio"][0], v["head"][0], v["source"][0], FlowSampling(2, 1.0, 0.0), seeded(0))
    kept = 60 - 2 * network.reach_frames  # two steps
    torch.testing.assert_close(long[:kept], short[:kept], atol=2e-5, rtol=1e-5)


def test_guidance_one_ignores_the_unconditional() -> None:
    network = lively(A2VTransformer(A2V))
    assert isinstance(network, A2VTransformer)
    v = a2v_input(20)
    make = partial(sample_expression, network, v["audio"][0], v["head"][0], v["source"][0])
    one, nothing = make(FlowSampling(2, 1.0, 0.5), seeded(1)), make(FlowSampling(2, 0.0, 0.5), seeded(1))
    other = torch.randn(20, 12, generator=seeded(17))
    deaf = sample_expression(network, other, v["head"][0], v["source"][0], FlowSampling(2, 0.0, 0.5), seeded(1))
    torch.testing.assert_close(nothing, deaf)
    assert float((one - nothing).abs().max()) > 1e-3


@pytest.mark.parametrize("width", [0.5, 2.0, 8.0, 24.0])
def test_smooth_noise_has_unit_variance(width: float) -> None:
    noise = torch.randn(1, 20_000, 4, generator=seeded(13))
    reach = smoothing_reach(width)
    made = smooth_noise(noise, width)[:, reach:-reach]
    assert float(made.std()) == pytest.approx(1, abs=0.12 if width > 5 else 0.05)
    if width >= 2:  # a Gaussian window of width w gives steps of 1 / (sqrt(2) w)
        assert float(made.diff(dim=1).std()) == pytest.approx(1 / (2**0.5 * width), rel=0.15)


def test_smooth_noise_in_chunks_is_the_whole() -> None:
    noise = torch.randn(2, 300, 3, generator=seeded(14))
    whole = smooth_noise(noise, 8.0)
    reach = smoothing_reach(8.0)
    for start, stop, low, high in chunks(300, reach, 70):
        part = smooth_noise(noise[:, low:high], 8.0)[:, start - low : stop - low]
        torch.testing.assert_close(part, whole[:, start:stop], atol=1e-5, rtol=0)


def test_scaled_dot_product_is_what_dense_means() -> None:
    q, k, v = torch.randn(3, 1, 1, 7, 4, generator=seeded(15))
    torch.testing.assert_close(dense(q, k, v, 7), F.scaled_dot_product_attention(q, k, v))


@given(
    frames=st.integers(1, 260),
    window=st.integers(0, 60),
    block=st.integers(1, 90),
    dense_limit=st.sampled_from([0, 192]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_blocks_of_any_size_are_the_dense_attention(
    frames: int, window: int, block: int, dense_limit: int, seed: int
) -> None:
    q, k, v = torch.randn(3, 1, 2, frames, 4, generator=seeded(seed))
    with patch.object(attention, "DENSE_LIMIT", dense_limit):
        made = local_attention(q, k, v, window, block)
    torch.testing.assert_close(made, dense(q, k, v, window), atol=1e-5, rtol=0)


@given(
    frames=st.integers(1, 200),
    window=st.integers(0, 50),
    block=st.integers(1, 80),
    buckets=st.sampled_from([8, 32]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_bands_are_the_dense_bias(frames: int, window: int, block: int, buckets: int, seed: int) -> None:
    """Bands of any block size together hold each bias of the table where the window allows it, and nothing else."""
    table = torch.randn(buckets, 2, generator=seeded(seed), dtype=torch.float64)
    q, k, v = torch.randn(3, 1, 2, frames, 4, generator=seeded(seed + 1), dtype=torch.float64)
    offset = torch.arange(frames) - torch.arange(frames)[:, None]
    bias = table.t()[:, relative_buckets(offset, buckets, 40)].masked_fill(offset.abs() > window, float("-inf"))
    expected = (q @ k.transpose(-1, -2) / 2 + bias).softmax(-1) @ v
    bands = relative_bands(table, frames, window, 40, block)
    torch.testing.assert_close(banded_attention(q, k, v, bands), expected)
    assert [frame for band in bands for frame in range(band.start, band.stop)] == list(range(frames))


@given(length=st.integers(0, 300), reach=st.integers(0, 400), size=st.integers(1, 320))
@settings(deadline=None)
def test_chunks_of_any_size_cover_all_frames_once(length: int, reach: int, size: int) -> None:
    made = list(chunks(length, reach, size))
    assert [frame for start, stop, _, _ in made for frame in range(start, stop)] == list(range(length))
    for start, stop, low, high in made:
        assert low == max(0, start - reach) and high == min(length, stop + reach) and stop - start <= size


@given(frames=st.integers(1, 70), size=st.integers(1, 40), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a2v_in_chunks_of_any_size_is_the_whole(frames: int, size: int, seed: int) -> None:
    """Speech is embedded and the velocity is predicted chunk by chunk, each with as much context as the network reaches."""
    network = lively(A2VTransformer(A2V))
    assert isinstance(network, A2VTransformer)
    g = seeded(seed)
    x, audio, head, source = (torch.randn(1, *s, generator=g) for s in ((frames, 6), (frames, 12), (frames, 8), (8,)))
    embedded = network.embed_audio(audio)
    conditions = Conditions(embedded, head, source)
    time = torch.tensor([0.4])
    whole = network(x, time, conditions)
    for start, stop, low, high in chunks(frames, network.reach_frames, size):
        here = slice(start - low, stop - low)
        torch.testing.assert_close(
            network.embed_audio(audio[:, low:high])[:, here], embedded[:, start:stop], atol=2e-5, rtol=1e-5
        )
        part = network(x[:, low:high], time, conditions.cut(low, high))[:, here]
        torch.testing.assert_close(part, whole[:, start:stop], atol=2e-5, rtol=1e-5)


def test_an_extra_condition_is_added_to_every_frame() -> None:
    network = lively(A2VTransformer(A2V))
    assert isinstance(network, A2VTransformer)
    v = a2v_input(30)
    plain = Conditions(network.embed_audio(v["audio"]), v["head"], v["source"])
    none = plain._replace(extra=torch.zeros_like(plain.audio))
    mood = plain._replace(extra=torch.randn(plain.audio.shape, generator=seeded(18)))
    assert torch.equal(network(v["x"], v["time"], plain), network(v["x"], v["time"], none))
    changed = changed_frames(network(v["x"], v["time"], plain), network(v["x"], v["time"], mood))
    assert changed == list(range(30))
    assert mood.extra is not None
    assert torch.equal(mood.cut(3, 9).extra, mood.extra[:, 3:9])
