"""How alike two sets of pictures are: PSNR, SSIM, the likeness of their edges, and where they differ.

Pictures are (B, H, W, 3) float in 0..1. Every function takes B pictures each, or one against B. Numbers are float32,
one per picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeMismatch
from .overlay import viridis

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # Wang et al., Image quality assessment, 2004, section III C
EDGE_T = 170 / 255**2  # Xue et al., Gradient magnitude similarity deviation, 2014, for values in 0..1
LUMA = (0.299, 0.587, 0.114)
FULL_HEAT = 0.25  # a difference of a quarter of the range is as yellow as any larger one


def paired(a_BHW3: Tensor, b_BHW3: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32 RGB with the same number of pictures. Raises ShapeMismatch for other sizes, or counts that are
    neither equal nor 1."""
    for name, x in (("a", a_BHW3), ("b", b_BHW3)):
        if x.ndim != 4 or x.shape[-1] < 3 or not x.numel():
            raise ShapeMismatch(
                f"Pictures {name} are {tuple(x.shape)}; (pictures, height, width, 3) was expected.", "Connect an IMAGE."
            )
    a, b = a_BHW3[..., :3].float(), b_BHW3[..., :3].float()
    if a.shape[1:3] != b.shape[1:3]:
        sizes = " and ".join(f"{x.shape[2]} x {x.shape[1]}" for x in (a, b))
        raise ShapeMismatch(
            f"The pictures are {sizes} pixels; only pictures of one size can be compared pixel by pixel.",
            "Resize one of them (Upscale Image), or compare the pictures before they were resized.",
        )
    count = max(len(a), len(b))
    if len(a) not in (1, count) or len(b) not in (1, count):
        raise ShapeMismatch(
            f"{len(a)} pictures are to be compared with {len(b)}.",
            "Give as many of each, or one to compare all others with.",
        )
    b = b.to(a.device)
    return a.expand(count, -1, -1, -1), b.expand(count, -1, -1, -1)


def psnr(a_BHW3: Tensor, b_BHW3: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB, (B,): -10 log10 of the mean squared difference; infinite for equal pictures."""
    a, b = paired(a_BHW3, b_BHW3)
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def ssim(a_BHW3: Tensor, b_BHW3: Tensor) -> Tensor:
    """Structural similarity, (B,), 1 for equal pictures: mean over channels and every place where the window fits
    whole.

    Gaussian window 11 x 11, sigma 1.5, K1 .01, K2 .03, range 1, population variances (Wang et al. 2004, equation 13).
    Raises ShapeMismatch for pictures smaller than the window.
    """
    a, b = (x.movedim(-1, 1) for x in paired(a_BHW3, b_BHW3))
    if min(a.shape[2:]) < WINDOW:
        raise ShapeMismatch(
            f"The pictures are {a.shape[3]} x {a.shape[2]} pixels; SSIM looks through a window of {WINDOW} x {WINDOW}.",
            "Compare larger pictures.",
        )
    place = torch.arange(WINDOW, device=a.device, dtype=torch.float64) - WINDOW // 2
    kernel = torch.exp(-place.square() / (2 * SIGMA**2))
    kernel = (kernel / kernel.sum()).float()

    def mean(x: Tensor) -> Tensor:
        x = x.flatten(0, 1).unsqueeze(1)
        return F.conv2d(F.conv2d(x, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)).view(
            len(a), 3, x.shape[2] - WINDOW + 1, -1
        )

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b, covariance = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    likeness = (
        (2 * mean_a * mean_b + c1)
        * (2 * covariance + c2)
        / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    )
    return likeness.mean((1, 2, 3))


def gradient(x_BHW3: Tensor) -> Tensor:
    """Strength of the edges of the brightness, (B, H, W), >= 0: magnitude of Prewitt's gradient, borders repeated."""
    luma = (x_BHW3[..., :3].float() @ x_BHW3.new_tensor(LUMA, dtype=torch.float32)).unsqueeze(1)
    across = luma.new_tensor([[1, 0, -1]] * 3) / 3
    kernels = torch.stack([across, across.T]).unsqueeze(1)
    return F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), kernels).square().sum(1).sqrt()


def gradient_similarity(a_BHW3: Tensor, b_BHW3: Tensor) -> Tensor:
    """How alike the edges are, (B,), 1 for the same everywhere: the mean of (2 ga gb + T) / (ga^2 + gb^2 + T) (Xue et
    al. 2014, equation 3).

    At full resolution: where the paper halves the picture first, pruning's smallest blocks would be averaged away.
    """
    a, b = (gradient(x) for x in paired(a_BHW3, b_BHW3))
    return ((2 * a * b + EDGE_T) / (a.square() + b.square() + EDGE_T)).mean((1, 2))


def heat_map(a_BHW3: Tensor, b_BHW3: Tensor) -> Tensor:
    """Where the pictures differ, (B, H, W, 3): the largest difference of the three channels in viridis, dark for none,
    yellow from FULL_HEAT on. The range is fixed, so that two heat maps can be compared."""
    a, b = paired(a_BHW3, b_BHW3)
    return viridis((a - b).abs().amax(-1) / FULL_HEAT)


def gradient_deviation(a_BHW3: Tensor, b_BHW3: Tensor) -> Tensor:
    """How unevenly the edges differ, (B,), 0 for the same everywhere: the standard deviation of the map whose mean is
    gradient_similarity (GMSD of Xue et al. 2014, equation 5, at full resolution)."""
    a, b = (gradient(x) for x in paired(a_BHW3, b_BHW3))
    return ((2 * a * b + EDGE_T) / (a.square() + b.square() + EDGE_T)).flatten(1).std(1, correction=0)


def radial_spectrum(x_BHW3: Tensor) -> Tensor:
    """Power of the brightness per spatial frequency, (B, R): mean over rings one cycle per picture wide, from 1 to
    half the shorter edge."""
    luma = x_BHW3[..., :3].float() @ x_BHW3.new_tensor(LUMA, dtype=torch.float32)
    power = torch.fft.fft2(luma).abs().square().flatten(1)
    h, w = luma.shape[1:]
    across, down = (torch.fft.fftfreq(n, 1 / n, device=luma.device) for n in (w, h))
    ring = (across.square() + down.square().unsqueeze(1)).sqrt().round().long().flatten()
    total = power.new_zeros(len(power), int(max(h, w)) + 1).index_add_(1, ring, power)
    count = power.new_zeros(total.shape[1]).index_add_(0, ring, torch.ones_like(power[0]))
    last = min(h, w) // 2
    return (total / count.clamp(min=1))[:, 1 : last + 1]


def radial_spectrum_error(a_BHW3: Tensor, b_BHW3: Tensor) -> Tensor:
    """How far blur or grain shifted the balance of fine and coarse, in dB, (B,), 0 for equal spectra: mean over
    frequencies of |10 log10| of the ratio of the two powers. What PSNR forgives, a picture that lost its finest
    detail, shows here.

    Power below that of one step of an 8-bit pixel counts as that much.
    """
    a, b = paired(a_BHW3, b_BHW3)
    floor = (1 / 255) ** 2
    a, b = (radial_spectrum(x).clamp(min=floor) for x in (a, b))
    return 10 * (a / b).log10().abs().mean(1)
