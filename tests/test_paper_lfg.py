"""The published latent flow generator against numbers of the published code, and what it promises beside them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dawn.checkpoint import load_part, save_part
from dawn.config import PaperLFGConfig, RegionsConfig
from dawn.errors import CheckpointError, ConfigError
from dawn.models.blocks import fold_for_inference
from dawn.models.paper.lfg import PaperLFG, PaperResult
from dawn.models.paper.regions import (
    LearnedRegions,
    downsample,
    gaussian_kernel,
    principal_axes,
    published_grid,
    sample,
    sparse_motions,
)
from dawn.research.convert.lfg_keys import from_official
from official import constructed, drawn, key_list, parity, relative_error

TOLERANCE = 2e-5
"""Relative L2. Computing in single precision alone costs the published code 1.3e-6; nearly round regions turn easily."""
SMALL = PaperLFGConfig(
    image_size_px=64,
    regions=RegionsConfig(count=3, width=4, depth=2, max_width=16),
    width=6,
    max_width=20,
    res_blocks=2,
    flow_width=6,
    flow_depth=2,
    flow_max_width=16,
)

Sections = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def sections() -> Sections:
    """The published file's three sections, filled by the fixtures' rule."""
    out: Sections = {}
    for name, (shape, _) in key_list("lfg-128").items():
        section, key = name.split(".", 1)
        value = explicit_gaussian().expand(shape).float() if constructed(name) else drawn(name, shape)
        out.setdefault(section, {})[key] = value
    return out


@pytest.fixture(scope="module")
def network(sections: Sections) -> PaperLFG:
    """With these weights; the picture's size only matters for how many levels fit."""
    with torch.device("meta"):
        net = PaperLFG(PaperLFGConfig())
    net.load_state_dict(from_official(sections), assign=True)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[128, 256])
def run(request: pytest.FixtureRequest, network: PaperLFG) -> tuple[dict[str, Tensor], PaperResult]:
    true = parity(f"lfg{request.param}")
    return true, network(true["source"], true["driving"])


def random_small(seed: int = 0) -> PaperLFG:
    """Batch norm statistics and the background's map away from their start, so that every part has an effect."""
    torch.manual_seed(seed)
    net = PaperLFG(SMALL).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.3, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
    net.background_predictor.head.weight.normal_(0, 0.05)
    return net


