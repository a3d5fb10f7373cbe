"""Shapes in the signatures of networks and samplers are checked while the tests run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

import dawn
from dawn.config import A2VConfig
from dawn.diffusion.guidance import guide
from dawn.diffusion.rectified import rectified_path
from dawn.models.attention import local_attention
from dawn.models.blocks import upsample_sharp, warp
from dawn.models.lite.a2v import A2VTransformer, Conditions

PACKAGE = Path(dawn.__file__).parent
ROOMS = sorted(path for room in ("models", "diffusion") for path in (PACKAGE / room).rglob("*.py"))
SMALL = A2VConfig(audio_size=12, motion_size=6, source_size=8, width=16, layers=1, heads=2, window_frames=3)


def test_a_tensor_of_another_rank_is_refused() -> None:
    assert upsample_sharp(torch.rand(1, 3, 4, 4)).shape == (1, 3, 8, 8)
    with pytest.raises(jaxtyping.TypeCheckError, match="upsample_sharp"):
        upsample_sharp(torch.rand(3, 4, 4))


def test_sizes_that_share_a_name_have_to_agree() -> None:
    flow = torch.zeros(2, 4, 4, 2)
    warp(torch.rand(2, 3, 4, 4), flow)
    with pytest.raises(jaxtyping.TypeCheckError, match="warp"):
        warp(torch.rand(1, 3, 4, 4), flow)
    q, short = torch.rand(1, 2, 9, 8), torch.rand(1, 2, 8, 8)
    with pytest.raises(jaxtyping.TypeCheckError, match="local_attention"):
        local_attention(q, short, short, 3)


def test_shapes_that_broadcast_are_refused_too() -> None:
    """Without the check these would give a result of a wrong shape, silently."""
    with pytest.raises(jaxtyping.TypeCheckError):
        guide(torch.rand(1, 5, 3), torch.rand(5, 3), 2.0)
    with pytest.raises(jaxtyping.TypeCheckError):
        rectified_path(torch.rand(4, 7, 3), torch.rand(1, 7, 3), torch.rand(4))


def test_whole_numbers_are_no_features() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        upsample_sharp(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_a_network_refuses_time_for_another_batch() -> None:
    network = A2VTransformer(SMALL).eval()
    conditions = Conditions(torch.rand(2, 5, 16), torch.rand(2, 5, 8), torch.rand(2, 8))
    assert network(torch.rand(2, 5, 6), torch.rand(2), conditions).shape == (2, 5, 6)
    with pytest.raises(jaxtyping.TypeCheckError, match="forward"):
        network(torch.rand(2, 5, 6), torch.rand(1), conditions)


@pytest.mark.parametrize("path", ROOMS, ids=[str(path.relative_to(PACKAGE)) for path in ROOMS])
def test_every_tensor_of_a_public_function_has_a_shape(path: Path) -> None:
    """Apart from those that the function itself refuses with a reason, and those that only lend device and type."""
    free = {"like", "samples", "boxes"}
    body = ast.parse(path.read_text()).body
    for node in [*body, *(inner for one in body if isinstance(one, ast.ClassDef) for inner in one.body)]:
        if not isinstance(node, ast.FunctionDef) or (node.name.startswith("_") and node.name != "__init__"):
            continue
        notes = [a.annotation for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in free]
        bare = [ast.unparse(n) for n in (*notes, node.returns) if n is not None and has_bare_tensor(n)]
        assert not bare, f"{node.name}: {bare}"


def has_bare_tensor(note: ast.expr) -> bool:
    """A ``Tensor`` outside of ``Float[Tensor, ...]`` and of the signatures of callables."""
    if isinstance(note, ast.Name):
        return note.id == "Tensor"
    if isinstance(note, ast.Subscript) and isinstance(note.value, ast.Name):
        if note.value.id in {"Float", "Int", "Bool", "Shaped", "Complex", "Callable"}:
            return False
        return has_bare_tensor(note.slice)
    return any(has_bare_tensor(child) for child in ast.iter_child_nodes(note) if isinstance(child, ast.expr))


@pytest.mark.parametrize("path", ROOMS, ids=[str(path.relative_to(PACKAGE)) for path in ROOMS])
def test_networks_and_samplers_open_no_files(path: Path) -> None:
    opening = {"os", "io", "pathlib", "safetensors", "importlib", "huggingface_hub", "transformers", "pickle"}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & opening
        assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open")


def test_the_product_needs_no_checker() -> None:
    """Only the tests check shapes: networks and samplers can be imported where beartype is missing."""
    code = """
import sys
sys.modules["beartype"] = None
import dawn.diffusion.gaussian, dawn.diffusion.guidance, dawn.models.lite.bundle, dawn.models.paper.bundle
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
