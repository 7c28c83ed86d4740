"""Our rows beside those of peers and those that others published."""

import math

import pytest

from data_tools.readers import readers
from data_tools.readers.loco import LOCO
from data_tools.readers.mvtec import MPDD, MVTEC_AD
from data_tools.readers.mvtec3d import MVTEC_3D_AD
from data_tools.readers.official import Benchmark, OfficialCounts
from data_tools.readers.realiad import realiad
from data_tools.readers.visa import VISA
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.results import METRIC_NAMES
from fmad_dist.report.benchmark import (
    ComparedRow,
    benchmark_grids,
    benchmark_tables,
    compared_rows,
    published,
    published_rows,
)
from fmad_dist.report.grid import latex, markdown
from tests.report.test_tables import check_latex
from tests.support.toy_states import three_classes

NAMES = ("mvtec_ad", "visa", "mpdd", "mvtec_3d", "mvtec_loco", "real_iad")
PEER = ComparedRow("bank", "peer", "measured alike", {"image_auroc": 0.5, "aupro": 0.25})
HOSTILE_PEER = ComparedRow("bank_of_50%", "peer", r"x_i & \y", {"image_auroc": 0.5})


def test_tables_put_ours_before_peers_before_published() -> None:
    results = compute_results(three_classes("mvtec_ad"))
    rows = compared_rows(results, {"mvtec_ad": [PEER], "elsewhere": [PEER]})
    assert set(rows) == {"mvtec_ad", "other"}
    (table,) = benchmark_tables(rows)  # nothing to compare `other` with
    origins = [row.origin for row in table.rows]
    assert origins == ["ours", "peer"] + ["published"] * len(published_rows("mvtec_ad"))
    assert table.metrics[:3] == ("image_auroc", "pixel_auroc", "aupro")
    assert set(table.metrics) == set(METRIC_NAMES)
    own = results.datasets["mvtec_ad"].metrics
    assert table.rows[0].metrics["aupro"] == own.aupro
    assert not math.isnan(own.aupro)
    assert table.rows[0].note == (
        "protocol fmad-2026 with map_size=32, 2 classes where MVTec AD has 15, so not its mean"
    )
    assert table.cells(table.rows[1]) == ("50.0", "–", "25.0", "–", "–", "–", "–")


def test_a_peer_is_enough_for_a_table() -> None:
    results = compute_results(three_classes())
    (table,) = benchmark_tables(compared_rows(results, {"other": [PEER]}))
    assert (table.title, table.cautions) == ("other", ())
    assert table.notes == ("protocol fmad-2026 with map_size=32, 1 class", "measured alike")


def test_tables_beside_published_rows() -> None:
    grids = benchmark_grids(compared_rows(compute_results(three_classes("mvtec_ad")), {"mvtec_ad": [HOSTILE_PEER]}))
    tex, md = ("\n".join(map(write, grids)) for write in (latex, markdown))
    check_latex(tex)
    assert r"bank\_of\_50\% (2) & 50.0 & -- &" in tex
    assert "| bank_of_50% (2) | 50.0 | – |" in md
    for name in ("HVQ-Trans", "Dinomaly-B", "choose the best epoch on the test set"):
        assert name in tex
        assert name in md
    assert benchmark_grids({}) == []


def test_figures_are_shares_with_a_source() -> None:
    for name in NAMES:
        rows = published_rows(name)
        assert len({row.name for row in rows}) == len(rows) >= 4
        for row in rows:
            assert row.origin == "published"
            assert row.note
            assert set(row.metrics) <= set(METRIC_NAMES)
            assert all(0.4 < value < 1.0 for value in row.metrics.values())


def test_figures_as_printed() -> None:
    """A few of each source, typed again from the tables."""
    printed = {
        ("mvtec_ad", "FlowAD inversion"): {"image_auroc": 0.984, "pixel_ap": 0.468, "aupro": 0.928},
        ("mvtec_ad", "InvAD, run again"): {"image_auroc": 0.954, "pixel_auroc": 0.953, "aupro": 0.868},
        ("mvtec_ad", "WT-Flow"): {"image_auroc": 0.9905},
        ("visa", "Dinomaly-B"): {"image_auroc": 0.987, "pixel_auroc": 0.987, "aupro": 0.945},
        ("mpdd", "UniAD"): {"image_auroc": 0.801, "pixel_auroc": 0.954, "aupro": 0.838},
        ("mvtec_3d", "best of ADer"): {"image_auroc": 0.869, "pixel_auroc": 0.987, "aupro": 0.952},
        ("mvtec_loco", "CFlow-AD"): {"image_auroc": 0.76, "pixel_auroc": 0.709, "aupro": 0.7},
        ("real_iad", "Dinomaly-B"): {"image_auroc": 0.893, "pixel_auroc": 0.988, "aupro": 0.939},
    }
    for (dataset, name), wanted in printed.items():
        row = next(row for row in published_rows(dataset) if row.name == name)
        assert {metric: row.metrics[metric] for metric in wanted} == wanted


@pytest.mark.parametrize(
    ("official", "name"),
    list(zip((MVTEC_AD, VISA, MPDD, MVTEC_3D_AD, LOCO, realiad(OfficialCounts(), True)), NAMES, strict=True)),
)
def test_benchmarks_are_those_that_are_converted(official: Benchmark, name: str) -> None:
    """By the name of the owner, and with as many classes; layouts are names too."""
    found = published(official.name)
    assert found is not None
    assert found is published(name)
    assert found.num_classes == len(official.classes)
    layouts = {layout for layout in readers if published(layout) is found}
    assert len(layouts) == 1


@pytest.mark.parametrize("name", ["toy", "", "mvtec_ad2", "my_visa", "folder"])
def test_other_datasets_have_no_published_rows(name: str) -> None:
    assert published_rows(name) == []
