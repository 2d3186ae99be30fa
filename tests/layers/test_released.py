"""The layers under the released reading, against arrays that the research code of STMI computed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.stmi.released import attention_state, readout_state, reallocation_state
from stmi_layers import (
    GlobalCrossAttention,
    SegmentationModulatedAttention,
    SemanticTokenReallocation,
    hypergraph_conv,
    similarity_incidence,
    token_foreground,
)

FOLDER = Path(__file__).parents[2].parent / "shared" / "vectors"


class Arrays:
    """One file: tensors by name, parameters that require a gradient, and the results of one mode."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.values = {name: file[name] for name in file.files}
        self.precise = "f64" in path.stem
        self.param = {name: self.tensor(f"param/{name}").requires_grad_() for name in self.under("param/")}

    def under(self, prefix: str) -> list[str]:
        return [name.removeprefix(prefix) for name in self.values if name.startswith(prefix)]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.values[name])

    def meta(self, name: str) -> float:
        return self.values[f"meta/{name}"].item()

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The parameters of one module, without its prefix."""
        return {name.removeprefix(prefix): value for name, value in self.param.items() if name.startswith(prefix)}

    def check(self, actual: Tensor, name: str) -> None:
        tolerance = 1e-10 if self.precise else 1e-4
        torch.testing.assert_close(actual, self.tensor(name), rtol=tolerance, atol=tolerance)

    def check_gradients(self, output: Tensor, cotangent: Tensor, inputs: dict[str, Tensor], mode: str) -> None:
        """Gradients of the inputs, and of every parameter for which the file has one."""
        named = self.under(f"{mode}/grad_param/")
        wanted = [*inputs.values(), *(self.param[name] for name in named)]
        gradients = torch.autograd.grad((output * cotangent).sum(), wanted)
        for name, gradient in zip([*inputs, *(f"grad_param/{name}" for name in named)], gradients, strict=True):
            self.check(gradient, f"{mode}/{name}")


def files(piece: str) -> Callable:
    """Every file of a piece that is there; a skip when there is none."""
    found = sorted(FOLDER.glob(f"stmi_{piece}_*.npz"))
    missing = pytest.param(None, marks=pytest.mark.skip(f"no stmi_{piece}_*.npz beside the project, in shared/vectors"))
    return pytest.mark.parametrize("path", found or [missing], ids=lambda path: path.stem if path else "none")


def called(layer: nn.Module, state: dict[str, Tensor], *inputs: Tensor | None) -> Tensor:
    """The layer with other parameters, through which gradients reach `state`; every name must fit."""
    assert sorted(state) == sorted(layer.state_dict())
    return torch.func.functional_call(layer.to(inputs[0].dtype), state, inputs)


@pytest.mark.parametrize("implementation", ["dense", "tiled", "widened", "auto"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@files("sfm")
def test_modulated_attention(path, mode, implementation):
    arrays = Arrays(path)
    layer = SegmentationModulatedAttention(
        int(arrays.meta("dim")), int(arrays.meta("heads")), implementation=implementation
    )
    tokens = arrays.tensor("input/tokens_lbd").requires_grad_()
    foreground = arrays.tensor(f"{mode}/foreground_with_class")
    if mode == "eval":  # in training the mask was perturbed
        grid = int(arrays.meta("height")), int(arrays.meta("width"))
        assert torch.equal(token_foreground(arrays.tensor("input/mask")[:, 0] > 0.5, grid), foreground)
    state = attention_state(arrays.param)
    output = called(layer, state, tokens.transpose(0, 1), foreground).transpose(0, 1)
    arrays.check(output, f"{mode}/attention_lbd")
    arrays.check_gradients(output, arrays.tensor("input/cotangent_lbd"), {"grad_tokens_lbd": tokens}, mode)
    plain = called(layer, state, tokens.transpose(0, 1), None).transpose(0, 1)
    arrays.check(plain, f"{mode}/attention_no_mask_lbd")


def reallocated(arrays: Arrays, prefix: str, queries: Tensor, patches: Tensor, heads: int) -> Tensor:
    """The semantic tokens of every sample, whose queries differ here."""
    _, count, dim = queries.shape
    layer = SemanticTokenReallocation(dim, count, num_heads=heads)
    for norm in (layer.norm_queries, layer.norm_patches, layer.norm_ffn):
        norm.eps = 1e-6
    states = [reallocation_state(arrays.part(prefix), each) for each in queries]
    return torch.cat([called(layer, state, each[None]) for state, each in zip(states, patches, strict=True)])


@files("str")
def test_reallocation(path):
    arrays = Arrays(path)
    queries, patches = (arrays.tensor(f"input/{name}").requires_grad_() for name in ("queries", "patches"))
    output = reallocated(arrays, "", queries, patches, int(arrays.meta("heads")))
    arrays.check(output, "eval/output")
    inputs = {"grad_queries": queries, "grad_patches": patches}
    arrays.check_gradients(output, arrays.tensor("input/cotangent"), inputs, "eval")


def interacted(arrays: Arrays, prefix: str, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CHI as released: convolution, residual, group norm over a whole sample, activation."""
    part = arrays.part(prefix)
    incidence = similarity_incidence(nodes, arrays.meta("threshold"), similarity="euclidean")
    mapped = F.linear(nodes, part["hgconv.fc.weight"], part["hgconv.fc.bias"])
    convolved = hypergraph_conv(mapped, incidence)
    normed = F.group_norm((convolved + nodes).transpose(1, 2), 1, part["norm.weight"], part["norm.bias"])
    return incidence, convolved, F.silu(normed)


@files("chi")
def test_hypergraph(path):
    arrays = Arrays(path)
    nodes = arrays.tensor("input/nodes_bdn").requires_grad_()
    incidence, convolved, output = interacted(arrays, "", nodes.transpose(1, 2))
    assert torch.equal(incidence, arrays.tensor("step/incidence"))
    arrays.check(convolved, "step/convolved")
    arrays.check(output, "eval/output_bdn")
    arrays.check_gradients(output, arrays.tensor("input/cotangent_bdn"), {"grad_nodes_bdn": nodes}, "eval")


@files("fusion")
def test_from_patches_to_the_descriptor(path):
    """STR for every modality, CHI and the readout; the descriptor has the width first and the modality last."""
    arrays = Arrays(path)
    known = arrays.tensor("input/globals_and_text").requires_grad_()
    patches = {name: arrays.tensor(f"input/patches_{name}").requires_grad_() for name in ("rgb", "nir", "tir")}
    semantic = []
    for number, (name, each) in enumerate(patches.items(), start=1):
        learned = arrays.param[f"inp_tokens_{name}"].expand(len(each), -1, -1)
        tokens = reallocated(arrays, f"inp_block{number}.", torch.cat([learned, known[:, 3:]], dim=1), each, heads=8)
        arrays.check(tokens, f"eval/semantic_{name}")
        semantic.append(tokens)
    graph = interacted(arrays, "hyper_module.", torch.cat(semantic, dim=1))[2]
    arrays.check(graph, "eval/hypergraph_bdn")
    readout = GlobalCrossAttention(known.shape[2], num_heads=1, norm=False).eval()
    fused = called(readout, readout_state(arrays.param), known[:, :3], graph.transpose(1, 2))
    arrays.check(fused - known[:, :3], "eval/read")
    output = fused.transpose(1, 2).flatten(1)
    arrays.check(output, "eval/output")
    inputs = {"grad_globals_and_text": known, **{f"grad_patches_{name}": each for name, each in patches.items()}}
    arrays.check_gradients(output, arrays.tensor("input/cotangent"), inputs, "eval")
