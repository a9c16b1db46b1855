"""The second device under the name by which ComfyUI looks for accelerators that torch does not ship.

SECOND_DEVICE: the library built from device.cpp. SECOND_DEVICE_MIB: its memory.
"""

import os
import types

import torch

torch.ops.load_library(os.environ["SECOND_DEVICE"])
memory = torch.ops.second_device
memory.set_limit(int(float(os.environ.get("SECOND_DEVICE_MIB", "4096")) * 2**20))


def memory_stats(device=None) -> dict:
    return {"active_bytes.all.current": memory.used(), "reserved_bytes.all.current": memory.used()}


torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module(
    "npu",
    types.SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        set_device=lambda device: None,
        get_device_name=lambda device=None: "second device",
        mem_get_info=lambda device=None: (memory.limit() - memory.used(), memory.limit()),
        memory_stats=memory_stats,
        empty_cache=lambda: None,
        synchronize=lambda device=None: None,
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
    ),
)
torch.utils.generate_methods_for_privateuse1_backend()
