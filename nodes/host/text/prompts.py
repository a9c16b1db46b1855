"""Prompts as people write them for stock text encoders."""

from __future__ import annotations

import re
from typing import Any

WEIGHTED = re.compile(r"((?:[^()\\]|\\.)*):\s*[+-]?(?:\d(?:\.\d*)?|\.\d+)\s*")


def plain(text: str) -> str:
    """The prompt without weights: (word:1.3), nested too, becomes word; other parentheses are text, escaped ones
    too. One walk over the text: what people paste may hold thousands of parentheses."""
    out: list[str] = []
    opened: list[int | None] = []  # where in `out` each parenthesis opened, None where it stays whatever follows
    before = ""
    for part in re.findall(r"\\.|.", text, re.DOTALL):
        is_escaped, before = before.endswith("\\"), part
        if part == ")" and opened:
            start = opened.pop()
            weighted = None if start is None else WEIGHTED.fullmatch("".join(out[start + 1 :]))
            if weighted:
                out[start:] = weighted[1]
                continue
            opened[-1:] = [None] * min(len(opened), 1)  # parentheses that stay are no part of a weighted word
        elif part == "(":
            opened.append(None if is_escaped else len(out))
        out.append(part)
    return "".join(out).replace("\\(", "(").replace("\\)", ")")


class PromptTokenizer:
    """Prompts as token ids in the form stock nodes pass on. A subclass sets key, tokenizer (of transformers) and
    ids(text)."""

    key: str
    tokenizer: Any

    def ids(self, text: str) -> list[int]:
        raise NotImplementedError

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options) -> dict:
        return {
            self.key: [[(i, 1.0, n + 1) if return_word_ids else (i, 1.0) for n, i in enumerate(self.ids(plain(text)))]]
        }

    def untokenize(self, tokens) -> list:
        return [(token, self.tokenizer.convert_ids_to_tokens(token[0])) for token in tokens]

    def decode(self, ids, skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def state_dict(self) -> dict:
        return {}
