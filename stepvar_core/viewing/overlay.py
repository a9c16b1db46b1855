"""Drawing a trace over a picture: which tokens were kept, or how they scored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError, ShapeMismatch
from ..trace import LAYERS as SCORES
from ..trace import ScaleTrace, Trace

LAYERS = ("kept", *SCORES)
# Okabe and Ito's colour-blind-safe orange for edges; a dark blue for what was pruned; viridis anchors for scores
EDGE = (0.902, 0.624, 0.0)
PRUNED = (0.06, 0.09, 0.25)
VIRIDIS = (
    (0.267, 0.005, 0.329),
    (0.229, 0.322, 0.546),
    (0.128, 0.567, 0.551),
    (0.369, 0.789, 0.383),
    (0.993, 0.906, 0.144),
)


def pick_scale(trace: Trace, scale: int) -> ScaleTrace:
    """The scale of that index, negative ones counted from the end. Raises OptionError beyond the run's scales."""
    if not -len(trace.scales) <= scale < len(trace.scales):
        raise OptionError(
            f"Scale {scale} was asked for; the run has {len(trace.scales)}.",
            f"Use 0 to {len(trace.scales) - 1}, or -1 for the last one.",
        )
    return trace.scales[scale]


def layer_map(scale: ScaleTrace, layer: str) -> Tensor:
    """(B, t, h, w) float32 in 0..1: the kept mask, or a score stretched to its own range per picture.

    Raises OptionError for an unknown layer, or scores the run did not compute (a scale that ran dense has none).
    """
    if layer not in LAYERS:
        raise OptionError(f"There is no layer {layer!r}.", f"Choose one of {', '.join(LAYERS)}.")
    if layer == "kept":
        return scale.kept.float()
    score = getattr(scale, layer)
    if score is None:
        raise OptionError(
            f"Scale {scale.size[1]}x{scale.size[2]} has no {layer} scores: it ran without pruning, or its "
            "selector computes none.",
            "Show the layer 'kept', or a pruned scale of a StepVAR run.",
        )
    low, high = score.flatten(1).amin(1), score.flatten(1).amax(1)
    spread = (high - low).clamp(min=1e-12).view(-1, 1, 1, 1)
    return (score - low.view(-1, 1, 1, 1)) / spread


def to_pixels(map_BTHW: Tensor, height: int, width: int) -> Tensor:
    """Frames (B * t, height, width) with crisp cells."""
    return F.interpolate(map_BTHW.flatten(0, 1).unsqueeze(1), size=(height, width), mode="nearest-exact").squeeze(1)


def draw(image_BHW3: Tensor, map_BTHW: Tensor, layer: str, opacity: float) -> Tensor:
    """The pictures with the map over them, (B, H, W, 3).

    kept: pruned cells sink into dark blue, an orange line runs along their border. Scores: viridis, blended by opacity.
    Further channels (alpha) are left out. Raises OptionError when there are neither as many pictures as maps, nor a
    multiple, and ShapeMismatch for a picture without pixels or colours.
    """
    if image_BHW3.ndim != 4 or image_BHW3.shape[-1] < 3 or not image_BHW3.numel():
        raise ShapeMismatch(
            f"The picture is {tuple(image_BHW3.shape)}; expected (B, H, W, 3) with at least one pixel.",
            "Connect the picture decoded from this run.",
        )
    image_BHW3 = image_BHW3[..., :3]
    frames, height, width, _ = image_BHW3.shape
    map_FHW = to_pixels(map_BTHW, height, width).to(image_BHW3.device)
    if frames % len(map_FHW):
        raise OptionError(
            f"{frames} pictures were given; the run made {len(map_FHW)}.",
            "Connect the pictures decoded from this very run.",
        )
    map_FHW = map_FHW.repeat_interleave(frames // len(map_FHW), 0)
    if layer == "kept":
        shade = image_BHW3 + ((1 - map_FHW) * opacity).unsqueeze(-1) * (image_BHW3.new_tensor(PRUNED) - image_BHW3)
        return torch.where(
            _border(map_FHW).unsqueeze(-1),
            shade + min(1.0, opacity * 1.3) * (image_BHW3.new_tensor(EDGE) - shade),
            shade,
        )
    return image_BHW3 + opacity * (viridis(map_FHW) - image_BHW3)


def _border(map_FHW: Tensor) -> Tensor:
    """True on the kept side of every border between kept and pruned cells."""
    grown = F.max_pool2d((1 - map_FHW).unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
    return (map_FHW > 0.5) & (grown > 0.5)


def viridis(map_FHW: Tensor) -> Tensor:
    """Colours (F, H, W, 3) of values in 0..1, clamped: dark blue is 0, yellow is 1."""
    anchors = map_FHW.new_tensor(VIRIDIS)
    place = map_FHW.clamp(0, 1) * (len(anchors) - 1)
    low = place.long().clamp(max=len(anchors) - 2)
    return torch.lerp(anchors[low], anchors[low + 1], (place - low).unsqueeze(-1))
