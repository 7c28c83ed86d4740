"""Real jobs on a tiny dataset: the installed `fmad` command in its own processes, as a user starts it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image, ImageDraw

from data_tools.conversion.convert import Conversion, convert
from fmad_dist.launch.rank import NAME

LAUNCHER = Path(__file__).parents[2] / "launcher"
SIDE = 64
LAUNCH_SECONDS = 420  # a launch imports torch and DeepSpeed in every process; a busy machine needs its time


def make_product_tree(root: Path, seed: int = 0) -> Path:
    """Three classes of 64 px images with 12 training normals each and 9 test images (5 good, 4 with a bright spot)."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(("disc", "bar", "ring")):
        for split, kind, count in (("train", "good", 12), ("test", "good", 5), ("test", "spot", 4)):
            for index in range(count):
                image = _product(rng, number)
                mask = Image.new("L", (SIDE, SIDE))
                if kind == "spot":
                    x, y = rng.integers(10, 44, 2).tolist()
                    box = [x, y, x + 9, y + 9]
                    ImageDraw.Draw(image).rectangle(box, fill=(250, 240, 40))
                    ImageDraw.Draw(mask).rectangle(box, fill=255)
                    _save(mask, root / name / "ground_truth" / kind / f"{index:03d}_mask.png")
                _save(image, root / name / split / kind / f"{index:03d}.png")
    return root


def convert_tree(tree: Path, out: Path) -> str:
    convert(Conversion(layout="mvtec", dataset="tiny", source=tree, out=str(out), size=SIDE, num_workers=1))
    return str(out)


@dataclass(frozen=True)
class Job:
    """Where a test's runs live and what they share."""

    root: Path
    manifest: str

    def config(self, **train: object) -> Path:
        """A configuration of six short steps."""
        tree = {
            "name": "base",
            "output": str(self.root / "runs"),
            "data": {"manifests": [self.manifest], "workers": 0},
            "features": {"image_size": SIDE, "grid": 4, "taps": [1, 2, 3], "cache": str(self.root / "features")},
            "protocol": {"map_size": SIDE},
            "train": {"steps": 6, "global_batch": 8, "warmup_samples": 16, "log_every": 1, "checkpoint_every": 3}
            | {"precision": "fp32"}  # so that layouts can be compared to many digits
            | {"log_samples": True}
            | train,
            "tracking": {"mlflow": False},
        }
        path = self.root / "config.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def run(self, name: str) -> Path:
        return self.root / "runs" / name

    def losses(self, name: str) -> list[float]:
        lines = (self.run(name) / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["step"] for record in records] == list(range(1, len(records) + 1))
        return [record["loss"] for record in records]

    def samples(self, name: str) -> dict[int, str]:
        """Stream position -> sample id, over all ranks."""
        found: dict[int, str] = {}
        for path in self.run(name).glob("samples-*.jsonl"):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                assert found.setdefault(record["position"], record["sample_id"]) == record["sample_id"]
        return found


def fmad(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command; with `check` a failure shows its output."""
    done = subprocess.run(
        [sys.executable, "-m", "fmad_dist.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=LAUNCH_SECONDS,
        env={**os.environ, "MLFLOW_TRACKING_URI": "", **environment},
        check=False,
    )
    if check:
        assert done.returncode == 0, f"fmad {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    return done


def launched(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` of a script on two processes of a machine, which are its only ranks."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(LAUNCHER / "accelerate" / "cpu.yaml")]
    return subprocess.run(
        [sys.executable, *launch, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=LAUNCH_SECONDS,
        env={**os.environ, "DS_ACCELERATOR": "cpu", **environment},
        check=False,
    )


def train(job: Job, name: str, processes: int, *overrides: str, **environment: str) -> None:
    words = ("train", "--config", str(job.config()), "--processes", str(processes), f"name={name}", *overrides)
    fmad(*words, **environment)


def ranks_of(pid: int) -> list[psutil.Process]:
    """The ranks that a command has started and that live now."""
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it just ended
            if one.name().startswith(NAME):
                found.append(one)
    return found


@contextmanager
def in_background(log: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command beside the test, both of its outputs in `log`; it is ended with what it started, whatever happens."""
    with open(log, "w") as output:
        words = [sys.executable, "-m", "fmad_dist.cli", *arguments]
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        with suppress(psutil.Error):
            for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                one.kill()
        process.wait()


def _product(rng: np.random.Generator, number: int) -> Image.Image:
    base = np.full((SIDE, SIDE, 3), (90, 110, 130), dtype=np.float64) + rng.normal(0, 4, (SIDE, SIDE, 3))
    image = Image.fromarray(base.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    left, top = (int(v) for v in rng.integers(-2, 3, 2))
    box = [14 + left, 14 + top, 48 + left, 48 + top]
    if number == 0:
        draw.ellipse(box, fill=(60, 60, 70))
    elif number == 1:
        draw.rectangle([box[0], box[1] + 10, box[2], box[3] - 10], fill=(160, 60, 60))
    else:
        draw.ellipse(box, outline=(40, 120, 60), width=6)
    return image


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
