"""Typed PyTorch layers for multi-modal object re-identification: the STMI system as composable parts."""

from stmi_layers.adapters import AsymmetricAdapter as AsymmetricAdapter
from stmi_layers.adapters import ParallelAdapter as ParallelAdapter
from stmi_layers.adapters import ResidualPrompts as ResidualPrompts
from stmi_layers.attention import SegmentationModulatedAttention as SegmentationModulatedAttention
from stmi_layers.attention import modulate_logits as modulate_logits
from stmi_layers.attention import modulated_attention as modulated_attention
from stmi_layers.deformable_readout import DeformableReadout as DeformableReadout
from stmi_layers.deformable_readout import sampled_cross_attention as sampled_cross_attention
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
from stmi_layers.mask_losses import mask_coupling_loss as mask_coupling_loss
from stmi_layers.mask_losses import mask_loss as mask_loss
from stmi_layers.metrics import ReIDMetrics as ReIDMetrics
from stmi_layers.metrics import rank_gallery as rank_gallery
from stmi_layers.metrics import reid_metrics as reid_metrics
from stmi_layers.multiscale import SegmentationGuidedPooling as SegmentationGuidedPooling
from stmi_layers.multiscale import mask_pooled_cells as mask_pooled_cells
from stmi_layers.reallocation import SemanticTokenReallocation as SemanticTokenReallocation
from stmi_layers.reallocation import absorbed_cross_attention as absorbed_cross_attention
from stmi_layers.reranking import k_reciprocal_rerank as k_reciprocal_rerank
from stmi_layers.reranking import reranked_metrics as reranked_metrics
from stmi_layers.text_alignment import ImageTextAlignment as ImageTextAlignment
from stmi_layers.text_alignment import TokenIdentityLoss as TokenIdentityLoss
from stmi_layers.text_alignment import image_text_alignment_loss as image_text_alignment_loss
from stmi_layers.text_alignment import token_identity_loss as token_identity_loss
from stmi_layers.text_inversion import CaptionPrompts as CaptionPrompts
from stmi_layers.text_inversion import TextInversion as TextInversion
from stmi_layers.text_inversion import prompted_text_feature as prompted_text_feature

__version__ = "0.1.0"
