"""Tables for people and JSON for programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def percentile(values: Sequence[float], share: float) -> float:
    """A percentile of unsorted values; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(name), *(len(row[at]) for row in texts), 1) for at, name in enumerate(columns)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [list(columns), *texts]
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def stages(costs: dict[str, float]) -> str:
    """Cost by stage."""
    if not costs:
        return "left out: py-spy may not look into processes here (root may)"
    total = sum(costs.values())
    rows = [(name, f"{cost:.0f}", f"{cost / total:.1%}") for name, cost in costs.items()]
    rows.append(("all", f"{total:.0f}", "100%"))
    return table(("stage", "CPU us per certificate", "share"), rows)


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write the result where it is wanted."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def headline(found: dict[str, str]) -> str:
    """The machine in one paragraph."""
    return ", ".join(f"{name} {value}" for name, value in found.items())
