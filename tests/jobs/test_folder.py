"""What is in `--out` already: nothing is replaced unless asked, and nothing of strangers ever."""

from pathlib import Path

import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.jobs.folder import JobFolder
from fmad_dist.jobs.job import complete
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import read_stamp, write_stamp
from tests.jobs.toy_job import NAME, Killed, ToyJob, ToyOptions


def run(out: Path | str, overwrite: bool = False, **job: object) -> ToyJob:
    made = ToyJob(out, **job)  # type: ignore[arg-type]
    complete(made, ToyOptions(str(out), overwrite=overwrite), World())
    return made


def kill(out: Path, after: int, **job: object) -> None:
    with pytest.raises(Killed):
        run(out, dies_at=after, **job)


def test_another_job_is_refused_in_words_or_replaced(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match=r"holds a toy with toy 20 in batches of 2 instead of 20 in batches of 4; "):
        run(tmp_path, batch=4)
    with pytest.raises(UserError, match=r"holds a toy with other settings; .* give --overwrite to replace it"):
        run(tmp_path, key="another")
    assert (stamp := read_stamp(Store(tmp_path))) is not None
    assert stamp.key == "20/2"
    assert run(tmp_path, batch=4, overwrite=True).loaded
    assert not (tmp_path / "partial").exists()


def test_what_was_begun_is_refused_when_something_would_be_lost(tmp_path: Path) -> None:
    kill(tmp_path, after=3)
    with pytest.raises(UserError, match="holds a toy with toy 20 in batches of 2 instead of 20 in batches of 4"):
        run(tmp_path, batch=4)
    assert run(tmp_path, batch=4, overwrite=True).num_batches == 5, "parts of another job are never used"
    kill(tmp_path / "new", after=0)
    run(tmp_path / "new", batch=4)  # nothing was scored
    (tmp_path / "beside" / "maps").mkdir(parents=True)
    kill(tmp_path / "beside", after=0)
    with pytest.raises(UserError, match="holds a toy with"):
        run(tmp_path / "beside", batch=4, removed=("maps",))
    assert (tmp_path / "beside" / "maps").exists()


def test_files_of_another_job_go_before_one_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    run(tmp_path, removed=("maps", NAME))
    assert (tmp_path / "maps").exists()
    kill(tmp_path, after=1, batch=4, removed=("maps", NAME), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["partial"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_something_else_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    run(tmp_path, kind="prediction")
    with pytest.raises(UserError, match="holds something else than a toy; choose another --out"):
        run(tmp_path, overwrite=overwrite)
    kill(tmp_path / "begun", after=1, kind="prediction")
    with pytest.raises(UserError, match="holds something else than a toy"):
        run(tmp_path / "begun", overwrite=overwrite)


def test_a_stamp_that_is_none_is_kept_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "stamp.json").write_text("a stamp collection")
    with pytest.raises(UserError, match=r"stamp\.json: not a stamp of fmad, or damaged; choose another --out, or"):
        run(tmp_path)
    run(tmp_path, overwrite=True)


@pytest.mark.parametrize("change", ["changed", "missing"])
def test_changed_and_missing_files_are_told(tmp_path: Path, change: str) -> None:
    run(tmp_path)
    before = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).unlink()
    if change == "changed":
        (tmp_path / NAME).write_text("mine")
    with pytest.raises(UserError, match=r"found\.json: changed after it was written, or is missing; give --overwrite"):
        run(tmp_path)
    run(tmp_path, overwrite=True)
    assert (tmp_path / NAME).read_bytes() == before


def test_what_is_written_beside_must_have_been_written(tmp_path: Path) -> None:
    run(tmp_path)
    with_maps = {"outputs": {"Maps": "a"}}
    assert run(tmp_path, **with_maps).loaded, "it has no maps"
    assert not run(tmp_path, **with_maps).loaded
    assert not run(tmp_path).loaded
    assert run(tmp_path, outputs={"Maps": "b"}).loaded
    kill(tmp_path / "killed", after=3, **with_maps)
    with pytest.raises(UserError, match="holds a toy with Maps a instead of b"):
        run(tmp_path / "killed", outputs={"Maps": "b"})


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", Path("/proc/nowhere")):
        with pytest.raises(UserError, match=f"{out}: cannot be written .*; choose another --out"):
            run(out)


def test_a_storage_that_nodes_do_not_share_is_told_before_scoring(tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path), ToyJob(tmp_path).identity)
    with pytest.raises(UserError, match=r"partial/stamp\.json: not seen by all processes; --out must be a storage"):
        folder.check_shared()
    folder.begin(overwrite=False)
    folder.check_shared()


def test_partial_files_of_the_version_before_go_when_the_job_is_done(tmp_path: Path) -> None:
    for name in ("0123456789abcdef/base.state", "0123456789abcdef/rank-00001-0123.state", "part-000000.parquet"):
        Store(tmp_path / "partial").write(name, b"something")
    write_stamp(Store(tmp_path / "partial"), "20/2", {"toy": "before"}, ())
    assert run(tmp_path).num_batches == 10
    assert not (tmp_path / "partial").exists()


def test_files_of_others_stay(tmp_path: Path) -> None:
    for name in ("partial/mine.txt", "partial/below/stamp.json", "results.txt"):
        Store(tmp_path).write(name, b"mine")
    run(tmp_path)
    run(tmp_path, batch=4, overwrite=True)
    found = [name for name in Store(tmp_path).list() if name not in (NAME, "stamp.json")]
    assert found == ["partial/below/stamp.json", "partial/mine.txt", "results.txt"]


def test_finished_results_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    for name in ("write", "remove"):
        monkeypatch.setattr(Store, name, lambda *_: pytest.fail("something was written"))
    assert run(tmp_path).finished() == list(range(20))


def test_it_works_at_any_url(moto_bucket: str) -> None:
    out = f"{moto_bucket}/toy"
    assert run(out).finished() == list(range(20))
    assert not run(out).loaded
    assert Store(out).list() == [NAME, "stamp.json"]
