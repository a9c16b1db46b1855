"""Pictures and timings for a benchmark, in the folders its official scorer reads.

    python -m stepvar_core.evaluate evaluation_metadata.jsonl --out geneval --model infinity_2b_reg.pth --vae infinity_vae_d32reg.pth \\
        --text-encoder flan-t5-xl --device cuda --dtype bfloat16 --preset "Paper \u00b7 Infinity"
    python -m stepvar_core.evaluate dpg_bench/prompts --out dpg ...           # a folder of .txt files
    python -m stepvar_core.evaluate meta_data.json --out mjhq ...             # MJHQ-30K
    python -m stepvar_core.evaluate classes --out fid --model var_d16.pth --vae vae_ch160v4096z32.pth --per-prompt 50 --npz samples.npz
    python -m stepvar_core.evaluate prompts.txt --out mine ...                # a prompt, or a class label, per line

Finished pictures are skipped, so a run that was stopped goes on; a picture depends on its prompt, number and --seed alone, never on
the batch it is drawn in. --ray spreads the prompts over the machines of a Ray cluster (`pip install "ray[data]"`; --out and the files
must lie under the same path on all of them). Run it once with --preset Off and once with another, or with a rival's --method, and score both folders.

Layouts, as read in the scorers: GenEval (djghosh13/geneval, evaluation/evaluate_images.py): NNNNN/metadata.jsonl and NNNNN/samples/N.png.
DPG-Bench (TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py): NAME.png, up to four pictures in a 2 x 2 grid, and no other file.
MJHQ-30K: category/ID.png, for clean-fid on the whole or on a category. FID on ImageNet, as VAR reports it: one .npz with arr_0
(N, H, W, 3) uint8 for the evaluator of openai/guided-diffusion.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import ConditionMismatch, OptionError, StepVARError
from .labels import class_names, parse_labels
from .pruning.accelerators import METHODS, accelerator
from .pruning.policy import StepVAR
from .pruning.presets import PRESETS, apply_preset
from .registry import load_model, load_vae
from .sampler import sample

log = logging.getLogger(__name__)

LONGEST_TEXT = 512  # FLAN-T5's tokens, as Infinity was trained


@dataclass(frozen=True)
class Prompt:
    """index: place in the benchmark, and with --seed the pictures' identity. id: its name there. text: a prompt or a class label."""

    index: int
    id: str
    text: str
    category: str = ""
    metadata: str = ""


# what the benchmarks give -------------------------------------------------------------------------


def read_geneval(path: Path) -> list[Prompt]:
    """evaluation_metadata.jsonl: an object per line with tag, include and prompt."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Prompt(i, f"{i:05}", json.loads(line)["prompt"], metadata=line) for i, line in enumerate(lines)]


def read_dpg(path: Path) -> list[Prompt]:
    """A folder with one prompt per .txt file."""
    return [Prompt(i, file.stem, file.read_text(encoding="utf-8").strip()) for i, file in enumerate(sorted(path.glob("*.txt")))]


def read_mjhq(path: Path) -> list[Prompt]:
    """meta_data.json: an object of {prompt, category} by picture id."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Prompt(i, name, about["prompt"], about["category"]) for i, (name, about) in enumerate(content.items())]


def read_text(path: Path) -> list[Prompt]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Prompt(i, f"{i:05}", line) for i, line in enumerate(lines)]


# where the scorers look for pictures; each returns the files of a prompt's pictures ----------------


def geneval_files(prompt: Prompt, count: int) -> list[str]:
    return [f"{prompt.id}/samples/{n:05}.png" for n in range(count)]


def grid_file(prompt: Prompt, count: int) -> list[str]:
    return [f"{prompt.id}.png"]


def mjhq_files(prompt: Prompt, count: int) -> list[str]:
    return [f"{prompt.category}/{prompt.id}{f'_{n}' if n else ''}.png" for n in range(count)]


def flat_files(prompt: Prompt, count: int) -> list[str]:
    return [f"{prompt.id}_{n:03}.png" for n in range(count)]


@dataclass(frozen=True)
class Layout:
    """A benchmark's form. per_prompt: pictures it asks for; is_grid: all pictures of a prompt in one file of two columns."""

    read: Callable[[Path], list[Prompt]]
    files: Callable[[Prompt, int], list[str]]
    per_prompt: int
    scorer: str
    is_grid: bool = False


