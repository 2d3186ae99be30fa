"""Local vision-language model through transformers: weights from a folder, no network."""

import threading
from pathlib import Path
from typing import Any

import torch

from examples.optional import import_library
from examples.prepare.captions.questions import Reply, Request


class LocalModel:
    """Function that asks a model in memory, one question at a time, with greedy decoding.

    Args:
        model: model loaded by `AutoModelForImageTextToText`.
        processor: processor loaded by `AutoProcessor`; it must have a chat template.
        name: name of the model in answers.
        max_tokens: largest number of tokens per answer; a longer answer is cut, and asked for again.

    Raises:
        ValueError: when the processor has no chat template.
    """

    def __init__(self, model: Any, processor: Any, *, name: str, max_tokens: int = 1024) -> None:
        if not getattr(processor, "chat_template", None):
            raise ValueError(f"{name}: the processor has no chat template; use an instruction-tuned model")
        self._model, self._processor, self._name, self._max_tokens = model.eval(), processor, name, max_tokens
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", dtype: str = "auto", max_tokens: int = 1024) -> "LocalModel":
        """Read model and processor from a folder that `save_pretrained` has written.

        Raises:
            FileNotFoundError: when the folder does not exist.
            ImportError: when transformers or torchvision is not installed.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"local must be the folder of a model; {folder} is not a folder")
        import_library("transformers", "hf")
        from transformers import AutoModelForImageTextToText, AutoProcessor

        # Neither the network nor code in the folder is used, whatever its files name.
        closed: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        processor = AutoProcessor.from_pretrained(folder, **closed)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, **closed, dtype=dtype)
        return cls(model.to(device), processor, name=str(folder), max_tokens=max_tokens)

    @torch.inference_mode()
    def __call__(self, request: Request) -> Reply:
        """Return the model's answer; a refusal can only be in its words."""
        with self._lock:
            inputs = self._processor.apply_chat_template(
                _messages(request), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self._model.device, dtype=self._model.dtype)
            tokens = self._model.generate(**inputs, max_new_tokens=self._max_tokens, do_sample=False)
        read = inputs["input_ids"].shape[1]
        written = tokens[0, read:]
        return Reply(
            text=self._processor.decode(written, skip_special_tokens=True),
            finish="length" if len(written) == self._max_tokens else "stop",
            model=self._name,
            prompt_tokens=read,
            completion_tokens=len(written),
        )


def _messages(request: Request) -> list[dict[str, Any]]:
    image = {"type": "image", "image": request.image}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": request.prompt}]}]
    for role, text in zip(("assistant", "user"), request.correction or (), strict=False):
        messages.append({"role": role, "content": [{"type": "text", "text": text}]})
    return messages
