"""Which tokens of a scale matter: scores over the grid, higher means keep.

StepVAR (arXiv 2603.01757): structure is the first principal component of the tokens, texture their high-pass residual.
`update` and `turn` keep what the last pass changed most in the picture so far; the others are baselines to compare
with. All work on float32 features of one scale, per image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import ShapeMismatch
from ..schedule import Scale
from ..token_sampling import upload


@dataclass(frozen=True)
class Scores:
    """importance_BL decides; structure_BL and texture_BL are its normalised parts where the selector has them.

    ranking_BL: importance with what must stay raised above everything, where something must.
    """

    importance: Tensor
    structure: Tensor | None = None
    texture: Tensor | None = None
    ranking: Tensor | None = None


ROUNDING = 1e-6  # a difference of float32 numbers this much smaller than they are is rounding, and no feature


def _above_rounding(score_BL: Tensor, x_BLC: Tensor) -> Tensor:
    """Zeros where a score is what rounding leaves of equal tokens: normalising would blow that up to full range."""
    return score_BL.where(score_BL > ROUNDING * torch.linalg.vector_norm(x_BLC, dim=-1), 0.0)


def structure_score(x_BLC: Tensor, start_C: Tensor, iterations: int = 5) -> Tensor:
    """|projection on the first principal direction|, (B, L): S_str of StepVAR 3.2, |Xc v| (DESIGN 2.3).

    Power iteration v <- normalise(Xc^T (Xc v)) from start_C; no C x C matrix, no SVD. Zeros when all tokens are equal.
    """
    centred_BLC = x_BLC - x_BLC.mean(1, keepdim=True)
    v_BC1 = start_C.expand(len(x_BLC), -1).unsqueeze(-1)
    for _ in range(iterations):
        v_BC1 = F.normalize(centred_BLC.transpose(1, 2) @ (centred_BLC @ v_BC1), dim=1)
    return _above_rounding((centred_BLC @ v_BC1).squeeze(-1).abs(), x_BLC)


def high_pass_score(x_BLC: Tensor, scale: Scale, kernel: int = 3) -> Tensor:
    """Energy left after a kernel x kernel mean is removed, (B, L): S_tex of StepVAR 3.2 (DESIGN 2.4).

    Stride 1, padding not counted (else the whole frame would look like texture), L2 norm over channels, frame by
    frame for video. Raises ShapeMismatch if L differs from scale.tokens.
    """
    if x_BLC.shape[1] != scale.tokens:
        raise ShapeMismatch(f"{x_BLC.shape[1]} tokens do not fill the grid {scale.grid}.")
    x = rearrange(x_BLC, "b (t h w) c -> (b t) c h w", t=scale.t, h=scale.h)
    mean = F.avg_pool2d(x, kernel, stride=1, padding=kernel // 2, count_include_pad=False)
    score_BL = rearrange(torch.linalg.vector_norm(x - mean, dim=1), "(b t) h w -> b (t h w)", t=scale.t)
    return _above_rounding(score_BL, x_BLC)


def _minmax(s_BL: Tensor) -> Tensor:
    low, high = s_BL.amin(1, keepdim=True), s_BL.amax(1, keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (s_BL - low) / spread.clamp(min=torch.finfo(s_BL.dtype).tiny), 0.0)


def _zscore(s_BL: Tensor) -> Tensor:
    centred = s_BL - s_BL.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(
        deviation > ROUNDING * s_BL.abs().amax(1, keepdim=True),
        centred / deviation.clamp(min=torch.finfo(s_BL.dtype).tiny),
        0.0,
    )


def _rank(s_BL: Tensor) -> Tensor:
    """Share of tokens strictly below, so that equal scores get equal ranks."""
    ordered = s_BL.sort(1).values
    return torch.searchsorted(ordered, s_BL.contiguous()).to(s_BL.dtype) / max(s_BL.shape[1] - 1, 1)


NORMALISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "minmax": _minmax,
    "zscore": _zscore,
    "rank": _rank,
    "none": lambda s: s,
}


@dataclass(frozen=True)
class LastCodes:
    """Codes of the last pass that ran, and as vectors (B, L, C)."""

    codes: Tensor
    vectors: Tensor
    scale: Scale


@dataclass(frozen=True)
class ScoreContext:
    """What a selector may read besides the features. noise(name, shape) -> uniform (B, …) of this pass's own stream.

    f_hats: before and after the last pass that ran, None where there was none. last: the codes of that pass.
    """

    scale: Scale
    start_C: Tensor
    noise: Callable[[str, tuple[int, ...]], Tensor]
    structure_weight: float = 0.5
    normalise: str = "minmax"
    iterations: int = 5
    kernel: int = 3
    f_hats: tuple[Tensor | None, Tensor | None] = (None, None)
    last: LastCodes | None = None

    def update(self) -> Tensor | None:
        """(B, L): energy the last pass added to f_hat at each place, None where no pass ran."""
        before, after = self.f_hats
        return None if after is None else update_energy(after if before is None else after - before, self.scale)

    def turn(self) -> Tensor | None:
        """(B, L): how far the last pass turned f_hat at each place, None before two passes ran."""
        before, after = self.f_hats
        return None if before is None else update_turn(before, after, self.scale)


def stepvar(x_BLC: Tensor, context: ScoreContext) -> Scores:
    """w structure + (1 - w) texture, each normalised per image (StepVAR 3.2, fusion; DESIGN 2.5)."""
    normalise = NORMALISERS[context.normalise]
    structure = normalise(structure_score(x_BLC, context.start_C, context.iterations))
    texture = normalise(high_pass_score(x_BLC, context.scale, context.kernel))
    weight = context.structure_weight
    return Scores(weight * structure + (1 - weight) * texture, structure, texture)


def texture_only(x_BLC: Tensor, context: ScoreContext) -> Scores:
    score = NORMALISERS[context.normalise](high_pass_score(x_BLC, context.scale, context.kernel))
    return Scores(score, texture=score)


def structure_only(x_BLC: Tensor, context: ScoreContext) -> Scores:
    score = NORMALISERS[context.normalise](structure_score(x_BLC, context.start_C, context.iterations))
    return Scores(score, structure=score)


def lowest_texture(x_BLC: Tensor, context: ScoreContext) -> Scores:
    """The control: keeps what the texture score ranks last. A method that does not beat it ranks nothing."""
    scores = texture_only(x_BLC, context)
    return Scores(-scores.importance, texture=scores.texture)


def update(x_BLC: Tensor, context: ScoreContext) -> Scores:
    """Update index: energy the last pass that ran added to f_hat at each place (DESIGN 2.6). What still moves there
    will move here.

    Where nothing ran before, texture stands in. Energies are compared to 2^-14 of the picture's largest: over flat
    regions many places move alike, and rounding, which differs between batch sizes and devices, would rank them.
    """
    energy_BL = context.update()
    if energy_BL is None:
        return texture_only(x_BLC, context)
    step = (energy_BL.amax(1, keepdim=True) * 2**-14).clamp_min(torch.finfo(energy_BL.dtype).tiny)
    return Scores((energy_BL / step).round() * step)


def turn(x_BLC: Tensor, context: ScoreContext) -> Scores:
    """LazyVAR's update index: how far the last pass that ran turned f_hat at each place, U = 1 - cos(before, after).

    Where fewer than two passes ran before, `update` stands in. Compared in steps, as there and for the same reason.
    """
    turn_BL = context.turn()
    if turn_BL is None:
        return update(x_BLC, context)
    step = (turn_BL.amax(1, keepdim=True) * 2**-14).clamp_min(2**-18)  # cosines of float32 are no finer
    return Scores((turn_BL / step).round() * step)


def update_turn(before: Tensor, after: Tensor, scale: Scale) -> Tensor:
    """(B, L): 1 - cosine of f_hat, (B, C, H, W) or (B, C, T, H, W), before and after a pass, both resized to a
    scale's grid."""
    grids = [
        F.interpolate(f.float() if f.ndim == 5 else f.float().unsqueeze(2), size=scale.grid, mode="area")
        for f in (before, after)
    ]
    return 1 - F.cosine_similarity(grids[0], grids[1], dim=1).flatten(1)


