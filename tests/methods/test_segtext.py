"""Retrieval by image, caption and mask: guidance by the mask, its prediction, loss terms, and missing captions."""

import copy

import pytest
import torch

from method_batches import random_batch, small_model
from stmi_layers import image_text_alignment_loss, token_identity_loss

TERMS = {"alignment", "token_identity", "coupling", "mask"}


def test_the_guide_chooses_the_mask():
    batch = random_batch(3, 2)
    other = batch._replace(masks=torch.logical_not(batch.masks))
    for guide, steered in (("given", True), ("predicted", False), ("none", False)):
        model = small_model("segtext", 2, guide=guide).eval()
        same = torch.allclose(model(batch).features["F"], model(other).features["F"], atol=1e-6)
        assert same != steered, guide
    model = small_model("segtext", 2, guide="predicted").eval()
    before = model(batch).features["F"]
    with torch.no_grad():
        model.decoder.weight.mul_(50)
    assert not torch.allclose(model(batch).features["F"], before, atol=1e-5)


def test_the_decoder_learns_where_the_foreground_is():
    torch.manual_seed(0)
    model = small_model("segtext", 2).train()
    batch = random_batch(6, 2)
    batch = batch._replace(masks=(batch.images[:, :, 0] + torch.linspace(-1, 1, 16)) > 0.5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    first = model(batch).terms["mask"].item()
    for _ in range(30):
        optimizer.zero_grad()
        model(batch).terms["mask"].backward()
        optimizer.step()
    found = model(batch)
    assert found.terms["mask"] < 0.6 * first
    predicted = model.segment(batch)
    assert predicted.shape == (6, 2, 4, 4)
    truth = batch.masks.float().unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5))
    assert ((predicted > 0.5) == (truth > 0.5)).float().mean() > 0.8


def test_terms_are_those_of_the_equations():
    model = small_model("segtext", 2).train()
    batch = random_batch(4, 2)._replace(has_text=torch.tensor([True, False, True, True]))
    seen = {}
    model.of_queries.register_forward_hook(lambda _, __, output: seen.update(queries=output.mean(dim=1)))
    outputs = model(batch)
    image, text, labels = outputs.features["F"], outputs.features["T"], batch.labels
    assert set(outputs.terms) == TERMS
    expected = image_text_alignment_loss(image, text, labels, temperature=0.07, present=batch.has_text)
    torch.testing.assert_close(outputs.terms["alignment"], expected, rtol=1e-4, atol=1e-5)
    by_image = token_identity_loss(seen["queries"][:, None], image[:, None], labels, labels)
    said = batch.has_text[:, None]
    by_caption = token_identity_loss(text[:, None], image[:, None], labels, labels, present=said)
    # The mean over the tokens that are there: four of images, three of captions.
    mean = (4 * by_image + 3 * by_caption) / 7
    torch.testing.assert_close(outputs.terms["token_identity"], mean, rtol=1e-4, atol=1e-5)


def test_a_missing_caption_takes_no_part_whatever_its_tokens_are():
    model = small_model("segtext", 2).train()
    batch = random_batch(4, 2)._replace(has_text=torch.tensor([True, False, True, True]))
    other = batch._replace(texts=batch.texts.clone())
    other.texts[1] = 3
    one, two = copy.deepcopy(model)(batch), model(other)
    assert one.features["T"][1].eq(0).all()
    assert one.rows["T"].tolist() == [True, False, True, True]
    for name in TERMS:
        assert torch.equal(one.terms[name], two.terms[name]), name


@pytest.mark.parametrize("masks", ["given", "none"])
def test_without_masks_their_terms_are_zero_and_everything_else_works(masks: str):
    model = small_model("segtext", 2).train()
    batch = random_batch(4, 2)
    outputs = model(batch if masks == "given" else batch._replace(masks=None))
    assert set(outputs.terms) == TERMS
    for name in ("coupling", "mask"):
        assert (outputs.terms[name] > 0) == (masks == "given"), name


def test_scales_fit_the_grid_unless_they_are_chosen():
    assert small_model("segtext", 1).pooling.scales == (1, 2, 4)
    assert small_model("segtext", 1, patch_size=8).pooling.scales == (1, 2)
    with pytest.raises(ValueError, match="scale must be at least 1 and divide the grid"):
        small_model("segtext", 1, scales=(3,))
