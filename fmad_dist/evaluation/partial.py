"""What a killed evaluation had scored already: the state of every rank in a file beside the results.

    <out>/partial/<key>/base.state      what earlier starts scored, merged
    <out>/partial/<key>/rank-...state   what a rank of the present start has scored
A state goes into the base before its file is removed; a file whose images are in the base already is one that a kill
left between the two. The key stands for model, scorer, protocol, test data and where maps go, so nothing else is ever
continued.
"""

import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fmad_dist.detector_files import DetectorSpec
from fmad_dist.errors import UserError
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.evaluation.state import EvaluationState
from fmad_dist.evaluation.wire import FORMAT
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import key_of

FOLDER, BASE = "partial", "base.state"


class PartialStates:
    """The files of one evaluation; `save_s` seconds lie between two writes of a rank."""

    def __init__(self, out: Path, key: str, rank: int, save_s: float) -> None:
        self.folder, self.key = out / FOLDER, key
        self.store = Store(self.folder / key)
        self.name = f"rank-{rank:05d}-{uuid.uuid4().hex}.state"
        self.save_s = save_s
        self._saved = time.monotonic()

    def collect(self, protocol: Protocol) -> EvaluationState:
        """What earlier starts have scored, which becomes the base. Only the main rank calls, before any rank saves."""
        names = sorted(self.store.list()) if self.store.exists() else []
        found = EvaluationState(protocol)
        for name in names:  # the base is the first
            data = self.store.read(name)  # a storage that does not answer is no reason to score again
            try:
                state = EvaluationState.from_bytes(data)
            except UserError:  # not complete, or of another version: its images are scored again
                continue
            if not state.sample_ids & found.sample_ids:
                found.merge(state)
        if names and names != [BASE]:
            self.store.write(BASE, found.to_bytes())
            self.store.remove_all([name for name in names if name != BASE])
        return found

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self.save_s

    def save(self, state: EvaluationState) -> None:
        """Write this rank's state, which holds whole shards of the test split."""
        self.store.write(self.name, state.to_bytes())
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Remove the files of this evaluation, when its results are written."""
        shutil.rmtree(self.folder / self.key, ignore_errors=True)
        with suppress(OSError):  # another evaluation has files there, or nothing was ever written
            self.folder.rmdir()


def evaluation_key(spec: DetectorSpec, manifests: Mapping[str, str], outputs: Sequence[str | None] = ()) -> str:
    """Stands for everything that the results depend on, and for what else is written of every image; `manifests` are
    digests by dataset name."""
    facts = {"detector": spec.model_dump(mode="json"), "manifests": dict(manifests), "format": FORMAT}
    return key_of(facts | ({"outputs": list(outputs)} if any(outputs) else {}))
