"""CLIP's text tower as the prior: its tokens, its frozen features, what is learned behind it, and missing captions."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.stmi.model import Features, STMILoss
from examples.towers.clip_text import ClipCaptionEncoder, ClipVocabulary
from examples.towers.pretrained import build_clip

open_clip = pytest.importorskip("open_clip")

LENGTH, WIDTH = 10, 16
LONG = "a red car with a dented door, two mirrors, a roof rack and a very long aerial"


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP of which everything is small but the vocabulary."""
    path = tmp_path_factory.mktemp("configs") / "tiny-clip-text.json"
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": LENGTH, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}
    path.write_text(json.dumps({"embed_dim": WIDTH, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(path)
    return path.stem


@pytest.fixture
def tower(architecture: str) -> nn.Module:
    return build_clip(architecture).text


def test_tokens_are_those_of_open_clip(architecture):
    captions = ["a red car", "Une Voiture, rouge", LONG, "!!!"]
    expected = open_clip.get_tokenizer(architecture)(captions)
    assert torch.equal(ClipVocabulary(architecture).encode(captions), expected)
    assert ClipVocabulary("ViT-B-16-quickgelu").length == 77


def test_a_long_caption_is_cut_or_read_in_pieces_and_counted(architecture):
    cut, averaged = ClipVocabulary(architecture), ClipVocabulary(architecture, overflow="average")
    captions = ["a red car", LONG, ""]
    assert cut.describe_overflow(captions) == "1 of 3 captions have more than CLIP's 10 tokens and are cut"
    assert averaged.describe_overflow(captions).endswith("are read in pieces, whose features are averaged")
    assert cut.describe_overflow(captions[:1]) is None
    pieces = averaged.encode(captions).unflatten(1, (-1, LENGTH))
    start, end = pieces[0, 0, 0], pieces[0, 0, 4]
    words = [token for token in pieces[1].flatten().tolist() if token not in (0, start, end)]
    assert words == open_clip.SimpleTokenizer().encode(LONG)
    assert torch.equal(pieces[:, 0], cut.encode(captions))
    assert pieces[0, 1:].sum() == pieces[2].sum() == 0


def test_the_vector_is_the_projected_mean_of_the_pieces_features(architecture, tower):
    vocabulary = ClipVocabulary(architecture, overflow="average")
    encoder = ClipCaptionEncoder(tower, LENGTH, WIDTH, 4)
    tokens = vocabulary.encode(["a red car", LONG])
    features = tower.encode_text(tokens.view(-1, LENGTH)).view(2, -1, WIDTH)
    mean = torch.stack([features[0, 0], features[1].mean(dim=0)])
    torch.testing.assert_close(encoder(tokens), encoder.projection(mean))


def test_the_projection_starts_as_the_identity_where_it_can_and_may_be_left_out(architecture, tower):
    tokens = ClipVocabulary(architecture).encode(["a red car"])
    expected = tower.encode_text(tokens)
    torch.testing.assert_close(ClipCaptionEncoder(tower, LENGTH, WIDTH, WIDTH)(tokens), expected)
    bare = ClipCaptionEncoder(tower, LENGTH, WIDTH, WIDTH, project=False)
    torch.testing.assert_close(bare(tokens), expected)
    assert [name for name, parameter in bare.named_parameters() if parameter.requires_grad] == ["no_caption"]
    with pytest.raises(
        ValueError, match="text_projection=False needs a text tower of width 4, as the tokens; it has 16"
    ):
        ClipCaptionEncoder(tower, LENGTH, WIDTH, 4, project=False)


def test_the_tower_is_frozen_and_what_follows_it_learns(architecture, tower):
    encoder = ClipCaptionEncoder(tower, LENGTH, WIDTH, WIDTH).train()
    assert not any(module.training for module in encoder.tower.modules())
    encoder(ClipVocabulary(architecture).encode(["a red car", ""])).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad != name.startswith("tower."), name
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, name


def test_every_text_is_read_once_and_the_kept_feature_is_exact(architecture, tower, monkeypatch):
    vocabulary, encoder = ClipVocabulary(architecture), ClipCaptionEncoder(tower, LENGTH, WIDTH, WIDTH)
    calls, encode = [], encoder.tower.encode_text

    def counted(tokens):
        calls.append(tokens)
        return encode(tokens)

    monkeypatch.setattr(encoder.tower, "encode_text", counted)
    first = encoder(vocabulary.encode(["a car", "a van", "a car"]))
    assert len(calls) == 2
    again = encoder(vocabulary.encode(["a bus", "a van", "a car"]))
    assert len(calls) == 3
    # Bit by bit: in whatever batch a text comes first, its feature is the same.
    assert torch.equal(first[1], again[1])
    assert torch.equal(first[0], again[2])
    with torch.autocast("cpu", torch.bfloat16):
        encoder(vocabulary.encode(["a bicycle"]))
    assert torch.equal(encoder._features[tuple(calls[-1][0].tolist())], encode(calls[-1])[0])


def test_other_weights_forget_the_features_and_copies_work(architecture, tower):
    tokens = ClipVocabulary(architecture).encode(["a car"])
    encoder = ClipCaptionEncoder(tower, LENGTH, WIDTH, WIDTH)
    other = ClipCaptionEncoder(build_clip(architecture).text, LENGTH, WIDTH, WIDTH)
    assert not torch.equal(encoder(tokens), other(tokens))
    encoder.load_state_dict(other.state_dict())
    assert torch.equal(encoder(tokens), other(tokens))
    encoder.tower.load_state_dict(build_clip(architecture).text.state_dict())
    assert not torch.equal(encoder(tokens), other(tokens))
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(copied(tokens), encoder(tokens))
        copied.load_state_dict(other.state_dict())
        assert torch.equal(copied(tokens), other(tokens))
        assert not torch.equal(encoder(tokens), other(tokens))


def test_a_missing_caption_has_a_vector_of_its_own(architecture, tower):
    encoder = ClipCaptionEncoder(tower, LENGTH, WIDTH, WIDTH)
    for overflow in ("truncate", "average"):
        prior = encoder(ClipVocabulary(architecture, overflow=overflow).encode(["", LONG, "  "]))
        assert torch.equal(prior[0], encoder.no_caption)
        assert torch.equal(prior[2], encoder.no_caption)
        assert not torch.equal(prior[1], encoder.no_caption)


def test_rows_without_caption_take_no_part_in_the_loss_on_the_text():
    loss = STMILoss({"T": 4}, num_identities=3)
    prior, labels = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 0, 1, 1, 2, 2])
    has_caption = torch.tensor([True, True, True, True, False, False])
    features = Features(G=prior, U=None, T=prior)
    result = loss(features, labels, has_caption)
    torch.testing.assert_close(result, loss(Features(prior, None, prior[:4]), labels[:4]))
    result.backward()
    assert prior.grad[4:].abs().sum() == 0
    for few in (0, 1):
        marked = torch.arange(6) < few
        assert loss(features, labels, marked) == 0
    torch.testing.assert_close(loss(features, labels), loss(features, labels, torch.ones(6, dtype=torch.bool)))


def test_architectures_without_clips_tokens_are_refused():
    for name in ("ViT-B-16-SigLIP", "vit_base_patch16_224"):
        with pytest.raises(ValueError, match=f"CLIP's own tokens.*for text_encoder='clip'; received '{name}'"):
            ClipVocabulary(name)


def test_the_table_of_tokens_comes_with_open_clip():
    assert list(Path(open_clip.__file__).parent.glob("bpe_simple_vocab*"))
