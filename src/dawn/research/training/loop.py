"""One training loop for every recipe: resume by the same command, EMA, mixed precision, JSONL log, contact sheets.

Devices and processes are Accelerate's business (CPU, CUDA, ``torchrun``). Randomness is drawn from the step number, so
that a run that was stopped and resumed goes on exactly as if it had not been.
"""

from __future__ import annotations

import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from dawn.errors import CheckpointError
from dawn.structs import Strict

log = logging.getLogger(__name__)


class TrainConfig(Strict):
    """What every recipe has. Recipes add their own fields."""

    steps: int = Field(4000, ge=1)
    batch: int = Field(8, ge=1)
    lr: float = 3e-4
    warmup_steps: int = 100
    min_lr_ratio: float = 0.02
    ema_decay: float = Field(0.999, ge=0, lt=1)
    grad_clip: float = 1.0
    weight_decay: float = 0.01
    seed: int = 0
    log_every: int = 20
    sheet_every: int = 500
    save_every: int = 250
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    max_minutes: float = 0
    """Stop (resumably) after this long; 0 = never."""


class Recipe(ABC):
    """What is particular to one network: data, losses, validation."""

    part: str
    """Name of the trained part and of its weight file."""

    networks: dict[str, nn.Module]
    """Trained networks; ``main`` is the one that is exported and has an EMA."""

    learning_rates: dict[str, float]
    """Learning rate of each network, as a multiple of ``TrainConfig.lr``."""

    betas: tuple[float, float] = (0.9, 0.99)

    @abstractmethod
    def batch(self, generator: torch.Generator) -> Any:
        """Draw one batch."""

    @abstractmethod
    def losses(
        self, networks: dict[str, nn.Module], batch: Any, step: int
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """(network to update, its loss, figures to log) in the order of the updates.

        The loop back-propagates each loss as it is drawn from the list and then steps that network's optimiser only.
        """

    @abstractmethod
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures on the validation clips with the EMA weights."""

    def sheet(self, network: nn.Module) -> np.ndarray | None:
        """A contact sheet (H, W, 3) uint8, if pictures say anything about this part."""
        return None

    @abstractmethod
    def export(self, network: nn.Module, folder: Path) -> None:
        """Write the part's weights and configuration."""


def pick_precision(wanted: str, device: torch.device) -> Literal["no", "bf16"]:
    """``auto`` measures one convolution in both precisions: bf16 is faster only where the machine has units for it."""
    if wanted != "auto":
        return "bf16" if wanted == "bf16" else "no"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    conv = nn.Conv2d(48, 48, 3, padding=1)
    x = torch.randn(4, 48, 32, 32).to(memory_format=torch.channels_last)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        net, y = conv.to(dtype=dtype), x.to(dtype=dtype)
        with torch.no_grad():
            net(y)
            start = time.perf_counter()
            for _ in range(3):
                net(y)
        seconds[dtype] = time.perf_counter() - start
    return "bf16" if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else "no"


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then cosine to ``min_lr_ratio``."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


class _Run:
    """State of one run: networks, optimisers, EMA, files."""

    def __init__(self, recipe: Recipe, config: TrainConfig, out: Path) -> None:
        self.recipe, self.config, self.out = recipe, config, out
        use_cpu = not torch.cuda.is_available()
        precision = pick_precision(config.precision, torch.device("cpu" if use_cpu else "cuda"))
        self.accelerator = Accelerator(mixed_precision=precision, cpu=use_cpu)
        self.networks, self.optimizers = {}, {}
        for name, network in recipe.networks.items():
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=config.lr, betas=recipe.betas, weight_decay=config.weight_decay
            )
            self.networks[name], self.optimizers[name] = self.accelerator.prepare(network, optimizer)
        self.ema = deepcopy(self.accelerator.unwrap_model(self.networks["main"])).eval().requires_grad_(False)
        self.step = 0

    @property
    def state_path(self) -> Path:
        return self.out / "state.pt"

    def save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        plain = {name: self.accelerator.unwrap_model(net).state_dict() for name, net in self.networks.items()}
        optimizers = {name: opt.state_dict() for name, opt in self.optimizers.items()}
        state = {"step": self.step, "networks": plain, "optimizers": optimizers, "ema": self.ema.state_dict()}
        temporary = self.state_path.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(self.state_path)
        self.recipe.export(self.ema, self.out)

    def resume(self) -> None:
        if not self.state_path.exists():
            return
        try:
            state = torch.load(self.state_path, map_location=self.accelerator.device, weights_only=True)
            for name, network in self.networks.items():
                self.accelerator.unwrap_model(network).load_state_dict(state["networks"][name])
                self.optimizers[name].load_state_dict(state["optimizers"][name])
            self.ema.load_state_dict(state["ema"])
            self.step = int(state["step"])
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{self.state_path}: cannot resume ({reason}); use another `out` or remove it"
            ) from error
        log.info("resumed at step %d", self.step)

    @torch.no_grad()
    def update_ema(self) -> None:
        # Early on the average would be mostly the random start.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        current = self.accelerator.unwrap_model(self.networks["main"])
        for mean, value in zip(self.ema.state_dict().values(), current.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), 1 - decay)
            else:
                mean.copy_(value)

    def train_step(self) -> dict[str, float]:
        seed = (self.config.seed * 1_000_003 + self.step) * 64 + self.accelerator.process_index
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed + 1)
        rate = learning_rate(self.step, self.config)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * self.recipe.learning_rates[name]
        batch = self.recipe.batch(generator)
        figures: dict[str, float] = {}
        with self.accelerator.autocast():
            updates = self.recipe.losses(self.networks, batch, self.step)
        for name, loss, parts in updates:
            optimizer = self.optimizers[name]
            optimizer.zero_grad(set_to_none=True)
            self.accelerator.backward(loss)
            norm = self.accelerator.clip_grad_norm_(self.networks[name].parameters(), self.config.grad_clip)
            if torch.isfinite(norm):
                optimizer.step()
            figures |= {f"{name}_norm": float(norm), **{key: float(value) for key, value in parts.items()}}
        self.step += 1
        self.update_ema()
        return figures


