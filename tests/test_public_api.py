"""The names and signatures people build on, and what importing them costs."""

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stmi_layers

ITEMS = {
    name: item for name, item in vars(stmi_layers).items() if not name.startswith("_") and not inspect.ismodule(item)
}

# Whatever changes here changes other people's code: it belongs into CHANGELOG.md.
SIGNATURES = {
    "AsymmetricAdapter": "(in_dim, dim, *, hidden=None, device=None, dtype=None)",
    "AsymmetricAdapter.forward": "(features)",
    "CaptionPrompts": "(num_prompts, dim, *, first=5, std=0.02, device=None, dtype=None)",
    "CaptionPrompts.forward": "(embeddings)",
    "CentreAlignment": (
        "(dim, num_identities, num_modalities, *, rate=0.8, start='mean', device=None, dtype=None)"
    ),
    "CentreAlignment": ("(dim, num_identities, num_modalities, *, rate=0.8, start='mean', device=None, dtype=None)"),
    "CentreAlignment.forward": "(features, labels, present=None)",
    "CrossModalHypergraph": (
        "(dim, num_nodes, *, num_layers=1, threshold=0.5, similarity='cosine', normalization='row', "
        "device=None, dtype=None)"
    ),
    "CrossModalHypergraph.forward": "(tokens, present=None)",
    "CrossModalHypergraph.incidence": "(tokens, present=None)",
    "ExpertReadout": "(dim, *, num_heads=8, norm=False, device=None, dtype=None)",
    "ExpertReadout.forward": "(globals, tokens, present=None)",
    "GatedExperts": "(dim, num_features, *, num_heads=4, device=None, dtype=None)",
    "GatedExperts.forward": "(features, present=None)",
    "GatedExperts.gates": "(features, present=None)",
    "DeformableReadout": (
        "(dim, num_modalities, grid, *, max_offset=(4.0, 4.0), kernel=4, stride=2, offsets='shared', "
        "reference='centred', num_heads=1, device=None, dtype=None)"
    ),
    "DeformableReadout.forward": "(queries, patches, present=None, query_present=None)",
    "DeformableReadout.positions": "(patches, present=None)",
    "CrossModalReconstruction": (
        "(dim, num_modalities, *, num_heads=8, depth=1, mlp_ratio=4.0, device=None, dtype=None)"
    ),
    "CrossModalReconstruction.forward": "(tokens, present=None)",
    "CrossModalReconstruction.loss": "(tokens, present=None, *, detach_targets=False)",
    "CrossModalReconstruction.translate": "(tokens, source, target)",
    "GlobalCrossAttention": "(dim, *, num_heads=8, dropout=0.0, device=None, dtype=None)",
    "GlobalCrossAttention.forward": "(globals, tokens, keep=None)",
    "GlobalPatchReduction": "(dim, num_modalities, *, norm=True, activation='quick_gelu', device=None, dtype=None)",
    "GlobalPatchReduction.forward": "(globals, patches, keep=None, present=None)",
    "DeformableSampling": (
        "(dim, *, kernel_size=4, stride=4, offset_range=2.0, offset_channels=2, points='inside', device=None,"
        " dtype=None)"
    ),
    "DeformableSampling.forward": "(tokens)",
    "DeformableSampling.positions": "(tokens)",
    "GlobalCrossAttention": "(dim, *, num_heads=8, dropout=0.0, device=None, dtype=None)",
    "GlobalCrossAttention.forward": "(globals, tokens, keep=None)",
    "GramAlignment": (
        "(temperature=0.07, *, anchor=None, smoothing=0.1, equalise=True, min_temperature=0.01, "
        "learn_temperature=True, device=None, dtype=None)"
    ),
    "GramAlignment.forward": "(patches, present=None, labels=None)",
    "HypergraphConv": (
        "(in_dim, out_dim, *, num_edges=None, num_nodes=None, normalization='row', activation=silu, "
        "device=None, dtype=None)"
    ),
    "HypergraphConv.forward": "(nodes, incidence)",
    "IdentityHead": "(dim, num_identities, *, device=None, dtype=None)",
    "IdentityHead.forward": "(features)",
    "ImageTextAlignment": "(temperature=0.07, *, device=None, dtype=None)",
    "ImageTextAlignment.forward": "(image, text, labels=None, present=None)",
    "LocalAlignment": (
        "(dim, num_modalities, grid, *, kernel_size=4, stride=4, offset_range=2.0, offset_channels=2, "
        "points='inside', device=None, dtype=None)"
    ),
    "LocalAlignment.forward": "(patches, present=None)",
    "MaskPerturbation": "(p)",
    "MaskPerturbation.forward": "(foreground)",
    "ParallelAdapter": ("(dim, *, hidden=None, activation='quick_gelu', zero_init=True, device=None, dtype=None)"),
    "ParallelAdapter.forward": "(tokens)",
    "MaskedAggregation": (
        "(dim, num_modalities, *, num_heads=8, mlp_ratio=4.0, max_kept=None, device=None, dtype=None)"
    ),
    "MaskedAggregation.across": "(tokens, keep, present=None)",
    "MaskedAggregation.forward": "(tokens, keep, present=None)",
    "MaskedAggregation.within": "(tokens, keep, present=None)",
    "ReIDLoss": (
        "(dim, num_identities, *, smoothing=0.1, margin=None, identity_weight=1.0, triplet_weight=1.0, "
        "device=None, dtype=None)"
    ),
    "ReIDLoss.forward": "(features, labels)",
    "ReIDMetrics": "(mAP, cmc, mINP, average_precision, num_queries, num_skipped)",
    "ResidualPrompts": (
        "(dim, num_modalities, *, num_prompts=4, hidden=None, carries=True, std=0.02, device=None, dtype=None)"
    ),
    "ResidualPrompts.forward": "(carried=None)",
    "SegmentationGuidedPooling": ("(dim, grid, *, scales=(1, 2, 4), num_heads=8, beta=0.1, device=None, dtype=None)"),
    "SegmentationGuidedPooling.forward": "(queries, patches, mask=None, present=None)",
    "SegmentationModulatedAttention": (
        "(dim, num_heads, *, qkv_bias=True, alpha=0.1, beta=0.1, per_head=False, perturbation=0.0, "
        "implementation='auto', device=None, dtype=None)"
    ),
    "SegmentationModulatedAttention.forward": "(tokens, foreground)",
    "SelectiveInteraction": "(dim, *, num_heads=8, mlp_ratio=2.0, unselected='hidden', device=None, dtype=None)",
    "SelectiveInteraction.forward": "(class_tokens, patches, gates=None, present=None)",
    "SemanticTokenReallocation": ("(dim, num_tokens=4, *, num_heads=8, mlp_ratio=4.0, device=None, dtype=None)"),
    "SemanticTokenReallocation.attention": "(patches, prior=None)",
    "SemanticTokenReallocation.forward": "(patches, prior=None)",
    "SharedExperts": "(dim, num_experts=4, *, mlp_ratio=4.0, dropout=0.1, device=None, dtype=None)",
    "SharedExperts.forward": "(patches, present=None)",
    "SharedExperts.gates": "(patches, present=None)",
    "SubsetReadout": (
        "(dim, num_modalities, *, num_heads=8, dropout=0.0, subsets='all', incomplete='read', device=None, dtype=None)"
    ),
    "SubsetReadout.attention": "(tokens, present=None)",
    "SubsetReadout.forward": "(tokens, present=None)",
    "TextModulatedExperts": (
        "(dim, num_modalities, num_experts=4, *, mlp_ratio=4.0, dropout=0.1, text_dim=None, device=None, dtype=None)"
    ),
    "TextModulatedExperts.forward": "(patches, text=None, present=None, has_text=None)",
    "TextModulatedExperts.modulation": "(patches, text=None, present=None, has_text=None)",
    "TextInversion": "(text_dim, dim, *, hidden=None, dropout=0.1, device=None, dtype=None)",
    "TextInversion.forward": "(text, has_text=None)",
    "TokenIdentityLoss": "(temperature=0.07, *, coupling=1.0)",
    "TokenIdentityLoss.forward": "(query_tokens, target_tokens, labels, patches, mask, present=None)",
    "TokenPermutation": "(dim, num_modalities, *, num_heads=8, mlp_ratio=4.0, device=None, dtype=None)",
    "TokenPermutation.forward": "(globals, patches, present=None)",
    "TokenSelection": "(dim, keep, *, straight_through=True, device=None, dtype=None)",
    "TokenSelection.forward": "(patches, class_tokens, present=None)",
    "absorbed_cross_attention": (
        "(query, context, in_proj_weight, in_proj_bias, out_weight, out_bias, num_heads, *, keep=None)"
    ),
    "attention_rollout": "(*maps, prefix_tokens=1)",
    "background_consistency": "(patches, keep, present=None)",
    "batch_hard_triplet": "(features, labels, *, margin=None)",
    "draw_sentences": "(sentences, num_experts, *, p=0.5, generator=None)",
    "feature_gates": "(query, features, query_weight, key_weight, num_heads, *, present=None)",
    "head_experts": "(features, weight, bias)",
    "centre_alignment": "(features, labels, centres, present=None)",
    "cyclic_readout": "(queries, patches, query_weight, key_weight, value_weight, num_heads, *, shift=1)",
    "deformable_positions": "(offsets, reference, grid, *, reach=None)",
    "gram_alignment_loss": (
        "(features, temperature, *, anchor=None, present=None, labels=None, smoothing=0.1, equalise=True)"
    ),
    "gram_volume": "(features, *, anchor=0, present=None)",
    "hypergraph_conv": "(nodes, incidence, edge_weight=None, *, normalization='row')",
    "image_text_alignment_loss": "(image, text, labels=None, *, temperature=0.07, present=None)",
    "incidence_statistics": "(incidence, num_modalities)",
    "join_patch_mean": "(globals, patches, *, keep=None, present=None)",
    "k_reciprocal_rerank": "(query, gallery, *, k1=20, k2=6, weight=0.3, metric='euclidean', chunk_size=64)",
    "modality_subsets": "(num_modalities, subsets='all')",
    "mask_coupling_loss": "(tokens, patches, mask, *, present=None)",
    "mask_loss": "(logits, mask, *, bce_weight=2.0, dice_weight=0.5, smoothing=1.0, present=None)",
    "mask_pooled_cells": "(patches, mask, grid, scale)",
    "masked_self_attention": "(tokens, keep, in_proj_weight, out_weight, num_heads)",
    "local_alignment_loss": "(samples, present=None)",
    "modulate_logits": "(logits, foreground, alpha, beta)",
    "modulated_attention": "(query, key, value, foreground, alpha, beta, *, scale=None, implementation='auto')",
    "move_centres": "(centres, seen, features, labels, *, rate=0.8, present=None)",
    "perturb_background": "(foreground, p, *, generator=None)",
    "prompted_text_feature": "(tokens, ids, num_prompts, *, first=5)",
    "rank_gallery": (
        "(query, gallery, query_ids, gallery_ids, *, k=10, query_groups=None, gallery_groups=None, "
        "metric='euclidean', chunk_size=64)"
    ),
    "reconstruction_loss": "(reconstructed, targets, counted=None)",
    "reference_positions": "(grid, points, *, kernel_size=4, stride=4, released=False, device=None)",
    "reid_metrics": (
        "(query, gallery, query_ids, gallery_ids, *, query_groups=None, gallery_groups=None, ranks=(1, "
        "5, 10), metric='euclidean', chunk_size=256)"
    ),
    "reranked_metrics": (
        "(query, gallery, query_ids, gallery_ids, *, query_groups=None, gallery_groups=None, ranks=(1, "
        "5, 10), k1=20, k2=6, weight=0.3, metric='euclidean', chunk_size=64)"
    ),
    "sampled_cross_attention": (
        "(queries, patches, positions, grid, in_proj_weight, in_proj_bias, out_weight, out_bias, *, num_heads=1, "
        "present=None)"
    ),
    "select_tokens": "(scores, num, present=None)",
    "sample_tokens": "(tokens, positions)",
    "select_across": "(scores, num, *, present=None)",
    "similarity_incidence": "(nodes, threshold, *, similarity='cosine', present=None)",
    "subset_attention": "(tokens, rows, subsets, *, present=None)",
    "subset_presence": "(present, subsets, *, incomplete='read')",
    "text_similarity": "(patches, text)",
    "token_foreground": "(mask, grid, *, threshold=0.5, prefix_tokens=1)",
    "token_gates": "(tokens, weight, bias)",
    "token_identity_loss": (
        "(query_tokens, target_tokens, query_labels, target_labels, *, temperature=0.07, present=None)"
    ),
    "top_tokens": "(scores, num)",
}


