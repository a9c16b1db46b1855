"""Radial spectrum and gradient deviation, against pictures whose answer is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepvar_core.viewing.metrics import EDGE_T, gradient, gradient_deviation, radial_spectrum, radial_spectrum_error


def waves(h: int, w: int, across: int, down: int) -> torch.Tensor:
    """(1, h, w, 3) a cosine of so many periods across and down."""
    y, x = torch.arange(h).view(-1, 1) / h, torch.arange(w) / w
    return (0.5 + 0.25 * torch.cos(2 * math.pi * (across * x + down * y))).view(1, h, w, 1).expand(-1, -1, -1, 3)


def pictures(count: int, h: int, w: int, seed: int) -> torch.Tensor:
    return torch.rand(count, h, w, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("across, down, ring", [(3, 0, 3), (0, 5, 5), (3, 4, 5), (7, 2, 7)])
def test_a_wave_has_its_power_at_its_own_frequency(across, down, ring):
    spectrum = radial_spectrum(waves(16, 24, across, down))[0]
    assert len(spectrum) == 8 and int(spectrum.argmax()) + 1 == ring
    others = torch.cat([spectrum[: ring - 1], spectrum[ring:]])
    assert float(others.max()) < 1e-4 * float(spectrum.max())


def test_halving_every_amplitude_is_six_decibels():
    a = pictures(2, 16, 16, 1)
    assert radial_spectrum_error(a, a / 2).tolist() == pytest.approx([20 * math.log10(2)] * 2, abs=1e-3)


def test_blur_and_grain_both_count():
    a = pictures(1, 32, 32, 2)
    blurred = torch.nn.functional.avg_pool2d(a.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    assert radial_spectrum_error(a, blurred) > 3 and radial_spectrum_error(blurred, a) > 3


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 10**6))
def test_numbers_are_zero_for_equal_pictures_and_symmetric(h, w, seed):
    a, b = pictures(2, h, w, seed), pictures(2, h, w, seed + 1)
    for number in (radial_spectrum_error, gradient_deviation):
        assert number(a, a).tolist() == pytest.approx([0, 0], abs=1e-6)
        assert torch.allclose(number(a, b), number(b, a), atol=1e-5) and (number(a, b) >= 0).all()


def test_gradient_deviation_is_the_spread_of_the_map():
    a, b = pictures(1, 9, 7, 3), pictures(1, 9, 7, 4)
    ga, gb = gradient(a).double(), gradient(b).double()
    likeness = (2 * ga * gb + EDGE_T) / (ga**2 + gb**2 + EDGE_T)
    expected = math.sqrt(float(((likeness - likeness.mean()) ** 2).mean()))
    assert gradient_deviation(a, b).item() == pytest.approx(expected, rel=1e-4)
