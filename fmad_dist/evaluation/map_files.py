"""The anomaly maps of an evaluation as files, for whoever wants more than its numbers.

    <maps>/maps-<evaluation>-<shard>.tar   WebDataset: `<key>.map.npy` [S, S] and `<key>.json` of every image of a shard
    <maps>/maps.json                       written last: the tars and which images they hold
    <tiff>/<sample id>.tiff                float32 at the size of the source, as the official MVTec tools read it

A shard is a fixed part of the test split that one rank scores whole, and the name of a file alone says what is in it.
So what is scored again after a kill replaces its own file, and every map is there exactly once, whoever wrote it.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmad_dist.base.errors import UserError
from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.regions import at_size
from fmad_dist.metrics.state import ScoredImage
from fmad_dist.storage import TEMPORARY_PREFIX, Store
from fmad_dist.storage.scratch import remove_abandoned
from fmad_dist.storage.write_behind import WriteBehind

FORMAT, INDEX, MAP = "fmad-maps/1", "maps.json", "map.npy"
ROUNDING = 0.01  # of a map's range, the most that float16 may change


class MapFiles:
    """What one rank writes of the images it scores, in threads beside the scoring: to the URLs `tars` and `tiff`, if
    given. `evaluation` names model, scorer, protocol and test data; where the protocol makes image scores of the whole
    test set, they are not known yet and left out.

    Every method raises UserError when the storage refuses, also for an earlier file.
    """

    def __init__(self, tars: str | None, tiff: str | None, evaluation: str, protocol: Protocol) -> None:
        self.tars = Store(tars) if tars else None
        self.tiff = Store(tiff) if tiff else None
        self.evaluation = evaluation
        self.protocol = protocol
        self._prefix = f"maps-{evaluation}-"
        self._shard: list[dict[str, Any]] = []
        self._writes = WriteBehind()

    def prepare(self) -> None:
        """Before any rank writes, on the main one: what a kill left half-written goes, and only maps of this evaluation
        may be in the folder of tars.

        Raises:
            UserError: other files are.
        """
        for store in (self.tars, self.tiff):
            if store is not None and store.is_local:
                remove_abandoned(Path(store.path()).rglob(f"{TEMPORARY_PREFIX}*"))
        if self.tars is None or not self.tars.exists():
            return
        for name in self.tars.list():
            if name == INDEX and self._prefix.encode() in self.tars.read(INDEX):
                self.tars.remove(INDEX)  # some of the tars that it names may be replaced
            elif not name.startswith(self._prefix):
                raise UserError(
                    f"{self.tars.url_of(name)}: not a map of this evaluation; give --maps an empty folder, so that its "
                    "maps lie alone."
                )

    def add(self, scored: ScoredImage, height: int, width: int) -> None:
        """The map of an image whose source has this size."""
        if self.tars is not None:
            self._shard.append(_members(scored, with_score=not self.protocol.needs_map_sum))
        if self.tiff is not None:
            tiff, name, anomaly_map = self.tiff, f"{scored.sample_id}.tiff", scored.anomaly_map
            self._writes.put(lambda: tiff.write(name, _tiff_bytes(at_size(anomaly_map, height, width))))

    def end_shard(self, number: int) -> None:
        """All images of a shard were added since the last one ended."""
        if self.tars is not None:
            tars, name, samples = self.tars, self._name(number), self._shard
            self._writes.put(lambda: tars.write(name, _tar_bytes(samples)))
        self._shard = []

    def wait(self) -> None:
        """Until everything that was added is stored."""
        self._writes.wait()

    def write_index(self, shards: Sequence[Sequence[str]], model: str) -> None:
        """When all ranks have ended, on the main one; `shards` are the sample ids of each.

        Raises:
            UserError: a tar is missing.
        """
        if self.tars is None:
            return
        sizes = {entry.name: entry.num_bytes for entry in self.tars.entries()}
        names = [self._name(number) for number in range(len(shards))]
        missing = [name for name in names if name not in sizes]
        if missing:
            raise UserError(
                f"{self.tars.url_of(missing[0])}: one of {len(missing)} tars of maps that are missing; --maps must be "
                "a storage that all nodes share. To score all images again, remove the folder partial of --out."
            )
        facts = {
            "format": FORMAT,
            "evaluation": self.evaluation,
            "model": model,
            "protocol": self.protocol.model_dump(mode="json"),
            "protocol_title": self.protocol.title,
            "num_images": sum(map(len, shards)),
            "shards": [
                {"name": name, "num_images": len(ids), "num_bytes": sizes[name], "first": ids[0], "last": ids[-1]}
                for name, ids in zip(names, shards, strict=True)
            ],
        }
        self.tars.write(INDEX, (json.dumps(facts, indent=1) + "\n").encode())

    def _name(self, number: int) -> str:
        return f"{self._prefix}{number:06d}.tar"


def stored_map(anomaly_map: np.ndarray) -> np.ndarray:
    """The finite float32 map as float16, or as it is where that would change it by more than a hundredth of its range:
    values beyond 65504, and those whose differences are small beside them or below 1e-7 [ours].

    No factor has to be known to read a map, because its file says which type it has.
    """
    with np.errstate(over="ignore"):
        half = anomaly_map.astype(np.float16)
    if not np.isfinite(half).all():
        return anomaly_map
    error = np.abs(half.astype(np.float32) - anomaly_map).max()
    return half if error <= ROUNDING * np.ptp(anomaly_map) else anomaly_map


def key_of_sample(sample_id: str) -> str:
    """The name of its members up to the first dot, where readers of tars cut it."""
    return sample_id.replace(".", "_")


def _members(scored: ScoredImage, with_score: bool) -> dict[str, Any]:
    """A sample as webdataset writes it."""
    facts = {
        "sample_id": scored.sample_id,
        "class": scored.class_name,
        "label": scored.label,
        "defect_type": scored.defect_type,
    } | ({"score": float(scored.image_score)} if with_score else {})
    return {"__key__": key_of_sample(scored.sample_id), MAP: stored_map(scored.anomaly_map), "json": facts}


def _tar_bytes(samples: Sequence[dict[str, Any]]) -> bytes:
    """Nothing in it depends on who writes when."""
    from webdataset.writer import TarWriter

    buffer = io.BytesIO()
    with TarWriter(buffer, user="fmad", group="fmad", mode=0o644, mtime=0.0) as writer:
        for sample in samples:
            writer.write(sample)
    return buffer.getvalue()


def _tiff_bytes(values: np.ndarray) -> bytes:
    """Uncompressed, because the official tools have no decoders."""
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="minisblack", metadata=None)
    return buffer.getvalue()
