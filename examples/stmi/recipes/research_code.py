"""What the code of the paper's authors does otherwise than the recipes, for those who compare with it.

Only its settings, as far as this trainer has them. What no setting here does: it starts alpha and beta at random, flips
each modality on its own and leaves the mask where it was, lets its learning rate fall in the warm-up too, learns no
weight per hyperedge and no bias per node (here they start at one and zero), and normalises the groups of a sum that has
the residual in it.
"""

from examples.stmi.recipes.model import IMPLEMENTATION
from examples.stmi.recipes.value import Recipe, paper, research_code

RESEARCH_CODE: Recipe = {
    "similarity": research_code("euclidean", "of tokens as they are"),
    "threshold": research_code(5.0, "nothing is that close at the start: the hypergraph is the identity then"),
    "text_projection": research_code(False, "T is the feature of the frozen tower"),
    "identity_weight": research_code(0.25, "against 1 of the triplet loss, with soft margin"),
    "learning_rate": paper(3.5e-6, f"one rate for all learnable parameters; {IMPLEMENTATION}"),
    "strength_learning_rate": paper(3.5e-6, f"one rate for all learnable parameters; {IMPLEMENTATION}"),
    "warmup_epochs": research_code(0.0, "its rate does not rise"),
}

# It retrieves vehicles with G and T, and without U.
RESEARCH_CODE_VEHICLES: Recipe = {**RESEARCH_CODE, "descriptor": research_code("G+T", "without U, on vehicles alone")}
