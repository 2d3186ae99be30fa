"""Recipes of DeMo: defaults for training from scratch, and the three benchmarks as in its research code.

We read only the abstract of the paper, so values are marked as the research code's, never as the paper's. No setting
covers the following differences: in the research code biases of new modules learn twice as fast, the learning rate is
noisy, each modality is flipped on its own, and the tower has no SFM.
"""

from examples.recipe import Recipe, ours, research_code

# Defaults of a run without recipe: a small tower from scratch on a small set.
DEFAULT: Recipe = {
    "masks": ours("none", "the method has no use for them; with masks, SFM steers its tower"),
    "rates.backbone": ours(2e-3, "a tower from scratch learns as fast as the rest"),
    "rates.strengths": ours(1e-2, "two numbers per block, which need larger steps"),
    "no_decay": ours(("strengths",), "a decay would pull alpha and beta to plain attention"),
}

MODEL: Recipe = {
    # Inputs.
    "modalities": research_code(("RGB", "NI", "TI"), "the three of every benchmark"),
    "masks": research_code("none", "it reads no masks"),
    "captions": research_code("off", "it reads no captions"),
    # The tower.
    "backbone": research_code("open_clip", "a pretrained CLIP, shared by the modalities"),
    "architecture": research_code("ViT-B-16-quickgelu", "ViT-B/16 with the weights of OpenAI"),
    "projected": research_code(True, "tokens in the space of CLIP, 512 wide"),
    "modulated_blocks": research_code("none", "plain attention"),
    "camera_embedding": research_code(True, "added to the class token"),
    # PIFE, HDM and ATMoE.
    "pooling": research_code(True, "PIFE"),
    "fusion": research_code("experts", "HDM and ATMoE"),
    "readout_heads": research_code(8, "64 of the 512 per head"),
    "dropout": research_code(0.1, "of attention weights in HDM"),
    "subsets": research_code("all", "seven queries"),
    "incomplete": ours("read", "it has no missing modalities, but black images"),
    # Losses.
    "identity_weight": research_code(0.25, "against 1 of the triplet loss, with soft margin"),
    # Augmentation.
    "padding": ours(10 / (256 * 128) ** 0.5, "10 pixels at 256 x 128, usual here"),
    "erasing": ours(0.5, "usual here"),
    # Optimisation.
    "optimizer": research_code("adam", "with its usual moments"),
    "rates.backbone": research_code(5e-6, "of CLIP; along a cosine"),
    "learning_rate": research_code(3.5e-4, "of new modules and classifiers"),
    "rates.strengths": ours(1e-3, "for those who switch SFM on"),
    "no_decay": ours(("strengths",), "for those who switch SFM on"),
    "weight_decay": research_code(1e-4, "of biases too"),
    "clip_norm": ours(1.0, "it does not clip; a guard against a bad step"),
    # Settings of the run that hardly change its result.
    "seed": ours(0, "it takes 1111"),
    "amp": ours(True, "bfloat16 on a GPU; it has float16 and a scaler"),
    "workers": ours(4, "a GPU waits for decoding otherwise; the result is the same"),
    "evaluate_every": ours(10, "for the curve; the result is that of the last epoch"),
}

# Persons: 8 x 8 = 64 triplets a batch.
RGBNT201: Recipe = {
    **MODEL,
    "image_size": research_code((256, 128), "height and width"),
    "expert_heads": research_code(4, "for persons"),
    "supervision": research_code("joined", "one feature of the three class tokens"),
    "identities_per_batch": research_code(8, "64 triplets a batch"),
    "images_per_identity": research_code(8, "of an identity"),
    "epochs": research_code(50, "for persons"),
    "warmup_epochs": research_code(10.0, "for persons"),
}

# Vehicles: 8 x 16 = 128 triplets a batch.
RGBNT100: Recipe = {
    **MODEL,
    "image_size": research_code((128, 256), "height and width"),
    "expert_heads": research_code(8, "for vehicles"),
    "supervision": research_code("single", "a feature per modality"),
    "identities_per_batch": research_code(8, "128 triplets a batch"),
    "images_per_identity": research_code(16, "of an identity"),
    "epochs": research_code(30, "fewer than elsewhere"),
    "warmup_epochs": research_code(5.0, "shorter than elsewhere"),
}

# Vehicles: 16 x 4 = 64 triplets a batch.
MSVR310: Recipe = {
    **MODEL,
    "image_size": research_code((128, 256), "height and width"),
    "expert_heads": research_code(8, "for vehicles"),
    "supervision": research_code("single", "a feature per modality"),
    "identities_per_batch": research_code(16, "64 triplets a batch"),
    "images_per_identity": research_code(4, "of an identity"),
    "epochs": research_code(50, "as for persons"),
    "warmup_epochs": research_code(10.0, "as for persons"),
}

RECIPES: dict[str, Recipe] = {"rgbnt201": RGBNT201, "rgbnt100": RGBNT100, "msvr310": MSVR310}
