"""STMI: every variant trains, missing modalities take no part, the model exports, and errors give the reason."""

import copy
import pickle
from itertools import product
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples.stmi.model import STMI, headline
from examples.stmi.settings import Fusion
from examples.towers.cnn import ConvolutionalBackbone
from examples.towers.text import CaptionEncoder
from examples.towers.vit import VisionTransformer
from stmi_layers.training import Batch, Objective, ReIDModel, Schedule, load_weights

SIZE = (32, 16)
WORDS = ("a", "red", "car", "van", "blue", "bus")


def tiny_vit(**options: Any) -> VisionTransformer:
    return VisionTransformer(SIZE, dim=16, depth=2, num_heads=2, stem_width=8, **options)


def tiny_stmi(modalities: int, fusion: Fusion = "hypergraph", *, text: bool = True, **options: Any) -> STMI:
    encoder = CaptionEncoder(WORDS, 16, length=5, num_heads=2) if text else None
    return STMI(tiny_vit(), modalities, fusion=fusion, num_tokens=2, num_heads=2, text_encoder=encoder, **options)


def tiny_batch(count: int, modalities: int, *, present: torch.Tensor | None = None) -> Batch:
    nowhere = torch.full((count,), -1)
    return Batch(
        images=torch.rand(count, modalities, 3, *SIZE),
        masks=torch.rand(count, modalities, *SIZE) < 0.4,
        present=present,
        labels=torch.arange(count) // 2,
        cameras=nowhere,
        views=nowhere,
        scenes=nowhere,
        texts=torch.randint(1, 9, (count, 5)),
        has_text=torch.ones(count, dtype=torch.bool),
        indices=torch.arange(count),
    )


@pytest.mark.parametrize(("fusion", "modalities"), list(product(get_args(Fusion), (1, 2, 4))))
def test_every_variant_gives_every_parameter_a_gradient(fusion: Fusion, modalities: int):
    model, batch = tiny_stmi(modalities, fusion), tiny_batch(6, modalities)
    assert isinstance(model, ReIDModel)
    outputs = model(batch)
    assert {name: value.shape[1] for name, value in outputs.features.items()} == model.widths
    objective = Objective(model.widths, 3, Schedule())
    torch.stack(list(objective(outputs, batch.labels).values())).sum().backward()
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_the_objective_takes_the_half_precision_of_autocast():
    model = STMI(ConvolutionalBackbone(SIZE, dim=16), 2, reallocation=False)
    batch = tiny_batch(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch)
    assert outputs.features["G"].dtype == torch.bfloat16
    loss = Objective(model.widths, 2, Schedule())(outputs, batch.labels)["G"]
    assert loss.dtype == torch.float32
    loss.backward()


def test_the_baseline_returns_only_g():
    model = tiny_stmi(2, text=False, reallocation=False)
    outputs = model(tiny_batch(3, 2))
    assert model.widths == {"G": outputs.features["G"].shape[1]} == {"G": 32}
    assert (model.headline, model.encode([("a car",)])) == ("G", None)


@pytest.mark.parametrize("training", [False, True])
@given(fusion=st.sampled_from(get_args(Fusion)), modalities=st.integers(2, 4), data=st.data())
def test_whatever_stands_in_an_absent_slot_changes_nothing(
    training: bool, fusion: Fusion, modalities: int, data: st.DataObject
):
    absent = data.draw(st.integers(0, modalities - 1))
    torch.manual_seed(0)
    model = tiny_stmi(modalities, fusion).train(training)
    present = torch.ones(3, modalities, dtype=torch.bool)
    present[1:, absent] = False
    batch = tiny_batch(3, modalities, present=present)
    results = []
    for fill in (0.0, 3.0, torch.nan):
        images = batch.images.masked_fill(~present[..., None, None, None], fill)
        masks = torch.where(present[..., None, None], batch.masks, fill == 3.0)
        own = copy.deepcopy(model)
        features = own(batch._replace(images=images, masks=masks)).features
        torch.cat([feature.square().sum(dim=1) for feature in features.values()]).sum().backward()
        results.append((features, {name: parameter.grad for name, parameter in own.named_parameters()}))
    for features, gradients in results[1:]:
        for name, value in results[0][0].items():
            assert torch.equal(value, features[name]), name
        for name, value in results[0][1].items():
            assert value is None or torch.equal(value, gradients[name]), name
    part = slice(absent * 16, (absent + 1) * 16)
    assert results[0][0]["G"][1:, part].abs().sum() == results[0][0]["U"][1:, part].abs().sum() == 0
    assert results[0][0]["G"][0, part].abs().sum() > 0


def test_absent_images_enter_no_batch_statistic_in_training():
    present = torch.tensor([[True, True], [True, False]])
    batch = tiny_batch(2, 2, present=present)
    first, second = tiny_stmi(2).train(), tiny_stmi(2).train()
    second.load_state_dict(first.state_dict())
    first(batch)
    second.backbone(batch.images[present][:, None])
    for (name, one), other in zip(first.backbone.named_buffers(), second.backbone.buffers(), strict=True):
        assert torch.equal(one, other), name


