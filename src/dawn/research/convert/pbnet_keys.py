"""Names of a published PBNet's parameters → names of ``models.published_pbnet``; options → its configuration.

A published file is the plain state of one network, pose or blinks. Three kinds of entries are no parameters of ours: tables
of positions and rotary frequencies, which follow from the sizes and are only checked, and a weight that is always
multiplied by zeros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dawn.config import PublishedPBNetConfig, parse
from dawn.models.paper.pbnet import PBNet, sinusoidal_positions

RENAMED = (
    (r"encoder\.to_mean\.", "encoder.mu_layer."),
    (r"encoder\.to_log_variance\.", "encoder.sigma_layer."),
    (r"encoder\.motion_in\.", "encoder.poseEmbedding."),
    (r"(encoder|decoder)\.first_in\.", r"\1.firstposeEmbedding."),
    (r"(encoder|decoder)\.audio_in\.", r"\1.audioEmbedding."),
    (r"encoder\.layers\.(\d+)\.to_qkv\.", r"encoder.seqTransEncoder.layers.\1.self_attn.in_proj_"),
    (r"encoder\.layers\.(\d+)\.to_out\.", r"encoder.seqTransEncoder.layers.\1.self_attn.out_proj."),
    (r"encoder\.layers\.(\d+)\.feed_forward\.0\.", r"encoder.seqTransEncoder.layers.\1.linear1."),
    (r"encoder\.layers\.(\d+)\.feed_forward\.3\.", r"encoder.seqTransEncoder.layers.\1.linear2."),
    (r"encoder\.layers\.(\d+)\.(norm\d)\.", r"encoder.seqTransEncoder.layers.\1.\2."),
    (r"decoder\.memory_in\.", "decoder.ztimelinear."),
    (r"decoder\.query$", "decoder.init_proj.bias"),
    (r"decoder\.self_bias$", "decoder.time_rel_pos_bias_tgt.relative_attention_bias.weight"),
    (r"decoder\.cross_bias$", "decoder.time_rel_pos_bias_mem.relative_attention_bias.weight"),
    (r"decoder\.first_norm\.weight$", "decoder.init_temporal_attn.fn.norm.gamma"),
    (r"decoder\.first_attention\.", "decoder.init_temporal_attn.fn.fn."),
    (r"decoder\.layers\.(\d+)\.self_attention\.", r"decoder.seqTransDecoder.decoder_layers.\1.self_attn."),
    (r"decoder\.layers\.(\d+)\.cross_attention\.", r"decoder.seqTransDecoder.decoder_layers.\1.multihead_attn."),
    (r"decoder\.layers\.(\d+)\.feed_forward\.0\.", r"decoder.seqTransDecoder.decoder_layers.\1.ffn.linear1."),
    (r"decoder\.layers\.(\d+)\.feed_forward\.3\.", r"decoder.seqTransDecoder.decoder_layers.\1.ffn.linear2."),
    (r"decoder\.layers\.(\d+)\.norm(\d)\.", r"decoder.seqTransDecoder.decoder_layers.\1.layer_norm\2."),
    (r"decoder\.motion_out\.", "decoder.finallayer."),
)
"""Patterns of our names → the published ones."""

JOINED = re.compile(r"(.*\.(?:self_attn|init_temporal_attn\.fn\.fn)\.)to_([qkv])(\.weight)$")
"""Self-attention of the decoder: published in one matrix, here in three."""

UNUSED = ("decoder.init_proj.weight", "decoder.sequence_pos_encoder.pe")
"""The first is multiplied by zeros, the second is never called."""
POSITIONS = "encoder.sequence_pos_encoder.pe"

WINDOW_FRAMES = {"transformerreemb5": 200, "transformerreemb6": 100}
"""Attention's reach at evaluation, the one difference between the two published architectures."""
REQUIRED_OPTIONS = ("archiname", "num_layers", "ff_size", "num_buckets", "max_distance")
OPTIONAL_OPTIONS = {"pose_latent_dim": 64, "audio_latent_dim": 256, "audio_dim": 1024, "num_heads": 4, "dropout": 0.1}
"""With the values that the published constructor has where the file does not name them."""
LARGEST_ROTARY_SIZE = 32


