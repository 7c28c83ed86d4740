"""That a run belongs to one job: its folder, and the folder of its checkpoints, which another `output` may share."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fmad_dist.base.companions import end_all
from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.run import RunConfig
from fmad_dist.storage import Store
from fmad_dist.storage.lease import Lease


def check_free(config: RunConfig) -> None:
    """Refuse a run that a living process of this machine trains (UserError)."""
    for lease in _leases(config):
        lease.check_free()


@contextmanager
def owned(config: RunConfig, world: World) -> Iterator[None]:
    """Hold the leases of a run, on the main process for all ranks.

    Raises:
        UserError: another job has one.
    """
    with ExitStack() as stack:
        for lease in _leases(config) if world.is_main else ():
            stack.enter_context(lease)
        yield


def _leases(config: RunConfig) -> list[Lease]:
    """One for the folder of the run; another one where its checkpoints are elsewhere."""
    stores = [Store(config.run_dir)]
    if config.train.checkpoint_url:
        stores.append(Store(config.checkpoint_url))
    return [Lease(store, _end) for store in stores]


def _end(text: str) -> None:
    """End all ranks, before they touch what is another job's now."""
    end_all(UserError(text))
