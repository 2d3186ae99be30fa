"""Figures of a run: learning curves, retrieval results, feature maps and attention maps."""

from examples.figures.curves import curves as curves
from examples.figures.retrieval import ranked_lists as ranked_lists
from examples.figures.style import save as save
