"""CLIP's text tower as the text encoder: its tokens, its frozen features, trainable modules, and missing captions."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.towers import clip_text
from examples.towers.architectures import build_clip
from examples.towers.clip_text import ClipCaptionEncoder, ClipVocabulary, build_clip_text

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
    assert torch.equal(ClipVocabulary(architecture).encode(captions)[:, 0], expected)
    assert ClipVocabulary("ViT-B-16-quickgelu").length == 77


def test_a_long_caption_is_cut_or_read_in_pieces_and_counted(architecture):
    cut, averaged = ClipVocabulary(architecture), ClipVocabulary(architecture, overflow="average")
    captions = ["a red car", LONG, ""]
    assert cut.describe_overflow(captions) == "1 of 3 captions have more than CLIP's 10 tokens and are cut"
    assert averaged.describe_overflow(captions).endswith("are read in pieces, whose features are averaged")
    assert cut.describe_overflow(captions[:1]) is None
    pieces = averaged.encode(captions)
    start, end = pieces[0, 0, 0], pieces[0, 0, 4]
    words = [token for token in pieces[1].flatten().tolist() if token not in (0, start, end)]
    assert words == open_clip.SimpleTokenizer().encode(LONG)
    assert torch.equal(pieces[:, :1], cut.encode(captions))
    assert cut.encode([]).shape == (0, 1, LENGTH)
    assert pieces[0, 1:].sum() == pieces[2].sum() == 0


def vectors(encoder: ClipCaptionEncoder, captions: list[str]) -> torch.Tensor:
    has_text = torch.tensor([caption.strip() != "" for caption in captions])
    return encoder(encoder.encode(captions), has_text)


def test_the_vector_is_the_projected_mean_of_the_pieces_features(architecture, tower):
    vocabulary = ClipVocabulary(architecture, overflow="average")
    encoder = ClipCaptionEncoder(tower, vocabulary, WIDTH, 4)
    captions = ["a red car", LONG]
    pieces = vocabulary.encode(captions)
    features = tower.encode_text(pieces.flatten(0, 1)).view(2, -1, WIDTH)
    mean = torch.stack([features[0, 0], features[1].mean(dim=0)])
    with pytest.warns(UserWarning, match="1 of 2 captions .* read in pieces"):
        torch.testing.assert_close(vectors(encoder, captions), encoder.projection(mean))


def test_the_projection_starts_as_the_identity_where_it_can_and_may_be_left_out(architecture, tower):
    vocabulary = ClipVocabulary(architecture)
    expected = tower.encode_text(vocabulary.encode(["a red car"])[:, 0])
    torch.testing.assert_close(vectors(ClipCaptionEncoder(tower, vocabulary, WIDTH, WIDTH), ["a red car"]), expected)
    bare = ClipCaptionEncoder(tower, vocabulary, WIDTH, WIDTH, project=False)
    torch.testing.assert_close(vectors(bare, ["a red car"]), expected)
    assert [name for name, parameter in bare.named_parameters() if parameter.requires_grad] == ["no_caption"]
    with pytest.raises(
        ValueError, match="text_projection=False needs a text tower of width 4, as the tokens; it has 16"
    ):
        ClipCaptionEncoder(tower, vocabulary, WIDTH, 4, project=False)


def test_the_tower_is_frozen_and_what_follows_it_learns(architecture):
    encoder = build_clip_text(architecture, WIDTH).train()
    assert not any(module.training for module in encoder.tower.modules())
    vectors(encoder, ["a red car", ""]).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad != name.startswith("tower."), name
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, name


def test_every_distinct_text_is_read_once_in_float32_and_a_few_at_a_time(architecture, monkeypatch):
    encoder = build_clip_text(architecture, WIDTH)
    calls, encode = [], encoder.tower.encode_text

    def counted(tokens):
        calls.append(tokens)
        return encode(tokens)

    monkeypatch.setattr(encoder.tower, "encode_text", counted)
    monkeypatch.setattr(clip_text, "READ_AT_ONCE", 2)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder.encode(["a car", "a van", "a car", "", "a bus"])
    assert [len(tokens) for tokens in calls] == [2, 1]
    assert features.dtype == torch.float32
    assert torch.equal(features[0], features[2])
    assert features[3].abs().sum() == 0
    single = torch.cat([encode(encoder.vocabulary.encode([text])[:, 0]) for text in ("a car", "a van", "a bus")])
    torch.testing.assert_close(features[[0, 1, 4]], single.detach())
    assert encoder.encode(["", " "]).abs().sum() == 0


def test_forward_compiles_to_one_graph_because_it_reads_no_text(architecture):
    encoder = build_clip_text(architecture, 4)
    features, has_text = encoder.encode(["a car", ""]), torch.tensor([True, False])
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(features, has_text), encoder(features, has_text))


def test_copies_encode_alike(architecture):
    encoder = build_clip_text(architecture, WIDTH)
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(copied.encode(["a car"]), encoder.encode(["a car"]))


def test_a_missing_caption_has_a_vector_of_its_own(architecture):
    for overflow in ("truncate", "average"):
        encoder = build_clip_text(architecture, WIDTH, overflow=overflow)
        with pytest.warns(UserWarning, match="1 of 3 captions have more"):
            prior = vectors(encoder, ["", LONG, "  "])
        assert torch.equal(prior[0], encoder.no_caption)
        assert torch.equal(prior[2], encoder.no_caption)
        assert not torch.equal(prior[1], encoder.no_caption)


def test_architectures_without_clips_tokens_are_refused():
    for name in ("ViT-B-16-SigLIP", "vit_base_patch16_224"):
        with pytest.raises(ValueError, match=f"CLIP's own tokens.*for text_encoder='clip'; received '{name}'"):
            ClipVocabulary(name)


def test_the_table_of_tokens_comes_with_open_clip():
    assert list(Path(open_clip.__file__).parent.glob("bpe_simple_vocab*"))
