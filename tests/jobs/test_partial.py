"""Files of a killed job: nothing is lost, counted twice, or taken from another job."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fmad_dist.config.protocol import Protocol
from fmad_dist.jobs.partial import Part, PartialResults
from fmad_dist.metrics.state import EvaluationState, ScoredImage
from fmad_dist.metrics.wire import decode_state, encode_state
from fmad_dist.storage import Store

MakeScored = Callable[..., ScoredImage]


def state_of(*images: ScoredImage) -> EvaluationState:
    state = EvaluationState(Protocol(map_size=8))
    for image in images:
        state.update(image)
    return state


def merge(parts: Iterable[bytes]) -> bytes:
    state = state_of()
    for part in parts:
        state.merge(decode_state(part))
    return encode_state(state)


def start(out: Path, rank: int = 0, key: str = "key", save_s: float = 0.0) -> PartialResults:
    return PartialResults(Store(out), key, rank, save_s)


def part(images: dict[int, ScoredImage]) -> Part:
    """The images of some shards, which have one each."""
    return Part(frozenset(images), encode_state(state_of(*images.values())))


def test_parts_of_several_starts_add_up(make_scored: MakeScored, tmp_path: Path) -> None:
    a, b, c = (make_scored(name, 1, seed) for seed, name in enumerate("abc"))
    assert start(tmp_path).collect(merge).shards == frozenset()
    first, second = start(tmp_path, 0), start(tmp_path, 1)
    first.save(part({0: a}))
    first.save(part({0: a}))  # replaces
    second.save(part({1: b}))
    assert start(tmp_path).collect(merge) == part({0: a, 1: b})
    start(tmp_path).save(part({7: c}))
    assert start(tmp_path).collect(merge) == part({0: a, 1: b, 7: c})
    assert [path.name for path in tmp_path.iterdir()] == ["base.part"]


def test_what_a_kill_left_between_base_and_removal_counts_once(make_scored: MakeScored, tmp_path: Path) -> None:
    a, b = make_scored("a"), make_scored("b", 1)
    start(tmp_path).save(part({0: a}))
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    start(tmp_path).collect(merge)
    for path, data in kept.items():  # as if its removal had not come
        path.write_bytes(data)
    start(tmp_path).save(part({1: b}))
    assert start(tmp_path).collect(merge) == part({0: a, 1: b})


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[:20], lambda data: b"", lambda data: b"[]\n"]
)
def test_cut_files_and_other_jobs_are_left_out(
    make_scored: MakeScored, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    a, b = make_scored("a"), make_scored("b", 1)
    start(tmp_path, key="other").save(part({0: a}))
    one = start(tmp_path)
    one.save(part({1: b}))
    path = tmp_path / one.name
    path.write_bytes(damage(path.read_bytes()))
    (tmp_path / "part-000000.parquet").write_bytes(b"of the version before")
    assert start(tmp_path).collect(merge).shards == frozenset()


def test_it_is_written_every_so_many_seconds(make_scored: MakeScored, tmp_path: Path) -> None:
    late, often = start(tmp_path, save_s=3600), start(tmp_path, save_s=0)
    assert not late.is_due
    assert often.is_due
    often.save_s = 3600
    often.save(part({0: make_scored("a")}))
    assert not often.is_due
