"""Options of `python -m examples.prepare.captions`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from examples.prepare.captions.endpoint import AnswerFormat
from stmi_layers.training.settings import MissingModality, Range


@dataclass(frozen=True)
class Arguments:
    """Images, attributes, and the model that describes them."""

    data: Path
    """A set in any layout the trainer reads; the captions go to DATA/text/<split>.json."""
    split: str = "train"
    """Split to describe."""
    modalities: tuple[str, ...] = ("RGB", "NI", "TI")
    """Modalities to read; each is asked about alone, then all together."""
    missing_modality: MissingModality = "error"
    """Policy for an item without an image in some modality; "absent" describes the images it has."""
    damaged: Literal["error", "skip"] = "error"
    """Policy for files that cannot be decoded; skipped files are named."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Counts that become black and white in images of more than 8 bits, by modality, as TI 7012 9411 or TI image."""
    limit: int = 0
    """Number of items to ask about, the first ones, to see what it costs; 0 for all."""
    overwrite: bool = False
    """Replace captions that this command has not written."""

    schema: str = "persons"
    """persons, vehicles, or a TOML or JSON file with a table of attributes (see schema.py)."""
    number_plates: bool = False
    """Ask for number plates and let them into the captions. Otherwise the model is told to write none, and what looks
    like one is left out; the raw answers stay as they came."""
    apart: bool = False
    """Write a caption per modality, of several sentences, instead of one per item: what the modality shows, and
    what the others show where the modality is not certain."""
    min_confidence: float | None = None
    """Confidence below which a value counts as unknown; by default 0, with `apart` 0.5."""
    again: tuple[Literal["refused", "invalid", "partial"], ...] = ()
    """Kinds of answers to request once more; the former answers stay in the file."""

    base_url: str = ""
    """Address of an OpenAI-compatible server. The images are sent there, so there is no default, and OPENAI_BASE_URL is
    not read. The key is OPENAI_API_KEY."""
    model: str = ""
    """Name of the model on that server."""
    local: Path | None = None
    """Folder of a vision-language model for transformers, instead of a server."""
    device: str = "cpu"
    """Device of the local model."""
    max_tokens: int = 1024
    """Tokens that the local model may write per answer."""

    height: int = 384
    """Pixels of height at which images are shown."""
    threads: int = 4
    """Questions under way at a time."""
    per_minute: float = 0.0
    """Requests a minute, repeated ones too; 0 for no limit."""
    timeout: float = 60.0
    """Seconds until an attempt counts as failed."""
    attempts: int = 6
    """Attempts per request; the waits between them double from `backoff` up to a minute."""
    backoff: float = 1.0
    """Seconds before the second attempt."""
    max_wait: float = 300.0
    """Longest Retry-After, in seconds, that is obeyed; a longer one ends the run."""
    answer_format: AnswerFormat = "json_schema"
    """Answer format that the server can enforce."""
    fields: str = '{"temperature": 0}'
    """Further fields of every request, as JSON: {"max_tokens": 800}."""
    input_price: float = 0.0
    """Price of a million tokens that the server reads."""
    output_price: float = 0.0
    """Price of a million tokens that the server writes."""

    def __post_init__(self) -> None:
        if (self.local is None) == (not self.base_url):
            raise ValueError("give either --base-url, the server the images may be sent to, or --local, a folder")
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"--base-url must begin with http:// or https://; received {self.base_url!r}")
        if self.base_url and not self.model:
            raise ValueError("--base-url needs --model, the name of a model on that server")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence must lie in [0, 1]; received {self.min_confidence}")
        for name, least in {"threads": 1, "attempts": 1, "height": 1, "max_tokens": 1, "limit": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; received {getattr(self, name)}")
        for name in ("per_minute", "backoff", "max_wait", "input_price", "output_price"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; received {getattr(self, name)}")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be positive; received {self.timeout}")


def read_fields(text: str) -> dict[str, Any]:
    """Further fields of a request.

    Raises:
        ValueError: when it is no JSON object, or sets what the command sets itself.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"fields must be a JSON object; received {text!r} ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"fields must be a JSON object; received {text!r}")
    if taken := sorted({"model", "messages", "response_format", "stream", "n"}.intersection(fields)):
        raise ValueError(f"fields must leave {', '.join(taken)} to this command")
    return fields
