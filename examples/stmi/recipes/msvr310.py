"""MSVR310: vehicles, 155 identities and 1032 triplets for training, 30 scenes; a match is of another scene."""

from examples.stmi.recipes.model import IMPLEMENTATION, MODEL
from examples.stmi.recipes.value import Recipe, ours, paper, research_code

MSVR310: Recipe = {
    **MODEL,
    "image_size": paper((128, 256), f"height and width; {IMPLEMENTATION}"),
    "perturbation": research_code(0.015, "the paper says a little helps, Figure 5"),
    # 8 x 8 = 64 triplets, 20 steps an epoch, so that every identity comes once.
    "identities_per_batch": paper(8, f"64 triplets a batch; {IMPLEMENTATION}"),
    "images_per_identity": paper(8, IMPLEMENTATION),
    "epochs": research_code(20, "the paper gives none"),
    "warmup_epochs": ours(2.0, "a tenth of the epochs: new modules first meet pretrained tokens gently"),
}
