"""The published PBNet against numbers of the published code, its banded attention, and the converter."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dawn.config import PublishedPBNetConfig
from dawn.errors import ConfigError
from dawn.models.attention import banded_attention, relative_bands, relative_buckets
from dawn.models.paper.pbnet import PBNet, denormalise_pose, normalise_pose, rotate_pairs, sinusoidal_positions
from dawn.research.convert.pbnet_keys import config_from_options, from_official
from official import drawn, key_list, parity, relative_error

TABLE_ROWS = 240
"""Instead of 20,000: the converter only compares the table."""
OUTPUTS = {"pose": 6, "blink": 2}
OPTIONS: dict[str, Any] = {
    "modelname": "cvae_transformerreemb5_rc_kl",
    "modeltype": "cvae",
    "archiname": "transformerreemb5",
    "num_layers": 2,
    "ff_size": 64,
    "num_buckets": 128,
    "max_distance": 128,
    "audio_latent_dim": 256,
    "pose_latent_dim": 32,
    "activation": "gelu",
    "dropout": 0.1,
    "lambda_kl": 0.001,
    "lr": 1e-4,
    "pos_dim": 0,
    "eye_dim": 2,
}


@cache
def official_state(kind: str, listing: str) -> dict[str, Tensor]:
    """All 88 entries of a published file, filled by the fixtures' rule."""
    state = {}
    for key, (shape, _) in key_list(listing).items():
        if key.endswith(".pe"):
            state[key] = sinusoidal_positions(TABLE_ROWS, shape[2])[:, None]
        elif key.endswith(".freqs"):
            state[key] = torch.tensor([1.0, 0.01])
        else:
            state[key] = drawn(f"{kind}.{key}", shape)
    return state


def published(kind: str, window: int = 200) -> PBNet:
    config = PublishedPBNetConfig(outputs=OUTPUTS[kind], window_frames=window)
    network = PBNet(config)
    network.load_state_dict(from_official(official_state(kind, f"pbnet-{kind}"), config), strict=True)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["pose", "blink"])
def test_decoder_and_encoder_agree_with_the_published_code(kind: str) -> None:
    network, true = published(kind), parity(f"pbnet_{kind}")
    sound = parity("pbnet_pose") | true
    for frames in (8, 240):
        latent, first = true[f"t{frames}_z"].transpose(0, 1), true[f"t{frames}_x"][:, 0]
        made = network.decode(latent, first, sound[f"t{frames}_audio"])
        assert relative_error(made, true[f"t{frames}_out"]) < 5e-6
    state = true["t8_enc_x"]
    posterior = network.encode(state - state[:, :1], state[:, 0], true["t8_audio"])
    assert relative_error(posterior.mean.transpose(0, 1), true["t8_enc_mu"]) < 5e-6
    assert relative_error(posterior.log_variance.transpose(0, 1), true["t8_enc_logvar"]) < 5e-6


def test_the_two_windows_are_told_apart() -> None:
    true = parity("pbnet_pose")
    inputs = true["t240_z"].transpose(0, 1), true["t240_x"][:, 0], true["t240_audio"]
    narrow = published("pose", window=100).decode(*inputs)
    assert relative_error(narrow, true["t240_out_reemb6"]) < 5e-6
    assert relative_error(narrow, true["t240_out"]) > 1e-4


