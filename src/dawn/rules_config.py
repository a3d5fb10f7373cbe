"""The hand rules that shape what the networks make: every number once, saved with the preset."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from dawn.structs import Strict


class LipRules(Strict):
    """Rules on generated lip openings, in eye distances (``engines.rules``)."""

    closing: float = Field(0.035, ge=0, le=0.2)
    """Openings are made smaller by this much where they are small; 0 leaves them alone."""
    closing_below: float = Field(0.05, gt=0, le=0.5)
    """How small an opening must be. With both numbers openings are spread as those of the clips are (docs/log.md)."""
    apart: bool = True
    """Keep the inner lips from crossing."""


class SilenceRules(Strict):
    """Silence brings the mouth to rest."""

    rest: bool = True
    level_dbfs: float = Field(-50.0, ge=-120, le=0)
    """Sound below this level counts as silence. Recordings with more noise are left to the network."""
    margin_frames: int = Field(2, ge=0, le=100)
    """So long before and after a frame it must be quiet too."""
    ease_frames: float = Field(1.5, ge=0, le=50)
    """Width of the Gaussian that eases the mouth into rest."""
    rest_frames: int = Field(60, ge=4, le=1000)
    """Frames of silence from whose middle half the network's mouth at rest is taken."""


class BlinkRules(Strict):
    """Blinks are made whole, in eye aspect ratios."""

    gain: float = Field(1.2, ge=0, le=10)
    """How much falls beyond ``from_ear`` are deepened; 0 leaves them alone."""
    from_ear: float = Field(0.16, ge=0, le=1)
    """Falls beyond this are blinks."""
    softness_ear: float = Field(0.02, gt=0, le=1)
    """Width of the passage from no change to the whole gain."""
    shut_ear: float = Field(0.0, ge=0, le=1)
    """No eye shuts further than this."""


class HeadRules(Strict):
    """The head begins at the portrait's own pose."""

    anchor_frames: float = Field(20.0, ge=0, le=1000)
    """Time constant with which generated pose leaves the portrait's; 0 leaves it alone."""


class DriveRules(Strict):
    """How the driving frame that is most like the portrait is found."""

    aperture_unit: float = Field(0.1, gt=0)
    ear_unit: float = Field(0.1, gt=0)


class ToneRules(Strict):
    """Monochrome portraits stay so."""

    keep: bool = True
    residual: float = Field(2.5 / 255, ge=0, le=1)
    """Monochrome crops were off their curve by at most 1.35 levels, coloured ones by 3.8 and more (50 crops)."""


class CompositeRules(Strict):
    """How generated squares are put back into their photograph (``rendering.composite``)."""

    border: float = Field(0.3, gt=0, le=2)
    """Width of the fade towards the crop's border, in crop units (the crop is 2 wide)."""
    head_width: float = Field(1.6, gt=0)
    """Half axis of the ellipse that holds face and hair, in half widths of the face."""
    head_height: float = Field(0.85, gt=0)
    """Its other half axis, in heights of the face."""
    head_rise: float = 0.12
    """How far its middle lies above the face's, in heights of the face."""
    head_fade: float = Field(0.5, gt=0)
    """Width of the fade around it, in its own radii."""
    whole: float = Field(0.7, gt=0, le=1)
    """Above this mask value the generated frame is used fully."""
    agree: float = Field(0.03, ge=0, le=1)
    """Frame and moved crop that differ by less (levels of 0 to 1) are the same."""
    differ: float = Field(0.10, gt=0, le=1)
    """Where they differ by more the frame is shown alone."""
    stricter_lips: float = Field(4.0, ge=1)
    """Both thresholds are lower by this factor on the lips, so that a mouth is never half photograph, half generated."""
    stricter_eyes: float = Field(2.0, ge=1)
    organ_softness_px: float = Field(2.5, gt=0)
    """How far around lips and lids, pixels of a 128-px frame."""
    near_px: float = Field(1.0, gt=0)
    """Standard deviation over which differences are judged at 128 px: noise and shifted edges do not count for much."""
    colour_cells: int = Field(32, ge=4, le=128)
    colour_reach_cells: float = Field(1.5, gt=0)
    """Colour is matched over surroundings with this standard deviation, on a grid of so many cells a side."""
    edge_px: float = Field(1.0, ge=0)
    """A crop that ends so near the photograph's edge ends there."""
    margin: float = Field(0.25, ge=0, le=4)
    """How far beyond the crop the photograph is at hand for what moves in, as a share of the crop."""


class RulesConfig(Strict):
    """The hand rules that shape what the networks make, each number once (docs/rules.md)."""

    lips: LipRules = LipRules()
    silence: SilenceRules = SilenceRules()
    blinks: BlinkRules = BlinkRules()
    head: HeadRules = HeadRules()
    drive: DriveRules = DriveRules()
    tone: ToneRules = ToneRules()
    composite: CompositeRules = CompositeRules()

    @classmethod
    def none(cls) -> Self:
        """No rule acts: the bare networks."""
        return cls(
            lips=LipRules(closing=0, apart=False),
            silence=SilenceRules(rest=False),
            blinks=BlinkRules(gain=0, shut_ear=0),
            head=HeadRules(anchor_frames=0),
            tone=ToneRules(keep=False),
        )
