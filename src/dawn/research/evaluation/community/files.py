"""The community's weight files: looked for in a folder of the user's, checked, and loaded without running what they hold.

None of them is part of this package. What a file is needed for is not computed without it, nor replaced by anything else.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from dawn.checkpoint import load_into, load_pickle
from dawn.errors import CheckpointError
from dawn.research.evaluation.community.inception import FIDInception
from dawn.research.evaluation.community.syncnet import SyncNet

MAX_BYTES = 256 << 20
"""The largest of the three has 96 million."""
COUNTER = "num_batches_tracked"
"""What a batch norm counts in training; old files lack it and evaluation does not use it."""


class Published(NamedTuple):
    """A file as it was published. figures: what it gives; sha256: of its bytes; source: whom to get it from."""

    figures: str
    name: str
    sha256: str
    source: str


INCEPTION = Published(
    "FID",
    "pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "the releases of github.com/mseitzer/pytorch-fid",
)
I3D = Published(
    "FVD",
    "i3d_torchscript.pt",
    "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
    "the FVD of github.com/universome/stylegan-v",
)
SYNCNET = Published(
    "LSE-C and LSE-D",
    "syncnet_v2.model",
    "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
    "download_model.sh of github.com/joonson/syncnet_python",
)


Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Community:
    """The networks whose files were there. i3d: the TorchScript module. notes: what each is, and what is missing."""

    inception: FIDInception | None
    i3d: Callable[..., Tensor] | None
    syncnet: SyncNet | None
    notes: tuple[str, ...]


def load_community(folder: Path) -> Community:
    """The networks of a folder, ready for use on the CPU, float32.

    It may hold any of the published files under their usual names; instead of the first and the last also a copy with the same
    entries as safetensors. Raises CheckpointError if it holds none, or if one is damaged, too large, of another network, or
    holds code.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder; give the one with the community's weight files")
    notes: list[str] = []
    inception, i3d, syncnet = (_find(folder, published, notes) for published in (INCEPTION, I3D, SYNCNET))
    if not (inception or i3d or syncnet):
        names = ", ".join(published.name for published in (INCEPTION, I3D, SYNCNET))
        raise CheckpointError(f"{folder}: none of {names} is in it; see docs/results.md for where they come from")
    return Community(
        None if inception is None else _load_network(FIDInception, INCEPTION, inception, notes),
        None if i3d is None else _load_i3d(i3d, notes),
        None if syncnet is None else _load_network(SyncNet, SYNCNET, syncnet, notes),
        tuple(notes),
    )


def _find(folder: Path, published: Published, notes: list[str]) -> Path | None:
    path = folder / published.name
    names = [path] if published is I3D else [path, path.with_suffix(".safetensors")]
    found = next((name for name in names if name.is_file()), None)
    if found is None:
        notes.append(f"no {published.figures}: {published.name} is not in {folder}; get it from {published.source}")
    return found


def _read(path: Path) -> tuple[bytes, str]:
    """A file's bytes and their sha256: what is checked is what is loaded. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path}: {size} bytes is more than {MAX_BYTES}; not the published file")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    return data, hashlib.sha256(data).hexdigest()


def _load_network(kind: type[Network], published: Published, path: Path, notes: list[str]) -> Network:
    data, sha256 = _read(path)
    tensors = _tensors(path, data, published)
    with torch.device("meta"):  # shapes only: the values come from the file
        network = kind()
    counters = {key: torch.zeros((), dtype=torch.int64) for key in network.state_dict() if key.endswith(COUNTER)}
    try:
        load_into(network, counters | tensors, str(path), assign=True, remedy=f"get it from {published.source}")
    except (RuntimeError, TypeError) as error:  # kinds of tensors that no network computes with
        raise CheckpointError(f"{path}: {_first_line(error)}; get it again from {published.source}") from error
    other = f"not the published file byte for byte (sha256 {sha256[:12]}): comparable only if its weights are the same"
    known = "the published file" if sha256 == published.sha256 else other
    notes.append(f"{published.figures}: {path.name}, {known}")
    return network.eval().requires_grad_(False)


def _tensors(path: Path, data: bytes, published: Published) -> dict[str, Tensor]:
    """Named tensors of a state dict or of safetensors. Raises CheckpointError, also for a pickle with code in it."""
    again = f"get it again from {published.source}"
    if path.suffix == ".safetensors":
        try:
            content: Any = load_safetensors(data)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file ({_first_line(error)}); {again}") from error
    else:
        content = load_pickle(io.BytesIO(data), str(path), f"get it from {published.source}")
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise CheckpointError(f"{path}: holds no named weights, so it is another file; {again}")
    return {str(key): value for key, value in content.items()}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _load_i3d(path: Path, notes: list[str]) -> Callable[..., Tensor]:
    """TorchScript is a program, and loading it may run it: only the published file, byte for byte, is let in."""
    data, sha256 = _read(path)
    if sha256 != I3D.sha256:
        raise CheckpointError(
            f"{path}: sha256 {sha256[:12]}… instead of {I3D.sha256[:12]}…; TorchScript holds a program, so "
            f"only the published file is loaded; get it again from {I3D.source}"
        )
    try:
        network = torch.jit.load(io.BytesIO(data), map_location="cpu")
    except Exception as error:  # of another version of PyTorch
        raise CheckpointError(
            f"{path}: this PyTorch cannot read it ({_first_line(error)}); use another version"
        ) from error
    notes.append(f"{I3D.figures}: {path.name}, the published file")
    return network.eval()
