"""MPDD (metal parts): the layout of MVTec AD to the letter, with its own classes and counts."""

from pathlib import Path

from data_tools.readers.mvtec import read_good_tree
from data_tools.readers.official import Benchmark, OfficialCounts, counted
from data_tools.readers.source import SourceTree, source_tree

LAYOUT = "mpdd"

MPDD = Benchmark(
    name="MPDD",
    licence="CC BY-NC-SA 4.0",
    citation="S. Jezek, M. Jonak, R. Burget, P. Dvorak, M. Skotak: Deep learning-based defect detection of metal "
    "parts: evaluating current methods in complex conditions, ICUMT 2021",
    classes=counted("""
        bracket_black | 289 | 32 | hole 12, scratches 35
        bracket_brown | 185 | 26 | bend_and_parts_mismatch 17, parts_mismatch 34
        bracket_white | 110 | 30 | defective_painting 13, scratches 17
        connector | 128 | 30 | parts_mismatch 14
        metal_plate | 54 | 26 | major_rust 14, scratches 34, total_rust 23
        tubes | 122 | 32 | anomalous 69
    """),
    total=OfficialCounts(888, 0, 176, 282),
)


def read_mpdd(root: Path, dataset: str) -> SourceTree:
    """The tree of MPDD.

    Raises:
        UserError: as `read_good_tree`.
    """
    return source_tree(dataset, LAYOUT, root, read_good_tree(root, dataset), MPDD)
