"""HuBERT weights from a folder or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import cast

from safetensors import SafetensorError
from torch import nn

from dawn.errors import CheckpointError, missing_extra


def load_hubert(path_or_id: str = "facebook/hubert-large-ls960-ft") -> nn.Module:
    """Load a ``transformers.HubertModel`` in evaluation mode, float32, from a folder or the Hugging Face hub.

    Only safetensors are opened, never pickled weights.

    Raises:
        ConfigError: ``transformers`` is not installed.
        CheckpointError: The weights cannot be had, are incomplete, or belong to another model.
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
    """Refuse a folder without safetensors, or a path that does not exist, with CheckpointError."""
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
    """Keep bars and tables off the terminal while weights are read; faults are raised instead.

    The hub's own bar stays: the first download takes minutes.
    """
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
