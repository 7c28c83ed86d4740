"""Maps of an evaluation as files: every image's once, whoever scored it and however often it was killed."""

import copy
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from data_tools.conversion.convert import Conversion, convert
from data_tools.fixtures import write_fixture
from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.config.protocol import Protocol, named_protocol
from fmad_dist.detector.detector import Detections, Detector
from fmad_dist.evaluation import labelled_images
from fmad_dist.evaluation.evaluate import EvaluationJob, EvaluationOptions, merged_state
from fmad_dist.evaluation.labelled_images import LabelledImages, scored_images, shards_of_test_split
from fmad_dist.evaluation.map_files import INDEX, ROUNDING, MapFiles, stored_map
from fmad_dist.jobs import scoring
from fmad_dist.jobs.partial import PartialResults
from fmad_dist.jobs.scoring import score_shards
from fmad_dist.metrics.state import EvaluationState
from fmad_dist.metrics.wire import decode_state, encode_state
from fmad_dist.storage import Store
from fmad_dist.stream.mixture import Mixture

MakeDetector = Callable[..., Detector]
PROTOCOL = Protocol(map_size=32)  # of the detector


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Eleven test images of three sizes, none of them square."""
    root = tmp_path_factory.mktemp("loco")
    tree = write_fixture("loco", root / "tree")["official"]
    convert(Conversion(layout="loco", dataset="loco", source=tree, out=str(root / "data"), size=64, num_workers=1))
    return Mixture.load([str(root / "data")])


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six batches in three shards."""
    monkeypatch.setattr(labelled_images, "BATCH", 2)
    monkeypatch.setattr(scoring, "MAX_SHARDS", 4)


@pytest.fixture(scope="module")
def detector(make_detector: MakeDetector, mixture: Mixture) -> Detector:
    """Also in the folder `model` beside the data."""
    detector = make_detector((1.0, 2.0))
    detector.save(Path(mixture.datasets[0].url).with_name("model"))
    return detector


def score(
    detector: Detector,
    mixture: Mixture,
    files: MapFiles,
    world: World | None = None,
    partial: PartialResults | None = None,
    done: Collection[int] = (),
    **options: str,
) -> EvaluationState:
    """What a rank finds in its shards of those that are not done."""
    url, rank = mixture.datasets[0].url, world or World()
    job = EvaluationJob(EvaluationOptions(str(Path(url).with_name("model")), (url,), "nowhere", **options))  # type: ignore[arg-type]
    job.detector, job.files = detector, files
    numbers = scoring.deal(len(job.shards), frozenset(done), rank.rank, rank.size)
    score_shards(job, numbers, rank, partial)
    return job.state


def evaluate(detector: Detector, mixture: Mixture, out: Path, num_ranks: int) -> None:
    """All ranks one after the other, and the index at the end."""
    for rank in range(num_ranks):
        score(detector, mixture, files_at(out), World(rank, num_ranks))
    write_index(files_at(out), mixture)


def files_at(out: Path) -> MapFiles:
    return MapFiles(str(out / "maps"), str(out / "tiff"), "0123", PROTOCOL)


def write_index(files: MapFiles, mixture: Mixture) -> None:
    files.write_index(
        [mixture.sample_ids(np.concatenate(shard)) for shard in shards_of_test_split(mixture)], "some model"
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_tars(out: Path) -> list[dict]:
    """As a user would: all tars that the index names, with webdataset's own decoders."""
    index = json.loads((out / "maps" / INDEX).read_text())
    urls = [str(out / "maps" / shard["name"]) for shard in index["shards"]]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())


def expected(detector: Detector, mixture: Mixture) -> dict[str, tuple[float, np.ndarray]]:
    """Score and map of every test image."""
    found = {}
    images = LabelledImages(mixture, detector.image_size, PROTOCOL.map_size)
    for batch in images.read([batch for shard in shards_of_test_split(mixture) for batch in shard]):
        for scored in scored_images(mixture, batch, detector(batch.images)):
            found[scored.sample_id] = (scored.image_score, scored.anomaly_map)
    return found


