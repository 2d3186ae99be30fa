"""Recipes of EDITOR: defaults for training from scratch, and the three benchmarks as in its research code.

Values are marked "research code" even if the paper may give them too, because we could read only the code in full.
"""

from examples.recipe import Recipe, ours, research_code

# Defaults of a run without recipe: a small tower from scratch on a small set.
DEFAULT: Recipe = {
    "masks": ours("none", "the method has no use for them; with masks, SFM steers its tower"),
    "rates.backbone": ours(2e-3, "a tower from scratch learns as fast as the rest"),
    "rates.strengths": ours(1e-2, "two numbers per block, which need larger steps"),
    "no_decay": ours(("strengths",), "a decay would pull alpha and beta to plain attention"),
}

PIXELS = 10 / (256 * 128) ** 0.5

# Differences that no setting covers: the code also keeps the ten patches with most bright pixels, gives biases twice
# the rate, multiplies camera embeddings by three, drops blocks of the tower at random (0.1), draws the reduction behind
# HMA from wider normals, and flips each modality on its own.
MODEL: Recipe = {
    # Inputs.
    "modalities": research_code(("RGB", "NI", "TI"), "the three of every benchmark"),
    "masks": research_code("none", "the method has no use for them"),
    "captions": research_code("off", "the method reads no captions"),
    # The tower.
    "backbone": research_code("timm", "a ViT-B/16 pretrained on ImageNet-21k, shared by the modalities"),
    "architecture": ours("vit_base_patch16_224", "timm's name of the tower in the code"),
    "modulated_blocks": research_code("none", "plain attention"),
    "camera_embedding": research_code(True, "three times as large in the code"),
    "camera_tokens": research_code("all", "class token and patches"),
    # SFTS, HMA, BCC and OCFR.
    "aggregation": research_code(True, "HMA, with BCC and OCFR of weight 1"),
    "keep_per_head": research_code(2, "for every head, on every benchmark"),
    "num_heads": research_code(12, "64 of the 768 per head"),
    "mlp_ratio": research_code(4.0, "as in the tower"),
    "centre_rate": research_code(0.8, "of the new mean"),
    "centre_start": ours("mean", "a centre that starts at 0 cannot be reached by features of length 1"),
    # Losses.
    "identity_weight": research_code(1.0, "as much as the triplet loss"),
    "smoothing": research_code(0.1, "of the labels"),
    # Augmentation.
    "flip": research_code(0.5, "the code flips each modality on its own, we flip all alike"),
    "padding": research_code(PIXELS, "10 pixels at 256 x 128"),
    "erasing": research_code(0.5, "for every modality on its own"),
    # Optimisation.
    "optimizer": research_code("sgd", "with a momentum of 0.9"),
    "learning_rate": research_code(1e-3, "of new modules"),
    "rates.backbone": research_code(1e-3, "one rate for all weights"),
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

# Persons.
RGBNT201: Recipe = {
    **MODEL,
    "image_size": research_code((256, 128), "height and width"),
    "supervision": research_code("joined", "the class tokens of all modalities as one feature"),
    "epochs": research_code(70, "passes"),
    "warmup_epochs": research_code(10.0, "from a hundredth of the rate, here from 0"),
}

# Vehicles.
RGBNT100: Recipe = {
    **MODEL,
    "image_size": research_code((128, 256), "height and width"),
    "supervision": research_code("single", "a feature per modality"),
    "epochs": research_code(70, "as for persons"),
    "warmup_epochs": research_code(10.0, "as for persons"),
}

# Vehicles, few images: many passes.
MSVR310: Recipe = {
    **MODEL,
    "image_size": research_code((128, 256), "height and width"),
    "supervision": research_code("single", "a feature per modality"),
    "epochs": research_code(1000, "passes over 1032 triplets"),
    "warmup_epochs": research_code(10.0, "from a hundredth of the rate, here from 0"),
}

RECIPES: dict[str, Recipe] = {"rgbnt201": RGBNT201, "rgbnt100": RGBNT100, "msvr310": MSVR310}
