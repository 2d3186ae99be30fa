"""Results as text: a line on the terminal, and the tables and plots that docs/benchmarks.md includes."""

from collections.abc import Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
UNITS = {"time": "time", "memory": "memory", "error": "error", "MiB": "MiB above the inputs", "µs": "µs added"}


def line(result: dict) -> str:
    """Format one comparison on one line."""
    ours = result["contenders"]["ours"]
    others = (f"{name} {values['milliseconds']:.4g} ms" for name, values in result["contenders"].items())
    return f"{result['name']}: {ours['ratio']:.3f} of {result['against']} ({', '.join(others)})"


def table(results: Sequence[dict]) -> str:
    """Format a Markdown table: a row per comparison, times relative to the last column; missed targets are bold."""
    others = dict.fromkeys(
        name for result in results for name in result["contenders"] if name not in ("ours", result["against"])
    )
    quantities = {target["quantity"] for result in results for target in result["targets"]}
    further = [quantity for quantity in ("µs", "error") if quantity in quantities]
    titles = [{"µs": "added"}.get(quantity, quantity) for quantity in further]
    head = ["what", "ours", "target", "spread", *others, "memory", *titles, "against"]
    rows = [_cells(result, others, further) for result in results]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _cells(result: dict, others: Iterable[str], further: Iterable[str]) -> list[str]:
    contenders, targets = result["contenders"], {target["quantity"]: target for target in result["targets"]}
    ours, against = contenders["ours"], contenders[result["against"]]
    time = targets.get("time")
    memory = targets.get("MiB") or targets.get("memory") or {"measured": _memory_ratio(ours, against)}
    return [
        result["name"],
        _figure({"measured": ours["ratio"], **(time or {})}, limit=False),
        f"≤ {time['limit']:g}" if time else "",
        f"{ours['ratio_low']:.2f} to {ours['ratio_high']:.2f}",
        *(_ratio(contenders.get(name), name == result["against"]) for name in others),
        _figure(memory),
        *(_figure(targets[quantity]) if quantity in targets else "" for quantity in further),
        result["against"],
    ]


def _ratio(contender: dict | None, is_unit: bool) -> str:
    return "" if contender is None or is_unit else f"{contender['ratio']:.2f}"


def _memory_ratio(ours: dict, against: dict) -> float | None:
    return ours["mebibytes"] / against["mebibytes"] if against["mebibytes"] else None


def _figure(measured: dict, *, limit: bool = True) -> str:
    """Format a measurement, bold if it misses its target, with the target if there is one."""
    if measured["measured"] is None:
        return ""
    unit = f" {measured['quantity']}" if measured.get("quantity") in ("MiB", "µs") else ""
    text = f"{measured['measured']:.{0 if unit else 2}f}{unit}"
    if "limit" not in measured:
        return text
    text = text if reached(measured) else f"**{text}**"
    return f"{text} (≤ {measured['limit']:g})" if limit else text


def reached(target: dict) -> bool:
    return target["measured"] <= target["limit"]


def missed(results: Sequence[dict]) -> list[str]:
    """Describe the rows that miss their target."""
    return [
        f"{result['name']}, {UNITS[target['quantity']]}: {target['measured']:.3f}, target {target['limit']:g}"
        for result in results
        for target in result["targets"]
        if not reached(target)
    ]


def write_docs(found: dict, device: str, docs: Path) -> None:
    """Write the table of every measured topic into docs/tables, and for attention also the plots."""
    from benchmarks import plots

    kind = "cpu" if device == "cpu" else "cuda"
    tables = docs / "tables"
    for topic in dict.fromkeys(result["topic"] for result in found["results"]):
        results = [result for result in found["results"] if result["topic"] == topic]
        text = f"{origin(found)}\n\n{table(results)}\n"
        (tables / f"benchmarks-{kind}-{topic}.md").write_text(text)
        if topic == "attention":
            figures = plots.write(results, docs / "assets" / "benchmarks", kind)
            lines = (f"![{caption}](assets/benchmarks/{name})" for name, caption in figures.items())
            (tables / f"benchmarks-{kind}-plots.md").write_text("\n".join(lines) + "\n")


def origin(found: dict) -> str:
    """Describe the origin of measurements: the command and the machine."""
    machine = "; ".join(f"{name} {value}" for name, value in found["machine"].items())
    return f"`{found['command']}`, {machine}."