LAYOUTS = {
    "geneval": Layout(read_geneval, geneval_files, 4,
                      "python evaluation/evaluate_images.py {images} --outfile results.jsonl --model-path DETECTOR_FOLDER"),
    "dpg": Layout(read_dpg, grid_file, 4, "PIC_NUM={count} bash dpg_bench/dist_eval.sh {images} {pixels}", is_grid=True),
    "mjhq": Layout(read_mjhq, mjhq_files, 1, "clean-fid: fid.compute_fid(MJHQ_IMAGES, {images!r})"),
    "text": Layout(read_text, flat_files, 1, "any tool that reads a folder of pictures: {images}"),
}


def guess_layout(path: Path) -> str:
    if path.is_dir():
        return "dpg"
    return {".jsonl": "geneval", ".json": "mjhq"}.get(path.suffix, "text")


def read_prompts(path: str, layout: str, classes: int = 0) -> list[Prompt]:
    """The prompts of a benchmark; `classes` in place of a file is every class of the model. Raises OptionError for what it cannot read."""
    if path == "classes":
        if not classes:
            raise OptionError("This model has no classes.", "Give a file of prompts.")
        return [Prompt(i, f"{i:05}", str(i)) for i in range(classes)]
    file = Path(path)
    if not file.exists():
        raise OptionError(f"There is no {path}.", "Give the benchmark's prompt file or folder, or `classes`.")
    try:
        prompts = LAYOUTS[layout].read(file)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise OptionError(f"{path} is not in the form of {layout}: {type(error).__name__} {error}.",
                          f"Choose another --format: {', '.join(LAYOUTS)}.") from error
    if not prompts:
        raise OptionError(f"{path} holds no prompt.", "Give the benchmark's prompt file or folder.")
    return prompts


# drawing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Everything a machine needs to draw a prompt's pictures; plain values, so that it travels."""

    out: str
    layout: str
    per_prompt: int
    model: str
    vae: str
    device: str = "cpu"
    dtype: str = "float32"
    batch: int = 4
    seed: int = 0
    preset: str = ""
    pruning: dict = field(default_factory=dict)
    sampling: dict = field(default_factory=dict)
    aspect_ratio: float = 1.0
    size: str | None = None
    features: str = ""
    text_encoder: str = ""
    method: str = ""  # of pruning.accelerators, whose options `pruning` then holds

    @property
    def images(self) -> Path:
        return Path(self.out) / "images"

    def files(self, prompt: Prompt) -> list[Path]:
        return [self.images / name for name in LAYOUTS[self.layout].files(prompt, self.per_prompt)]

    def is_finished(self, prompt: Prompt) -> bool:
        return all(file.is_file() for file in self.files(prompt))

    def header(self) -> dict:
        """What pictures of one folder must share; machines and batches may differ."""
        return {k: v for k, v in asdict(self).items() if k not in ("out", "device", "batch", "features", "text_encoder")}


