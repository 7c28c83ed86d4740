"""Eight clients against a real `mlflow models serve` of one detector, with good and odd images, and its memory.

python benchmarks/serving/soak.py --detector runs/first/detector --images photos --out soak.json
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # for tests.support

from tests.support.model_server import ModelServer, table
from tests.support.sent_images import encoded, odd_images, picture, sent

REFUSED = ("truncated", "bomb", "animated", "garbage")
ODD_SHARE = 0.3
LARGE_SHARE = 0.05  # of requests: an image of 100 megapixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detector", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of good images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    good = [sent(path.read_bytes()) for path in sorted(options.images.rglob("*.png"))[:40]]
    with tempfile.TemporaryDirectory() as scratch:
        tracking = registered(options.detector, Path(scratch))
        server = ModelServer("models:/soak/1", tracking, Path(scratch) / "serve.log")
        try:
            report = soak(server, good, options.clients, options.seconds)
        finally:
            server.stop()
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "rss_mb"}, indent=1))


def registered(detector: Path, scratch: Path) -> str:
    """The tracking URI of a new registry with this detector as models:/soak/1."""
    from fmad_dist.config.run import RunConfig, TrackingConfig
    from fmad_dist.registry.register import register_trained
    from fmad_dist.tracking.record import RunRecord
    from fmad_dist.tracking.runs import TrackedRun
    from fmad_dist.tracking.server import tracking_uri

    os.environ.pop("MLFLOW_TRACKING_URI", None)
    config = RunConfig(name="soak", output=str(scratch), tracking=TrackingConfig(model_name="soak"))
    tracked = TrackedRun(config, RunRecord(config.run_dir, is_main=True))
    tracked.start(None)
    register_trained(tracked, detector)
    tracked.close()
    return tracking_uri(config)


def unusual_images() -> dict[str, str]:
    """What is refused, and what is not usual and scored."""
    refused = {name: image for name, (image, _) in odd_images().items() if name in REFUSED}
    photograph = picture(0, 300)
    frames = {"save_all": True, "append_images": [photograph.rotate(90)]}
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (300, 300), dtype=np.uint16))
    return refused | {
        "animated PNG": sent(encoded(photograph, "PNG", **frames)),
        "CMYK": sent(encoded(photograph.convert("CMYK"), "JPEG")),
        "16-bit grey": sent(encoded(deep)),
        "grey": sent(encoded(photograph.convert("L"))),
    }


@dataclass
class Tally:
    """What all clients saw."""

    images: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)  # rows with an error, by kind of image
    failed: Counter[str] = field(default_factory=Counter)  # requests, by what happened
    latencies: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def soak(server: ModelServer, good: list[str], clients: int, seconds: float) -> dict[str, Any]:
    odd, large = unusual_images(), sent(encoded(Image.new("RGB", (10000, 10000), (90, 120, 60)), "JPEG"))
    tally = Tally()
    for name, image in {"good": good[0], **odd, "100 megapixels": large}.items():  # everything once, before it counts
        ask(server, Tally(), [(name, image)])
    rss = [server.memory_mb()]
    end = time.monotonic() + seconds
    threads = [
        threading.Thread(target=client, args=(server, number, tally, good, odd, large, end))
        for number in range(clients)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1.0)
        rss.append(server.memory_mb())
    took = time.monotonic() - began
    return summary(tally, rss, took, clients) | {"alive": server.alive()}


def client(
    server: ModelServer, number: int, tally: Tally, good: list[str], odd: dict[str, str], large: str, end: float
) -> None:
    chance = random.Random(number)
    while time.monotonic() < end:
        images = []
        for _ in range(chance.randint(1, 4)):
            if chance.random() < ODD_SHARE:
                images.append(chance.choice(list(odd.items())))
            else:
                images.append(("good", chance.choice(good)))
        if chance.random() < LARGE_SHARE:
            images.append(("100 megapixels", large))
        ask(server, tally, images)


def ask(server: ModelServer, tally: Tally, images: list[tuple[str, str]]) -> None:
    began = time.monotonic()
    try:
        rows = server.ask({"dataframe_split": table([image for _, image in images])})["predictions"]
    except OSError as error:
        with tally.lock:
            tally.failed[f"HTTP {error.code}" if isinstance(error, HTTPError) else type(error).__name__] += 1
        return
    with tally.lock:
        tally.latencies.append(time.monotonic() - began)
        for (name, _), row in zip(images, rows, strict=True):
            tally.images[name] += 1
            tally.errors[name] += row["error"] is not None


def summary(tally: Tally, rss: list[float], took: float, clients: int) -> dict[str, Any]:
    latencies = sorted(tally.latencies)
    quantiles = {"median": 0.5, "p95": 0.95, "max": 1.0}
    third = len(rss) // 3
    thirds = rss[:third], rss[third:-third], rss[-third:]
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "clients": clients,
        "seconds": round(took, 1),
        "requests": len(latencies),
        "failed_requests": dict(tally.failed),
        "images": dict(sorted(tally.images.items())),
        "error_rows": {name: count for name, count in sorted(tally.errors.items()) if count},
        "images_per_second": round(sum(tally.images.values()) / took, 2),
        "latency_s": {name: round(latencies[int(q * (len(latencies) - 1))], 2) for name, q in quantiles.items()},
        "rss_mb_after_warm_up": rss[0],
        "rss_mb_peak": max(rss),
        "rss_mb_mean_of_thirds": [round(float(np.mean(part)), 1) for part in thirds],
        "rss_mb_end": rss[-1],
        "rss_mb": rss,
    }


if __name__ == "__main__":
    main()
