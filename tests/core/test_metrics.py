"""PSNR, SSIM, edges and heat map: against plain sums over every window, and at their fixed points."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepvar_core.errors import ShapeMismatch
from stepvar_core.viewing.metrics import (
    EDGE_T,
    FULL_HEAT,
    K1,
    K2,
    SIGMA,
    WINDOW,
    gradient,
    gradient_similarity,
    heat_map,
    psnr,
    ssim,
)
from stepvar_core.viewing.overlay import viridis

NUMBERS = (psnr, ssim, gradient_similarity)


def pictures(count: int, h: int, w: int, seed: int) -> torch.Tensor:
    return torch.rand(count, h, w, 3, generator=torch.Generator().manual_seed(seed))


def ssim_by_windows(a, b) -> float:
    """Equation 13 of Wang et al. 2004, window by window in float64."""
    place = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * SIGMA**2))
    window /= window.sum()
    values = []
    for channel in range(3):
        for top in range(a.shape[0] - WINDOW + 1):
            for left in range(a.shape[1] - WINDOW + 1):
                x, y = (p[top : top + WINDOW, left : left + WINDOW, channel].double() for p in (a, b))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy, c = (
                    (window * (x - mx) ** 2).sum(),
                    (window * (y - my) ** 2).sum(),
                    (window * (x - mx) * (y - my)).sum(),
                )
                values.append((2 * mx * my + K1**2) * (2 * c + K2**2) / ((mx**2 + my**2 + K1**2) * (vx + vy + K2**2)))
    return torch.stack(values).mean().item()


@pytest.mark.parametrize("size", [(11, 11), (14, 19)])
def test_ssim_is_the_mean_over_every_window(size):
    a = pictures(2, *size, seed=1)
    b = (a + 0.2 * (pictures(2, *size, seed=2) - 0.5)).clamp(0, 1)
    expected = [ssim_by_windows(x, y) for x, y in zip(a, b)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=2e-5)  # variances are differences of float32 means


def test_psnr_of_a_known_difference():
    a = torch.full((2, 4, 5, 3), 0.5)
    b = torch.stack([a[0] + 0.1, a[1]])
    assert psnr(a, b)[0].item() == pytest.approx(20, abs=1e-4)
    assert math.isinf(psnr(a, b)[1])


def test_edges_of_a_step_are_as_strong_as_the_step():
    step = torch.zeros(1, 6, 6, 3)
    step[:, :, 3:] = 0.6
    strength = gradient(step)
    assert strength[0, :, 2:4].flatten().tolist() == pytest.approx([0.6] * 12, abs=1e-6)
    assert strength[0, :, :2].abs().max() < 1e-6
    flat = torch.zeros_like(step)
    expected = (4 + 2 * EDGE_T / (0.36 + EDGE_T)) / 6  # four columns without an edge, two with it in one picture only
    assert gradient_similarity(step, flat).item() == pytest.approx(expected, abs=1e-6)


def test_equal_pictures_are_equal_in_every_number():
    a = pictures(3, 16, 12, seed=0)
    assert all(math.isinf(v) for v in psnr(a, a))
    assert ssim(a, a).tolist() == pytest.approx([1] * 3, abs=1e-6)
    assert gradient_similarity(a, a).tolist() == [1] * 3
    assert torch.equal(heat_map(a, a), viridis(torch.zeros(3, 16, 12)))


@given(st.integers(11, 24), st.integers(11, 24), st.integers(0, 10**6))
def test_numbers_are_symmetric_and_one_picture_stands_for_many(h, w, seed):
    a, b = pictures(3, h, w, seed), pictures(1, h, w, seed + 1)
    for number in NUMBERS:
        assert torch.allclose(number(a, b), number(b, a))
        assert torch.allclose(number(a, b), torch.cat([number(one[None], b) for one in a]), atol=1e-6)


def test_more_noise_is_less_alike():
    a, noise = pictures(1, 32, 32, seed=5) * 0.5 + 0.25, pictures(1, 32, 32, seed=6) - 0.5
    for number in NUMBERS:
        values = [number(a, a + share * noise).item() for share in (0.05, 0.1, 0.2, 0.4)]
        assert values == sorted(values, reverse=True) and values[0] > values[-1], number.__name__


def test_heat_is_dark_where_nothing_differs_and_full_from_a_quarter_on():
    a = torch.zeros(1, 1, 3, 3)
    b = a.clone()
    b[0, 0, 1, 2] = FULL_HEAT / 2
    b[0, 0, 2, 0] = 1.0
    assert torch.allclose(heat_map(a, b)[0, 0], viridis(torch.tensor([[0.0, 0.5, 1.0]]))[0])


def test_what_cannot_be_compared_is_refused_with_both_sizes():
    with pytest.raises(ShapeMismatch, match=r"64 x 32 and 32 x 32 pixels.*Resize"):
        psnr(pictures(1, 32, 64, 0), pictures(1, 32, 32, 0))
    with pytest.raises(ShapeMismatch, match="2 pictures are to be compared with 3"):
        heat_map(pictures(2, 16, 16, 0), pictures(3, 16, 16, 0))
    with pytest.raises(ShapeMismatch, match=r"10 x 16 pixels.*window of 11"):
        ssim(pictures(1, 16, 10, 0), pictures(1, 16, 10, 1))
    with pytest.raises(ShapeMismatch, match=r"\(pictures, height, width, 3\)"):
        ssim(pictures(1, 16, 16, 0)[0], pictures(1, 16, 16, 1))
