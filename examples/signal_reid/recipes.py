"""Recipes of Signal: defaults from scratch, the three benchmarks, and the same with the choices of its research code.

Values are marked "research code" even if the paper may give them too, because we could read only the code in full.
"""

from examples.recipe import Recipe, ours, research_code

# Defaults of a run without recipe: a small tower from scratch on a small set.
DEFAULT: Recipe = {
    "masks": ours("none", "the method has no use for them; with masks, SFM steers its tower"),
    "rates.backbone": ours(2e-3, "a tower from scratch learns as fast as the rest"),
    "rates.strengths": ours(1e-2, "two numbers per block, which need larger steps"),
    "no_decay": ours(("strengths", "temperature"), "a decay would pull both to values that mean nothing"),
    "term_weights.GAM": research_code(0.2, "that of RGBNT201"),
    "term_weights.LAM": research_code(0.2, "that of RGBNT201"),
}

PIXELS = 10 / (256 * 128) ** 0.5

# Differences that no setting covers: the code gives biases twice the rate, and flips and crops each modality alone.
MODEL: Recipe = {
    # Inputs.
    "modalities": research_code(("RGB", "NI", "TI"), "the three of every benchmark"),
    "masks": research_code("none", "the method has no use for them"),
    "captions": research_code("off", "the method reads no captions"),
    # The tower.
    "backbone": research_code("open_clip", "the image tower of CLIP, shared by the modalities and trained"),
    "architecture": research_code("ViT-B-16-quickgelu", "OpenAI's ViT-B/16"),
    "projected": research_code(True, "the projection on all tokens, 512 wide"),
    "modulated_blocks": research_code("none", "plain attention"),
    "camera_embedding": research_code(True, "added to the class token"),
    # SIM.
    "interaction": research_code(True, "selection and interaction"),
    "num_heads": research_code(8, "64 of the 512 per head"),
    "learned_selection": ours(True, "in the code the selection across modalities stays random"),
    "unselected": ours("hidden", "zero vectors would take a share of the attention"),
    # GAM and LAM.
    "anchor": ours("every", "the paper calls GAM free of anchors; the anchor of the code is the first modality"),
    "negatives": ours("others", "in the code images of one identity are negatives of each other"),
    "window": research_code(4, "kernel and stride"),
    "points": ours("inside", "in the code part of the map is out of reach, and the outer positions never move"),
    "offset_channels": ours(2, "in the code a position moves along a diagonal"),
    # Losses.
    "identity_weight": research_code(0.25, "against 1 of the triplet loss, with soft margin"),
    "smoothing": research_code(0.1, "of the labels"),
    # Augmentation.
    "flip": research_code(0.5, "the code flips each modality on its own, we flip all alike"),
    "padding": research_code(PIXELS, "10 pixels"),
    "erasing": research_code(0.5, "for every modality on its own"),
    # Optimisation.
    "optimizer": research_code("adam", "with the usual moments"),
    "rates.backbone": research_code(5e-6, "the whole tower; in the warm-up our rate rises, that of the code falls"),
    "rates.temperature": ours(3.5e-4, "that of new modules"),
    "rates.strengths": ours(1e-3, "only for runs with masks: without SFM there are no strengths"),
    "weight_decay": research_code(1e-4, "of weights and biases alike"),
    "no_decay": ours(("strengths", "temperature"), "a decay would pull both to values that mean nothing"),
    "clip_norm": research_code(None, "no clipping"),
    # Settings of the run that hardly change its result.
    "seed": ours(0, "the code has 1234"),
    "amp": ours(True, "bfloat16 on a GPU, where the code has float16"),
    "workers": ours(4, "a GPU waits for decoding otherwise; the result is the same"),
    "evaluate_every": ours(10, "for the curve; the result is that of the last epoch"),
}

# Persons, 171 identities and 3951 triplets for training, four cameras. 8 x 8 = 64 triplets a batch.
RGBNT201: Recipe = {
    **MODEL,
    "image_size": research_code((256, 128), "height and width"),
    "supervision": research_code("joined", "the class tokens of all modalities as one feature"),
    "keep": research_code(80 / 128, "80 of 128 patches"),
    "term_weights.GAM": research_code(0.2, "of RGBNT201"),
    "term_weights.LAM": research_code(0.2, "of RGBNT201"),
    "identities_per_batch": research_code(8, "64 triplets a batch"),
    "images_per_identity": research_code(8, "64 triplets a batch"),
    "learning_rate": research_code(3.5e-4, "of new modules"),
    "epochs": research_code(50, "passes"),
    "warmup_epochs": research_code(10.0, "from a tenth of the rate, here from 0"),
}

# Vehicles, 50 identities and 8675 triplets for training, eight cameras. 8 x 16 = 128 triplets a batch.
RGBNT100: Recipe = {
    **MODEL,
    "image_size": research_code((128, 256), "height and width"),
    "supervision": research_code("single", "a feature per modality"),
    "keep": research_code(112 / 128, "112 of 128 patches"),
    "term_weights.GAM": research_code(0.1, "of RGBNT100"),
    "term_weights.LAM": research_code(0.1, "of RGBNT100"),
    "identities_per_batch": research_code(8, "128 triplets a batch"),
    "images_per_identity": research_code(16, "128 triplets a batch"),
    "learning_rate": research_code(7e-4, "of new modules"),
    "epochs": research_code(30, "passes"),
    "warmup_epochs": research_code(5.0, "from a tenth of the rate, here from 0"),
}

# Vehicles, 155 identities and 1032 triplets for training, 30 scenes; a match is of another scene.
# 16 x 4 = 64 triplets a batch.
MSVR310: Recipe = {
    **MODEL,
    "image_size": research_code((128, 256), "height and width"),
    "supervision": research_code("single", "a feature per modality"),
    "keep": research_code(64 / 128, "64 of 128 patches"),
    "term_weights.GAM": research_code(0.2, "of MSVR310"),
    "term_weights.LAM": research_code(0.01, "of MSVR310"),
    "identities_per_batch": research_code(16, "64 triplets a batch"),
    "images_per_identity": research_code(4, "64 triplets a batch"),
    "learning_rate": ours(3.5e-4, "at the 5e-6 of the code SIM and LAM stay where they start"),
    "epochs": research_code(50, "passes"),
    "warmup_epochs": research_code(0.0, "none; the rate of the code falls to a tenth at epochs 20 and 40"),
}

# Choices of the code that our recipes change, on every benchmark.
READINGS: Recipe = {
    "learned_selection": research_code(False, "its scores have no gradient"),
    "unselected": research_code("zeroed", "zero vectors stay in the attention"),
    "anchor": research_code("first", "RGB"),
    "negatives": research_code("all", "other samples, whatever their identity"),
    "points": research_code("released", "positions beyond the map are cut off"),
    "offset_channels": research_code(1, "row and column move alike"),
}

RECIPES: dict[str, Recipe] = {
    "rgbnt201": RGBNT201,
    "rgbnt100": RGBNT100,
    "msvr310": MSVR310,
    "rgbnt201-research-code": RGBNT201 | READINGS,
    "rgbnt100-research-code": RGBNT100 | READINGS,
    "msvr310-research-code": MSVR310 | READINGS | {"learning_rate": research_code(5e-6, "of all but the classifiers")},
}
