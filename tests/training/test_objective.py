"""Objective: weighted losses of all features over their supervised rows, and the terms of the model."""

import pytest
import torch
from torch import nn

from stmi_layers import ReIDLoss
from stmi_layers.training import Objective, Outputs, Schedule

WIDTHS = {"whole": 6, "text": 4}
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def outputs(**changes) -> Outputs:
    generator = torch.Generator().manual_seed(3)
    features = {name: torch.randn(6, width, generator=generator) for name, width in WIDTHS.items()}
    return Outputs(features)._replace(**changes)


def copies(objective: Objective) -> dict[str, ReIDLoss]:
    """The losses as they would be built by hand, with the same heads."""
    losses = {
        name: ReIDLoss(width, 3, smoothing=0.2, margin=0.3, identity_weight=0.5) for name, width in WIDTHS.items()
    }
    for name, loss in losses.items():
        loss.load_state_dict(objective.losses[name].state_dict())
    return losses


def build(**schedule) -> Objective:
    return Objective(WIDTHS, 3, Schedule(smoothing=0.2, margin=0.3, identity_weight=0.5, **schedule))


def test_every_part_is_its_loss_times_its_weight():
    objective = build(feature_weights={"text": 0.25}, term_weights={"volume": 2.0})
    by_hand = copies(objective)
    given = outputs(terms={"volume": torch.tensor(3.0), "extra": torch.tensor(5.0)})
    parts = objective(given, LABELS)
    assert list(parts) == ["whole", "text", "volume", "extra"]
    torch.testing.assert_close(parts["whole"], by_hand["whole"](given.features["whole"], LABELS))
    torch.testing.assert_close(parts["text"], 0.25 * by_hand["text"](given.features["text"], LABELS))
    assert parts["volume"] == 6
    assert parts["extra"] == 5


def test_rows_that_are_not_supervised_take_no_part():
    objective = build()
    by_hand = copies(objective)
    rows = torch.tensor([True, True, False, True, False, True])
    given = outputs(rows={"text": rows})
    given.features["text"][~rows] = torch.nan
    parts = objective(given, LABELS)
    torch.testing.assert_close(parts["text"], by_hand["text"](given.features["text"][rows], LABELS[rows]))
    torch.testing.assert_close(parts["whole"], by_hand["whole"](given.features["whole"], LABELS))


@pytest.mark.parametrize("supervised", [0, 1])
def test_fewer_than_two_rows_contribute_nothing_and_reach_the_model_with_a_gradient_of_zero(supervised: int):
    objective = build()
    before = {name: value.clone() for name, value in objective.losses["text"].state_dict().items()}
    given = outputs(rows={"text": torch.arange(6) < supervised})
    given.features["text"].requires_grad_()
    part = objective(given, LABELS)["text"]
    part.backward()
    assert part == 0
    assert torch.equal(given.features["text"].grad, torch.zeros(6, 4))
    for name, value in objective.losses["text"].state_dict().items():
        assert torch.equal(value, before[name])


def test_half_precision_is_summed_in_float32():
    given = outputs(terms={"volume": torch.tensor(1.0, dtype=torch.bfloat16)})
    half = given._replace(features={name: feature.bfloat16() for name, feature in given.features.items()})
    assert {value.dtype for value in build()(half, LABELS).values()} == {torch.float32}


def test_it_learns_a_head_per_feature():
    names = {name for name, _ in build().named_parameters()}
    assert "losses.whole.head.classifier.weight" in names
    assert "losses.text.head.classifier.weight" in names


def test_weights_of_unknown_features_are_refused():
    with pytest.raises(
        ValueError, match=r"feature_weights must be by names among \['text', 'whole'\]; received \['U'\]"
    ):
        build(feature_weights={"U": 1.0})


@pytest.mark.parametrize("name", ["all", "a.b", "keys", ""])
def test_names_that_cannot_be_features_are_refused(name: str):
    with pytest.raises(ValueError, match="widths must name at least one feature, each by a word of letters"):
        Objective({name: 4}, 3, Schedule())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"whole": torch.zeros(6, 6)}}, "features must have the names and shapes of the model's widths"),
        ({"features": {"whole": torch.zeros(6, 5), "text": torch.zeros(6, 4)}}, r"'whole': \(6, 5\)"),
        ({"rows": {"U": torch.ones(6, dtype=torch.bool)}}, r"rows must be by names among .* received \['U'\]"),
        ({"rows": {"text": torch.ones(6)}}, r"rows\['text'\] must be Bool, \(6,\); received torch.float32"),
        ({"terms": {"volume": torch.ones(2)}}, r"terms\['volume'\] must be a scalar; received shape \(2,\)"),
        ({"terms": {"text": torch.ones(())}}, r"terms must not have the names of features; received \['text'\]"),
    ],
)
def test_outputs_that_break_the_contract_are_named(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build().check(outputs(**changes), 6)


def test_weights_of_terms_that_the_model_does_not_return_are_refused():
    objective = build(term_weights={"volum": 1.0})
    with pytest.raises(ValueError, match=r"term_weights must be by names among \['volume'\]; received \['volum'\]"):
        objective.check(outputs(terms={"volume": torch.ones(())}), 6)
    objective.check(outputs(terms={"volum": torch.ones(())}), 6)


def test_its_norm_can_be_synchronised_by_torch():
    """The guide on several GPUs says so for losses that stay local."""
    loss = ReIDLoss(8, 5)
    names = list(loss.state_dict())
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(loss)
    assert isinstance(synchronised.head.norm, nn.SyncBatchNorm)
    assert list(synchronised.state_dict()) == names
    assert not synchronised.head.norm.bias.requires_grad