def pictures(count: int, seed: int = 1) -> Tensor:
    """Smooth random pictures (count, 3, 64, 64)."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, (64, 64), mode="bicubic").clamp(0, 1)


def explicit_gaussian() -> Tensor:
    """13 x 13, sigma 1.5, cell by cell."""
    cells = [[-((i - 6) ** 2 + (j - 6) ** 2) / (2 * 1.5**2) for j in range(13)] for i in range(13)]
    kernel = torch.tensor(cells, dtype=torch.float64).exp()
    return kernel / kernel.sum()


# Parity


def test_every_stored_array_is_compared() -> None:
    seen = {"source", "driving", "fwf_optical_flow", "fwf_occlusion_map"}  # inputs
    for name in ("shift", "covar", "affine", "u", "d"):
        seen |= {f"src_{name}", f"drv_{name}"}
    seen |= {"bg_params", "src_heatmap", "down_source", "heatmap_representation", "sparse_motion", "deformed_source"}
    seen |= {"optical_flow", "occlusion_map", "deformed", "prediction"}
    seen |= {"compute_fea", "compute_fea_mean_hw", "compute_fea_ch0", "fwf_prediction", "fwf_deformed"}
    assert seen == parity("lfg128").keys() | parity("lfg256").keys()


@pytest.mark.parametrize("which", ["src", "drv"])
def test_regions(run: tuple[dict[str, Tensor], PaperResult], which: str) -> None:
    true, made = run
    regions = made.source if which == "src" else made.driving
    assert relative_error(regions.shift, true[f"{which}_shift"]) < TOLERANCE
    assert relative_error(regions.covariance, true[f"{which}_covar"]) < TOLERANCE
    if which == "src" and "src_heatmap" in true:
        assert relative_error(regions.heat, true["src_heatmap"]) < TOLERANCE
    axes, spread = principal_axes(regions.covariance.flatten(0, 1))
    assert relative_error(torch.diag_embed(spread), true[f"{which}_d"]) < TOLERANCE
    # Both axes together may be turned round (principal_axes says why); one of them alone may not.
    sign = (axes * true[f"{which}_u"]).sum((1, 2), keepdim=True).sign()
    assert relative_error(axes * sign, true[f"{which}_u"]) < TOLERANCE
    affine = regions.affine * sign.view(*regions.shift.shape[:2], 1, 1)
    assert relative_error(affine, true[f"{which}_affine"]) < TOLERANCE


def test_background_and_flow(run: tuple[dict[str, Tensor], PaperResult]) -> None:
    true, made = run
    assert relative_error(made.background, true["bg_params"][:, :2]) < TOLERANCE
    assert torch.equal(true["bg_params"][:, 2], torch.tensor([[0.0, 0, 1]]).expand(len(made.background), 3))
    assert relative_error(made.flow.grid, true["optical_flow"]) < TOLERANCE
    assert relative_error(made.flow.occlusion, true["occlusion_map"]) < TOLERANCE


def test_inner_stages_of_the_flow(run: tuple[dict[str, Tensor], PaperResult], network: PaperLFG) -> None:
    true, made = run
    assert relative_error(downsample(true["source"], 4), true["down_source"]) < TOLERANCE
    if "sparse_motion" in true:
        motions = sparse_motions(made.driving, made.source, made.background, 32, 32)
        assert relative_error(motions, true["sparse_motion"]) < TOLERANCE
        heat, moved = network.flow_predictor.clues(true["source"], motions, made.driving, made.source)
        assert relative_error(heat, true["heatmap_representation"]) < TOLERANCE
        assert relative_error(moved, true["deformed_source"]) < TOLERANCE


def test_frames(run: tuple[dict[str, Tensor], PaperResult]) -> None:
    true, made = run
    assert relative_error(made.decoded.frame, true["prediction"]) < TOLERANCE
    if "deformed" in true:
        assert relative_error(made.decoded.moved, true["deformed"]) < TOLERANCE


def test_generating_calls(run: tuple[dict[str, Tensor], PaperResult], network: PaperLFG) -> None:
    """What generation uses: encode once, decode a given flow."""
    true, _ = run
    source = network.encode(true["source"][:1])
    if "compute_fea" in true:
        assert relative_error(source.feature, true["compute_fea"]) < TOLERANCE
    else:
        assert relative_error(source.feature.mean((2, 3)), true["compute_fea_mean_hw"]) < TOLERANCE
        assert relative_error(source.feature[:, :4], true["compute_fea_ch0"]) < TOLERANCE
    frame = network.decode(source, true["fwf_optical_flow"], true["fwf_occlusion_map"])
    assert relative_error(frame, true["fwf_prediction"]) < TOLERANCE
    if "fwf_deformed" in true:
        grid = true["fwf_optical_flow"].permute(0, 3, 1, 2)
        grid = nn.functional.interpolate(grid, (128, 128), mode="bilinear").permute(0, 2, 3, 1)
        assert relative_error(sample(true["source"][:1], grid), true["fwf_deformed"]) < TOLERANCE


def test_parity_would_notice(network: PaperLFG) -> None:
    """The tolerance is far below what a flipped axis or a forgotten background does to the flow."""
    true = parity("lfg128")
    source, driving = network.region_predictor(true["source"]), network.region_predictor(true["driving"])
    background = network.background_predictor(true["source"], true["driving"])
    still = torch.eye(3)[:2].expand_as(background)
    mirrored = driving._replace(affine=driving.affine * torch.tensor([1.0, -1.0]))
    for changed in (
        network.flow_predictor(true["source"], driving, source, still),
        network.flow_predictor(true["source"], mirrored, source, background),
    ):
        assert relative_error(changed.grid, true["optical_flow"]) > 100 * TOLERANCE


# The parts


def test_the_antialiasing_kernel_is_the_published_gaussian() -> None:
    assert torch.allclose(gaussian_kernel(4), explicit_gaussian(), rtol=1e-12)
    image = pictures(2)[..., :32]
    dense = nn.functional.conv2d(image, explicit_gaussian().float().expand(3, 1, 13, 13), padding=6, groups=3)
    assert torch.allclose(downsample(image, 4), dense[:, :, ::4, ::4], atol=1e-6)
    assert downsample(image, 1) is image
    assert gaussian_kernel(2).shape == (5, 5) and gaussian_kernel(8).shape == (29, 29)


def test_the_grid_zooms_by_half_a_pixel() -> None:
    """The mixture of conventions that the weights expect: ends are at the borders, not at the pixels' centres."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    seen = sample(ramp, published_grid(8, 8, ramp)[None])[0, 0, 4]
    positions = torch.linspace(-0.5, 7.5, 8)
    assert torch.allclose(seen[1:-1], positions[1:-1], atol=1e-5)
    assert seen[-1] == pytest.approx(3.5)  # half of the last pixel, half black
    assert published_grid(3, 5, ramp)[2, 0].tolist() == [-1.0, 1.0]


