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
    """Folder of a set in any layout that the trainer reads; captions go to DATA/text/<split>.json."""
    split: str = "train"
    """Split to caption."""
    modalities: tuple[str, ...] = ("RGB", "NI", "TI")
    """Modalities to read; the model is asked about each modality alone, then about all together."""
    missing_modality: MissingModality = "error"
    """Policy for an item that lacks a modality: stop, describe its other images ("absent"), or skip the item."""
    damaged: Literal["error", "skip"] = "error"
    """Policy for files that cannot be decoded: stop, or skip their items and name the files."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Counts that become black and white in images of more than 8 bits, by modality: TI 7012 9411, or TI image."""
    limit: int = 0
    """Number of items to ask about, from the first on, to estimate the cost; 0 for all items."""
    overwrite: bool = False
    """Replace existing captions that this command has not written."""

    schema: str = "persons"
    """Attributes to ask for: persons, vehicles, or a TOML or JSON file with a table of attributes (see schema.py)."""
    number_plates: bool = False
    """Ask for number plates and write them into the captions. By default the model is told to write no plates, and
    values that look like plates are left out of captions; raw answers are kept unchanged."""
    apart: bool = False
    """Write a caption of several sentences per modality, instead of one caption per item. Where a modality is not
    certain, its caption uses values of the other modalities."""
    min_confidence: float | None = None
    """Confidence, 0 to 1, below which a value counts as unknown; 0 by default, 0.5 with `apart`."""
    again: tuple[Literal["refused", "invalid", "partial"], ...] = ()
    """Kinds of answers to request again; earlier answers stay in the file."""

    base_url: str = ""
    """Address of an OpenAI-compatible server, whose key is in OPENAI_API_KEY. Images are sent to this server, so there
    is no default, and OPENAI_BASE_URL is not read."""
    model: str = ""
    """Name of the model on the server."""
    local: Path | None = None
    """Folder of a local vision-language model for transformers, instead of a server."""
    device: str = "cpu"
    """Device of the local model."""
    max_tokens: int = 1024
    """Largest number of tokens that the local model may write per answer."""

    height: int = 384
    """Height in pixels of the images that the model sees."""
    threads: int = 4
    """Number of questions asked at a time."""
    per_minute: float = 0.0
    """Largest number of requests per minute, retries included; 0 for no limit."""
    timeout: float = 60.0
    """Seconds until an attempt counts as failed."""
    attempts: int = 6
    """Largest number of attempts per request; waits between attempts double from `backoff` up to a minute."""
    backoff: float = 1.0
    """Wait before the second attempt, in seconds."""
    max_wait: float = 300.0
    """Longest Retry-After of the server to wait for, in seconds; a longer Retry-After ends the run."""
    answer_format: AnswerFormat = "json_schema"
    """Answer format that the server can enforce; text for none."""
    fields: str = '{"temperature": 0}'
    """Further fields of every request as JSON, such as {"max_tokens": 800}."""
    input_price: float = 0.0
    """Price of a million tokens that the server reads, in any currency, for the report."""
    output_price: float = 0.0
    """Price of a million tokens that the server writes, in any currency, for the report."""

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
    """Parse further fields of a request.

    Raises:
        ValueError: when the text is not a JSON object, or sets a field that the command sets.
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
