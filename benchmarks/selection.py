"""Selection by class tokens and across modalities (SIM of Signal), against its formulas transcribed one by one."""

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.floor import products_alone
from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import SelectiveInteraction, TokenSelection

MODALITIES, PATCHES, DIM, HEADS = 3, 128, 512, 8


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare the gates, and selection with interaction, forward and backward."""
    batch = 8 if device == "cpu" else 64
    for keep in (80, 64):
        written = AsWritten(keep).to(device)
        released = Ours(keep, "zeroed", straight_through=False).to(device)
        ours = Ours(keep, "hidden", straight_through=True).to(device)
        for layer in (released, ours):
            written.share_with(layer)
        patches, class_tokens = inputs(device, batch)
        exact = gates(written.double_copy(), patches.double(), class_tokens.double())
        yield Comparison(
            name=f"gates, {keep} of {PATCHES} patches, {batch} items, forward",
            contenders={
                "as written": Contender(gates(written, patches, class_tokens), exact),
                "ours": Contender(gates(ours, patches, class_tokens), exact),
            },
            targets=(Target("time", 0.2),),
            threads=1,
        )
        yield Comparison(
            name=f"selection and interaction, {keep} of {PATCHES} patches, {batch} items, forward and backward",
            contenders={
                name: Contender(trained(layer, patches, class_tokens), exactly(layer, patches, class_tokens))
                for name, layer in (("as written", written), ("ours", ours), ("ours, as released", released))
            }
            | {"products alone": products_alone(trained(ours, patches, class_tokens))},
            targets=(Target("time", 0.2),),
            threads=1,
        )


def inputs(device: str, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(batch, MODALITIES, PATCHES, DIM, generator=generator)
    return patches.to(device), torch.randn(batch, MODALITIES, DIM, generator=generator).to(device)


def gates(layer: "AsWritten | Ours", patches: Tensor, class_tokens: Tensor) -> Callable[[], Outputs]:
    return lambda: (layer.gates(patches, class_tokens).detach(),)


def trained(layer: "AsWritten | Ours", patches: Tensor, class_tokens: Tensor) -> Callable[[], Outputs]:
    """Return a call that computes the result, and all gradients; it returns those of patches and class tokens."""
    upstream = torch.randn(class_tokens.shape, generator=torch.Generator().manual_seed(1)).to(class_tokens)
    leaves = [patches.detach().requires_grad_(), class_tokens.detach().requires_grad_(), *layer.parameters()]

    def call() -> Outputs:
        result = layer(*leaves[:2])
        found = torch.autograd.grad(result, leaves, upstream, allow_unused=True)
        return result.detach(), found[0], found[1]

    return call


def exactly(layer: "AsWritten | Ours", patches: Tensor, class_tokens: Tensor) -> Callable[[], Outputs]:
    """Return the formula of the layer in float64, with unselected patches zeroed or hidden from the attention."""

    def call() -> Outputs:
        written = layer.written if isinstance(layer, Ours) else layer
        hide = isinstance(layer, Ours) and layer.interaction.unselected == "hidden"
        return trained(written.double_copy(hide), patches.double(), class_tokens.double())()

    return call


class Ours(nn.Module):
    """Both layers of the library."""

    written: "AsWritten"

    def __init__(self, keep: int, unselected: str, *, straight_through: bool) -> None:
        super().__init__()
        self.selection = TokenSelection(DIM, keep, straight_through=straight_through)
        self.interaction = SelectiveInteraction(DIM, num_heads=HEADS, unselected=unselected)  # pyright: ignore[reportArgumentType]

    def gates(self, patches: Tensor, class_tokens: Tensor) -> Tensor:
        return self.selection(patches, class_tokens)

    def forward(self, patches: Tensor, class_tokens: Tensor) -> Tensor:
        return self.interaction(class_tokens, patches, self.gates(patches, class_tokens))


class AsWritten(nn.Module):
    """Equations 5-18 in sequence, with a loop over the samples that builds the masks."""

    def __init__(self, keep: int, hide: bool = False) -> None:
        super().__init__()
        self.keep, self.hide = keep, hide
        self.query, self.key = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
        self.norm_attention, self.norm_ffn = nn.LayerNorm(DIM), nn.LayerNorm(DIM)

    def share_with(self, layer: Ours) -> None:
        """Copy these parameters to `layer`."""
        state = {name.removeprefix("attention."): value for name, value in self.state_dict().items()}
        for part in (layer.selection, layer.interaction):
            part.load_state_dict({name: state[name] for name in part.state_dict()})
        object.__setattr__(layer, "written", self)  # not a child

    def double_copy(self, hide: bool = False) -> "AsWritten":
        twin = copy.deepcopy(self).double()
        twin.hide = hide
        return twin

    def gates(self, patches: Tensor, class_tokens: Tensor) -> Tensor:
        batch, modalities, count, dim = patches.shape
        intra = torch.zeros(batch, modalities, count, dtype=torch.bool, device=patches.device)
        inter = torch.zeros(batch, modalities * count, dtype=torch.bool, device=patches.device)
        queries, keys = self.query(class_tokens), self.key(patches.flatten(1, 2))
        scores = (queries @ keys.transpose(1, 2) / math.sqrt(dim)).softmax(dim=-1)
        for m in range(modalities):
            own = (patches[:, m] @ class_tokens[:, m, :, None]).squeeze(-1) / math.sqrt(dim)
            chosen = own.softmax(dim=-1).topk(min(self.keep, count)).indices
            others = [place for place in range(modalities * count) if place // count != m]
            places = torch.tensor(others, device=patches.device)
            wanted = scores[:, m, places].topk(min((modalities - 1) * self.keep, len(others))).indices
            for b in range(batch):
                intra[b, m, chosen[b]] = True
                inter[b, places[wanted[b]]] = True
        return (intra | inter.view_as(intra)).to(patches.dtype)

    def forward(self, patches: Tensor, class_tokens: Tensor) -> Tensor:
        gates = self.gates(patches, class_tokens)
        context = (patches * gates[..., None]).flatten(1, 2)
        hidden = gates.flatten(1) == 0 if self.hide else None
        read, _ = self.attention(class_tokens, context, context, key_padding_mask=hidden)
        tokens = self.norm_attention(class_tokens + read)
        return self.norm_ffn(tokens + self.ffn(tokens))
