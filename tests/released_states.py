"""State dicts with the names and axes of released checkpoints, at a small size and with random numbers."""

from itertools import product

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]
PATCH, PATCHES, CAMERAS, IDENTITIES = 8, 16, 2, 5  # images of 32 x 32
WIDTH, LAYERS, DIM = 32, 2, 64  # of a small CLIP, and of the tokens behind its projection
VIT = {"width": 64, "layers": 6, "hidden": 192, "patch": 16}  # timm's test_vit, on images of 64 x 64
MODALITIES = ("rgb", "nir", "tir")


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Random numbers of these shapes, variances above 0."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    counts = {name: torch.tensor(3) for name in shapes if name.endswith("num_batches_tracked")}
    variances = {name: value.abs() + 0.5 for name, value in state.items() if name.endswith("running_var")}
    near_one = {name: value + 1 for name, value in state.items() if ".ln_" in name and name.endswith("weight")}
    return state | counts | variances | near_one


def named(prefix: str, shapes: Shapes) -> Shapes:
    """The shapes under a prefix."""
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def linear(rows: int, columns: int, *, bias: bool = True) -> Shapes:
    """A linear map."""
    return {"weight": (rows, columns), **({"bias": (rows,)} if bias else {})}


def norm(width: int) -> Shapes:
    """A layer norm."""
    return {"weight": (width,), "bias": (width,)}


def batch_norm(width: int) -> Shapes:
    """A batch norm."""
    return {**norm(width), "running_mean": (width,), "running_var": (width,), "num_batches_tracked": ()}


def head(neck: str, classifier: str, width: int) -> Shapes:
    """A batch norm and a classifier behind it."""
    return named(f"{neck}.", batch_norm(width)) | {f"{classifier}.weight": (IDENTITIES, width)}


def attention(width: int) -> Shapes:
    """The multi-head attention of torch."""
    packed = {"in_proj_weight": (3 * width, width), "in_proj_bias": (3 * width,)}
    return {**packed, **named("out_proj.", linear(width, width))}


def clip_block(width: int) -> Shapes:
    """A block of either tower of CLIP."""
    return {
        **named("attn.", attention(width)),
        **named("ln_1.", norm(width)),
        **named("mlp.c_fc.", linear(4 * width, width)),
        **named("mlp.c_proj.", linear(width, 4 * width)),
        **named("ln_2.", norm(width)),
    }


def clip_tower() -> Shapes:
    """The image tower of CLIP."""
    blocks = (named(f"transformer.resblocks.{index}.", clip_block(WIDTH)) for index in range(LAYERS))
    return {
        "class_embedding": (WIDTH,),
        "positional_embedding": (1 + PATCHES, WIDTH),
        "proj": (WIDTH, DIM),
        "conv1.weight": (WIDTH, 3, PATCH, PATCH),
        **named("ln_pre.", norm(WIDTH)),
        **{name: shape for block in blocks for name, shape in block.items()},
        **named("ln_post.", norm(WIDTH)),
    }


def vit_tower() -> Shapes:
    """A ViT with embeddings of cameras and the classifier of ImageNet."""
    width, hidden, patch = VIT["width"], VIT["hidden"], VIT["patch"]
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + PATCHES, width),
        "sie_embed": (CAMERAS, 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **named("norm.", norm(width)),
        **named("fc.", linear(1000, width)),
    }
    for index in range(VIT["layers"]):
        shapes |= named(f"blocks.{index}.norm1.", norm(width)) | named(f"blocks.{index}.norm2.", norm(width))
        shapes |= named(f"blocks.{index}.attn.qkv.", linear(3 * width, width))
        shapes |= named(f"blocks.{index}.attn.proj.", linear(width, width))
        shapes |= named(f"blocks.{index}.mlp.fc1.", linear(hidden, width))
        shapes |= named(f"blocks.{index}.mlp.fc2.", linear(width, hidden))
    return shapes


def cameras() -> Shapes:
    """Embeddings of cameras beside the image tower of CLIP."""
    return {"cv_embed": (CAMERAS, 1, WIDTH)}


def class_heads(*, joined: bool = True) -> Shapes:
    """Heads of the class tokens behind CLIP."""
    if joined:
        return head("bottleneck", "classifier", 3 * DIM)
    parts = (head(f"bottleneck_{letter}", f"classifier_{letter}", DIM) for letter in "rnt")
    return {name: shape for part in parts for name, shape in part.items()}


