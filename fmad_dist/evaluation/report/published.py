"""Rows that an evaluation is compared with: measured peers, and what others published (published.yaml)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

Origin = Literal["ours", "peer", "published"]


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A method on one dataset: means over the classes by the names of `METRIC_NAMES`, shares in [0, 1].

    `note` says under which conditions the numbers hold: the protocol of a measured row, the source of a published one.
    Metrics that are not known are left out.
    """

    name: str
    origin: Origin
    note: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Published:
    """What is published about a benchmark of `num_classes` classes; `cautions` belong beside its table."""

    title: str
    num_classes: int
    rows: tuple[ComparedRow, ...]
    cautions: tuple[str, ...]


def published_rows(dataset: str) -> list[ComparedRow]:
    """The published rows of the benchmark that a dataset of this name is; none for another name."""
    found = published(dataset)
    return list(found.rows) if found else []


def published(dataset: str) -> Published | None:
    """The benchmark that a dataset of this name is, by any of its usual spellings, or None."""
    return _benchmarks().get(_plain(dataset))


@cache
def _benchmarks() -> dict[str, Published]:
    body = yaml.safe_load((files("fmad_dist.evaluation.report") / "published.yaml").read_text())
    known: dict[str, Published] = {}
    for entry in body["benchmarks"]:
        used = [body["sources"][row["source"]] for row in entry["rows"]]
        of_sources = [caution for source in used for caution in source.get("cautions", [])]
        benchmark = Published(
            title=entry["title"],
            num_classes=entry["num_classes"],
            rows=tuple(_row(row, body["sources"]) for row in entry["rows"]),
            cautions=tuple(dict.fromkeys([*body["cautions"], *of_sources, *entry.get("cautions", [])])),
        )
        known |= {_plain(name): benchmark for name in entry["names"]}
    return known


def _row(entry: dict[str, Any], sources: dict[str, Any]) -> ComparedRow:
    note = "; ".join(filter(None, (sources[entry["source"]]["text"], entry.get("note"))))
    metrics = {name: round(percent / 100, 6) for name, percent in entry["metrics"].items()}
    return ComparedRow(entry["name"], "published", note, metrics)


def _plain(dataset: str) -> str:
    return re.sub(r"[^a-z0-9]", "", dataset.lower())
