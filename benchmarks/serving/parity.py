"""The same real images by all ways: `fmad evaluate`, `fmad predict`, MLflow over HTTP and ONNX.

    python benchmarks/serving/parity.py --detector DIR --tree mvtec_ad --out parity.json

`--tree` is in the MVTec AD layout. It is converted and evaluated whole; 50 of its test images, evenly taken, are then
predicted as files by two processes, sent to a real `mlflow models serve`, and scored by ONNX Runtime.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from onnx_speed import read
from soak import ModelServer, registered, sent, table

from fmad_dist.detector.detector import Detector
from fmad_dist.detector.onnx import run, runtime
from fmad_dist.registry.evidence import spread

BATCH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", type=Path, required=True)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        paths = spread(sorted(options.tree.glob("*/test/*/*.png")), options.count)
        names = [path.relative_to(options.tree).as_posix() for path in paths]
        for path, name in zip(paths, names, strict=True):
            (scratch / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, scratch / "photos" / name)
        found = {
            "evaluate": evaluated(options, scratch, names),
            "predict": predicted(options.detector, scratch, names),
            "HTTP": served(options.detector, scratch, paths),
            "ONNX": by_onnx(options.detector, scratch, paths),
        }
    report = compared(found, len(paths))
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def fmad(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "fmad_dist.cli", *map(str, words)], check=True)


def evaluated(options: argparse.Namespace, scratch: Path, names: list[str]) -> list[tuple[float, bool | None]]:
    """The evaluation makes no decisions."""
    data = scratch / "data"
    fmad("data", "convert", "--layout", "mvtec", "--dataset", "d", "--source", options.tree, "--out", data)
    fmad("evaluate", "--model", options.detector, "--data", data, "--out", scratch / "results")
    rows = csv.DictReader((scratch / "results" / "scores.csv").read_text().splitlines())
    scores = {row["sample_id"]: float(row["score"]) for row in rows}
    return [(scores[f"d/{name.removesuffix('.png')}"], None) for name in names]


def predicted(detector: Path, scratch: Path, names: list[str]) -> list[tuple[float, bool | None]]:
    words = ("--source", scratch / "photos", "--out", scratch / "predictions", "--processes", 2, "--pictures", "none")
    fmad("predict", "--model", detector, *words)
    rows = {row["image"]: row for row in pq.read_table(scratch / "predictions" / "scores.parquet").to_pylist()}
    return [(rows[name]["score"], rows[name]["decision"] == "anomalous") for name in names]


def served(detector: Path, scratch: Path, paths: list[Path]) -> list[tuple[float, bool | None]]:
    server = ModelServer("models:/soak/1", registered(detector, scratch), scratch / "serve.log")
    rows: list[dict[str, Any]] = []
    try:
        for begin in range(0, len(paths), BATCH):
            images = [sent(path.read_bytes()) for path in paths[begin : begin + BATCH]]
            rows += server.ask({"dataframe_split": table(images)})["predictions"]
    finally:
        server.stop()
    return [(row["score"], row["anomalous"]) for row in rows]


def by_onnx(detector: Path, scratch: Path, paths: list[Path]) -> list[tuple[float, bool | None]]:
    fmad("export-onnx", "--model", detector, "--out", scratch / "model.onnx")
    images = read(paths, Detector.load(detector).image_size).permute(0, 2, 3, 1).contiguous().numpy()
    session = runtime((scratch / "model.onnx").read_bytes())
    parts = [run(session, images[begin : begin + BATCH]) for begin in range(0, len(images), BATCH)]
    scores, decisions = (np.concatenate([part[name] for part in parts]) for name in ("score", "anomalous"))
    return list(zip(scores.tolist(), decisions.astype(bool).tolist(), strict=True))


def compared(found: dict[str, list[tuple[float, bool | None]]], count: int) -> dict[str, Any]:
    """Against the evaluation's scores, and against the prediction's decisions."""
    wanted = np.array([score for score, _ in found["evaluate"]])
    decisions = [decision for _, decision in found["predict"]]
    rows = {}
    for name in ("predict", "HTTP", "ONNX"):
        scores = np.array([score for score, _ in found[name]])
        flipped = sum(one != other for (_, one), other in zip(found[name], decisions, strict=True))
        largest = float(np.max(np.abs(scores - wanted) / np.abs(wanted)))
        rows[name] = {"largest_relative_difference": largest, "decisions_that_differ": flipped}
    return {"images": count, "anomalous": sum(map(bool, decisions)), "against_evaluate": rows}


if __name__ == "__main__":
    main()
