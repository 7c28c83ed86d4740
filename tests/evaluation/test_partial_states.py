"""Files of a killed evaluation: nothing is lost, counted twice, or taken from another evaluation."""

from collections.abc import Callable
from pathlib import Path

from fmad_dist.evaluation.partial import PartialStates
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.evaluation.state import EvaluationState, ScoredImage

PROTOCOL = Protocol(map_size=8)
MakeScored = Callable[..., ScoredImage]


def state_of(*images: ScoredImage) -> EvaluationState:
    state = EvaluationState(PROTOCOL)
    for image in images:
        state.update(image)
    return state


def start(out: Path, rank: int = 0, key: str = "key", save_s: float = 0.0) -> PartialStates:
    return PartialStates(out, key, rank, save_s)


def test_states_of_several_starts_add_up(make_scored: MakeScored, tmp_path: Path) -> None:
    a, b, c = (make_scored(name, 1, seed) for seed, name in enumerate("abc"))
    assert len(start(tmp_path).collect(PROTOCOL)) == 0
    first, second = start(tmp_path, 0), start(tmp_path, 1)
    first.save(state_of(a))
    first.save(state_of(a))  # replaces
    second.save(state_of(b))
    assert start(tmp_path).collect(PROTOCOL).to_bytes() == state_of(a, b).to_bytes()
    start(tmp_path).save(state_of(c))
    found = start(tmp_path).collect(PROTOCOL)
    assert found.to_bytes() == state_of(a, b, c).to_bytes()
    assert [path.name for path in tmp_path.glob("partial/key/*")] == ["base.state"]
    first.clear()
    assert not (tmp_path / "partial").exists()


def test_what_a_kill_left_between_base_and_removal_counts_once(make_scored: MakeScored, tmp_path: Path) -> None:
    a, b = make_scored("a"), make_scored("b", 1)
    start(tmp_path).save(state_of(a))
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("partial/key/*")}
    start(tmp_path).collect(PROTOCOL)
    for name, data in kept.items():  # as if its removal had not come
        (tmp_path / "partial/key" / name).write_bytes(data)
    start(tmp_path).save(state_of(b))
    assert start(tmp_path).collect(PROTOCOL).to_bytes() == state_of(a, b).to_bytes()


def test_cut_files_and_other_evaluations_are_left_out(make_scored: MakeScored, tmp_path: Path) -> None:
    a, b = make_scored("a"), make_scored("b", 1)
    start(tmp_path, key="other").save(state_of(a))
    one = start(tmp_path)
    one.save(state_of(b))
    (tmp_path / "partial/key" / one.name).write_bytes(state_of(b).to_bytes()[:-9])
    assert len(start(tmp_path).collect(PROTOCOL)) == 0


def test_it_is_written_every_so_many_seconds(make_scored: MakeScored, tmp_path: Path) -> None:
    late, often = start(tmp_path, save_s=3600), start(tmp_path, save_s=0)
    assert not late.is_due
    assert often.is_due
    often.save_s = 3600
    often.save(state_of(make_scored("a")))
    assert not often.is_due
