"""The figures of the README, from the results that the benchmarks left.

python benchmarks/headline.py            # writes them into README.md
python benchmarks/headline.py --check    # fails if README.md says something else
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks/headline.py writes the table -->\n", "<!-- until here -->\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = README.read_text()
    new = with_table(text, table())
    if options.check and new != text:
        sys.exit("README.md: its figures are not those of benchmarks/; run python benchmarks/headline.py")
    README.write_text(new)


def with_table(text: str, figures: str) -> str:
    before, rest = text.split(BEGIN)
    return before + BEGIN + figures + END + rest.split(END)[1]


def table() -> str:
    rows = [*quality(), *training(), *inference(), *metrics()]
    lines = ["| what | figure | all of it |", "|---|---|---|"]
    return (
        "\n".join([*lines, *(f"| {what} | {figure} | [{link}](benchmarks/{link}) |" for what, figure, link in rows)])
        + "\n"
    )


def quality() -> list[tuple[str, str, str]]:
    found = read("quality/deviation.json")
    titles = {
        "deviation": f"one model for five real categories, {found['facts']['Training']} of 8 images",
        "inversion": "the same model, read by plain inversion (FlowAD)",
        "bank_pooled (peer)": "memory bank of all classes (PatchCore), same features",
    }
    rows = []
    for name, title in titles.items():
        mean = found["scorers"][name]["mean"]
        figures = " / ".join(f"{mean[key]:.3f}".lstrip("0") for key in ("image_auroc", "pixel_auroc", "aupro"))
        rows.append((f"{title}: image AUROC / pixel AUROC / AUPRO", figures, "quality"))
    return rows


def training() -> list[tuple[str, str, str]]:
    found = read("training/gpu.json")
    ours = {row["preset"]: row for row in found["rows"] if row["what"].startswith("fmad train")}
    text = "; ".join(f"{name} {row['images_per_s']:,.0f}, MFU {row['mfu']:.2f}" for name, row in ours.items())
    return [(f"training DiT-{', '.join(ours)} on one {found['device']}, images/s", text, "training")]


def inference() -> list[tuple[str, str, str]]:
    found, gpu = read("inference/inference.json"), read("inference/gpu.json")
    decode = found["decode_ms"]
    speeds = {
        name: 1000 / (batches["32"] / 32 + decode) for name, batches in found["methods"].items() if "32" in batches
    }
    best = {(row["preset"], row["scorer"].partition(":")[0]): 0.0 for row in gpu["rows"]}
    for row in gpu["rows"]:
        key = row["preset"], row["scorer"].partition(":")[0]
        best[key] = max(best[key], 1000 * row["batch"] / row["end_to_end_ms"])
    fast = f"one step of B {best['B', 'endpoint']:,.0f}, three of G {best['G', 'inversion']:,.0f}"
    bank = f"the memory bank {speeds['memory bank on the same features']:.0f}"
    one = f"one-step scoring on one slow core, exported to ONNX, with decoding ({bank}), images/s"
    return [
        (one, f"{speeds['fmad endpoint, ONNX Runtime']:.0f}", "inference"),
        (f"scoring on one {gpu['device']}, {gpu['precision']}, images/s", fast, "inference"),
    ]


def metrics() -> list[tuple[str, str, str]]:
    found = read("metrics/five_benchmarks.json")["outcomes"]
    ours, theirs = found["evaluation"], found["anomalib"]
    figure = f"{ours['wall_s']:.0f} s, {ours['peak_mb']:.0f} MB"
    title = f"all metrics with intervals of 7,110 maps on two cores (anomalib: AUPRO alone in {theirs['wall_s']:.0f} s)"
    return [(title, figure, "metrics/five_benchmarks.md")]


def read(name: str) -> Any:
    return json.loads((HERE / name).read_text())


if __name__ == "__main__":
    main()
