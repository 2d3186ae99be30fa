"""Settings and identities of the synthetic set, and random views of each identity."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.random import Generator

from examples.prepare.synthetic.bodies import ASPECT, BODIES, HEATS, HUES, INKS, TAG_SIDE, Body, Tag
from examples.prepare.synthetic.scenes import BANDS, LIGHTS, Figure, Pose, View, body_fill

PLACES = 24
FOREGROUND = (0.22, 0.385)  # share of the frame; tags beyond the silhouette and whole pixels add a little
CORRUPTIONS = ("none", "eroded", "dilated", "holes", "false_foreground", "empty", "mixed")


@dataclass(frozen=True)
class Settings:
    """Settings of the synthetic set; they determine every byte.

    Attributes:
        seed: seed of all random draws.
        kind: vehicles (for square or wide frames) or persons (for tall frames).
        size: height and width of an image in pixels, at least 32.
        train_identities: number of identities in `train`.
        test_identities: number of identities in `test`, none of them in `train`.
        train_images: number of images per identity in `train`, taken by the cameras in turn.
        test_images: number of images per identity in `test`, taken by the cameras in turn.
        cameras: number of cameras; they differ in light, viewpoint and pose.
        binding_share: share of the identities in binding groups of four, 0 to 1; rounded down.
        background_correlation: share of training images, 0 to 1, at the identity's own place; test places are random.
        mask_corruption: damage of the written masks, in both splits; "mixed" draws another kind for every item.
        mask_level: extent of the damage, 0 to 1: share of the foreground that is removed or added.
        mask_per_modality: write `mask_<MODALITY>` without parallax instead of one `mask` in the geometry of RGB.
        caption_unknown: share of the attributes of a caption that are left out, 0 to 1.
        caption_wrong: share of the named attributes that are named wrongly, 0 to 1.
    """

    seed: int = 0
    kind: Literal["vehicle", "person"] = "vehicle"
    size: tuple[int, int] = (64, 64)
    train_identities: int = 120
    test_identities: int = 100
    train_images: int = 5
    test_images: int = 4
    cameras: int = 4
    binding_share: float = 0.25
    background_correlation: float = 0.7
    mask_corruption: Literal["none", "eroded", "dilated", "holes", "false_foreground", "empty", "mixed"] = "none"
    mask_level: float = 0.3
    mask_per_modality: bool = False
    caption_unknown: float = 0.3
    caption_wrong: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in BODIES:
            raise ValueError(f"kind must be one of {', '.join(BODIES)}; received {self.kind!r}")
        if self.mask_corruption not in CORRUPTIONS:
            raise ValueError(
                f"mask_corruption must be one of {', '.join(CORRUPTIONS)}; received {self.mask_corruption!r}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must not be negative; received {self.seed}")
        if min(self.size) < 32:
            raise ValueError(
                f"size must be at least 32 pixels high and wide, so that tags are visible; received {self.size}"
            )
        for name in ("train_identities", "test_identities", "train_images", "test_images", "cameras"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; received {getattr(self, name)}")
        for name in ("binding_share", "background_correlation", "mask_level", "caption_unknown", "caption_wrong"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; received {getattr(self, name)}")


@dataclass(frozen=True)
class Identity:
    """One identity: its number, silhouette, tags, binding group and place in training."""

    number: int
    body: int
    tags: tuple[Tag, ...]
    group: int | None
    place: int


def _deal(rng: Generator, codes: Sequence[Any], bodies: int) -> Iterator[tuple[int, Any]]:
    """Yield every (body, code) once: bodies in turn, codes in a separate random order for each body."""
    orders = [rng.permutation(len(codes)) for _ in range(bodies)]
    for turn in zip(*orders, strict=True):
        yield from ((body, codes[index]) for body, index in enumerate(turn))


def make_identities(settings: Settings) -> dict[str, list[Identity]]:
    """Deal codes to the identities of both splits, no code twice.

    Raises:
        ValueError: when there are more identities than codes.
    """
    rng = np.random.default_rng((settings.seed, 1))
    bodies = len(BODIES[settings.kind])
    values = [range(len(HUES)), range(len(INKS)), range(len(HEATS))]
    codes = list(itertools.product(*values))
    couples = list(itertools.product(*(list(itertools.combinations(v, 2)) for v in values)))
    plain, pairs = _deal(rng, codes, bodies), _deal(rng, couples, bodies)
    splits: dict[str, list[Identity]] = {}
    numbers, groups = itertools.count(1), itertools.count()
    for split, count in (("train", settings.train_identities), ("test", settings.test_identities)):
        bound = int(settings.binding_share * count) // 4
        chosen: list[tuple[int, tuple[Tag, ...], int | None]] = [
            (body, (Tag(*code),), None) for body, code in itertools.islice(plain, count - 4 * bound)
        ]
        for (body, (hues, inks, heats)), group in zip(itertools.islice(pairs, bound), groups, strict=False):
            for ink, heat in itertools.product((0, 1), repeat=2):
                tags = Tag(hues[0], inks[ink], heats[heat]), Tag(hues[1], inks[1 - ink], heats[1 - heat])
                chosen.append((body, tags, group))
        if len(chosen) < count:
            raise ValueError(
                f"train_identities and test_identities must make at most {bodies * len(codes)} plain and "
                f"{4 * bodies * len(couples)} binding identities; received {settings.train_identities} + "
                f"{settings.test_identities} with binding_share {settings.binding_share}: lower the counts or "
                "change the share"
            )
        splits[split] = [Identity(next(numbers), *one, int(rng.integers(PLACES))) for one in chosen]
    return splits


def confusable(identities: Sequence[Identity], bands: Sequence[str]) -> float:
    """Count the identities that look like an identity, itself included, on average to a perfect reader of bands."""
    chosen = [BANDS.index(band) for band in bands]
    looks = Counter(
        (one.body, tuple(sorted(tuple(tag[k] for k in chosen) for tag in set(one.tags)))) for one in identities
    )
    return sum(count**2 for count in looks.values()) / len(identities)


def _pose(rng: Generator, settings: Settings, body: Body, camera: int, share: float) -> Pose:
    """Draw a pose in which the body covers `share` of the frame and does not leave it."""
    height, width = settings.size
    area = share * height * width / body_fill(body)
    aspect = ASPECT[settings.kind] * (1.0, 0.88, 0.94)[camera % 3] * rng.uniform(0.95, 1.05)
    across = min((area * aspect) ** 0.5, 0.95 * width)
    across = max(across, area / (0.95 * height))
    down = area / across
    slack = (0.98 * width - across) / 2, (0.98 * height - down) / 2
    x, y = (side / 2 + gap * rng.uniform(-1, 1) for side, gap in zip((width, height), slack, strict=True))
    rotation = (0.0, 0.06, -0.06)[camera % 3] + rng.normal(0, 0.03)
    shear = (0.0, 0.12, -0.12)[camera % 3] + rng.normal(0, 0.03)
    return Pose((x, y), across, down, rotation, shear, mirrored=camera % 2 == 1)


def _wear(rng: Generator, body: Body, tags: Sequence[Tag]) -> tuple[tuple[tuple[float, float], Tag], ...]:
    """Draw one to three tags at random anchors, every different tag at least once."""
    number = int(rng.integers(len(tags), 4))
    worn = [*tags, *(tags[int(rng.integers(len(tags)))] for _ in range(number - len(tags)))]
    anchors = rng.permutation(len(body.anchors))[:number]
    return tuple((body.anchors[anchor], tag) for anchor, tag in zip(anchors, worn, strict=True))


def _surroundings(
    rng: Generator, settings: Settings, figure: Figure, others: Sequence[Identity]
) -> tuple[tuple[Figure, ...], tuple[tuple[Pose, Tag], ...]]:
    """Draw two other identities at the edges of the frame, and tags in the background, as large as the figure's."""
    bodies, (height, width) = BODIES[settings.kind], settings.size
    side = TAG_SIDE * (figure.pose.width * figure.pose.height) ** 0.5
    bystanders, posters = [], []
    for other in (others[int(k)] for k in rng.integers(len(others), size=2)):
        pose = _pose(rng, settings, bodies[other.body], int(rng.integers(3)), rng.uniform(0.1, 0.25))
        centre = (width * rng.choice([-0.02, 0.12, 0.88, 1.02]), height * rng.uniform(0.1, 0.6))
        pose = replace(pose, centre=centre, mirrored=bool(rng.integers(2)))
        worn = _wear(rng, bodies[other.body], other.tags)
        bystanders.append(Figure(bodies[other.body], pose, worn, rng.uniform(0, 1)))
        posters.append((Pose((width * rng.uniform(), height * rng.uniform()), side, side), other.tags[0]))
    return tuple(bystanders), tuple(posters)


