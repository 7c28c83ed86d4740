"""What the owner of a benchmark published about it: licence, citation, classes and counts to compare with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fmad_dist.stream.manifest import ClassCounts

UNKNOWN = "unknown"
_FIELDS = ("train", "val", "test_normal", "test_anomalous")


@dataclass(frozen=True, slots=True)
class OfficialCounts:
    """Images per split as counted from the owner's lists; None where no figure is certain enough to compare with."""

    train: int | None = None
    val: int | None = None
    test_normal: int | None = None
    test_anomalous: int | None = None
    defects: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A published data set. `total` is compared only if all classes are there."""

    name: str
    licence: str
    citation: str
    classes: Mapping[str, OfficialCounts]
    total: OfficialCounts = field(default_factory=OfficialCounts)

    def covers(self, defects: Mapping[str, set[str]]) -> bool:
        """Whether classes with these defects are the benchmark's: a name such as "screw" alone proves nothing."""
        known = {name: set(counts.defects or {}) for name, counts in self.classes.items()}
        return any(defects.values()) and all(name in known and own <= known[name] for name, own in defects.items())


@dataclass(frozen=True, slots=True)
class Deviation:
    """One figure that differs from the official one."""

    class_name: str  # "all" for the whole benchmark
    what: str
    official: str
    found: str


def deviations(benchmark: Benchmark, found: Mapping[str, ClassCounts]) -> Iterator[Deviation]:
    """Where the counts of a tree differ from the official ones: classes, then counts, then totals."""
    missing = sorted(set(benchmark.classes) - set(found))
    if missing:
        yield Deviation("all", "classes", str(len(benchmark.classes)), f"without {', '.join(missing)}")
    for name, counts in found.items():
        if name not in benchmark.classes:
            yield Deviation(name, "class", "no such class", "present")
        else:
            yield from _differences(name, benchmark.classes[name], counts)
    if not missing:
        total = ClassCounts(**{what: sum(getattr(counts, what) for counts in found.values()) for what in _FIELDS})
        yield from _differences("all", benchmark.total, total)


def _differences(name: str, official: OfficialCounts, counts: ClassCounts) -> Iterator[Deviation]:
    for what in _FIELDS:
        stated, counted = getattr(official, what), getattr(counts, what)
        if stated is not None and stated != counted:
            yield Deviation(name, what.replace("_", " "), str(stated), str(counted))
    if official.defects is not None:
        for defect in sorted(official.defects.keys() | counts.defects.keys()):
            stated, counted = official.defects.get(defect, 0), counts.defects.get(defect, 0)
            if stated != counted:
                yield Deviation(name, f"defect {defect}", str(stated), str(counted))


def counted(table: str) -> dict[str, OfficialCounts]:
    """Parse entries of `class | train | val | good test images | anomalous test images`, one a line or split by `;`.

    `?` is a count that is not known; `defect number, ...` in place of the last one counts per defect.
    """
    classes = {}
    for entry in table.strip().replace(";", "\n").splitlines():
        name, *numbers, anomalous = (cell.strip() for cell in entry.split("|"))
        train, val, good = (None if number == "?" else int(number) for number in numbers)
        listed = {} if anomalous.isdecimal() else dict(words.split() for words in anomalous.split(","))
        defects = {defect: int(number) for defect, number in listed.items()}
        total = sum(defects.values()) if defects else int(anomalous)
        classes[name] = OfficialCounts(train, val, good, total, defects or None)
    return classes
