#!/usr/bin/env bash
# Package: peft 0.21.2 with torch 2.13.0 and transformers 5.24.0
# Guess: LoRA on `out_proj` of nn.MultiheadAttention, the projection of CLIP towers in open_clip, acts like on any Linear.
# Seen: the adapter is installed and counted as trainable, its output is never used (torch reads the weight, not the
#   module), it gets no gradient, and merging it changes the model that was trained.
# For us: our layers call `out_proj` as a module.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0
cd "$folder"
venv/bin/python - <<'END'
import torch
from peft import LoraConfig, get_peft_model
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, tokens):
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


torch.manual_seed(0)
tokens, block = torch.randn(2, 5, 16), Block()
before = block(tokens).detach()
model = get_peft_model(block, LoraConfig(target_modules=["out_proj"], r=4))
adapters = {name: part for name, part in model.named_parameters() if "lora_" in name}
print("adapter tensors:", len(adapters), "trainable:", sum(part.requires_grad for part in adapters.values()))
assert adapters and all(part.requires_grad for part in adapters.values())
with torch.no_grad():
    for part in adapters.values():
        part.normal_()
after = model(tokens)
print("largest change of the output by random adapters:", (after - before).abs().max().item())
assert torch.equal(after, before)
merged = model.merge_and_unload()(tokens)
print("largest change after merging:", (merged - before).abs().max().item())
assert (merged - before).abs().max() > 0.1
END
