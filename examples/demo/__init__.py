"""DeMo: descriptors of all subsets of the modalities, weighted by a gated mixture of experts.

Layers: `GlobalPatchReduction` (PIFE), `SubsetReadout` (HDM) and `GatedExperts` (ATMoE).
Paper: "DeMo: Decoupled Feature-Based Mixture of Experts for Multi-Modal Object Re-Identification", AAAI 2025,
<https://arxiv.org/abs/2412.10650>.
"""
