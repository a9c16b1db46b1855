"""An old torch is refused with a message, and every file that names a least torch names the same."""

import re

import pytest

import launch
from stepvar_core.least_torch import LEAST, check_torch


@pytest.mark.parametrize("version", ["2.5.1", "2.5.1+cu124", "1.13.0", "2.0"])
def test_an_old_torch_is_refused(version):
    with pytest.raises(ImportError, match=re.escape(f"StepVAR needs torch 2.6 or newer; this is torch {version}")):
        check_torch(version)


@pytest.mark.parametrize("version", ["2.6.0", "2.6.0+cpu", "2.13.0", "3.0", "2.10.0.dev20260101+cu130"])
def test_a_newer_one_is_not(version):
    check_torch(version)


def test_the_files_agree():
    wanted = f"torch>={LEAST[0]}.{LEAST[1]}"
    assert wanted in (launch.ROOT / "requirements.txt").read_text().split()
    assert f'"{wanted}"' in (launch.ROOT / "pyproject.toml").read_text()
