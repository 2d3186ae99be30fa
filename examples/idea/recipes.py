"""Recipes of IDEA: defaults for training from scratch, and the three benchmarks as in its research code.

Values are marked "research code" even if the paper may give them too, because we could read only the code in full.
"""

from examples.idea.released import max_offset
from examples.recipe import Recipe, ours, research_code

# Defaults of a run without recipe: a small tower from scratch on a small set.
DEFAULT: Recipe = {
    "masks": ours("none", "the method has no use for them; with masks, SFM steers its tower"),
    "captions": ours("optional", "sets without captions train as well, without caption tokens"),
    "rates.backbone": ours(2e-3, "a tower from scratch learns as fast as the rest"),
    "rates.strengths": ours(1e-2, "two numbers per block, which need larger steps"),
    "no_decay": ours(("strengths",), "a decay would pull alpha and beta to plain attention"),
}

# Differences that no setting covers: the code lowers its learning rate in the warm-up, flips each modality on its own,
# and has captions that begin "An image of a X X person in the visible spectrum"; we put the stand-ins before a caption.
MODEL: Recipe = {
    # Inputs.
    "modalities": research_code(("RGB", "NI", "TI"), "the three of every benchmark"),
    "masks": research_code("none", "the method has no use for them"),
    "captions": research_code("required", "one per modality"),
    # The towers.
    "backbone": research_code("open_clip", "the image tower of CLIP, shared by the modalities and trained"),
    "architecture": research_code("ViT-B-16-quickgelu", "OpenAI's ViT-B/16"),
    "projected": research_code(True, "the projection on all tokens, 512 wide"),
    "modulated_blocks": research_code("none", "plain attention"),
    "camera_embedding": research_code(True, "added to the class token and to the caption token"),
    "text_encoder": research_code("clip", "CLIP's text tower, frozen"),
    "dropout": research_code(0.1, "of the inverse network"),
    # CDA.
    "aggregation": research_code(True, "CDA"),
    "window": research_code(4, "kernel of the depthwise convolution"),
    "stride": research_code(2, "that of the depthwise convolution"),
    "offsets": research_code("shared", "one network for all modalities"),
    "reference": ours("centred", "the code is half a patch off the centre"),
    "readout_heads": research_code(1, "a single head"),
    "descriptor": ours("F+FC", "the code scores several descriptors, and keeps the best epoch by FC"),
    # Losses.
    "identity_weight": research_code(0.25, "against 1 of the triplet loss, with soft margin"),
    "smoothing": research_code(0.1, "of the labels"),
    # Augmentation.
    "flip": research_code(0.5, "the code flips each modality on its own, we flip all alike"),
    "padding": research_code(10 / (256 * 128) ** 0.5, "10 pixels"),
    "erasing": research_code(0.5, "for every modality on its own"),
    # Optimisation.
    "optimizer": research_code("adam", "with the usual moments"),
    "rates.backbone": research_code(3.5e-6, "one rate for everything; in the warm-up ours rises, the code's falls"),
    "learning_rate": ours(3.5e-4, "at the 3.5e-6 of the code new modules stay where they start"),
    "rates.strengths": ours(1e-3, "only for runs with masks: without SFM there are no strengths"),
    "weight_decay": research_code(1e-4, "of weights and biases alike"),
    "no_decay": ours(("strengths",), "only for runs with masks: without SFM there are no strengths"),
    "epochs": research_code(50, "passes"),
    "warmup_epochs": research_code(10.0, "of the epochs"),
    "clip_norm": research_code(None, "no clipping"),
    # Settings of the run that hardly change its result.
    "seed": ours(0, "the code has 1111"),
    "amp": ours(True, "bfloat16 on a GPU, where the code has float16"),
    "workers": ours(4, "a GPU waits for decoding otherwise; the result is the same"),
    "evaluate_every": ours(10, "for the curve; the result is that of the last epoch"),
}

IN_PATCHES = "the code's factor, {}, in patches"
PATCHES_ON_VEHICLES = "the code reaches {} patches on a grid of 8 x 16: its samples start outside the picture"

# Persons, 171 identities and 3951 triplets for training, four cameras. 8 x 8 = 64 triplets a batch.
RGBNT201: Recipe = {
    **MODEL,
    "image_size": research_code((256, 128), "height and width"),
    "num_prompts": research_code(2, "learned words, for persons"),
    "max_offset": research_code(max_offset(5, (16, 8)), IN_PATCHES.format(5)),
    "supervision": research_code("joined", "one feature of the class tokens, one of the caption tokens"),
    "identities_per_batch": research_code(8, "64 triplets a batch"),
    "images_per_identity": research_code(8, "64 triplets a batch"),
}

# Vehicles, 50 identities and 8675 triplets for training, eight cameras. 8 x 16 = 128 triplets a batch.
RGBNT100: Recipe = {
    **MODEL,
    "image_size": research_code((128, 256), "height and width"),
    "num_prompts": research_code(1, "a learned word, for vehicles"),
    "max_offset": ours((6.25, 8.75), PATCHES_ON_VEHICLES.format("36.75 and 26.25")),
    "supervision": research_code("single", "six features, one per modality of class and caption tokens"),
    "identities_per_batch": research_code(8, "128 triplets a batch"),
    "images_per_identity": research_code(16, "128 triplets a batch"),
}

# Vehicles, 155 identities and 1032 triplets for training, 30 scenes; a match is of another scene. 8 x 8 = 64.
MSVR310: Recipe = {
    **RGBNT100,
    "max_offset": ours((6.25, 8.75), PATCHES_ON_VEHICLES.format("43.75 and 31.25")),
    "supervision": research_code("joined", "one feature of the class tokens, one of the caption tokens"),
    "identities_per_batch": research_code(8, "64 triplets a batch"),
    "images_per_identity": research_code(8, "64 triplets a batch"),
}

# Values of the research code that our recipes change.
READINGS: Recipe = {
    "reference": research_code("shifted", "half a patch further down and to the right"),
    "learning_rate": research_code(3.5e-6, "one rate for everything"),
    "descriptor": research_code("FC", "the caption half chooses its best epoch"),
}

RECIPES: dict[str, Recipe] = {
    "rgbnt201": RGBNT201,
    "rgbnt100": RGBNT100,
    "msvr310": MSVR310,
    "rgbnt201-research-code": RGBNT201 | READINGS,
    "rgbnt100-research-code": RGBNT100
    | READINGS
    | {"max_offset": research_code(max_offset(21, (8, 16)), IN_PATCHES.format(21))},
    "msvr310-research-code": MSVR310
    | READINGS
    | {"max_offset": research_code(max_offset(25, (8, 16)), IN_PATCHES.format(25))},
}
