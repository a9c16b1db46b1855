"""Trains the bundled demo model from scratch: python -m stepvar_core.demo.train (about three hours on two CPU cores).

Fetches its pictures with npm on the first run. Stages are time-boxed and resume from --work when started again.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..families.registry import load_model, load_vae
from . import MODEL_FILE, VAE_FILE, evaluate, transformer, vae
from .data import Artwork, load_artwork
from .sheet import save_sheet

log = logging.getLogger(__name__)

# what a user gets without touching a widget; chosen by looking at sheets and by the classifier
DEFAULTS = {"cfg": 2.0, "temperature": 1.0, "top_k": 200, "top_p": 0.95}
SETTINGS = [
    {"cfg": 0.0, "temperature": 1.0, "top_k": 0, "top_p": 0.0},
    *({**DEFAULTS, "cfg": cfg} for cfg in (0.0, 1.0, 2.0, 3.0, 5.0)),
    {"cfg": 2.0, "temperature": 1.0, "top_k": 1, "top_p": 0.0},
]
ORIGIN = (
    "Trained for this project on 3D emoji artwork (c) Microsoft Corporation, MIT; names from emojibase "
    "(c) Miles Johnson, MIT. See NOTICE."
)
FLOAT32 = (
    "word_embed.",
    "class_emb.",
    "pos_",
    "lvl_embed.",
)  # the inputs: half precision would move what every block reads


def export_vae(path: Path, state: dict[str, Tensor]) -> None:
    config = vae.CONFIG
    metadata = {
        "family": "vqvae",
        "norm_groups": config.norm_groups,
        "patch_nums": config.patch_nums,
        "quant_resi": config.quant_resi,
        "ch_mult": config.ch_mult,
        "licence": "MIT",
        "origin": ORIGIN,
    }
    tensors = {k: (v.float() if k.startswith("quantize.") else v.half()).contiguous() for k, v in state.items()}
    _write(path, tensors, metadata)


def export_var(path: Path, state: dict[str, Tensor], artwork: Artwork) -> None:
    config = transformer.config(len(artwork.labels))
    metadata = {
        "family": "var",
        "patch_nums": config.patch_nums,
        "depth": config.depth,
        "width": config.width,
        "num_heads": config.heads,
        "num_classes": config.num_classes,
        "labels": artwork.labels,
        "defaults": DEFAULTS,
        "licence": "MIT",
        "origin": ORIGIN,
    }
    tensors = {k: (v.float() if k.startswith(FLOAT32) else v.half()).contiguous() for k, v in state.items()}
    _write(path, tensors, metadata)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict) -> None:
    part = path.with_suffix(".part")  # a reader never meets half a file
    save_file(tensors, part, {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()})
    part.chmod(0o644)
    part.replace(path)
    log.info("wrote %s, %.1f MB", path.name, path.stat().st_size / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".demo-work"), help="cache of pictures and checkpoints")
    parser.add_argument("--out", type=Path, default=MODEL_FILE.parent, help="where the two weight files go")
    parser.add_argument(
        "--minutes", type=float, nargs=4, default=(25, 105, 30, 4), metavar=("VAE", "VAR", "DECODER", "CLASSIFIER")
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    vae_minutes, var_minutes, decoder_minutes, classifier_minutes = arguments.minutes

    log.info(
        "Pictures: 3D emoji artwork (c) Microsoft Corporation (MIT), packaged by LobeHub (MIT); names: emojibase (MIT)."
    )
    work, out = arguments.work, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    artwork = load_artwork(work)
    judge = evaluate.train_classifier(work, artwork, classifier_minutes)
    trained = vae.train(work, artwork, vae_minutes)
    small, state = dict(trained.ema), vae.grown(trained.ema)
    before = evaluate.measure_vae(vae.restored(state), judge, artwork, batches=2)
    log.info("VAE before its decoder is trained at full size: %s", before)
    export_vae(out / VAE_FILE.name, state)
    model = transformer.train(work, artwork, vae.restored(small, vae.SMALL), var_minutes)
    export_var(out / MODEL_FILE.name, transformer.weights(model), artwork)
    tuned = vae.train_decoder(work, artwork, small, decoder_minutes)
    export_vae(out / VAE_FILE.name, state | tuned.ema)
    report(
        out,
        work,
        artwork,
        judge,
        {
            "vae": {
                "trained_pictures": trained.pictures,
                "minutes": round(trained.seconds / 60, 1),
                "before_decoder_training": before,
            },
            "var": {"pictures": model.pictures, "minutes": round(model.seconds / 60, 1)},
            "decoder": {"pictures": tuned.pictures, "minutes": round(tuned.seconds / 60, 1)},
        },
    )


def report(out: Path, work: Path, artwork: Artwork, judge: evaluate.Classifier, numbers: dict) -> None:
    """Measures the files as shipped, writes work/report.json and the contact sheet."""
    codec, model = load_vae(out / VAE_FILE.name), load_model(out / MODEL_FILE.name)
    numbers["vae"].update(evaluate.measure_vae(codec, judge, artwork))
    numbers["var"].update(evaluate.measure_var(model, codec, judge, artwork, SETTINGS))
    (work / "report.json").write_text(json.dumps(numbers, indent=1))
    log.info("report: %s", json.dumps(numbers))
    pictures = transformer.generate(model, codec, list(range(len(artwork.labels))) * 2, seed=1)
    save_sheet(out / "samples.jpg", pictures, columns=11)


if __name__ == "__main__":
    main()
