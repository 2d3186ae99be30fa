"""EDITOR: outputs equal to the research code's with the same parameters, and selection by the tower's attention."""

import pytest
import torch
from torch import Tensor, nn

from examples.editor.model import EDITOR
from examples.editor.released import released_aggregation, released_centres
from examples.towers.cnn import ConvolutionalBackbone
from given_tower import GivenTower, batch_of
from method_batches import random_batch, small_model
from reference import editor as reference
from stmi_layers.backbones import attention_layers, heads_of, recording
from vectors import every, load, meta, part

NAMES = ("rgb", "nir", "tir")
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [False, False, True]])


class Looking(GivenTower):
    """A tower with given tokens that has an attention, as `EDITOR` demands."""

    def __init__(self, patches: Tensor, globals_: Tensor) -> None:
        super().__init__(patches, globals_)
        self.attention = nn.MultiheadAttention(self.dim, 1)


def scores_of(keep: Tensor, modalities: int) -> Tensor:
    """Scores (batch modalities heads patches) by which every kept patch is the best of a head: one patch each."""
    best = torch.zeros(len(keep), int(keep.sum(dim=1).max()), keep.shape[1])
    for scores, kept in zip(best, keep, strict=True):
        places = kept.nonzero().flatten().tolist()
        for head in range(len(scores)):
            scores[head, places[min(head, len(places) - 1)]] = 1.0
    return best[:, None].expand(-1, modalities, -1, -1)


@every("editor_hma_*.npz")
def test_it_composes_the_released_parts_with_their_released_parameters(path):
    arrays, settings = load(path, torch.float64), meta(path)
    tokens, keep = torch.stack([arrays[f"in.{name}"] for name in NAMES], dim=1), arrays["in.mask"]
    classes, patches, state = tokens[:, :, 0], tokens[:, :, 1:], part(arrays, "param.")
    options = {"num_heads": settings["heads"], "keep_per_head": 1, "centre_start": "zero"}
    model = EDITOR(Looking(patches, classes), ("RGB", "NI", "TI"), settings["identities"], **options).double()
    assert model.aggregation is not None
    assert model.centres is not None
    assert model.reduction is not None
    model.aggregation.max_kept = None  # the tower that is given has one head, and its scores have more
    model.aggregation.load_state_dict(released_aggregation(state))
    model.centres.centres.copy_(released_centres(state))
    model.look = lambda batch: (patches, classes, scores_of(keep, 3))
    batch = batch_of(len(tokens), 3)._replace(labels=arrays["in.labels"])

    features = model.eval()(batch).features
    after = arrays["eval.out.tokens"].unflatten(1, (3, -1))
    means = (after[:, :, 1:] * keep[:, None, :, None]).sum(dim=2) / keep.sum(dim=1)[:, None, None]
    rows = torch.cat([after[:, :, 0], means], dim=2)
    weights = zip(rows.unbind(1), model.reduction.weight, model.reduction.bias, strict=True)
    expected = torch.cat([row @ weight.T + bias for row, weight, bias in weights], dim=1)
    torch.testing.assert_close(features["F"], expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(features["G"], classes.flatten(1))

    terms = model.train()(batch).terms
    torch.testing.assert_close(terms["OCFR"], arrays["train.out.ocfr_loss"], rtol=0, atol=1e-7)
    expected = reference.background_consistency(patches, keep, torch.ones(len(tokens), 3, dtype=torch.bool))
    torch.testing.assert_close(terms["BCC"], expected)


def test_the_patches_kept_are_those_that_heads_of_the_present_modalities_looked_at():
    model = small_model("editor", 3, keep_per_head=1, depth=2).eval()
    batch, layers = random_batch(4, 3, present=PRESENT), attention_layers(model.backbone)
    with recording(layers) as calls:
        model(batch)
    maps = [heads_of(layer, calls[index][0]).weights for index, layer in enumerate(layers)]
    rows = zip(*(attention.flatten(0, 1) for attention in maps), strict=True)
    scores = torch.stack([reference.rollout(list(of_one), 1) for of_one in rows]).reshape(4, 3, 2, 16)
    kept = [reference.select(scores[index], 1, PRESENT[index]).sum().item() for index in range(4)]
    assert model._seen.tolist() == kept
    assert model.watch()["kept"] == pytest.approx(sum(kept) / 4)


def test_training_selects_by_the_rows_of_the_images_that_are_there():
    model = small_model("editor", 3)
    batch = random_batch(4, 3, present=PRESENT)
    model.train()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):  # whose statistics in training are those of the batch
            module.eval()
    scores, evaluated = model.look(batch)[2], model.eval().look(batch)[2]
    torch.testing.assert_close(scores[PRESENT], evaluated[PRESENT])
    assert not scores[~PRESENT].any()


def test_terms_leave_out_absent_modalities():
    model = small_model("editor", 3).train()
    batch = random_batch(4, 3, present=PRESENT)
    patches, _, scores = model.look(batch)
    selected = torch.stack([reference.select(scores[index], 2, PRESENT[index]) for index in range(4)])
    expected = reference.background_consistency(patches.double(), selected, PRESENT)
    assert model.background_term(patches, selected, PRESENT).item() == pytest.approx(expected.item(), rel=1e-5)
    model(batch)
    seen = model.centres.seen
    assert seen.tolist() == [[True, False, False], [True, True, False], [True, True, False]]


def test_one_modality_has_no_background_to_compare():
    terms = small_model("editor", 1).train()(random_batch(4, 1)).terms
    assert terms["BCC"].item() == 0
    assert terms["OCFR"].item() > 0


def test_without_aggregation_the_class_tokens_are_all_there_is():
    model = small_model("editor", 2, aggregation=False)
    outputs = model.train()(random_batch(4, 2))
    assert (list(outputs.features), dict(outputs.terms), model.headline) == (["G"], {}, "G")


def test_towers_and_numbers_that_cannot_select_are_refused():
    with pytest.raises(ValueError, match=r"backbone must have self-attentions .*; received ConvolutionalBackbone"):
        EDITOR(ConvolutionalBackbone((16, 16), dim=16), ("RGB",), 3)
    with pytest.raises(
        ValueError, match=r"keep_per_head must lie between 1 and the number of patches, 16; received 17"
    ):
        small_model("editor", 2, keep_per_head=17)
