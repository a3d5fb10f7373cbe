"""What a user may turn, told once: type, range, default and words of every option.

Command line, table, form, page and documentation are made from these declarations, so none of them repeats one. Only
pydantic is imported, so that the command line prints its help at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

PORTRAIT = "picture with one face"
SPEECH = "sound file, or video with sound"
PRESET = "shipped preset or a preset's folder"
DEVICE = "auto, cpu, cuda, cuda:1 ..."
RULES = ("preset", "none")
"""What acts on the networks' motion: the hand rules with the preset's numbers, or nothing."""
RULES_WORDS = "none shows the networks without the hand rules (docs/rules.md)"
SQUARE_SIZES_PX = (128, 256, 512)
FULL_SIZES_PX = (256, 2560)
"""Least and greatest limit of a whole photograph's longest side."""
FULL_SIZE_PX = 1280
"""That limit, if none is given."""
PRESETS_OWN = "the preset's own"


@dataclass(frozen=True)
class Control:
    """What a surface needs beyond type, range, default and words.

    label: the control's name on a page; "" where the page has none. unset: what None takes. step: of a slider.
    names: what choices are called on a page. value: stands for the value in the help of the command line.
    """

    label: str = ""
    unset: str = ""
    step: float | None = None
    names: dict[str, str] = field(default_factory=dict)
    value: str | None = None


class _Declared(BaseModel):
    """Frozen, refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerateOptions(_Declared):
    """What a user may turn. ``None`` takes the preset's default."""

    seed: Annotated[int, Control("Seed")] = Field(
        0, ge=0, lt=2**63, description="same seed, same video (on one machine); another seed, another performance"
    )
    steps: Annotated[int | None, Control("Steps", PRESETS_OWN)] = Field(
        None, ge=1, le=1000, description="sampling steps"
    )
    guidance: Annotated[float | None, Control("Guidance", PRESETS_OWN, step=0.05)] = Field(
        None, ge=0, le=10, description="how strongly lips follow the sound; 1 is none"
    )
    pose_scale: Annotated[float, Control("Head motion", step=0.05)] = Field(
        1.0, ge=0, le=3, description="strength of head motion"
    )
    blink: Annotated[float, Control("Blinks", step=0.05)] = Field(
        1.0, ge=0, le=1.5, description="strength of blinks; 0 keeps the eyes as they are"
    )
    still: Annotated[bool, Control("Still head")] = Field(
        False, description="keep the head still; only face and eyes move"
    )
    expression: Annotated[float, Control("Expression", step=0.05)] = Field(
        1.0, ge=0, le=2, description="strength of facial motion"
    )
    sampler: Annotated[Literal["ddim", "dpm++"] | None, Control(unset=PRESETS_OWN)] = Field(
        None, description="of the published model (paper presets); lite presets have one sampler only"
    )
    precision: Annotated[Literal["float32", "bfloat16"] | None, Control(unset=PRESETS_OWN)] = Field(
        None, description="of the published model's A2V network; lite presets compute in float32"
    )


class VideoOptions(GenerateOptions):
    """What may be asked of a video in a form or a table: ``GenerateOptions`` and the other arguments of ``Dawn.__call__``."""

    size: Annotated[int | None, Control("Size", f"{PRESETS_OWN}; {FULL_SIZE_PX} of a whole photograph")] = Field(
        None,
        description=f"side of the square in px: {', '.join(map(str, SQUARE_SIZES_PX))}; "
        f"of a whole photograph its longest side at most, {FULL_SIZES_PX[0]} to {FULL_SIZES_PX[1]}",
    )
    frame: Annotated[
        Literal["crop", "full"], Control("Picture", names={"crop": "Face, square", "full": "Whole photograph"})
    ] = Field("crop", description="square around the face, or the whole photograph with the face moving in it")
    face: Annotated[int | Literal["largest"] | None, Control("Which face")] = Field(
        None, description="which of several faces, counted from left to right"
    )
    allow_silence: Annotated[bool, Control()] = Field(False, description="accept a silent recording")

    def arguments(self) -> dict[str, Any]:
        """For ``Dawn.__call__``; options of generation that are not given are left to their defaults."""
        turned = self.model_dump(include=set(GenerateOptions.model_fields), exclude_defaults=True)
        return {
            "size": self.size,
            "frame": self.frame,
            "face": self.face,
            "allow_silence": self.allow_silence,
            **turned,
        }


@dataclass(frozen=True)
class Option:
    """One declaration, read. number: int or float, None where the value is none. choices: words it may be.

    low, high: limits, None where there is none.
    """

    name: str
    words: str
    default: Any
    truth: bool
    number: type[int] | type[float] | None
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    control: Control

    @property
    def flag(self) -> str:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def kind(self) -> str:
        """What values are, in words: "number", "crop or full", "whole number or largest"."""
        if self.truth:
            return "true or false"
        number = {int: ["whole number"], float: ["number"]}.get(self.number or str, [])
        return " or ".join([*number, *self.choices]) or "text"

    @property
    def limits(self) -> str:
        """The range in words, "" where there is none."""
        if self.high is None:
            return f"from {_plain(self.low)}" if self.low else ""
        return f"up to {_plain(self.high)}" if self.low is None else f"{_plain(self.low)} to {_plain(self.high)}"

    @property
    def default_words(self) -> str:
        """What is taken if nothing is given; "" for what is then simply not so."""
        if self.default is None or self.truth:
            return self.control.unset
        return _plain(self.default) if isinstance(self.default, int | float) else str(self.default)

    @property
    def told(self) -> str:
        """Words, then range and default in brackets."""
        default = self.default_words and f"default: {self.default_words}"
        behind = "; ".join(filter(None, (self.limits, default)))
        return f"{self.words} ({behind})" if behind else self.words


def options_of(kind: type[BaseModel], *names: str) -> Iterator[Option]:
    """The declarations of a model in their order; of those that are named, if any are."""
    for name, declared in kind.model_fields.items():
        if not names or name in names:
            yield _read(name, declared)


def option(name: str) -> Option:
    """One declaration of ``VideoOptions``."""
    return _read(name, VideoOptions.model_fields[name])


def _plain(number: float) -> str:
    """1 of 1.0, 1.5 of 1.5."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def _read(name: str, declared: FieldInfo) -> Option:
    kinds = set(_kinds(declared.annotation))
    (control,) = [item for item in declared.metadata if isinstance(item, Control)] or [Control()]
    return Option(
        name=name,
        words=declared.description or "",
        default=declared.default,
        truth=bool in kinds,
        number=float if float in kinds else int if int in kinds else None,
        choices=tuple(_choices(declared.annotation)),
        low=next((float(item.ge) for item in declared.metadata if isinstance(item, Ge)), None),  # type: ignore[arg-type]
        high=next((float(item.le) for item in declared.metadata if isinstance(item, Le)), None),  # type: ignore[arg-type]
        control=control,
    )


def _kinds(annotation: Any) -> Iterator[Any]:
    """The members of a union, None left out."""
    if get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif annotation is not NoneType:
        yield annotation


def _choices(annotation: Any) -> Iterator[str]:
    for kind in _kinds(annotation):
        if get_origin(kind) is Literal:
            yield from get_args(kind)