def train(
    recipe: Recipe, config: TrainConfig, out: Path, progress: Callable[[int, dict[str, float]], None] | None = None
) -> int:
    """Train until ``config.steps`` or ``config.max_minutes``; returns the step reached. Run again to resume.

    Raises CheckpointError if the folder's state is damaged or belongs to another configuration.
    """
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(recipe, config, out)
    run.resume()
    for network in run.networks.values():
        network.train()
    start, first, counted = time.monotonic(), run.step, 0
    sums: dict[str, float] = {}
    try:
        while run.step < config.steps:
            figures = run.train_step()
            counted += 1
            sums = {key: sums.get(key, 0.0) + value for key, value in figures.items()}
            late = bool(config.max_minutes) and time.monotonic() - start > 60 * config.max_minutes
            last = run.step >= config.steps or late
            if run.step % config.log_every == 0 or last:
                means = {key: round(value / counted, 5) for key, value in sums.items()}
                seconds = (time.monotonic() - start) / max(1, run.step - first)
                record = {"step": run.step, "s_per_step": round(seconds, 3), **means}
                _append(run, record)
                if progress:
                    progress(run.step, means)
                sums, counted = {}, 0
            if run.step % config.sheet_every == 0 or last:
                _look(run)
            if run.step % config.save_every == 0 or last:
                run.save()
            if late:
                break
    except KeyboardInterrupt:
        run.save()
        raise
    return run.step


def _append(run: _Run, record: dict[str, Any]) -> None:
    if run.accelerator.is_main_process:
        with (run.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _look(run: _Run) -> None:
    if not run.accelerator.is_main_process:
        return
    run.ema.eval()
    with torch.no_grad():
        figures = run.recipe.validate(run.ema)
        sheet = run.recipe.sheet(run.ema)
    _append(run, {"step": run.step, "validation": {key: round(value, 5) for key, value in figures.items()}})
    if sheet is not None:
        Image.fromarray(sheet).save(run.out / f"sheet_{run.step:06d}.png")
