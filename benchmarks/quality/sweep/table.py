"""The table of a sweep from its lines, and how well synthetic defects foretell the test split.

python benchmarks/quality/sweep/table.py benchmarks/quality/sweep/first.jsonl
"""

import json
import sys
from pathlib import Path

from scipy.stats import spearmanr

SHOWN = ("inversion3", "inversion3+loc", "inversion3+cov", "inversion3+cov+loc", "gaussian+loc", "bank")
MEASURES = ("image@1", "pixel", "aupro")


def main(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    print("| trial | read by | synthetic image AUROC | image AUROC | pixel AUROC | AUPRO | training s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    rows = [(line, way) for way in SHOWN for line in lines if f"{way} blur0" in line["found"]]
    rows.sort(key=lambda row: (SHOWN.index(row[1]), -mean(row[0], row[1], "synthetic", "image@1")))
    for line, way in rows:
        test = " | ".join(f"{mean(line, way, 'test', measure):.3f}" for measure in MEASURES)
        synthetic = f"{mean(line, way, 'synthetic', 'image@1'):.3f}"
        print(f"| {line['trial']['name']} | {way} | {synthetic} | {test} | {line['seconds'][1]:.0f} |")
    every = [(line, way.removesuffix(" blur0")) for line in lines for way in line["found"] if way.endswith("blur0")]
    for measure in MEASURES:
        pairs = [[mean(line, way, split, measure) for line, way in every] for split in ("synthetic", "test")]
        print(
            f"\n{measure}: rank correlation of synthetic and test {spearmanr(*pairs).statistic:.2f} ({len(every)} ways)"
        )


def mean(line: dict, way: str, split: str, measure: str) -> float:
    values = line["found"][f"{way} blur0"][split][measure]
    return sum(values) / len(values)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