def demo(*, joined: bool = True, heads: int = 4) -> State:
    """DeMo: PIFE, HDM and ATMoE behind CLIP."""
    shapes = named("BACKBONE.", named("base.", clip_tower()) | cameras())
    for name in MODALITIES:
        shapes |= named(f"{name}_reduce.0.", norm(2 * DIM)) | named(f"{name}_reduce.1.", linear(DIM, 2 * DIM))
    fusion: Shapes = {}
    for subset in ("r", "n", "t", "rn", "rt", "nt", "rnt"):
        fusion |= {f"{subset}_token": (1, 1, DIM), **named(f"{subset}.", attention(DIM))}
    gate = "gating_network.gate."
    fusion |= named(f"{gate}linear_re.0.", linear(DIM, 7 * DIM)) | named(f"{gate}linear_re.2.", batch_norm(DIM))
    fusion |= {f"{gate}{name}.weight": (DIM, DIM) for name in ("q_", "k_")}
    for own, index in product(range(heads), range(7)):
        expert = f"experts.{own}.expertHead.{index}.mlp."
        fusion |= named(f"{expert}0.", linear(DIM // heads, DIM // heads))
        fusion |= named(f"{expert}2.", batch_norm(DIM // heads))
    shapes |= named("generalFusion.", fusion) | head("bottleneck_moe", "classifier_moe", 7 * DIM)
    return random_state(shapes | class_heads(joined=joined))


def signal(*, joined: bool = True) -> State:
    """Signal: SIM, GAM and LAM behind CLIP."""
    shapes = named("clip_vision_encoder.", named("base.", clip_tower()) | cameras())
    for letter in "qkv":
        shapes |= named(f"SIM.token_selection.W_{letter}.", linear(DIM, DIM))
    read = "SIM.modal_interactive."
    shapes |= named(f"{read}cross_attn.", attention(DIM)) | named(f"{read}norm1.", norm(DIM))
    shapes |= named(f"{read}ffn.0.", linear(2 * DIM, DIM)) | named(f"{read}ffn.2.", linear(DIM, 2 * DIM))
    shapes |= named(f"{read}norm2.", norm(DIM))
    for letter in "rnt":
        sampler = f"AlignM.DAS_{letter}."
        for name in ("proj_q", "conv_offset.0"):
            shapes |= {f"{sampler}{name}.weight": (DIM, DIM, 1, 1), f"{sampler}{name}.bias": (DIM,)}
        shapes |= {f"{sampler}conv_offset.2.weight": (DIM, 1, 4, 4), f"{sampler}conv_offset.2.bias": (DIM,)}
        shapes |= {f"{sampler}conv_offset.4.weight": (1, DIM, 1, 1)}
    shapes |= head("bottleneck_var", "classifier_var", 3 * DIM) | class_heads(joined=joined)
    return random_state(shapes) | {"AlignM.contra_temp": torch.tensor(0.07)}


def topreid() -> State:
    """TOP-ReID: three ViTs, TPM and CRM, and the heads of both kinds of supervision."""
    width, shapes = VIT["width"], dict[str, tuple[int, ...]]()
    for name in ("NI", "TI", "RGB"):
        shapes |= named(f"{name}.base.", vit_tower()) | head(f"{name}.bottleneck", f"{name}.classifier", width)
    feed = named("mlp.fc1.", linear(4 * width, width)) | named("mlp.fc2.", linear(width, 4 * width))
    norms = named("norm1.", norm(width)) | named("norm2.", norm(width))
    rotation = {**norms, **named("attn.normy.", norm(width)), **named("attn.proj.", linear(width, width)), **feed}
    rotation |= {f"attn.{letter}_.weight": (width, width) for letter in "qkv"}
    for stage in ("start", "middle", "end"):
        shapes |= named(f"TPM.Ro_{stage}.Rotation.", rotation)
    block = {**norms, "attn.qkv.weight": (3 * width, width), **named("attn.proj.", linear(width, width)), **feed}
    for unit, chain in product(("RGBRE", "NIRE", "TIRE"), ("re1", "re2")):
        shapes |= named(f"CRM.{unit}.{chain}.blocks.0.", block)
    for kind in ("TPM", "ViT"):
        shapes |= head(f"bottleneck_{kind}", f"classifier_{kind}", 3 * width)
    return random_state(shapes)


def editor(*, joined: bool = True) -> State:
    """EDITOR: a ViT, HMA and OCFR."""
    width = VIT["width"]
    shapes = named("BACKBONE.base.", vit_tower())
    places = [("R", "R", "R_"), ("N", "N", "N_"), ("T", "T", "T_")]
    block: Shapes = {}
    for attn, first, second in [*places, ("1", "1", "2")]:
        feed = "mlp" if attn == "1" else f"mlp{attn}"
        block |= named(f"norm{first}.", norm(width)) | named(f"norm{second}.", norm(width))
        block |= {f"attn{attn}.qkv.weight": (3 * width, width), f"attn{attn}.proj.weight": (width, width)}
        block |= {f"{feed}.fc1.weight": (4 * width, width), f"{feed}.fc2.weight": (width, 4 * width)}
    block |= named("out_norm.", norm(width))
    block |= {f"memory_cls.{name}_centers": (IDENTITIES, width) for name in ("RGB", "NIR", "TIR")}
    shapes |= named("FUSE_block.", block)
    for name in ("RGB", "NIR", "TIR"):
        shapes |= named(f"{name}_REDUCE.", linear(width, 2 * width))
    shapes |= head("FUSE_BN", "FUSE_HEAD", 3 * width) | head("BACKBONE_BN", "BACKBONE_HEAD", width)
    return random_state(shapes | (head("AL_BN", "AL_HEAD", 3 * width) if joined else {}))


def mambapro() -> State:
    """MambaPro: CLIP with adapters and prompts, a part of its Mamba, and the heads of both kinds of supervision."""
    shapes = named("BACKBONE.", named("base.", clip_tower()) | cameras())
    for index in range(LAYERS):
        block = f"BACKBONE.base.transformer.resblocks.{index}."
        shapes |= {f"{block}adapter_prompt_{name}": (4, WIDTH) for name in MODALITIES}
        for name in ("transfer", "r", "n", "t"):
            shapes |= named(f"{block}adapter_{name}.0.", linear(WIDTH // 2, WIDTH))
            shapes |= named(f"{block}adapter_{name}.3.", linear(WIDTH, WIDTH // 2))
        shapes |= named(f"{block}adapter_ffn.0.", linear(2 * WIDTH, WIDTH))
        shapes |= named(f"{block}adapter_ffn.2.", linear(WIDTH, 2 * WIDTH))
    for letter in "rnt":
        shapes |= named(f"AAM.linear_reduction_{letter}.0.", norm(2 * DIM))
        shapes |= named(f"AAM.linear_reduction_{letter}.1.", linear(DIM, 2 * DIM))
    shapes |= {"AAM.ma_block.0.in_proj.weight": (2 * DIM, DIM), **head("bottleneck_fuse", "classifier_fuse", 3 * DIM)}
    return random_state(shapes | head("BACKBONE.bottleneck", "BACKBONE.classifier", DIM) | class_heads())


def idea(text_width: int, length: int, words: int) -> State:
    """IDEA: both towers of CLIP with `words` learned words, the inverse net, and CDA."""
    base = named("visual.", clip_tower()) | {"visual.new_positional_embedding": (1, WIDTH)}
    base |= named("transformer.resblocks.0.", clip_block(text_width)) | named("ln_final.", norm(text_width))
    base |= {"token_embedding.weight": (49408, text_width), "positional_embedding": (length, text_width)}
    base |= {"text_projection": (text_width, DIM), "logit_scale": (), "text_prompt": (words, text_width)}
    shapes = named("BACKBONE.base.", base) | named("BACKBONE.inverseNet.fc1.", linear(4 * DIM, DIM))
    shapes |= named("BACKBONE.inverseNet.fc2.", linear(WIDTH, 4 * DIM))
    group = "CDA.da_group.0."
    for name, rows, columns in [(f"proj_{one}", DIM, DIM) for one in ("q", "k", "v", "out")] + [
        ("conv_offset.0", DIM, 3 * DIM)
    ]:
        shapes |= {f"{group}{name}.weight": (rows, columns, 1, 1), f"{group}{name}.bias": (rows,)}
    shapes |= {f"{group}conv_offset.2.weight": (DIM, 1, 4, 4), f"{group}conv_offset.2.bias": (DIM,)}
    shapes |= {f"{group}conv_offset.4.weight": (2, DIM, 1, 1)}
    for neck, classifier in (
        ("bottleneck_visual", "visual_classifier"),
        ("bottleneck_textual", "textual_classifier"),
        ("bottleneck_v", "classifier_v"),
        ("bottleneck_t", "classifier_t"),
    ):
        shapes |= head(neck, classifier, 3 * DIM)
    return random_state(shapes)
