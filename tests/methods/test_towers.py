"""Small towers and small text encoder: the effect of masks, the blocks with SFM, valid sizes, and words."""

from functools import partial
from typing import Any

import pytest
import torch

from examples.towers.cnn import ConvolutionalBackbone
from examples.towers.text import NO_CAPTION, PADDING, UNKNOWN, CaptionEncoder, Vocabulary
from examples.towers.tower import Tower, build_tower, watch_strengths
from examples.towers.vit import VisionTransformer
from stmi_layers.training import Facts, load_weights

SIZE = (32, 16)


def transformer(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer((8, 8), patch_size=4, dim=8, depth=3, num_heads=2, stem_width=4, **options).eval()


def strengths_of(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [value for name, value in model.named_parameters(remove_duplicate=False) if name.endswith(("alpha", "beta"))]


def test_masks_matter_and_none_is_plain_attention():
    model = VisionTransformer(SIZE, dim=16, depth=2, num_heads=2, stem_width=8, strength=0.9).eval()
    images, masks = torch.rand(2, 2, 3, *SIZE), torch.rand(2, 2, *SIZE) < 0.4
    without = model(images, None)[1]
    assert not torch.allclose(without, model(images, masks)[1])
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.alpha)
        torch.nn.init.zeros_(block.attention.beta)
    torch.testing.assert_close(without, model(images, masks)[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "cnn"])
def test_grey_is_nothing_to_a_small_tower(kind: str):
    """It normalises by mean and deviation 0.5: the grey that erases a part of an image becomes 0."""
    tower = build_tower(Tower(backbone=kind, dim=16, tower_heads=2), Facts(("RGB",), SIZE, 3))
    seen: list[torch.Tensor] = []
    first = tower.stem if kind == "vit" else tower.layers
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tower(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1, 1).expand(3, 1, 3, *SIZE))
    assert seen[0].amin(dim=(1, 2, 3)).tolist() == seen[0].amax(dim=(1, 2, 3)).tolist() == [-1, 0, 1]


@pytest.mark.parametrize(("where", "plain"), [("early", (1, 2)), ("late", (0,)), ("all", ()), ("none", (0, 1, 2))])
def test_the_attention_of_other_blocks_is_plain(where: Any, plain: tuple[int, ...]):
    model, reference = transformer(modulated_blocks=where), transformer()
    images, masks = torch.rand(2, 1, 3, 8, 8), torch.rand(2, 1, 8, 8) < 0.5
    for index in plain:
        attention = reference.blocks[index].attention
        reference.blocks[index].attention.forward = partial(_without_mask, attention.forward)
    for found, expected in zip(model(images, masks), reference(images, masks), strict=True):
        torch.testing.assert_close(found, expected)
    model(images, masks)[0].square().sum().backward()
    learned = [index for index, block in enumerate(model.blocks) if block.attention.alpha.grad is not None]
    assert learned == [index for index in range(3) if index not in plain]


def _without_mask(forward, tokens, foreground):
    return forward(tokens, None)


def test_all_blocks_can_share_one_pair_of_strengths():
    model = transformer(shared_strengths=True)
    assert len({id(strength) for strength in strengths_of(model)}) == 2
    assert len({id(strength) for strength in strengths_of(transformer())}) == 6
    other = transformer(shared_strengths=True, strength=0.1)
    load_weights(other, model.state_dict(), "model")
    assert [strength.item() for strength in strengths_of(other)] == [0.5] * 6
    some = transformer(shared_strengths=True, modulated_blocks="late")
    assert [strength.item() for strength in strengths_of(some)] == [0.0, 0.0, 0.5, 0.5, 0.5, 0.5]
    assert len({id(strength) for strength in strengths_of(some)}) == 4


def test_strengths_are_watched_by_block_and_are_the_mean_over_heads():
    model = transformer(per_head=True, modulated_blocks="late")
    with torch.no_grad():
        model.blocks[2].attention.alpha.copy_(torch.tensor([0.25, 0.75]))
    watched = watch_strengths(model)
    assert watched["alpha/block_0"] == 0
    assert (watched["alpha/block_2"], watched["beta/block_2"]) == (0.5, 0.5)
    assert watch_strengths(ConvolutionalBackbone(SIZE, dim=16)) == {}


