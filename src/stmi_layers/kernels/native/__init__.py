"""Modulated attention in C++ on CPU: an optional kernel, built once by `python -m stmi_layers.kernels.native`.

Its readable reference is `dense.py`. The build needs a C++20 compiler with OpenMP and takes seconds. The library is
kept where torch keeps its extensions: in `~/.cache/torch_extensions`, or in the folder that `TORCH_EXTENSIONS_DIR`
names. Importing this file only declares the operators. The first call with `implementation="native"` looks for the
library and loads it.
"""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32
from stmi_layers.kernels.flops import tell_counters
from stmi_layers.kernels.refuse import refuse_second_derivative

SOURCES = Path(__file__).parent
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMMAND = "python -m stmi_layers.kernels.native"

_ARGUMENTS = "Tensor query, Tensor key, Tensor value, Tensor foreground, Tensor alpha, Tensor beta"
_FORWARD, _BACKWARD = "stmi_layers::native_attention", "stmi_layers::native_attention_backward"
torch.library.define(_FORWARD, f"({_ARGUMENTS}, float scale) -> (Tensor, Tensor)", tags=torch.Tag.pt2_compliant_tag)
torch.library.define(
    _BACKWARD,
    f"(Tensor gradient, {_ARGUMENTS}, Tensor output, Tensor summaries, float scale)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)

_loaded = False


def library_path() -> Path:
    """Return the path of the library, built or not; its name holds torch, the processor and a hash of the sources."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache, "torch_extensions"), "stmi_layers")
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), SOURCES / "__main__.py"]):
        digest.update(source.read_bytes())
    processor = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}".replace(" ", "")
    return folder / f"attention-torch{torch.__version__}-{processor}-{digest.hexdigest()[:12]}.so"


def is_built() -> bool:
    """Tell whether there is a library of these sources for this torch and this processor."""
    return _loaded or library_path().is_file()


def check_native(query: Tensor) -> None:
    """Refuse a query that the kernel does not support, and load the kernel unless a graph is being captured.

    Raises:
        ValueError: when the query is not on a CPU, or its dtype is not supported.
        RuntimeError: when the kernel is not built or cannot be loaded.
    """
    if not query.is_cpu or query.dtype not in DTYPES:
        rule = 'implementation="native" is for CPU tensors in float16, bfloat16, float32 or float64'
        cure = 'Use implementation="auto"'
        raise ValueError(f"{rule}; received query in {query.dtype} on {query.device}. {cure}")
    if not torch.compiler.is_compiling():  # a compiler loads it as it asks for the shapes
        load()


def load() -> None:
    """Load the kernel, once in a process.

    Raises:
        RuntimeError: when the kernel is not built or cannot be loaded.
    """
    global _loaded
    if _loaded:
        return
    path = library_path()
    if not path.is_file():
        rule = f'implementation="native" needs its C++ kernel, built for torch {torch.__version__} and this processor'
        raise RuntimeError(f"{rule}; {path} is missing. Build it once: {COMMAND}")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise RuntimeError(f"the C++ kernel could not be loaded: {error}. Build it again: {COMMAND}") from error
    _loaded = True


def native_attention(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """Compute `modulated_attention` for CPU tensors: one operator to autograd and to `torch.compile`.

    Memory grows with the number of tokens, not with its square. All is computed in float32, and in float64 for float64
    inputs. Gradients are exact, and the same in every run with the same number of threads. Where extrema of a row are
    tied, one of the tied keys gets their gradient. There are no second derivatives.
    """
    tell_counters("native_attention")
    width = at_least_float32(query[:0]).dtype
    alpha, beta = (strength.to(width).expand(query.shape[1]) for strength in (alpha, beta))
    return torch.ops.stmi_layers.native_attention(query, key, value, foreground, alpha, beta, scale)[0]


def _tokens_first(like: Tensor) -> Tensor:
    batch, heads, tokens, head_dim = like.shape
    return like.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)


@torch.library.register_fake(_FORWARD)
def _(query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float):
    load()  # here, because a compiler does not trace this function
    return _tokens_first(query), alpha.new_empty(*query.shape[:3], 5)


@torch.library.register_fake(_BACKWARD)
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, *_: Any):
    of_alpha, of_beta = (alpha.new_empty(query.shape[1]) for _ in range(2))
    return *(_tokens_first(query) for _ in range(3)), of_alpha, of_beta


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.stmi_layers.native_attention_backward(gradient, *ctx.saved_tensors, ctx.scale)
    return *gradients[:3], None, *gradients[3:], None


torch.library.register_autograd(_FORWARD, _differentiate, setup_context=_save)
torch.library.register_autograd(_BACKWARD, refuse_second_derivative("native"))
