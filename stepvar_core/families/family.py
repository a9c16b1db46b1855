"""What a family declares: the files it is made of and how their keys and shapes become a configuration, what it reads,
where its parts lie, and the switches that it alone has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from ..checkpoints import Checkpoint
from ..errors import OptionError


@dataclass(frozen=True)
class NoOptions:
    """The switches of a family that has none. A family's own are a frozen dataclass under this one: its fields are the
    switches it knows, with their official values, and take the place of the values here, at which nothing is special.

    smooth: VAR's more_smooth, soft features in place of the drawn codes' own, from the scale smooth_from on.
    guidance_layers: where guidance is applied: 0 on the logits, -n on the hidden states after block depth - n.
    """

    # without annotations: the loop reads these, but they are no switches of this class
    smooth = False
    smooth_from = 0
    guidance_layers = cast("int | Sequence[int]", (0,))

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


# said(key, default): a setting of a checkpoint by name, from whoever says it first; see checkpoints.settings
Said = Callable[..., Any]


def norm_eps(said: Said, official: float = 1e-6) -> float:
    """The epsilon of a model's norms. Raises ValueError for one that leaves no number standing."""
    eps = float(said("norm_eps", official))
    if not 0 <= eps <= 1:
        raise ValueError(f"norm_eps is {eps}")
    return eps


def holds(*keys: str) -> Callable[[Checkpoint, Said], bool]:
    """A detect of Files: whether a file has all these keys."""
    return lambda checkpoint, said: checkpoint.tensors.keys() >= set(keys)


@dataclass(frozen=True, kw_only=True)
class Files:
    """One kind of checkpoint: how it is told from others, and how it becomes a module.

    what: its name in messages. module(config, ops) -> nn.Module. detect(checkpoint, said) -> bool, by the file's own
    keys and settings alone. configure(checkpoint, said) -> the module's config; it may raise CheckpointMismatch, and
    whatever else it trips over means that the sizes make no sense. legacy: patterns of saved buffers that are dropped.
    rename(key): the module's name for a key of an older or otherwise grouped file; configure sees the new names.
    """

    what: str
    module: Any  # a class of nn.Module
    detect: Callable[[Checkpoint, Said], bool]
    configure: Callable[[Checkpoint, Said], object]
    legacy: tuple[str, ...] = ()
    rename: Callable[[str], str] = str


@dataclass(frozen=True)
class Labels:
    """A family that draws classes: its config has num_classes and labels."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A family that reads text: its config has text_dim, the channels of the features.

    encoder: a type of Load VAR Text Encoder. named: the encoder's name in messages. longest: tokens of a prompt.
    keeps_pads: prompts are padded to `longest`, and the pads are read. pooled: a vector of the whole prompt is read
    beside its features. joins: features of two prompts one after the
    other are a prompt too (Conditioning Concat).
    """

    encoder: str
    named: str
    longest: int
    keeps_pads: bool = False
    pooled: bool = False
    joins: bool = True


def unnamed(config) -> tuple[str, ...]:
    """vae_names of a family whose codec has no public file of its own."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """What hosts, tools and messages ask of a family; each declares itself at the end of its own family.py.

    What a run asks is said by the model's class, and read from there: name, options, skips.

    title: the family as people write it. codecs: kinds of VAE files that come with it; none where an older family's
    serves. reads: what it draws from. vae_names(config): public names of the VAE's file, without their ending, the
    likeliest to be found last. parts: folders of transformer and codec of a model that comes in two. variants: what
    no file tells, by name.
    """

    title: str
    transformer: Files
    codecs: tuple[Files, ...]
    reads: Labels | Prompt
    vae_names: Callable[[Any], tuple[str, ...]] = unnamed
    parts: tuple[str, str] | None = None
    variants: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """In traces, tables and tests: NextScaleModel.family."""
        return self.transformer.module.family

    @property
    def options(self) -> type[NoOptions]:
        """The switches of its runs."""
        return self.transformer.module.Options

    @property
    def skips(self) -> int:
        """How many of the last scales its papers leave out at full size."""
        return self.transformer.module.skips

    @property
    def reads_text(self) -> bool:
        return isinstance(self.reads, Prompt)
