"""Small files that claim to be large: python hostile_files.py FOLDER writes them, reads each under a memory limit, and
prints as JSON what each cost: {name: [seconds of CPU time, what was raised]}."""

from __future__ import annotations

import copy
import json
import sys
import time
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_models import EDGES, tiny_hart, tiny_infinity, tiny_vae, tiny_var

import stepvar_core as sv
from stepvar_core.checkpoints import read_checkpoint
from stepvar_core.families.infinity.vae import BSQVAE, BSQVAEConfig
from stepvar_core.families.registry import CODECS, MODELS, build, detect
from stepvar_core.planning.cost import terms

ROOM = 300 << 20  # bytes a refusal may take
FAKES = 9_000
VAR_SETTINGS = {"patch_nums": json.dumps(EDGES)}


def header(path: Path, entries: dict, body: bytes = b"") -> Path:
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def with_fakes(path: Path, module: torch.nn.Module, *patterns: str, fakes: int = FAKES) -> Path:
    """A model's file with thousands of empty tensors, one for each of so many made-up blocks."""
    made_up = {pattern.format(n): torch.zeros(0) for n in range(fakes) for pattern in patterns}
    save_file(made_up | {k: v.contiguous() for k, v in module.state_dict().items()}, path, metadata=VAR_SETTINGS)
    return path


def archive(path: Path, content, method: int = zipfile.ZIP_STORED, extra=None) -> Path:
    """A torch file written again with another way of storing its records. extra(archive) adds to it."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as file:
        records = {record.filename: file.read(record) for record in file.infolist()}
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as file:
        for name, data in records.items():
            file.writestr(name, data)
        if extra:
            extra(file)
    return path


def overlap(file: zipfile.ZipFile) -> None:
    """A hundred records that are all the same bytes."""
    largest = max(file.filelist, key=lambda record: record.file_size)
    for n in range(100):
        twin = copy.copy(largest)
        twin.filename = f"{largest.filename}{n}"
        file.filelist.append(twin)


def nested_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text("[" * 1_000_000)
    save_file({"x": torch.zeros(1)}, folder / "a.safetensors")
    return folder


def write_all(folder: Path) -> dict[str, Path]:
    """The files by what is wrong with them."""

    def at(name: str) -> Path:
        return folder / name

    var, one = tiny_var().state_dict(), torch.zeros(1)
    bsq = BSQVAE(BSQVAEConfig(ch=4, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, norm_groups=2))
    vae = tiny_vae(has_encoder=True, has_decoder=True)
    many = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    huge = {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 4]}
    level = "{}.block.{{}}.conv1.weight"
    return {
        "blocks of VAR": with_fakes(at("a.safetensors"), tiny_var(), "blocks.{}.x"),
        "chunks of Infinity": with_fakes(
            at("b.safetensors"), tiny_infinity(), "block_chunks.{}.module.0.x", "block_chunks.0.module.{}.x"
        ),
        "blocks of HART": with_fakes(at("c.safetensors"), tiny_hart(), "blocks.{}.x", "diffloss.net.res_blocks.{}.x"),
        "as many blocks as are believed": with_fakes(at("u.safetensors"), tiny_var(), "blocks.{}.x", fakes=128),
        "as many levels as are believed": with_fakes(
            at("v.safetensors"), vae, *(f"encoder.down.{{}}.block.{n}.conv1.weight" for n in range(8)), fakes=8
        ),
        "levels of a VQVAE": with_fakes(at("d.safetensors"), vae, "encoder.down.{}.x", "decoder.up.{}.x"),
        "blocks of a VQVAE": with_fakes(at("e.safetensors"), vae, level.format("encoder.down.0")),
        "phis of a VQVAE": with_fakes(at("f.safetensors"), tiny_vae(), "quantize.quant_resi.qresi_ls.{}.weight"),
        "levels of Infinity's VAE": with_fakes(at("g.safetensors"), bsq, "decoder.up.{}.x", "encoder.down.{}.x"),
        "a view of one number": archive(at("h.pth"), var | {"pos_1LC": one.expand(1, 1 << 30, 1)}),
        "views of one storage": archive(at("i.pth"), var | dict.fromkeys(map(str, range(2000)), torch.ones(1 << 18))),
        "deflated zeros": archive(at("j.pth"), var | {"x": torch.zeros(90 << 20)}, zipfile.ZIP_DEFLATED),
        "overlapping records": archive(at("k.pth"), var | {"x": torch.zeros(1 << 20)}, extra=overlap),
        "a pickle of lists": archive(at("l.pth"), {"w": [[] for _ in range(500_000)]} | var),
        "an index that nests": nested_folder(at("m")),
        "a header that nests": header(at("n.safetensors"), json.loads("[" * 900 + "]" * 900)),
        "a header of many names": header(at("o.safetensors"), {f"blocks.{n}.x": many for n in range(70_000)}),
        "a long header": header(at("p.safetensors"), {"__metadata__": {"x": "y" * (5 << 20)}}),
        "a tensor beyond its place": header(at("q.safetensors"), {"pos_1LC": huge}, b"\0" * 4),
        "a shape without end": header(at("r.safetensors"), {"x": {**many, "shape": [1e999]}}),
        "levels beyond the file": header(
            at("s.safetensors"), {"lvl_1L": {"dtype": "I64", "shape": [1 << 30], "data_offsets": [0, 8 << 30]}}
        ),
        "a long name": folder / ("x" * 300 + ".safetensors"),
        "scales without end": scales_without_end(at("t.safetensors")),
    }


def scales_without_end(path: Path) -> Path:
    """A VAR of 5,000 scales of one token, every shape as it should be."""
    weights = {k: v.clone() for k, v in tiny_var().state_dict().items()}
    weights["pos_1LC"], weights["lvl_embed.weight"] = torch.zeros(1, 5000, 32), torch.zeros(5000, 32)
    save_file(weights, path, metadata={"patch_nums": json.dumps([1] * 5000)})
    return path


def use(path: Path, shapes_only: bool) -> None:
    """What loading does with a file, or the plan route."""
    checkpoint = read_checkpoint(path, shapes_only=shapes_only)
    kinds = MODELS if any(files.detect(checkpoint, lambda key, default=None: default) for files in MODELS) else CODECS
    files = detect(checkpoint, kinds, "a model of ours")
    module = build(files, checkpoint, device="meta" if shapes_only else "cpu")
    if kinds is MODELS:
        terms(module, module.schedule())


def limit_memory() -> None:
    """On Linux, where a process knows how much it has and can refuse itself more."""
    if sys.platform != "linux":
        return
    import resource

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, in_use + ROOM))


def main(folder: Path) -> None:
    files, found = write_all(folder), {}
    good = folder / "good.safetensors"
    save_file(tiny_var().state_dict(), good, metadata=VAR_SETTINGS)
    for shapes_only in (False, True):
        use(good, shapes_only)  # what torch sets up once is no file's doing
    limit_memory()
    for name, path in files.items():
        for shapes_only in (False, True):
            start = time.process_time()
            try:
                use(path, shapes_only)
                raised = "nothing"
            except sv.StepVARError as error:
                raised = f"{type(error).__name__}: {error}"
            except Exception as error:  # what this file is about
                raised = f"RAW {type(error).__name__}: {error}"
            found[f"{name}, {'shapes' if shapes_only else 'all'}"] = [time.process_time() - start, raised]
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
