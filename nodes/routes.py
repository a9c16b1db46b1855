"""GET /stepvar/plan: what a model will do and cost, for widgets that show it before anything runs. Read-only.

Names and settings come from a workflow file, so they are hostile: a model is one that Load VAR Model lists, every other
parameter one of its node's choices, and of a file only names and shapes of its tensors are read.
"""

from __future__ import annotations

import asyncio
import logging
import re
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from ..stepvar_core.errors import OptionError, StepVARError
from ..stepvar_core.families.registry import family_of
from ..stepvar_core.labels import class_names
from ..stepvar_core.methods import accelerator, method_of
from ..stepvar_core.methods.method import Option
from ..stepvar_core.methods.presets import PRESETS, preset_ratios
from ..stepvar_core.planning.cost import estimate, terms
from .canvas import ASPECT_RATIOS, SIZES, canvases
from .host import loading, running

log = logging.getLogger(__name__)

MAX_BATCH = 64


def register_routes() -> None:
    running.add_route("/stepvar/plan", Planner().answer)


class Planner:
    """Answers questions one after the other on a thread of its own.

    The host's event loop and its threads, which send files and previews, never wait for a disk or a large file.
    """

    def __init__(self):
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stepvar plan")

    async def answer(self, request: web.Request) -> web.Response:
        """The plan as JSON; of a wrong question {"error": what is wrong, "remedy": what to do} with a status of 400
        and up, or with quiet=1 of 200: browsers write every other status into their console."""
        content, status = await asyncio.get_running_loop().run_in_executor(self.worker, answer_of, request.query)
        return _json(content, 200 if request.query.get("quiet") == "1" and status < 500 else status)


def answer_of(query) -> tuple[dict, int]:
    """What to answer to a question, and its HTTP status: 400 for a wrong question, 422 for a model it fails with."""
    try:
        question = _question(query)
    except OptionError as error:
        return _refusal(error), 400
    try:
        return plan(**question), 200
    except StepVARError as error:
        return _refusal(error), 422
    except Exception as error:  # a fault of ours: the widgets read JSON, and the log has the rest
        log.exception("No plan for %s", question["model"])
        return _refusal(StepVARError(f"The plan failed: {type(error).__name__}.", "See ComfyUI's log.")), 500


def _refusal(error: StepVARError) -> dict:
    return {"error": error.problem, "remedy": error.remedy}


def plan(
    model: str, weight_dtype: str, aspect_ratio: str, size: str, batch: int, labels: bool, canvas: bool, rival, cfg
) -> dict:
    """What `model` runs at this size: scales, cost terms (stepvar_core.cost.terms), the ratios each preset has here,
    what -1 stands for in VAR Sampler; where asked for what a rival method runs and saves, the canvases the
    model draws on, and its class names. Raises StepVARError as loading and sampling would."""
    network = loading.outline(model, weight_dtype)
    schedule = network.schedule(ASPECT_RATIOS[aspect_ratio], size=None if size == "auto" else size)
    answer = {
        "model": model,
        "family": network.family,
        "batch": batch,
        **terms(network, schedule),
        "presets": {name: preset_ratios(name, network.skips, schedule, network.full_scales) for name in PRESETS},
    }
    official = network.config.defaults
    answer["defaults"] = {
        "cfg": official.cfg,
        "temperature": official.temperature,
        "top_k": list(dict.fromkeys(network.default_top_k(schedule))),
        "top_p": official.top_p,
    }
    if rival is not None:
        cost = estimate(network, schedule, rival, cfg, batch)
        answer["forecast"] = {
            "speedup": cost.speedup,
            "passes": [{"size": list(s.size), "tokens": s.tokens, "kept": s.kept} for s in cost.scales],
        }
    if canvas:
        answer["canvases"] = canvases(network)
    if labels:
        names = () if family_of(network).reads_text else class_names(network.config)
        answer["labels"] = [name.split(";")[0] for name in names]
    return answer


def _question(query) -> dict:
    """Arguments of plan(). Raises OptionError naming the first parameter that is none of its choices."""

    def one_of(name: str, choices, default: str) -> str:
        value = query.get(name, default)
        if value not in choices:
            raise OptionError(f"{name} is {value[:60]!r}.", f"Choose one of {', '.join(choices)}.")
        return value

    model = query.get("model", "")
    if model not in loading.model_names():
        raise OptionError(
            f"There is no model {model[:60]!r}.",
            "Put the file into models/var and press R to refresh, or choose another.",
        )
    batch = query.get("batch", "1")
    if not re.fullmatch(r"[0-9]{1,3}", batch) or not 1 <= int(batch) <= MAX_BATCH:
        raise OptionError(f"batch is {batch[:60]!r}.", f"Use a whole number from 1 to {MAX_BATCH}.")
    return {
        "aspect_ratio": one_of("aspect_ratio", ASPECT_RATIOS, "1:1"),
        "size": one_of("size", SIZES, "auto"),
        "batch": int(batch),
        "weight_dtype": one_of("weight_dtype", loading.DTYPES, "auto"),
        "rival": _rival(query),
        "cfg": _strength(query.get("cfg", "-1")),
        "labels": one_of("labels", ("0", "1"), "0") == "1",
        "canvas": one_of("canvases", ("0", "1"), "0") == "1",
        "model": model,
    }


def _rival(query):
    """The policy of a VAR Accelerator with these widgets; None where none is asked for."""
    if "method" not in query:
        return None
    method = method_of(query["method"][:60])
    given = {o.name: query.get(f"{method.id}_{o.name}") for o in method.options}
    return accelerator(method.id, **{o.name: _value(o, given[o.name]) for o in method.options if given[o.name]})


def _value(option: Option, text: str):
    if option.choices:
        return text[:60]
    try:
        return int(text[:20]) if option.is_whole else float(text[:20])
    except ValueError:
        raise OptionError(f"{option.name} is {text[:60]!r}.", "Use a number.") from None


def _strength(text: str) -> float | None:
    try:
        cfg = float(text[:20])
    except ValueError:
        raise OptionError(f"cfg is {text[:60]!r}.", "Use a number.") from None
    return cfg if cfg >= 0 else None


def _json(content: dict, status: int = 200) -> web.Response:
    return web.json_response(
        content, status=status, headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    )
