"""Eight clients against a real `mlflow models serve` of one detector, with good and odd images, and its memory.

python benchmarks/serving/soak.py --detector runs/first/detector --images photos --out soak.json
"""

import argparse
import base64
import io
import json
import os
import platform
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

PORT = 5077
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
        server = start(registered(options.detector, Path(scratch)), Path(scratch))
        try:
            report = soak(server, good, options.clients, options.seconds)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "rss_mb"}, indent=1))


def registered(detector: Path, scratch: Path) -> str:
    """The tracking URI of a new registry with this detector as models:/soak/1."""
    from fmad_dist.config import RunConfig, TrackingConfig
    from fmad_dist.tracking.record import RunRecord
    from fmad_dist.tracking.runs import TrackedRun, tracking_uri

    os.environ.pop("MLFLOW_TRACKING_URI", None)
    config = RunConfig(name="soak", output=str(scratch), tracking=TrackingConfig(model_name="soak"))
    tracked = TrackedRun(config, RunRecord(config.run_dir, is_main=True))
    tracked.start(None)
    tracked.finish(detector)
    tracked.close()
    return tracking_uri(config)


def start(tracking: str, scratch: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-m", "models:/soak/1"]
    command += ["--port", str(PORT), "--workers", "1"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it starts uvicorn by its name
    waits = {"MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": "300"}
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": tracking, **waits}
    with open(scratch / "serve.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    while not alive():
        assert server.poll() is None, (scratch / "serve.log").read_text()
        time.sleep(0.5)
    return server


def alive() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ping", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def sent(data: bytes) -> str:
    return base64.b64encode(data).decode()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A few bytes that claim 400 megapixels."""
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 60001)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def odd_images() -> dict[str, str]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    return {
        "truncated JPEG": sent(encoded(noise, "JPEG")[:-500]),
        "bomb": sent(bomb()),
        "animated": sent(encoded(noise, "GIF", save_all=True, append_images=[noise.rotate(90)])),
        "CMYK": sent(encoded(noise.convert("CMYK"), "JPEG")),
        "garbage": "no base64 !",
    }


@dataclass
class Tally:
    """What all clients saw."""

    images: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)  # rows with an error, by kind of image
    failed: Counter[str] = field(default_factory=Counter)  # requests, by what happened
    latencies: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def soak(server: "subprocess.Popen[bytes]", good: list[str], clients: int, seconds: float) -> dict[str, Any]:
    odd, large = odd_images(), sent(encoded(Image.new("RGB", (10000, 10000), (90, 120, 60)), "JPEG"))
    tally = Tally()
    for name, image in {"good": good[0], **odd, "100 megapixels": large}.items():  # everything once, before it counts
        ask(Tally(), [(name, image)])
    process = psutil.Process(server.pid)
    rss = [memory(process)]
    end = time.monotonic() + seconds
    threads = [
        threading.Thread(target=client, args=(number, tally, good, odd, large, end)) for number in range(clients)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1.0)
        rss.append(memory(process))
    took = time.monotonic() - began
    return summary(tally, rss, took, clients) | {"alive": alive()}


def client(number: int, tally: Tally, good: list[str], odd: dict[str, str], large: str, end: float) -> None:
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
        ask(tally, images)


def ask(tally: Tally, images: list[tuple[str, str]]) -> None:
    body = {"dataframe_split": {"columns": ["image"], "data": [[image] for _, image in images]}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            rows = json.loads(answer.read())["predictions"]
    except urllib.error.HTTPError as error:
        with tally.lock:
            tally.failed[f"HTTP {error.code}"] += 1
        return
    except OSError as error:
        with tally.lock:
            tally.failed[type(error).__name__] += 1
        return
    with tally.lock:
        tally.latencies.append(time.monotonic() - began)
        for (name, _), row in zip(images, rows, strict=True):
            tally.images[name] += 1
            tally.errors[name] += row["error"] is not None


def memory(process: psutil.Process) -> float:
    """Resident megabytes of the server and its workers."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return round(total / 1e6, 1)


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
