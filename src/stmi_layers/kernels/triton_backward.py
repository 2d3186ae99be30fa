r"""Backward pass of modulated attention in Triton: logits are recomputed, tile by tile.

Two kernels run in sequence, both without atomic additions, so that gradients are the same in every run:

1. The query kernel runs over blocks of queries. It computes their gradient, the sums over the keys that the strengths
   need, the positions of the extrema, and the gradient of the constant
   $c_i = \beta \min_j A_{ij} - \alpha \max_j A_{ij}$ of every foreground row.
2. The key kernel runs over blocks of keys. It computes the gradients of keys and values. The constant reaches exactly
   two keys of each foreground row; the kernel finds these keys by their positions, because recomputed logits need not
   equal an extremum to the last bit.

The sums for the strengths need no logits: $\sum_j dL_{ij} A_{ij} = q_i \cdot \sum_j dL_{ij} k_j$.
"""

# Type checkers cannot read jitted functions, which are no ordinary Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from stmi_layers.kernels.triton_forward import LOG2_E, PRECISION, Blocks, block_of_program, gather, tokens_at


@triton.jit
def sweep_keys(
    q, grad, delta, normalizer, key, value, order, first, last, slope, key_token, value_token,
    highest, highest_place, lowest, lowest_place,
    EXTREMA: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Return the sums of `dL_ij k_j` and of `dL_ij` over positions `first` to `last`, and the extrema so far."""
    summed = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    whole = last - (last - first) % COLUMNS
    for TAIL in tl.static_range(2):  # whole tiles, which need no mask, then the rest
        for begin in range(whole if TAIL else first, last if TAIL else whole, COLUMNS):
            columns = tokens_at(order, begin, last, COLUMNS, TAIL)
            k = gather(key, columns, key_token, HEAD_DIM)
            raw = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            weights = tl.exp2(raw * slope - normalizer[:, None])
            if TAIL:
                weights = tl.where((begin + tl.arange(0, COLUMNS) < last)[None, :], weights, 0.0)
            v = gather(value, columns, value_token, HEAD_DIM)
            change = weights * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            if EXTREMA:
                total += tl.sum(change, 1)
                top, place = tl.max(raw, 1, return_indices=True, return_indices_tie_break_left=False)
                highest_place = tl.where(top > highest, tl.minimum(begin + place, last - 1), highest_place)
                highest = tl.maximum(highest, top)
                bottom, place = tl.min(raw, 1, return_indices=True, return_indices_tie_break_left=False)
                lowest_place = tl.where(bottom < lowest, tl.minimum(begin + place, last - 1), lowest_place)
                lowest = tl.minimum(lowest, bottom)
            summed = tl.dot(change.to(k.dtype), k, summed, input_precision=PRECISION)
    return summed, total, highest, highest_place, lowest, lowest_place


@triton.jit(do_not_specialize=["tokens", "heads"])
def query_kernel(
    query, key, value, alpha, beta, order, counts, output, normalizers, grad_output,
    grad_query, deltas, constants, places, grad_strengths, scale, tokens, heads, alpha_stride, beta_stride,
    query_batch, query_head, query_token, key_batch, key_head, key_token, value_batch, value_head, value_token,
    grad_batch, grad_head, grad_token,
    HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, head, split, is_foreground, begin, end = block_of_program(counts, tokens, heads, ROWS)
    order += batch * tokens
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    if begin < end:
        rows = tokens_at(order, begin, end, ROWS, True)
        place = begin + tl.arange(0, ROWS)
        valid = place < end
        here = (batch * heads + head) * 2 * tokens + tl.minimum(place, end - 1)
        ours = (batch * tokens * heads + head) * HEAD_DIM  # first row of this head in our own tensors
        q = gather(query + batch * query_batch + head * query_head, rows, query_token, HEAD_DIM)
        grad = gather(grad_output + batch * grad_batch + head * grad_head, rows, grad_token, HEAD_DIM)
        attended = gather(output + ours, rows, heads * HEAD_DIM, HEAD_DIM)
        delta = tl.sum(grad.to(tl.float32) * attended.to(tl.float32), 1)
        normalizer = tl.load(normalizers + here)
        up = tl.load(alpha + head * alpha_stride)
        down = tl.load(beta + head * beta_stride)
        slope = (1 - down) * scale * LOG2_E
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        lowest = tl.full([ROWS], float("inf"), tl.float32)
        nowhere = tl.zeros([ROWS], tl.int32)
        if is_foreground:
            summed_up, constant, highest, highest_place, lowest, lowest_place = sweep_keys(
                q, grad, delta, normalizer, key, value, order, 0, split, (1 - up) * scale * LOG2_E,
                key_token, value_token, highest, nowhere, lowest, nowhere, True, HEAD_DIM, ROWS, COLUMNS,
            )  # fmt: skip
            summed, constant, highest, highest_place, lowest, lowest_place = sweep_keys(
                q, grad, delta, tl.load(normalizers + here + tokens), key, value, order, split, tokens, slope,
                key_token, value_token, highest, highest_place, lowest, lowest_place, True, HEAD_DIM, ROWS, COLUMNS,
            )  # fmt: skip
            top = gather(key, tl.load(order + highest_place).to(tl.int64), key_token, HEAD_DIM).to(tl.float32)
            bottom = gather(key, tl.load(order + lowest_place).to(tl.int64), key_token, HEAD_DIM).to(tl.float32)
            total = (1 - up) * summed_up + (1 - down) * summed + constant[:, None] * (down * bottom - up * top)
            grad_up = -tl.sum(q.to(tl.float32) * summed_up, 1) - constant * highest
            grad_down = -tl.sum(q.to(tl.float32) * summed, 1) + constant * lowest
            # If all logits of a row are equal, one key is both extrema and gets both shares.
            to_highest = constant * (tl.where(highest_place == lowest_place, down, 0.0) - up)
            tl.store(constants + here, to_highest, mask=valid)
            tl.store(constants + here + tokens, constant * down, mask=valid)
            tl.store(places + here, highest_place, mask=valid)
            tl.store(places + here + tokens, lowest_place, mask=valid)
        else:
            summed, constant, highest, highest_place, lowest, lowest_place = sweep_keys(
                q, grad, delta, normalizer, key, value, order, 0, tokens, slope,
                key_token, value_token, highest, nowhere, lowest, nowhere, False, HEAD_DIM, ROWS, COLUMNS,
            )  # fmt: skip
            total = (1 - down) * summed
            grad_up = tl.zeros([ROWS], tl.float32)
            grad_down = -tl.sum(q.to(tl.float32) * summed, 1)
        tl.store(deltas + (batch * heads + head) * tokens + place, delta, mask=valid)
        pointers = grad_query + ours + rows[:, None] * (heads * HEAD_DIM) + tl.arange(0, HEAD_DIM)[None, :]
        tl.store(pointers, (total * scale).to(grad_query.dtype.element_ty), mask=valid[:, None])
        blocks = tl.cdiv(tokens, ROWS) + 1
        block = (batch * heads + head) * 2 * blocks + tl.program_id(0) % blocks
        tl.store(grad_strengths + block, tl.sum(tl.where(valid, grad_up, 0.0), 0) * scale)
        tl.store(grad_strengths + block + blocks, tl.sum(tl.where(valid, grad_down, 0.0), 0) * scale)


@triton.jit
def sweep_queries(
    k, v, grad_k, grad_v, query, grad_output, order, normalizers, deltas, constants, places, first, last, here,
    slope, share, tokens, query_token, grad_token,
    EXTREMA: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add the share of the rows from position `first` to `last` to the gradients of keys and values, transposed."""
    whole = last - (last - first) % ROWS
    for TAIL in tl.static_range(2):
        for begin in range(whole if TAIL else first, last if TAIL else whole, ROWS):
            rows = tokens_at(order, begin, last, ROWS, TAIL)
            place = begin + tl.arange(0, ROWS)
            valid = place < last
            if TAIL:
                place = tl.minimum(place, last - 1)
            q = gather(query, rows, query_token, HEAD_DIM)
            raw = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            normalizer = tl.load(normalizers + place)
            if TAIL:
                normalizer = tl.where(valid, normalizer, float("inf"))  # weight 0
            weights = tl.exp2(raw * slope - normalizer[None, :])
            grad = gather(grad_output, rows, grad_token, HEAD_DIM)
            grad_v = tl.dot(weights.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
            delta = tl.load(deltas + place)
            change = weights * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - delta[None, :])
            if EXTREMA:
                highest, lowest = tl.load(places + place), tl.load(places + tokens + place)
                if TAIL:
                    highest, lowest = tl.where(valid, highest, -1), tl.where(valid, lowest, -1)
                to_highest, to_lowest = tl.load(constants + place), tl.load(constants + tokens + place)
                reached = tl.where(here[:, None] == lowest[None, :], to_lowest[None, :], 0.0)
                reached = tl.where(here[:, None] == highest[None, :], to_highest[None, :], reached)
                change = share * change + reached
            grad_k = tl.dot(change.to(q.dtype), q, grad_k, input_precision=PRECISION)
    return grad_k, grad_v


@triton.jit(do_not_specialize=["tokens", "heads"])
def key_kernel(
    query, key, value, alpha, beta, order, counts, normalizers, grad_output, deltas, constants, places,
    grad_key, grad_value, scale, tokens, heads, alpha_stride, beta_stride,
    query_batch, query_head, query_token, key_batch, key_head, key_token, value_batch, value_head, value_token,
    grad_batch, grad_head, grad_token,
    HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, head, split, is_foreground, begin, end = block_of_program(counts, tokens, heads, COLUMNS)
    order += batch * tokens
    query += batch * query_batch + head * query_head
    grad_output += batch * grad_batch + head * grad_head
    rows_of_head = (batch * heads + head) * 2 * tokens
    normalizers += rows_of_head
    constants += rows_of_head
    deltas += (batch * heads + head) * tokens
    places += rows_of_head
    if begin < end:
        columns = tokens_at(order, begin, end, COLUMNS, True)
        here = begin + tl.arange(0, COLUMNS)
        k = gather(key + batch * key_batch + head * key_head, columns, key_token, HEAD_DIM)
        v = gather(value + batch * value_batch + head * value_head, columns, value_token, HEAD_DIM)
        up = tl.load(alpha + head * alpha_stride)
        down = tl.load(beta + head * beta_stride)
        grad_k = tl.zeros([COLUMNS, HEAD_DIM], tl.float32)
        grad_v = tl.zeros([COLUMNS, HEAD_DIM], tl.float32)
        # Background rows come first: they share one slope, which is applied to their sum instead of every tile.
        grad_k, grad_v = sweep_queries(
            k, v, grad_k, grad_v, query, grad_output, order, normalizers, deltas, constants, places,
            split, tokens, here, (1 - down) * scale * LOG2_E, 1 - down, tokens, query_token, grad_token,
            False, HEAD_DIM, ROWS, COLUMNS,
        )  # fmt: skip
        grad_k *= 1 - down
        share = 1 - tl.where(is_foreground, up, down)
        plane = tl.where(is_foreground, 0, tokens)
        grad_k, grad_v = sweep_queries(
            k, v, grad_k, grad_v, query, grad_output, order, normalizers + plane, deltas, constants, places,
            0, split, here, share * scale * LOG2_E, share, tokens, query_token, grad_token,
            True, HEAD_DIM, ROWS, COLUMNS,
        )  # fmt: skip
        valid = (here < end)[:, None]
        ours = (batch * tokens * heads + head) * HEAD_DIM + columns[:, None] * (heads * HEAD_DIM)
        ours += tl.arange(0, HEAD_DIM)[None, :]
        tl.store(grad_key + ours, (grad_k * scale).to(grad_key.dtype.element_ty), mask=valid)
        tl.store(grad_value + ours, grad_v.to(grad_value.dtype.element_ty), mask=valid)


def backward_blocks(dtype: torch.dtype, head_dim: int) -> Blocks:
    """Choose the blocks of the query kernel; the key kernel swaps rows and columns, and needs the same memory."""
    if dtype == torch.float32:
        return Blocks(rows=32, columns=32, warps=8 if head_dim == 128 else 4, stages=2, registers=None)
    return Blocks(rows=128, columns=32 if head_dim == 128 else 64, warps=8, stages=3, registers=None)


def backward(
    grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, normalizers: Tensor, order: Tensor,
    counts: Tensor, alpha: Tensor, beta: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch both kernels; return the gradients of query, key, value, alpha and beta, the last two per head."""
    batch, heads, tokens, head_dim = query.shape
    blocks = backward_blocks(query.dtype, head_dim)
    count = triton.cdiv(tokens, blocks.rows) + 1
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages, "enable_fp_fusion": True}
    grads = [query.new_empty(batch, tokens, heads, head_dim).transpose(1, 2) for _ in range(3)]
    deltas = query.new_empty(batch, heads, tokens, dtype=torch.float32)
    constants, places = torch.empty_like(normalizers), torch.empty_like(normalizers, dtype=torch.int32)
    grad_strengths = query.new_zeros(batch, heads, 2, count, dtype=torch.float32)
    strides = [alpha.stride(0), beta.stride(0)]
    for tensor in (query, key, value, grad_output):
        strides += tensor.stride()[:3]
    if query.numel() > 0:
        query_kernel[(count * batch * heads,)](
            query, key, value, alpha, beta, order, counts, output, normalizers, grad_output,
            grads[0], deltas, constants, places, grad_strengths, scale, tokens, heads, *strides,
            HEAD_DIM=head_dim, ROWS=blocks.rows, COLUMNS=blocks.columns, **options,
        )  # fmt: skip
        key_kernel[(count * batch * heads,)](
            query, key, value, alpha, beta, order, counts, normalizers, grad_output, deltas, constants, places,
            grads[1], grads[2], scale, tokens, heads, *strides,
            HEAD_DIM=head_dim, ROWS=blocks.columns, COLUMNS=blocks.rows, **options,
        )  # fmt: skip
    grad_alpha, grad_beta = (part.sum(dim=(0, 2)) for part in grad_strengths.unbind(dim=2))
    return grads[0], grads[1], grads[2], grad_alpha, grad_beta