def test_samples_do_not_see_each_other_in_evaluation():
    model = tiny_stmi(3).eval()
    batch = tiny_batch(4, 3)
    together = model(batch).features
    for index in range(4):
        alone = model(Batch(*(None if part is None else part[index : index + 1] for part in batch))).features
        for name, one in alone.items():
            torch.testing.assert_close(one[0], together[name][index], rtol=1e-4, atol=1e-5)


def test_a_sample_without_any_modality_gives_finite_features():
    present = torch.tensor([[True, True], [False, False]])
    features = tiny_stmi(2).eval()(tiny_batch(2, 2, present=present)).features
    assert all(value.isfinite().all() for value in features.values())
    assert features["G"][1].abs().sum() == 0


class AsTensors(nn.Module):
    """The model as a function of tensors, which is how it is exported."""

    def __init__(self, model: STMI) -> None:
        super().__init__()
        self.model = model

    def forward(self, images, masks, present, texts) -> tuple[torch.Tensor, ...]:
        nowhere = images.new_full(images.shape[:1], -1, dtype=torch.int64)
        has_text = texts.any(dim=1)
        batch = Batch(images, masks, present, nowhere, nowhere, nowhere, nowhere, texts, has_text, nowhere)
        return tuple(self.model(batch).features.values())


def test_it_exports_with_a_dynamic_batch_and_absent_modalities():
    model = AsTensors(tiny_stmi(3)).eval()
    present = torch.tensor([[True, True, False], [True, False, True], [True, True, True]])
    batch = tiny_batch(3, 3, present=present)
    arguments = (batch.images, batch.masks, present, batch.texts)
    count = torch.export.Dim("count", min=2, max=4096)
    exported = torch.export.export(model, arguments, dynamic_shapes=({0: count},) * 4).module()
    for size in (3, 2):
        some = tuple(part[-size:] for part in arguments)
        for one, other in zip(exported(*some), model(*some), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_parameter_groups_hold_every_parameter_once():
    model = tiny_stmi(2)
    groups = model.parameter_groups()
    ids = [id(parameter) for group in groups.values() for parameter in group]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(names[id(one)].rpartition(".")[2] for one in groups["strengths"]) == [
        "alpha",
        "alpha",
        "beta",
        "beta",
    ]
    assert all(names[id(one)].startswith("backbone.") for one in groups["backbone"])
    assert not any(names[id(one)].startswith("backbone.") for one in groups["new"])


def test_watch_tells_the_strengths_and_what_chi_joins_in_the_first_batch_of_a_mode():
    model = tiny_stmi(2)
    assert list(model.watch()) == ["alpha/block_0", "alpha/block_1", "beta/block_0", "beta/block_1"]
    model.interaction.threshold = 2.0  # above any cosine: nothing is joined
    model(tiny_batch(2, 2))
    alone = model.watch()
    assert (alone["hypergraph/mean_edge_size"], alone["hypergraph/isolated_share"]) == (1.0, 1.0)
    assert alone["hypergraph/nodes"] == 6
    model.interaction.threshold = -2.0  # below: everything is
    model.eval()
    model(tiny_batch(2, 2))
    first = model.watch()
    assert (first["hypergraph/mean_edge_size"], first["hypergraph/cross_modal_share"]) == (6.0, 1.0)
    seen = model._seen
    model(tiny_batch(2, 2))
    assert model._seen is seen
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.watch() == first
    assert "hypergraph/nodes" not in tiny_stmi(2, "mlp").watch()


def test_captions_are_needed_where_the_model_reads_them():
    with pytest.raises(ValueError, match=r"batch must hold texts, made by encode, .*; received None"):
        tiny_stmi(2)(tiny_batch(2, 2)._replace(texts=None))


def test_captions_of_several_modalities_are_joined():
    model = tiny_stmi(2)
    tokens = model.encode([("a red car", "a red car"), ("a red", "car"), (), ("", "")])
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[2], tokens[3])


def test_rows_without_caption_are_not_supervised_by_t():
    has_text = torch.tensor([True, False, True])
    assert torch.equal(tiny_stmi(2)(tiny_batch(3, 2)._replace(has_text=has_text)).rows["T"], has_text)


def test_the_headline_is_what_the_model_has():
    assert headline("auto", {"G": 1, "U": 1}) == "U"
    assert headline("G+T", {"G": 1, "U": 1, "T": 1}) == "G+T"
    assert headline("all", {"G": 1, "U": 1}) == "all"
    for descriptor, widths in (("U", {"G": 1}), ("all", {"G": 1}), ("G+T", {"G": 1, "U": 1})):
        with pytest.raises(ValueError, match=r"descriptor must be one the model has, .*received"):
            headline(descriptor, widths)


def test_weights_that_do_not_fit_are_named():
    weights = tiny_stmi(2).state_dict()
    with pytest.raises(ValueError, match=r"does not fit the model(.|\n)*interaction.*is unknown to the model"):
        load_weights(tiny_stmi(2, "none"), weights, "model")
    wider = STMI(VisionTransformer(SIZE, dim=32, depth=2, num_heads=2, stem_width=8), 2, reallocation=False)
    with pytest.raises(ValueError, match=r"is \(16.* in the checkpoint and \(32.* in the model"):
        load_weights(wider, tiny_stmi(2, reallocation=False, text=False).state_dict(), "model")
