"""SAM 2 from a folder: a tiny model of random weights, saved and loaded like the published models."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from examples.prepare.masks.__main__ import main
from examples.prepare.masks.files import read_note
from examples.prepare.masks.make import Settings

transformers = pytest.importorskip("transformers", minversion="5")
pytest.importorskip("scipy")

from examples.prepare.masks.sam2 import Sam2, build_prompt  # noqa: E402

SIDE = 64
SIZES = ((20, 40), (30, 10))  # width and height


def configure(kind: Callable, **more: object) -> object:
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE, SIDE],
        window_positional_embedding_background_size=[2, 2],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 2, 2],
        global_attention_blocks=[3],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    prompts = transformers.Sam2PromptEncoderConfig(
        hidden_size=16, image_size=SIDE, patch_size=16, mask_input_channels=4
    )
    decoder = transformers.Sam2MaskDecoderConfig(
        hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
    )
    return kind(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder, **more)


def save_processor(folder: Path) -> None:
    size = {"height": SIDE, "width": SIDE}
    images = transformers.Sam2ImageProcessor(size=size, mask_size={"height": SIDE // 4, "width": SIDE // 4})
    transformers.Sam2Processor(images).save_pretrained(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "tiny-sam2"
    torch.manual_seed(0)
    model = transformers.Sam2Model(configure(transformers.Sam2Config))
    for parameter in model.parameters():  # as initialised, hardly anything depends on the image
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    save_processor(folder)
    return folder


@pytest.fixture
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)) for w, h in SIZES]


def test_prompts_in_the_pixels_of_the_image():
    assert build_prompt((20, 40), "box", 0.0) == {"input_boxes": [[0, 0, 20, 40]]}
    assert build_prompt((20, 40), "point", 0.1) == {"input_points": [[[10, 20]]], "input_labels": [[1]]}
    assert build_prompt((20, 40), "composite", 0.1) == {
        "input_boxes": [[2, 4, 18, 36]],
        "input_points": [[[10, 20]]],
        "input_labels": [[1]],
    }


@pytest.mark.parametrize("prompt", ["box", "point", "composite"])
def test_one_map_per_image_at_its_own_size(weights: Path, images: list[Image.Image], prompt: str):
    segmenter = Sam2(weights, prompt=prompt)
    together = segmenter(images)
    for image, one in zip(images, together, strict=True):
        assert one.shape == (image.height, image.width)
        assert one.dtype == np.float32
        assert ((one > 0) & (one < 1)).all()
        np.testing.assert_allclose(segmenter([image])[0], one, atol=1e-5)
    assert segmenter.name == f"SAM 2, weights tiny-sam2, {prompt} prompt, margin 0.05"


def test_different_prompts_and_images_give_different_masks(weights: Path, images: list[Image.Image]):
    maps = [Sam2(weights, prompt=prompt)([images[0]])[0] for prompt in ("box", "point", "composite")]
    wide = Sam2(weights, prompt="box", margin=0.3)([images[0]])[0]
    other = Sam2(weights, prompt="box")([images[0].rotate(180)])[0]
    for one, two in ((maps[0], maps[1]), (maps[0], maps[2]), (maps[0], wide), (maps[0], other)):
        assert np.abs(one - two).max() > 1e-4


def test_the_prompt_reaches_the_model_in_its_own_frame(weights: Path, images: list[Image.Image]):
    segmenter = Sam2(weights, prompt="composite", margin=0.25)
    seen: dict[str, Tensor] = {}
    segmenter.model.prompt_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    segmenter(images)
    # Whatever the shape of the image, the model sees a square: the prompt is the same share of it.
    quarter = [SIDE / 4, SIDE / 4, 3 * SIDE / 4, 3 * SIDE / 4]
    torch.testing.assert_close(seen["input_boxes"], torch.tensor([[quarter]] * 2))
    torch.testing.assert_close(seen["input_points"], torch.full((2, 1, 1, 2), SIDE / 2))
    assert seen["input_labels"].tolist() == [[[1]]] * 2


def fill_boxes(input_boxes: Tensor, multimask_output: bool, **_: object) -> SimpleNamespace:
    """A model that returns its box as the mask, in cells of 4 pixels."""
    cells = torch.arange(SIDE // 4) * 4 + 2.0
    left, top, right, bottom = input_boxes[:, 0].T[:, :, None]
    inside_y, inside_x = (cells > top) & (cells < bottom), (cells > left) & (cells < right)
    logits = (inside_y[:, :, None] & inside_x[:, None]).float() * 20 - 10
    return SimpleNamespace(pred_masks=logits[:, None, None], iou_scores=torch.ones(len(logits), 1, 1))


def test_a_mask_comes_back_in_the_frame_of_the_image(weights: Path):
    segmenter = Sam2(weights, prompt="box", margin=0.25)
    segmenter.model = fill_boxes
    for probability in segmenter([Image.new("L", (80, 160)), Image.new("RGB", (32, 16))]):
        height, width = probability.shape
        y, x = np.nonzero(probability > 0.5)
        assert (y.min(), y.max() + 1) == (height // 4, 3 * height // 4)
        assert (x.min(), x.max() + 1) == (width // 4, 3 * width // 4)
        assert len(y) > 0.98 * height * width / 4  # interpolation rounds the corners


def test_of_several_masks_the_one_with_the_best_score_is_taken(weights: Path):
    def offer_three(multimask_output: bool, **_: object) -> SimpleNamespace:
        assert multimask_output
        logits = torch.tensor([[-1.0, 2.0, 1.0]])[..., None, None].expand(2, 1, 3, 16, 16)
        return SimpleNamespace(pred_masks=logits, iou_scores=torch.tensor([[[0.1, 0.9, 0.5]], [[0.8, 0.2, 0.5]]]))

    segmenter = Sam2(weights, prompt="point")
    segmenter.model = offer_three
    first, second = segmenter([Image.new("RGB", (8, 8))] * 2)
    np.testing.assert_allclose(first, torch.tensor(2.0).sigmoid(), rtol=1e-6)
    np.testing.assert_allclose(second, torch.tensor(-1.0).sigmoid(), rtol=1e-6)


def test_a_folder_of_the_video_model_is_read_as_published(tmp_path: Path):
    config = configure(
        transformers.Sam2VideoConfig,
        memory_attention_hidden_size=16,
        memory_encoder_hidden_size=16,
        memory_encoder_output_channels=4,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16,
        memory_fuser_embed_dim=16,
        memory_fuser_intermediate_dim=16,
        mask_downsampler_embed_dim=16,
        memory_attention_rope_feat_sizes=[4, 4],
    )
    video = transformers.Sam2VideoModel(config)
    video.save_pretrained(tmp_path)
    save_processor(tmp_path)
    own, theirs = Sam2(tmp_path).model.state_dict(), video.state_dict()
    assert own.keys() - theirs.keys() == set()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())


def test_what_cannot_be_loaded_is_named(weights: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"weights must be a local folder with SAM 2 .* received .*nowhere"):
        Sam2(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"margin must lie in \[0, 0\.5\), .* received 0\.5"):
        Sam2(weights, margin=0.5)
    transformers.CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"weights must be of SAM 2 .* holds 'clip'"):
        Sam2(tmp_path / "clip")
    configure(transformers.Sam2Config).save_pretrained(tmp_path / "empty")
    save_processor(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"empty lacks a file that SAM 2 needs"):
        Sam2(tmp_path / "empty")


def test_weights_that_are_missing_are_not_made_up(weights: Path, tmp_path: Path):
    model = transformers.Sam2Model.from_pretrained(weights)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("mask_decoder.iou")}
    model.save_pretrained(tmp_path, state_dict=state)
    save_processor(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of SAM 2, .*mask_decoder\.iou"):
        Sam2(tmp_path)


def test_a_run_with_sam2(weights: Path, images: list[Image.Image], tmp_path: Path):
    for number, image in enumerate(images):
        for modality in ("RGB", "TI"):
            (tmp_path / "test" / modality).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "test" / modality / f"00000{number}_cam1_0_00.png")
    settings = Settings(data=tmp_path, modalities=("RGB", "TI"), splits=("test",), weights=weights, device="cpu")
    report = main(settings)
    expected = (
        "SAM 2, weights tiny-sam2, composite prompt, margin 0.05; vote over RGB, TI; largest region, holes filled"
    )
    assert report["method"] == expected
    assert [item["agreement"] for item in report["items"]] == [1.0, 1.0]  # both modalities are the same image
    for number, (width, height) in enumerate(SIZES):
        path = tmp_path / "test" / "mask" / f"00000{number}_cam1_0_00.png"
        note = read_note(path)
        assert note is not None
        assert note.method == expected
        with Image.open(path) as mask:
            assert mask.size == (width, height)
    assert [item["state"] for item in main(settings)["items"]] == ["kept", "kept"]
