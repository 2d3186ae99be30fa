"""Time modulated attention against the equations as written and against plain attention.

`python -m benchmarks.attention` checks that both modulated forms agree, then times all forms in turn, many times over,
so that a busy moment of the machine hits every one of them, and prints the medians as a Markdown table.
"""

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stmi_layers import modulate_logits, modulated_attention

HEADS, HEAD_DIM = 12, 64  # ViT-B
ALPHA, BETA = torch.tensor([0.1]), torch.tensor([0.2])
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def literal(query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Eq. 3-8, every matrix stored."""
    logits = query @ key.transpose(-2, -1)
    return (modulate_logits(logits, foreground, alpha, beta) / query.shape[-1] ** 0.5).softmax(dim=-1) @ value


def forms(foreground: Tensor, alpha: Tensor, beta: Tensor) -> dict[str, Attend]:
    steered = {"foreground": foreground, "alpha": alpha, "beta": beta}
    return {
        "scaled_dot_product_attention": F.scaled_dot_product_attention,
        "modulated_attention": functools.partial(modulated_attention, **steered),
        "equations as written": functools.partial(literal, **steered),
    }


def inputs(batch: int, tokens: int, device: str) -> tuple[list[Tensor], Tensor]:
    """Query, key and value, and a mask with a third of the tokens in the foreground."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, HEADS, tokens, HEAD_DIM)
    vectors = [torch.randn(shape, generator=generator).to(device).requires_grad_() for _ in range(3)]
    return vectors, (torch.rand(batch, tokens, generator=generator) < 1 / 3).to(device)


def with_gradients(attend: Attend, vectors: list[Tensor]) -> tuple[Tensor, ...]:
    result = attend(*vectors)
    return result.detach(), *torch.autograd.grad(result.sum(), vectors)


def forward_only(attend: Attend, vectors: list[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (attend(*vectors),)


def check_agreement(attends: dict[str, Attend], vectors: list[Tensor]) -> None:
    """A fast wrong answer is not worth a time."""
    expected = with_gradients(attends["equations as written"], vectors)
    torch.testing.assert_close(with_gradients(attends["modulated_attention"], vectors), expected, rtol=1e-3, atol=1e-4)


def medians(calls: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Milliseconds per call, after one call to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn > 0:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def processor() -> str:
    """Name of the CPU as far as the system tells it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[129, 577])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    where = processor() if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    threads = f", {torch.get_num_threads()} threads" if options.device == "cpu" else ""
    shape = f"batch {options.batch}, {HEADS} heads of {HEAD_DIM}, float32"
    print(f"Medians of {options.rounds} interleaved calls; {shape}; {where}{threads}; torch {torch.__version__}.\n")
    print("| tokens | pass | form | ms | against plain attention |\n|---|---|---|---|---|")
    for tokens in options.tokens:
        vectors, foreground = inputs(options.batch, tokens, options.device)
        attends = forms(foreground, ALPHA.to(options.device), BETA.to(options.device))
        check_agreement(attends, vectors)
        for name, run in (("forward", forward_only), ("forward and backward", with_gradients)):
            calls = {form: functools.partial(run, attend, vectors) for form, attend in attends.items()}
            found = medians(calls, options.rounds, options.device)
            for form, milliseconds in found.items():
                ratio = milliseconds / found["scaled_dot_product_attention"]
                print(f"| {tokens} | {name} | {form} | {milliseconds:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
