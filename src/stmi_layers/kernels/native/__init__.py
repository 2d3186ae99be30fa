"""Modulated attention in C++ on CPU: an optional kernel, built once with `python -m stmi_layers.kernels.native`.

Its readable twin is [`modulate_logits`][stmi_layers.attention.modulate_logits]. The command needs a C++ compiler and
nothing else, takes about half a minute, and puts the library where torch keeps its extensions:
`~/.cache/torch_extensions`, or the folder that `TORCH_EXTENSIONS_DIR` names. A library belongs to one version of torch
and to one kind of processor; after a change of either the command is to be run again. Built and tested on Linux.
"""

import functools
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stmi_layers._typing import typed

SOURCES = Path(__file__).parent
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_ARGUMENTS = "Tensor query, Tensor key, Tensor value, Tensor foreground, Tensor alpha, Tensor beta"
_FORWARD, _BACKWARD = "stmi_layers::native_attention", "stmi_layers::native_attention_backward"
torch.library.define(_FORWARD, f"({_ARGUMENTS}, float scale) -> (Tensor, Tensor)", tags=torch.Tag.pt2_compliant_tag)
torch.library.define(
    _BACKWARD,
    f"(Tensor grad_output, {_ARGUMENTS}, Tensor output, Tensor summaries, float scale)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


@functools.cache
def library_path() -> Path:
    """Where the built library is or would be: one file per source, torch, and kind of processor."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache, "torch_extensions"), "stmi_layers")
    made_of = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        made_of.update(source.read_bytes())
    processor = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}".replace(" ", "")
    return folder / f"attention-torch{torch.__version__}-{processor}-{made_of.hexdigest()[:12]}.so"


def load() -> bool:
    """Load the kernel if it has been built for this torch and this processor, and tell whether it has.

    Importing this module does so. Whoever builds the kernel later in a process calls it once more.
    """
    global _loaded
    if not _loaded and library_path().is_file():
        torch.ops.load_library(library_path())
        _loaded = True
    return _loaded


def available() -> bool:
    """Whether this process has loaded the kernel."""
    return _loaded


def usable(query: Tensor) -> bool:
    """Whether the kernel takes this query, and key and value like it: built, on CPU, in a dtype of `DTYPES`."""
    return query.device.type == "cpu" and query.dtype in DTYPES and available()


@typed
def native_attention(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    foreground: Bool[Tensor, "batch tokens"],
    alpha: Float[Tensor, "#heads"],
    beta: Float[Tensor, "#heads"],
    scale: float,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Compute [`modulated_attention`][stmi_layers.attention.modulated_attention] without storing logits of all pairs.

    Memory grows with the number of tokens, not with its square. Everything is computed in float32, for float64 inputs
    in float64. Gradients are exact and the same in every run with as many threads; where extrema of a row are tied, one
    of the tied keys takes their gradient. Second derivatives, forward-mode derivatives and `torch.func` are not
    available.

    Raises:
        ValueError: when the kernel cannot take `query`, see `usable`, or the dtypes differ.
    """
    if not usable(query):
        rule = "the native kernel needs CPU tensors in float16, bfloat16, float32 or float64, and to have been built"
        received = f"query {query.dtype} on {query.device}, kernel {'built' if available() else 'not built'}"
        raise ValueError(f"{rule} with 'python -m stmi_layers.kernels.native'; received {received}")
    if not query.dtype == key.dtype == value.dtype:
        received = f"query {query.dtype}, key {key.dtype}, value {value.dtype}"
        raise ValueError(f"query, key and value must share one dtype; received {received}")
    width = torch.float64 if query.dtype == torch.float64 else torch.float32
    alpha, beta = (strength.to(width).expand(query.shape[1]) for strength in (alpha, beta))
    return torch.ops.stmi_layers.native_attention(query, key, value, foreground, alpha, beta, scale)[0]


def _empty_like(tensor: Tensor) -> Tensor:
    batch, heads, tokens, head_dim = tensor.shape
    return tensor.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)


@torch.library.register_fake(_FORWARD)
def _(query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float):
    return _empty_like(query), alpha.new_empty(*query.shape[:3], 5)


@torch.library.register_fake(_BACKWARD)
def _(grad_output: Tensor, query: Tensor, *others: Any):
    alpha = others[3]
    return *(_empty_like(query) for _ in range(3)), alpha.new_empty(query.shape[1]), alpha.new_empty(query.shape[1])


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad_output: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = torch.ops.stmi_layers.native_attention_backward(grad_output, *ctx.saved_tensors, ctx.scale)
    return *grads[:3], None, *grads[3:], None


def _refuse(ctx: Any, *_: Tensor | None) -> None:
    raise NotImplementedError(
        "the native kernel can be differentiated once; a second derivative was asked for: leave create_graph off, or "
        "compute modulated_attention in another way"
    )


torch.library.register_autograd(_FORWARD, _differentiate, setup_context=_save)
torch.library.register_autograd(_BACKWARD, _refuse)

# Now and not with the first call, which a compiler may be looking at.
_loaded = False
load()
