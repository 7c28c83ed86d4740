"""The published counts, and how a tree is compared with them."""

import pytest

from data_tools.conversion.convert import convert
from data_tools.readers import read_source
from data_tools.readers.loco import LOCO
from data_tools.readers.mvtec import MPDD, MVTEC_AD
from data_tools.readers.mvtec3d import MVTEC_3D_AD
from data_tools.readers.official import Benchmark, Deviation, OfficialCounts, deviations
from data_tools.readers.realiad import TOTALS, realiad
from data_tools.readers.visa import VISA
from fmad_dist.stream.manifest import ClassCounts

REALIAD = realiad(TOTALS["realiad_jsons"], per_class=True)


@pytest.mark.parametrize(
    ("benchmark", "num_classes", "num_images"),
    [(MVTEC_AD, 15, 5354), (VISA, 12, 10821), (LOCO, 5, 3644), (MPDD, 6, 1346), (REALIAD, 30, 151050)],
)
def test_totals(benchmark, num_classes, num_images):
    total = benchmark.total
    assert len(benchmark.classes) == num_classes
    assert total.train + total.val + total.test_normal + total.test_anomalous == num_images
    for field in ("train", "val", "test_normal", "test_anomalous"):
        stated = [getattr(counts, field) for counts in benchmark.classes.values()]
        if None not in stated:
            assert sum(stated) == getattr(total, field)


def test_defect_folders():
    assert sum(len(counts.defects) for counts in MVTEC_AD.classes.values()) == 73
    assert sum(len(counts.defects) for counts in MPDD.classes.values()) == 11
    assert len(MVTEC_3D_AD.classes) == 10


def test_official_counts_do_not_deviate():
    found = {
        name: ClassCounts(**{f: getattr(c, f) for f in ("train", "val", "test_normal", "test_anomalous", "defects")})
        for name, c in MPDD.classes.items()
    }
    assert tuple(deviations(MPDD, found)) == ()
    found["tubes"] = found["tubes"].model_copy(update={"train": 121, "defects": {"anomalous": 68, "bent": 1}})
    assert tuple(deviations(MPDD, found)) == (
        Deviation("tubes", "train", "122", "121"),
        Deviation("tubes", "defect anomalous", "69", "68"),
        Deviation("tubes", "defect bent", "0", "1"),
        Deviation("all", "train", "888", "887"),
    )


def test_missing_and_unknown_classes():
    benchmark = Benchmark("x", "", "", {"a": OfficialCounts(1), "b": OfficialCounts(2)}, OfficialCounts(3))
    assert tuple(deviations(benchmark, {"a": ClassCounts(train=1), "c": ClassCounts()})) == (
        Deviation("all", "classes", "2", "without b"),
        Deviation("c", "class", "no such class", "present"),
    )


def test_own_classes_are_not_compared_with_mvtec(options, tree):
    (tree / "nut").rename(tree / "screw")  # a class name of MVTec AD, but with a defect of ours
    report = convert(options())
    assert report.deviations == ()
    assert report.manifest.citation == ""


def test_mvtec_is_recognised(converted):
    report = converted("mvtec").report
    assert report.manifest.citation == MVTEC_AD.citation
    assert Deviation("bottle", "train", "209", "3") in report.deviations
    assert Deviation("grid", "defect bent", "12", "1") in report.deviations


def test_deviations_are_told_again_when_nothing_is_written(converted):
    case = converted("mpdd")
    again = convert(case.options)
    assert not again.written
    assert again.deviations == case.report.deviations != ()


def test_realiad_single_view_has_its_own_totals(converted, tmp_path):
    case = converted("realiad", "flat")
    (tmp_path / "realiad_jsons_sv").symlink_to(case.source / "realiad_jsons_sv")
    (tmp_path / "realiad_256").symlink_to(case.source / "realiad_256")
    tree = read_source("realiad", tmp_path, "tiny")
    assert {image.view for image in tree.images} == {"C1"}
    assert tree.benchmark.total == OfficialCounts(10408, 0, 10387, 9415)


def test_published_licence_is_the_last_resort(converted, tmp_path):
    case = converted("visa")
    for name in ("split_csv", "candle", "cashew", "pcb1"):
        (tmp_path / name).symlink_to(case.source / name)
    tree = read_source("visa", tmp_path, "tiny")
    assert tree.licence == "CC BY 4.0 (as published for VisA)"
    assert read_source("visa", case.source, "tiny").licence == "CC0 1.0 (generated fixture)"