class Drawer:
    """The loaded models; draws prompts and writes their files. Also what each Ray worker holds."""

    def __init__(self, plan: Plan):
        self.plan = plan
        dtype = getattr(torch, plan.dtype)
        self.model = load_model(plan.model, device=plan.device, dtype=dtype)
        self.vae = load_vae(plan.vae, device=plan.device)
        self.schedule = self.model.schedule(plan.aspect_ratio, plan.size)
        self.policy = accelerator(plan.method, **plan.pruning) if plan.method else StepVAR(**{"ratios": (), **plan.pruning})
        if plan.preset:
            self.policy = apply_preset(self.policy, plan.preset, self.model.family, self.schedule, self.model.full_scales)
        self.read = None
        if hasattr(self.model.config, "text_tokens"):
            raise ConditionMismatch(f"The {self.model.family} family reads its prompts' pads; this tool knows features without any.",
                                    "Draw with sv.sample, or in ComfyUI.")
        if hasattr(self.model.config, "text_dim"):
            self.read = stored_features(plan.features) if plan.features else TextEncoder(plan.text_encoder, plan.device)

    def condition(self, prompts: Sequence[Prompt]):
        """One row per prompt given."""
        if self.read is None:
            config = self.model.config
            names = class_names(config)
            return self.model.class_condition([parse_labels(p.text, names, config.num_classes)[0] for p in prompts])
        rows = [self.read(p).to(self.plan.device) for p in prompts]
        features_BTC = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths_B1 = torch.tensor([len(r) for r in rows], device=self.plan.device).unsqueeze(1)
        return self.model.text_condition(features_BTC, torch.arange(features_BTC.shape[1], device=self.plan.device) < lengths_B1)

    @torch.inference_mode()
    def draw(self, prompts: Sequence[Prompt]) -> list[dict]:
        """Writes the pictures of whole prompts; returns one record of timings per batch."""
        count = self.plan.per_prompt
        wanted = [(prompt, n) for prompt in prompts for n in range(count)]
        pictures, records = [], []
        for start in range(0, len(wanted), self.plan.batch):
            part = wanted[start:start + self.plan.batch]
            began = time.perf_counter()
            result = sample(self.model, self.vae, self.condition([p for p, _ in part]), schedule=self.schedule, seed=self.plan.seed,
                            rows=[p.index * count + n for p, n in part], pruning=self.policy, **self.plan.sampling)
            loop_seconds = result.trace.seconds  # waits for the device
            decoding = time.perf_counter()
            images = self.vae.decode(result.latent)
            pictures += [(image.float().clamp(0, 1) * 255).round().byte().cpu().numpy() for image in images]
            ended = time.perf_counter()
            records.append({"ids": [p.id for p, _ in part], "pictures": len(part), "scale_seconds": round(loop_seconds, 4),
                            "decode_seconds": round(ended - decoding, 4), "seconds": round(ended - began, 4),
                            "tokens_run": [s.tokens_run for s in result.trace.scales]})
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._write, prompts, [pictures[i * count:(i + 1) * count] for i in range(len(prompts))]))
        return records

    def _write(self, prompt: Prompt, pictures: list[np.ndarray]) -> None:
        files = self.plan.files(prompt)
        if prompt.metadata:
            about = files[0].parent.parent / "metadata.jsonl"
            about.parent.mkdir(parents=True, exist_ok=True)
            about.write_text(prompt.metadata + "\n", encoding="utf-8")
        for file, picture in zip(files, [two_columns(pictures)] if LAYOUTS[self.plan.layout].is_grid else pictures):
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            Image.fromarray(picture).save(part, format="PNG")
            part.replace(file)  # a file with its final name is a whole picture, whenever the run was stopped

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list]:
        """A batch of Ray Data: prompts as columns in, timings out."""
        names = list(Prompt.__dataclass_fields__)
        prompts = [Prompt(**{name: int(rows[name][i]) if name == "index" else str(rows[name][i]) for name in names}) for i in range(len(rows["id"]))]
        return {"records": [json.dumps(record) for record in self.draw(prompts)]}


