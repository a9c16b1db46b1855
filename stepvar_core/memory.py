"""What a pass remembers of earlier ones: keys and values, allocated once per run and dropped with it.

The runs of the blocks are numbered in the order they come; each is a pass, or a part of one. `sees` says whose keys
one reads: those of all earlier scales for VAR, none for a model whose scales see themselves alone. Only what a later
run reads is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Sees = Sequence[Sequence[int]]


def everything_before(runs: int) -> list[range]:
    """`sees` of a block-causal model: every run reads all earlier ones."""
    return [range(run) for run in range(runs)]


def read_again(sees: Sees) -> frozenset[int]:
    """The runs whose keys a later one reads."""
    return frozenset(earlier for seen in sees for earlier in seen)


@dataclass(frozen=True)
class Layout:
    """Room for the keys of one layer, in tokens.

    stored: of the runs that a later one reads. workspace: the most that must be laid side by side because it does not
    lie so: what a run reads, and its own.
    """

    stored: int
    workspace: int

    @classmethod
    def of(cls, lengths: Sequence[int], sees: Sees) -> Layout:
        """lengths: tokens per run."""
        read = read_again(sees)
        slots: list[slice | None] = []
        stored = workspace = 0
        for run, tokens in enumerate(lengths):
            slots.append(slice(stored, stored + tokens) if run in read else None)
            stored += tokens if run in read else 0
            seen = [slots[earlier] for earlier in sees[run]]
            if seen and not _is_prefix(seen, slots[run]):
                workspace = max(workspace, sum(s.stop - s.start for s in seen) + tokens)
        return cls(stored, workspace)


def cache_bytes(
    lengths: Sequence[Sequence[int]], sees: Sees, rows: int, heads: int, head_dim: int, itemsize: int
) -> int:
    """Bytes a KVCache of these arguments allocates. lengths[layer][run]: tokens of a run in a layer."""
    layouts = [Layout.of(per_run, sees) for per_run in lengths]
    stored, workspace = sum(one.stored for one in layouts), max((one.workspace for one in layouts), default=0)
    return 2 * rows * heads * head_dim * (stored + workspace) * itemsize


class KVCache:
    """Keys and values of every layer, (rows, heads, tokens, head_dim) each.

    lengths[layer][run]: the most tokens a run of the blocks has in that layer, known before the loop, so nothing grows
    inside it. sees[run]: the earlier runs it reads; one that did not run after all is left out. One workspace, shared
    by all layers, takes what must lie side by side. attention(q, k, v, attn_mask=None, scale=None): torch's, or a
    host's. heartbeat: called once per layer and run; a host raises out of it to stop within a long scale.
    """

    def __init__(
        self,
        lengths: Sequence[Sequence[int]],
        sees: Sees,
        rows: int,
        heads: int,
        head_dim: int,
        dtype,
        device,
        heartbeat: Callable[[], None] | None = None,
        attention: Callable[..., Tensor] = F.scaled_dot_product_attention,
    ):
        def pair(tokens: int) -> tuple[Tensor, Tensor]:
            shape = (rows, heads, tokens, head_dim)
            return torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device)

        self.lengths = [tuple(per_run) for per_run in lengths]
        self.sees, self.read = [tuple(seen) for seen in sees], read_again(sees)
        layouts = [Layout.of(per_run, sees) for per_run in lengths]
        self.stored = [pair(layout.stored) for layout in layouts]
        self.workspace = pair(max(layout.workspace for layout in layouts))
        self.slots: list[dict[int, slice]] = [{} for _ in lengths]
        self.hidden: dict[int, Tensor] = {}  # of a run, (pictures, its tokens) bool: keys that nobody may read
        self.dtype, self.device = dtype, device
        self.heartbeat, self.attention = heartbeat, attention

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for kv in (*self.stored, self.workspace) for t in kv)

    def opened(self, runs: Sequence[int], rows: slice) -> Memory:
        """The memory of a run, or of several that go through the blocks as one. rows: those of the cache that run."""
        return Memory(self, tuple(runs), rows) if len(runs) == 1 else SharedMemory(self, tuple(runs), rows)

    def store(self, layer: int, run: int, k: Tensor, v: Tensor, rows: slice) -> slice | None:
        """Keeps a run's keys and values behind those already there, if anybody will read them. Returns their place."""
        if run not in self.read:
            return None
        slots = self.slots[layer]
        start = max((s.stop for s in slots.values()), default=0)
        slots[run] = own = slice(start, start + k.shape[2])
        for target, values in zip(self.stored[layer], (k, v)):
            target[rows, :, own] = values
        return own

    def seen(self, layer: int, runs: Sequence[int]) -> list[slice]:
        """Places of the runs that `runs` read, but for these themselves."""
        slots = self.slots[layer]
        earlier = sorted({i for run in runs for i in self.sees[run]} - set(runs))
        return [slots[i] for i in earlier if i in slots]