def test_strengths_that_nothing_could_learn_are_refused():
    with pytest.raises(ValueError, match="layers='early' chooses none of the 1 blocks"):
        build_tower(Tower(depth=1, modulated_blocks="early"), Facts(("RGB",), SIZE, 3))
    with pytest.raises(ValueError, match="per_head and shared_strengths exclude each other; received both"):
        Tower(per_head=True, shared_strengths=True)


def test_a_pretrained_tower_takes_the_same_settings():
    timm = pytest.importorskip("timm")
    depth = len(timm.create_model("test_vit").blocks)

    def pairs(**changes: Any) -> tuple[int, int]:
        tower = Tower(backbone="timm", architecture="test_vit", **changes)
        found = strengths_of(build_tower(tower, Facts(("RGB",), SIZE, 3)))
        return len(found) // 2, len({id(strength) for strength in found}) // 2

    assert pairs() == (depth, depth)
    assert pairs(shared_strengths=True) == (depth, 1)
    assert pairs(modulated_blocks="early") == (depth // 2, depth // 2)
    assert pairs(modulated_blocks="none") == (0, 0)


def test_a_pretrained_tower_without_sfm_leaves_masks_out():
    pytest.importorskip("timm")
    tower = Tower(backbone="timm", architecture="test_vit", modulated_blocks="none")
    model = build_tower(tower, Facts(("RGB",), SIZE, 3)).eval()
    images = torch.rand(2, 1, 3, *SIZE)
    assert torch.equal(model(images, torch.rand(2, 1, *SIZE) < 0.5)[1], model(images)[1])


def test_images_of_another_size_are_named():
    model = VisionTransformer(SIZE, dim=16, depth=2, num_heads=2, stem_width=8)
    with pytest.raises(ValueError, match=r"images must be \(32, 16\) pixels; received shape \(2, 1, 3, 16, 32\)"):
        model(torch.zeros(2, 1, 3, 16, 32))


def test_patch_and_image_size_must_fit():
    with pytest.raises(ValueError, match=r"power of two.*received patch_size=12, image_size=\(32, 16\)"):
        VisionTransformer(SIZE, patch_size=12)
    with pytest.raises(ValueError, match=r"multiples of 8; received \(30, 16\)"):
        ConvolutionalBackbone((30, 16))


def test_a_checkpoint_of_another_grid_is_refused_by_name():
    transposed = VisionTransformer(SIZE[::-1], dim=16, depth=2, num_heads=2, stem_width=8)
    upright = VisionTransformer(SIZE, dim=16, depth=2, num_heads=2, stem_width=8)
    with pytest.raises(ValueError, match=r"positions are for a grid of \(4, 2\) patches, the model's for \(2, 4\)"):
        transposed.load_state_dict(upright.state_dict())


def test_vocabulary_orders_cuts_and_marks_the_unknown():
    vocabulary = Vocabulary.from_captions(["A red car", "a RED, red van"], length=3)
    assert vocabulary.words == ("red", "a", "car", "van")
    tokens = vocabulary.encode(["blue car", "", "a red car van"])
    assert tokens[0].tolist() == [UNKNOWN, 5, PADDING]
    assert tokens[1].tolist() == [NO_CAPTION, PADDING, PADDING]
    assert tokens[2].tolist() == [4, 3, 5]
    said = "1 of 2 captions have more than 3 words and are cut"
    assert vocabulary.describe_overflow(["a red car van", "red"]) == said
    assert vocabulary.describe_overflow(["red"]) is None
    with pytest.warns(UserWarning, match=said):
        CaptionEncoder(vocabulary.words, 16, length=3, num_heads=2).encode(["a red car van", "red"])


def test_caption_padding_is_inert():
    words = tuple("abcdef")
    short, long = (CaptionEncoder(words, 16, length=length, num_heads=2) for length in (4, 8))
    weights = short.state_dict()
    weights["positions"] = torch.cat([weights["positions"], torch.randn(4, 16)])
    long.load_state_dict(weights)
    tokens = torch.tensor([[3, 4, 0, 0]])
    padded = torch.nn.functional.pad(tokens, (0, 4))
    torch.testing.assert_close(short.eval()(tokens), long.eval()(padded))