def bare_signature(function) -> str:
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    text = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return re.sub(r"<function (\w+) at 0x\w+>", r"\1", text)


def public_signatures() -> dict[str, str]:
    """Constructors, functions, and methods other than those that every layer has."""
    signatures = {}
    for name, item in ITEMS.items():
        signatures[name] = bare_signature(item)
        for method in vars(item) if inspect.isclass(item) else ():
            if inspect.isfunction(vars(item)[method]) and not method.startswith("_"):
                signatures[f"{name}.{method}"] = bare_signature(vars(item)[method])
    return {name: text for name, text in signatures.items() if not name.endswith((".reset_parameters", ".extra_repr"))}


def test_names_and_signatures():
    assert public_signatures() == SIGNATURES


def test_package_is_marked_as_typed():
    assert Path(stmi_layers.__file__).with_name("py.typed").is_file()


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", stmi_layers.__version__)


@pytest.mark.parametrize("name", ITEMS)
def test_docstring_shows_an_example(name):
    item = ITEMS[name]
    assert item.__doc__
    assert ">>> " in item.__doc__ or dataclasses.is_dataclass(item)


def test_import_loads_the_four_dependencies_and_nothing_else():
    program = """
import sys
import beartype, einops, jaxtyping, torch
before = {name.partition(".")[0] for name in sys.modules}
assert not before & {"torchvision", "open_clip", "timm", "transformers", "matplotlib", "scipy", "sklearn", "PIL"}
import stmi_layers
added = {name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)
assert added == {"stmi_layers"}, added
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("path", sorted(Path(stmi_layers.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
