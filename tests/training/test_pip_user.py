"""Script of the guide, run with the wheel and without a clone: training, resumption, and refused arguments."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sets import write_set

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "train-your-model.md").read_text()
SCRIPT, USE = re.findall(r"^```py\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
TINY = """
import json, pathlib, runpy, sys
runpy.run_path(sys.argv[3])["import_torchvision"]()  # also beside a torch of another build
import open_clip
vision = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4}
text = {"context_length": 8, "vocab_size": 100, "width": 8, "heads": 2, "layers": 1}
config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
pathlib.Path("tiny.json").write_text(json.dumps(config))
open_clip.add_model_config(pathlib.Path("tiny.json"))
try:
    import examples
except ImportError:
    runpy.run_path(sys.argv[1].replace("set", "train.py"), run_name="__main__")
else:
    sys.exit("the examples can be imported")
"""
# What makes the run small; everything else is as the page has it.
CHANGES = {
    'ARCHITECTURE, WEIGHTS = "ViT-B-16-quickgelu", "openai"': 'ARCHITECTURE, WEIGHTS = "tiny", None',
    "image_size=(256, 128)": "image_size=(16, 16)",
    "epochs=50": "epochs=2, identities_per_batch=4, images_per_identity=2",
    "tr.Machine()": 'tr.Machine(device="cpu", quiet=True)',
}


def small(script: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert script.count(old) == 1, old
        script = script.replace(old, new)
    return script


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a script in a folder of its own, by the installed wheel that `--python` names, else by the sources alone."""
    installed = request.config.getoption("python")
    sources = {} if installed else {"PYTHONPATH": str(ROOT / "src")}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {**sources, "OMP_NUM_THREADS": "1"}
    python = str(ROOT / installed) if installed else sys.executable
    paths = (tmp_path / "set", tmp_path / "run", ROOT / "examples" / "optional.py")
    command = [python, "-W", "ignore", "-P", "-c", TINY, *map(str, paths)]

    def run(script: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "train.py").write_text(script)
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    return run


def test_the_script_has_at_most_60_lines_and_needs_the_wheel_alone():
    assert len(SCRIPT.splitlines()) <= 60
    assert not re.search(r"\bexamples\b|\btests\b", SCRIPT)


@pytest.mark.slow
def test_the_script_trains_resumes_and_its_result_can_be_used(tmp_path: Path, run):
    write_set(tmp_path / "set")
    script = small(SCRIPT, CHANGES)
    first = run(script)
    assert first.returncode == 0, first.stderr
    lines = [line.split()[0] for line in first.stdout.splitlines()]
    assert lines == ["mAP", "baseline", "fused", "all"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["headline"] == "fused"
    assert metrics["watch"]
    again = run(script)  # nothing is left to do but to evaluate
    assert again.stdout == first.stdout, again.stderr

    longer = run(script.replace("epochs=2", "epochs=3"))
    assert "schedule.epochs: 2 -> 3" in longer.stderr

    use = small(
        USE, {'Path("runs/first/checkpoint.pt")': 'Path("run/checkpoint.pt")', 'Path("runs/first")': 'Path("run")'}
    )
    used = run(f"{script}{use}")
    assert used.returncode == 0, used.stderr
    assert len(json.loads((tmp_path / "run" / "names.json").read_text())) == 20
    assert [path.name for path in (tmp_path / "run").glob("features.*")] == ["features.safetensors"]
