"""Named ratio sets, some with further settings. ratios[0] is the last scale's pruned fraction (DESIGN 2, presets)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import OptionError
from ..schedule import ScaleSchedule
from .policy import Unsettled
from .stepvar import StepVAR

CUSTOM = "Custom"
RATIO_WIDGETS = 6

PRESETS: dict[str, tuple[float, ...]] = {
    "Off": (),
    "Best quality": (0.5, 0.5),
    "Faithful": (0.9, 0.8, 0.7, 0.5),
    "Balanced": (
        0.5,
        0.5,
    ),  # on the demo model 2 dB closer to dense than .75/.5, for 1.6 instead of 1.9 times the speed
    # the paper's skips where they were published, Faithful's ratios before them, Faithful and one more scale
    # elsewhere: more than any other preset
    "Fastest": (1.0, 1.0, 0.9, 0.8, 0.7, 0.5),
    "Paper \u00b7 Infinity": (1.0, 1.0, 0.5, 0.4),
    "Paper \u00b7 HART": (0.75, 0.5),
    "Paper-like \u00b7 InfinityStar": (0.5, 0.4),
}

# what a preset sets beside its ratios, by names of StepVAR; every other setting stays as it is
PRESET_SETTINGS: dict[str, dict[str, Any]] = {"Best quality": {"selector": "update", "fill": "zero"}}


def preset_ratios(name: str, skips: int, schedule: ScaleSchedule, full_length: int) -> tuple[float, ...]:
    """Ratios of a preset for one family and schedule. full_length: scales of the family's full-size schedule; skips:
    how many of its last ones may be left out there, NextScaleModel.skips.

    Scales are skipped only where the preset was published for it; other families and shorter schedules keep them,
    pruned by the preset's next strongest ratio: nothing else would ever be predicted at full resolution. Raises
    OptionError for an unknown name.
    """
    if name not in PRESETS:
        raise OptionError(f"There is no preset {name!r}.", f"Choose one of {', '.join(PRESETS)}.")
    ratios = PRESETS[name]
    if not skips or len(schedule) < full_length:
        kept = max((r for r in ratios if r < 1), default=0.0)
        ratios = tuple(kept if r == 1 else r for r in ratios)
    return ratios


@dataclass(frozen=True, eq=False)
class Preset(Unsettled):
    """A preset by name. own: StepVAR's other settings, which it leaves as they are."""

    name: str
    own: Any = StepVAR(())

    def describe(self) -> str:
        return self.name

    def resolve(self, model, schedule: ScaleSchedule) -> StepVAR:
        """StepVAR with the preset's ratios and settings. Raises OptionError for an unknown name."""
        ratios = preset_ratios(self.name, model.skips, schedule, model.full_scales)
        return replace(self.own, ratios=ratios, **PRESET_SETTINGS.get(self.name, {}))
