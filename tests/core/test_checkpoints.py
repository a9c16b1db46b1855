"""Files: every form that loads, and every damaged, foreign or hostile one, which must be refused and never run."""

import json
import re
import shutil
import struct

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import EDGES, save, tiny_vae, tiny_var

import stepvar_core as sv
from stepvar_core.checkpoints import read_checkpoint, stamp


@pytest.fixture
def var_file(tmp_path):
    return save(tiny_var(), tmp_path / "var.safetensors", patch_nums=json.dumps(EDGES))


@pytest.fixture
def vae_file(tmp_path):
    return save(
        tiny_vae(has_encoder=True, has_decoder=True),
        tmp_path / "vae.safetensors",
        norm_groups="2",
        patch_nums=json.dumps(EDGES),
    )


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def refused(path, message: str, load=sv.load_model, **arguments) -> str:
    with pytest.raises(sv.CheckpointMismatch, match=re.escape(message)) as caught:
        load(path, **arguments)
    assert caught.value.remedy
    return str(caught.value)


# what loads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [(), ("trainer", "var_wo_ddp"), ("state_dict",), ("model",), ("ema",)])
def test_wrapped_pickles_load(tmp_path, keys):
    content = {
        **tiny_var().state_dict(),
        "lvl_1L": torch.repeat_interleave(torch.arange(5), torch.tensor([p * p for p in EDGES]))[None],
    }
    for key in reversed(keys):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "var.pth")
    assert equal(sv.load_model(tmp_path / "var.pth"), tiny_var())


def test_a_folder_of_shards_loads(tmp_path):
    weights = list(tiny_var().state_dict().items())
    folder = tmp_path / "var"
    folder.mkdir()
    shards = {"a.safetensors": dict(weights[::2]), "b.safetensors": dict(weights[1::2])}
    for name, part in shards.items():
        save_file(part, folder / name)
    (folder / "config.json").write_text(json.dumps({"patch_nums": EDGES, "norm_eps": 1e-5}))
    model = sv.load_model(folder)
    assert equal(model, tiny_var()) and model.config.norm_eps == 1e-5
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, part in shards.items() for key in part}}))
    save_file({"stray": torch.zeros(1)}, folder / "c.safetensors")  # the index decides, not what lies around
    assert equal(sv.load_model(folder), tiny_var())
    (folder / "b.safetensors").unlink()
    refused(folder, "Folder var lacks b.safetensors. Download the whole folder.")
    index.write_text("[1, 2]")
    refused(folder, "model.safetensors.index.json in var is not a shard index")
    index.write_text(json.dumps({"weight_map": {"x": "../../elsewhere/a.safetensors"}}))
    refused(
        folder, "var is a file with 17 tensors"
    )  # an index may not lead out of its folder: it read a.safetensors within it, half the weights
    shutil.rmtree(folder)
    folder.mkdir()
    refused(folder, "Folder var lacks safetensors files")