def sample_view(
    settings: Settings, identity: Identity, index: int, others: Sequence[Identity], own_place: float
) -> View:
    """Draw the view that the `index`-th image of an identity shows.

    Args:
        settings: settings of the set.
        identity: identity to show.
        index: number of the image; `index % cameras` is the camera.
        others: identities whose bodies and tags appear in the background.
        own_place: probability that the background is the identity's own place, instead of a random one.
    """
    rng = np.random.default_rng((settings.seed, 2, identity.number, index))
    bodies, camera = BODIES[settings.kind], index % settings.cameras
    height, width = settings.size
    figure = Figure(
        bodies[identity.body],
        _pose(rng, settings, bodies[identity.body], camera, rng.uniform(*FOREGROUND)),
        _wear(rng, bodies[identity.body], identity.tags),
        rng.uniform(0, 1),
    )
    bystanders, posters = _surroundings(rng, settings, figure, others)
    main = LIGHTS[camera % len(LIGHTS)]
    directions, lengths = rng.choice([-1, 1], 2), rng.integers(1, 5, 2)
    ni, ti = (int(step) for step in directions * lengths)
    return View(
        size=settings.size,
        figure=figure,
        bystanders=bystanders,
        posters=posters,
        place=(settings.seed, identity.place if rng.uniform() < own_place else int(rng.integers(PLACES))),
        shift=(rng.uniform(-0.08, 0.08) * width, rng.uniform(-0.05, 0.05) * height),
        light=main if rng.uniform() < 0.7 else str(rng.choice([light for light in LIGHTS if light != main])),
        air=rng.uniform(275, 300),
        parallax={"RGB": (0, 0), "NI": (ni, 0), "TI": (ti, 0)},
        key=int(rng.integers(2**32)),
    )
