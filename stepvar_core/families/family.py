"""What a family declares: the files it is made of, and how their keys and shapes become a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..checkpoints import Checkpoint


@dataclass(frozen=True)
class Family:
    """detect(checkpoint) -> bool reads keys only; configure(checkpoint, overrides) -> config; build(config, ops) ->
    module.

    legacy: patterns of saved buffers that are dropped. what: the family's name in error messages. rename(key): the
    module's name for a key of an older or otherwise grouped file; detect and configure see the new names.
    """

    name: str
    what: str
    detect: Callable[[Checkpoint], bool]
    configure: Callable[[Checkpoint, dict | None], object]
    build: Callable[..., nn.Module]
    legacy: tuple[str, ...] = ()
    rename: Callable[[str], str] = str
