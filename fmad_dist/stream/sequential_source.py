"""Foreign tars without an index, read in order through webdataset's own tar reader: which of their images train.

Held-out images are known by their key, so that no pass trains on them.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmad_dist.base.errors import UserError
from fmad_dist.images.codec import IMAGE_SUFFIXES, open_image, square_rgb
from fmad_dist.storage import Store
from fmad_dist.stream.foreign_tars import (
    Facts,
    TarStream,
    marks_defect,
    mask_number,
    refuse_unpaired_mask,
    split_of_tar,
)
from fmad_dist.stream.reader import BadSample

SURVEYED = 4096  # samples that are looked at for whitening and thresholds
SURVEY = 512  # of them at most so many for whitening, and so many for thresholds
SURVEY_BYTES = 512 << 20  # that the encoded images of the survey may take
_RESTORE = "replace the tar or the sample"


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded training image."""

    sample_id: str
    pixels: np.ndarray  # uint8 [S, S, 3]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A training image as it is stored."""

    sample_id: str
    url: str  # of its tar
    data: bytes


@dataclass(frozen=True)
class SequentialSource:
    """Folders of tars, or patterns like `s3://b/x/train-{000000..000017}.tar`, as one stream of training images."""

    urls: tuple[str, ...]
    image_size: int
    holdout: float
    seed: int
    patience_s: float

    @property
    def digest(self) -> str:
        """Names this stream for checkpoints; the content of the tars is not part of it."""
        facts = ["sequential/1", self.urls, self.image_size, self.holdout, self.seed]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The dataset's name: the last folder of the first URL."""
        folder = self.urls[0].rstrip("/")
        folder = folder.rpartition("/")[0] if folder.endswith(".tar") else folder
        return re.sub(r"[^A-Za-z0-9_-]+", "_", folder.rpartition("/")[2]) or "tars"

    def tars(self) -> list[str]:
        """All tar URLs, in the order of `urls`; refuses URLs without any (UserError)."""
        found = [tar for url in self.urls for tar in self._tars_of(url)]
        if not found:
            raise UserError(f"data.manifests: no .tar files at {', '.join(self.urls)}; in sequential mode give tars.")
        return found

    def _tars_of(self, url: str) -> list[str]:
        """Those of a folder whose names speak of no other split; those that `url` names itself, whatever they say."""
        if url.endswith(".tar"):
            from webdataset.shardlists import expand_urls

            return list(expand_urls(url))
        store = Store(url, self.patience_s)
        names = [name for name in store.list() if name.endswith(".tar")]
        return [store.url_of(name) for name in names if split_of_tar(name) in (None, "train")]

    def is_held_out(self, sample_id: str) -> bool:
        """By its id alone, so the same in every pass and process."""
        return int(hashlib.sha256(sample_id.encode()).hexdigest()[:12], 16) < self.holdout * 16**12

    def samples(self, tars: Iterable[str]) -> "Iterator[dict[str, Any] | BadSample]":
        """The undecoded samples of some tars, in their order; a tar that is cut is told as one damaged sample.

        Raises:
            UserError: a tar is missing, or the storage does not answer.
        """
        from webdataset.tariterators import group_by_keys, tar_file_expander

        problems: dict[str, BadSample] = {}
        cut: set[str] = set()
        reading = ""

        def note(reason: str) -> None:
            name = reading.rpartition("/")[2]
            problems[reading] = BadSample(f"{self.name}/all/train/{name}", reading, reason, _RESTORE)
            cut.add(reading)

        def opened() -> Iterator[dict[str, Any]]:
            nonlocal reading
            for reading in tars:
                folder, _, name = reading.rpartition("/")
                with closing(TarStream(Store(folder, self.patience_s), name)) as stream:
                    yield {"url": reading, "stream": stream}
                    if reading not in cut and not stream.is_whole():
                        note("is cut or damaged, and what follows in it was not read")

        def broken(error: Exception) -> bool:
            """What follows in the tar is lost; webdataset goes on with the next one."""
            said = str(error.args[0] if error.args else error).partition(" @ ")[0]  # webdataset adds what it holds
            if isinstance(error, UserError):
                raise UserError(said)
            note(f"cannot be read to its end ({said})")
            return True

        for sample in group_by_keys(tar_file_expander(opened(), handler=broken), handler=broken):
            yield from problems.values()
            problems.clear()
            if sample["__url__"] not in cut:  # otherwise it is what the tar was cut in
                yield sample
        yield from problems.values()

    def chosen(self, sample: "dict[str, Any] | BadSample") -> "Encoded | BadSample | None":
        """The training image of a sample, by the rules of an index; None if there is none that trains."""
        if isinstance(sample, BadSample):
            return sample
        key, url = str(sample["__key__"]), str(sample["__url__"])
        refuse_unpaired_mask(key, url)
        sample_id = f"{self.name}/all/train/{key}"
        extension = next((name for name in sample if f".{name}" in IMAGE_SUFFIXES), None)
        try:
            facts = Facts.parse(sample["json"], f"{key}.json") if "json" in sample else Facts()
            masks = [name for name in sample if mask_number(name) is not None]
            marked = (marks_defect(sample[name], f"{key}.{name}") for name in masks)
            anomalous = any(marked) if facts.label is None else facts.label == 1
        except UserError as error:
            return BadSample(sample_id, url, f"cannot be used ({error})", _RESTORE)
        if extension is None or anomalous or facts.split not in (None, "train"):
            return None
        return Encoded(sample_id, url, sample[extension])

    def decoded(self, image: Encoded) -> Image | BadSample:
        try:
            picture = square_rgb(open_image(image.data, image.sample_id), self.image_size, image.sample_id)
        except UserError as error:
            return BadSample(image.sample_id, image.url, f"is no readable image ({error})", _RESTORE)
        return Image(image.sample_id, np.asarray(picture))


@dataclass(frozen=True, slots=True)
class Survey:
    """What the first samples of the tars are; the same for every rank."""

    images: tuple[Encoded, ...]  # sorted by sample id
    bad: tuple[BadSample, ...]
    num_left_out: int  # samples that are no training images


def survey(source: SequentialSource) -> Survey:
    """Look at the first `SURVEYED` samples, without decoding any.

    Raises:
        UserError: there are no training images, or all of them are held out, or none.
    """
    kept: dict[bool, list[Encoded]] = {True: [], False: []}  # by whether they are held out
    bad: list[BadSample] = []
    num_left_out = num_bytes = 0
    for found in map(source.chosen, itertools.islice(source.samples(source.tars()), SURVEYED)):
        if isinstance(found, BadSample):
            bad.append(found)
        elif found is None:
            num_left_out += 1
        elif len(same := kept[source.is_held_out(found.sample_id)]) < SURVEY:
            same.append(found)
            num_bytes += len(found.data)
        if num_bytes > SURVEY_BYTES or min(map(len, kept.values())) == SURVEY:
            break
    images = sorted(kept[True] + kept[False], key=lambda image: image.sample_id)
    if not images:
        raise UserError(
            f"data.manifests: no training image among the first samples of {source.urls[0]} ({num_left_out} are "
            "anomalous, of another split or without an image); name tars that hold normal images to train on."
        )
    if not kept[True] or not kept[False]:
        raise UserError(
            f"data.manifests: of the first {len(images)} images of {source.urls[0]} {len(kept[True])} are held out by "
            f"data.holdout {source.holdout}; change it or give more images, so that some are and some train."
        )
    return Survey(tuple(images), tuple(bad), num_left_out)
