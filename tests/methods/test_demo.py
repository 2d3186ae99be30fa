"""DeMo: outputs equal to the research code's with the same parameters, and reported gates."""

import copy
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.demo.model import DeMo
from examples.demo.released import released_state
from examples.towers.vit import VisionTransformer
from given_tower import GivenTower, batch_of
from vectors import FOLDER, every, load, meta, part

NAMES, SUBSETS = ("rgb", "nir", "tir"), ("r", "n", "t", "rn", "rt", "nt", "rnt")
MODALITIES = ("RGB", "NI", "TI")


def quick_gelu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(1.702 * values)


def attend(state: dict[str, Tensor], subset: str, query: Tensor, tokens: Tensor, heads: int) -> Tensor:
    """The multi-head attention of torch with the released parameters of one subset."""
    attention = nn.MultiheadAttention(tokens.shape[2], heads, batch_first=True, dtype=tokens.dtype)
    attention.load_state_dict({name: state[f"{subset}.{name}"] for name in attention.state_dict()})
    return attention(query.expand(len(tokens), -1, -1), tokens, tokens)[0][:, 0]


def normalise(state: dict[str, Tensor], name: str, values: Tensor) -> Tensor:
    """Batch norm in evaluation."""
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(values, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])


def released(state: dict[str, Tensor], patches: Tensor, globals_: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """PIFE, HDM and ATMoE from their equations and released parameter names: global tokens, and the experts' result."""
    reduced = []
    for index, name in enumerate(NAMES):
        joined = torch.cat([globals_[:, index], patches[:, index].mean(dim=1)], dim=1)
        joined = F.layer_norm(
            joined, joined.shape[1:], state[f"{name}_reduce.0.weight"], state[f"{name}_reduce.0.bias"]
        )
        reduced.append(quick_gelu(joined @ state[f"{name}_reduce.1.weight"].T + state[f"{name}_reduce.1.bias"]))
    tokens = [torch.cat([reduced[index][:, None], patches[:, index]], dim=1) for index in range(3)]
    members = [chosen for size in (1, 2, 3) for chosen in combinations(range(3), size)]
    parts = [
        attend(state, subset, state[f"{subset}_token"], torch.cat([tokens[index] for index in chosen], dim=1), heads)
        for subset, chosen in zip(SUBSETS, members, strict=True)
    ]
    gate, dim = "gating_network.gate.", patches.shape[3]
    query = torch.cat(parts, dim=1) @ state[f"{gate}linear_re.0.weight"].T + state[f"{gate}linear_re.0.bias"]
    query = normalise(state, f"{gate}linear_re.2", quick_gelu(query)) @ state[f"{gate}q_.weight"].T
    keys = torch.stack([one @ state[f"{gate}k_.weight"].T for one in parts], dim=1)
    results, width = [], dim // 4
    for index, one in enumerate(parts):
        for head in range(4):
            own = slice(head * width, (head + 1) * width)
            logits = (query[:, None, own] * keys[:, :, own]).sum(dim=2) / width**0.5
            expert = f"experts.{head}.expertHead.{index}.mlp"
            value = quick_gelu(one[:, own] @ state[f"{expert}.0.weight"].T + state[f"{expert}.0.bias"])
            results.append(logits.softmax(dim=1)[:, index, None] * normalise(state, f"{expert}.2", value))
    return torch.cat(reduced, dim=1), torch.cat(results, dim=1)


def assert_released(state: dict[str, Tensor], patches: Tensor, globals_: Tensor, heads: int) -> None:
    model = DeMo(GivenTower(patches, globals_), MODALITIES, readout_heads=heads).double().eval()
    model.load_state_dict(released_state(state))
    features = model(batch_of(len(patches), 3)).features
    for actual, expected in zip(features.values(), released(state, patches, globals_, heads), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert list(features) == ["G", "experts"]
    assert {name: value.shape[1] for name, value in features.items()} == model.widths


@every("demo_pife_*.npz")
def test_it_composes_the_released_parts_with_their_released_parameters(path):
    suffix = path.stem.removeprefix("demo_pife")
    paths = [path, *(FOLDER / f"demo_{kind}{suffix}.npz" for kind in ("hdm", "atmoe"))]
    if not all(one.exists() for one in paths):
        pytest.skip(f"no HDM and ATMoE of the size{suffix}")
    arrays, settings = [load(one, torch.float64) for one in paths], [meta(one) for one in paths]
    if len({one["D"] for one in settings}) > 1 or settings[2]["heads"] != 4:
        pytest.skip(f"the parts of the size{suffix} do not fit each other")
    state = {name: value for one in arrays for name, value in part(one, "param.").items()}
    patches, globals_ = (
        torch.stack([arrays[0][f"in.{one}_{kind}"] for one in NAMES], 1) for kind in ("patches", "global")
    )
    assert_released(state, patches, globals_, settings[1]["heads"])


def test_it_composes_the_parts_with_random_parameters():
    dim = 8
    shapes = {f"{name}_reduce.0.{part}": (2 * dim,) for name in NAMES for part in ("weight", "bias")}
    shapes |= {f"{name}_reduce.1.weight": (dim, 2 * dim) for name in NAMES}
    shapes |= {f"{name}_reduce.1.bias": (dim,) for name in NAMES}
    for subset in SUBSETS:
        shapes |= {f"{subset}_token": (1, 1, dim), f"{subset}.in_proj_weight": (3 * dim, dim)}
        shapes |= {f"{subset}.in_proj_bias": (3 * dim,), f"{subset}.out_proj.weight": (dim, dim)}
        shapes |= {f"{subset}.out_proj.bias": (dim,)}
    gate = "gating_network.gate"
    shapes |= {f"{gate}.linear_re.0.weight": (dim, 7 * dim), f"{gate}.linear_re.0.bias": (dim,)}
    shapes |= {f"{gate}.{name}.weight": (dim, dim) for name in ("q_", "k_")}
    norms = {f"{gate}.linear_re.2": dim}
    for expert in (f"experts.{head}.expertHead.{index}.mlp" for head in range(4) for index in range(7)):
        shapes |= {f"{expert}.0.weight": (2, 2), f"{expert}.0.bias": (2,)}
        norms[f"{expert}.2"] = 2
    statistics = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"{norm}.{part}": (width,) for norm, width in norms.items() for part in statistics}
    state = {name: torch.rand(shape, dtype=torch.float64) + 0.1 for name, shape in shapes.items()}
    state |= {f"{norm}.num_batches_tracked": torch.tensor(0) for norm in norms}
    assert_released(state, torch.randn(3, 3, 5, dim).double(), torch.randn(3, 3, dim).double(), 2)


def demo(modalities: int = 2, **options) -> DeMo:
    tower = VisionTransformer((16, 16), patch_size=4, dim=16, depth=1, num_heads=2, stem_width=8)
    return DeMo(tower, MODALITIES[:modalities], readout_heads=2, expert_heads=2, **options)


@pytest.mark.parametrize(("incomplete", "expected"), [("read", [True, False, True]), ("drop", [True, False, False])])
def test_a_subset_of_absent_modalities_is_nothing(incomplete, expected):
    model = demo(incomplete=incomplete).eval()
    features = model(batch_of(2, 2, present=torch.tensor([[True, False], [True, True]]))).features
    blocks = features["experts"].unflatten(1, (3, 16)).abs().sum(dim=2) > 0
    assert blocks.tolist() == [expected, [True, True, True]]
    assert not features["G"][0, 16:].any()


def test_single_means_a_feature_per_modality_supervised_on_the_samples_that_have_it():
    model, present = demo(supervision="single"), torch.tensor([[True, False], [True, True]])
    outputs = model(batch_of(2, 2, present=present))
    assert list(outputs.features) == ["G_RGB", "G_NI", "experts"] == list(model.widths)
    assert torch.equal(outputs.rows["G_NI"], present[:, 1])
    assert not demo(supervision="single")(batch_of(2, 2)).rows


@pytest.mark.parametrize(
    ("options", "names", "headline"),
    [
        ({"pooling": False, "fusion": "none"}, ["G"], "G"),
        ({"fusion": "subsets"}, ["G", "subsets"], "all"),
        ({"subsets": "ends"}, ["G", "experts"], "all"),
    ],
)
def test_a_part_of_it_is_a_model(options, names, headline):
    model = demo(3, **options)
    features = model(batch_of(4, 3)).features
    assert (list(features), model.headline) == (names, headline)
    assert {name: value.shape[1] for name, value in features.items()} == model.widths


def test_watch_tells_the_gates_of_the_first_batch_of_a_mode_and_moves_no_statistic():
    model = demo()
    assert list(model.watch()) == ["alpha/block_0", "beta/block_0"]
    model(batch_of(4, 2))
    before = copy.deepcopy(model.state_dict())
    watched = {name: value for name, value in model.watch().items() if name.startswith("gate/")}
    assert list(watched) == ["gate/RGB", "gate/NI", "gate/RGB+NI"]
    assert sum(watched.values()) == pytest.approx(1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.experts is not None
    assert model.experts.training
    with torch.no_grad():
        model.experts.query_weight.zero_()
    model.eval()(batch_of(4, 2))
    even = [value for name, value in model.watch().items() if name.startswith("gate/")]
    assert even == pytest.approx([1 / 3] * 3)
