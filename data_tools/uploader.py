"""Uploading finished shards while the next ones are being made."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from data_tools.journal import Journal
from data_tools.records import ShardRecord
from fmad_dist.storage import Store


class Uploader:
    """One thread that stores shards in order, verifies them, notes them in the journal and removes the staged file.

    At most one shard is being uploaded while another is being made, so the disk holds two. An error of the thread is
    raised by the next call.
    """

    def __init__(self, store: Store, journal: Journal, done: list[ShardRecord]) -> None:
        self.store = store
        self.journal = journal
        self.done = done  # records in order; grows with every stored shard
        self.num_sent = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._last: Future[None] | None = None

    def put(self, lock: int, staged: Path, record: ShardRecord) -> None:
        """Store a staged shard, whose file and lock are the uploader's from now on; waits for the one before it."""
        try:
            self.wait()
        except BaseException:
            _release(lock, staged)
            raise
        self._last = self._thread.submit(self._store, lock, staged, record)

    def wait(self) -> None:
        """Until everything put so far is stored and noted."""
        if self._last is not None:
            self._last.result()
            self._last = None

    def close(self) -> None:
        """Finish what is being uploaded."""
        self._thread.shutdown(wait=True)

    def _store(self, lock: int, staged: Path, record: ShardRecord) -> None:
        try:
            self.num_sent += self.store.upload_verified(staged, record.shard.name, record.shard.sha256)
        finally:
            _release(lock, staged)
        self.journal.add(len(self.done), record)
        self.done.append(record)


def _release(lock: int, staged: Path) -> None:
    staged.unlink(missing_ok=True)
    os.close(lock)
