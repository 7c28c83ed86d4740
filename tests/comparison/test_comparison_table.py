"""The comparison's table: scorers, peers and what is published."""

from toy_states import three_classes

from fmad_dist.comparison.peers import PEER_MARK
from fmad_dist.comparison.table import Row, _markdown


def test_known_benchmarks_are_shown_beside_published_rows() -> None:
    results = three_classes("mvtec_ad").compute()
    rows = [Row("inversion", 3, 10.0, 1 << 20, results), Row(f"cflow {PEER_MARK}", 1, 20.0, 1 << 20, results)]
    text = _markdown(rows, {"ddim": "needs path vp"}, {"Protocol": "p"})
    table = text[text.index("## mvtec_ad: MVTec AD") :]
    names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert names[:4] == ["Method", "**inversion (1)**", "cflow (peer) (1)", "FlowAD density (2)"]
    assert "so not its mean" in table
    assert "## other" not in text


def test_other_datasets_are_not_compared_with_published_rows() -> None:
    text = _markdown([Row("inversion", 3, 10.0, 1 << 20, three_classes().compute())], {}, {})
    assert "Dinomaly" not in text
