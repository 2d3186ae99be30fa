"""Recipes of STMI: defaults from scratch, the paper's three benchmarks, and the differences of its research code."""

from examples.recipe import Recipe, ours, paper, research_code

IMPLEMENTATION = "implementation details"

# Defaults of a run without recipe: a small tower from scratch on a small set.
DEFAULT: Recipe = {
    "rates.backbone": ours(2e-3, "a tower from scratch learns as fast as the rest"),
    "rates.strengths": ours(1e-2, "two numbers per block, which need larger steps"),
    "no_decay": ours(("strengths",), "a decay would pull alpha and beta to plain attention"),
}

MODEL: Recipe = {
    # Inputs.
    "modalities": paper(("RGB", "NI", "TI"), "the three of every benchmark"),
    "masks": paper("given", f"one SAM 2 mask per triplet; {IMPLEMENTATION}"),
    "foreground_threshold": research_code(0.5, "half of a patch; the paper only says overlap"),
    "captions": paper("required", f"one caption per triplet; {IMPLEMENTATION}"),
    "text_encoder": paper("clip", f"CLIP's; {IMPLEMENTATION}"),
    "caption_overflow": ours("truncate", "as CLIP does; captions of 32 characters, the paper's mean, fit"),
    "text_projection": ours(True, "without it the loss on T would only train its own classifier"),
    # The backbone with SFM, eq. 2-8.
    "backbone": paper("open_clip", f"a pretrained CLIP; {IMPLEMENTATION}"),
    "architecture": ours("ViT-B-16-quickgelu", "the paper gives no size; B/16 is what its peers use"),
    "projected": ours(True, "tokens and captions share the space of CLIP, 512 wide"),
    "per_head": paper(False, "Table 5 E: a pair of strengths per layer"),
    "strength": research_code(0.1, "the mean of its random start; the paper gives none"),
    # STR and CHI, eq. 9-18.
    "reallocation": paper(True, "Table 3 D"),
    "num_tokens": paper(4, "Figure 5"),
    "num_heads": ours(8, "64 of the 512 per head, as in CLIP; the paper gives none"),
    "fusion": paper("hypergraph", "Table 4 D"),
    "similarity": ours("cosine", "a distance means something else at every width and scale"),
    "threshold": ours(0.5, "the paper gives no value of τ"),
    # Losses, eq. 19-20, and what is retrieved with.
    "identity_weight": paper(1.0, "eq. 19"),
    "descriptor": paper("auto", "U, the fused feature of eq. 18; a baseline without U has G"),
    # Augmentation.
    "padding": ours(10 / (256 * 128) ** 0.5, "10 pixels at 256 x 128, usual here; the paper says cropping"),
    "erasing": ours(0.5, "usual here; the paper says random erasing"),
    # Optimisation.
    "optimizer": paper("adam", IMPLEMENTATION),
    "rates.backbone": paper(3.5e-6, f"{IMPLEMENTATION}; along a cosine to a tenth, the shape is ours"),
    "learning_rate": ours(
        3.5e-4, "at the paper's 3.5e-6 the 2750 steps of RGBNT201 move a weight by some 0.005 at most"
    ),
    "rates.strengths": ours(1e-3, "at the paper's rate alpha and beta would stay where they start"),
    "no_decay": ours(("strengths",), "a decay would pull alpha and beta to plain attention"),
    "weight_decay": ours(1e-4, "usual with Adam; the paper gives none"),
    # Settings of the run that hardly change its result.
    "seed": ours(0, "the paper gives none"),
    "amp": ours(True, "bfloat16 on a GPU: half the memory"),
    "workers": ours(4, "a GPU waits for decoding otherwise; the result is the same"),
    "evaluate_every": ours(10, "for the curve; the result is that of the last epoch"),
}
WARMUP = "a tenth of the epochs: new modules first meet pretrained tokens gently"

# Persons, 171 identities and 3951 triplets for training, four cameras. 9 x 8 = 72 triplets, 55 steps an epoch.
RGBNT201: Recipe = {
    **MODEL,
    "image_size": paper((256, 128), f"height and width; {IMPLEMENTATION}"),
    "perturbation": research_code(0.01, "the paper says a little helps, Figure 5"),
    "identities_per_batch": paper(9, f"72 triplets a batch; {IMPLEMENTATION}"),
    "images_per_identity": paper(8, IMPLEMENTATION),
    "epochs": research_code(50, "the paper gives none"),
    "warmup_epochs": ours(5.0, WARMUP),
}

# Vehicles, 50 identities and 8675 triplets for training, eight cameras. 8 x 16 = 128 triplets, 68 steps an epoch.
RGBNT100: Recipe = {
    **MODEL,
    "image_size": paper((128, 256), f"height and width; {IMPLEMENTATION}"),
    "perturbation": research_code(0.0, "the paper says a little helps, Figure 5"),
    "identities_per_batch": paper(8, f"128 triplets a batch; {IMPLEMENTATION}"),
    "images_per_identity": paper(16, IMPLEMENTATION),
    "epochs": research_code(20, "the paper gives none"),
    "warmup_epochs": ours(2.0, WARMUP),
}

# Vehicles, 155 identities and 1032 triplets for training, 30 scenes; a match is of another scene.
# 8 x 8 = 64 triplets, 20 steps an epoch, so that every identity comes once.
MSVR310: Recipe = {
    **MODEL,
    "image_size": paper((128, 256), f"height and width; {IMPLEMENTATION}"),
    "perturbation": research_code(0.015, "the paper says a little helps, Figure 5"),
    "identities_per_batch": paper(8, f"64 triplets a batch; {IMPLEMENTATION}"),
    "images_per_identity": paper(8, IMPLEMENTATION),
    "epochs": research_code(20, "the paper gives none"),
    "warmup_epochs": ours(2.0, WARMUP),
}

# Differences of the research code that settings cover. Others: it starts alpha and beta at random, flips each modality
# on its own without its mask, lowers the learning rate during the warm-up, learns no weight per hyperedge and no bias
# per node (ours start at one and zero), and its group normalisation includes the residual.
RESEARCH_CODE: Recipe = {
    "similarity": research_code("euclidean", "of tokens as they are"),
    "threshold": research_code(5.0, "no tokens are that close at the start, so that the hypergraph is the identity"),
    "text_projection": research_code(False, "T is the feature of the frozen tower"),
    "identity_weight": research_code(0.25, "against 1 of the triplet loss, with soft margin"),
    "learning_rate": paper(3.5e-6, f"one rate for all learnable parameters; {IMPLEMENTATION}"),
    "rates.strengths": paper(3.5e-6, f"one rate for all learnable parameters; {IMPLEMENTATION}"),
    "warmup_epochs": research_code(0.0, "its rate does not rise"),
}

# The research code retrieves vehicles with G and T, without U.
RESEARCH_CODE_VEHICLES: Recipe = {**RESEARCH_CODE, "descriptor": research_code("G+T", "without U, on vehicles alone")}

RECIPES: dict[str, Recipe] = {
    "rgbnt201": RGBNT201,
    "rgbnt100": RGBNT100,
    "msvr310": MSVR310,
    "rgbnt201-research-code": RGBNT201 | RESEARCH_CODE,
    "rgbnt100-research-code": RGBNT100 | RESEARCH_CODE_VEHICLES,
    "msvr310-research-code": MSVR310 | RESEARCH_CODE_VEHICLES,
}
