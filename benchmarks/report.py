"""Results as text: a line on the terminal, the tables and plots of docs/benchmarks.md."""

from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
UNITS = {"time": "time", "memory": "memory", "error": "error", "MiB": "MiB above the inputs"}


def line(result: dict) -> str:
    """One comparison on one line."""
    ours = result["contenders"]["ours"]
    others = (f"{name} {values['milliseconds']:.4g} ms" for name, values in result["contenders"].items())
    return f"{result['name']}: {ours['ratio']:.3f} of {result['against']} ({', '.join(others)})"


def targets_table(results: Sequence[dict]) -> str:
    """Markdown: one row per target."""
    rows = ["| what | against | quantity | target | measured | spread | reached |", "|---|---|---|---|---|---|---|"]
    for result in results:
        ours = result["contenders"]["ours"]
        for target in result["targets"]:
            timed = target["quantity"] == "time"
            spread = f"{ours['ratio_low']:.3f} to {ours['ratio_high']:.3f}" if timed else ""
            cells = (
                result["name"],
                result["against"],
                UNITS[target["quantity"]],
                f"≤ {target['limit']:g}",
                figure(target),
                spread,
                "yes" if reached(target) else "**no**",
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def contenders_table(results: Sequence[dict]) -> str:
    """Markdown: one row per contender."""
    rows = ["| what | contender | ms | time ratio | spread | MiB | error |", "|---|---|---|---|---|---|---|"]
    for result in results:
        for name, values in result["contenders"].items():
            error = "" if values["error"] is None else f"{values['error']:.0e}"
            cells = (
                result["name"],
                name,
                f"{values['milliseconds']:.4g}",
                f"{values['ratio']:.3f}",
                f"{values['ratio_low']:.3f} to {values['ratio_high']:.3f}",
                f"{values['mebibytes']:.1f}",
                error,
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def figure(target: dict) -> str:
    return f"{target['measured']:.{1 if target['quantity'] == 'MiB' else 3}f}"


def reached(target: dict) -> bool:
    return target["measured"] <= target["limit"]


def missed(results: Sequence[dict]) -> list[str]:
    """The rows that miss their target."""
    return [
        f"{result['name']}, {UNITS[target['quantity']]}: {figure(target)}, target {target['limit']:g}"
        for result in results
        for target in result["targets"]
        if not reached(target)
    ]


def write_docs(found: dict, device: str) -> None:
    """Replace the measured part of docs/benchmarks.md, and on CPU the plots."""
    from benchmarks import plots

    page = DOCS / "benchmarks.md"
    kind = "cpu" if device == "cpu" else "cuda"
    begin, end = f"<!-- measured on {kind} -->", f"<!-- end of measured on {kind} -->"
    before, rest = page.read_text().split(begin)
    after = rest.split(end)[1]
    results = found["results"]
    parts = [begin, machine_line(found["machine"]), targets_table(results)]
    if kind == "cpu":
        parts += [f"![{caption}](assets/{name})" for name, caption in plots.write(results, DOCS / "assets").items()]
    parts += ["All contenders:", contenders_table(results), end]
    page.write_text(before + "\n\n".join(parts) + after)


def machine_line(machine: dict) -> str:
    return "Measured on " + "; ".join(f"{name} {value}" for name, value in machine.items()) + "."
