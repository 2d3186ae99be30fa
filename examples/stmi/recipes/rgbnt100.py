"""RGBNT100: vehicles, 50 identities and 8675 triplets for training, eight cameras."""

from examples.stmi.recipes.model import IMPLEMENTATION, MODEL
from examples.stmi.recipes.value import Recipe, ours, paper, research_code

RGBNT100: Recipe = {
    **MODEL,
    "image_size": paper((128, 256), f"height and width; {IMPLEMENTATION}"),
    "perturbation": research_code(0.0, "the paper says a little helps, Figure 5"),
    # 8 x 16 = 128 triplets, 68 steps an epoch.
    "identities_per_batch": paper(8, f"128 triplets a batch; {IMPLEMENTATION}"),
    "images_per_identity": paper(16, IMPLEMENTATION),
    "epochs": research_code(20, "the paper gives none"),
    "warmup_epochs": ours(2.0, "a tenth of the epochs: new modules first meet pretrained tokens gently"),
}
