"""Prompts without their weights: the same words as the rule written down as a pattern, in one walk over the text."""

import importlib.util
import random
import re
import time

import pytest

import launch

WEIGHTED = re.compile(r"(?<!\\)\(((?:[^()\\]|\\.)*):\s*[+-]?(?:\d(?:\.\d*)?|\.\d+)\s*\)")
PARTS = ["(", ")", "a", ":1", ":1.3)", "\\", " ", "(b:.5)", ":", "\n"]


@pytest.fixture(scope="module")
def plain():
    """From its file: the folder it lies in imports the host, which this module needs nothing of."""
    path = launch.ROOT / "nodes" / "host" / "text" / "prompts.py"
    spec = importlib.util.spec_from_file_location("prompts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.plain


def by_pattern(text: str) -> str:
    """Innermost weights first, until none is left: what it means, at the cost of a walk for each level."""
    before = None
    while before != text:
        before, text = text, WEIGHTED.sub(r"\1", text)
    return text.replace("\\(", "(").replace("\\)", ")")


def test_it_is_the_pattern(plain):
    dice = random.Random(1)
    for _ in range(20_000):
        text = "".join(dice.choice(PARTS) for _ in range(dice.randint(0, 14)))
        assert plain(text) == by_pattern(text), ascii(text)


@pytest.mark.parametrize(
    "text", ["(" * 20_000, "(" * 4000 + "a" + ":1)" * 4000, "(" * 10_000 + ")" * 10_000, "(a:1" * 5000, ":1)" * 7000]
)
def test_twenty_kilobytes_of_parentheses_take_no_time(plain, text):
    began = time.process_time()
    plain(text)
    assert time.process_time() - began < 0.5
