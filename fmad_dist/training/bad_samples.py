"""Damaged samples of a run: skipped, told once each, counted over all ranks, and fatal above a limit."""

from collections.abc import Iterable

from fmad_dist.base.console import say
from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.stream.reader import BadSample
from fmad_dist.tracking.record import RunRecord, read_lines

LOG_NAME = "bad_samples.jsonl"


class BadSamples:
    """Distinct damaged samples of a run over all ranks and restarts. `note` is local; `settle` is collective."""

    def __init__(self, limit: int, record: RunRecord, world: World) -> None:
        self.limit = limit
        self.record = record
        self.world = world
        path = record.folder / LOG_NAME
        known = [line["sample_id"] for line in read_lines(path)] if record.is_main and path.exists() else []
        self.known: set[str] = set(world.broadcast(known))
        self._new: dict[str, BadSample] = {}

    def note(self, bad: Iterable[BadSample]) -> None:
        self._new.update((one.sample_id, one) for one in bad if one.sample_id not in self.known)

    @property
    def num_new(self) -> int:
        """Noted on this rank since the last `settle`."""
        return len(self._new)

    def settle(self) -> int:
        """Merge what the ranks noted and return the number of distinct damaged samples; every rank calls.

        Raises:
            UserError: there are more than the limit.
        """
        new = {one.sample_id: one for some in self.world.gather(list(self._new.values())) for one in some}
        self._new.clear()
        for sample_id in sorted(new.keys() - self.known):
            one = new[sample_id]
            self.known.add(sample_id)
            self.record.append(LOG_NAME, {"sample_id": sample_id, "url": one.url, "reason": one.reason})
            if self.record.is_main:
                say(f"skipped damaged sample {len(self.known)} of at most {self.limit}: {one}")
        if len(self.known) > self.limit:
            last = new[max(new)] if new else f"see {self.record.folder / LOG_NAME}"
            raise UserError(f"data.max_bad_samples: {len(self.known)} damaged samples, {self.limit} allowed; {last}")
        return len(self.known)
