"""The published 3-D U-Net: parity with its fixtures, and the quick path against the plain one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dawn.config import UNetConfig
from dawn.errors import ConfigError
from dawn.models.attention import relative_buckets
from dawn.models.paper import a2v as a2v_unet
from dawn.models.paper.a2v import A2VUNet, TemporalAttention, sinusoid, time_plan
from dawn.models.paper.a2v_blocks import Moments, add_gated, norm_affine
from dawn.models.paper.face_mask import MaskEncoder, face_mask
from dawn.research.convert.a2v_keys import PREFIX, SCHEDULE, dropped, from_official
from official import constructed, drawn, input_of, key_list, parity, relative_error

SMALL = UNetConfig(
    latent_size=4,
    width=16,
    multipliers=(1, 2),
    source_size=5,
    mask_size=3,
    audio_size=12,
    heads=2,
    head_size=8,
    cross_heads=2,
    cross_head_size=4,
    norm_groups=4,
)
CONDITION = SMALL.audio_size + SMALL.pose_size + SMALL.eye_size
TOLERANCE = 1e-5
"""Ten times the noise of float32 in the published code; 1e-4 would hide a wrong detail."""


def load_plain() -> type:
    path = Path(__file__).parents[1] / "benchmarks" / "plain_unet.py"
    spec = importlib.util.spec_from_file_location("plain_unet", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PlainUNet


PlainUNet = load_plain()


def official_tensors(values: Callable[[str, tuple[int, ...]], Tensor]) -> dict[str, Tensor]:
    """A checkpoint in the published form; constants that the converter drops are zero."""
    tensors = {}
    for key, (shape, _) in key_list("dawn-128").items():
        known = key.startswith(PREFIX) and not constructed(key)
        tensors[key] = values(key, shape) if known else torch.zeros(shape)
    return tensors


@pytest.fixture(scope="module")
def published() -> A2VUNet:
    network = A2VUNet(UNetConfig())
    network.load_state_dict(from_official(official_tensors(drawn)))
    return network.eval()


def small_network(config: UNetConfig = SMALL) -> A2VUNet:
    network = A2VUNet(config)
    network.load_state_dict(
        {name: drawn(f"small.{name}", tuple(value.shape)) for name, value in network.state_dict().items()}
    )
    return network.eval()


class Clip(NamedTuple):
    x: Tensor
    time: Tensor
    source: Tensor
    mask: Tensor
    condition: Tensor

    def to(self, dtype: torch.dtype) -> Clip:
        return Clip(self.x.to(dtype), self.time, *(part.to(dtype) for part in self[2:]))


def small_clip(frames: int, batch: int = 1, side: int = 4) -> Clip:
    def noise(name: str, *shape: int) -> Tensor:
        return input_of(f"small.{name}", (batch, *shape))

    return Clip(
        noise("x", 3, frames, side, side),
        torch.arange(batch) * 300 + 85,
        noise("source", SMALL.source_size, side, side),
        noise("mask", SMALL.mask_size, side, side),
        noise("condition", frames, CONDITION),
    )


def run(network: A2VUNet, clip: Clip) -> Tensor:
    return network(clip.x, clip.time, network.prepare(clip.source, clip.mask, clip.condition))


@pytest.mark.parametrize("name", ["unet_t8_h32", "unet_t64_h16", "unet_t3_h64"])
@torch.no_grad()
def test_parity_with_the_published_network(published: A2VUNet, name: str) -> None:
    data = parity(name)
    side = data["x"].shape[-1]
    fixed = data["fea"] if "fea" in data else input_of(f"{name}.fea", (1, 272, side, side))
    conditions = published.prepare(*fixed.split((256, 16), 1), data["cond"])
    made = published(data["x"], data["time"], conditions)
    assert relative_error(made, data["out"]) < TOLERANCE
    if "out_null_cond" in data:
        null = published(data["x"], data["time"], published.without_condition(conditions))
        assert relative_error(null, data["out_null_cond"]) < TOLERANCE
        assert relative_error(null + 2 * (made - null), data["out_cond_scale_2"]) < TOLERANCE


def test_converter_uses_every_entry_once() -> None:
    tensors = official_tensors(lambda _, shape: torch.empty(shape))
    made = from_official(tensors)
    wanted = A2VUNet(UNetConfig()).state_dict()
    assert {name: value.shape for name, value in made.items()} == {name: value.shape for name, value in wanted.items()}
    left_out = [key for key in tensors if dropped(key)]
    assert len(left_out) == len(SCHEDULE) + 10 + 2 * 3 * 8
    assert len(made) + len(left_out) == len(tensors) == 912
    shared = {value.data_ptr() for value in made.values()}
    assert len(shared) == len(made) and shared <= {value.data_ptr() for value in tensors.values()}


def test_converter_names_what_is_wrong() -> None:
    tensors = official_tensors(lambda _, shape: torch.empty(shape))
    key = PREFIX + "downs.1.0.cross_attn_aud.null_kv"
    value = tensors.pop(key)
    with pytest.raises(KeyError, match=r"1 entries missing: denoise_fn\.downs\.1\.0\.cross_attn_aud\.null_kv"):
        from_official(tensors)
    with pytest.raises(ValueError, match=r"1 entries left over: denoise_fn\.extra"):
        from_official({**tensors, key: value, PREFIX + "extra": value})


@pytest.mark.parametrize("frames", [90, 150])
@torch.no_grad()
def test_quick_path_equals_plain_path(frames: int) -> None:
    """90 frames: one masked attention; 150: three bands, the last one shorter."""
    network, clip = small_network(), small_clip(frames, batch=2)
    assert relative_error(run(network, clip), PlainUNet(network)(*clip)) < TOLERANCE


@torch.no_grad()
def test_chunks_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network, clip = small_network().double(), small_clip(29, batch=2).to(torch.float64)
    whole = run(network, clip)
    for chunk in (1, 5, 29):
        network.frames_per_chunk = chunk
        assert relative_error(run(network, clip), whole) < 1e-12
    monkeypatch.setattr(a2v_unet, "CPU_TOKENS", 100)
    assert relative_error(run(network, clip), whole) < 1e-12
    alone = run(network, Clip(*(part[1:] for part in clip)))
    assert relative_error(alone, whole[1:]) < 1e-12


@torch.no_grad()
def test_passes_leave_their_inputs_alone() -> None:
    network, clip = small_network(), small_clip(9)
    kept = Clip(*(part.clone() for part in clip))
    conditions = network.prepare(clip.source, clip.mask, clip.condition)
    first = network(clip.x, clip.time, conditions)
    network(torch.zeros_like(clip.x), clip.time, network.without_condition(conditions))
    assert torch.equal(network(clip.x, clip.time, conditions), first)
    assert all(torch.equal(*pair) for pair in zip(kept, clip, strict=True))


@torch.no_grad()
def test_nulled_equals_a_condition_of_zeros() -> None:
    network, clip = small_network(), small_clip(7)
    nulled = network.without_condition(network.prepare(clip.source, clip.mask, clip.condition))
    zeros = run(network, clip._replace(condition=torch.zeros_like(clip.condition)))
    assert relative_error(network(clip.x, clip.time, nulled), zeros) < 1e-6
    assert relative_error(run(network, clip), zeros) > 0.01


@torch.no_grad()
def test_gate_equals_softmax_over_two_keys() -> None:
    network = small_network().double()
    block = network.up[0].first
    plain = PlainUNet(network)
    x = input_of("gate.x", (3, 2, 2, 64)).double()
    condition = input_of("gate.condition", (1, 3, CONDITION)).double()
    parts = dict(
        zip(block.conditions, condition.split((SMALL.audio_size, SMALL.pose_size, SMALL.eye_size), -1), strict=True)
    )
    context = block.prepare({name: F.silu(part[0]) for name, part in parts.items()})
    made = add_gated(torch.zeros(3, 4, 16).double(), x.flatten(1, 2), context, slice(0, 3))
    video = x.permute(3, 0, 1, 2)[None]
    true = sum(plain.cross(video, block.conditions[name], part) for name, part in parts.items())
    assert relative_error(made.view(3, 2, 2, 16).permute(3, 0, 1, 2)[None], true) < 1e-12


@pytest.mark.parametrize(("frames", "window"), [(5, 40), (100, 40), (129, 40), (200, 7), (200, 40), (300, 64)])
@torch.no_grad()
def test_bands_equal_dense_attention_under_a_mask(frames: int, window: int) -> None:
    config = SMALL.model_copy(update={"window_frames": window})
    network = small_network(config)
    layer = network.stem_attention
    assert isinstance(layer, TemporalAttention)
    x = input_of("bands.x", (frames, 1, 2, 16))
    plain = PlainUNet(network)
    true = plain.temporal(x.permute(3, 0, 1, 2)[None], layer, plain.time_bias(frames))
    plan = time_plan(network.relative_bias.weight, frames, window, config.bias_max_distance, config.head_size)
    made = layer(x.clone(), 1, plan).permute(3, 0, 1, 2)[None]
    assert relative_error(made, true) < 1e-6
    if frames > window + 1:
        narrow = time_plan(network.relative_bias.weight, frames, window - 1, config.bias_max_distance, config.head_size)
        assert relative_error(layer(x.clone(), 1, narrow).permute(3, 0, 1, 2)[None], true) > 1e-5


@torch.no_grad()
def test_cached_stem_equals_the_whole_convolution() -> None:
    network, clip = small_network(), small_clip(3, batch=2)
    stem = network.prepare(clip.source, clip.mask, clip.condition).stem
    constant = torch.cat((clip.source, clip.mask), 1)
    for b in range(2):
        pictures = torch.cat((clip.x[b].transpose(0, 1), constant[b].expand(3, -1, -1, -1)), 1)
        true = network.stem(pictures).permute(0, 2, 3, 1)
        assert relative_error(network._stem(clip.x, stem)[3 * b : 3 * b + 3], true) < 1e-6


def test_constants_of_the_published_code() -> None:
    data = parity("schedule")
    assert torch.equal(relative_buckets(data["relpos_offset_k_minus_q"], 32, 32), data["relpos_bucket"])
    assert torch.allclose(sinusoid(data["time_sinusoid_t"], 64), data["time_sinusoid_out"], atol=1e-6)
    plan = time_plan(torch.zeros(32, 8), 6, 40, 32, 32)
    turned = torch.view_as_complex(data["rotary_in"].unflatten(-1, (16, 2))) * plan.rotary[:, :16]
    assert torch.allclose(torch.view_as_real(turned).flatten(-2), data["rotary_out"], atol=1e-6)
    assert torch.equal(plan.rotary[:, 16:32], plan.rotary[:, :16])


@torch.no_grad()
def test_group_norm_pools_over_time_without_cancellation() -> None:
    """Channels far from zero: a mean of squares less a squared mean would lose all digits here."""
    norm = torch.nn.GroupNorm(2, 6)
    x = 300 + 0.1 * input_of("norm.x", (4, 3, 5, 6))
    factor, term = norm_affine(norm, [Moments.of(x[:3]), Moments.of(x[3:])], 15, 2, None)
    true = F.group_norm(x.double().unflatten(0, (2, 2)).permute(0, 4, 1, 2, 3), 2, eps=1e-5)
    made = (x.double() * factor + term).unflatten(0, (2, 2)).permute(0, 4, 1, 2, 3)
    assert relative_error(made, true) < 2e-3
    coarse = (5 + input_of("norm.x", (4, 3, 5, 6))).bfloat16()
    squares = Moments.of(coarse).squares
    assert squares.dtype == torch.float32
    assert relative_error(squares, Moments.of(coarse.double()).squares) < 1e-5


def test_gradients_equal_those_of_the_plain_path() -> None:
    network, clip = small_network().double(), small_clip(6, batch=2).to(torch.float64)
    clip.x.requires_grad_(True)
    target = input_of("small.target", tuple(clip.x.shape)).double()
    leaves = [clip.x, *network.parameters()]
    made = torch.autograd.grad(F.mse_loss(run(network, clip), target), leaves)
    true = torch.autograd.grad(F.mse_loss(PlainUNet(network)(*clip), target), leaves)
    names = ["x", *(name for name, _ in network.named_parameters())]
    for name, a, b in zip(names, made, true, strict=True):
        assert b.norm() > 0 or name.endswith("null_key_value"), name
        assert (a - b).norm() <= 1e-7 * max(float(b.norm()), 1e-4), name


def test_training_and_inference_agree() -> None:
    network, clip = small_network(), small_clip(11)
    trained = run(network, clip).detach()
    with torch.no_grad():
        assert relative_error(run(network, clip), trained) < TOLERANCE


@torch.no_grad()
def test_bfloat16_is_near() -> None:
    network, clip = small_network(), small_clip(20)
    true = run(network, clip)
    with torch.autocast("cpu", torch.bfloat16):
        conditions = network.prepare(clip.source, clip.mask, clip.condition)
        made = network(clip.x, clip.time, conditions)
    assert conditions.stem.dtype == made.dtype == torch.float32
    assert 1e-4 < relative_error(made, true) < 0.03
    network.frames_per_chunk = 3
    made = run(network.to(torch.bfloat16), clip)
    assert 1e-4 < relative_error(made, true) < 0.03


def test_wrong_shapes_are_refused() -> None:
    network, clip = small_network(), small_clip(3)
    with pytest.raises(ConfigError, match="condition has 19 numbers a frame, the network expects 20"):
        network.prepare(clip.source, clip.mask, clip.condition[..., 1:])
    odd = clip.source[..., :3], clip.mask[..., :3]
    with pytest.raises(ConfigError, match="multiple of 2"):
        network.prepare(*odd, clip.condition)


@torch.no_grad()
def test_face_mask_and_its_encoder() -> None:
    data = parity("e2e_128_t8_s5")
    box = data["bbox"].reshape(1, 6)
    assert torch.equal(face_mask(box, 128), data["bbox_mask"])
    encoder = MaskEncoder()
    encoder.load_state_dict(
        {name: drawn(f"face_loc_emb.{name}", tuple(v.shape)) for name, v in encoder.state_dict().items()}
    )
    assert relative_error(encoder(data["bbox_mask"]), data["bbox_emb"]) < 1e-6


def test_face_mask_of_a_picture_that_is_not_square() -> None:
    box = torch.tensor([[100.0, 150.0, 30.0, 60.0, 100.0, 200.0]])
    right, swapped = face_mask(box, 40)[0, 0], face_mask(box, 40, swapped_sides=True)[0, 0]
    assert right.any(0).nonzero().flatten().tolist() == list(range(20, 32))
    assert right.any(1).nonzero().flatten().tolist() == list(range(12, 26))
    assert not swapped.any(), "x over the height lies outside the picture"
    wide = face_mask(torch.tensor([[-50.0, 500.0, -5.0, 2000.0, 100.0, 200.0]]), 40)
    assert wide.all()
    with pytest.raises(ConfigError, match=r"\(B, 6\)"):
        face_mask(box[0], 40)
