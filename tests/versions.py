"""Tests of the layers with the oldest and the newest supported versions of torch: `make test-versions`.

Each version gets its own environment under build/versions, with a few gigabytes of wheels. The table of results
goes into docs/tables/versions.md. `python -m tests.versions oldest` repeats one of them. pip takes its indices from its
own configuration, such as `PIP_EXTRA_INDEX_URL`.
"""

import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "versions"
TABLE = ROOT / "docs" / "tables" / "versions.md"
# Triton 3.2, which comes with torch 2.6, has an interpreter that fails with NumPy 2.4.
VERSIONS = {"oldest": ("torch==2.6.0", "numpy<2.4"), "newest": ("torch",)}
# What tests/layers and the two conftest.py import; oracles from other libraries are skipped where they are missing.
TOOLS = (
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "sybil>=8",
    "scikit-learn",
    "onnxscript",
)


def main(names: Collection[str]) -> int:
    """Run the versions of these names, write the table of all, and return 1 when a test failed."""
    rows, failed = [], False
    for name, requirements in VERSIONS.items():
        report = FOLDER / f"{name}.xml"
        python = environment(FOLDER / name, requirements)
        if name in names or not report.exists():
            run_tests(python, report)
        row, bad = summary(version_of(python), report)
        rows.append(row)
        failed |= bad
    TABLE.write_text(table(rows), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))
    return int(failed)


def environment(folder: Path, requirements: Sequence[str]) -> Path:
    """Return the Python of an environment with this package and one version of torch, made when it is not there."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--upgrade", *requirements, *TOOLS], check=True)
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *requirements, "-e", f"{ROOT}[training]"], check=True
    )
    return python


def run_tests(python: Path, report: Path) -> None:
    """Run the tests of the layers; the report tells what failed, whatever the status."""
    report.unlink(missing_ok=True)
    command = [
        str(python),
        "-m",
        "pytest",
        "tests/layers",
        "--slow",
        "-q",
        "-n",
        "2",
        "--dist",
        "loadfile",
        f"--junitxml={report}",
    ]
    # Newer and older versions warn of other things.
    subprocess.run(
        [*command, "-W", "default", "-p", "no:cacheprovider"], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if not report.exists():
        raise SystemExit(f"pytest wrote no report with {python}")


def version_of(python: Path) -> str:
    command = [str(python), "-c", "import torch; print(torch.__version__)"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def summary(version: str, report: Path) -> tuple[str, bool]:
    """Return a row of the table, and whether a test failed."""
    counts, failures = Counter[str](), Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        counts[outcome] += 1
        if outcome in ("failure", "error"):
            failures[str(case.get("name")).partition("[")[0]] += 1
    named = ", ".join(f"`{name}` ({count})" for name, count in sorted(failures.items())) or "none"
    failed = counts["failure"] + counts["error"]
    cells = (version, platform.python_version(), counts["passed"], failed, counts["skipped"], named)
    return f"| {' | '.join(map(str, cells))} |", failed > 0


def table(rows: list[str]) -> str:
    head = "| torch | Python | passed | failed | skipped | failed tests |\n| --- | --- | --- | --- | --- | --- |\n"
    return f"`make test-versions`, tests of the layers, {platform.system()}.\n\n{head}" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:] or tuple(VERSIONS)))
