"""The published model as a product: its whole sampler against the published one, and a small random preset end to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import dawn.engines.paper
from conftest import stacked
from dawn.apps.cli.main import main
from dawn.checkpoint import assemble
from dawn.config import PaperLFGConfig, PaperPresetConfig, PublishedPBNetConfig, RegionsConfig, UNetConfig
from dawn.diffusion.gaussian import cosine_schedule, ddim, ddim_times, dpm_solver, dpm_times
from dawn.errors import CheckpointError, ConfigError, MotionError
from dawn.media.motion_json import load_motion, save_motion
from dawn.models.paper.a2v import A2VUNet
from dawn.models.paper.bundle import PaperBundle
from dawn.models.paper.conditions import assemble_conditions
from dawn.models.paper.face_mask import MaskEncoder, face_mask
from dawn.models.paper.lfg import PaperLFG
from dawn.pipeline import Dawn
from dawn.research.convert import a2v_keys, lfg_keys
from dawn.structs import Face, Speech
from official import constructed, drawn, key_list, parity, relative_error
from test_unet import small_clip, small_network

Say = Callable[[int], Speech]
TOLERANCE = 1e-5
HIDDEN = 24
SMALL = PaperPresetConfig(
    name="paper-64",
    lfg=PaperLFGConfig(
        image_size_px=64,
        width=8,
        max_width=16,
        res_blocks=1,
        flow_width=8,
        flow_depth=2,
        flow_max_width=16,
        regions=RegionsConfig(count=3, width=8, depth=2, max_width=16),
    ),
    unet=UNetConfig(
        latent_size=16,
        width=16,
        multipliers=(1, 2),
        source_size=16,
        audio_size=HIDDEN,
        heads=2,
        head_size=8,
        cross_heads=2,
        cross_head_size=4,
        window_frames=6,
    ),
    pose=PublishedPBNetConfig(width=16, inner=16, latent_size=8, audio_size=HIDDEN, audio_width=8, window_frames=6),
    blink=PublishedPBNetConfig(
        outputs=2, width=8, inner=8, latent_size=8, audio_size=HIDDEN, audio_width=8, window_frames=6
    ),
)


@pytest.fixture(scope="module")
def published() -> tuple[A2VUNet, PaperLFG, MaskEncoder]:
    """The networks of the 128-px model with the fixtures' weights."""

    def state(name: str, prefix: str = "") -> dict[str, Tensor]:
        return {key: drawn(prefix + key, shape) for key, (shape, _) in key_list(name).items() if not constructed(key)}

    unet_state = {key: value for key, value in state("dawn-128").items() if not a2v_keys.dropped(key)}
    unet = A2VUNet(UNetConfig())
    unet.load_state_dict(a2v_keys.from_official(unet_state))
    sections: dict[str, dict[str, Tensor]] = {}
    for key, value in state("lfg-128").items():
        section, name = key.split(".", 1)
        sections.setdefault(section, {})[name] = value
    lfg = PaperLFG(PaperLFGConfig())
    lfg.load_state_dict(lfg_keys.from_official(sections))
    mask = MaskEncoder()
    mask.load_state_dict(state("faceloc", "face_loc_emb."))
    return unet.eval(), lfg.eval(), mask.eval()


@torch.inference_mode()
def test_the_whole_sampler_is_the_published_one(published: tuple[A2VUNet, PaperLFG, MaskEncoder]) -> None:
    unet, lfg, encode_mask = published
    true = parity("e2e_128_t8_s5")
    mask = face_mask(true["bbox"][:, :, 0], 128, swapped_sides=True)
    assert torch.equal(mask, true["bbox_mask"])
    embedded = encode_mask(mask)
    assert relative_error(embedded, true["bbox_emb"]) < TOLERANCE
    pose, ear = true["pose"].transpose(1, 2), true["eye"].transpose(1, 2)
    condition = assemble_conditions(true["hubert"], pose, true["init_pose"], ear, true["init_eye"])
    assert relative_error(condition, true["cond"]) < TOLERANCE
    source = lfg.encode(true["image"])
    conditions = unet.prepare(source.feature, embedded, condition)
    seen = []

    def epsilon(x: Tensor, time: int) -> Tensor:
        seen.append(x)
        return unet(x, torch.tensor([time]), conditions)

    latent = ddim(epsilon, true["noise0"], cosine_schedule(), 5, eta=1.0, noise=list(true["noise"]))
    assert len(seen) == 5
    for step, x in enumerate(seen):
        assert relative_error(x, true["x_t"][step]) < TOLERANCE, step
    grid, occlusion = latent[:, :2], (latent[:, 2:] + 1) / 2
    assert relative_error(grid, true["grid"]) < TOLERANCE
    assert relative_error(occlusion, true["conf"]) < TOLERANCE
    frames = lfg.decode(source, grid[0].permute(1, 2, 3, 0), occlusion[0].transpose(0, 1))
    assert relative_error(frames, true["video"][0].transpose(0, 1)) < TOLERANCE


