"""Text inversion: the inverse network, learned words, and their use in the towers of CLIP."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.idea.released import released_inversion
from reference.deformable_readout import gelu
from stmi_layers.text_inversion import CaptionPrompts, TextInversion, prompted_text_feature
from vectors import assert_equal, every, load, meta, part


def inversion(**options) -> TextInversion:
    layer = TextInversion(3, 4, hidden=5, dtype=torch.float64, **options)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return layer


def test_inversion_matches_the_equation_and_gradcheck():
    layer, text = inversion().eval(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    expected = []
    for caption in text:
        rows = zip(layer.expand.weight, layer.expand.bias, strict=True)
        hidden = torch.stack([gelu(row @ caption + bias) for row, bias in rows])
        expected.append(layer.project.weight @ hidden + layer.project.bias + layer.position)
    torch.testing.assert_close(layer(text), torch.stack(expected))
    assert torch.autograd.gradcheck(layer, (text, torch.tensor([True, False])))


@pytest.mark.parametrize("garbage", [0.0, 1e300, float("nan")])
def test_a_missing_caption_is_the_position_alone(garbage):
    layer, has_text = inversion().eval(), torch.tensor([True, False])
    text = torch.tensor([[1.0, 2.0, 3.0], [garbage] * 3], dtype=torch.float64, requires_grad=True)
    actual = layer(text, has_text)
    torch.testing.assert_close(actual[0], layer(text[:1])[0])
    assert torch.equal(actual[1], layer.position)
    found = torch.autograd.grad(actual.sum(), [text, *layer.parameters()])
    assert all(gradient.isfinite().all() for gradient in found)
    assert not found[0][1].any()


def test_dropout_acts_twice_and_spares_the_position():
    layer, text = inversion(dropout=1.0), torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(layer(text), layer.position.expand(2, -1))
    half = inversion(dropout=0.5)
    zeros = (torch.stack([half(text) for _ in range(50)]) == half.position).double().mean()
    assert 0.3 < zeros < 0.7
    with torch.no_grad():  # a constant in front of the second dropout shows the first one as other values
        half.project.weight.fill_(1.0)
    assert len(torch.stack([half(text)[0] - half.position for _ in range(50)]).unique()) > 3


@given(st.integers(0, 3), st.integers(0, 3))
def test_the_feature_is_a_mean_over_end_and_words(num_prompts, first):
    tokens = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[1, 4, 9, 0, 0, 0, 0], [1, 4, 4, 4, 4, 4, 9]])
    expected = []
    for b, end in enumerate((2, 6)):
        total = tokens[b, end]
        for place in range(first, first + num_prompts):
            total = total + tokens[b, place]
        expected.append(total / (num_prompts + 1))
    actual = prompted_text_feature(tokens, ids, num_prompts, first=first)
    torch.testing.assert_close(actual, torch.stack(expected))
    torch.testing.assert_close(
        torch.autograd.grad(actual.square().sum(), tokens),
        torch.autograd.grad(torch.stack(expected).square().sum(), tokens),
    )


def test_words_are_added_at_their_places_alone():
    prompts, embeddings = CaptionPrompts(2, 3, first=1), torch.randn(2, 5, 3)
    added = prompts(embeddings) - embeddings
    torch.testing.assert_close(added[:, 1:3], prompts.prompts.expand(2, -1, -1), rtol=1e-4, atol=1e-6)
    assert not added[:, [0, 3, 4]].any()


def test_words_start_as_small_as_embeddings():
    assert CaptionPrompts(50, 100).prompts.std().item() == pytest.approx(0.02, rel=0.1)
    assert CaptionPrompts(50, 100, std=1.0).prompts.std().item() == pytest.approx(1.0, rel=0.1)
    assert TextInversion(4, 400).position.std().item() == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize("mode", ["eval", "train"])
@every("idea_inverse_*.npz")
def test_released_inverse_net(path, mode):
    arrays = load(path, torch.float64)
    state = released_inversion(part(arrays, "param."))
    text = arrays["in.text"].requires_grad_()
    hidden, width = state["expand.weight"].shape[0], state["project.weight"].shape[0]
    layer = TextInversion(text.shape[1], width, hidden=hidden, dropout=0.0, dtype=torch.float64)
    layer.load_state_dict(state)
    actual = layer.train(mode == "train")(text)
    assert_equal(actual, arrays[f"{mode}.out.token"])
    (gradient,) = torch.autograd.grad((actual * arrays[f"{mode}.cot.token"]).sum(), text)
    assert_equal(gradient, arrays[f"{mode}.grad.in.text"])


def tower(state: dict[str, Tensor], prefix: str) -> nn.Module:
    """A transformer of CLIP, with QuickGELU, from a released state."""
    pytest.importorskip("open_clip")
    from open_clip.transformer import QuickGELU, Transformer

    state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    layers = len({name.split(".")[1] for name in state})
    width = state["resblocks.0.ln_1.weight"].shape[0]
    transformer = Transformer(width, layers, max(width // 64, 1), act_layer=QuickGELU).double()
    transformer.load_state_dict(state)
    return transformer


@every("idea_imfe_*.npz")
def test_released_text_inside_the_image(path):
    arrays = load(path, torch.float64)
    state, num_prompts = part(arrays, "param."), meta(path)["prompts"]
    ids, image = arrays["in.text_ids"], arrays["in.image"].requires_grad_()

    def normed(tokens: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.layer_norm(tokens, weight.shape, weight, state[f"{name}.bias"])

    prompts = CaptionPrompts(num_prompts, state["base.text_prompt"].shape[1], dtype=torch.float64)
    prompts.load_state_dict({"prompts": state["base.text_prompt"]})
    embedded = prompts(F.embedding(ids, state["base.token_embedding.weight"])) + state["base.positional_embedding"]
    causal = torch.full((ids.shape[1],) * 2, float("-inf"), dtype=torch.float64).triu(1)
    outputs = tower(state, "base.transformer.")(embedded, attn_mask=causal)
    outputs = normed(outputs, "base.ln_final") @ state["base.text_projection"]
    assert_equal(outputs, arrays["eval.out.text_tokens"])
    feature = prompted_text_feature(outputs, ids, num_prompts)
    assert_equal(feature, arrays["eval.out.pooled"])

    inverse = released_inversion(state)
    hidden, width = inverse["expand.weight"].shape[0], len(inverse["position"])
    layer = TextInversion(feature.shape[1], width, hidden=hidden, dropout=0.0, dtype=torch.float64)
    layer.load_state_dict(inverse)
    token = layer(feature)
    assert_equal(token - layer.position, arrays["eval.out.inverse"])

    camera = state["cv_embed"][arrays["in.camera"], 0]
    weight = state["base.visual.conv1.weight"]
    patches = F.conv2d(image, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    first = (state["base.visual.class_embedding"] + camera)[:, None]
    tokens = torch.cat([first, patches], dim=1) + state["base.visual.positional_embedding"]
    tokens = torch.cat([tokens, (token + camera)[:, None]], dim=1)
    tokens = tower(state, "base.visual.transformer.")(normed(tokens, "base.visual.ln_pre"))
    tokens = normed(tokens, "base.visual.ln_post") @ state["base.visual.proj"]
    assert_equal(tokens, arrays["eval.out.image_tokens"])
    results = {"text_tokens": outputs, "pooled": feature, "inverse": token - layer.position, "image_tokens": tokens}
    loss = torch.stack([(value * arrays[f"eval.cot.{name}"]).sum() for name, value in results.items()]).sum()
    assert_equal(torch.autograd.grad(loss, image)[0], arrays["eval.grad.in.image"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TextInversion(0, 4), "text_dim must be at least 1; received 0"),
        (lambda: TextInversion(4, 4, hidden=0), "hidden must be at least 1; received 0"),
        (lambda: TextInversion(4, 4, dropout=-1), r"dropout must be a probability in \[0, 1\]; received -1"),
        (lambda: CaptionPrompts(0, 4), "num_prompts must be at least 1; received 0"),
        (lambda: CaptionPrompts(1, 4, first=-1), "first and std must be at least 0; received first=-1, std=0.02"),
        (lambda: CaptionPrompts(1, 4, std=-1), "first and std must be at least 0; received first=5, std=-1"),
        (
            lambda: CaptionPrompts(2, 4)(torch.zeros(1, 6, 4)),
            "learned words must fit into the caption of 6 positions; rec",
        ),
        (
            lambda: prompted_text_feature(torch.zeros(1, 6, 4), torch.zeros(1, 6, dtype=torch.int64), -1),
            "learned words must fit into the caption of 6 positions; received num_prompts=-1 from first=5",
        ),
    ],
)
def test_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
