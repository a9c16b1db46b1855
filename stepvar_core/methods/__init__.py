"""Ways to run a model on less: StepVAR, and other training-free methods to compare it with on the same model and seed.

    result = sv.sample(model, vae, condition, schedule=schedule, pruning=sv.accelerator("fastvar"))

A method is one file here and one line of METHODS. They are written from published descriptions and from reading public
code; `fidelity` says where one is less than its paper.
"""

from __future__ import annotations

from ..errors import OptionError
from . import fastervar, fastvar, lazyvar, ldpruning, skipvar, sparsevar
from .method import Accelerator, Method

METHODS: tuple[Method, ...] = (
    fastvar.METHOD,
    sparsevar.METHOD,
    fastervar.METHOD,
    skipvar.METHOD,
    lazyvar.METHOD,
    ldpruning.METHOD,
)


def method_of(name: str) -> Method:
    """The method of this id. Raises OptionError where there is none."""
    known = {method.id: method for method in METHODS}
    if name not in known:
        raise OptionError(f"There is no accelerator {name!r}.", f"Choose one of {', '.join(known)}.")
    return known[name]


def accelerator(method: str, **options) -> Accelerator:
    """A rival method as a policy, for `pruning=` of sample and estimate. Options left out keep their defaults.

    Raises OptionError for an unknown method or option, or a value out of range.
    """
    chosen = method_of(method)
    return Accelerator(chosen, chosen.checked(options))
