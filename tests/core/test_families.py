"""What families declare, and how their files are told apart."""

from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import EDGES, tiny_vae

import stepvar_core as sv
from stepvar_core.codecs.vqvae import VQVAE
from stepvar_core.families import FAMILIES
from stepvar_core.families.family import NoOptions
from stepvar_core.families.hart.codec import HybridVQVAE
from stepvar_core.families.hart.model import HARTConfig
from stepvar_core.families.registry import CODECS, MODELS

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def test_names_are_a_familys_own():
    assert len({family.name for family in FAMILIES}) == len({family.title for family in FAMILIES}) == len(FAMILIES)
    assert len({files.what for files in (*MODELS, *CODECS)}) == len(MODELS) + len(CODECS)


@every_family
def test_options_check_themselves(family):
    """Every switch is one that a run knows, has an official value, and refuses nonsense by name."""
    assert is_dataclass(family.options) and issubclass(family.options, NoOptions)
    official = family.options.read(None)
    assert official == family.options.read({}) == family.options()
    assert all(
        hasattr(official, name) for name in ("smooth", "smooth_from", "guidance_layers")
    )  # what the loop itself reads
    with pytest.raises(sv.OptionError, match="Unknown option nonsense") as caught:
        family.options.read({"nonsense": 1})
    assert all(switch.name in caught.value.remedy for switch in fields(official))
    for switch in fields(official):
        if isinstance(switch.default, int):  # True and False too
            with pytest.raises(sv.OptionError, match=f"{switch.name} is"):
                family.options.read({switch.name: "often"})


@every_family
def test_it_reads_labels_or_text(family):
    """What a declaration says of the input, the configuration has sizes for."""
    sizes = get_type_hints(family.transformer.module.__init__)["config"]()
    assert hasattr(sizes, "text_dim") is family.reads_text and hasattr(sizes, "num_classes") is not family.reads_text
    assert all(isinstance(name, str) and "." not in name for name in family.vae_names(sizes))


# the three ways upstream shares phi convolutions among scales, by its names for them
PHI_NAMES = {"partly": (4, "qresi_ls.{}."), "all": (1, "qresi."), "none": (len(EDGES), "{}.")}


def save_phi(path, shared: str, prefix: str, extra: dict | None = None, **metadata: str):
    """A VQVAE's file under upstream's names, its convolutions shared as said."""
    count, name = PHI_NAMES[shared]
    vae = tiny_vae(share_quant_resi=count, has_encoder=True, has_decoder=True)
    tensors = {}
    for key, tensor in vae.state_dict().items():
        for n in range(count):
            key = key.replace(f"quant_resi.qresi_ls.{n}.", "quant_resi." + name.format(n))
        tensors[prefix + key] = tensor.clone()
    save_file(tensors | (extra or {}), path, metadata={"norm_groups": "2", "patch_nums": str(list(EDGES))} | metadata)
    return vae


@pytest.mark.parametrize("shared", PHI_NAMES)
@pytest.mark.parametrize("prefix", ["", "vae."])
def test_a_vqvae_loads_however_its_convolutions_are_shared(tmp_path, shared, prefix):
    """Without HART's prefix it is a VAR VQVAE, whatever its convolutions are called; both add up their codes alike."""
    path = tmp_path / "vae.safetensors"
    wanted = save_phi(path, shared, prefix, v_patch_nums=str(list(EDGES)))
    vae = sv.load_vae(path)
    assert type(vae) is (HybridVQVAE if prefix else VQVAE)
    assert vae.state_dict().keys() == wanted.state_dict().keys() and vae.own_schedule() == wanted.own_schedule()
    assert all(torch.equal(tensor, wanted.state_dict()[key]) for key, tensor in vae.state_dict().items())
    schedule = vae.own_schedule()
    codes = [torch.arange(step.scale.tokens).remainder(24)[None] for step in schedule.passes]
    f_hats = [one.quantize.decode_codes(codes[:-1], schedule) for one in (vae, wanted)]
    assert torch.equal(*f_hats)
    last = vae.quantize.decode_codes(codes, schedule) - wanted.quantize.decode_codes(codes, schedule)
    assert bool(last.any()) is bool(prefix)  # the last scale of a HART tokenizer has no convolution


@pytest.mark.parametrize("said", [{"quantizer_type": "var_hybrid"}, {}])
def test_a_tokenizer_that_lost_its_prefix_is_told_by_its_config_or_its_leftovers(tmp_path, said):
    path = tmp_path / "vae.safetensors"
    save_phi(path, "all", "", {} if said else {"disc.head.weight": torch.zeros(1)}, **said)
    vae = sv.load_vae(path)
    assert type(vae) is HybridVQVAE and vae.own_schedule() == HARTConfig().schedule()