def update_energy(change: Tensor, scale: Scale) -> Tensor:
    """(B, L): mean energy per cell of a scale's grid of a change of f_hat, (B, C, H, W) or (B, C, T, H, W)."""
    energy = change.float().square().sum(1, keepdim=True)
    energy = energy if energy.ndim == 5 else energy.unsqueeze(2)
    return F.interpolate(energy, size=scale.grid, mode="area").flatten(1)


def haar_energy(vectors_BLC: Tensor, scale: Scale) -> Tensor:
    """(B, t, ceil(h / 2), ceil(w / 2)): energy of LH, HL and HH of an orthonormal Haar step, summed over channels
    (LD-Pruning, arXiv 2606.00310). Odd sides are continued by their last row or column."""
    precision = torch.float32 if vectors_BLC.device.type == "mps" else torch.float64
    x = rearrange(vectors_BLC.to(precision), "b (t h w) c -> (b t) c h w", t=scale.t, h=scale.h)
    x = F.pad(x, (0, scale.w % 2, 0, scale.h % 2), mode="replicate")
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    across, down, diagonal = (b - a) + (d - c), (c - a) + (d - b), (a - b) + (d - c)
    energy = (across.square() + down.square() + diagonal.square()).sum(1) / 4
    return rearrange(energy, "(b t) h w -> b t h w", t=scale.t)


