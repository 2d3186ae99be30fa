"""Captions from a local vision-language model: a tiny model of random weights, and a stand-in with right answers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from captions_server import good_answer
from examples.prepare.captions.__main__ import main
from examples.prepare.captions.arguments import Arguments
from examples.prepare.captions.local import LocalModel
from examples.prepare.captions.questions import Request, data_url

transformers = pytest.importorskip("transformers")

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
REQUEST = Request("What is it?", Image.new("RGB", (20, 10), "red"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LLaVA with two small layers, random weights and a tokenizer that reads bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<pad>", "<end>", "<image>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", additional_special_tokens=["<image>"]
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.LlamaConfig(vocab_size=len(vocabulary), num_key_value_heads=2, **sizes)
    vision = transformers.CLIPVisionConfig(image_size=16, patch_size=8, **sizes)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=2, vision_feature_layer=-1
    )
    image_processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = transformers.LlavaProcessor(
        image_processor,
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    folder = tmp_path_factory.mktemp("vlm")
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_real_model_reads_image_and_words(weights):
    ask = LocalModel.load(weights, max_tokens=5)
    reply = ask(REQUEST)
    assert reply == ask(REQUEST)
    assert (reply.model, reply.completion_tokens, reply.finish) == (str(weights), 5, "length")
    corrected = ask(REQUEST._replace(correction=("this", "wrong")))
    read = [one.prompt_tokens or 0 for one in (reply, ask(REQUEST._replace(prompt="What else?")), corrected)]
    assert read[1] == read[0] - 1
    assert read[2] == read[0] + len("this;user: wrong;assistant: ")


def test_the_image_reaches_the_model(weights):
    ask = LocalModel.load(weights, max_tokens=1)
    seen = []
    forward = ask._model.model.vision_tower.forward
    ask._model.model.vision_tower.forward = lambda pixels, *rest, **options: (
        seen.append(pixels) or forward(pixels, *rest, **options)
    )
    ask(REQUEST)
    ask(REQUEST._replace(image=Image.new("RGB", (20, 10), "blue")))
    assert seen[0].shape == (1, 3, 16, 16)
    assert seen[0][0, 0].mean() > seen[0][0, 2].mean()
    assert seen[1][0, 0].mean() < seen[1][0, 2].mean()


def test_what_a_random_model_says_is_refused_and_counted(weights, tmp_path):
    write_items(tmp_path)
    report = main(
        Arguments(data=tmp_path, modalities=("RGB",), local=weights, max_tokens=8, height=16, schema="vehicles")
    )
    assert report["views"]["RGB"]["invalid"] == 2
    assert report["without any known attribute"] == ["000000_cam1_0_00", "000001_cam1_0_00"]
    assert report["requests"]["answers"] == 4
    assert report["requests"]["completion tokens"] == 32


class Inputs(dict):
    def to(self, device, dtype):
        return self


class WellSpoken:
    """Processor and model in one, as `LocalModel` uses them, with the answers of the good server."""

    chat_template = "one"
    device, dtype = torch.device("cpu"), torch.float32

    def eval(self):
        return self

    def apply_chat_template(self, messages, **options):
        image, text = messages[0]["content"]
        body = {"messages": [{"content": [text, {"image_url": {"url": data_url(image["image"])}}]}]}
        self.said = good_answer(body)
        return Inputs(input_ids=torch.zeros(1, 7))

    def generate(self, input_ids, max_new_tokens, do_sample):
        return torch.tensor([[0] * 7 + list(self.said.encode())])

    def decode(self, tokens, skip_special_tokens):
        return bytes(tokens.tolist()).decode()


def test_from_images_to_captions_with_a_model_that_answers_well(tmp_path, monkeypatch):
    write_items(tmp_path)
    pair = WellSpoken()
    monkeypatch.setattr(LocalModel, "load", lambda *_, **__: LocalModel(pair, pair, name="well", max_tokens=10_000))
    report = main(Arguments(data=tmp_path, modalities=("RGB", "NI"), local=Path("well"), height=16))
    assert [view["complete"] for view in report["views"].values()] == [2, 2, 2]
    assert report["requests"]["prompt tokens"] == 6 * 7
    descriptions = [one["description"] for one in json.loads((tmp_path / "text" / "train.json").read_text())]
    assert all(text.startswith("A") for text in descriptions)


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"local must be the folder of a model; .*nowhere is not a folder"):
        LocalModel.load(tmp_path / "nowhere")
    silent = SimpleNamespace(chat_template=None)
    with pytest.raises(ValueError, match="m: the processor has no chat template"):
        LocalModel(silent, silent, name="m")


def write_items(root: Path) -> None:
    for number in range(2):
        for modality in ("RGB", "NI"):
            path = root / "train" / modality / f"{number:06d}_cam1_0_00.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 16), (90 * number, 90 * (modality == "NI"), 0)).save(path)
