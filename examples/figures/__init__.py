"""The pictures of a run: how it learned, what it retrieves, and what the model looks at."""

from examples.figures.run import curves as curves
from examples.figures.run import retrieval as retrieval
from examples.figures.style import save as save