def test_tars_hold_every_map_once(detector: Detector, mixture: Mixture, tmp_path: Path) -> None:
    evaluate(detector, mixture, tmp_path, 1)
    wanted, samples = expected(detector, mixture), read_tars(tmp_path)
    assert Counter(sample["json"]["sample_id"] for sample in samples) == dict.fromkeys(wanted, 1)
    for sample in samples:
        facts = sample["json"]
        score, anomaly_map = wanted[facts["sample_id"]]
        _, class_name, split, kind, _ = facts["sample_id"].split("/")
        assert (sample["__key__"], split) == (facts["sample_id"], "test")
        assert facts["score"] == score
        assert (facts["class"], facts["defect_type"]) == (f"loco/{class_name}", kind)
        assert facts["label"] == int(kind != "good")
        assert sample["map.npy"].dtype == np.float16
        np.testing.assert_array_equal(sample["map.npy"], anomaly_map.astype(np.float16))
    index = json.loads((tmp_path / "maps" / INDEX).read_text())
    assert [shard["num_images"] for shard in index["shards"]] == [4, 4, 3]
    assert index["num_images"] == 11
    for shard in index["shards"]:
        assert (tmp_path / "maps" / shard["name"]).stat().st_size == shard["num_bytes"]
    assert [shard["first"] for shard in index["shards"]] == sorted(wanted)[::4]


def test_scores_that_are_not_final_are_left_out(detector: Detector, mixture: Mixture, tmp_path: Path) -> None:
    """A range alone, beside scores.csv with range and sum, would be another score of the same name."""
    other = copy.deepcopy(detector).with_protocol(named_protocol("flowad"))
    files = MapFiles(str(tmp_path), None, "0123", other.spec.protocol)
    score(other, mixture, files, protocol="flowad")
    write_index(files, mixture)
    samples = webdataset.WebDataset([str(path) for path in tmp_path.glob("*.tar")], shardshuffle=False).decode()
    assert all(set(sample["json"]) == {"sample_id", "class", "label", "defect_type"} for sample in samples)
    assert json.loads((tmp_path / INDEX).read_text())["protocol_title"] == "flowad v1 (biased)"


def test_tiffs_have_the_size_of_the_images(detector: Detector, mixture: Mixture, tmp_path: Path) -> None:
    """The tree that the official tools read, compared with another library's bilinear interpolation."""
    evaluate(detector, mixture, tmp_path, 1)
    wanted, sizes = expected(detector, mixture), set()
    assert sorted(contents(tmp_path / "tiff")) == [f"{sample_id}.tiff" for sample_id in sorted(wanted)]
    assert (tmp_path / "tiff/loco/pushpins/test/logical_anomalies/000.tiff").is_file()
    for row in map(int, mixture.rows("test")):
        sample = mixture.datasets[0].sample(row)
        size = (sample.source_height, sample.source_width)
        found = tifffile.imread(tmp_path / "tiff" / f"{sample.sample_id}.tiff")
        assert (found.shape, found.dtype) == (size, np.float32)
        one = torch.from_numpy(wanted[sample.sample_id][1]).double()[None, None]
        stretched = torch.nn.functional.interpolate(one, size, mode="bilinear", align_corners=False)[0, 0]
        np.testing.assert_allclose(found, stretched.numpy(), rtol=1e-5)
        sizes.add(size)
    assert sizes == {(48, 60), (40, 68), (34, 68)}


def test_files_do_not_depend_on_the_number_of_ranks(detector: Detector, mixture: Mixture, tmp_path: Path) -> None:
    for num_ranks in (1, 2, 5):
        evaluate(detector, mixture, tmp_path / str(num_ranks), num_ranks)
    assert len(contents(tmp_path / "1")) == 3 + 1 + 11
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "5")


class Killed(Exception):
    pass


class DiesAfter(Detector):
    """A detector that ends the evaluation after so many batches."""

    def __init__(self, detector: Detector, num_batches: int) -> None:
        torch.nn.Module.__init__(self)
        self.inner, self.spec, self.left = detector, detector.spec, num_batches

    def features(self, images: torch.Tensor) -> torch.Tensor:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return self.inner.features(images)

    def score(self, x: torch.Tensor, keys: Sequence[int]) -> Detections:
        return self.inner.score(x, keys)


