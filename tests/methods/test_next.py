"""NEXT: outputs equal to its equations in sequence, drawn sentences of each expert, and missing captions."""

import pytest
import torch
from torch import Tensor, nn

from examples.next.model import NEXT, build
from examples.next.sentences import known_sentences, lay_out, split_sentences
from examples.next.settings import Settings
from examples.towers.text import CaptionEncoder
from examples.towers.tower import Tower
from given_tower import GivenTower, batch_of
from method_batches import WORDS, random_batch, small_model, without_zeros
from reference.token_experts import modulation, shared_experts, text_experts
from stmi_layers.training import Facts
from tiny_clip import add_clip

PRESENT = torch.tensor([[True, True], [True, False], [True, True]])


class Letters(nn.Module):
    """A frozen text tower: the feature of a sentence counts its letters a, b and so on; 0 for no sentence."""

    def encode(self, captions: list[str]) -> Tensor:
        return torch.tensor([[float(caption.count(letter)) for letter in "abcdefgh"] for caption in captions])

    def forward(self, features: Tensor, has_text: Tensor) -> Tensor:
        return features


def next_of(patches: Tensor, globals_: Tensor, **options) -> NEXT:
    torch.manual_seed(0)
    tower = GivenTower(patches, globals_)
    model = NEXT(tower, ("RGB", "NI"), **{"num_experts": 2, "num_heads": 2, "mlp_ratio": 2.0, **options}).double()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.7, 0.7)
    return model


