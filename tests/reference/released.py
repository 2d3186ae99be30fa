"""Towers and heads of the research codes as formulas, from their parameter names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]
MODALITIES = ("rgb", "nir", "tir")


def under(state: State, prefix: str) -> State:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def affine(state: State, name: str, values: Tensor) -> Tensor:
    """A linear map, whose bias may be missing."""
    return F.linear(values, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state: State, name: str, values: Tensor, eps: float = 1e-5) -> Tensor:
    """A layer norm."""
    return F.layer_norm(values, values.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def quick_gelu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(1.702 * values)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of projected tokens (batch tokens dim), head by head."""
    width, results = query.shape[-1] // heads, []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        logits = query[..., own] @ key[..., own].transpose(-1, -2) / width**0.5
        logits = logits if mask is None else logits + mask
        results.append(logits.softmax(dim=-1) @ value[..., own])
    return torch.cat(results, dim=-1)


def clip_block(state: State, tokens: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """A block of CLIP, with a parallel adapter where there is one."""
    projected = F.linear(norm(state, "ln_1", tokens), state["attn.in_proj_weight"], state["attn.in_proj_bias"])
    tokens = tokens + affine(state, "attn.out_proj", attend(*projected.chunk(3, dim=-1), heads, mask))
    fed = affine(state, "mlp.c_proj", quick_gelu(affine(state, "mlp.c_fc", norm(state, "ln_2", tokens))))
    if "adapter_ffn.0.weight" in state:
        fed = fed + affine(state, "adapter_ffn.2", quick_gelu(affine(state, "adapter_ffn.0", tokens)))
    return tokens + fed


def carry(state: State, name: str, prompts: Tensor) -> Tensor:
    """Prompts and what a small network adds to them."""
    return prompts + affine(state, f"{name}.3", quick_gelu(affine(state, f"{name}.0", prompts)))


def prompted(state: State, tokens: Tensor, modality: str, last: Tensor | None) -> Tensor:
    """The tokens and the prompts of all modalities behind them, in MambaPro."""
    for name in MODALITIES:
        own = state[f"adapter_prompt_{name}"].expand(len(tokens), -1, -1)
        if name != modality:
            own = carry(state, f"adapter_{name[0]}", own)
        elif last is not None:
            own = own + carry(state, "adapter_transfer", last)
        tokens = torch.cat([tokens, own], dim=1)
    return tokens


def clip_tokens(
    state: State, images: Tensor, camera: Tensor | None, heads: int, *, modality: str = "", extra: Tensor | None = None
) -> Tensor:
    """Projected tokens of CLIP's image tower, class token first, for images in [0, 1].

    Args:
        state: of the tower.
        images: of one modality.
        camera: embedding of the camera of each image.
        heads: of the attention.
        modality: own modality among the prompts of MambaPro.
        extra: a further token, with its position.
    """
    patch = state["conv1.weight"].shape[-1]
    patches = F.conv2d((images - 0.5) / 0.5, state["conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
    first = state["class_embedding"].expand(len(images), 1, -1)
    first = first if camera is None else first + camera[:, None]
    tokens = torch.cat([first, patches], dim=1) + state["positional_embedding"]
    if extra is not None:
        tokens = torch.cat([tokens, extra[:, None]], dim=1)
    tokens, last, count = norm(state, "ln_pre", tokens), None, tokens.shape[1]
    for index in range(2):
        block = under(state, f"transformer.resblocks.{index}.")
        if "adapter_prompt_rgb" in block:
            tokens = clip_block(block, prompted(block, tokens, modality, last), heads)
            last = torch.stack(tokens[:, count:].chunk(3, dim=1)).mean(dim=0)
            tokens = tokens[:, :count]
        else:
            tokens = clip_block(block, tokens, heads)
    return norm(state, "ln_post", tokens) @ state["proj"]


def vit_tokens(state: State, images: Tensor, camera: Tensor, heads: int) -> Tensor:
    """Tokens of a ViT, class token first, for images in [0, 1] and the embedding of each camera, times three."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    embedded = F.conv2d(
        (images - 0.5) / 0.5, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch
    )
    tokens = torch.cat([state["cls_token"].expand(len(images), -1, -1), embedded.flatten(2).transpose(1, 2)], dim=1)
    tokens = tokens + state["pos_embed"] + 3 * camera[:, None]
    for index in range(6):
        block = under(state, f"blocks.{index}.")
        queries, keys, values = affine(block, "attn.qkv", norm(block, "norm1", tokens, 1e-6)).chunk(3, dim=-1)
        tokens = tokens + affine(block, "attn.proj", attend(queries, keys, values, heads))
        fed = F.gelu(affine(block, "mlp.fc1", norm(block, "norm2", tokens, 1e-6)))
        tokens = tokens + affine(block, "mlp.fc2", fed)
    return norm(state, "norm", tokens, 1e-6)


def selected(state: State, classes: Tensor, patches: Tensor, count: int) -> Tensor:
    """Patches (modalities patches) that SIM keeps of one sample; `count` of each modality by its own class token."""
    kept, dim = torch.zeros(patches.shape[:2], dtype=torch.bool), patches.shape[2]
    for own in range(3):
        best = (patches[own] @ classes[own] / dim**0.5).topk(count).indices
        kept[own, best] = True
        query, others = affine(state, "W_q", classes[own]), [one for one in range(3) if one != own]
        scores = torch.cat([affine(state, "W_k", patches[one]) @ query for one in others])
        for place in scores.topk(2 * count).indices.tolist():
            kept[others[place // patches.shape[1]], place % patches.shape[1]] = True
    return kept


def signal_fused(state: State, classes: Tensor, patches: Tensor, count: int) -> Tensor:
    """SIM: (batch 3*dim) from class tokens (batch 3 dim) and patches (batch 3 patches dim)."""
    chosen = under(state, "token_selection.")
    kept = torch.stack([selected(chosen, *one, count) for one in zip(classes, patches, strict=True)])
    read = under(state, "modal_interactive.")
    attention = nn.MultiheadAttention(classes.shape[2], 8, batch_first=True)
    attention.load_state_dict(under(read, "cross_attn."))
    tokens = (patches * kept[..., None]).flatten(1, 2)
    first = norm(read, "norm1", classes + attention(classes, tokens, tokens)[0])
    fed = affine(read, "ffn.2", F.gelu(affine(read, "ffn.0", first)))
    return norm(read, "norm2", first + fed).flatten(1)


def permuted(state: State, classes: Tensor, patches: Tensor, heads: int) -> Tensor:
    """TPM: (batch 3*dim) from class tokens (batch 3 dim) and patches (batch 3 patches dim)."""
    for stage, step in (("start", 1), ("middle", 2), ("end", 0)):
        block, results = under(state, f"Ro_{stage}.Rotation."), []
        for own in range(3):
            token, read = classes[:, own, None], patches[:, (own + step) % 3]
            query = affine(block, "attn.q_", norm(block, "norm1", token))
            key = affine(block, "attn.k_", norm(block, "attn.normy", read))
            token = token + affine(block, "attn.proj", attend(query, key, affine(block, "attn.v_", read), heads))
            fed = affine(block, "mlp.fc2", F.gelu(affine(block, "mlp.fc1", norm(block, "norm2", token))))
            results.append((token + fed)[:, 0])
        classes = torch.stack(results, dim=1)
    return classes.flatten(1)


def inverted_caption(state: State, inverse: State, ids: Tensor, words: int, heads: int) -> Tensor:
    """The token that IDEA makes of a caption: text tower with learned words, mean, inverse net, without position."""
    tokens = state["token_embedding.weight"][ids]
    tokens[:, 5 : 5 + words] = tokens[:, 5 : 5 + words] + state["text_prompt"]
    length = ids.shape[1]
    causal = torch.full((length, length), -torch.inf).triu(1)
    block = under(state, "transformer.resblocks.0.")
    tokens = clip_block(block, tokens + state["positional_embedding"], heads, causal)
    read = norm(state, "ln_final", tokens) @ state["text_projection"]
    end = read[torch.arange(len(ids)), ids.argmax(dim=1)]
    text = torch.cat([end[:, None], read[:, 5 : 5 + words]], dim=1).mean(dim=1)
    return affine(inverse, "fc2", F.gelu(affine(inverse, "fc1", text)))
