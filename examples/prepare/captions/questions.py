"""Questions and images for a model: every modality of an item alone, then all modalities side by side."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from examples.prepare.captions.answers import MAX_WORDS, is_refusal
from examples.prepare.captions.schema import NONE, Schema
from stmi_layers.training.images import read_image
from stmi_layers.training.record import Item, Panel, Source, path_of
from stmi_layers.training.settings import Range

COMPOSITE = "composite"
GAP = 8  # white pixels between the images of a composite
BANDS = {
    "RGB": "visible light, in colour",
    "NI": "near infrared, where brightness says nothing about colour",
    "NIR": "near infrared, where brightness says nothing about colour",
    "TI": "thermal infrared, where bright is warm and nothing says colour",
    "TIR": "thermal infrared, where bright is warm and nothing says colour",
}


class Question(NamedTuple):
    """Question about one view of an item.

    Attributes:
        item: name of the item.
        view: a modality, or `composite`.
        images: files, or panels of a file, of the view, from left to right.
        prompt: text of the question.
        key: digest of item, view, prompt, model, size, and content and range of the files.
        bounds: range of counts of every image, None for images of 8 bits.
    """

    item: str
    view: str
    images: tuple[Source, ...]
    prompt: str
    key: str
    bounds: tuple[Range | None, ...] = ()


class Request(NamedTuple):
    """Request to a model: prompt, one image, and at the second attempt the first answer and its errors."""

    prompt: str
    image: Image.Image
    correction: tuple[str, str] | None = None


class Reply(NamedTuple):
    """Reply of a model.

    Attributes:
        text: the answer as the model wrote it.
        refusal: why the model or its filter declined; empty when it did not.
        finish: why the model stopped; "length" means that the answer was cut.
        model: who answered, in the words of the server.
        prompt_tokens: tokens read, None when the server does not say.
        completion_tokens: tokens written, None when the server does not say.
        failures: failed attempts before this one, by kind.
    """

    text: str
    refusal: str = ""
    finish: str = "stop"
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    failures: dict[str, int] = {}  # noqa: RUF012 - never changed

    @property
    def declined(self) -> bool:
        """Tell whether the model refused, in words or through its filter."""
        return bool(self.refusal) or self.finish == "content_filter" or is_refusal(self.text)


def ask_about(
    item: Item,
    modalities: Sequence[str],
    schema: Schema,
    *,
    model: str,
    height: int,
    ranges: Mapping[str, Range] | None = None,
) -> list[Question]:
    """Return the questions of an item: one per modality it has, and the composite if it has several modalities.

    Raises:
        ValueError: when a modality is called `composite`.
    """
    if COMPOSITE in modalities:
        raise ValueError(f"a modality cannot be called {COMPOSITE!r}: that is the name of the view of all modalities")
    present = {name: source for name, source in zip(modalities, item.images, strict=True) if source is not None}
    views = {name: (name,) for name in present} | ({COMPOSITE: tuple(present)} if len(present) > 1 else {})
    contents = {name: _digest(source) for name, source in present.items()}
    questions = []
    for view, names in views.items():
        sources = tuple(present[name] for name in names)
        prompt = write_prompt(schema, names)
        bounds: tuple[Range | None, ...] = tuple((ranges or {}).get(name) for name in names)
        parts = (item.name, view, prompt, model, str(height), *(contents[name] for name in names))
        parts += tuple(str(one) for one in bounds if one is not None)
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
        questions.append(Question(item.name, view, sources, prompt, key, bounds))
    return questions


def _digest(source: Source) -> str:
    panel = source[1:] if isinstance(source, Panel) else ()
    return hashlib.sha256(path_of(source).read_bytes() + repr(panel).encode()).hexdigest()


def write_prompt(schema: Schema, modalities: Sequence[str]) -> str:
    """Write the question about one image, or about several images side by side."""
    bands = [f"{name} ({BANDS[name]})" if name in BANDS else name for name in modalities]
    shown = f"The image shows one {schema.subject}, taken in {bands[0]}."
    if len(bands) > 1:
        shown = (
            f"The image shows the same {schema.subject} {len(bands)} times side by side, taken at one moment in "
            f"different spectral bands; from left to right: {'; '.join(bands)}. Use them together."
        )
    lines = []
    for attribute in schema.attributes:
        kind = "an adjective or a name" if attribute.role == "adjective" else "a noun, with what belongs to it"
        kind = f"one of: {', '.join(attribute.options)}" if attribute.options else f"{kind}; at most {MAX_WORDS} words"
        lines.append(f"- {attribute.name}: {attribute.meaning} ({kind})")
    plates = any(attribute.number_plate for attribute in schema.attributes)
    return "\n".join(
        [
            shown,
            f"Describe the {schema.subject} by these attributes:",
            *lines,
            "Answer with JSON alone, as in this example:",
            '{"attributes": [{"attribute": "colour", "value": "dark red", "confidence": 0.8}]}',
            "Every attribute of the list is there once. confidence is between 0 and 1 and says how certain you are.",
            f"value is null when you cannot tell, and {NONE!r} when you see that there is no such thing.",
            "Values are lower case, without an article, except for proper names.",
            *([] if plates else ["Never write down a number plate or a part of one."]),
        ]
    )


def write_correction(problems: Sequence[str], *, cut: bool) -> str:
    """Write the second question, which names the errors of the first answer."""
    found = ["the answer was cut before its end; be brief", *problems] if cut else problems
    return "That answer cannot be used:\n" + "\n".join(f"- {one}" for one in found) + "\nAnswer again, in full."


def compose(images: Sequence[Source], *, height: int, bounds: Sequence[Range | None] = ()) -> Image.Image:
    """Join images side by side, each scaled to `height` pixels, with a white gap between them."""
    scaled = []
    for source, one in zip(images, bounds or [None] * len(images), strict=True):
        image = read_image(source, one)
        width = max(1, round(image.width * height / image.height))
        scaled.append(image.resize((width, height), Image.Resampling.BICUBIC))
    total = sum(image.width for image in scaled) + GAP * (len(scaled) - 1)
    composite, left = Image.new("RGB", (total, height), "white"), 0
    for image in scaled:
        composite.paste(image, (left, 0))
        left += image.width + GAP
    return composite


def data_url(image: Image.Image) -> str:
    """Encode an image as JPEG inside a URL, as chat-completions servers take it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
