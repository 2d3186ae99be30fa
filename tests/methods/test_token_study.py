"""Variants of STMI in the study of its tokens: each has the setting of its name, trains, and measures its tokens."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from examples import compare
from examples.comparison_table import column_of
from examples.methods import load_method
from examples.run import Run
from examples.token_study.model import Scaled, StudiedSTMI, median_cosine, shared_direction
from examples.token_study.variants import COLUMNS, PRESETS, VARIANTS
from given_tower import batch_of
from sets import tiny
from stmi_layers import similarity_incidence
from stmi_layers.training import Facts

FACTS = Facts(("RGB", "NI"), (16, 16), 5, cameras=(1, 2))
SMALL = {"captions": "off", "num_heads": 2, "num_tokens": 3}


def run_of(tmp_path: Any, **changes: Any) -> Run:
    return tiny(tmp_path, "examples.token_study", **SMALL).changed(changes)


def model_of(tmp_path: Any, **changes: Any) -> StudiedSTMI:
    torch.manual_seed(0)
    return run_of(tmp_path, **changes).build(FACTS)


def tokens_of(model: StudiedSTMI, patches: Tensor) -> Tensor:
    return model.eval().semantic_tokens(patches, None)


def own_share(tokens: Tensor) -> float:
    """Share of the squared norm that tokens of one modality do not have in common."""
    return ((tokens - tokens.mean(2, keepdim=True)).square().sum() / tokens.square().sum()).item()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_and_shows_what_a_table_needs(name, tmp_path):
    run = run_of(tmp_path, **VARIANTS[name])
    model = run.build(FACTS)
    groups = model.parameter_groups()
    assert run.schedule.rates.keys() <= groups.keys()
    assert {id(one) for one in model.parameters()} == {id(one) for group in groups.values() for one in group}
    outputs = model.train()(batch_of(6, 2))
    assert set(outputs.terms) == ({"diversity"} if name.startswith("diverse") else set())
    sum(feature.square().sum() for feature in (*outputs.features.values(), *outputs.terms.values())).backward()
    unused = [key for key, value in model.named_parameters() if value.grad is None]
    assert unused == []
    assert model.eval()(batch_of(6, 2)).terms == {}
    result = {"watch": model.watch(), "headline": "G", "descriptors": {"G": {"mAP": 0.5}, "U": {"mAP": 0.5}}}
    for column in PRESETS["cures"].columns:
        if model.reallocations is not None and (model.interaction is not None or column != "edge size"):
            assert math.isfinite(column_of(column, COLUMNS).value(result)), column


def test_without_changes_it_is_stmi(tmp_path):
    model, usual = model_of(tmp_path), tiny(tmp_path, **SMALL).build(FACTS)
    usual.load_state_dict({name: value for name, value in model.state_dict().items() if "median" not in name})
    batch = batch_of(4, 2)
    for name, feature in usual.eval()(batch).features.items():
        assert torch.equal(model.eval()(batch).features[name], feature)


def test_presets_name_variants_with_folders_of_their_own(tmp_path):
    options = compare.Options(tmp_path, preset="cures")
    folders = {compare.variant_run(run_of(tmp_path), options, name, 0)[1] for name in VARIANTS}
    assert len(folders) == len(VARIANTS)
    assert load_method("examples.token_study").default == load_method("stmi").default


def test_queries_left_out_of_a_token_only_choose_what_is_read(tmp_path):
    patches = torch.randn(2, 2, 1, 16).expand(-1, -1, 16, -1)  # equal patches: no choice
    shares = {}
    for kind in ("added", "normed", "left out"):
        tokens = tokens_of(model_of(tmp_path, query_in_token=kind), patches)
        shares[kind] = own_share(tokens)
    assert shares["left out"] == pytest.approx(0, abs=1e-10)
    assert min(shares["added"], shares["normed"]) > 0.05
    assert own_share(tokens_of(model_of(tmp_path, query_scale=1e-6), patches)) < 1e-6


def test_normed_patches_and_edges_do_not_see_what_all_images_share(tmp_path):
    patches = torch.randn(6, 2, 16, 16)
    model = model_of(tmp_path, patch_norm=True).train()
    moved = [model.semantic_tokens(patches + shift, None) for shift in (0, 50)]
    torch.testing.assert_close(*moved, atol=1e-3, rtol=1e-3)
    chi = model_of(tmp_path, edges_by="normed").interaction.train()
    tokens = torch.randn(6, 2, 3, 16)
    shifted = tokens + 50 * torch.randn(2, 3, 16)  # the queries
    assert torch.equal(chi.incidence(tokens), chi.incidence(shifted))
    assert chi.incidence(tokens).sum() < similarity_incidence((tokens + 50).flatten(1, 2), 0.5).sum()


def test_the_median_joins_half_of_all_pairs(tmp_path):
    chi = model_of(tmp_path, median_threshold=True).interaction.train()
    tokens = torch.randn(40, 2, 3, 16)
    joined = (chi.incidence(tokens).sum().item() - 40 * 6) / (40 * 30)
    assert joined == pytest.approx(0.5, abs=0.01)
    assert chi.eval().incidence(tokens + 50).all()  # by the threshold of the batch before
    assert chi.median == median_cosine(tokens.flatten(1, 2))
    with pytest.raises(ValueError, match="median_threshold needs all modalities"):
        chi.incidence(tokens, torch.ones(40, 2, dtype=torch.bool))


def test_the_term_of_diversity_is_the_mean_squared_cosine():
    tokens = torch.tensor([[[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]]])
    assert shared_direction(tokens) == pytest.approx(1 / 3)  # one of three pairs


def test_the_residual_scale_starts_small_and_normed_features_have_no_mean(tmp_path):
    model = model_of(tmp_path, residual_scale=0.1, feature_norm=True)
    scales = [module for module in model.modules() if isinstance(module, Scaled)]
    assert [scale.scale.unique().item() for scale in scales] == pytest.approx([0.1, 0.1])
    for feature in model.train()(batch_of(6, 2)).features.values():
        torch.testing.assert_close(feature.mean(0), torch.zeros(32), atol=1e-5, rtol=0)
