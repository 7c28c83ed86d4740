"""Licence and origin of a source tree, from the notes its owner put beside the images."""

import re
from dataclasses import dataclass
from pathlib import Path

from data_tools.readers.official import Benchmark

UNKNOWN = "unknown"
_LICENCE_FILES = ("license.txt", "licence.txt", "license", "licence", "license.md", "license-dataset")
_README_FILES = ("readme.txt", "readme.md", "readme")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Licence and origin of some images; either may be "unknown"."""

    licence: str = UNKNOWN
    source: str = UNKNOWN


def provenance_of(root: Path, class_folders: list[Path], benchmark: Benchmark | None = None) -> Provenance:
    """Licence and origin of a tree: the root's notes, else those of its classes (named where they differ), else what
    the owner of the benchmark published."""
    noted = _noted(root, class_folders)
    if benchmark is None:
        return noted
    published = f"{benchmark.licence} (as published for {benchmark.name})"
    return Provenance(
        licence=published if noted.licence == UNKNOWN and benchmark.licence != UNKNOWN else noted.licence,
        source=benchmark.name if noted.source == UNKNOWN else noted.source,
    )


def _noted(root: Path, class_folders: list[Path]) -> Provenance:
    own = _read_folder(root)
    parts = {folder.name: _read_folder(folder) for folder in class_folders}
    return Provenance(
        licence=own.licence if own.licence != UNKNOWN else _merged({k: p.licence for k, p in parts.items()}),
        source=own.source if own.source != UNKNOWN else _merged({k: p.source for k, p in parts.items()}),
    )


def _merged(by_class: dict[str, str]) -> str:
    values = set(by_class.values())
    if len(values) <= 1:
        return values.pop() if values else UNKNOWN
    return "; ".join(f"{name}: {value}" for name, value in sorted(by_class.items()))


def _read_folder(folder: Path) -> Provenance:
    notes = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
    if "source.txt" in notes:
        fields = _fields(_text(notes["source.txt"]))
        origins = [fields[name] for name in ("source", "origin") if name in fields]
        licence = fields.get("licence") or fields.get("license") or UNKNOWN
        return Provenance(licence, " | ".join(origins) or UNKNOWN)
    for name in _LICENCE_FILES:
        if name in notes:
            lines = [line.strip() for line in _text(notes[name]).splitlines() if line.strip()]
            return Provenance(licence=lines[0][:200] if lines else UNKNOWN)
    for name in _README_FILES:
        if name in notes:
            found = re.search(r"^.*\blicen[cs]ed?\b.*$", _text(notes[name]), re.IGNORECASE | re.MULTILINE)
            return Provenance(licence=found.group().strip()[:200] if found else UNKNOWN)
    return Provenance()


def _fields(text: str) -> dict[str, str]:
    """The `name: value` lines of a note, names in lower case."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip().lower(): value.strip() for name, _, value in pairs if value.strip()}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
