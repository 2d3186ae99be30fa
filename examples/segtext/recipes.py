"""Recipes of retrieval by image, caption and mask: defaults from scratch, and a frozen CLIP as in PS-ReID.

There is no recipe of a benchmark: the set of the paper is not published, and neither are its losses and rates.
"""

from examples.recipe import Recipe, ours, paper

NO_SFM = "SFM would show the tower the mask that it has to predict"

# Defaults of a run without recipe: a small tower from scratch on a small set.
DEFAULT: Recipe = {
    "captions": ours("optional", "sets without captions train on images and masks alone"),
    "modulated_blocks": ours("none", NO_SFM),
    "rates.backbone": ours(2e-3, "a tower from scratch learns as fast as the rest"),
    "rates.scalars": ours(1e-2, "one number each, which need larger steps"),
    "rates.strengths": ours(1e-2, "two numbers per block, which need larger steps"),
    "no_decay": ours(("strengths", "scalars"), "a decay would pull them to values that mean nothing"),
}

PS_REID: Recipe = {
    # Inputs.
    "modalities": ours(("RGB",), "the paper has colour images"),
    "image_size": ours((224, 112), "16 x 8 patches of 14; not known"),
    "masks": paper("given", "a mask is the second result; its training data are not known"),
    "captions": paper("required", "queries are crops, captions or both"),
    # The towers.
    "backbone": paper("open_clip", "a pretrained CLIP"),
    "architecture": ours("ViT-L-14-quickgelu", "ViT-L/14 as in the paper; which weights is not known"),
    "projected": ours(True, "tokens and captions share the space of CLIP, 768 wide"),
    "modulated_blocks": ours("none", NO_SFM),
    "rates.backbone": paper(0.0, "frozen"),
    "text_encoder": ours("clip", "instead of the paper's language model"),
    # Modules after the towers.
    "guide": ours("given", "not known"),
    "num_heads": ours(8, "96 of the 768 per head; not known"),
    "temperature": ours(0.07, "that of CLIP; not known"),
    "term_weights.alignment": ours(1.0, "not known"),
    "term_weights.token_identity": ours(1.0, "not known"),
    "term_weights.coupling": ours(1.0, "not known"),
    "term_weights.mask": ours(1.0, "2 x cross-entropy and 0.5 x Dice, usual in reasoning segmentation"),
    # Optimisation.
    "learning_rate": ours(3.5e-4, "usual for new modules behind CLIP"),
    "rates.scalars": ours(1e-3, "one number each, which need larger steps"),
    "rates.strengths": ours(1e-3, "without SFM there are no strengths"),
    "no_decay": ours(("strengths", "scalars"), "a decay would pull them to values that mean nothing"),
    "weight_decay": ours(1e-4, "usual with Adam"),
    "optimizer": ours("adam", "usual here"),
    "epochs": ours(50, "usual here"),
    "warmup_epochs": ours(5.0, "a tenth of the epochs"),
    # Settings of the run that hardly change its result.
    "seed": ours(0, "not known"),
    "amp": ours(True, "bfloat16 on a GPU: half the memory"),
    "workers": ours(4, "a GPU waits for decoding otherwise; the result is the same"),
    "evaluate_every": ours(10, "for the curve; the result is that of the last epoch"),
}

RECIPES: dict[str, Recipe] = {"ps-reid": PS_REID}
