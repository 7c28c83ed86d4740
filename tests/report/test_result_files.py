"""results.json, results.csv and scores.csv agree, and say which protocol made them."""

import csv
import json
import re
from pathlib import Path

import pytest

from fmad_dist.config.protocol import Protocol, named_protocol
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.state import ScoredImage
from fmad_dist.report.html import write_report
from fmad_dist.report.result_files import print_summary, write_results
from tests.metrics.test_strips import OTHERS
from tests.support.scored_images import PROTOCOL, MakeScored, state_of


def test_written_files_agree(images: list[ScoredImage], make_scored: MakeScored, tmp_path: Path) -> None:
    results = compute_results(state_of([*images, make_scored("lonely", 0, 3, class_name="toy/lonely")]))
    write_results(results, tmp_path / "out")
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert Protocol.model_validate(written["protocol"]) == PROTOCOL
    assert set(written) == {"protocol", "protocol_title", "protocol_note", "classes", "datasets", "mean"}
    assert written["protocol_title"] == "fmad-2026 with map_size=8, histogram_bins=1024"
    pixel = [written["classes"]["toy/disc"]["intervals"][name] for name in ("pixel_auroc", "pixel_ap", "aupro")]
    assert all(0 <= low < high <= 1 for low, high in pixel)
    for kind in ("datasets", "classes"):
        for values in written[kind].values():
            for name, (low, high) in values["intervals"].items():
                assert low <= values[name] <= high, name
    assert written["classes"]["toy/lonely"]["aupro"] is None
    assert written["classes"]["toy/lonely"]["undefined"]["aupro"] == "no anomalous pixels"
    assert written["classes"]["toy/disc"]["num_anomalous"] == 6
    rows = list(csv.DictReader((tmp_path / "out/results.csv").open()))
    types = [name for kind in ("disc", "lonely", "ring") for name in (f"toy/{kind}", f"toy/{kind}/scratch")]
    assert [row["name"] for row in rows] == [name for name in types if "lonely/" not in name] + ["toy", "mean"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["toy/lonely"]["image_auroc"] == ""
    assert by_name["toy/disc"]["aupro@0.05"] == by_name["toy/disc/scratch"]["aupro@0.05"] != ""
    assert written["classes"]["toy/disc"]["defects"]["scratch"]["aupro"] == written["classes"]["toy/disc"]["aupro"]
    assert float(rows[-1]["aupro"]) == written["mean"]["aupro"]
    scores = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert {row["sample_id"]: float(row["score"]) for row in scores} == {s.sample_id: s.score for s in results.scores}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.csv", "results.json", "scores.csv"]


@pytest.mark.parametrize("name", OTHERS)
def test_name_and_bias_are_said_wherever_numbers_are(
    name: str, images_of_two_datasets: list[ScoredImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = Protocol(name=name, map_size=8)
    state = state_of(images_of_two_datasets, protocol)
    results = compute_results(state)
    assert protocol.title == f"{name} v1 with map_size=8 (biased)"
    assert named_protocol(name).title == f"{name} v1 (biased)"
    for result in (*results.classes.values(), *results.datasets.values(), results.mean):
        assert result.intervals.keys().isdisjoint(protocol.estimated)
        assert {"image_auroc", "image_ap"} <= result.intervals.keys()
        assert not any(area.startswith("aupro@") for area in result.areas)
    write_results(results, tmp_path)
    page = write_report(results, state, tmp_path / "report.html", title="toy", facts={}).read_text()
    print_summary(tmp_path)
    terminal = capsys.readouterr().out
    written = json.loads((tmp_path / "results.json").read_text())
    assert Protocol.model_validate(written["protocol"]) == protocol
    for text in (
        re.sub("<[^>]+>", "", page),
        " ".join(terminal.split()),
        written["protocol_title"] + written["protocol_note"],
    ):
        assert protocol.title in text
        assert "Biased estimates, for comparison with published numbers only" in text
    for table in ("results.csv", "scores.csv"):
        assert {row["protocol"] for row in csv.DictReader((tmp_path / table).open())} == {protocol.title}
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
