"""Run by test_switti_nodes.py with ComfyUI's source on the path: what our two CLIPs make of prompts, as a safetensors
file, and what the sampler answers to the host's own SDXL CLIP of the same widths.

    python compare_clip.py PACK COMFYUI MODELS OUT < {"encoders": [[first, second, type]], "prompts": [texts]}
"""

import importlib.util
import json
import sys
from types import SimpleNamespace

pack, comfyui, models, out = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
from comfy.sdxl_clip import SDXLClipModel, SDXLTokenizer  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

folder_paths.folder_names_and_paths["text_encoders"] = ([models], folder_paths.supported_pt_extensions)
spec = importlib.util.spec_from_file_location("stepvar_pack", f"{pack}/__init__.py", submodule_search_locations=[pack])
module = sys.modules["stepvar_pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from stepvar_pack.nodes import latents  # noqa: E402
from stepvar_pack.nodes.host.text import encoders as text_encoders  # noqa: E402
from stepvar_pack.stepvar_core.errors import ConditionMismatch  # noqa: E402
from stepvar_pack.stepvar_core.families.switti.model import Switti, SwittiConfig  # noqa: E402

task, found, ids = json.load(sys.stdin), {}, {}
for number, (first, second, kind) in enumerate(task["encoders"]):
    clip = text_encoders.load(first, kind, second)
    for i, prompt in enumerate(task["prompts"]):
        tokens = clip.tokenize(prompt)
        ids[str(i)] = [token for token, _ in tokens["switti_clip"][0]]
        [[cond, options]] = clip.encode_from_tokens_scheduled(tokens)
        found |= {
            f"{number}|{i}|hidden": cond.contiguous(),
            f"{number}|{i}|pooled": options["pooled_output"].contiguous(),
            f"{number}|{i}|mask": options["attention_mask"].contiguous(),
        }
narrow, wide = ({"hidden_size": width, "num_hidden_layers": 3, "num_attention_heads": 2} for width in (8, 24))
options = {"clip_l_model_config": narrow, "clip_g_model_config": wide}
target = SimpleNamespace(params={}, clip=SDXLClipModel, tokenizer=SDXLTokenizer)
sdxl = comfy.sd.CLIP(target, model_options=options)
model = Switti(SwittiConfig(depth=1, width=16, heads=2, hidden=16, text_dim=32, pooled_dim=24))
try:
    latents.read_condition(sdxl.encode_from_tokens_scheduled(sdxl.tokenize("a fox")), model, 1, "positive")
    answer = ""
except ConditionMismatch as error:
    answer = str(error)
save_file(found, out, metadata={"ids": json.dumps(ids), "sdxl": answer})
