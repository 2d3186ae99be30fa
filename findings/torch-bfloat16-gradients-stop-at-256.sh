#!/usr/bin/env bash
# Package: torch 2.13.0, on a CPU
# Guess: in bfloat16 a sum of n ones is n within rounding, as the products of torch are, which accumulate in float32.
# Seen: gradients of LayerNorm's weight and bias, of indexing and of F.embedding are summed in bfloat16 one by one and stop
#   at 256, also for 4096 rows. The gradient of a Linear's bias is right. Under autocast a float32 LayerNorm that meets a
#   bfloat16 tensor is wrong as well.
# For us: every norm runs in float32 (`_precision.layer_norm`); experts are chosen by index_select or gather.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import torch
import torch.nn.functional as F

torch.set_num_threads(1)
rows = 4096
ones = torch.ones(rows, 8, dtype=torch.bfloat16)


def of_bias(layer, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layer(ones).float().sum().backward()
    return layer.bias.grad[0].item()


def of_table(read):
    table = torch.zeros(2, 8, dtype=torch.bfloat16, requires_grad=True)
    read(table).float().sum().backward()
    return table.grad[0, 0].item()


index = torch.zeros(rows, dtype=torch.int64)
found = {
    "Linear's bias": of_bias(torch.nn.Linear(8, 8, dtype=torch.bfloat16)),
    "index_select": of_table(lambda table: table.index_select(0, index)),
    "LayerNorm's bias": of_bias(torch.nn.LayerNorm(8, dtype=torch.bfloat16)),
    "LayerNorm's bias, float32, autocast": of_bias(torch.nn.LayerNorm(8), autocast=True),
    "table[index]": of_table(lambda table: table[index]),
    "F.embedding": of_table(lambda table: F.embedding(index, table)),
}
for name, value in found.items():
    print(f"gradient of {name} over {rows} rows: {value:g}")
right = ("Linear's bias", "index_select")
assert all((abs(value - rows) <= 16) == (name in right) for name, value in found.items())
END
