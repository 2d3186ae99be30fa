"""The example model: every variant trains, missing modalities take no part, checkpoints say what does not fit."""

from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.stmi.model import STMI, Fusion, STMILoss, build_stmi
from examples.towers.cnn import ConvolutionalBackbone
from examples.towers.text import NO_CAPTION, PADDING, UNKNOWN, CaptionEncoder, Vocabulary
from examples.towers.vit import VisionTransformer
from stmi_layers.training.checkpoint import load_weights, read_checkpoint, save_checkpoint

SIZE = (32, 16)


def tiny_vit(**options) -> VisionTransformer:
    return VisionTransformer(SIZE, dim=16, depth=2, num_heads=2, stem_width=8, **options)


def tiny_stmi(modalities: int, fusion: Fusion = "hypergraph", *, text: bool = True, reallocation: bool = True) -> STMI:
    encoder = CaptionEncoder(9, 5, 16, num_heads=2) if text else None
    return build_stmi(
        tiny_vit(),
        modalities,
        reallocation=reallocation,
        fusion=fusion,
        num_tokens=2,
        num_heads=2,
        text_encoder=encoder,
    )


def tiny_batch(batch: int, modalities: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    images, masks = torch.randn(batch, modalities, 3, *SIZE), torch.rand(batch, modalities, *SIZE) < 0.4
    return images, masks, torch.ones(batch, modalities, dtype=torch.bool), torch.randint(1, 9, (batch, 5))


@pytest.mark.parametrize(("fusion", "modalities"), list(product(get_args(Fusion), (1, 2, 4))))
def test_every_variant_gives_every_parameter_a_gradient(fusion, modalities):
    model = tiny_stmi(modalities, fusion)
    features = model(*tiny_batch(6, modalities))
    widths = model.feature_widths(modalities)
    assert {name: value.shape[1] for name, value in features._asdict().items()} == widths
    loss = STMILoss(widths, num_identities=3)
    loss(features, torch.tensor([0, 0, 1, 1, 2, 2])).backward()
    for name, parameter in [*model.named_parameters(), *loss.named_parameters()]:
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_the_loss_takes_the_half_precision_of_autocast():
    model = build_stmi(ConvolutionalBackbone(SIZE, dim=16), 2, reallocation=False)
    with torch.autocast("cpu", torch.bfloat16):
        features = model(*tiny_batch(4, 2)[:2])
    assert features.G.dtype == torch.bfloat16
    loss = STMILoss(model.feature_widths(2), num_identities=2)(features, torch.tensor([0, 0, 1, 1]))
    assert loss.dtype == torch.float32
    loss.backward()


def test_the_baseline_returns_only_g():
    model = tiny_stmi(2, text=False, reallocation=False)
    features = model(*tiny_batch(3, 2)[:3])
    assert features.U is None
    assert features.T is None
    assert model.feature_widths(2) == {"G": features.G.shape[1]}


@given(st.sampled_from(get_args(Fusion)), st.integers(2, 4), st.data())
def test_an_absent_modality_takes_no_part(fusion, modalities, data):
    absent = data.draw(st.integers(0, modalities - 1))
    torch.manual_seed(0)
    model = tiny_stmi(modalities, fusion).eval()
    images, masks, present, words = tiny_batch(3, modalities)
    present[:, absent] = False
    expected = model(images, masks, present, words)
    images[:, absent], masks[:, absent] = torch.randn(3, 3, *SIZE), torch.rand(3, *SIZE) < 0.5
    for name, one, other in zip(expected._fields, expected, model(images, masks, present, words), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    part = slice(absent * 16, (absent + 1) * 16)
    assert expected.G[:, part].abs().sum() == expected.U[:, part].abs().sum() == 0


def test_samples_do_not_see_each_other_in_evaluation():
    model = tiny_stmi(3).eval()
    batch = tiny_batch(4, 3)
    together = model(*batch)
    for index in range(4):
        alone = model(*(part[index : index + 1] for part in batch))
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], other[index], rtol=1e-4, atol=1e-5)


