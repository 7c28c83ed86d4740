"""A storage that is away for longer than `data.patience_s` while a checkpoint is saved."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.training.checkpoint import Checkpoints
from fmad_dist.training.checkpoint_writer import CheckpointWriter
from tests.training.test_checkpoint import STATE, TENSORS, write

PATIENCE_S = 2.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 server of this test alone, which keeps its objects when it is stopped."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "moto")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem(use_listings_cache=False).mkdir("outage")
    yield server
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_it_ends_the_training_and_the_next_start_goes_on(server: Any) -> None:
    from moto.server import ThreadedMotoServer

    checkpoints = Checkpoints("s3://outage/run", PATIENCE_S)
    write(checkpoints, 6)
    port = server.get_host_and_port()[1]
    server.stop()
    started = time.monotonic()
    writer = CheckpointWriter(checkpoints, World(), keep_last=2, keep_every=None)
    writer._run([dict(TENSORS)], STATE)
    with pytest.raises(UserError, match=r"s3://outage/run/step-00000012/.*: the storage does not answer") as caught:
        writer.check()
    assert "\n" not in str(caught.value)
    assert PATIENCE_S <= time.monotonic() - started < 60.0
    again = ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    again.start()
    try:
        assert checkpoints.steps() == [6]
        checkpoints.remove_incomplete()
        writer._run([dict(TENSORS)], STATE)
        writer.check()
        assert checkpoints.steps() == [6, 12]
    finally:
        again.stop()
