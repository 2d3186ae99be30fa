"""Recipes of NEXT: defaults for training from scratch, and the three benchmarks in our reading of the paper.

There is no research code, and the published text leaves the sizes open. Values that its figures and captions fix are
marked as the paper's; other values are ours, after DeMo, whose code the authors name as their base.
"""

from examples.recipe import Recipe, ours, paper

FIGURE = "the figure of the whole method"

# Defaults of a run without recipe: a small tower from scratch on a small set.
DEFAULT: Recipe = {
    "masks": ours("none", "the method has no use for them; with masks, SFM steers its tower"),
    "rates.backbone": ours(2e-3, "a tower from scratch learns as fast as the rest"),
    "rates.strengths": ours(1e-2, "two numbers per block, which need larger steps"),
    "no_decay": ours(("strengths",), "a decay would pull alpha and beta to plain attention"),
}

MODEL: Recipe = {
    # Inputs.
    "modalities": paper(("RGB", "NI", "TI"), "the three of every benchmark"),
    "masks": paper("none", "it reads no masks"),
    "captions": paper("required", f"one per modality; {FIGURE}"),
    "text_encoder": paper("clip", f"frozen; {FIGURE}"),
    "caption_overflow": ours("truncate", "a sentence fits; whole captions would not"),
    # The tower.
    "backbone": paper("open_clip", f"a pretrained CLIP, shared by the modalities; {FIGURE}"),
    "architecture": ours("ViT-B-16-quickgelu", "as its peers"),
    "projected": ours(True, "tokens and sentences share the space of CLIP, 512 wide"),
    "modulated_blocks": paper("none", "plain attention"),
    "camera_embedding": ours(True, "as in DeMo"),
    # TMSE, CSSE and MGFA.
    "experts": paper("both", FIGURE),
    "num_experts": ours(4, "the text gives no number"),
    "mlp_ratio": ours(4.0, "as in a transformer block"),
    "dropout": ours(0.1, "the figure has it without a value"),
    "num_heads": ours(8, "64 of the 512 per head"),
    "norm": ours(False, "the text has no normalisation"),
    "sentence_share": ours(0.5, "drawn at random; the text does not say how"),
    # Losses.
    "identity_weight": ours(0.25, "against 1 of the triplet loss, as in DeMo"),
    # Augmentation.
    "padding": ours(10 / (256 * 128) ** 0.5, "10 pixels at 256 x 128, usual here"),
    "erasing": ours(0.5, "usual here"),
    # Optimisation.
    "optimizer": ours("adam", "as in DeMo"),
    "rates.backbone": ours(5e-6, "as in DeMo"),
    "learning_rate": ours(3.5e-4, "as in DeMo"),
    "rates.strengths": ours(1e-3, "for those who switch SFM on"),
    "no_decay": ours(("strengths",), "for those who switch SFM on"),
    "weight_decay": ours(1e-4, "as in DeMo"),
    "epochs": ours(50, "as in DeMo"),
    "warmup_epochs": ours(10.0, "as in DeMo"),
    # Settings of the run that hardly change its result.
    "seed": ours(0, "the text gives no seed"),
    "amp": ours(True, "bfloat16 on a GPU: half the memory"),
    "workers": ours(4, "a GPU waits for decoding otherwise; the result is the same"),
    "evaluate_every": ours(10, "for the curve; the result is that of the last epoch"),
}

# Persons: 8 x 8 = 64 triplets a batch.
RGBNT201: Recipe = {
    **MODEL,
    "image_size": ours((256, 128), "height and width, as in DeMo"),
    "supervision": ours("joined", "one feature of the class tokens"),
    "identities_per_batch": ours(8, "64 triplets a batch, as in DeMo"),
    "images_per_identity": ours(8, "as in DeMo"),
}

# Vehicles: 8 x 16 = 128 triplets a batch.
RGBNT100: Recipe = {
    **MODEL,
    "image_size": ours((128, 256), "height and width, as in DeMo"),
    "supervision": ours("joined", "one feature of the class tokens"),
    "captions": ours("required", "its captions are not released: write them by examples.prepare.captions"),
    "identities_per_batch": ours(8, "128 triplets a batch, as in DeMo"),
    "images_per_identity": ours(16, "as in DeMo"),
    "epochs": ours(30, "as in DeMo"),
    "warmup_epochs": ours(5.0, "as in DeMo"),
}

# Vehicles: 16 x 4 = 64 triplets a batch.
MSVR310: Recipe = {
    **MODEL,
    "image_size": ours((128, 256), "height and width, as in DeMo"),
    "supervision": ours("joined", "one feature of the class tokens"),
    "identities_per_batch": ours(16, "64 triplets a batch, as in DeMo"),
    "images_per_identity": ours(4, "as in DeMo"),
}

RECIPES: dict[str, Recipe] = {"rgbnt201": RGBNT201, "rgbnt100": RGBNT100, "msvr310": MSVR310}
