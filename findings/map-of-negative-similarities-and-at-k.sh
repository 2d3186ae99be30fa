#!/usr/bin/env bash
# Package: torchmetrics 1.9.0, pytorch-metric-learning 2.9.0 (with torch 2.13.0 and faiss-cpu 1.15.1)
# Guess: mean average precision depends on the order alone, and two libraries agree on it at rank k.
# Seen: RetrievalMAP of torchmetrics leaves out every positive whose similarity is 0 or below: a ranking with a mean
#   average precision of 0.83 gets 1, and 0.83 when 1 is added to all similarities. At k = 2 a perfect ranking of four
#   positives has 1 there, and 0.5 in pytorch-metric-learning, which divides by all positives instead of those found.
# For us: mAP ranks by distance, of any sign, and divides by all positives of a query.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 torchmetrics==1.9.0 \
  pytorch-metric-learning==2.9.0 faiss-cpu==1.15.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torchmetrics.retrieval import RetrievalMAP

# Cosines of one query with four gallery entries; the second entry, a positive, lies third in the ranking.
cosines, positive = torch.tensor([0.9, -0.1, 0.5, -0.5]), torch.tensor([True, True, False, False])
query = torch.zeros(4, dtype=torch.long)
asked, raised = (float(RetrievalMAP()(scores, positive, query)) for scores in (cosines, cosines + 1))
print(f"torchmetrics, the same ranking: cosines {asked:.3f}, cosines + 1 {raised:.3f}")
assert asked == 1 and abs(raised - (1 + 2 / 3) / 2) < 1e-6

# Ten entries ever farther from the query, the four positives first.
angles = torch.linspace(0.05, 1.5, 10)
gallery = torch.stack([angles.cos(), angles.sin()], 1)
asked, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
for k, expected in ((2, (0.5, 1.0)), (4, (1.0, 1.0)), (10, (1.0, 1.0))):
    calculator = AccuracyCalculator(include=("mean_average_precision",), k=k, device=torch.device("cpu"))
    learning = calculator.get_accuracy(asked, labels[:1], gallery, labels)["mean_average_precision"]
    cosine = (asked @ gallery.T)[0]
    metrics = float(RetrievalMAP(top_k=k)(cosine, labels.bool(), torch.zeros(10, dtype=torch.long)))
    print(f"a perfect ranking at k = {k}: pytorch-metric-learning {learning}, torchmetrics {metrics}")
    assert (learning, metrics) == expected
END
