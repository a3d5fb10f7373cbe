"""The published A2V-FDM checkpoint (entry ``diffusion``, 128 and 256 px alike) as the state dict of ``A2VUNet``."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

PREFIX = "denoise_fn."
LEVELS = 4
SCHEDULE = frozenset(
    {
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    }
)
"""Buffers of the diffusion wrapper; ``diffusion.schedule`` computes them."""
ROTARY = ".rotary_emb.freqs"
"""Constants of every temporal attention; the network computes them."""
UNUSED = tuple(f"{PREFIX}{head}.0.cross_attn_" for head in ("final_conv", "occlusion_map"))
"""The heads own cross-attentions that the published forward pass never calls."""
CONDITIONS = {
    "audio": ("audio_mlp", "cross_attn_aud"),
    "pose": ("pose_mlp", "cross_attn_pose"),
    "eye": ("eye_mlp", "cross_attn_eye"),
}

Pair = tuple[str, str]
"""(our name, published name)."""


def from_official(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the published tensors.

    The temporal axis of convolution kernels, which has length one, and all unit axes of gains and of 1x1 kernels are
    dropped. Values are shared with the input, not copied.

    tensors: published name (``denoise_fn.`` included) -> tensor. Schedule buffers, rotary frequencies and the heads' unused
    cross-attentions are left out; all else is used exactly once. Raises KeyError naming what is missing, ValueError naming
    what is left over.
    """
    pairs = dict(names())
    missing = sorted(PREFIX + theirs for theirs in pairs.values() if PREFIX + theirs not in tensors)
    if missing:
        raise KeyError(f"{len(missing)} entries missing: {_some(missing)}")
    left = sorted({key for key in tensors if not dropped(key)} - {PREFIX + theirs for theirs in pairs.values()})
    if left:
        raise ValueError(f"{len(left)} entries left over: {_some(left)}")
    return {ours: _reshaped(theirs, tensors[PREFIX + theirs]) for ours, theirs in pairs.items()}


def dropped(key: str) -> bool:
    """Whether a published entry has no counterpart on purpose."""
    return key in SCHEDULE or key.endswith(ROTARY) or key.startswith(UNUSED)


def names() -> Iterator[Pair]:
    """Every parameter of the network with four levels; published names without ``denoise_fn.``."""
    yield "relative_bias.weight", "time_rel_pos_bias.relative_attention_bias.weight"
    yield from _layer("stem", "init_conv")
    yield from _temporal("stem_attention", "init_temporal_attn")
    yield from _layer("time_embedding.expand", "time_mlp.1")
    yield from _layer("time_embedding.project", "time_mlp.3")
    for n in range(LEVELS):
        # The first residual block of the first level keeps its width; the second of every level does.
        yield from _level(f"down.{n}", f"downs.{n}", shortcut=n > 0, resampled=n < LEVELS - 1)
        yield from _level(f"up.{n}", f"ups.{n}", shortcut=True, resampled=n < LEVELS - 1)
    yield from _conditioned("middle.first", "mid_block1", shortcut=False)
    yield from _attention("middle.spatial", "mid_spatial_attn.fn.norm", "mid_spatial_attn.fn.fn.fn")
    yield from _temporal("middle.temporal", "mid_temporal_attn")
    yield from _conditioned("middle.second", "mid_block2", shortcut=False)
    for ours, theirs in (("flow_head", "final_conv"), ("occlusion_head", "occlusion_map")):
        yield from _block(f"{ours}.block", f"{theirs}.0", shortcut=True)
        yield from _layer(f"{ours}.out", f"{theirs}.1")


def _level(ours: str, theirs: str, shortcut: bool, resampled: bool) -> Iterator[Pair]:
    yield from _conditioned(f"{ours}.first", f"{theirs}.0", shortcut)
    yield from _conditioned(f"{ours}.second", f"{theirs}.1", shortcut=False)
    yield from _attention(f"{ours}.spatial", f"{theirs}.2.fn.norm", f"{theirs}.2.fn.fn")
    yield f"{ours}.spatial.to_out.bias", f"{theirs}.2.fn.fn.to_out.bias"
    yield from _temporal(f"{ours}.temporal", f"{theirs}.3")
    if resampled:
        yield from _layer(f"{ours}.resample", f"{theirs}.4")


def _conditioned(ours: str, theirs: str, shortcut: bool) -> Iterator[Pair]:
    yield from _block(ours, theirs, shortcut)
    yield from _layer(f"{ours}.time", f"{theirs}.time_mlp.1")
    for name, (context, attention) in CONDITIONS.items():
        gate, cross = f"{ours}.conditions.{name}", f"{theirs}.{attention}"
        yield from _layer(f"{gate}.context", f"{theirs}.{context}.1")
        yield f"{gate}.null_key_value", f"{cross}.null_kv"
        yield f"{gate}.query_scale", f"{cross}.q_scale"
        yield f"{gate}.key_scale", f"{cross}.k_scale"
        yield f"{gate}.norm.weight", f"{cross}.norm.g"
        yield f"{gate}.to_query.weight", f"{cross}.to_q.weight"
        yield f"{gate}.to_key_value.weight", f"{cross}.to_kv.weight"
        yield f"{gate}.to_out.weight", f"{cross}.to_out.0.weight"
        yield f"{gate}.out_norm.weight", f"{cross}.to_out.1.g"


def _block(ours: str, theirs: str, shortcut: bool) -> Iterator[Pair]:
    for n in (1, 2):
        yield from _layer(f"{ours}.conv{n}", f"{theirs}.block{n}.proj")
        yield from _layer(f"{ours}.norm{n}", f"{theirs}.block{n}.norm")
    if shortcut:
        yield from _layer(f"{ours}.shortcut", f"{theirs}.res_conv")


def _temporal(ours: str, theirs: str) -> Iterator[Pair]:
    yield from _attention(ours, f"{theirs}.fn.norm", f"{theirs}.fn.fn.fn")


def _attention(ours: str, norm: str, attention: str) -> Iterator[Pair]:
    yield f"{ours}.norm.weight", f"{norm}.gamma"
    yield f"{ours}.to_qkv.weight", f"{attention}.to_qkv.weight"
    yield f"{ours}.to_out.weight", f"{attention}.to_out.weight"


def _layer(ours: str, theirs: str) -> Iterator[Pair]:
    for part in ("weight", "bias"):
        yield f"{ours}.{part}", f"{theirs}.{part}"


def _reshaped(theirs: str, tensor: Tensor) -> Tensor:
    """(o, i, 1, k, k) -> (o, i, k, k); (o, i, 1, 1, 1) and (o, i, 1, 1) -> (o, i); a gain (1, C, 1, 1, 1) -> (C,)."""
    if theirs.endswith(".gamma"):
        return tensor.flatten()
    if tensor.ndim >= 4 and tensor.shape[2:].numel() == 1:
        return tensor.flatten(1)
    return tensor.squeeze(2) if tensor.ndim == 5 else tensor


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