def from_official(tensors: Mapping[str, Tensor], config: PublishedPBNetConfig | None = None) -> dict[str, Tensor]:
    """State of a ``PBNet`` from the published state of one network (88 entries for two layers).

    config: of the network that the state is for; only names and rotary frequencies depend on it, shapes are compared when
    loading. Raises KeyError naming published entries that are missing, ValueError naming entries that are left
    over or that are not what the published constructor computes.
    """
    config = config or PublishedPBNetConfig()
    with torch.device("meta"):
        wanted = PBNet(config).state_dict()
    published = {key: _published_name(key) for key in wanted}
    attention = {name.rsplit(".", 2)[0] for key, (name, _) in published.items() if "_attention.to_" in key}
    frequencies = {f"{name}.rotary_emb.freqs" for name in attention}
    expected = {name for name, _ in published.values()} | frequencies | {*UNUSED, POSITIONS}
    missing, left_over = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing:
        raise KeyError(f"missing from the file: {', '.join(missing)}")
    if left_over:
        raise ValueError(f"left over in the file: {', '.join(left_over)}")
    _check_constants(tensors, sorted(frequencies), config)
    state = {}
    for key, (name, third) in published.items():
        value = tensors[name] if third is None else tensors[name].chunk(3)[third]
        state[key] = value.flatten() if name.endswith(".gamma") else value
    return state


def _published_name(key: str) -> tuple[str, int | None]:
    """The published entry of one of ours, and which third of it, if it is joined."""
    names = [re.sub("^" + ours, theirs, key) for ours, theirs in RENAMED if re.match(ours, key)]
    assert len(names) == 1, f"{key} has {len(names)} published names"
    joined = JOINED.match(names[0])
    if joined is None:
        return names[0], None
    return f"{joined[1]}to_qkv{joined[3]}", "qkv".index(joined[2])


def _check_constants(tensors: Mapping[str, Tensor], frequencies: list[str], config: PublishedPBNetConfig) -> None:
    true = 10_000.0 ** (-torch.arange(0, config.rotary_size, 2, dtype=torch.float32) / config.rotary_size)
    for name in frequencies:
        if tensors[name].shape != true.shape or not torch.allclose(tensors[name].float(), true, rtol=1e-3):
            raise ValueError(f"{name} holds other frequencies than those of {config.rotary_size} rotated dimensions")
    table = tensors[POSITIONS]
    made = sinusoidal_positions(table.shape[0], table.shape[-1])
    # The sine of a large angle is only as exact as the angle, which is rounded to float32.
    if not torch.allclose(table.float().flatten(1), made, rtol=0, atol=5e-3):
        raise ValueError(f"{POSITIONS} is not the table of sines and cosines")


def config_from_options(options: Mapping[str, Any], outputs: int | None = None) -> PublishedPBNetConfig:
    """Configuration from the authors' ``opt.yaml``, read as a dictionary; options of training are passed over.

    outputs: 6 for the pose network, 2 for blinks; by default from ``pos_dim`` and ``eye_dim``, which the authors' programme
    adds after reading the file. Raises KeyError naming options that are missing, ValueError for a network of another
    kind, ConfigError for a value that does not fit.
    """
    missing = [name for name in REQUIRED_OPTIONS if name not in options]
    if outputs is None:
        missing += [name for name in ("pos_dim", "eye_dim") if name not in options]
    if missing:
        raise KeyError(f"missing options: {', '.join(missing)}")
    kind = str(options["archiname"])
    if kind not in WINDOW_FRAMES:
        raise ValueError(f"archiname {kind}: only {' and '.join(WINDOW_FRAMES)} are known")
    activation = options.get("activation", "gelu")
    if activation != "gelu":
        raise ValueError(f"activation {activation}: only gelu is known")
    sizes = {name: options.get(name, default) for name, default in OPTIONAL_OPTIONS.items()}
    values = {
        "outputs": int(options["pos_dim"]) + int(options["eye_dim"]) if outputs is None else outputs,
        "width": sizes["pose_latent_dim"],
        "inner": options["ff_size"],
        "latent_size": sizes["audio_latent_dim"],
        "audio_size": sizes["audio_dim"],
        "audio_width": sizes["audio_latent_dim"],
        "layers": options["num_layers"],
        "heads": sizes["num_heads"],
        "rotary_size": min(LARGEST_ROTARY_SIZE, int(sizes["num_heads"])),
        "window_frames": WINDOW_FRAMES[kind],
        "bias_buckets": options["num_buckets"],
        "bias_max_distance": options["max_distance"],
        "dropout": sizes["dropout"],
    }
    return parse(PublishedPBNetConfig, values, "opt.yaml")
