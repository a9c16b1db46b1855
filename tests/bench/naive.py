"""An Infinity run without any of the sampler's thrift: what the speed benchmark compares with.

The same numbers in the same order of scales as stepvar_core.sample without pruning, but written the straightforward
way: keys and values of the text, modulation, biases and rotary factors again in every block of every scale, caches
that grow by concatenation and keep float32 keys, a last scale that enters them too, separate passes for every
elementary operation, bits drawn through two full filters and two softmaxes. It runs on the weights of our model and
draws from the same random streams, so in float32 its bits must be ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from stepvar_core.families.infinity.model import Infinity, TextCondition, rotary_table
from stepvar_core.families.infinity.schedules import full_grid
from stepvar_core.families.layers import padded
from stepvar_core.schedule import ScaleSchedule
from stepvar_core.token_sampling import Streams


def rotated(x_RHLD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x_RHLD[..., 0::2], x_RHLD[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def heads_of(x_RLC: Tensor, heads: int) -> Tensor:
    return x_RLC.unflatten(-1, (heads, -1)).transpose(1, 2)


def merged(x_RHLD: Tensor) -> Tensor:
    return x_RHLD.transpose(1, 2).flatten(2)


def block_output(
    block, x_RLC: Tensor, cond_RC: Tensor, model: Infinity, text_RTC: Tensor, is_real, table_LX: Tensor, cache: list
) -> Tensor:
    heads, dtype, eps = model.config.heads, text_RTC.dtype, model.config.norm_eps
    shared_R16C = model.shared_ada_lin(cond_RC).unflatten(-1, (1, 6, -1))
    gate1, gate2, scale1, scale2, shift1, shift2 = (shared_R16C + block.ada_gss).unbind(2)

    h = F.layer_norm(x_RLC, x_RLC.shape[-1:], eps=eps) * (1 + scale1) + shift1
    bias = torch.cat([block.sa.q_bias, torch.zeros_like(block.sa.q_bias), block.sa.v_bias])
    q, k, v = (
        heads_of(part, heads) for part in F.linear(h.to(dtype), block.sa.mat_qkv.weight, bias.to(dtype)).chunk(3, -1)
    )
    q = F.normalize(q.float(), dim=-1) * block.sa.scale_mul_1H11.float().clamp(max=math.log(100)).exp()
    k = F.normalize(k.float(), dim=-1)
    cos, sin = table_LX[:, 0::2], table_LX[:, 1::2]
    q, k = rotated(torch.stack([q, k]), cos, sin).unbind(0)
    if cache:
        k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
    cache[:] = k, v
    x_RLC = (
        x_RLC + block.sa.proj(merged(F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v, scale=1.0))) * gate1
    )

    text_bias = torch.cat([torch.zeros_like(block.ca.v_bias), block.ca.v_bias])
    k, v = (
        heads_of(part, heads) for part in F.linear(text_RTC, block.ca.mat_kv.weight, text_bias.to(dtype)).chunk(2, -1)
    )
    q = heads_of(block.ca.mat_q(block.ca_norm(x_RLC).to(dtype)), heads)
    x_RLC = x_RLC + block.ca.proj(merged(F.scaled_dot_product_attention(q, k, v, attn_mask=is_real)))

    h = F.layer_norm(x_RLC, x_RLC.shape[-1:], eps=eps) * (1 + scale2) + shift2
    return x_RLC + block.ffn.fc2(F.gelu(block.ffn.fc1(h.to(dtype)), approximate="tanh")) * gate2


def drawn_bits(logits_BLX: Tensor, top_k: int, top_p: float, u_BLD: Tensor) -> Tensor:
    """Bits by inverse CDF, each a choice between two ids like any other vocabulary's."""
    logits_NV = logits_BLX.unflatten(-1, (-1, 2)).flatten(0, -2)
    k = min(top_k or 2, 2)
    logits_NV = logits_NV.masked_fill(logits_NV < logits_NV.topk(k, dim=-1).values[:, -1:], -torch.inf)
    ordered, index = logits_NV.sort(dim=-1)
    drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    drop[:, -1] = False
    logits_NV = logits_NV.masked_fill(drop.scatter(-1, index, drop), -torch.inf)
    return (u_BLD.flatten() >= logits_NV.softmax(-1)[:, 0]).view(u_BLD.shape).to(torch.uint8)


@torch.inference_mode()
def naive_steps(
    model: Infinity, quantizer, condition: TextCondition, schedule: ScaleSchedule, cfg: float, seed: int = 0
) -> Iterator[Tensor]:
    """The bits (B, L, D) of each scale, one after the other, with guidance at every scale and the family's default
    sampling."""
    defaults, batch, device = model.config.defaults, condition.batch, model.weight_device
    texts = condition.joined(model.unconditional(condition))
    features_RTC, is_real = padded(texts.texts, device)
    full, head_dim = full_grid(schedule), model.config.head_dim
    streams, caches = Streams(seed, tuple(range(batch))), [[] for _ in model.blocks]
    f_hat = quantizer.empty(batch, schedule, device)
    for step in schedule.passes:
        normed_RTC = model.text_norm(features_RTC)
        cond_RC = model.text_proj_for_sos(normed_RTC, is_real)
        text_RTC = model.text_proj_for_ca(normed_RTC).to(model.dtype)
        table_LX = torch.cat([rotary_table(scale, full, head_dim, device)[0] for scale in schedule])
        start = sum(scale.tokens for scale in schedule.scales[: step.index])
        table_LX = table_LX[start : start + step.scale.tokens]
        if step.index:
            x_BLC = model.word_embed(quantizer.next_input(f_hat, step, schedule).flatten(2).transpose(1, 2))
            x_RLC = torch.cat([x_BLC, x_BLC])
        else:
            x_RLC = cond_RC[:, None] + model.pos_start
        x_RLC = x_RLC + model.lvl_embed(torch.full((1,), step.scale_index, device=device))
        for block, cache in zip(model.blocks, caches):
            x_RLC = block_output(block, x_RLC, cond_RC, model, text_RTC, is_real, table_LX, cache)
        scale, shift = model.head_nm.ada_lin(cond_RC)[:, None].chunk(2, -1)
        logits = (
            model.head(F.layer_norm(x_RLC, x_RLC.shape[-1:], eps=model.config.norm_eps) * (1 + scale) + shift)
            / defaults.temperature
        )
        logits = cfg * logits[:batch] + (1 - cfg) * logits[batch:]
        u_BLD = streams.uniform("token", step.index, (step.scale.tokens, model.config.bits)).to(device)
        bits_BLD = drawn_bits(logits, defaults.top_k, defaults.top_p, u_BLD)
        f_hat = f_hat + quantizer.contribution(quantizer.lookup(bits_BLD, step.scale), step, schedule)
        yield bits_BLD
