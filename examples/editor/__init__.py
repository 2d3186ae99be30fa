"""EDITOR: selection by attention rollout, masked aggregation, moving centres, background consistency (CVPR 2024)."""
