"""Forward pass of modulated attention in Triton: one pass over the keys, without storing a logit.

Kernels visit foreground tokens first. No token is copied: a small kernel writes the order, and all other kernels gather
whole rows of `head_dim` numbers by this order. The rows of a tile, and its columns, are therefore all foreground or all
background, so that a tile has one slope and needs one accumulator:

- A block of background rows is plain attention at the temperature of `beta`.
- A block of foreground rows sweeps the foreground keys and then the background keys. Each sweep has its own running
  maximum, mass and output, and keeps the extrema of the raw logits. The extrema give the constant of the background
  columns, with which both sweeps are merged at the end.

The number of foreground tokens stays on the device. The grid therefore has one block more than the tokens fill, and
each program determines its own block.
"""

# Type checkers cannot read jitted functions, which are no ordinary Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(math.log2(math.e))  # the kernels use powers of two, which have an instruction
# Products of float32 on tensor cores, as sums of three products in TF32: about as exact as float32, and far faster.
PRECISION = tl.constexpr("tf32x3")


@triton.jit(do_not_specialize=["tokens", "batch_stride"])
def order_kernel(foreground, order, counts, tokens, batch_stride, token_stride, BLOCK: tl.constexpr):
    """Write the order of the tokens of one sample, foreground first, otherwise unchanged; count the foreground."""
    batch = tl.program_id(0).to(tl.int64)
    foreground += batch * batch_stride
    order += batch * tokens
    total = tl.zeros([], tl.int32)
    for begin in range(0, tokens, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        flags = tl.load(foreground + token.to(tl.int64) * token_stride, mask=token < tokens, other=0)
        total += tl.sum(flags.to(tl.int32), 0)
    tl.store(counts + batch, total)
    before = tl.zeros([], tl.int32)
    for begin in range(0, tokens, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        flags = tl.load(foreground + token.to(tl.int64) * token_stride, mask=token < tokens, other=0).to(tl.int32)
        rank = before + tl.cumsum(flags, 0) - flags
        place = tl.where(flags > 0, rank, total + token - rank)
        tl.store(order + place, token, mask=token < tokens)
        before += tl.sum(flags, 0)


@triton.jit
def block_of_program(counts, tokens, heads, BLOCK: tl.constexpr):
    """Return sample, head, foreground count, whether foreground, begin and end of the block of this program."""
    blocks = tl.cdiv(tokens, BLOCK) + 1
    block = tl.program_id(0) % blocks
    sequence = tl.program_id(0) // blocks
    batch = (sequence // heads).to(tl.int64)
    head = (sequence % heads).to(tl.int64)
    split = tl.load(counts + batch)
    foreground_blocks = tl.cdiv(split, BLOCK)
    is_foreground = block < foreground_blocks
    begin = tl.where(is_foreground, block * BLOCK, split + (block - foreground_blocks) * BLOCK)
    end = tl.where(is_foreground, split, tokens)
    return batch, head, split, is_foreground, begin, end


@triton.jit
def tokens_at(order, begin, end, BLOCK: tl.constexpr, TAIL: tl.constexpr):
    """Return the tokens of a block of positions; TAIL repeats the last token past `end`, so that loads need no mask."""
    place = begin + tl.arange(0, BLOCK)
    if TAIL:
        place = tl.minimum(place, end - 1)
    return tl.load(order + place).to(tl.int64)


@triton.jit
def gather(tensor, rows, stride, HEAD_DIM: tl.constexpr):
    return tl.load(tensor + rows[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :])


@triton.jit
def sweep(
    q, key, value, order, first, last, slope, key_token, value_token,
    EXTREMA: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Attend to the keys from position `first` to `last` with logits `slope * raw`; EXTREMA allows a negative slope."""
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    lowest = tl.full([ROWS], float("inf"), tl.float32)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    attended = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    whole = last - (last - first) % COLUMNS
    for TAIL in tl.static_range(2):  # whole tiles, which need no mask, then the rest
        for begin in range(whole if TAIL else first, last if TAIL else whole, COLUMNS):
            columns = tokens_at(order, begin, last, COLUMNS, TAIL)
            raw = tl.dot(q, tl.trans(gather(key, columns, key_token, HEAD_DIM)), input_precision=PRECISION)
            highest = tl.maximum(highest, tl.max(raw, 1))
            new_peak = slope * highest
            if EXTREMA:
                lowest = tl.minimum(lowest, tl.min(raw, 1))
                new_peak = tl.maximum(new_peak, slope * lowest)
            weights = tl.exp2(raw * slope - new_peak[:, None])
            if TAIL:
                weights = tl.where((begin + tl.arange(0, COLUMNS) < last)[None, :], weights, 0.0)
            shrink = tl.exp2(peak - new_peak)
            mass = mass * shrink + tl.sum(weights, 1)
            v = gather(value, columns, value_token, HEAD_DIM)
            attended = tl.dot(weights.to(v.dtype), v, attended * shrink[:, None], input_precision=PRECISION)
            peak = new_peak
    return attended, mass, peak, highest, lowest


@triton.jit(do_not_specialize=["tokens", "heads"])
def forward_kernel(
    query, key, value, alpha, beta, order, counts, output, normalizers, scale, tokens, heads,
    alpha_stride, beta_stride,
    query_batch, query_head, query_token, key_batch, key_head, key_token, value_batch, value_head, value_token,
    HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, head, split, is_foreground, begin, end = block_of_program(counts, tokens, heads, ROWS)
    order += batch * tokens
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    if begin < end:
        rows = tokens_at(order, begin, end, ROWS, True)
        q = gather(query + batch * query_batch + head * query_head, rows, query_token, HEAD_DIM)
        up = tl.load(alpha + head * alpha_stride)
        down = tl.load(beta + head * beta_stride)
        slope = (1 - down) * scale * LOG2_E
        if is_foreground:
            attended, mass, peak, highest, lowest = sweep(
                q, key, value, order, 0, split, (1 - up) * scale * LOG2_E, key_token, value_token,
                True, HEAD_DIM, ROWS, COLUMNS,
            )  # fmt: skip
            attended_down, mass_down, peak_down, highest_down, lowest_down = sweep(
                q, key, value, order, split, tokens, slope, key_token, value_token, True, HEAD_DIM, ROWS, COLUMNS
            )
            # Without background keys their extrema are infinite and their peak is -inf, so that their share is 0.
            highest = tl.maximum(highest, highest_down)
            lowest = tl.minimum(lowest, lowest_down)
            constant = (down * lowest - up * highest) * scale * LOG2_E
            merged = tl.maximum(peak, peak_down + constant)
            share, share_down = tl.exp2(peak - merged), tl.exp2(peak_down + constant - merged)
            mass = mass * share + mass_down * share_down
            attended = attended * share[:, None] + attended_down * share_down[:, None]
            normalizer = merged + tl.log2(mass)
        else:
            if slope < 0:
                q = -q
            attended, mass, peak, highest, lowest = sweep(
                q, key, value, order, 0, tokens, tl.abs(slope), key_token, value_token, False, HEAD_DIM, ROWS, COLUMNS
            )
            constant = tl.zeros([ROWS], tl.float32)
            normalizer = peak + tl.log2(mass)
        place = begin + tl.arange(0, ROWS)
        valid = place < end
        here = (batch * heads + head) * 2 * tokens + place
        tl.store(normalizers + here, normalizer, mask=valid)
        tl.store(normalizers + here + tokens, normalizer - constant, mask=valid)
        ours = (batch * tokens * heads + head) * HEAD_DIM  # first row of this head in our own tensors
        pointers = output + ours + rows[:, None] * (heads * HEAD_DIM) + tl.arange(0, HEAD_DIM)[None, :]
        tl.store(pointers, (attended / mass[:, None]).to(output.dtype.element_ty), mask=valid[:, None])


class Blocks(NamedTuple):
    """Block sizes of a kernel, by dtype and `head_dim` alone, so that masks, batches and tokens never recompile."""

    rows: int
    columns: int
    warps: int
    stages: int
    registers: int | None  # per thread, at most; None leaves it to the compiler


def forward_blocks(dtype: torch.dtype, head_dim: int) -> Blocks:
    if dtype == torch.float32:
        return Blocks(rows=32 if head_dim == 128 else 64, columns=32, warps=4, stages=2, registers=None)
    # With 128 registers two programs share a multiprocessor. The compiler then spills the accumulator of the foreground
    # during the sweep over the background; at head_dim 128 it is too large to spill.
    return Blocks(rows=128, columns=64, warps=8, stages=3, registers=None if head_dim == 128 else 128)


def forward(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernels; return the output and the inputs of the backward pass.

    Returns:
        The output; per row the log2 of its normaliser, first unchanged, then minus the constant, for the background
        columns of foreground rows; the indices of the tokens, foreground first; the number of foreground tokens.
    """
    batch, heads, tokens, head_dim = query.shape
    # The layout in which the next projection reads the output.
    output = query.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
    normalizers = query.new_empty(batch, heads, 2, tokens, dtype=torch.float32)
    order = query.new_empty(batch, tokens, dtype=torch.int32)
    counts = query.new_empty(batch, dtype=torch.int32)
    if query.numel() == 0:
        return output, normalizers, order, counts.zero_()
    flags = foreground.view(torch.uint8)
    order_kernel[(batch,)](flags, order, counts, tokens, *flags.stride(), BLOCK=1024, enable_fp_fusion=True)
    blocks = forward_blocks(query.dtype, head_dim)
    forward_kernel[((triton.cdiv(tokens, blocks.rows) + 1) * batch * heads,)](
        query, key, value, alpha, beta, order, counts, output, normalizers, scale, tokens, heads,
        alpha.stride(0), beta.stride(0), *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        HEAD_DIM=head_dim, ROWS=blocks.rows, COLUMNS=blocks.columns,
        num_warps=blocks.warps, num_stages=blocks.stages, maxnreg=blocks.registers, enable_fp_fusion=True,
    )  # fmt: skip
    return output, normalizers, order, counts
