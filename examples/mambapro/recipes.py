"""Recipes of MambaPro: defaults for training from scratch, and the three benchmarks as in its research code.

Values are marked "research code" even if the paper may give them too, because we could read only the code in full. All
recipes are without the Mamba aggregation.
"""

from examples.recipe import Recipe, ours, research_code

# Defaults of a run without recipe: a small tower from scratch on a small set.
DEFAULT: Recipe = {
    "masks": ours("none", "the method has no use for them; with masks, SFM steers its tower"),
    "zero_init": ours(False, "a tower from scratch has nothing to keep"),
    "rates.backbone": ours(2e-3, "a tower from scratch learns as fast as the rest"),
    "rates.strengths": ours(1e-2, "two numbers per block, which need larger steps"),
    "no_decay": ours(("strengths",), "a decay would pull alpha and beta to plain attention"),
}

# Differences that no setting covers: the code starts all prompts at 0, and flips each modality on its own.
MODEL: Recipe = {
    # Inputs.
    "modalities": research_code(("RGB", "NI", "TI"), "the three of every benchmark"),
    "masks": research_code("none", "the method has no use for them"),
    "captions": research_code("off", "the method reads no captions"),
    # The tower.
    "backbone": research_code("open_clip", "the image tower of CLIP, shared by the modalities"),
    "architecture": research_code("ViT-B-16-quickgelu", "OpenAI's ViT-B/16"),
    "projected": research_code(True, "the projection on all tokens, 512 wide"),
    "modulated_blocks": research_code("none", "plain attention"),
    "camera_embedding": research_code(True, "added to the class token"),
    "freeze": research_code(True, "only added parameters of the tower are trained"),
    # PFA and SRP.
    "adapters": research_code(True, "PFA in every block"),
    "hidden": research_code(None, "twice the width"),
    "zero_init": ours(True, "the code disturbs the pretrained tower from the first step on"),
    "num_prompts": research_code(4, "SRP, per modality and block"),
    # The readout.
    "aggregation": ours("attention", "instead of Mamba"),
    "num_heads": ours(8, "64 of the 512 per head"),
    # Losses.
    "identity_weight": research_code(0.25, "against 1 of the triplet loss, with soft margin"),
    "smoothing": research_code(0.1, "of the labels"),
    # Augmentation.
    "flip": research_code(0.5, "the code flips each modality on its own, we flip all alike"),
    "padding": research_code(10 / (256 * 128) ** 0.5, "10 pixels"),
    "erasing": research_code(0.5, "for every modality on its own"),
    # Optimisation.
    "optimizer": research_code("adam", "with the usual moments"),
    "learning_rate": research_code(3.5e-4, "of all trainable parameters"),
    "rates.backbone": ours(5e-6, "only for runs with --no-freeze: the tower is frozen"),
    "rates.strengths": ours(1e-3, "only for runs with masks: without SFM there are no strengths"),
    "weight_decay": research_code(1e-4, "of weights and biases alike"),
    "no_decay": ours(("strengths",), "only for runs with masks: without SFM there are no strengths"),
    "warmup_epochs": research_code(10.0, "from a hundredth of the rate, here from 0"),
    "clip_norm": research_code(None, "no clipping"),
    # Settings of the run that hardly change its result.
    "seed": ours(0, "the code has 1111"),
    "amp": ours(True, "bfloat16 on a GPU, where the code has float16"),
    "workers": ours(4, "a GPU waits for decoding otherwise; the result is the same"),
    "evaluate_every": ours(10, "for the curve; the result is that of the last epoch"),
}

# Persons, 171 identities and 3951 triplets for training, four cameras. 16 x 4 = 64 triplets a batch.
RGBNT201: Recipe = {
    **MODEL,
    "image_size": research_code((256, 128), "height and width"),
    "supervision": research_code("joined", "the class tokens of all modalities as one feature"),
    "identities_per_batch": research_code(16, "64 triplets a batch"),
    "images_per_identity": research_code(4, "64 triplets a batch"),
    "epochs": research_code(60, "passes"),
}

# Vehicles, 50 identities and 8675 triplets for training, eight cameras. 8 x 16 = 128 triplets a batch.
RGBNT100: Recipe = {
    **MODEL,
    "image_size": research_code((128, 256), "height and width"),
    "supervision": research_code("single", "a feature per modality; in the code they share a classifier"),
    "identities_per_batch": research_code(8, "128 triplets a batch"),
    "images_per_identity": research_code(16, "128 triplets a batch"),
    "epochs": research_code(30, "passes"),
}

# Vehicles, 155 identities and 1032 triplets for training, 30 scenes; a match is of another scene.
# 16 x 4 = 64 triplets a batch.
MSVR310: Recipe = {
    **RGBNT100,
    "identities_per_batch": research_code(16, "64 triplets a batch"),
    "images_per_identity": research_code(4, "64 triplets a batch"),
    "epochs": research_code(60, "passes"),
}

# Values of the research code that our recipes change.
READINGS: Recipe = {"zero_init": research_code(False, "adapters start at random")}

RECIPES: dict[str, Recipe] = {
    "rgbnt201": RGBNT201,
    "rgbnt100": RGBNT100,
    "msvr310": MSVR310,
    "rgbnt201-research-code": RGBNT201 | READINGS,
    "rgbnt100-research-code": RGBNT100 | READINGS,
    "msvr310-research-code": MSVR310 | READINGS,
}
