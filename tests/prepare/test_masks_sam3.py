"""SAM 3 from a folder: a tiny model of random weights, with the real processor."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from examples.masking import Segmentation, maker_of
from examples.prepare.masks.__main__ import main
from examples.prepare.masks.make import Settings
from stmi_layers.training import Data
from stmi_layers.training.images import read_mask
from stmi_layers.training.splits import list_items

transformers = pytest.importorskip("transformers", minversion="5")
if not hasattr(transformers, "Sam3Model"):
    pytest.skip("transformers has no SAM 3", allow_module_level=True)

from examples.prepare.masks.sam3 import Sam3, distinct  # noqa: E402

SIDE, LENGTH = 56, 32  # the processor pads to 32 tokens


def save_processor(folder: Path) -> None:
    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=LENGTH)
    size = {"height": SIDE, "width": SIDE}
    images = transformers.Sam3ImageProcessor(size=size, mask_size={"height": SIDE // 4, "width": SIDE // 4})
    transformers.Sam3Processor(images, tokenizer).save_pretrained(folder)


def config() -> Any:
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    grid = SIDE // 14
    vision = transformers.Sam3VisionConfig(
        backbone_config=transformers.Sam3ViTConfig(
            **small,
            num_hidden_layers=2,
            image_size=SIDE,
            pretrain_image_size=SIDE,
            window_size=2,
            global_attn_indexes=[1],
        ),
        fpn_hidden_size=16,
        backbone_feature_sizes=[[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
    )
    text = {**small, "vocab_size": 54, "projection_dim": 16, "num_hidden_layers": 1, "max_position_embeddings": LENGTH}
    text |= {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    return transformers.Sam3Config(
        vision_config=vision,
        text_config=text,
        geometry_encoder_config={**small, "num_layers": 1},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 1, "num_queries": 5},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "tiny-sam3"
    torch.manual_seed(0)
    model = transformers.Sam3Model(config())
    for parameter in model.parameters():  # as initialised, hardly anything depends on the image
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    save_processor(folder)
    return folder


@pytest.fixture
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)) for w, h in ((20, 40), (30, 10))]


def test_one_map_per_image_at_its_own_size(weights: Path, images: list[Image.Image]):
    segmenter = Sam3(weights, "person", least=0.0)
    together = segmenter(images)
    for image, one in zip(images, together, strict=True):
        assert one.shape == (image.height, image.width)
        assert one.dtype == np.float32
        assert ((one >= 0) & (one <= 1)).all()
        np.testing.assert_allclose(segmenter([image])[0], one, atol=1e-4)
    assert "weights tiny-sam3, prompt 'person' from score 0.0, of several the middle" in segmenter.name


def test_the_words_reach_the_model(weights: Path, images: list[Image.Image]):
    seen = []
    for prompt in ("person", "bus"):
        segmenter = Sam3(weights, prompt)
        segmenter.model.text_encoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
        )
        segmenter(images)
    assert seen[0].shape[0] == 2
    assert torch.equal(seen[0][0], seen[0][1])
    assert not torch.equal(seen[0][0][: seen[1].shape[1]], seen[1][0][: seen[0].shape[1]])


def answer(scores: list[float], presence: float = 20.0) -> SimpleNamespace:
    """Three things: a large one at the left, a small one in the middle, and another one at the right."""
    masks = torch.full((1, 3, 8, 8), -20.0)
    masks[0, 0, :, :3], masks[0, 1, 3:5, 3:5], masks[0, 2, :, 6:] = 20.0, 20.0, 20.0
    boxes = torch.tensor([[[0, 0, 0.375, 1], [0.375, 0.375, 0.625, 0.625], [0.75, 0, 1, 1]]])
    logits = torch.tensor([scores]).logit()
    return SimpleNamespace(
        pred_logits=logits, presence_logits=torch.tensor([[presence]]), pred_masks=masks, pred_boxes=boxes
    )


@pytest.mark.parametrize(
    ("several", "scores", "share"),
    [("largest", [0.9, 0.9, 0.9], 3 / 8), ("middle", [0.9, 0.9, 0.9], 4 / 64), ("middle", [0.9, 0.1, 0.2], 3 / 8)],
)
def test_of_several_things_one_is_chosen(weights: Path, several, scores, share):
    segmenter = Sam3(weights, "car", several=several)
    segmenter.model = lambda **_: answer(scores)
    (found,) = segmenter([Image.new("RGB", (80, 80))])
    assert (found > 0.5).mean() == pytest.approx(share, abs=0.03)


def test_several_names_are_looked_for_and_a_thing_of_two_names_counts_once(weights: Path):
    segmenter = Sam3(weights, "car, truck,bus", several="largest")
    assert segmenter.words == ["car", "truck", "bus"]
    answers = iter([answer([0.1, 0.9, 0.1]), answer([0.1, 0.8, 0.7]), answer([0.2, 0.2, 0.2])])
    segmenter.model = lambda **_: next(answers)
    ((found, count),) = segmenter.look([Image.new("RGB", (80, 80))])
    assert count == 2  # the thing in the middle by two names, and the one at the right
    assert (found > 0.5).mean() == pytest.approx(2 / 8, abs=0.03)
    assert distinct(torch.tensor([0.6, 0.9, 0.2]), torch.rand(1, 4, 4).expand(3, -1, -1), 0.5).tolist() == [1]


def test_where_nothing_is_found_the_policy_says_what_comes(weights: Path):
    for nothing, level in (("empty", 0.0), ("whole", 1.0)):
        segmenter = Sam3(weights, "car", nothing=nothing)
        segmenter.model = lambda **_: answer([0.9, 0.9, 0.9], presence=-20.0)  # no car at all, says the model
        assert (segmenter([Image.new("RGB", (8, 4))])[0] == np.full((4, 8), level)).all()
    segmenter = Sam3(weights, "car", nothing="error")
    segmenter.model = lambda **_: answer([0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match=r"shows no 'car'; pass nothing='empty'"):
        segmenter([Image.new("RGB", (8, 4))])


def test_what_cannot_be_loaded_is_named(weights: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"weights must be a local folder with SAM 3 .* received .*nowhere"):
        Sam3(tmp_path / "nowhere", "car")
    with pytest.raises(ValueError, match=r"prompt must name what to look for; received ' '"):
        Sam3(weights, " ")
    with pytest.raises(ValueError, match=r"prompt must name what to look for; received 'car,'"):
        Sam3(weights, "car,")
    with pytest.raises(ValueError, match=r"several must be .*received 'all'"):
        Sam3(weights, "car", several="all")
    transformers.CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"weights must be of SAM 3 .* holds 'clip'"):
        Sam3(tmp_path / "clip", "car")


def test_a_run_with_sam3_names_what_is_empty_and_where_there_were_several(
    weights: Path, images: list[Image.Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "test" / "RGB").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(tmp_path / "test" / "RGB" / f"00000{number}_cam1_0_00.png")
    common = {"data": tmp_path, "modalities": ("RGB",), "splits": ("test",), "device": "cpu", "method": "sam3"}
    report = main(Settings(**common, weights=weights, prompt="person", least=1.0))
    assert report["method"].startswith("SAM 3, weights tiny-sam3, prompt 'person'")
    assert [list(item["doubts"]) for item in report["items"]] == [["empty", "nothing found"]] * 2
    assert [item["found"] for item in report["items"]] == [[0], [0]]
    assert "doubts in test: empty 2, nothing found 2" in capsys.readouterr().out
    report = main(Settings(**common, weights=weights, prompt="person", least=0.0, overwrite="own"))
    several = [item["found"][0] for item in report["items"]]
    assert max(several) > 1
    expected = [pytest.approx(1 - 1 / count) if count > 1 else None for count in several]
    assert [item["doubts"].get("several found") for item in report["items"]] == expected
    # The same masks are made while images are described.
    data = Data(tmp_path, ("RGB",), (16, 16))
    make = maker_of(Segmentation(weights, "person", least=0.0), "sam3", data, device="cpu")
    for item in list_items(tmp_path, "test", ("RGB",)):
        (path,) = item.masks
        assert path is not None
        np.testing.assert_array_equal(make(item), read_mask(path))
    with pytest.raises(ValueError, match=r"masks sam3 need --mask-weights, a local folder"):
        maker_of(Segmentation(None, "person"), "sam3", data, device="cpu")
    with pytest.raises(ValueError, match=r"masks sam3 need --mask-prompt, the name of the thing"):
        maker_of(Segmentation(weights), "sam3", data, device="cpu")
    with pytest.raises(ValueError, match=r"method sam3 needs --weights"):
        main(Settings(**common, prompt="person"))
    with pytest.raises(ValueError, match=r"method sam3 needs --prompt, the name of the thing"):
        main(Settings(**common, weights=weights))