class Memory:
    """The cache as one run of the blocks sees it: the seam between a model and what came before."""

    def __init__(self, cache: KVCache, runs: tuple[int, ...], rows: slice):
        self.cache, self.runs, self.rows = cache, runs, rows

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """Attention of this run's queries to the keys it sees and its own; stores the own ones for runs to come.

        q: (rows running, heads, L, head_dim); k and v likewise, with as many heads or a divisor of them, and are read
        in the cache's dtype, which is q's. scale: softmax scale, None = 1 / sqrt(head_dim).
        """
        self._beat()
        return self._answer(q, *self.laid_out(layer, k, v), scale, self.readable(layer, len(q), k.shape[2]))

    def hide(self, hidden_BK: Tensor) -> None:
        """Keys of this run that neither it nor a later one reads: those of tokens that run for other pictures' sake."""
        self.cache.hidden[self.runs[0]] = hidden_BK

    def readable(self, layer: int, rows: int, own: int) -> Tensor | None:
        """(rows, 1, 1, keys) bool: keys as laid out that may be read, the last `own` the run's; None = all."""
        cache, slots = self.cache, self.cache.slots[layer]
        runs = [i for i in sorted({*cache.sees[self.runs[0]]} - {self.runs[0]}) if i in slots]
        lengths = [*(slots[i].stop - slots[i].start for i in runs), own]
        parts = [cache.hidden.get(run) for run in (*runs, self.runs[0])]
        known = [part for part in parts if part is not None]
        if not known:
            return None
        none = known[0].new_zeros(len(known[0]), 1)
        hidden_BK = torch.cat([none.expand(-1, n) if p is None else p for p, n in zip(parts, lengths)], 1)
        return ~hidden_BK.repeat(rows // len(hidden_BK), 1)[:, None, None]

    def laid_out(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values this run reads, the own ones last; stores those."""
        cache, seen = self.cache, self.cache.seen(layer, self.runs)
        own = cache.store(layer, self.runs[0], k, v, self.rows)
        rows, (keys, values) = self.rows, cache.stored[layer]
        if _is_prefix(seen, own):
            return keys[rows, :, : own.stop], values[rows, :, : own.stop]
        if not seen:
            return k.to(cache.dtype), v.to(cache.dtype)
        laid = []
        for target, source, mine in zip(cache.workspace, (keys, values), (k, v)):
            end = 0
            for start, stop in _joined(seen):
                target[rows, :, end : end + stop - start] = source[rows, :, start:stop]
                end += stop - start
            target[rows, :, end : end + mine.shape[2]] = mine
            laid.append(target[rows, :, : end + mine.shape[2]])
        return laid[0], laid[1]

    def _beat(self) -> None:
        if self.cache.heartbeat is not None:
            self.cache.heartbeat()

    def _answer(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, mask: Tensor | None = None) -> Tensor:
        grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
        return self.cache.attention(q, k, v, attn_mask=mask, scale=scale, **grouped)


class SharedMemory(Memory):
    """Several runs at once, each seeing what it would see alone."""

    def __init__(self, cache: KVCache, runs: tuple[int, ...], rows: slice):
        super().__init__(cache, runs, rows)
        self.masks: dict[tuple[int, ...], Tensor] = {}  # layers of equal lengths share one

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        self._beat()
        cache, runs, slots = self.cache, self.runs, self.cache.slots[layer]
        own = [cache.lengths[layer][run] for run in runs]
        earlier = [i for i in sorted({i for run in runs for i in cache.sees[run]} - set(runs)) if i in slots]
        before = [slots[i] for i in earlier]
        for run, k_run, v_run in zip(runs, k.split(own, 2), v.split(own, 2)):
            cache.store(layer, run, k_run, v_run, self.rows)
        lengths = (*(s.stop - s.start for s in before), *own)
        if lengths not in self.masks:
            seen = [{*cache.sees[run], run} for run in runs]
            self.masks[lengths] = visible((*earlier, *runs), lengths, seen, own, cache.device)
        if before:
            stored = [t[self.rows] for t in cache.stored[layer]]
            k, v = (torch.cat([*(t[:, :, s] for s in before), x.to(t)], 2) for t, x in zip(stored, (k, v)))
        return self._answer(q, k.to(q.dtype), v.to(q.dtype), scale, self.masks[lengths])


class BlockCausal:
    """Attention of a whole schedule at once: a token sees its own scale and all earlier ones. Nothing is stored."""

    def __init__(self, lengths: Sequence[int], device):
        runs = range(len(lengths))
        self.visible_LL = visible(runs, lengths, [range(run + 1) for run in runs], lengths, device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=self.visible_LL, scale=scale)


def visible(
    runs: Sequence[int], keys: Sequence[int], seen: Sequence[Container[int]], queries: Sequence[int], device
) -> Tensor:
    """(query tokens, key tokens) bool: which keys every token reads.

    keys: tokens of each of `runs`. seen: per run of queries the runs it reads, itself included. queries: its tokens.
    """
    is_seen = torch.tensor([[run in reads for run in runs] for reads in seen])
    by_query = is_seen.repeat_interleave(torch.tensor(queries), 0)
    return by_query.repeat_interleave(torch.tensor(keys), 1).to(device)


def _is_prefix(seen: Sequence[slice], own: slice | None) -> bool:
    """Whether what is seen and a run's own keys lie one after the other from the first stored key on."""
    if own is None:
        return False
    ends = [0, *(s.stop for s in seen)]
    return all(s.start == end for s, end in zip([*seen, own], ends))


def _joined(slots: Sequence[slice]) -> list[tuple[int, int]]:
    """Neighbouring slices as one, in the order given: fewer copies."""
    joined: list[tuple[int, int]] = []
    for s in slots:
        if joined and joined[-1][1] == s.start:
            joined[-1] = (joined[-1][0], s.stop)
        else:
            joined.append((s.start, s.stop))
    return joined
