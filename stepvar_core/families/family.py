"""What a family declares: the files it is made of, and how their keys and shapes become a configuration; the switches
that it alone has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import nn

from ..checkpoints import Checkpoint
from ..errors import OptionError


@dataclass(frozen=True)
class NoOptions:
    """The switches of a family that has none. A family's own are a frozen dataclass under this one: its fields are the
    switches it knows, with their official values, and take the place of the values here, at which nothing is special.

    smooth: VAR's more_smooth, soft features in place of the drawn codes' own, from the scale smooth_from on.
    guidance_layers: where guidance is applied: 0 on the logits, -n on the hidden states after block depth - n.
    """

    smooth: ClassVar[bool] = False
    smooth_from: ClassVar[int] = 0
    guidance_layers: ClassVar[int | Sequence[int]] = (0,)

    @classmethod
    def read(cls, options: dict | None) -> NoOptions:
        """The official values and these. Raises OptionError for a name the family does not know, or a wrong value."""
        known = [switch.name for switch in fields(cls)]
        unknown = sorted(set(options or {}) - set(known))
        if unknown:
            raise OptionError(
                f"Unknown option {', '.join(unknown)}.", f"This family knows: {', '.join(known) or 'none'}."
            )
        return cls(**options or {})


def check_whole(name: str, value, least: int) -> None:
    """Raises OptionError unless an option is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name} is {value!r}.", f"Use a whole number of at least {least}.")


def check_switch(name: str, value) -> None:
    """Raises OptionError unless an option is on or off."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}.", "Use True or False.")


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
