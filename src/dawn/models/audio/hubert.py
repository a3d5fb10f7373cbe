"""HuBERT (Hsu et al. 2021), the published model's speech encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from dawn.errors import AudioError, CheckpointError, ConfigError, missing_extra
from dawn.models.audio.features import _check_speech
from dawn.structs import SPEECH_RATE_HZ

HUBERT_STRIDE_SAMPLES = 320


HUBERT_KERNEL_SAMPLES = 400


HUBERT_CHUNK_VECTORS = 1_000


class HubertAudioEncoder(nn.Module):
    """HuBERT features as DAWN published them, for the ``paper`` presets.

    The recording is scaled to zero mean and unit variance as a whole, a coupling over time that belongs to the
    published model. ``context_s`` of sound on both sides of every 20 s chunk hides the seams; 0 is as published.
    """

    def __init__(self, model: nn.Module, context_s: float = 2.0) -> None:
        """model: a ``transformers.HubertModel`` (see ``load_hubert``). Raises ConfigError for a negative context."""
        super().__init__()
        if context_s < 0:
            raise ConfigError(f"HuBERT context_s {context_s}: give 0 or more seconds")
        self.model = model
        self.context_vectors = round(context_s * SPEECH_RATE_HZ / HUBERT_STRIDE_SAMPLES)
        self.eval()

    @property
    def feature_size(self) -> int:
        return int(cast(Any, self.model).config.hidden_size)

    def train(self, mode: bool = True) -> HubertAudioEncoder:
        """Stay in evaluation mode: a frozen feature extractor must not drop units while others train."""
        super().train(False)
        return self

    @torch.no_grad()
    def encode(self, samples: Tensor, frame_count: int) -> Tensor:
        """samples (L,) float32 at 16 kHz -> (frame_count, 1024 for HuBERT large).

        All of the sound is spread over ``frame_count`` frames, end point on end point. Gradients do not flow.
        Raises AudioError below 400 samples or when the samples are not finite.
        """
        _check_speech(samples, frame_count)
        if samples.shape[0] < HUBERT_KERNEL_SAMPLES:
            raise AudioError(f"{samples.shape[0]} samples of speech: HuBERT needs at least {HUBERT_KERNEL_SAMPLES}")
        sound = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
        total = (sound.shape[0] - HUBERT_KERNEL_SAMPLES) // HUBERT_STRIDE_SAMPLES + 1
        vectors = sound.new_empty(total, self.feature_size)
        for first in range(0, total, HUBERT_CHUNK_VECTORS):
            last = min(first + HUBERT_CHUNK_VECTORS, total)
            begin, end = max(first - self.context_vectors, 0), min(last + self.context_vectors, total)
            reach = HUBERT_KERNEL_SAMPLES - HUBERT_STRIDE_SAMPLES
            chunk = sound[begin * HUBERT_STRIDE_SAMPLES : end * HUBERT_STRIDE_SAMPLES + reach]
            vectors[first:last] = self.model(chunk[None]).last_hidden_state[0, first - begin : last - begin]
        return F.interpolate(vectors.T[None], size=frame_count, mode="linear", align_corners=True)[0].T.contiguous()


def load_hubert(path_or_id: str = "facebook/hubert-large-ls960-ft") -> nn.Module:
    """A ``transformers.HubertModel`` in evaluation mode, float32, from a folder or the Hugging Face hub.

    Only safetensors are opened, never pickled weights. Raises ConfigError without ``transformers``, CheckpointError when
    the weights cannot be had, are incomplete, or are another model's.
    """
    where = f"HuBERT weights {path_or_id!r}"
    _check_hubert_folder(Path(path_or_id), where)
    try:
        transformers = import_module("transformers")
    except ImportError as error:
        raise missing_extra("transformers", "hubert") from error
    try:
        with _quiet_transformers():
            model, info = transformers.HubertModel.from_pretrained(
                path_or_id, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "go online once, or give a folder that holds config.json and model.safetensors"
        raise CheckpointError(f"{where} cannot be loaded ({reason}): {remedy}") from error
    # Only the mask of the pre-training task may be absent: it is never used here.
    missing = sorted(key for key in info["missing_keys"] if key != "masked_spec_embed")
    if missing:
        raise CheckpointError(f"{where} lack {missing[0]!r}: give a complete HuBERT model")
    if info["mismatched_keys"]:
        key, stored, own = min(info["mismatched_keys"])
        raise CheckpointError(
            f"{where}: {key} is {tuple(stored)}, its config.json says {tuple(own)}: get both files again"
        )
    return cast(nn.Module, model.float().eval())


def _check_hubert_folder(folder: Path, where: str) -> None:
    """Raises CheckpointError for a folder without safetensors, or a path of which nothing is there."""
    if not folder.is_dir():
        if folder.is_absolute() or len(folder.parts) > 2:  # a name of the hub is "owner/model"
            raise CheckpointError(
                f"{where}: there is no such folder; give one that holds config.json and model.safetensors"
            )
        return
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return
    if any(folder.glob("*.bin")):
        name = repr(str(folder))
        turn = f"from transformers import HubertModel as H; H.from_pretrained({name}).save_pretrained({name})"
        raise CheckpointError(
            f"{where} are there as a pickle only (.bin), which can hold a program and is not opened; if you trust it, make"
            f' model.safetensors of it: python -c "{turn}"'
        )
    raise CheckpointError(f"{where}: the folder has no model.safetensors; give one that holds it and config.json")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and tables on the terminal while weights are read; what is wrong with them is raised instead. The hub's own
    bar stays: the first download takes minutes."""
    hub, logging = import_module("huggingface_hub.utils"), import_module("transformers.utils.logging")
    verbosity, bar, hub_bar = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        not hub.are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if hub_bar:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
