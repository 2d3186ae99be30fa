"""NEXT: experts for what a caption says and experts for what the modalities share, read by the class tokens.

Layers: `TextModulatedExperts` (TMSE), `SharedExperts` (CSSE) and `ExpertReadout` (MGFA), with `draw_sentences` for the
captions. The published text leaves sizes and normalisations open: the layers are one reading of the text.
Paper: arXiv 2505.20001, <https://arxiv.org/abs/2505.20001>.
"""