def detail_energy(vectors_BLC: Tensor, old: Scale, new: Scale) -> Tensor:
    """(B, L): Haar energy of one scale's code vectors, its 3 x 3 mean (zeros around, always of nine), at another grid.

    Bits give few distinct energies: they are compared in steps of 2^-20 of the picture's largest, or rounding would
    part equal ones.
    """
    pooled = F.avg_pool2d(haar_energy(vectors_BLC, old), 3, stride=1, padding=1)
    resized = F.interpolate(pooled.unsqueeze(1), size=new.grid, mode="trilinear", align_corners=False)
    energy_BL = resized.flatten(1)
    step = (energy_BL.amax(1, keepdim=True) * 2**-20).clamp_min(torch.finfo(energy_BL.dtype).tiny)
    return (energy_BL / step).round() * step


def holding_energy(energy_BL: Tensor, share: float) -> Tensor:
    """(B, L) bool: the places of highest energy that together hold this share of a picture's, and all that equal the
    last of them. All places where the share is 1 or there is no energy."""
    ordered, total = energy_BL.sort(1, descending=True).values, energy_BL.sum(1, keepdim=True)
    count = (ordered.cumsum(1) < share * total).sum(1, keepdim=True) + 1
    least = ordered.gather(1, count.clamp(max=energy_BL.shape[1]) - 1)
    return (energy_BL >= least) | (total <= 0) | (share >= 1)


def detail(x_BLC: Tensor, context: ScoreContext) -> Scores:
    """LD-Pruning's: Haar energy of the codes of the last pass that ran. Where none ran, texture stands in."""
    if context.last is None:
        return texture_only(x_BLC, context)
    return Scores(detail_energy(context.last.vectors, context.last.scale, context.scale).float())


def distance_to_mean(x_BLC: Tensor, context: ScoreContext) -> Scores:
    """Squared distance to the image's mean token (FastVAR, Guo et al. 2025)."""
    return Scores((x_BLC - x_BLC.mean(1, keepdim=True)).square().sum(-1))


def random(x_BLC: Tensor, context: ScoreContext) -> Scores:
    return Scores(upload(context.noise("selector", (x_BLC.shape[1],)), x_BLC.device))


def checkerboard(x_BLC: Tensor, context: ScoreContext) -> Scores:
    """Blind and even: the cells of a checkerboard first, then the rest, each in a scattered order."""
    t, h, w = (torch.arange(n, device=x_BLC.device) for n in context.scale.grid)
    parity = (t[:, None, None] + h[:, None] + w) % 2 == 0
    # multiples of the golden ratio's fraction spread evenly, whatever share of the cells is kept
    spread = torch.arange(context.scale.tokens, device=x_BLC.device) * 0.6180339887498949 % 1
    return Scores((parity.flatten() * 1.0 + spread * 0.5).expand(len(x_BLC), -1))


SELECTORS: dict[str, Callable[[Tensor, ScoreContext], Scores]] = {
    "stepvar": stepvar,
    "texture": texture_only,
    "structure": structure_only,
    "distance": distance_to_mean,
    "random": random,
    "checkerboard": checkerboard,
    "lowest_texture": lowest_texture,
    "update": update,
    "turn": turn,
    "detail": detail,
}


def keep_top(importance_BL: Tensor, keep: int) -> Tensor:
    """Indices (B, keep) of the highest scores, ascending; equal scores go to the lower index (DESIGN 2.7).

    `keep` is a number of the host, so nothing here waits for the device. NaN counts as the lowest score.
    """
    ranked = importance_BL.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order_BL = ranked.sort(dim=1, descending=True, stable=True).indices
    return order_BL[:, :keep].sort(dim=1).values