@torch.inference_mode()
def test_dpm_solver_leads_where_ddim_does_on_the_network() -> None:
    """A small U-Net with rule-made weights, from the first time of DDIM's ten. Where the deterministic flow leads is found by
    DDIM without noise in nearly two hundred steps, evenly spread in the logarithm of signal to noise."""
    network, clip, schedule = small_network(), small_clip(2), cosine_schedule()
    conditions = network.prepare(clip.source, clip.mask, clip.condition)

    def epsilon(x: Tensor, time: int) -> Tensor:
        return network(x, torch.tensor([time]), conditions)

    first = ddim_times(10)[0][0]
    product = schedule.alphas_cumprod.double()

    def ddim_over(times: list[int]) -> Tensor:
        x = clip.x.double()
        for time, following in pairwise([*times, -1]):
            noise = epsilon(x.float(), time).double()
            after = product[following] if following >= 0 else torch.ones(())
            x = (
                after.sqrt() * (x - (1 - product[time]).sqrt() * noise) / product[time].sqrt()
                + (1 - after).sqrt() * noise
            )
        return x

    ratio = torch.logit(product)
    wanted = torch.linspace(float(ratio[first]), float(ratio[0]), 240, dtype=torch.float64)
    limit = ddim_over(torch.unique((ratio[None] - wanted[:, None]).abs().argmin(1)).flip(0).tolist())

    def distance(steps: int) -> float:
        made = dpm_solver(epsilon, clip.x, schedule, steps, start_time=first, threshold_quantile=None)
        return relative_error(made, limit)

    five, ten, twenty = (distance(steps) for steps in (5, 10, 20))
    published = ddim(epsilon, clip.x, schedule, 10, eta=0, shifted_alpha=False, threshold_quantile=None)
    same_times = ddim_over(dpm_times(schedule, 10, start_time=first))
    assert five > 1.6 * ten and ten > 1.6 * twenty
    assert ten < 0.85 * relative_error(published, limit)
    assert ten < 0.85 * relative_error(same_times, limit)


