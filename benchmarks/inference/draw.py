"""The figures of inference.json as a table and a picture."""

import io
from collections.abc import Iterator
from typing import Any


def rows(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Methods, the quickest first."""
    yield from sorted(found["methods"].items(), key=lambda row: -images_per_s(row[1]))


def images_per_s(ms: dict[str, float], more_ms: float = 0.0) -> float:
    """At the largest batch that was timed; `more_ms` are added for each image."""
    batch = max(ms, key=int)
    return 1000 / (ms[batch] / int(batch) + more_ms)


def table(found: dict[str, Any]) -> str:
    batches = max((list(ms) for ms in found["methods"].values()), key=len)
    lines = [
        f"{found['machine']}; torch {found['versions']['torch']}; {found['backbone']}, {found['network']}, "
        f"{found['image_size']} px. Decoding and resizing a file takes {found['decode_ms']:.1f} ms.",
        "",
        f"| method | {' | '.join(f'ms, batch {batch}' for batch in batches)} | images/s | with decoding |",
        "|---|" + "---:|" * (len(batches) + 2),
    ]
    for name, ms in rows(found):
        cells = [f"{ms[batch]:.0f}" if batch in ms else "" for batch in batches]
        cells += [f"{images_per_s(ms):.2f}", f"{images_per_s(ms, found['decode_ms']):.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| part of a detection | " + " | ".join(f"ms, batch {batch}" for batch in batches) + " |"]
    lines.append("|---|" + "---:|" * len(batches))
    for name, ms in found["stages"].items():
        lines.append(f"| {name} | {' | '.join(f'{ms[batch]:.0f}' if batch in ms else '' for batch in batches)} |")
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any]) -> bytes:
    """PNG: images/s at the largest batch, one bar per method, peers in another colour."""
    from matplotlib.figure import Figure

    shown = list(rows(found))[::-1]
    figure = Figure(figsize=(9, 0.4 * len(shown) + 1), layout="constrained")
    axis = figure.subplots()
    colours = ["#2a6f97" if name.startswith("fmad") else "#b5651d" for name, _ in shown]
    bars = axis.barh([name for name, _ in shown], [images_per_s(ms) for _, ms in shown], color=colours)
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.set(xscale="log", xlabel=f"images/s without decoding ({found['machine']})")
    axis.grid(axis="x", alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