def read(state: dict[str, Tensor], globals_: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
    """Global tokens and what torch's attention reads for them from the tokens of all experts; 0 where absent."""
    attention = nn.MultiheadAttention(globals_.shape[2], 2, batch_first=True, dtype=torch.float64)
    attention.load_state_dict({name: state[name] for name in attention.state_dict()})
    hidden = ~present.repeat_interleave(tokens.shape[2] // present.shape[1], dim=1).repeat(1, tokens.shape[1])
    context = tokens.flatten(1, 2)
    result = globals_ + attention(globals_, context, context, key_padding_mask=hidden)[0]
    return torch.where(present[..., None], result, 0.0).flatten(1)


def under(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def test_its_features_are_its_equations_one_after_the_other():
    patches, globals_ = torch.randn(3, 2, 3, 8).double(), torch.randn(3, 2, 8).double()
    model = next_of(patches, globals_, text_encoder=Letters()).eval()
    captions = [("a bad cab. A deaf bee!", "feed"), ("cabbage.",), ()]
    has_text = torch.tensor([True, True, False])
    batch = batch_of(3, 2, present=PRESENT, texts=model.encode(captions), has_text=has_text)
    features = model(batch).features

    def unit(sentence: str) -> Tensor:
        return nn.functional.normalize(Letters().encode([sentence])[0].double(), dim=0)

    both, none = (unit("a bad cab.") + unit("A deaf bee!")) / 2, torch.zeros(8).double()
    of_modality = [[both, unit("feed")], [unit("cabbage.")] * 2, [none, none]]
    text = torch.stack([torch.stack(rows) for rows in of_modality])[:, None].expand(-1, 2, -1, -1)
    present_patches = torch.where(PRESENT[..., None, None], patches, 0.0)
    state = under(model, "semantic.")
    weights = modulation(present_patches, text, PRESENT, has_text, state, 2)
    semantic = text_experts(present_patches, weights, PRESENT, state)
    structural = shared_experts(present_patches, PRESENT, under(model, "structural."))
    own = torch.where(PRESENT[..., None], globals_, 0.0)
    torch.testing.assert_close(features["G"], own.flatten(1))
    expected = read(under(model, "readouts.semantic."), own, semantic, PRESENT)
    torch.testing.assert_close(features["semantic"], expected)
    expected = read(under(model, "readouts.structural."), own, structural, PRESENT)
    torch.testing.assert_close(features["structural"], expected)
    assert model.headline == "semantic+structural"


def test_every_expert_draws_sentences_of_its_own_in_training_and_all_in_evaluation():
    patches, globals_ = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 8)
    model = next_of(patches, globals_, text_encoder=Letters(), num_experts=16)
    batch = batch_of(1, 2, texts=model.encode([("aa. b. c. d.",)]))
    drawn = model.train().texts(batch)[0, :, 0, :4]  # (experts letters)
    assert drawn.shape == (16, 4)
    for row in drawn:
        shares = row[row > 0]
        assert shares.sum().item() == pytest.approx(1)
        torch.testing.assert_close(shares, shares[:1].expand(len(shares)))
    assert len({tuple((row > 0).tolist()) for row in drawn}) > 4
    all_of_them = model.eval().texts(batch)
    assert all_of_them.shape == (1, 1, 1, 8)
    torch.testing.assert_close(all_of_them[0, 0, 0, :4], torch.full((4,), 0.25))


def test_a_sample_without_caption_is_what_a_model_without_captions_makes_of_it():
    model = without_zeros(small_model("next", 2)).eval()
    without = small_model("next", 2, experts="both")
    without.text_encoder = None
    without.load_state_dict({name: value for name, value in model.state_dict().items() if "text_encoder" not in name})
    batch = random_batch(4, 2, model=model)
    has_text = torch.tensor([True, False, True, False])
    some = model(batch._replace(has_text=has_text)).features["semantic"]
    none = without.eval()(batch._replace(texts=None)).features["semantic"]
    torch.testing.assert_close(some[~has_text], none[~has_text])
    assert (some - none)[has_text].abs().amax(dim=1).min() > 1e-4


def test_a_caption_moves_the_modality_it_belongs_to():
    model = without_zeros(small_model("next", 2)).eval()
    batch = random_batch(1, 2)
    texts = [model.encode([captions]) for captions in (("a red car.", ""), ("", "a red car."), ("a red car.",) * 2)]
    features = [model(batch._replace(texts=text)).features["semantic"] for text in texts]
    assert all((features[0] - other).abs().max() > 1e-4 for other in features[1:])
    common = model(batch._replace(texts=model.encode([("a red car.",)]))).features["semantic"]
    torch.testing.assert_close(common, features[2])


def test_sentences_end_at_full_stops():
    assert split_sentences("One of 2.5 m. Two?  Three! and four") == ["One of 2.5 m.", "Two?", "Three!", "and four"]
    sentences, shape = lay_out([("A. B.", "C."), ("D.",), ()], 2)
    assert shape == (3, 2, 2)
    assert sentences == ["A.", "B.", "C.", "", "D.", "", "D.", "", "", "", "", ""]
    assert lay_out([(), ("",)], 3) == (["", ""], (2, 1, 1))
    encoder = CaptionEncoder(WORDS, 8, num_heads=2)
    assert known_sentences(encoder.encode(["a car", "", "unseen"])).tolist() == [True, False, True]
    assert known_sentences(torch.tensor([[0.0, 1.0], [0.0, 0.0]])).tolist() == [True, False]


def test_the_frozen_tower_of_clip_reads_each_sentence_once_and_learns_nothing(tmp_path):
    pytest.importorskip("open_clip")
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    architecture = add_clip(tmp_path / "clip-for-next.json", embed_dim=16, context_length=16, vision=vision)
    facts = Facts(("RGB", "NI"), (16, 16), 3, words=WORDS)
    small = Tower(dim=8, depth=1, tower_heads=2, patch_size=4, architecture=architecture)
    settings = Settings(text_encoder="clip", num_heads=2, num_experts=2)
    model = build(settings, facts, small)
    nn.init.normal_(model.semantic.mix_contract.weight)
    read, really = [], model.text_encoder.tower.encode_text
    model.text_encoder.tower.encode_text = lambda tokens: read.extend(tokens) or really(tokens)
    texts = model.encode([("A car. Red.", "A car."), ("Red.",), ()])
    assert len(read) == 2
    assert (texts.shape, texts.dtype) == ((3, 2, 2, 16), torch.float16)
    outputs = model(batch_of(3, 2, texts=texts, has_text=torch.tensor([True, True, False])))
    torch.cat(list(outputs.features.values()), dim=1).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.text_encoder.parameters())
    assert model.semantic.text_proj.weight.grad.abs().sum() > 0


def test_without_captions_nothing_of_the_text_is_learned():
    facts = Facts(("RGB", "NI"), (16, 16), 3)
    model = build(Settings(num_experts=2), facts, Tower(dim=8, depth=1, tower_heads=2, patch_size=4))
    assert model.encode([("a car",)]) is None
    torch.cat(list(model(batch_of(4, 2)).features.values()), dim=1).square().sum().backward()
    unused = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not [name for name in unused if "backbone" not in name]


def test_watch_tells_the_share_of_every_expert():
    model = small_model("next", 2).eval()
    with torch.no_grad():
        model.structural.router.weight.zero_()
        model.structural.router.bias.copy_(torch.tensor([0.0, 9.0]))
    model(random_batch(2, 2, present=PRESENT[:2], model=model))
    watched = model.watch()
    assert watched["share/expert_0"] + watched["share/expert_1"] == pytest.approx(1)
    assert watched["share/expert_0"] < 0.001


def test_captions_are_needed_where_the_model_reads_them():
    model = small_model("next", 2)
    with pytest.raises(ValueError, match=r"batch must hold texts, made by encode, .*; received None"):
        model(random_batch(2, 2)._replace(texts=None))


@pytest.mark.parametrize(
    ("experts", "names", "headline"),
    [
        ("none", ["G"], "G"),
        ("semantic", ["G", "semantic"], "semantic"),
        ("structural", ["G", "structural"], "structural"),
    ],
)
def test_one_kind_of_experts_is_a_model(experts, names, headline):
    model = small_model("next", 2, experts=experts)
    features = model(random_batch(4, 2, model=model)).features
    assert (list(features), model.headline) == (names, headline)
