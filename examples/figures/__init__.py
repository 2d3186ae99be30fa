"""Pictures of a run: how it learned, what it retrieves, and what the model looks at."""

from examples.figures.curves import curves as curves
from examples.figures.retrieval import ranked_lists as ranked_lists
from examples.figures.style import save as save