def test_masks_matter_and_none_is_plain_attention():
    model = tiny_vit(strength=0.9).eval()
    images, masks, _, _ = tiny_batch(2, 2)
    without = model(images, None)[1]
    assert not torch.allclose(without, model(images, masks)[1])
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.alpha)
        torch.nn.init.zeros_(block.attention.beta)
    torch.testing.assert_close(without, model(images, masks)[1], rtol=1e-4, atol=1e-5)


def test_captions_are_needed_where_the_model_reads_them():
    with pytest.raises(ValueError, match="caption_tokens must be given"):
        tiny_stmi(2)(*tiny_batch(2, 2)[:3])


def test_a_sample_without_any_modality_is_an_error():
    images, masks, present, words = tiny_batch(3, 2)
    present[1] = False
    with pytest.raises(ValueError, match=r"at least one modality per sample; samples \[1\] have none"):
        tiny_stmi(2)(images, masks, present, words)


def test_images_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"images must be \(32, 16\) pixels; received shape \(2, 1, 3, 16, 32\)"):
        tiny_vit()(torch.zeros(2, 1, 3, 16, 32))


def test_patch_and_image_size_must_fit():
    with pytest.raises(ValueError, match=r"power of two.*received patch_size=12, image_size=\(32, 16\)"):
        VisionTransformer(SIZE, patch_size=12)
    with pytest.raises(ValueError, match=r"multiples of 8; received \(30, 16\)"):
        ConvolutionalBackbone((30, 16))


def test_a_checkpoint_of_another_grid_is_refused_by_name():
    transposed = VisionTransformer(SIZE[::-1], dim=16, depth=2, num_heads=2, stem_width=8)
    with pytest.raises(ValueError, match=r"positions are for a grid of \(4, 2\) patches, the model's for \(2, 4\)"):
        transposed.load_state_dict(tiny_vit().state_dict())


def test_weights_that_do_not_fit_are_named():
    weights = tiny_stmi(2).state_dict()
    with pytest.raises(ValueError, match=r"does not fit the model(.|\n)*interaction.*is unknown to the model"):
        load_weights(tiny_stmi(2, "none"), weights, "model")
    wider = build_stmi(VisionTransformer(SIZE, dim=32, depth=2, num_heads=2, stem_width=8), 2, reallocation=False)
    with pytest.raises(ValueError, match=r"is \(16.* in the checkpoint and \(32.* in the model"):
        load_weights(wider, tiny_stmi(2, reallocation=False, text=False).state_dict(), "model")


def test_checkpoints_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "absent.pt")
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 3})
    assert read_checkpoint(path)["epoch"] == 3
    whole = path.read_bytes()
    for content in (whole[:100], b"", b"hello\n", b"some other text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a checkpoint: damaged"):
            read_checkpoint(path)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is not a checkpoint of this trainer"):
        read_checkpoint(path)


def test_vocabulary_orders_cuts_and_marks_the_unknown():
    vocabulary = Vocabulary.from_captions(["A red car", "a RED, red van"], length=3)
    assert vocabulary.words == ("red", "a", "car", "van")
    tokens = vocabulary.encode(["blue car", "", "a red car van"])
    assert tokens[0].tolist() == [UNKNOWN, 5, PADDING]
    assert tokens[1].tolist() == [NO_CAPTION, PADDING, PADDING]
    assert tokens[2].tolist() == [4, 3, 5]
    assert (
        vocabulary.describe_overflow(["a red car van", "red"]) == "1 of 2 captions have more than 3 words and are cut"
    )
    assert vocabulary.describe_overflow(["red"]) is None


def test_caption_padding_is_inert():
    short, long = CaptionEncoder(9, 4, 16, num_heads=2), CaptionEncoder(9, 8, 16, num_heads=2)
    weights = short.state_dict()
    weights["positions"] = torch.cat([weights["positions"], torch.randn(4, 16)])
    long.load_state_dict(weights)
    tokens = torch.tensor([[3, 4, 0, 0]])
    padded = torch.nn.functional.pad(tokens, (0, 4))
    torch.testing.assert_close(short.eval()(tokens), long.eval()(padded))