def two_columns(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """One picture of all, row by row, two to a row; a single one stays itself."""
    if len(pictures) == 1:
        return pictures[0]
    h, w, _ = pictures[0].shape
    sheet = np.zeros((h * ((len(pictures) + 1) // 2), 2 * w, 3), np.uint8)
    for i, picture in enumerate(pictures):
        sheet[i // 2 * h:(i // 2 + 1) * h, i % 2 * w:(i % 2 + 1) * w] = picture
    return sheet


# text ---------------------------------------------------------------------------------------------


def stored_features(path: str) -> Callable[[Prompt], Tensor]:
    """Reads (T, C) features of a prompt, stored under its id in one .safetensors file."""
    file = safe_open(path, framework="pt")
    known = set(file.keys())

    def read(prompt: Prompt) -> Tensor:
        if prompt.id not in known:
            raise ConditionMismatch(f"{path} holds no features of prompt {prompt.id}.", "Make it with --encode-only from the same prompts.")
        return file.get_tensor(prompt.id).float()

    return read


class TextEncoder:
    """FLAN-T5's encoder through the transformers package, which is optional: a folder as published, read from disk alone."""

    def __init__(self, folder: str, device: str):
        if not folder:
            raise ConditionMismatch("This model reads text, and nothing encodes it.",
                                    "Give --text-encoder FOLDER (google/flan-t5-xl) or --features FILE.")
        try:
            from transformers import AutoTokenizer, T5EncoderModel
        except ImportError as error:
            raise ConditionMismatch("--text-encoder needs the transformers package.",
                                    "pip install transformers sentencepiece, or give --features FILE.") from error
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.encoder = T5EncoderModel.from_pretrained(folder, local_files_only=True).to(device).requires_grad_(False)
        self.device = device

    @torch.inference_mode()
    def __call__(self, prompt: Prompt) -> Tensor:
        """(T, C) features, without padding."""
        ids = self.tokenizer(prompt.text, max_length=LONGEST_TEXT, truncation=True, return_tensors="pt").input_ids.to(self.device)
        return self.encoder(ids).last_hidden_state[0].float()


# running ------------------------------------------------------------------------------------------


def check_folder(plan: Plan) -> None:
    """Raises OptionError when the folder holds pictures of other settings."""
    file = Path(plan.out) / "run.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    wanted = json.loads(json.dumps(plan.header()))
    if file.is_file() and (found := json.loads(file.read_text())) != wanted:
        different = ", ".join(sorted(k for k in {**wanted, **found} if found.get(k) != wanted.get(k)))
        raise OptionError(f"{plan.out} holds pictures of another {different}.", "Choose another --out, or delete the folder.")
    file.write_text(json.dumps(wanted, indent=1))


def chunks(prompts: Sequence[Prompt], plan: Plan) -> Iterator[Sequence[Prompt]]:
    """Whole prompts, as many as fill a batch."""
    size = max(1, plan.batch // plan.per_prompt)
    return (prompts[i:i + size] for i in range(0, len(prompts), size))


def run(plan: Plan, prompts: Sequence[Prompt], with_ray: bool = False, workers: int = 0) -> int:
    """Draws what is missing and appends its timings to timings.jsonl; returns the number of prompts drawn."""
    check_folder(plan)
    todo = [p for p in prompts if not plan.is_finished(p)]
    if not todo:
        return 0
    records = ray_records(plan, todo, workers) if with_ray else local_records(plan, todo)
    with open(Path(plan.out) / "timings.jsonl", "a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
            file.flush()
    return len(todo)


def local_records(plan: Plan, prompts: Sequence[Prompt]) -> Iterator[dict]:
    drawer = Drawer(plan)
    with bar(len(prompts)) as progress:
        for part in chunks(prompts, plan):
            yield from drawer.draw(part)
            progress(len(part))


def ray_records(plan: Plan, prompts: Sequence[Prompt], workers: int) -> Iterator[dict]:
    """The same on every worker of a Ray cluster; each holds the models and one GPU where --device is cuda."""
    try:
        import ray
    except ImportError as error:
        raise OptionError("--ray needs the Ray package.", 'pip install "ray[data]" on every machine, or leave --ray out.') from error
    needs = {"num_gpus": 1} if plan.device.startswith("cuda") else {"num_cpus": 1}
    if not workers:
        ray.init(ignore_reinit_error=True)
        workers = max(1, int(ray.cluster_resources().get("GPU" if "num_gpus" in needs else "CPU", 1)))
    rows = ray.data.from_items([asdict(p) for p in prompts], override_num_blocks=min(len(prompts), 4 * workers))
    size = max(1, plan.batch // plan.per_prompt)
    drawn = rows.map_batches(Drawer, fn_constructor_args=(plan,), batch_size=size, concurrency=min(workers, len(prompts)), **needs)
    with bar(len(prompts)) as progress:
        for row in drawn.iter_rows():
            record = json.loads(row["records"])
            progress(len(set(record["ids"])))
            yield record


class bar:
    """tqdm's bar where it is installed, as beside ComfyUI; else a line now and then."""

    def __init__(self, total: int):
        self.total, self.done, self.began = total, 0, time.monotonic()
        try:
            from tqdm import tqdm
            self.tqdm = tqdm(total=total, unit="prompt")
        except ImportError:
            self.tqdm = None

    def __enter__(self) -> Callable[[int], None]:
        return self.step

    def step(self, count: int) -> None:
        self.done += count
        if self.tqdm is not None:
            self.tqdm.update(count)
        else:
            left = (time.monotonic() - self.began) / self.done * (self.total - self.done)
            log.info("%d of %d prompts, %.0f minutes left", self.done, self.total, left / 60)

    def __exit__(self, *error) -> None:
        if self.tqdm is not None:
            self.tqdm.close()


def pack_npz(files: Iterable[Path], target: Path) -> None:
    """arr_0 (N, H, W, 3) uint8, uncompressed, as the evaluator of openai/guided-diffusion maps it."""
    pictures = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    np.savez(target, arr_0=pictures)


def encode_all(plan: Plan, prompts: Sequence[Prompt], target: str) -> None:
    """Writes the features of all prompts for --features, so that the encoder need not share a GPU with the model."""
    encoder, found = TextEncoder(plan.text_encoder, plan.device), {}
    with bar(len(prompts)) as progress:
        for prompt in prompts:
            found[prompt.id] = encoder(prompt).half().cpu().contiguous()
            progress(1)
    save_file(found, target)


def summary(plan: Plan) -> str:
    file = Path(plan.out) / "timings.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    pictures = sum(r["pictures"] for r in records)
    if not pictures:
        return ""
    # the first batch of a run warms up; medians do not mind
    loop, whole = (float(np.median([r[k] / r["pictures"] for r in records])) for k in ("scale_seconds", "seconds"))
    return (f"{pictures} pictures timed: {loop:.3f} s a picture in the scale loop, {whole:.3f} s with decoding "
            f"(medians over batches of up to {plan.batch}).")


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
            raise OptionError("--method was given with --preset or --ratios, which are StepVAR's.", "Give one of them, and a method's options with --set.")
        return dict(accelerator(a.method, **settings).options)
    if unknown := sorted(name for name in settings if name not in StepVAR.__dataclass_fields__ or name in ("protect", "ratios")):
        raise OptionError(f"--set names {', '.join(unknown)}, no setting of StepVAR.", "Use names of sv.StepVAR's arguments, or --method.")
    return ({"ratios": a.ratios} if a.ratios else {}) | settings


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m stepvar_core.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    p.add_argument("--ratios", type=float, nargs="+", help="pruned fractions, the last scale's first; instead of a preset")
    p.add_argument("--set", type=setting, nargs="+", default=[], metavar="NAME=VALUE",
                   help="other StepVAR settings, for example fill=zero selector=update; or options of --method, for example skip_scales=0")
    p.add_argument("--method", default="", choices=["", *METHODS], help="a rival method instead of StepVAR")
    p.add_argument("--features", default="", help=".safetensors of text features by prompt id")
    p.add_argument("--text-encoder", default="", help="folder of FLAN-T5 XL, read with transformers")
    p.add_argument("--encode-only", metavar="FILE", help="write the features of all prompts and stop")
    p.add_argument("--first", type=int, help="only so many prompts")
    p.add_argument("--npz", help="also pack all pictures into this file")
    p.add_argument("--ray", action="store_true", help="spread over a Ray cluster")
    p.add_argument("--workers", type=int, default=0, help="with --ray; default: every GPU, or CPU, of the cluster")
    return p


def main(arguments: list[str] | None = None) -> None:
    a = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        layout = a.format or ("text" if a.prompts == "classes" else guess_layout(Path(a.prompts)))
        if a.preset and a.ratios:
            raise OptionError("Both --preset and --ratios were given.", "Give one of them.")
        count = a.per_prompt if a.per_prompt is not None else LAYOUTS[layout].per_prompt
        if count < 1 or a.batch < 1 or (LAYOUTS[layout].is_grid and count > 4):
            raise OptionError(f"per-prompt is {count} and batch {a.batch}.", "Use at least 1 of each, and at most 4 per prompt for a grid.")
        sampling = {k: v for k in ("cfg", "temperature", "top_k", "top_p") if (v := getattr(a, k)) is not None}
        # absolute, since Ray's workers start elsewhere
        out, model, vae, features, encoder = (path and str(Path(path).resolve()) for path in (a.out, a.model, a.vae, a.features, a.text_encoder))
        plan = Plan(out, layout, count, model, vae, a.device, a.dtype, a.batch, a.seed, a.preset, pruning_of(a), sampling, a.aspect_ratio,
                    a.size, features, encoder, a.method)
        classes = getattr(load_model(a.model).config, "num_classes", 0) if a.prompts == "classes" else 0
        prompts = read_prompts(a.prompts, layout, classes)[:a.first]
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
