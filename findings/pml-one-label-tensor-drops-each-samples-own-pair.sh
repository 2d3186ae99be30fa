#!/usr/bin/env bash
# Package: pytorch-metric-learning 2.9.0 (with torch 2.13.0)
# Guess: `loss(rgb, labels, ref_emb=thermal, ref_labels=labels)` pulls the thermal image of a sample to its RGB image.
# Seen: if both arguments are one tensor object, the library takes both sets of embeddings for one set, and leaves out each
#   sample's pair with itself: the pair of its two modalities. With `labels.clone()` it counts. Where every sample of a
#   batch has a label of its own, the loss is exactly 0 and so is its gradient, and nothing is learned. Miners do the
#   same: BatchHardMiner then finds no triplet. No warning says so.
# For us: our losses between modalities or between images and texts pair rows by their place, and never ask whether two
#   tensors are one object. The page on losses warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pytorch-metric-learning==2.9.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import torch
from pytorch_metric_learning.losses import CircleLoss, NTXentLoss, SupConLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices

torch.set_num_threads(1)
torch.manual_seed(0)
PERSONS, DIM, STEPS = 64, 16, 60
person = torch.randn(PERSONS, DIM)
rgb = person @ torch.randn(DIM, DIM) / DIM**0.5 + 0.05 * torch.randn(PERSONS, DIM)
thermal = person @ torch.randn(DIM, DIM) / DIM**0.5 + 0.05 * torch.randn(PERSONS, DIM)
labels = torch.arange(PERSONS)


def rank_one(loss_function, copied: bool) -> tuple[float, float, float]:
    """Train a projection per modality; return loss and gradient of the first step, and rank 1 from RGB to thermal."""
    torch.manual_seed(1)
    first, second = torch.nn.Linear(DIM, DIM), torch.nn.Linear(DIM, DIM)
    optimiser = torch.optim.Adam([*first.parameters(), *second.parameters()], 0.03)
    seen = []
    for _ in range(STEPS):
        other = labels.clone() if copied else labels
        loss = loss_function(first(rgb), labels, ref_emb=second(thermal), ref_labels=other)
        optimiser.zero_grad()
        loss.backward()
        seen.append((loss.item(), first.weight.grad.norm().item()))
        optimiser.step()
    with torch.no_grad():
        nearest = torch.cdist(*(torch.nn.functional.normalize(x) for x in (first(rgb), second(thermal)))).argmin(1)
    return *seen[0], (nearest == labels).float().mean().item()


for loss_function in (NTXentLoss(), SupConLoss(), CircleLoss()):
    for copied in (False, True):
        value, gradient, right = rank_one(loss_function, copied)
        name = f"{type(loss_function).__name__:10} labels{'.clone()' if copied else '        '}"
        print(f"{name} first loss {value:.3f}, its gradient {gradient:.3f}, rank 1 after {STEPS} steps {right:.3f}")
        assert (value > 0.1 and gradient > 0.1 and right > 0.9) if copied else (value == gradient == 0 and right < 0.1)

for name, other in (("labels", labels), ("labels.clone()", labels.clone())):
    triplets = BatchHardMiner()(rgb, labels, thermal, other)[0].numel()
    print(f"BatchHardMiner with {name}: {triplets} triplets")
    assert triplets == (0 if other is labels else PERSONS)

# Four samples per person: one of four positives of each sample is left out, its own other modality.
grouped = labels // 4
for name, other in (("labels", grouped), ("labels.clone()", grouped.clone())):
    positives = get_all_pairs_indices(grouped, other)[0].numel()
    print(f"four samples per person, {name}: {positives} positive pairs of {PERSONS * 4}")
    assert positives == PERSONS * (3 if other is grouped else 4)
END
