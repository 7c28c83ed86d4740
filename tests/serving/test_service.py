import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from sent_images import encoded, odd_images, picture, sent

from fmad_dist.detector import Detections, Detector
from fmad_dist.errors import UserError
from fmad_dist.serving.service import COLUMNS, Service, Wishes
from fmad_dist.serving.sources import Sources
from fmad_dist.storage import Store

MANY = [sent(encoded(picture(seed))) for seed in range(11)]


@pytest.fixture
def service(tiny_detector: Detector) -> Service:
    return Service(tiny_detector, Sources())


def expected(detector: Detector, count: int = 11) -> Detections:
    pixels = np.stack([np.asarray(picture(seed)) for seed in range(count)])
    return detector(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())


def test_rows_say_what_the_detector_says(service: Service) -> None:
    rows = service.answer(MANY, Wishes())
    found = expected(service.detector)
    assert [row["score"] for row in rows] == pytest.approx(found.scores.tolist(), rel=1e-5)
    assert [row["normalised"] for row in rows] == pytest.approx(found.normalised.tolist(), rel=1e-5)
    assert [row["threshold"] for row in rows] == found.thresholds.tolist()
    assert [row["anomalous"] for row in rows] == found.anomalous.tolist()
    assert [row["class_name"] for row in rows] == [f"toy/{number}" for number in found.classes.tolist()]
    assert {tuple(row) for row in rows} == {COLUMNS}
    assert {row["error"] for row in rows} == {None}


def test_odd_images_do_not_take_the_others_down(service: Service) -> None:
    odd = odd_images()
    mixed = [item for number, (bad, _) in enumerate(odd.values()) for item in (MANY[number], bad)]
    rows = service.answer(mixed, Wishes(maps=True))
    alone = service.answer(MANY[: len(odd)], Wishes(maps=True))
    for row, other in zip(rows[::2], alone, strict=True):
        assert row["score"] == pytest.approx(other["score"], rel=1e-5)
        assert row["anomalous"] == other["anomalous"]
    for number, (row, (_, message)) in enumerate(zip(rows[1::2], odd.values(), strict=True)):
        assert row["error"].startswith(f"image {2 * number + 1}: ")
        assert message in row["error"]
        assert {row[name] for name in (*COLUMNS[:-1], "map")} == {None}


def test_maps_are_16_bit_with_the_threshold_in_the_middle(service: Service) -> None:
    rows = service.answer(MANY, Wishes(maps=True))
    levels = expected(service.detector).relative_maps.numpy()
    for row, level in zip(rows, levels, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(row["map"])))
        assert (image.mode, image.size) == ("I;16", (32, 32))
        assert np.abs(np.asarray(image).astype(float) - level * 65536).max() <= 8


def test_wishes_change_the_decisions_of_one_request(service: Service) -> None:
    usual = service.answer(MANY, Wishes())
    assert all(row["anomalous"] for row in service.answer(MANY, Wishes(sensitivity=1.0)))
    assert not any(row["anomalous"] for row in service.answer(MANY, Wishes(sensitivity=0.0)))
    assert {row["threshold"] for row in service.answer(MANY, Wishes(threshold="global"))} == {1.5}
    assert service.answer(MANY, Wishes()) == usual


@pytest.mark.parametrize("wishes", [{"sensitivity": 1.5}, {"sensitivity": float("nan")}, {"threshold": "own"}])
def test_wishes_without_sense_are_refused(service: Service, wishes: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wishes))):
        service.answer(MANY, Wishes(**wishes))  # type: ignore[arg-type]


def test_what_json_cannot_say_is_null(make_detector: Callable[..., Detector]) -> None:
    (row,) = Service(make_detector((1.0,), calibration=None), Sources()).answer(MANY[:1], Wishes())
    assert (row["threshold"], row["normalised"], row["anomalous"]) == (None, None, False)
    json.dumps(row, allow_nan=False)


def test_threads_get_the_answers_to_their_own_questions(service: Service) -> None:
    wanted = [row["score"] for row in service.answer(MANY, Wishes())]
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda number: service.answer([MANY[number % 11]], Wishes())[0], range(22)))
    assert [row["score"] for row in rows] == pytest.approx(wanted * 2, rel=1e-5)


@pytest.mark.parametrize("prefix", ["data:image/png;base64,", "\n"])
def test_base64_as_tools_write_it(prefix: str) -> None:
    data = encoded(picture(0))
    assert Sources().read(prefix + base64.encodebytes(data).decode(), "x") == data


@pytest.fixture
def web() -> Iterator[str]:
    """A host with an image, and a redirect to it from below another folder."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved/a.png":
                self.send_response(302)
                self.send_header("Location", "/open/a.png")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded(picture(0)))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_urls_below_the_allowed_ones_are_read(web: str) -> None:
    sources = Sources.parse(f"https://images.example/, {web}/open, {web}/moved/")
    assert sources.read(f"{web}/open/a.png", "x") == encoded(picture(0))
    for url in (
        *(f"{web}/a.png", f"{web}/opener/a.png", f"{web}/open/../a.png", f"{web}/open/%2e%2e/a.png"),
        *(f"{web.replace('http', 'https')}/open/a.png", f"{web.replace('//', '//user@')}/open/a.png"),
        *("file:///open/a.png", "https://images.example.evil.org/a.png", "ftp://images.example/a.png"),
        *("s3://images.example/a.png", f"{web}/open/%252e%252e/a.png", f"{web}/open/..\\a.png"),
    ):
        with pytest.raises(UserError, match="reads no URLs but those below"):
            sources.read(url, "x")
    with pytest.raises(UserError, match="cannot be read"):
        sources.read(f"{web}/moved/a.png", "x")  # a redirect may lead anywhere


def test_buckets_can_be_allowed(moto_bucket: str) -> None:
    Store(f"{moto_bucket}/photos").write("a.png", b"content")
    assert Sources.parse(f"{moto_bucket}/photos/").read(f"{moto_bucket}/photos/a.png", "x") == b"content"
    with pytest.raises(UserError, match="none"):
        Sources.parse(moto_bucket).read(f"{moto_bucket}/none.png", "x")


@pytest.mark.parametrize("text", ["file:///", "*", "https://", "images.example", "https://a.b/?x=1"])
def test_places_that_cannot_be_allowed(text: str) -> None:
    with pytest.raises(UserError, match="FMAD_SERVE_URLS"):
        Sources.parse(text)
