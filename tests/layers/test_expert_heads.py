"""Layers of DeMo and of NEXT in sequence: any number of modalities, missing modalities, compile and export."""

import functools

import pytest
import torch
from torch import Tensor, nn

import stmi_layers as sl
from captures import for_any_size

DIM = 8


class Decoupled(nn.Module):
    """DeMo: reduction, readout of all subsets, gated experts."""

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.reduction = sl.GlobalPatchReduction(DIM, modalities)
        self.readout = sl.SubsetReadout(DIM, modalities, num_heads=2)
        self.experts = sl.GatedExperts(DIM, 2**modalities - 1, num_heads=2)

    def forward(self, globals_: Tensor, patches: Tensor, present: Tensor) -> Tensor:
        reduced = self.reduction(globals_, patches, present=present)
        features = self.readout(torch.cat([reduced[:, :, None], patches], dim=2), present)
        weighed = self.experts(features, sl.subset_presence(present, self.readout.subsets))
        return torch.cat([reduced, weighed], dim=1).flatten(1)


class Grained(nn.Module):
    """NEXT: text-modulated and shared experts, each with a readout."""

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.modulated = sl.TextModulatedExperts(DIM, modalities, 2, mlp_ratio=2, dropout=0.0)
        self.shared = sl.SharedExperts(DIM, 2, mlp_ratio=2, dropout=0.0)
        self.readouts = nn.ModuleList(sl.ExpertReadout(DIM, num_heads=2) for _ in range(2))
        nn.init.normal_(self.modulated.mix_contract.weight)

    def forward(self, globals_: Tensor, patches: Tensor, present: Tensor) -> Tensor:
        tokens = self.modulated(patches, globals_[:, None], present), self.shared(patches, present)
        read = [readout(globals_, own, present) for readout, own in zip(self.readouts, tokens, strict=True)]
        return torch.cat(read, dim=1).flatten(1)


HEADS = pytest.mark.parametrize("head", [Decoupled, Grained])


def batch_of(size: int, modalities: int) -> tuple[Tensor, Tensor, Tensor]:
    present = torch.arange(size * modalities).reshape(size, modalities) % 3 > 0
    present[:, 0] = True
    return torch.randn(size, modalities, DIM), torch.randn(size, modalities, 6, DIM), present


@HEADS
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_any_number_of_modalities_of_which_some_are_missing(head, modalities):
    layer = head(modalities).eval()
    globals_, patches, present = batch_of(4, modalities)
    expected = layer(globals_, patches, present)
    hidden = (
        torch.where(present[..., None], globals_, torch.nan),
        torch.where(present[..., None, None], patches, torch.nan),
    )
    assert torch.equal(layer(*hidden, present), expected)
    alone = [layer(*(item[b : b + 1] for item in (*hidden, present))) for b in range(4)]
    torch.testing.assert_close(torch.cat(alone), expected)
    everything = torch.ones_like(present)
    assert layer(globals_, patches, everything).isfinite().all()
    layer.train()(*hidden, present).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@HEADS
def test_a_sample_without_any_modality_gives_zeros(head):
    globals_, patches, present = batch_of(3, 2)
    present[1] = False
    layer = head(2).train()
    output = layer(globals_, patches, present)
    assert not output[1].any()
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@functools.cache
@for_any_size()
def exported(head) -> tuple[nn.Module, torch.export.ExportedProgram]:
    """A head and its graph, captured once for both tests of it."""
    layer, count = head(3).eval(), torch.export.Dim("batch", max=4096)
    return layer, torch.export.export(layer, batch_of(3, 3), dynamic_shapes=[{0: count}] * 3)


@HEADS
def test_compiles_and_exports_with_a_dynamic_batch(head):
    layer, program = exported(head)
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    for size in (3, 5):
        example = batch_of(size, 3)
        torch.testing.assert_close(program.module()(*example), layer(*example))
        torch.testing.assert_close(compiled(*example), layer(*example))


@pytest.mark.slow
@HEADS
@pytest.mark.filterwarnings("ignore")
def test_onnx_with_a_dynamic_batch(head):
    pytest.importorskip("onnxscript")
    evaluator = pytest.importorskip("onnx.reference")
    if head is Decoupled and torch.__version__.startswith("2.6."):
        pytest.skip("the ONNX exporter of torch 2.6 cannot translate a batch norm")
    layer, captured = exported(head)
    program = torch.onnx.export(captured, dynamo=True, verbose=False)
    example = batch_of(5, 3)
    session = evaluator.ReferenceEvaluator(program.model_proto)
    (output,) = session.run(None, dict(zip(session.input_names, (item.numpy() for item in example), strict=True)))
    torch.testing.assert_close(torch.from_numpy(output), layer(*example))
