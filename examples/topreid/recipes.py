"""Recipes of TOP-ReID: defaults for training from scratch, and the three benchmarks as in its research code.

Values are marked "research code" even if the paper may give them too, because we could read only the code in full.
"""

from examples.recipe import Recipe, ours, research_code

# Defaults of a run without recipe: a small tower from scratch on a small set.
DEFAULT: Recipe = {
    "masks": ours("none", "the method has no use for them; with masks, SFM steers its towers"),
    "rates.backbone": ours(2e-3, "towers from scratch learn as fast as the rest"),
    "rates.strengths": ours(1e-2, "two numbers per block, which need larger steps"),
    "no_decay": ours(("strengths",), "a decay would pull alpha and beta to plain attention"),
}

PIXELS = 10 / (256 * 128) ** 0.5

# Differences that no setting covers: the code gives biases twice the rate, multiplies camera embeddings by three, drops
# blocks of the towers at random (0.1), and flips each modality on its own.
MODEL: Recipe = {
    # Inputs.
    "modalities": research_code(("RGB", "NI", "TI"), "the three of every benchmark"),
    "image_size": research_code((256, 128), "height and width, of persons and vehicles alike"),
    "masks": research_code("none", "the method has no use for them"),
    "captions": research_code("off", "the method reads no captions"),
    # The towers.
    "towers": research_code("separate", "a tower per modality"),
    "backbone": research_code("timm", "a ViT-B/16 pretrained on ImageNet"),
    "architecture": ours("vit_base_patch16_224", "timm's name of the tower in the code"),
    "modulated_blocks": research_code("none", "plain attention"),
    "camera_embedding": research_code(True, "three times as large in the code"),
    "camera_tokens": research_code("all", "class token and patches"),
    # TPM and CRM.
    "num_heads": research_code(12, "64 of the 768 per head"),
    "permutation": research_code(True, "TPM"),
    "reconstruction": research_code("loss+filling", "CRM, weight 1; only missing modalities are filled in"),
    "reconstruction_depth": research_code(1, "a block per ordered pair of modalities"),
    # Losses.
    "identity_weight": research_code(1.0, "as much as the triplet loss"),
    "smoothing": research_code(0.1, "of the labels"),
    # Augmentation.
    "flip": research_code(0.5, "the code flips each modality on its own, we flip all alike"),
    "padding": research_code(PIXELS, "10 pixels"),
    "erasing": research_code(0.5, "for every modality on its own"),
    # Optimisation.
    "optimizer": research_code("sgd", "with a momentum of 0.9"),
    "weight_decay": research_code(1e-4, "of weights and biases alike"),
    "no_decay": ours(("strengths",), "only for runs with masks: without SFM there are no strengths"),
    "rates.strengths": ours(1e-2, "only for runs with masks: without SFM there are no strengths"),
    "clip_norm": research_code(None, "no clipping"),
    # Settings of the run that hardly change its result.
    "seed": ours(0, "the code has 1111"),
    "amp": ours(True, "bfloat16 on a GPU, where the code has float16"),
    "workers": ours(4, "a GPU waits for decoding otherwise; the result is the same"),
    "evaluate_every": ours(10, "for the curve; the result is that of the last epoch"),
    # 8 x 16 = 128 triplets a batch.
    "identities_per_batch": research_code(8, "128 triplets a batch"),
    "images_per_identity": research_code(16, "128 triplets a batch"),
}

# Persons, 171 identities and 3951 triplets for training, four cameras.
RGBNT201: Recipe = {
    **MODEL,
    "supervision": research_code("joined", "the class tokens of all modalities as one feature"),
    "learning_rate": research_code(9e-3, "of new modules"),
    "rates.backbone": research_code(9e-3, "one rate for all weights"),
    "epochs": research_code(120, "passes"),
    "warmup_epochs": research_code(10.0, "from a hundredth of the rate, here from 0"),
}

# Vehicles, 50 identities and 8675 triplets for training, eight cameras.
RGBNT100: Recipe = {
    **RGBNT201,
    "supervision": research_code("single", "a feature per modality"),
}

# Vehicles, 155 identities and 1032 triplets for training, 30 scenes; a match is of another scene.
MSVR310: Recipe = {
    **RGBNT100,
    "learning_rate": research_code(1e-3, "of new modules"),
    "rates.backbone": research_code(1e-3, "one rate for all weights"),
    "epochs": research_code(1000, "passes"),
    "warmup_epochs": research_code(100.0, "a tenth of the epochs"),
}

RECIPES: dict[str, Recipe] = {"rgbnt201": RGBNT201, "rgbnt100": RGBNT100, "msvr310": MSVR310}
