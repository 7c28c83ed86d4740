"""Licence and origin of a source tree, from the notes that lie beside its images.

Folders of images often come with code, and then with the licence of that code, which says nothing about the images. The
first of these that is there counts:

1. `licence:` in SOURCE.txt or a file such as LICENSE-DATASET, in the root;
2. the notes of the classes (where only some have one, or they differ, each class is named);
3. a licence file or README in the root that is not about code;
4. what the owner of the benchmark published;
5. a licence of code in the root.

Whatever else is noted and names another licence is told as a disagreement.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_tools.readers.official import UNKNOWN, Benchmark

_DATA_FILE = re.compile(r"(licen[cs]e[-_ ]?(data(set)?|images?)|(data(set)?|images?)[-_ ]?licen[cs]e)(\.(txt|md|rst))?")
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying)(\.(txt|md|rst))?")
_README = re.compile(r"readme(\.(txt|md|rst))?")
_OF_DATA = re.compile(
    r"creative commons|\bCC[ -]?(BY|0)\b|\bCC0|non-?commercial|open data|\bODbL\b|dataset|images", re.I
)
_OF_CODE = re.compile(r"\b(MIT|Apache|BSD|L?GPL\w*|AGPL\w*|GNU|Mozilla|MPL|ISC|Boost|Unlicense)\b")
_MIT_TEXT = "permission is hereby granted, free of charge"
_DRAWING = re.compile(r"[├└│┌┬]|^\s*[|`+\\][-–—]{2}")
_BADGE = re.compile(r"!\[|<img|<a |shields\.io", re.I)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_TITLE_ONLY = re.compile(
    r"(the )?(licen[cs](e|es|ing)|terms|dataset|code|data|and|of|use|agreement|notice|file|[\W_])*", re.I
)
_LICENCE_WORD = re.compile(r"\blicen[cs]ed?\b|\blicensing\b", re.I)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Licence and origin of some images, and sentences about notes that name other licences."""

    licence: str = UNKNOWN
    source: str = UNKNOWN
    disagreements: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Notes:
    """What the files of one folder say; "" where they say nothing."""

    explicit: str = ""  # of the data by name: SOURCE.txt, LICENSE-DATASET
    general: str = ""  # LICENSE or README, about the data as far as can be told
    code: str = ""
    source: str = ""

    @property
    def of_data(self) -> str:
        return self.explicit or self.general


def provenance_of(root: Path, class_folders: list[Path], benchmark: Benchmark | None = None) -> Provenance:
    """Licence and origin of a tree by the order above, "unknown" where nothing is noted."""
    own = _read_folder(root)
    classes = {folder.name: _read_folder(folder) for folder in class_folders if folder != root}
    published = benchmark.licence if benchmark is not None and benchmark.licence != UNKNOWN else ""
    if published and benchmark is not None:
        published += f" (as published for {benchmark.name})"
    rest = own.general or published or own.code
    named = {name: notes.of_data or notes.code for name, notes in classes.items()}
    of_classes = _merged({name: licence or rest for name, licence in named.items()}) if any(named.values()) else ""
    licence = own.explicit or of_classes or rest or UNKNOWN
    source = own.source or _merged({name: notes.source for name, notes in classes.items()})
    if benchmark is not None:
        source = source or benchmark.name
    others = [own.explicit, own.general, own.code, *named.values(), published]
    return Provenance(licence, source or UNKNOWN, tuple(_disagreements(licence, others)))


def _disagreements(licence: str, others: list[str]) -> Iterator[str]:
    for other in dict.fromkeys(others):
        if other and other not in licence and _kind(other) not in _kind(licence):
            yield f"also noted as licence: {other!r}; if that is the one of the images, give it as --licence"


def _kind(licence: str) -> str:
    """The licence without what differs between two ways of naming it."""
    short = re.sub(r"creative commons", "cc", licence.lower()).replace("attribution", "by")
    short = short.replace("noncommercial", "nc").replace("non-commercial", "nc").replace("sharealike", "sa")
    found = re.search(r"cc[\W_]*(0|by)([\W_]*nc)?([\W_]*(sa|nd))?", short)
    return re.sub(r"[\W_]", "", found.group()) if found else re.sub(r"[\W_]", "", short)


def _merged(by_class: dict[str, str]) -> str:
    """The notes of all classes, named where they differ."""
    values = set(by_class.values())
    if len(values) <= 1:
        return values.pop() if values else ""
    return "; ".join(f"{name}: {value or UNKNOWN}" for name, value in sorted(by_class.items()))


def _read_folder(folder: Path) -> _Notes:
    files = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_file()}
    fields = _fields(_text(files["source.txt"])) if "source.txt" in files else {}
    origins = [fields[name] for name in ("source", "origin") if name in fields]
    explicit = fields.get("licence") or fields.get("license", "")
    general = code = ""
    for name, path in files.items():
        if _DATA_FILE.fullmatch(name):
            explicit = explicit or licence_in(_text(path))
        elif _LICENCE_FILE.fullmatch(name) or _README.fullmatch(name):
            found = licence_in(_text(path), sentence=bool(_README.fullmatch(name)))
            if _OF_CODE.search(found) and not _OF_DATA.search(found):
                code = code or found
            else:
                general = general or found
    return _Notes(explicit, general, code, " | ".join(origins))


def licence_in(text: str, sentence: bool = False) -> str:
    """The line of a text that names a licence, without markup; "" if none does.

    Badges, lines of tree drawings and headings that only announce a licence are passed over. `sentence`: the text is
    about other things too, so only a line that speaks of a licence, or the first below such a heading, counts.
    """
    if _MIT_TEXT in " ".join(text.lower().split()):
        return "MIT License"
    lines, announced = [], not sentence
    for raw in text.splitlines():
        line = _LINK.sub(r"\1", raw).strip().strip("#*>`=-_ ").strip()
        if _DRAWING.search(raw) or _BADGE.search(raw) or not re.search(r"[^\W\d_]", line):
            continue
        if _TITLE_ONLY.fullmatch(line):
            announced = announced or bool(_LICENCE_WORD.search(line))
            continue
        is_heading = raw.lstrip().startswith("#")
        known = bool(_OF_CODE.search(line) or _OF_DATA.search(line))
        if not (is_heading and not known) and (announced or _LICENCE_WORD.search(line)):
            lines.append(line)
        if sentence:
            announced = False
    named = [line for line in lines if _OF_CODE.search(line) or _OF_DATA.search(line)]
    return (named or lines or [""])[0][:200]


def _fields(text: str) -> dict[str, str]:
    """The `name: value` lines of a note, names in lower case."""
    pairs = (line.partition(":") for line in text.splitlines())
    found = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return {name: value for name, value in found.items() if value not in ("", UNKNOWN)}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
