#!/usr/bin/env bash
# Package: torch 2.13.0 with onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0
# Guess: a graph that onnxruntime runs without a warning computes what torch computed when it was exported.
# Seen: `scatter_reduce("mean")` is exported without its mean (the last value wins), and a fully masked row of
#   scaled_dot_product_attention, 0 in torch, is the mean of the masked values.
# For us: means are sums over a count, attention that can lose all keys has a `where`, exports are run and compared.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cd "$folder"
venv/bin/python - <<'END'
import logging
import warnings

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)


class PooledByIdentity(nn.Module):
    def forward(self, features, identities):
        index = identities[:, None].expand_as(features)
        return torch.zeros(2, 3).scatter_reduce(0, index, features, "mean", include_self=False)


class Attention(nn.Module):
    def forward(self, tokens, keep):
        heads = tokens[:, None]  # with three axes the exporter refuses: "only 4D ... are supported"
        return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=keep[:, None, None, :])[:, 0]


def both(module, *inputs):
    program = torch.onnx.export(module.eval(), inputs, dynamo=True, verbose=False)
    program.save("graph.onnx")
    session = onnxruntime.InferenceSession("graph.onnx", providers=["CPUExecutionProvider"])
    named = {put.name: value.numpy() for put, value in zip(session.get_inputs(), inputs)}
    return module(*inputs).numpy(), session.run(None, named)[0]


features = torch.tensor([[1.0, 2, 3], [3, 4, 5], [10, 10, 10]])
eager, exported = both(PooledByIdentity(), features, torch.tensor([0, 0, 1]))
print("mean of an identity: torch", eager[0].tolist(), "onnxruntime", exported[0].tolist())
assert eager[0].tolist() == [2, 3, 4] and exported[0].tolist() == [3, 4, 5]

tokens = torch.arange(12.0).reshape(1, 3, 4)
eager, exported = both(Attention(), tokens, torch.zeros(1, 3, dtype=torch.bool))
print("nothing to attend to: torch", eager[0, 0].tolist(), "onnxruntime", exported[0, 0].tolist())
assert not eager.any() and np.allclose(exported[0, 0], tokens.mean(dim=1)[0].numpy())
END
