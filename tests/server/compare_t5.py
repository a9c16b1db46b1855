"""Run by test_infinity_nodes.py with ComfyUI's source on the path: what our CLIP makes of prompts, as a safetensors
file, and what the sampler reads from conditionings that hold several prompts, which no stock node makes.

    python compare_t5.py PACK COMFYUI MODELS OUT < {"encoders": [names], "prompts": [texts], "tokenize": [texts]}
"""

import importlib.util
import json
import sys

pack, comfyui, models, out = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import folder_paths  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

folder_paths.folder_names_and_paths["text_encoders"] = ([models], folder_paths.supported_pt_extensions)
spec = importlib.util.spec_from_file_location("stepvar_pack", f"{pack}/__init__.py", submodule_search_locations=[pack])
module = sys.modules["stepvar_pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from stepvar_pack.nodes import latents  # noqa: E402
from stepvar_pack.nodes.host.text import encoders as text_encoders  # noqa: E402
from stepvar_pack.stepvar_core.errors import ConditionMismatch  # noqa: E402
from stepvar_pack.stepvar_core.families.infinity.model import Infinity, InfinityConfig  # noqa: E402

task, found, about = json.load(sys.stdin), {}, {"listed": text_encoders.names(), "ids": {}, "stored": {}}
for name in task["encoders"]:
    clip = text_encoders.load(name, "auto", "none")
    about["stored"][name] = sorted({str(p.dtype) for p in clip.patcher.model.clip_flan_t5.transformer.parameters()})
    for i, prompt in enumerate(task["prompts"]):
        tokens = clip.tokenize(prompt)
        about["ids"][str(i)] = [token for token, _ in tokens["flan_t5"][0]]
        [[cond, options]] = clip.encode_from_tokens_scheduled(tokens)
        assert "attention_mask" not in options and options["pooled_output"] is None
        found[f"{name}|{i}"] = cond.contiguous()
    about["tokenized"] = [[token for token, _ in clip.tokenize(text)["flan_t5"][0]] for text in task["tokenize"]]

model = Infinity(InfinityConfig(depth=1, width=16, heads=2, hidden=16, bits=4, text_dim=8, pool_heads=2, chunk=1))
two, mask = torch.ones(2, 5, 8), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
about["read"] = {
    "one for three": [len(t) for t in latents.read_condition([[two[:1], {}]], model, 3, "positive").texts],
    "two, masked": [
        len(t) for t in latents.read_condition([[two, {"attention_mask": mask}]], model, 2, "positive").texts
    ],
}
try:
    latents.read_condition([[two, {}]], model, 3, "positive")
except ConditionMismatch as error:
    about["read"]["two for three"] = str(error)
save_file(found, out, metadata={"about": json.dumps(about)})