@pytest.mark.parametrize(("num_batches", "num_done"), [(0, 0), (1, 0), (2, 4), (3, 8)])
def test_after_a_kill_every_map_is_there_once(
    detector: Detector, mixture: Mixture, tmp_path: Path, num_batches: int, num_done: int
) -> None:
    """Rank 0 (shards 0 and 2) and rank 1 (shard 1) die after some batches of two each; three others go on."""
    out = tmp_path / "killed"
    for rank in range(2):
        files, dying = files_at(out), DiesAfter(detector, max(0, num_batches - rank))
        with pytest.raises(Killed) if num_batches < 3 or rank == 0 else nullcontext():
            score(dying, mixture, files, World(rank, 2), parts_at(out, rank))
        files.wait()
    files_at(out).prepare()
    protocol = detector.spec.protocol
    earlier = parts_at(out).collect(lambda parts: encode_state(merged_state(parts, protocol)))
    state = decode_state(earlier.data)
    assert len(state.sample_ids) == num_done
    for rank in range(3):
        state.merge(score(detector, mixture, files_at(out), World(rank, 3), parts_at(out, rank), earlier.shards))
    write_index(files_at(out), mixture)
    evaluate(detector, mixture, tmp_path / "whole", 1)
    for folder in ("maps", "tiff"):
        assert contents(out / folder) == contents(tmp_path / "whole" / folder)
    whole = score(detector, mixture, MapFiles(None, None, "0123", PROTOCOL))
    assert encode_state(state) == encode_state(whole)


def parts_at(out: Path, rank: int = 0) -> PartialResults:
    return PartialResults(Store(out / "partial"), "key", rank, 0.0)


def test_maps_that_float16_would_damage_stay_float32() -> None:
    """Values beyond its range, a small difference between large values, and values below its smallest."""
    noise = np.random.default_rng(0).random((16, 16), dtype=np.float32)
    for fine in (noise, 60000 * noise, 1 + noise, 0.01 * noise, np.full_like(noise, 0.5)):
        assert stored_map(fine).dtype == np.float16
    for damaged in (70000 * noise, 1e30 * noise, 3e38 * (2 * noise - 1), 1000 + noise, 1e-8 * noise, 0.1 + 0 * noise):
        found = stored_map(damaged)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, damaged)


@given(scale=st.floats(-30, 30), offset=st.floats(-1e6, 1e6), seed=st.integers(0, 2**16))
def test_a_stored_map_is_never_far_off(scale: float, offset: float, seed: int) -> None:
    anomaly_map = (np.random.default_rng(seed).normal(size=(8, 8)) * 10**scale + offset).astype(np.float32)
    error = np.abs(stored_map(anomaly_map).astype(np.float64) - anomaly_map).max()
    assert error <= ROUNDING * np.ptp(anomaly_map.astype(np.float64)) * (1 + 1e-6)


def test_other_files_among_the_maps_are_refused(detector: Detector, mixture: Mixture, tmp_path: Path) -> None:
    files_at(tmp_path).prepare()  # nothing is there
    evaluate(detector, mixture, tmp_path, 1)
    (tmp_path / "tiff" / ".tmp-left").write_bytes(b"half")
    files_at(tmp_path).prepare()  # the same evaluation once more
    assert not (tmp_path / "maps" / INDEX).exists()
    assert not (tmp_path / "tiff" / ".tmp-left").exists()
    write_index(files_at(tmp_path), mixture)
    with pytest.raises(
        UserError, match=r"maps/maps-0123-000000\.tar: not a map of this evaluation; give --maps an empty"
    ):
        MapFiles(str(tmp_path / "maps"), None, "4567", PROTOCOL).prepare()
    (tmp_path / "maps" / "note.txt").write_text("mine")
    with pytest.raises(UserError, match=r"note\.txt: not a map of this evaluation"):
        files_at(tmp_path).prepare()


def test_missing_tars_are_told(detector: Detector, mixture: Mixture, tmp_path: Path) -> None:
    """A local folder of one node, while another node has the other half."""
    score(detector, mixture, files_at(tmp_path), World(0, 2))
    with pytest.raises(
        UserError, match=r"000001\.tar: one of 1 tars of maps that are missing; --maps must be a storage"
    ):
        write_index(files_at(tmp_path), mixture)
    assert not (tmp_path / "maps" / INDEX).exists()


def test_a_storage_that_refuses_ends_the_evaluation(detector: Detector, mixture: Mixture, tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("a file")
    with pytest.raises(UserError, match="maps"):
        evaluate(detector, mixture, tmp_path, 1)


def test_maps_on_object_storage(detector: Detector, mixture: Mixture, tmp_path: Path, moto_bucket: str) -> None:
    evaluate(detector, mixture, tmp_path, 1)
    files = MapFiles(f"{moto_bucket}/maps", f"{moto_bucket}/tiff", "0123", PROTOCOL)
    files.prepare()
    score(detector, mixture, files)
    write_index(files, mixture)
    store = Store(moto_bucket)
    assert {name: store.read(name) for name in store.list()} == contents(tmp_path)
