#!/usr/bin/env bash
# Package: accelerate 1.15.0 (with torch 2.13.0)
# Guess: gather_for_metrics returns each item that the loader gave exactly once: it drops what accelerate itself repeated so
#   that all processes have equal batches, and on one process there is nothing to drop.
# Seen: of the last batch it keeps as many items as the length of the data set leaves over after whole batches, whatever
#   the sampler gives. 591 queries that a sampler picks from 1055 items, in batches of 128, become 543, on one process as
#   well: the last 48 are gone, with them 12 identities. If those were taken at night, rank 1 is 0.99 instead of 0.92. Where
#   the set leaves nothing over, nothing is dropped: on two processes 591 queries are 768 rows. Batches that group items by
#   their modalities lose items, too. No error or warning says so. With torch's Subset instead of a sampler all is right.
# For us: `examples.extract` gives each process items of its own and gathers nothing. The guide on libraries warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > gather.py <<'END'
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset, TensorDataset

ITEMS, QUERIES, BATCH, EACH = 1055, 591, 128, 4
generator = torch.Generator().manual_seed(0)
identity = torch.arange(ITEMS) // EACH
noise = torch.where(torch.arange(ITEMS) < 540, 0.5, 2.0)  # later items were taken at night
centres = torch.randn(ITEMS // EACH + 1, 32, generator=generator)
first, second = (
    torch.nn.functional.normalize(centres[identity] + noise[:, None] * torch.randn(ITEMS, 32, generator=generator), dim=1)
    for _ in range(2)
)
accelerator = Accelerator(cpu=True)


def gathered(loader: DataLoader) -> torch.Tensor:
    batches = accelerator.prepare(loader)
    return torch.cat([accelerator.gather_for_metrics(rows) for (rows,) in batches])


def rank_1(queries: torch.Tensor) -> float:
    nearest = (first[queries] @ second[:QUERIES].T).argmax(1)
    return float((identity[nearest] == identity[queries]).float().mean())


items = TensorDataset(torch.arange(ITEMS))
whole = torch.arange(QUERIES)
subset = gathered(DataLoader(Subset(items, range(QUERIES)), batch_size=BATCH))
sampler = gathered(DataLoader(items, batch_size=BATCH, sampler=range(QUERIES)))
longer = TensorDataset(torch.arange(1280))  # 1280 is a multiple of both batches
twice = gathered(DataLoader(longer, batch_size=BATCH, sampler=range(QUERIES)))
lost = sorted(set(whole.tolist()) - set(sampler.tolist()))
without = len(set(identity[whole].tolist()) - set(identity[sampler].tolist()))
if accelerator.is_main_process:
    print(f"{accelerator.num_processes} process(es): of {QUERIES} queries Subset gives {len(subset)}, the sampler {len(sampler)}")
    print(f"  lost are {lost[0]} to {lost[-1]}, all queries of {without} identities")
    print(f"  rank 1 of all queries {rank_1(whole):.3f}, of those gathered {rank_1(sampler):.3f}")
    print(f"  of a set of {len(longer)} items: {len(twice)} rows of {len(twice.unique())} queries")
assert torch.equal(subset.sort().values, whole) and torch.equal(sampler.unique(), whole[:543]) and len(sampler) == 543
assert without == 12 and rank_1(sampler) > rank_1(whole) + 0.05
assert len(twice.unique()) == QUERIES and len(twice) == (QUERIES if accelerator.num_processes == 1 else 768)


class ByModalities:
    """Batches of complete items, then batches of the 190 items without thermal image."""

    batch_size, drop_last = 64, False

    def __iter__(self):
        for start, stop in ((0, 865), (865, ITEMS)):
            yield from (range(i, min(i + 64, stop)) for i in range(start, stop, 64))

    def __len__(self) -> int:
        return 14 + 3


if accelerator.num_processes == 1:
    rows = gathered(DataLoader(items, batch_sampler=ByModalities()))
    print(f"  batches grouped by modalities: {len(rows)} of {ITEMS} items")
    assert len(rows) == 1024
END
export OMP_NUM_THREADS=1
venv/bin/python -W ignore gather.py
venv/bin/python -W ignore -m torch.distributed.run --standalone --nproc-per-node 2 gather.py
