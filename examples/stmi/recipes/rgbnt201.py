"""RGBNT201: persons, 171 identities and 3951 triplets for training, four cameras."""

from examples.stmi.recipes.model import IMPLEMENTATION, MODEL
from examples.stmi.recipes.value import Recipe, ours, paper, research_code

RGBNT201: Recipe = {
    **MODEL,
    "image_size": paper((256, 128), f"height and width; {IMPLEMENTATION}"),
    "perturbation": research_code(0.01, "the paper says a little helps, Figure 5"),
    # 9 x 8 = 72 triplets, 55 steps an epoch.
    "identities_per_batch": paper(9, f"72 triplets a batch; {IMPLEMENTATION}"),
    "images_per_identity": paper(8, IMPLEMENTATION),
    "epochs": research_code(50, "the paper gives none"),
    "warmup_epochs": ours(5.0, "a tenth of the epochs: new modules first meet pretrained tokens gently"),
}