@pytest.mark.parametrize(("frames", "window", "block"), [(5, 9, 4), (40, 6, 16), (61, 3, 7), (300, 40, 128)])
def test_banded_attention_is_dense_attention_with_bias_and_mask(frames: int, window: int, block: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    q, k, v = torch.randn(3, 2, 3, frames, 8, generator=generator)
    table = torch.randn(16, 3, generator=generator)
    offset = torch.arange(frames)[None] - torch.arange(frames)[:, None]
    scores = q @ k.transpose(-1, -2) / 8**0.5 + table[relative_buckets(offset, 16, 12)].permute(2, 0, 1)
    dense = scores.masked_fill(offset.abs() > window, float("-inf")).softmax(-1) @ v
    bands = relative_bands(table, frames, window, 12, block)
    assert [band.start for band in bands] == list(range(0, frames, block))
    torch.testing.assert_close(banded_attention(q, k, v, bands), dense, atol=2e-6, rtol=0)


def test_relative_buckets_are_the_published_ones() -> None:
    true = parity("schedule")
    assert torch.equal(relative_buckets(true["relpos_offset_k_minus_q"], 32, 32), true["relpos_bucket"])
    assert int(relative_buckets(torch.tensor(10_000), 128, 128)) == 127
    assert int(relative_buckets(torch.tensor(-10_000), 128, 128)) == 63


def test_rotary_positions() -> None:
    true = parity("schedule")
    torch.testing.assert_close(rotate_pairs(true["rotary_in"], 32), true["rotary_out"], atol=1e-6, rtol=0)
    x = torch.randn(1, 2, 9, 32, generator=torch.Generator().manual_seed(0))
    part = rotate_pairs(x, 4)
    assert torch.equal(part[..., 4:], x[..., 4:])
    assert torch.equal(part[:, :, 0], x[:, :, 0])
    assert float((part[:, :, 1:, :4] - x[:, :, 1:, :4]).abs().max()) > 0.1


def test_padding() -> None:
    network = published("blink")
    generator = torch.Generator().manual_seed(0)
    latent, audio, change = (torch.randn(1, 12, n, generator=generator) for n in (256, 1024, 2))
    first, valid = torch.rand(1, 2, generator=generator), torch.arange(12)[None] < 9
    made, whole = network.decode(latent, first, audio, valid), network.decode(latent, first, audio)
    assert not made[:, 9:].any()
    assert torch.equal(made[:, :9], whole[:, :9])
    padded = network.encode(change, first, audio, valid).mean[:, :9]
    torch.testing.assert_close(padded, network.encode(change[:, :9], first, audio[:, :9]).mean, atol=1e-5, rtol=0)


def test_pose_normalisation() -> None:
    low, high = torch.tensor([-90.0, -90, -90, 0, 0, 0]), torch.tensor([90.0, 90, 90, 1, 720, 1080])
    assert torch.equal(normalise_pose(torch.stack((low, high))), torch.tensor([[0.0] * 6, [1.0] * 6]))
    pose = torch.tensor([[3.0, -7.0, 1.0, 5e-4, 56.5, 64.9]])
    torch.testing.assert_close(denormalise_pose(normalise_pose(pose)), pose, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "listing"), [("pose", "pbnet-pose"), ("blink", "pbnet-blink-p32")])
def test_converter_uses_every_entry_once(kind: str, listing: str) -> None:
    options = (
        OPTIONS if kind == "blink" else OPTIONS | {"pos_dim": 6, "eye_dim": 0, "ff_size": 128, "pose_latent_dim": 64}
    )
    config = config_from_options(options)
    state = official_state(kind, listing)
    assert len(state) == 88
    kept = [key for key in state if not key.endswith((".pe", ".freqs")) and key != "decoder.init_proj.weight"]
    marked = state | {key: torch.full_like(state[key], number) for number, key in enumerate(kept)}
    network = PBNet(config)
    network.load_state_dict(from_official(marked, config), strict=True)
    share: dict[float, int] = {}
    for value in network.state_dict().values():
        number = float(value.flatten()[0])
        assert bool((value == number).all()), "made of two entries"
        share[number] = share.get(number, 0) + value.numel()
    assert share == {number: state[key].numel() for number, key in enumerate(kept)}


def test_converter_names_what_does_not_fit() -> None:
    state = official_state("pose", "pbnet-pose")
    lost = {key: value for key, value in state.items() if key != "decoder.finallayer.bias"}
    with pytest.raises(KeyError, match=r"decoder\.finallayer\.bias"):
        from_official(lost)
    with pytest.raises(ValueError, match=r"left over.*decoder\.extra"):
        from_official(state | {"decoder.extra": torch.zeros(1)})
    name = "decoder.init_temporal_attn.fn.fn.rotary_emb.freqs"
    with pytest.raises(ValueError, match="rotated dimensions"):
        from_official(state | {name: torch.ones(16)})
    table = "encoder.sequence_pos_encoder.pe"
    with pytest.raises(ValueError, match="sines"):
        from_official(state | {table: state[table].roll(1, 0)})
    with pytest.raises(KeyError, match=r"layers\.2"):
        from_official(state, PublishedPBNetConfig(layers=3))


def test_options() -> None:
    config = config_from_options(OPTIONS)
    assert config == PublishedPBNetConfig(outputs=2, width=32, inner=64)
    bare = {key: OPTIONS[key] for key in ("archiname", "num_layers", "ff_size", "num_buckets", "max_distance")}
    assert config_from_options(bare, outputs=6) == PublishedPBNetConfig(inner=64)
    assert config_from_options(OPTIONS | {"archiname": "transformerreemb6"}).window_frames == 100
    assert config_from_options(OPTIONS | {"num_heads": 8}).rotary_size == 8
    with pytest.raises(KeyError, match="ff_size"):
        config_from_options({key: value for key, value in OPTIONS.items() if key != "ff_size"})
    with pytest.raises(KeyError, match="pos_dim, eye_dim"):
        config_from_options(bare)
    with pytest.raises(ValueError, match="transformerreemb7"):
        config_from_options(OPTIONS | {"archiname": "transformerreemb7"})
    with pytest.raises(ValueError, match="relu"):
        config_from_options(OPTIONS | {"activation": "relu"})
    with pytest.raises(ConfigError, match="dropout"):
        config_from_options(OPTIONS | {"dropout": "some"})
