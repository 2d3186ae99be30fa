"""What is equal on all benchmarks: the model, its inputs and its losses. The files beside this one add the rest."""

from examples.stmi.recipes.value import Recipe, ours, paper, research_code

IMPLEMENTATION = "implementation details"

MODEL: Recipe = {
    # What goes in.
    "modalities": paper(("RGB", "NI", "TI"), "the three of every benchmark"),
    "masks": paper("given", f"one SAM 2 mask per triplet; {IMPLEMENTATION}"),
    "foreground_threshold": research_code(0.5, "half of a patch; the paper says overlap"),
    "captions": paper("required", f"one caption per triplet; {IMPLEMENTATION}"),
    "text_encoder": paper("clip", f"CLIP's; {IMPLEMENTATION}"),
    "caption_overflow": ours("truncate", "as CLIP does; captions of 32 characters, the paper's mean, fit"),
    "text_projection": ours(True, "behind a frozen tower alone the loss on T trains its own classifier, no more"),
    # The backbone with SFM, eq. 2-8.
    "backbone": paper("open_clip", f"a pretrained CLIP; {IMPLEMENTATION}"),
    "architecture": ours("ViT-B-16-quickgelu", "the paper gives no size; B/16 is what its peers use"),
    "projected": ours(True, "tokens and captions in the one space of CLIP, 512 wide"),
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
    "backbone_learning_rate": paper(3.5e-6, f"{IMPLEMENTATION}; along a cosine to a tenth, the shape is ours"),
    "learning_rate": ours(
        3.5e-4, "at the paper's 3.5e-6 the 2750 steps of RGBNT201 move a weight by some 0.005 at most"
    ),
    "strength_learning_rate": ours(1e-3, "at the paper's rate alpha and beta would stay where they start"),
    "weight_decay": ours(1e-4, "usual with Adam; the paper gives none"),
    # What makes a run and not its result.
    "seed": ours(0, "the paper gives none"),
    "amp": ours(True, "bfloat16 on a GPU: half the memory"),
    "workers": ours(4, "a GPU waits for decoding otherwise; the result is the same"),
    "evaluate_every": ours(10, "for the curve; the result is that of the last epoch"),
}
