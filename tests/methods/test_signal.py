"""Signal: selection and interaction, the loss terms of both alignments, and settings passed to the layers."""

import pytest
import torch

from examples.towers.tower import tower_tokens
from method_batches import random_batch, small_model

PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [True, False, False]])


def test_f_is_what_the_class_tokens_read_of_the_selected_patches():
    model = small_model("signal", 3, keep=0.25).eval()
    batch = random_batch(4, 3, present=PRESENT)
    patches, class_tokens = tower_tokens(model.backbone, batch)
    gates = model.selection(patches, class_tokens, PRESENT)
    assert 0 < gates.mean() < 1
    expected = model.interaction(class_tokens, patches, gates, PRESENT)
    features = model(batch).features
    torch.testing.assert_close(features["F"], expected.flatten(1))
    torch.testing.assert_close(features["G"], class_tokens.flatten(1))
    for feature in features.values():
        assert feature.unflatten(1, (3, 16))[~PRESENT].abs().sum() == 0
    other = small_model("signal", 3, keep=1.0).eval()
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(other(batch).features["F"], features["F"], atol=1e-4)


@pytest.mark.parametrize("present", [None, PRESENT])
@pytest.mark.parametrize("negatives", ["others", "all"])
def test_the_terms_are_those_of_the_layers(present, negatives: str):
    model = small_model("signal", 3, negatives=negatives).train()
    batch = random_batch(4, 3, present=present)
    terms = model(batch).terms
    patches, _ = tower_tokens(model.backbone, batch)
    labels = batch.labels if negatives == "others" else None
    torch.testing.assert_close(terms["GAM"], model.global_alignment(patches, present, labels))
    torch.testing.assert_close(terms["LAM"], model.local_alignment(patches, present))
    assert terms["LAM"] > 0
    assert model.eval()(batch).terms == {}


def test_images_of_one_identity_are_negatives_where_all_are():
    terms = []
    for negatives in ("others", "all"):
        torch.manual_seed(0)
        terms.append(small_model("signal", 2, negatives=negatives).train()(random_batch(4, 2)).terms["GAM"])
    assert terms[0] < terms[1]  # fewer negatives, fewer choices


def test_one_modality_has_terms_of_0():
    model = small_model("signal", 1).train()
    outputs = model(random_batch(4, 1))
    assert [value.item() for value in outputs.terms.values()] == [0.0, 0.0]
    assert outputs.features["F"].abs().sum() > 0


def test_settings_reach_the_layers():
    released = {"learned_selection": False, "unselected": "zeroed", "anchor": "first"}
    model = small_model("signal", 2, **released, points="clamped", offset_channels=1, window=2, keep=0.75)
    assert (model.selection.keep, model.selection.straight_through) == (0.75, False)
    assert model.interaction.unselected == "zeroed"
    assert model.global_alignment.anchor == 0
    sampling = model.local_alignment.sampling[0]
    assert (sampling.points, sampling.offset_channels, sampling.kernel_size, sampling.stride) == ("clamped", 1, 2, 2)
    assert small_model("signal", 2).global_alignment.anchor is None


def test_the_temperature_is_a_group_of_its_own_and_watched():
    model = small_model("signal", 2)
    assert model.parameter_groups()["temperature"] == [model.global_alignment.log_excess]
    watched = model.watch()
    assert watched["temperature"] == pytest.approx(0.07)
    assert list(watched) == ["temperature", "alpha/block_0", "beta/block_0"]


@pytest.mark.parametrize(
    ("changes", "widths", "headline"),
    [
        ({}, {"G": 32, "F": 32}, "all"),
        ({"interaction": False}, {"G": 32}, "G"),
        ({"supervision": "single"}, {"G_RGB": 16, "G_NI": 16, "F": 32}, "all"),
    ],
)
def test_the_descriptor_is_everything_there_is(changes, widths, headline: str):
    model = small_model("signal", 2, **changes)
    assert (model.widths, model.headline) == (widths, headline)
    assert list(model(random_batch(4, 2)).terms) == ["GAM", "LAM"]


def test_captions_are_not_read():
    assert small_model("signal", 2).encode([("a red car",), ()]) is None
