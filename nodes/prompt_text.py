"""Prompts as people write them for stock text encoders."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """The prompt without weights: (word:1.3), nested too, becomes word; other parentheses are text, escaped ones too."""
    weighted = re.compile(r"(?<!\\)\(((?:[^()\\]|\\.)*):\s*[+-]?(?:\d(?:\.\d*)?|\.\d+)\s*\)")
    before = None
    while before != text:
        before, text = text, weighted.sub(r"\1", text)
    return text.replace("\\(", "(").replace("\\)", ")")
