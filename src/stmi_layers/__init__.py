"""Typed PyTorch layers for multi-modal object re-identification: the STMI system as composable parts."""

from stmi_layers._typing import typed as typed
from stmi_layers.attention import SegmentationModulatedAttention as SegmentationModulatedAttention
from stmi_layers.attention import modulate_logits as modulate_logits
from stmi_layers.attention import modulated_attention as modulated_attention
from stmi_layers.convolution import hypergraph_conv as hypergraph_conv
from stmi_layers.cross_attention import absorbed_cross_attention as absorbed_cross_attention
from stmi_layers.expert_readout import ExpertReadout as ExpertReadout
from stmi_layers.experts import GatedExperts as GatedExperts
from stmi_layers.experts import feature_gates as feature_gates
from stmi_layers.experts import head_experts as head_experts
from stmi_layers.foreground import MaskPerturbation as MaskPerturbation
from stmi_layers.foreground import perturb_background as perturb_background
from stmi_layers.foreground import token_foreground as token_foreground
from stmi_layers.fusion import GlobalCrossAttention as GlobalCrossAttention
from stmi_layers.hypergraph import CrossModalHypergraph as CrossModalHypergraph
from stmi_layers.hypergraph import HypergraphConv as HypergraphConv
from stmi_layers.incidence import incidence_statistics as incidence_statistics
from stmi_layers.incidence import similarity_incidence as similarity_incidence
from stmi_layers.losses import IdentityHead as IdentityHead
from stmi_layers.losses import ReIDLoss as ReIDLoss
from stmi_layers.losses import batch_hard_triplet as batch_hard_triplet
from stmi_layers.metrics import ReIDMetrics as ReIDMetrics
from stmi_layers.metrics import rank_gallery as rank_gallery
from stmi_layers.metrics import reid_metrics as reid_metrics
from stmi_layers.pooling import GlobalPatchReduction as GlobalPatchReduction
from stmi_layers.pooling import join_patch_mean as join_patch_mean
from stmi_layers.reallocation import SemanticTokenReallocation as SemanticTokenReallocation
from stmi_layers.reranking import k_reciprocal_rerank as k_reciprocal_rerank
from stmi_layers.reranking import reranked_metrics as reranked_metrics
from stmi_layers.search import nearest as nearest
from stmi_layers.sentences import draw_sentences as draw_sentences
from stmi_layers.shared_experts import SharedExperts as SharedExperts
from stmi_layers.shared_experts import token_gates as token_gates
from stmi_layers.subset_readout import SubsetReadout as SubsetReadout
from stmi_layers.subset_readout import modality_subsets as modality_subsets
from stmi_layers.subset_readout import subset_attention as subset_attention
from stmi_layers.subset_readout import subset_presence as subset_presence
from stmi_layers.text_experts import TextModulatedExperts as TextModulatedExperts
from stmi_layers.text_experts import text_similarity as text_similarity

__version__ = "0.1.0"