def test_a_folder_of_pickled_shards_loads_with_or_without_an_index(tmp_path):
    """An index whose shards were not downloaded does not stop the one whose shards are there; training state beside
    them is left."""
    folder, weights = tmp_path / "var", list(tiny_var().state_dict().items())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"patch_nums": EDGES}))
    shards = {f"pytorch_model-0000{i}-of-00002.bin": dict(weights[i - 1 :: 2]) for i in (1, 2)}
    for name, part in shards.items():
        torch.save(part, folder / name)
    assert equal(sv.load_model(folder), tiny_var())
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {key: name for name, part in shards.items() for key in part}})
    )
    torch.save({"stray": torch.zeros(1)}, folder / "training.bin")
    assert equal(sv.load_model(folder), tiny_var())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    )
    assert equal(sv.load_model(folder), tiny_var())
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    refused(folder, "Folder var lacks model-00001-of-00001.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_only_the_wanted_tensors_are_read(tmp_path, suffix):
    tensors = {"encoder.w": torch.ones(2), "decoder.w": torch.ones(3)}
    path = tmp_path / f"whole{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    assert list(read_checkpoint(path, keep=lambda key: key.startswith("encoder.")).tensors) == ["encoder.w"]
    assert read_checkpoint(path).tensors.keys() == tensors.keys()


def test_settings_come_from_caller_then_file_then_config_beside(tmp_path):
    path = save(tiny_var(), tmp_path / "var.safetensors", patch_nums=json.dumps(EDGES), norm_eps="1e-5")
    (tmp_path / "config.json").write_text(
        json.dumps({"norm_eps": 1e-3, "labels": ["cat", {"name": "dog", "aliases": ["hound"]}]})
    )
    assert sv.load_model(path).config.norm_eps == 1e-5
    assert sv.load_model(path, config={"norm_eps": 1e-4, "no such name": 1}).config.norm_eps == 1e-4
    assert sv.load_model(path).config.labels == ("cat", "dog;hound")
    for ignored in ("{not json", "[1]", "[" * 100_000):
        (tmp_path / "config.json").write_text(ignored)
        assert sv.load_model(path).config.labels == ()


def test_dtype_and_place_are_the_callers(var_file, vae_file):
    model = sv.load_model(var_file, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and model.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    assert sv.load_vae(vae_file).config.patch_nums == EDGES


def test_a_quantiser_alone_loads(tmp_path):
    vae = sv.load_vae(save(tiny_vae(), tmp_path / "vae.safetensors"))
    assert equal(vae, tiny_vae())
    model = tiny_var()
    sv.sample(model, vae, model.class_condition([1]), schedule=model.schedule())


@pytest.mark.parametrize("parts", [{"has_encoder": True}, {"has_decoder": True}])
def test_half_a_vae_loads(tmp_path, parts):
    path = save(tiny_vae(**parts), tmp_path / "vae.safetensors", norm_groups="2")
    assert sv.load_vae(path).config.stride == 2


def test_upstreams_level_buffer_gives_the_schedule(tmp_path):
    edges = (1, 3, 5)
    weights = tiny_var(edges=edges).state_dict()
    weights["lvl_1L"] = torch.repeat_interleave(torch.arange(3), torch.tensor([1, 9, 25]))[None]
    save_file(weights, tmp_path / "var.safetensors")
    assert sv.load_model(tmp_path / "var.safetensors").config.patch_nums == edges


def test_attention_without_cosine_loads(tmp_path):
    weights = {k: v for k, v in tiny_var().state_dict().items() if "scale_mul" not in k}
    save_file(weights, tmp_path / "var.safetensors")
    model = sv.load_model(tmp_path / "var.safetensors", config={"patch_nums": EDGES})
    assert not model.config.attn_l2_norm and model.config.heads == 2


# what does not -----------------------------------------------------------------------------------


def test_a_truncated_file_is_refused(tmp_path, var_file):
    torch.save(tiny_var().state_dict(), tmp_path / "var.pth")
    for path in (var_file, tmp_path / "var.pth"):
        whole = path.read_bytes()
        for share in (0, 0.01, 0.5, 0.99):
            path.write_bytes(whole[: int(len(whole) * share)])
            message = refused(path, path.name)
            assert "Download it again" in message


class Hostile:
    """Unpickling this would create the file it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, nested):
    payload = Hostile(str(tmp_path / "it ran"))
    torch.save({"pos_1LC": torch.zeros(1), "x": payload} if nested else payload, tmp_path / "var.pth")
    message = refused(tmp_path / "var.pth", "var.pth could not be read as plain weights")
    assert "refused on purpose" in message and not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("var.safetensors", b"", "var.safetensors is damaged or incomplete"),
        ("var.safetensors", b"\xff" * 64, "damaged or incomplete"),
        ("var.safetensors", (1 << 60).to_bytes(8, "little") + b"{}", "damaged or incomplete"),
        ("var.safetensors", (2).to_bytes(8, "little") + b"{}", "0 tensors"),
        ("var.pth", b"not a pickle", "could not be read as plain weights"),
        ("var.gguf", b"GGUF", "var.gguf is not a checkpoint this package reads"),
    ],
)
def test_bytes_of_no_checkpoint(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


def test_a_header_that_lies_about_shapes(tmp_path):
    header = json.dumps({"pos_1LC": {"dtype": "F32", "shape": [1, 1 << 40, 1 << 20], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "var.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    refused(tmp_path / "var.safetensors", "damaged or incomplete")


def test_no_file_and_no_weights(tmp_path):
    refused(tmp_path / "missing.pth", "There is no file missing.pth")
    for content in ([1, 2], {"epoch": 3}, {"state_dict": {}}, torch.zeros(3)):
        torch.save(content, tmp_path / "var.pth")
        refused(tmp_path / "var.pth", "var.pth holds no weights by name")


def test_a_file_of_the_other_kind_says_what_it_is(tmp_path, var_file, vae_file):
    refused(vae_file, "vae.safetensors is a VAR VQVAE, not a next-scale transformer.")
    refused(var_file, "var.safetensors is a VAR transformer, not a next-scale VAE.", load=sv.load_vae)
    save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "sd.safetensors")
    refused(tmp_path / "sd.safetensors", "a file with 1 tensors such as model.diffusion_model.x")


def changed(tmp_path, edit, metadata=None, vae: bool = False):
    weights = dict((tiny_vae(has_encoder=True, has_decoder=True) if vae else tiny_var()).state_dict())
    edit(weights)
    path = tmp_path / "changed.safetensors"
    standard = {"patch_nums": json.dumps(EDGES), "norm_groups": "2"}
    save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata={**standard, **(metadata or {})})
    return path


def put(key, *shape):
    return lambda weights: weights.__setitem__(key, torch.zeros(shape))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda w: w.pop("blocks.1.ffn.fc2.bias"),
            "does not fit a VAR transformer: 1 missing (blocks.1.ffn.fc2.bias).",
        ),
        (put("blocks.1.extra", 1), "1 unexpected (blocks.1.extra)"),
        (put("head.bias", 7), "1 of another shape (head.bias)"),
        (put("lvl_embed.weight", 3, 32), "1 of another shape (lvl_embed.weight)"),
        (put("pos_1LC", 66), "its sizes make no sense"),
        (put("pos_1LC", 1, 66, 0), "its sizes make no sense"),
        (put("class_emb.weight", 0, 32), "sizes make no sense"),
        (put("blocks.0.attn.scale_mul_1H11", 1, 3, 1, 1), "its sizes make no sense"),
        (put("blocks.0.attn.scale_mul_1H11", 1, 0, 1, 1), "its sizes make no sense"),
        (put("blocks.999999999999.attn.proj.bias", 1), "unexpected (blocks.999999999999.attn.proj.bias)"),
        (put("blocks.7.attn.proj.bias", 32), "missing"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, edit, message):
    refused(changed(tmp_path, edit), message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("decoder.conv_out.bias"), "does not fit a VAR VQVAE: 1 missing (decoder.conv_out.bias)"),
        (put("quantize.embedding.weight", 24), "its sizes make no sense"),
        (put("quantize.quant_resi.qresi_ls.123456789012.weight", 8, 8, 3, 3), "1 unexpected"),
        (put("encoder.down.123456789012.block.0.conv1.weight", 8), "its sizes make no sense"),
        (put("encoder.conv_in.weight", 0, 3, 3, 3), "its sizes make no sense"),
        (put("quantize.embedding.weight", 24, 12), "of another shape"),
    ],
)
def test_vae_weights_that_do_not_fit(tmp_path, edit, message):
    refused(changed(tmp_path, edit, vae=True), message, load=sv.load_vae)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"patch_nums": "[1, 2]"}, "of another shape (lvl_embed.weight, pos_1LC)"),
        ({"patch_nums": '"abc"'}, "its sizes make no sense"),
        ({"patch_nums": "7"}, "its sizes make no sense"),
        ({"patch_nums": "[1, -2, 3, 4, 6]"}, "its sizes make no sense"),
        ({"patch_nums": "[1e400]"}, "its sizes make no sense"),
        ({"patch_nums": "[100000]"}, "of another shape"),
        ({"patch_nums": "[100000000000]"}, "its sizes make no sense"),
        ({"norm_eps": "tiny"}, "its sizes make no sense"),
        ({"labels": "5"}, "its sizes make no sense"),
        ({"labels": '[{"alias": "x"}]'}, "its sizes make no sense"),
        ({"defaults": '{"strength": 1}'}, "its sizes make no sense"),
    ],
)
def test_metadata_that_makes_no_sense(tmp_path, metadata, message):
    refused(changed(tmp_path, lambda weights: None, metadata), message)


@pytest.mark.parametrize("levels", [[0, 1 << 40], [-1, 0], [0, 0], [1 << 62] * 66])
def test_a_level_buffer_that_makes_no_sense(tmp_path, levels):
    """Neither believed nor paid for: a level of 2^40 must not ask for terabytes."""
    weights = tiny_var().state_dict()
    weights["lvl_1L"] = torch.tensor(levels)[None]
    save_file(weights, tmp_path / "var.safetensors")
    with pytest.raises(sv.CheckpointMismatch):
        sv.load_model(tmp_path / "var.safetensors")


def test_positions_of_an_unknown_schedule(tmp_path):
    save_file(tiny_var().state_dict(), tmp_path / "var.safetensors")
    refused(tmp_path / "var.safetensors", "has 66 positions and does not say which scales they belong to")


# shapes without weights --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["var.pth", "var.safetensors", "shards"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
def test_shapes_are_read_without_weights(tmp_path, form, dtype):
    """Level values come along, in whatever type a conversion left them: they tell the schedule."""
    tensors = dict(tiny_var().state_dict())
    tensors["lvl_1L"] = torch.repeat_interleave(torch.arange(len(EDGES)), torch.tensor([e * e for e in EDGES]))[
        None
    ].to(dtype)
    path = tmp_path / form
    if form.endswith(".pth"):
        torch.save({"trainer": {"var_wo_ddp": tensors}}, path)
    elif form.endswith(".safetensors"):
        save_file(tensors, path, metadata={"norm_eps": "1e-5"})
    else:
        path.mkdir()
        for i in range(2):
            save_file({k: tensors[k] for k in list(tensors)[i::2]}, path / f"{i}.safetensors")
    whole, shapes = read_checkpoint(path), read_checkpoint(path, shapes_only=True)
    assert (shapes.name, shapes.metadata, shapes.config) == (whole.name, whole.metadata, whole.config)
    assert {k: tuple(t.shape) for k, t in shapes.tensors.items()} == {
        k: tuple(t.shape) for k, t in whole.tensors.items()
    }
    assert [k for k, t in shapes.tensors.items() if not t.is_meta] == ["lvl_1L"]
    assert torch.equal(shapes.tensors["lvl_1L"], whole.tensors["lvl_1L"])


def _header(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        _header(b"{}", 1 << 40),
        _header(b"{}", 1),
        _header(b"not json"),
        _header(b"\xff\xfe"),
        _header(b"[1, 2]"),
        _header(b'{"a": 3}'),
        _header(b'{"a": {"shape": [-1]}}'),
        _header(b'{"a": {"shape": [4611686018427387904, 4]}}'),
        _header(b'{"a": {"shape": ["x"]}}'),
        _header(b"[" * 100_000),
        _header(b'{"lvl_1L": {"shape": [1, 4], "dtype": "I64", "data_offsets": [0, 32]}}'),
        _header(b'{"lvl_1L": {"shape": [1, 4], "dtype": "I64", "data_offsets": [0, 99999999999999]}}'),
        _header(b'{"lvl_1L": {"shape": [1, 4], "dtype": "U1", "data_offsets": [0, 32]}}'),
    ],
    ids=lambda content: ascii(content[:60]),
)
def test_a_header_that_makes_no_sense(tmp_path, content):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    refused(path, "odd.safetensors is damaged or incomplete", load=lambda p: read_checkpoint(p, shapes_only=True))


def test_a_stamp_changes_with_the_file_and_the_config_beside_it(tmp_path, var_file):
    seen = [stamp(var_file)]
    (tmp_path / "config.json").write_text("{}")
    seen.append(stamp(var_file))
    save(tiny_var(heads=1), var_file)
    seen.append(stamp(var_file))
    assert len(set(seen)) == 3 and stamp(var_file) == seen[-1]


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (torch.zeros(1, 66, 32, dtype=torch.int32), "1 of whole numbers (pos_1LC)"),
        (torch.zeros(1, 66, 32, dtype=torch.bool), "1 of whole numbers (pos_1LC)"),
        (torch.zeros(1, 66, 32, dtype=torch.complex64), "1 of whole numbers (pos_1LC)"),
        (torch.zeros(1, 66, 32).to_sparse(), "holds pos_1LC in a form without plain numbers"),
        (torch.quantize_per_tensor(torch.zeros(1, 66, 32), 1.0, 0, torch.qint8), "holds pos_1LC in a form"),
        (torch.zeros(1, 66, 32, device="meta"), "holds pos_1LC in a form"),
    ],
    ids=["int32", "bool", "complex", "sparse", "quantised", "meta"],
)
def test_tensors_of_another_kind(tmp_path, odd, message):
    torch.save(tiny_var().state_dict() | {"pos_1LC": odd}, tmp_path / "var.pth")
    refused(tmp_path / "var.pth", message, config={"patch_nums": EDGES})


def test_a_config_of_no_sane_size_is_not_read(tmp_path, var_file):
    (tmp_path / "config.json").write_text(json.dumps({"norm_eps": 1e-3, "x": "y" * (3 << 20)}))
    assert sv.load_model(var_file).config.norm_eps == 1e-6
