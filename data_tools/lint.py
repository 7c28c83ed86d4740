"""Reads a converted dataset completely and collects everything that is wrong with it."""

import hashlib
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from data_tools.garbage import LIVE_FOR, find_garbage, is_ours
from data_tools.lint_samples import ShardMembers, check_sample, note_doubts
from data_tools.near_duplicates import Fingerprints
from data_tools.remarks import Remarks
from fmad_dist.base.errors import UserError, first_line
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import Dataset, Sample, load_dataset
from fmad_dist.stream.manifest import FOREIGN, MANIFEST_NAME, Manifest, ShardInfo, count_classes

ERROR = "error"
WARNING = "warning"
_AGAIN = "convert again with --overwrite"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; an error makes the dataset unusable, a warning does not."""

    level: str  # "error" | "warning"
    where: str  # a file, or a file and a sample id
    message: str


@dataclass(frozen=True, slots=True)
class LintReport:
    """All findings of one pass over a dataset, in the order in which they were met."""

    findings: tuple[Finding, ...]
    num_samples: int
    num_shards: int

    @property
    def num_errors(self) -> int:
        return sum(finding.level == ERROR for finding in self.findings)

    @property
    def num_warnings(self) -> int:
        return len(self.findings) - self.num_errors


def lint(url: str) -> LintReport:
    """Check every byte of the dataset at `url`.

    Raises:
        UserError: there is no manifest, so there is nothing to check.
    """
    store = Store(url)
    if not store.exists(MANIFEST_NAME):
        raise UserError(f"{store.url_of(MANIFEST_NAME)}: not found; convert a dataset to this URL first.")
    try:
        dataset = load_dataset(url)
    except UserError as error:
        return LintReport((Finding(ERROR, MANIFEST_NAME, str(error)),), 0, 0)
    samples = [dataset.sample(index) for index in range(len(dataset))]
    prints, remarks = Fingerprints(), Remarks()
    findings = [*_check_index(dataset, samples), *_check_shards(store, dataset.manifest, samples, prints, remarks)]
    findings += [Finding(WARNING, first, sentence) for first, sentence in remarks.warnings()]
    findings += [*_find_duplicates(samples, prints), *_find_orphans(store, dataset.manifest)]
    return LintReport(tuple(findings), len(samples), len(dataset.manifest.shards))


def _check_index(dataset: Dataset, samples: list[Sample]) -> Iterator[Finding]:
    manifest, where = dataset.manifest, dataset.manifest.index.name
    if len(samples) != manifest.index.num_samples:
        yield Finding(ERROR, where, f"{len(samples)} rows, the manifest states {manifest.index.num_samples}")
    ids = [sample.sample_id for sample in samples]
    if any(first >= second for first, second in pairwise(ids)):
        yield Finding(ERROR, where, f"sample ids are not unique and ascending; {_AGAIN}")
    for sample in samples:
        yield from _check_ids(manifest, sample)
    counted = count_classes((one.class_name, one.split, one.label, one.defect_type) for one in samples)
    for name in sorted(counted.keys() | manifest.classes.keys()):
        if counted.get(name) != manifest.classes.get(name):
            yield Finding(ERROR, where, f"class {name}: the rows do not add up to the manifest's counts; {_AGAIN}")


def _check_ids(manifest: Manifest, sample: Sample) -> Iterator[Finding]:
    """Check that masks have the ids that the manifest's kind of mask asks for."""
    if manifest.mask_semantics == "binary":
        wrong = any(sample.mask_ids)
    elif manifest.mask_semantics == "class_id":
        wrong = not all(sample.mask_ids)
    else:
        known = {rule.pixel_value for rule in manifest.saturation.get(sample.class_name, [])}
        wrong = any(len(ids) != 1 or ids[0] not in known for ids in sample.mask_ids)
    if wrong:
        ids = ", ".join(map(str, sample.mask_ids))
        yield Finding(ERROR, sample.sample_id, f"mask ids {ids} do not fit {manifest.mask_semantics} masks; {_AGAIN}")


def _check_shards(
    store: Store, manifest: Manifest, samples: list[Sample], prints: Fingerprints, remarks: Remarks
) -> Iterator[Finding]:
    by_shard: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_shard[sample.shard].append(sample)
    for shard in manifest.shards:
        own = by_shard[shard.name]
        if len(own) != shard.num_samples:
            yield Finding(ERROR, shard.name, f"{len(own)} index rows, the manifest states {shard.num_samples}")
        try:
            data = store.read(shard.name)
        except UserError as error:
            yield Finding(ERROR, shard.name, str(error))
            continue
        yield from _check_shard(shard, data, own, manifest, prints, remarks)


def _check_shard(
    shard: ShardInfo, data: bytes, samples: list[Sample], manifest: Manifest, prints: Fingerprints, remarks: Remarks
) -> Iterator[Finding]:
    foreign = manifest.layout == FOREIGN
    if len(data) != shard.num_bytes:
        yield Finding(ERROR, shard.name, f"{len(data)} bytes, the manifest states {shard.num_bytes}; {_AGAIN}")
    elif hashlib.sha256(data).hexdigest() != shard.sha256:
        yield Finding(ERROR, shard.name, f"its bytes changed after they were written (SHA-256 differs); {_AGAIN}")
    try:
        members = ShardMembers(data)
    except tarfile.TarError as error:
        yield Finding(ERROR, shard.name, f"not a complete tar ({first_line(error)}); {_AGAIN}")
        return
    for sample in samples:
        for problem in check_sample(sample, members, prints, foreign):
            yield Finding(ERROR, f"{shard.name} {sample.sample_id}", problem)
        note_doubts(sample, members, remarks, ids_expected=manifest.mask_semantics != "binary")
    for name in sorted(members.by_name.keys() - members.claimed) if not foreign else []:
        yield Finding(ERROR, shard.name, f"member {name} is in no index row; {_AGAIN}")


def _find_duplicates(samples: list[Sample], prints: Fingerprints) -> Iterator[Finding]:
    """Images that are the same, or nearly, on both sides of the train/test split, which makes test scores too good."""
    exact = set()
    digests = [stored.sha256 if (stored := sample.image or sample.original) else "" for sample in samples]
    pairs = list(zip(digests, samples, strict=True))
    trained = {digest: sample.sample_id for digest, sample in pairs if sample.split == "train"}
    for digest, sample in pairs:
        if sample.split != "train" and digest in trained:
            exact.add(sample.sample_id)
            yield Finding(WARNING, sample.sample_id, f"exactly the training image {trained[digest]}")

    for tested, near, distance in prints.pairs():
        if tested not in exact:
            yield Finding(WARNING, tested, f"nearly the training image {near} (distance {distance:.3f})")


def _find_orphans(store: Store, manifest: Manifest) -> Iterator[Finding]:
    if manifest.layout == FOREIGN:
        return  # what else lies beside somebody's tars is theirs
    for entry in find_garbage(store, manifest, LIVE_FOR):
        what = "remove it with `fmad data gc`" if is_ours(entry.name) else "it is none of our files"
        yield Finding(WARNING, entry.name, f"not named by the manifest; {what}")
