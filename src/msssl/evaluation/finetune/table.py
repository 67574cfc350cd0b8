"""The table of `msssl finetune`, and its protocol as a sentence."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median_high
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from msssl.evaluation.finetune.classifier import SCALE, WARMUP, WEIGHT_DECAY
from msssl.evaluation.table import number, print_line
from msssl.metrics import mean_interval

HEADINGS = ("start", "labels", "top-1", "interval", "bal.", "linear", "rate", "epoch", "min")


def rows_of(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each protocol, number of labels and starting point, over the draws; fewest labels first."""
    groups: dict[tuple[str, int, bool, str], list[dict[str, Any]]] = {}
    for result in results:
        key = (result["protocol"], result["n_labels"], result["start"] != "pretrained", result["start"])
        groups.setdefault(key, []).append(result)
    rows = []
    for (protocol, n_labels, _, start), of_draws in sorted(groups.items()):
        of_draws.sort(key=lambda result: result["seed"])
        rows.append(
            {
                "protocol": protocol,
                "start": start,
                "labels": of_draws[0]["labels"],
                "n_labels": n_labels,
                "top1": _over_draws([(result["top1"], result["interval"]) for result in of_draws]),
                "balanced": sum(result["balanced"] for result in of_draws) / len(of_draws),
                "linear": _over_draws(
                    [(result["linear"]["top1"], result["linear"]["interval"]) for result in of_draws]
                ),
                "learning_rates": [result["learning_rate"] for result in of_draws],
                "epochs": [result["epoch"] for result in of_draws],
                "minutes": sum(result["minutes"] for result in of_draws),
            }
        )
    return rows


def _over_draws(measured: Sequence[tuple[float, Sequence[float]]]) -> dict[str, Any]:
    """Mean over the draws, with the 95 % interval: Student's from four draws on, Wilson's of a single one."""
    values = [value for value, _ in measured]
    mean, low, high = mean_interval(values, bounds=(0.0, 1.0))
    interval: Any = None if low != low else (low, high)
    if len(values) == 1:
        interval = tuple(measured[0][1])
    return {"values": values, "mean": mean, "interval": interval}


def _range(values: Sequence[Any], form: str) -> str:
    """The smallest and the largest value, or the only one."""
    ends = dict.fromkeys(format(value, form) for value in (min(values), max(values)))
    return "-".join(ends)


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text, under `HEADINGS`."""
    top1, linear = row["top1"], row["linear"]
    return [
        *(row["start"], row["labels"], number(top1["mean"]), _range(top1["interval"] or top1["values"], ".3f")),
        *(number(row["balanced"]), number(linear["mean"])),
        *(f"{median_high(row['learning_rates']):g}", str(median_high(row["epochs"])), f"{row['minutes']:.1f}"),
    ]


def tables_of(report: dict[str, Any]) -> dict[str, list[list[str]]]:
    """The rows of a report as text, under `HEADINGS`, by their protocol."""
    tables: dict[str, list[list[str]]] = {}
    for row in report["rows"]:
        tables.setdefault(row["protocol"], []).append(cells(row))
    return tables


def print_finetuned(report: dict[str, Any], path: Path) -> None:
    """Print a table for each protocol, and say where the report was written."""
    for protocol, rows in tables_of(report).items():
        table = Table(*HEADINGS, caption=protocol, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for row in rows:
            table.add_row(*row)
        Console(markup=False).print(table)
    print_line(f"written to {path}")


def described(settings: dict[str, Any], epochs: int, min_steps: int) -> str:
    """The protocol as a sentence."""
    rates = ", ".join(f"{rate:g}" for rate in settings["learning_rates"])
    given = [f"{name} {settings[name]}" for name in ("max_epochs", "max_steps") if name in settings]
    length = " and ".join(given) or f"{epochs} epochs, or more where these are fewer than {min_steps} steps"
    return (
        f"fine-tuning of all weights from the head of the linear probe, {length}, batch {settings['batch_size']}, one "
        f"crop ({SCALE[0]:g} to {SCALE[1]:g} of the area) and flip of each image, AdamW, weight decay "
        f"{WEIGHT_DECAY:g}, warm-up {WARMUP:g} and cosine; learning rate of {rates} and epoch chosen on val, test read "
        "once; 95 % interval: Student's over four draws or more, Wilson's of one, else the range of the draws"
    )
