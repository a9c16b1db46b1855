"""Pictures and timings for a benchmark, in the folders its official scorer reads.

    python -m stepvar_core.evaluate evaluation_metadata.jsonl --out geneval --model infinity_2b_reg.pth --vae
    infinity_vae_d32reg.pth \\
        --text-encoder flan-t5-xl --device cuda --dtype bfloat16 --preset "Paper \u00b7 Infinity"
    python -m stepvar_core.evaluate dpg_bench/prompts --out dpg ...           # a folder of .txt files
    python -m stepvar_core.evaluate meta_data.json --out mjhq ...             # MJHQ-30K
    python -m stepvar_core.evaluate classes --out fid --model var_d16.pth --vae vae_ch160v4096z32.pth --per-prompt 50
    --npz samples.npz python -m stepvar_core.evaluate prompts.txt --out mine ...                # a prompt, or a class
    label, per line

Finished pictures are skipped, so a run that was stopped goes on; a picture depends on its prompt, number and --seed
alone, never on the batch it is drawn in. --ray spreads the prompts over the machines of a Ray cluster (`pip install
"ray[data]"`; --out and the files must lie under the same path on all of them). Run it once with --preset Off and once
with another, or with a rival's --method, and score both folders.

Layouts, as read in the scorers: GenEval (djghosh13/geneval, evaluation/evaluate_images.py): NNNNN/metadata.jsonl and
NNNNN/samples/N.png. DPG-Bench (TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py): NAME.png, up to four pictures in
a 2 x 2 grid, and no other file. MJHQ-30K: category/ID.png, for clean-fid on the whole or on a category. FID on
ImageNet, as VAR reports it: one .npz with arr_0 (N, H, W, 3) uint8 for the evaluator of openai/guided-diffusion.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import torch
from PIL import Image

from ..errors import OptionError, StepVARError
from ..families.registry import family_of, load_model
from ..methods import METHODS, accelerator
from ..methods.presets import PRESETS
from ..methods.stepvar import StepVAR
from .drawing import Plan
from .prompts import LAYOUTS, guess_layout, read_prompts
from .running import encode_all, pack_npz, run, summary

# what the benchmarks give -------------------------------------------------------------------------


# where the scorers look for pictures; each returns the files of a prompt's pictures ----------------


# drawing ------------------------------------------------------------------------------------------


# text ---------------------------------------------------------------------------------------------


# running ------------------------------------------------------------------------------------------


def setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def pruning_of(a: argparse.Namespace) -> dict:
    """Settings of StepVAR, or options of --method, checked. Raises OptionError."""
    settings = dict(a.set)
    if a.method:
        if a.preset or a.ratios:
            raise OptionError(
                "--method was given with --preset or --ratios, which are StepVAR's.",
                "Give one of them, and a method's options with --set.",
            )
        return dict(accelerator(a.method, **settings).options)
    if unknown := sorted(
        name for name in settings if name not in StepVAR.__dataclass_fields__ or name in ("protect", "ratios")
    ):
        raise OptionError(
            f"--set names {', '.join(unknown)}, no setting of StepVAR.",
            "Use names of sv.StepVAR's arguments, or --method.",
        )
    return ({"ratios": a.ratios} if a.ratios else {}) | settings


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m stepvar_core.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("prompts", help="the benchmark's prompt file or folder, or `classes`")
    p.add_argument("--format", choices=list(LAYOUTS), help="default: by the file's ending")
    p.add_argument("--out", required=True, help="folder for images/, timings.jsonl and run.json")
    p.add_argument("--model", required=True)
    p.add_argument("--vae", required=True)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    p.add_argument("--per-prompt", type=int, help="pictures per prompt; default: what the benchmark asks for")
    p.add_argument("--batch", type=int, default=4, help="pictures drawn together")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--aspect-ratio", type=float, default=1.0)
    p.add_argument("--size", help="a size of the family, for example 1M")
    for name, kind in (("cfg", float), ("temperature", float), ("top-k", int), ("top-p", float)):
        p.add_argument(f"--{name}", type=kind)
    p.add_argument("--preset", default="", choices=list(PRESETS))
    p.add_argument(
        "--ratios", type=float, nargs="+", help="pruned fractions, the last scale's first; instead of a preset"
    )
    p.add_argument(
        "--set",
        type=setting,
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="other StepVAR settings, for example fill=zero selector=update; or options of --method, for example "
        "skip_scales=0",
    )
    p.add_argument(
        "--method", default="", choices=["", *(m.id for m in METHODS)], help="a rival method instead of StepVAR"
    )
    p.add_argument("--features", default="", help=".safetensors of text features by prompt id")
    p.add_argument("--text-encoder", default="", help="folder of FLAN-T5 XL, read with transformers")
    p.add_argument("--encode-only", metavar="FILE", help="write the features of all prompts and stop")
    p.add_argument("--first", type=int, help="only so many prompts")
    p.add_argument("--npz", help="also pack all pictures into this file")
    p.add_argument("--ray", action="store_true", help="spread over a Ray cluster")
    p.add_argument("--workers", type=int, default=0, help="with --ray; default: every GPU, or CPU, of the cluster")
    return p


def classes_of(path: str) -> int:
    """How many classes a model draws; none where it reads text."""
    model = load_model(path)
    return 0 if family_of(model).reads_text else model.config.num_classes


def main(arguments: list[str] | None = None) -> None:
    a = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        layout = a.format or ("text" if a.prompts == "classes" else guess_layout(Path(a.prompts)))
        if a.preset and a.ratios:
            raise OptionError("Both --preset and --ratios were given.", "Give one of them.")
        count = a.per_prompt if a.per_prompt is not None else LAYOUTS[layout].per_prompt
        if count < 1 or a.batch < 1 or (LAYOUTS[layout].is_grid and count > 4):
            raise OptionError(
                f"per-prompt is {count} and batch {a.batch}.",
                "Use at least 1 of each, and at most 4 per prompt for a grid.",
            )
        sampling = {k: v for k in ("cfg", "temperature", "top_k", "top_p") if (v := getattr(a, k)) is not None}
        # absolute, since Ray's workers start elsewhere
        out, model, vae, features, encoder = (
            path and str(Path(path).resolve()) for path in (a.out, a.model, a.vae, a.features, a.text_encoder)
        )
        plan = Plan(
            out,
            layout,
            count,
            model,
            vae,
            a.device,
            a.dtype,
            a.batch,
            a.seed,
            a.preset,
            pruning_of(a),
            sampling,
            a.aspect_ratio,
            a.size,
            features,
            encoder,
            a.method,
        )
        prompts = read_prompts(a.prompts, layout, classes_of(a.model) if a.prompts == "classes" else 0)[: a.first]
        if a.encode_only:
            encode_all(plan, prompts, a.encode_only)
            return
        drawn = run(plan, prompts, a.ray, a.workers)
        if a.npz:
            pack_npz((file for p in prompts for file in plan.files(p)), Path(a.npz))
        print(f"{drawn} of {len(prompts)} prompts drawn, the others were there. {summary(plan)}")
        pixels = Image.open(plan.files(prompts[0])[0]).size[0] // (2 if LAYOUTS[layout].is_grid and count > 1 else 1)
        print("Score with: " + LAYOUTS[layout].scorer.format(images=str(plan.images), pixels=pixels, count=count))
    except StepVARError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
