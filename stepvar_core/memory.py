"""Keys and values of the scales already run, preallocated once per run and dropped with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cache_bytes(lengths: Sequence[Sequence[int]], rows: int, heads: int, head_dim: int, itemsize: int) -> int:
    """Bytes a KVCache of these arguments allocates. lengths[layer][pass] is the number of tokens a pass runs there."""
    stored = sum(sum(per_pass[:-1]) for per_pass in lengths)
    workspace = max((sum(per_pass) for per_pass in lengths), default=0)
    return 2 * rows * heads * head_dim * (stored + workspace) * itemsize


class KVCache:
    """Keys and values of every layer, (rows, heads, tokens, head_dim) each.

    lengths[layer][pass]: tokens that pass runs in that layer, known before the loop, so nothing grows inside it.
    The last pass is read by nobody: instead of a slot in every layer it gets one workspace that all layers share.
    heartbeat: called once per layer and pass; a host raises out of it to stop within a long scale.
    """

    def __init__(
        self,
        lengths: Sequence[Sequence[int]],
        rows: int,
        heads: int,
        head_dim: int,
        dtype,
        device,
        heartbeat: Callable[[], None] | None = None,
    ):
        def pair(tokens: int) -> tuple[Tensor, Tensor]:
            shape = (rows, heads, tokens, head_dim)
            return torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device)

        self.lengths = [tuple(per_pass) for per_pass in lengths]
        self.stored = [pair(sum(per_pass[:-1])) for per_pass in self.lengths]
        self.workspace = pair(max(sum(per_pass) for per_pass in self.lengths))
        self.filled = [0] * len(self.lengths)
        self.done = [0] * len(self.lengths)
        self.rows = slice(0, rows)
        self.heartbeat = heartbeat
        self.together: BlockCausal | None = None  # set while the first passes run as one

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for kv in (*self.stored, self.workspace) for t in kv)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """Attention of this pass's queries to all stored keys and its own; stores the own ones for the passes to come.

        q, k, v: (rows running, heads, L, head_dim); k and v are stored in the cache's dtype, which is q's.
        `self.rows` says which rows of the cache are running.
        scale: softmax scale, None = 1 / sqrt(head_dim).
        """
        if self.heartbeat is not None:
            self.heartbeat()
        start, stop = self.filled[layer], self.filled[layer] + k.shape[2]
        if self.together is not None:
            return self._attend_together(layer, q, k, v, scale)
        is_last = self.done[layer] == len(self.lengths[layer]) - 1
        keys, values = self.workspace if is_last else self.stored[layer]
        if is_last and start:
            keys[self.rows, :, :start] = self.stored[layer][0][self.rows, :, :start]
            values[self.rows, :, :start] = self.stored[layer][1][self.rows, :, :start]
        keys[self.rows, :, start:stop] = k
        values[self.rows, :, start:stop] = v
        self.filled[layer], self.done[layer] = stop, self.done[layer] + 1
        return F.scaled_dot_product_attention(q, keys[self.rows, :, :stop], values[self.rows, :, :stop], scale=scale)

    def _attend_together(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """The first passes of a run at once, each seeing itself and the earlier ones; stores them all."""
        keys, values = self.stored[layer]
        keys[self.rows, :, : k.shape[2]] = k
        values[self.rows, :, : v.shape[2]] = v
        self.filled[layer], self.done[layer] = k.shape[2], self.together.passes
        return self.together.attend(layer, q, k, v, scale)


class BlockCausal:
    """Attention of a whole schedule at once: a token sees its own scale and all earlier ones. Nothing is stored."""

    def __init__(self, lengths: Sequence[int], device):
        self.passes = len(lengths)
        level_L = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
        self.visible_LL = level_L[:, None] >= level_L[None, :]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=self.visible_LL, scale=scale)
