"""Typed PyTorch layers for multi-modal object re-identification: the STMI system as composable parts."""

from stmi_layers.attention import SegmentationModulatedAttention as SegmentationModulatedAttention
from stmi_layers.attention import modulate_logits as modulate_logits
from stmi_layers.attention import modulated_attention as modulated_attention
from stmi_layers.centres import CentreAlignment as CentreAlignment
from stmi_layers.centres import centre_alignment as centre_alignment
from stmi_layers.centres import move_centres as move_centres
from stmi_layers.consistency import background_consistency as background_consistency
from stmi_layers.foreground import MaskPerturbation as MaskPerturbation
from stmi_layers.foreground import perturb_background as perturb_background
from stmi_layers.foreground import token_foreground as token_foreground
from stmi_layers.fusion import GlobalCrossAttention as GlobalCrossAttention
from stmi_layers.hypergraph import CrossModalHypergraph as CrossModalHypergraph
from stmi_layers.hypergraph import HypergraphConv as HypergraphConv
from stmi_layers.hypergraph import hypergraph_conv as hypergraph_conv
from stmi_layers.incidence import incidence_statistics as incidence_statistics
from stmi_layers.incidence import similarity_incidence as similarity_incidence
from stmi_layers.losses import IdentityHead as IdentityHead
from stmi_layers.losses import ReIDLoss as ReIDLoss
from stmi_layers.losses import batch_hard_triplet as batch_hard_triplet
from stmi_layers.masked_aggregation import MaskedAggregation as MaskedAggregation
from stmi_layers.masked_aggregation import masked_self_attention as masked_self_attention
from stmi_layers.metrics import ReIDMetrics as ReIDMetrics
from stmi_layers.metrics import rank_gallery as rank_gallery
from stmi_layers.metrics import reid_metrics as reid_metrics
from stmi_layers.reallocation import SemanticTokenReallocation as SemanticTokenReallocation
from stmi_layers.reallocation import absorbed_cross_attention as absorbed_cross_attention
from stmi_layers.reconstruction import CrossModalReconstruction as CrossModalReconstruction
from stmi_layers.reconstruction import reconstruction_loss as reconstruction_loss
from stmi_layers.reranking import k_reciprocal_rerank as k_reciprocal_rerank
from stmi_layers.reranking import reranked_metrics as reranked_metrics
from stmi_layers.rollout import attention_rollout as attention_rollout
from stmi_layers.rollout import select_tokens as select_tokens
from stmi_layers.token_permutation import TokenPermutation as TokenPermutation
from stmi_layers.token_permutation import cyclic_readout as cyclic_readout

__version__ = "0.1.0"
