"""Exact search against faiss, and re-ranked evaluation against the product of all pairs, with one thread."""

from collections.abc import Iterator
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import nearest, reranked_metrics

DIM, NEAREST = 256, 10
QUERIES, GALLERY = 128, 200_000
RERANKED = 1000, 10_000, 700  # queries, gallery entries, identities


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare search, if faiss is installed, and re-ranking."""
    generator = torch.Generator().manual_seed(0)
    if device == "cpu" and find_spec("faiss"):
        yield search(*(torch.randn(count, DIM, generator=generator) for count in (QUERIES, GALLERY)))
    queries, entries, identities = RERANKED
    centre = F.normalize(torch.randn(identities, DIM, generator=generator))
    ids = torch.randint(identities, (queries + entries,), generator=generator)
    features = (centre[ids] + 0.06 * torch.randn(len(ids), DIM, generator=generator)).to(device)
    yield reranking(features, ids.to(device), queries)


def search(query: Tensor, gallery: Tensor) -> Comparison:
    """Compare searches that return squared distances, nearest first."""
    import faiss

    index = faiss.IndexFlatL2(DIM)
    index.add(gallery.numpy())  # pyright: ignore[reportCallIssue]

    def flat() -> Outputs:
        faiss.omp_set_num_threads(1)
        distances, _ = index.search(query.numpy(), NEAREST)  # pyright: ignore[reportCallIssue]
        return (torch.from_numpy(distances),)

    def exact() -> Outputs:
        pairs = (row.double() - gallery for row in query[:4])
        return (torch.stack([pair.square().sum(dim=1).topk(NEAREST, largest=False).values for pair in pairs]),)

    def ours() -> Outputs:
        return (nearest(query, gallery, NEAREST)[1],)

    contenders = {"faiss IndexFlatL2": Contender(flat), "ours": Contender(ours)}
    first = nearest(query[:4], gallery, NEAREST)[1]
    torch.testing.assert_close(first.double(), exact()[0], rtol=1e-4, atol=1e-4)
    name = f"exact search, {QUERIES} x {GALLERY} x {DIM}, k = {NEAREST}"
    return Comparison(name, contenders, (Target("time", 0.5),), threads=1)


def reranking(features: Tensor, ids: Tensor, queries: int) -> Comparison:
    """Compare re-ranking with the product of all pairs: every entry looks for its neighbours, so this is the floor."""

    def product() -> Outputs:
        return (torch.stack([(rows @ features.T).sum() for rows in features.split(64)]).sum(),)

    def ours() -> Outputs:
        query, gallery = features[:queries], features[queries:]
        return (reranked_metrics(query, gallery, ids[:queries], ids[queries:]).average_precision,)

    contenders = {"product of all pairs": Contender(product), "ours": Contender(ours)}
    name = f"reranked_metrics, {queries} + {len(features) - queries} x {DIM}"
    return Comparison(name, contenders, (Target("time", 3.0),), threads=1)
