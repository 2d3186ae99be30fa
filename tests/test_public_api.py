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
    "GlobalCrossAttention": "(dim, *, num_heads=8, norm=True, dropout=0.0, device=None, dtype=None)",
    "GlobalCrossAttention.forward": "(globals, tokens, keep=None)",
    "GlobalPatchReduction": "(dim, num_modalities, *, norm=True, activation='quick_gelu', device=None, dtype=None)",
    "GlobalPatchReduction.forward": "(globals, patches, keep=None, present=None)",
    "HypergraphConv": (
        "(in_dim, out_dim, *, num_edges=None, num_nodes=None, normalization='row', activation=silu, "
        "device=None, dtype=None)"
    ),
    "HypergraphConv.forward": "(nodes, incidence)",
    "IdentityHead": "(dim, num_identities, *, device=None, dtype=None)",
    "IdentityHead.forward": "(features)",
    "MaskPerturbation": "(p)",
    "MaskPerturbation.forward": "(foreground)",
    "ReIDLoss": (
        "(dim, num_identities, *, smoothing=0.1, margin=None, identity_weight=1.0, triplet_weight=1.0, "
        "device=None, dtype=None)"
    ),
    "ReIDLoss.forward": "(features, labels)",
    "ReIDMetrics": "(mAP, cmc, mINP, average_precision, num_queries, num_skipped)",
    "SegmentationModulatedAttention": (
        "(dim, num_heads, *, qkv_bias=True, alpha=0.1, beta=0.1, per_head=False, perturbation=0.0, "
        "implementation='auto', device=None, dtype=None)"
    ),
    "SegmentationModulatedAttention.forward": "(tokens, foreground)",
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
    "absorbed_cross_attention": (
        "(query, context, in_proj_weight, in_proj_bias, out_weight, out_bias, num_heads, *, keep=None)"
    ),
    "batch_hard_triplet": "(features, labels, *, margin=None)",
    "draw_sentences": "(sentences, num_experts, *, p=0.5, generator=None)",
    "feature_gates": "(query, features, query_weight, key_weight, num_heads, *, present=None)",
    "head_experts": "(features, weight, bias)",
    "hypergraph_conv": "(nodes, incidence, edge_weight=None, *, normalization='row')",
    "incidence_statistics": "(incidence, num_modalities)",
    "join_patch_mean": "(globals, patches, *, keep=None, present=None)",
    "modality_subsets": "(num_modalities, subsets='all')",
    "k_reciprocal_rerank": (
        "(query, gallery, *, k1=20, k2=6, weight=0.3, metric='euclidean', reading='paper', chunk_size=64)"
    ),
    "modulate_logits": "(logits, foreground, alpha, beta)",
    "modulated_attention": "(query, key, value, foreground, alpha, beta, *, scale=None, implementation='auto')",
    "nearest": "(query, gallery, k=10, *, metric='euclidean', chunk_size=64)",
    "perturb_background": "(foreground, p, *, generator=None)",
    "rank_gallery": (
        "(query, gallery, query_ids, gallery_ids, *, k=10, query_groups=None, gallery_groups=None, "
        "metric='euclidean', chunk_size=64)"
    ),
    "reid_metrics": (
        "(query, gallery, query_ids, gallery_ids, *, query_groups=None, gallery_groups=None, ranks=(1, "
        "5, 10), metric='euclidean', chunk_size=256)"
    ),
    "reranked_metrics": (
        "(query, gallery, query_ids, gallery_ids, *, query_groups=None, gallery_groups=None, ranks=(1, "
        "5, 10), k1=20, k2=6, weight=0.3, metric='euclidean', reading='paper', chunk_size=64)"
    ),
    "similarity_incidence": "(nodes, threshold, *, similarity='cosine', present=None)",
    "subset_attention": "(tokens, rows, subsets, *, present=None)",
    "subset_presence": "(present, subsets, *, incomplete='read')",
    "text_similarity": "(patches, text)",
    "token_foreground": "(mask, grid, *, threshold=0.5, prefix_tokens=1)",
    "token_gates": "(tokens, weight, bias)",
    "typed": "(function)",
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
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250
