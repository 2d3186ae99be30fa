"""CLIP models small enough to train in a test: registered in open_clip by name, with their weights in a file."""

import json
from pathlib import Path


def add_clip(config: Path, *, embed_dim: int, context_length: int, vision: dict[str, int]) -> str:
    """Make an architecture known to open_clip by the stem of `config`, which is written."""
    import open_clip

    text = {"context_length": context_length, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    config.write_text(json.dumps({"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(config)
    return config.stem


def write_clip(architecture: str, path: Path) -> Path:
    """Random weights of an architecture as a safetensors file."""
    import open_clip
    from safetensors.torch import save_file

    save_file(open_clip.create_model(architecture).state_dict(), path)
    return path
