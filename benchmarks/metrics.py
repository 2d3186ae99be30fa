"""Evaluation of a gallery of Market-1501's size, against the matrix product alone and a loop over the queries."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import reid_metrics

QUERIES, GALLERY, DIM, IDENTITIES, CAMERAS = 3368, 15913, 512, 750, 6
FEW = 200  # queries that the loop ranks; all queries would take a minute


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare on the whole gallery, for features as of a trained model (mAP about 0.8) and for random features."""
    for name, noise, targets in (
        ("", 0.06, (Target("time", 1.3), Target("MiB", 64))),
        (", random features", 10.0, ()),
    ):
        problem = Problem(device, noise)
        yield Comparison(
            name=f"reid_metrics, {QUERIES} x {GALLERY} x {DIM}{name}",
            contenders={"matrix product": Contender(problem.product), "ours": Contender(problem.ours)},
            targets=targets,
        )
    few = Problem(device, 0.06, queries=FEW)
    yield Comparison(
        name=f"reid_metrics, {FEW} x {GALLERY} x {DIM}",
        contenders={
            "loop over the queries": Contender(few.loop, few.exact, turns=3),
            "ours": Contender(few.ours, few.exact),
            "matrix product": Contender(few.product),
        },
    )


class Problem:
    """Features around one centre per identity."""

    def __init__(self, device: str, noise: float, queries: int = QUERIES) -> None:
        generator = torch.Generator().manual_seed(0)
        centre = F.normalize(torch.randn(IDENTITIES, DIM, generator=generator))

        def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
            identity = torch.randint(IDENTITIES, (count,), generator=generator)
            features = centre[identity] + noise * torch.randn(count, DIM, generator=generator)
            camera = torch.randint(CAMERAS, (count,), generator=generator)
            return features.to(device), identity.to(device), camera.to(device)

        self.query, self.query_ids, self.query_cameras = draw(queries)
        self.gallery, self.gallery_ids, self.gallery_cameras = draw(GALLERY)

    def product(self) -> Outputs:
        return (self.query @ self.gallery.T,)

    def ours(self) -> Outputs:
        scores = reid_metrics(
            self.query,
            self.gallery,
            self.query_ids,
            self.gallery_ids,
            query_groups=self.query_cameras,
            gallery_groups=self.gallery_cameras,
        )
        return (scores.average_precision,)

    def loop(self) -> Outputs:
        return (self._loop(self.query, self.gallery),)

    def exact(self) -> Outputs:
        return (self._loop(self.query.double(), self.gallery.double()),)

    def _loop(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Follow the definition: sort the gallery of a query, drop entries, average the precision at each positive."""
        found = []
        for feature, identity, camera in zip(query, self.query_ids, self.query_cameras, strict=True):
            order = (gallery - feature).norm(dim=1).argsort(stable=True)
            same = self.gallery_ids[order] == identity
            match = same[~(same & (self.gallery_cameras[order] == camera))]
            rank = match.nonzero().flatten() + 1
            found.append((torch.arange(1, len(rank) + 1, device=rank.device) / rank).double().mean())
        return torch.stack(found)
