"""Errors a user can act on: what was found, what was expected, and what to do now."""

LONGEST_PROBLEM, LONGEST_REMEDY = 1500, 450  # characters; names and values in a message may come from a hostile file


class StepVARError(ValueError):
    """Base of every error this package raises on purpose.

    `problem` states what was found and what was expected; `remedy` what to do. Both are in str(error), which has at
    most 2,000 characters.
    """

    def __init__(self, problem: str, remedy: str = ""):
        self.problem, self.remedy = _cut(problem, LONGEST_PROBLEM), _cut(remedy, LONGEST_REMEDY)
        super().__init__(f"{self.problem} {self.remedy}".strip())

    def __init_subclass__(cls, **options):
        """Tracebacks and ComfyUI's error box put the module, here a path of the disk, before a name not built in."""
        super().__init_subclass__(**options)
        cls.__module__ = "builtins"


def _cut(text: str, longest: int) -> str:
    """The text without its middle where it is too long: both ends of a message say something."""
    half = longest // 2 - 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"


class CheckpointMismatch(StepVARError):
    """A file is not the checkpoint it was taken for."""


class ScheduleMismatch(StepVARError):
    """A scale schedule is malformed, or does not fit the model or the codes."""


class ShapeMismatch(StepVARError):
    """A tensor has another shape than its role demands."""


class OptionError(StepVARError):
    """An option is unknown, out of range or not a number."""


class ConditionMismatch(StepVARError):
    """A condition (label, text features) does not fit the model."""


class LatentMismatch(StepVARError):
    """A latent or a set of codes comes from another model or another schedule."""
