"""TOP-ReID: one tower per modality, the loss term of CRM, fill-ins for missing modalities, and refused settings."""

from itertools import permutations

import pytest
import torch

from examples.topreid.model import TOPReID, join
from examples.towers.vit import VisionTransformer
from method_batches import SIZE, random_batch, small_model

PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [True, False, False]])


def tokens_of(model, batch):
    patches, class_tokens = model.tower_tokens(batch)
    return join(class_tokens, patches)


def test_every_modality_has_its_own_tower_and_all_start_alike():
    model = small_model("topreid", 3).eval()
    batch = random_batch(2, 3)
    batch = batch._replace(images=batch.images[:, :1].expand(-1, 3, -1, -1, -1), masks=None)
    before = model(batch).features["G"].unflatten(1, (3, 16))
    torch.testing.assert_close(before[:, 0], before[:, 2])
    with torch.no_grad():
        model.towers[1].class_token += torch.randn(16)
    after = model(batch).features["G"].unflatten(1, (3, 16))
    assert torch.equal(before[:, ::2], after[:, ::2])
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)


def test_a_shared_tower_gives_what_equal_towers_give():
    separate, shared = small_model("topreid", 3).eval(), small_model("topreid", 3, towers="shared").eval()
    assert (len(separate.towers), len(shared.towers)) == (3, 1)
    shared.load_state_dict({name: value for name, value in separate.state_dict().items() if name[:8] not in EXTRA})
    batch = random_batch(4, 3, present=PRESENT)
    for name, value in separate(batch).features.items():
        torch.testing.assert_close(shared(batch).features[name], value, msg=name)


EXTRA = ("towers.1", "towers.2")


@pytest.mark.parametrize("present", [None, PRESENT])
def test_the_term_is_the_loss_of_the_layer_and_that_of_its_formula(present):
    model = small_model("topreid", 3).train()
    batch = random_batch(4, 3, present=present)
    term = model(batch).terms["CRM"]
    tokens = tokens_of(model, batch)
    torch.testing.assert_close(term, model.reconstruction.loss(tokens, present))
    there, expected = torch.ones(4, 3, dtype=torch.bool) if present is None else present, 0.0
    for source, target in permutations(range(3), 2):
        both = [row for row in range(4) if there[row, source] and there[row, target]]
        made = model.reconstruction.translate(tokens[both, source], source, target)
        expected = expected + (made - tokens[both, target]).square().mean()
    torch.testing.assert_close(term, expected)


def test_what_is_missing_is_filled_in_at_test_time_alone():
    model = small_model("topreid", 3).eval()
    batch = random_batch(4, 3, present=PRESENT)
    features = model(batch).features
    tokens = tokens_of(model, batch)
    filled = tokens.clone()
    make = model.reconstruction.translate
    filled[1, 1] = (make(tokens[1:2, 0], 0, 1) + make(tokens[1:2, 2], 2, 1))[0] / 2
    filled[2, 0] = (make(tokens[2:3, 1], 1, 0) + make(tokens[2:3, 2], 2, 0))[0] / 2
    filled[3, 1], filled[3, 2] = make(tokens[3:4, 0], 0, 1)[0], make(tokens[3:4, 0], 0, 2)[0]
    expected = model.permutation(filled[:, :, 0], filled[:, :, 1:])
    torch.testing.assert_close(features["F"], expected.flatten(1))
    assert features["G"].unflatten(1, (3, 16))[~PRESENT].abs().sum() == 0
    empty = model.train()(batch).features["F"].unflatten(1, (3, 16))
    assert empty[~PRESENT].abs().sum() == 0
    assert (empty[PRESENT].abs().sum(dim=-1) > 0).all()


def test_the_loss_alone_fills_in_nothing():
    model = small_model("topreid", 3, reconstruction="loss").eval()
    assert model(random_batch(4, 3, present=PRESENT)).features["F"].unflatten(1, (3, 16))[~PRESENT].abs().sum() == 0
    assert "CRM" in model.train()(random_batch(4, 3)).terms


def test_one_modality_or_none_has_no_term():
    assert small_model("topreid", 1).train()(random_batch(4, 1)).terms == {}
    assert small_model("topreid", 3, reconstruction="none").train()(random_batch(4, 3)).terms == {}


def test_class_tokens_are_supervised_together_or_one_by_one():
    batch = random_batch(4, 3, present=PRESENT)
    single, joined = small_model("topreid", 3, supervision="single"), small_model("topreid", 3)
    assert joined.widths == {"G": 48, "F": 48}
    assert single.widths == {"G_RGB": 16, "G_NI": 16, "G_TI": 16, "F": 48}
    outputs = single(batch)
    assert {name: rows.tolist() for name, rows in outputs.rows.items()} == {
        f"G_{name}": PRESENT[:, index].tolist() for index, name in enumerate(("RGB", "NI", "TI"))
    }
    assert joined(batch).rows == {}
    joined.load_state_dict(single.state_dict())
    parts = [outputs.features[name] for name in ("G_RGB", "G_NI", "G_TI")]
    torch.testing.assert_close(torch.cat(parts, dim=1), joined.train()(batch).features["G"])


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({}, "F"),
        ({"permutation": False}, "G"),
        ({"permutation": False, "supervision": "single"}, "all"),
        ({"supervision": "single"}, "F"),
    ],
)
def test_the_descriptor_is_f_where_there_is_tpm(changes, headline):
    assert small_model("topreid", 2, **changes).headline == headline


def test_as_many_towers_as_modalities_or_one():
    towers = [VisionTransformer(SIZE, patch_size=4, dim=16, depth=1, num_heads=2) for _ in range(2)]
    with pytest.raises(ValueError, match=r"towers must be one or 3, one per modality; received 2"):
        TOPReID(towers, ("RGB", "NI", "TI"))


def test_captions_are_not_read():
    assert small_model("topreid", 2).encode([("a red car",), ()]) is None