def random_covariances(count: int) -> Tensor:
    root = torch.randn(count, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return 0.1 * root @ root.mT


def test_principal_axes_follow_the_singular_value_decomposition() -> None:
    covariance = random_covariances(500)
    u, s, _ = torch.linalg.svd(covariance)
    axes, spread = principal_axes(covariance)
    assert torch.allclose(spread, s.sqrt(), rtol=1e-8)
    sign = (axes[:, :, :1] * u[:, :, :1]).sum(1, keepdim=True).sign()
    assert torch.allclose(axes * sign, u, atol=1e-8), "one sign for both columns"
    assert (axes[:, 0, 0] <= 0).all() and torch.allclose(torch.linalg.det(axes), -torch.ones(500, dtype=torch.float64))


def test_gradients_of_principal_axes() -> None:
    """The same as through the decomposition, whose gradient is right where axes are distinct."""
    covariance = random_covariances(50).requires_grad_()
    weight = torch.randn(50, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    u, s, _ = torch.linalg.svd(covariance)
    axes, spread = principal_axes(covariance)
    sign = (axes * u).detach().sum((1, 2), keepdim=True).sign()
    (expected,) = torch.autograd.grad((weight * u * s.sqrt().unsqueeze(1)).sum(), covariance)
    (made,) = torch.autograd.grad((weight * sign * axes * spread.unsqueeze(1)).sum(), covariance)
    # Only symmetric changes of a covariance exist.
    assert torch.allclose(made + made.mT, expected + expected.mT, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("covariance", [torch.eye(2) / 3, torch.zeros(2, 2), torch.tensor([[0.2, 0.0], [0.0, 0.0]])])
def test_regions_without_axes_stay_finite(covariance: Tensor) -> None:
    """A heat map that is uniform, as before training, or one single cell."""
    covariance = covariance.clone().requires_grad_()
    axes, spread = principal_axes(covariance)
    (axes.sum() + spread.sum()).backward()
    assert covariance.grad is not None
    assert all(torch.isfinite(x).all() for x in (axes, spread, covariance.grad))
    assert torch.allclose(axes @ axes.mT, torch.eye(2), atol=1e-6)


def turned(regions: LearnedRegions, signs: Tensor) -> LearnedRegions:
    return regions._replace(affine=regions.affine * signs[:, :, None, None])


def test_the_sign_of_the_axes_does_not_matter() -> None:
    net = random_small()
    source, driving = net.region_predictor(pictures(2, 1)), net.region_predictor(pictures(2, 2))
    background = torch.eye(3)[:2].expand(2, 2, 3)
    plain = sparse_motions(driving, source, background, 16, 16)
    signs = torch.tensor([[1.0, -1, 1], [-1, 1, -1]])
    assert torch.allclose(sparse_motions(turned(driving, signs), source, background, 16, 16), plain, atol=1e-6)
    same = sparse_motions(source, turned(source, signs), background, 16, 16)
    assert torch.allclose(same, published_grid(16, 16, same).expand_as(same), atol=1e-5), "a picture against itself"


def test_the_background_starts_still() -> None:
    torch.manual_seed(0)
    background = PaperLFG(SMALL).background_predictor(pictures(2, 1), pictures(2, 2))
    assert torch.equal(background, torch.eye(3)[:2].expand(2, 2, 3))


def test_too_many_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"flow_depth = 5 .* 128 px, not 96"):
        PaperLFG(PaperLFGConfig(image_size_px=96))
    with pytest.raises(ConfigError, match=r"regions\.depth = 5 .* 128 px, not 64"):
        PaperLFG(PaperLFGConfig(image_size_px=64, flow_depth=2))


# The whole


def test_one_source_serves_a_batch_of_frames() -> None:
    net = random_small()
    portrait, driving = pictures(1), pictures(5, 2)
    source = net.encode(portrait)
    flow = net.motion(portrait.expand(5, -1, -1, -1), driving)
    assert source.feature.shape == (1, 20, 16, 16)
    assert flow.grid.shape == (5, 16, 16, 2) and flow.occlusion.shape == (5, 1, 16, 16)
    frames = net.decode(source, flow.grid, flow.occlusion)
    assert frames.shape == (5, 3, 64, 64) and frames.min() >= 0 and frames.max() <= 1
    single = [net.decode(source, flow.grid[i : i + 1], flow.occlusion[i : i + 1]) for i in range(5)]
    assert torch.allclose(frames, torch.cat(single), atol=1e-6)
    assert torch.allclose(net(portrait.expand(5, -1, -1, -1), driving).decoded.frame, frames, atol=1e-6)
    assert (frames - frames.roll(1, 0)).abs().mean() > 1e-3, "frames differ"


def test_folding_changes_nothing() -> None:
    net = random_small()
    folded = fold_for_inference(deepcopy(net))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.flow_predictor.modules())
    a, b = pictures(2, 1), pictures(2, 2)
    plain, fast = net(a, b), folded(a, b)
    assert torch.allclose(fast.flow.grid, plain.flow.grid, atol=1e-4)
    flow = plain.flow
    frames = [n.decode(n.encode(a), flow.grid, flow.occlusion) for n in (net, folded)]
    assert torch.allclose(*frames, atol=1e-5)


def test_half_precision_keeps_positions() -> None:
    """Autocast must not round the sampling grid: bfloat16 has eight bits."""
    net = random_small()
    a, b = pictures(2, 1), pictures(2, 2)
    plain = net(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(a, b)
    assert half.flow.grid.dtype == half.source.shift.dtype == torch.float32
    assert half.decoded.frame.shape == plain.decoded.frame.shape
    assert (half.decoded.frame - plain.decoded.frame).abs().mean() < 0.02


def test_saved_and_loaded(tmp_path: Path) -> None:
    net, other = random_small(0), random_small(1)
    a, b = pictures(2, 1), pictures(2, 2)
    assert not torch.allclose(net(a, b).decoded.frame, other(a, b).decoded.frame, atol=1e-3)
    save_part(tmp_path, "lfg", net, SMALL)
    load_part(tmp_path, "lfg", other)
    assert torch.equal(net(a, b).decoded.frame, other(a, b).decoded.frame)
    with pytest.raises(CheckpointError, match="weights of another model"):
        load_part(tmp_path, "lfg", PaperLFG(SMALL.model_copy(update={"res_blocks": 1})))


# The converter


def test_every_published_entry_is_used_once(sections: Sections) -> None:
    state = from_official(sections)
    count = sum(len(entries) for entries in sections.values())
    assert count == 306 and len(state) == count - 2
    used = {value.data_ptr() for value in state.values()}
    assert len(used) == len(state)
    assert used <= {value.data_ptr() for entries in sections.values() for value in entries.values()}


def drop(name: str) -> Callable[[Sections], None]:
    section, key = name.split(".", 1)
    return lambda sections: sections[section].__delitem__(key)


def add(name: str) -> Callable[[Sections], None]:
    section, key = name.split(".", 1)
    return lambda sections: sections.setdefault(section, {}).update({key: torch.zeros(1)})


def blur(sections: Sections) -> None:
    sections["region_predictor"]["down.weight"] = torch.full((3, 1, 13, 13), 1 / 169)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (
            drop("generator.bottleneck.r3.norm2.running_var"),
            KeyError,
            r"missing.*generator\.bottleneck\.r3\.norm2\.running",
        ),
        (drop("bg_predictor.fc.bias"), KeyError, r"missing.*bg_predictor\.fc\.bias"),
        (add("generator.extra.weight"), ValueError, r"left over.*generator\.extra\.weight"),
        (add("avd_network.fc.weight"), ValueError, r"left over.*avd_network\.fc\.weight"),
        (blur, ValueError, r"region_predictor\.down\.weight is not the Gaussian"),
    ],
)
def test_a_wrong_file_is_named(sections: Sections, change: Callable, kind: type[Exception], said: str) -> None:
    changed = {name: dict(entries) for name, entries in sections.items()}
    change(changed)
    with pytest.raises(kind, match=said):
        from_official(changed)


def test_kernels_may_be_absent(sections: Sections) -> None:
    bare = {name: {k: v for k, v in entries.items() if k != "down.weight"} for name, entries in sections.items()}
    bare["generator"].pop("pixelwise_flow_predictor.down.weight")
    assert from_official(bare).keys() == from_official(sections).keys()