class FakeHubert(nn.Module):
    """Framing and size of HuBERT, features of the sound's running means."""

    config = SimpleNamespace(hidden_size=HIDDEN)

    def forward(self, sound: Tensor) -> SimpleNamespace:
        mean = sound.unfold(1, 400, 320).unfold(2, 16, 16).square().mean(-1)[..., :HIDDEN]
        return SimpleNamespace(last_hidden_state=mean)


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small preset of the published kind, random weights."""
    torch.manual_seed(0)
    bundle = PaperBundle(SMALL)
    folder = tmp_path_factory.mktemp("paper") / "paper-64"
    assemble(SMALL, {part: getattr(bundle, part) for part in PaperPresetConfig.PARTS}, folder, half=False)
    return folder


@pytest.fixture
def model(preset: Path, monkeypatch: pytest.MonkeyPatch, prepared_once: None) -> Dawn:
    monkeypatch.setattr(dawn.engines.paper, "load_hubert", lambda name: FakeHubert())
    return Dawn.from_pretrained(preset, "cpu")


def test_weights_come_back_exactly(preset: Path, model: Dawn) -> None:
    torch.manual_seed(0)
    made = PaperBundle(SMALL)
    for part in PaperPresetConfig.PARTS:
        stored, own = load_file(preset / f"{part}.safetensors"), getattr(made, part).state_dict()
        assert stored.keys() == own.keys() and all(torch.equal(stored[key], own[key]) for key in own), part


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_portrait_and_speech_make_a_video(model: Dawn, speech: Say, sampler: str) -> None:
    first, again, other = (model("x.png", speech(9), seed=seed, steps=3, sampler=sampler) for seed in (1, 1, 2))
    frames = stacked(first)
    assert frames.shape == (9, 64, 64, 3)
    assert (stacked(again) == frames).all() and (stacked(other) != frames).any()
    assert first.motion.space == "flow-16" and first.motion.expression.shape == (9, 3 * 16 * 16)
    assert np.abs(first.motion.expression).max() <= 1 + 1e-5, "flow and occlusion are thresholded"


def test_samplers_differ_and_guidance_has_a_say(model: Dawn, speech: Say) -> None:
    base = model("x.png", speech(6), steps=3).motion
    for options in ({"sampler": "dpm++"}, {"guidance": 2.0}, {"steps": 4}):
        other = model("x.png", speech(6), **({"steps": 3} | options)).motion
        assert np.abs(other.expression - base.expression).max() > 1e-4, options
    still = model("x.png", speech(6), steps=3, still=True).motion
    assert not still.pose.any() and np.array_equal(still.blink, base.blink)


def test_bfloat16_is_an_option(preset: Path, model: Dawn, speech: Say, tmp_path: Path) -> None:
    """Of a call and of a preset, near float32 and not it; float32 weights are not touched by it."""
    exact = model("x.png", speech(6), steps=2).motion.expression
    coarse = model("x.png", speech(6), steps=2, precision="bfloat16").motion.expression
    assert 1e-4 < np.abs(coarse - exact).mean() < 0.1
    assert np.array_equal(model("x.png", speech(6), steps=2, precision="float32").motion.expression, exact)

    folder = shutil.copytree(preset, tmp_path / "coarse")
    config = json.loads((folder / "config.json").read_text())
    config["sampler"]["precision"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))
    other = Dawn.from_pretrained(folder, "cpu")
    assert np.array_equal(other("x.png", speech(6), steps=2).motion.expression, coarse)
    assert np.array_equal(other("x.png", speech(6), steps=2, precision="float32").motion.expression, exact)


def test_the_portrait_is_encoded_once(
    model: Dawn, speech: Say, portrait_face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    lfg, seen = model.bundle.lfg, []
    encode = lfg.encode
    monkeypatch.setattr(lfg, "encode", lambda image: seen.append(image) or encode(image))
    video = model("x.png", speech(5), steps=1)
    frames = stacked(video)
    assert len(seen) == 1 and (stacked(video) == frames).all() and len(seen) == 1
    mirrored = replace(portrait_face, crop=portrait_face.crop[:, ::-1])
    other = stacked(model.render(mirrored, video.motion))
    assert len(seen) == 2 and (other != frames).any(), "another portrait is another source"
    assert (stacked(model.render(replace(mirrored), video.motion)) == other).all()
    assert (stacked(video) == frames).all(), "and the first one again"


def test_motion_can_be_kept_and_rendered_again(model: Dawn, speech: Say, tmp_path: Path) -> None:
    video = model("x.png", speech(5), steps=2)
    save_motion(video.motion, tmp_path / "m.json")
    again = model("x.png", speech(5), motion=load_motion(tmp_path / "m.json"))
    assert (stacked(again) == stacked(video)).all()


def test_what_the_published_model_cannot_do_is_said(
    model: Dawn, tiny_model: Dawn, speech: Say, portrait_face: Face
) -> None:
    with pytest.raises(ConfigError, match=r"expression 0\.5"):
        model("x.png", speech(5), expression=0.5)
    with pytest.raises(ConfigError, match="lite-256"):
        model.engine.transfer(torch.zeros(3, 478, 3), portrait_face)
    with pytest.raises(ConfigError, match="landmarks"):
        model.landmarks(portrait_face, model("x.png", speech(5), steps=2).motion, 0, 1)
    with pytest.raises(MotionError, match="flow-16"):
        model("x.png", speech(5), motion=tiny_model("x.png", speech(5)).motion)
    with pytest.raises(ConfigError, match=r"sampler dpm\+\+"):
        tiny_model("x.png", speech(5), sampler="dpm++")
    with pytest.raises(ConfigError, match="precision bfloat16"):
        tiny_model("x.png", speech(5), precision="bfloat16")


def test_missing_hubert_is_one_line(
    preset: Path,
    tmp_path: Path,
    portrait_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> nn.Module:
        raise CheckpointError(f"{name}: HuBERT's weights are not here and cannot be fetched; give its folder")

    monkeypatch.setattr(dawn.engines.paper, "load_hubert", absent)
    speech = portrait_path.parent / "speech.wav"
    out = tmp_path / "out.mp4"
    assert main(["generate", str(portrait_path), str(speech), "-o", str(out), "--preset", str(preset)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "hubert" in lines[0].lower() and not out.exists()
