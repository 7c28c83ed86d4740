"""Remarks are counted, joined and said in one sentence per kind."""

from data_tools.remarks import POOLED, SHALLOW, Remarks
from fmad_dist.images.masks import MaskDoubt


def test_remarks_of_parts_add_up_and_keep_the_first_file() -> None:
    parts = [Remarks() for _ in range(3)]
    parts[1].add(POOLED, "a.png")
    parts[2].add(POOLED, "b.png")
    parts[2].add(MaskDoubt.COVERAGE, "c.png")
    whole = Remarks.joined(parts)
    assert whole.counts == {POOLED: 2, MaskDoubt.COVERAGE: 1}
    assert whole.first[POOLED] == "a.png"
    assert [line[:40] for line in whole.lines()] == [
        "warning: 1 mask marking more than half o",
        "2 masks max-pooled, because nearest resi",
    ]
    assert whole.lines()[0].endswith("(first: c.png)")


def test_every_kind_has_a_sentence() -> None:
    for kind in (*MaskDoubt, SHALLOW, POOLED):
        one = Remarks()
        one.add(kind, "x")
        assert len(one.lines()) == 1
