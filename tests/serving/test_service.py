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

from fmad_dist.base.errors import UserError
from fmad_dist.detector.detector import Detections, Detector
from fmad_dist.serving.request_images import ImageReader
from fmad_dist.serving.service import COLUMNS, RequestOptions, Service
from fmad_dist.storage import Store
from tests.support.sent_images import encoded, odd_images, picture, sent

MANY = [sent(encoded(picture(seed))) for seed in range(11)]


@pytest.fixture
def service(tiny_detector: Detector) -> Service:
    return Service(tiny_detector, ImageReader())


def expected(detector: Detector, count: int = 11) -> Detections:
    pixels = np.stack([np.asarray(picture(seed)) for seed in range(count)])
    return detector(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())


def test_rows_say_what_the_detector_says(service: Service) -> None:
    rows = service.answer(MANY, RequestOptions())
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
    rows = service.answer(mixed, RequestOptions(maps=True))
    alone = service.answer(MANY[: len(odd)], RequestOptions(maps=True))
    for row, other in zip(rows[::2], alone, strict=True):
        assert row["score"] == pytest.approx(other["score"], rel=1e-5)
        assert row["anomalous"] == other["anomalous"]
    for number, (row, (_, message)) in enumerate(zip(rows[1::2], odd.values(), strict=True)):
        assert row["error"].startswith(f"image {2 * number + 1}: ")
        assert message in row["error"]
        assert {row[name] for name in (*COLUMNS[:-1], "map")} == {None}


def test_maps_are_16_bit_with_the_threshold_in_the_middle(service: Service) -> None:
    rows = service.answer(MANY, RequestOptions(maps=True))
    levels = expected(service.detector).relative_maps.numpy()
    for row, level in zip(rows, levels, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(row["map"])))
        assert (image.mode, image.size) == ("I;16", (32, 32))
        assert np.abs(np.asarray(image).astype(float) - level * 65536).max() <= 8


def test_options_change_the_decisions_of_one_request(service: Service) -> None:
    usual = service.answer(MANY, RequestOptions())
    assert all(row["anomalous"] for row in service.answer(MANY, RequestOptions(sensitivity=1.0)))
    assert not any(row["anomalous"] for row in service.answer(MANY, RequestOptions(sensitivity=0.0)))
    assert {row["threshold"] for row in service.answer(MANY, RequestOptions(threshold="global"))} == {1.5}
    assert service.answer(MANY, RequestOptions()) == usual


@pytest.mark.parametrize("options", [{"sensitivity": 1.5}, {"sensitivity": float("nan")}, {"threshold": "own"}])
def test_options_without_sense_are_refused(service: Service, options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        service.answer(MANY, RequestOptions(**options))  # type: ignore[arg-type]


def test_what_json_cannot_say_is_null(make_detector: Callable[..., Detector]) -> None:
    (row,) = Service(make_detector((1.0,), calibration=None), ImageReader()).answer(MANY[:1], RequestOptions())
    assert (row["threshold"], row["normalised"], row["anomalous"]) == (None, None, False)
    json.dumps(row, allow_nan=False)


def test_threads_get_the_answers_to_their_own_questions(service: Service) -> None:
    wanted = [row["score"] for row in service.answer(MANY, RequestOptions())]
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda number: service.answer([MANY[number % 11]], RequestOptions())[0], range(22)))
    assert [row["score"] for row in rows] == pytest.approx(wanted * 2, rel=1e-5)


@pytest.mark.parametrize("prefix", ["data:image/png;base64,", "\n"])
def test_base64_as_tools_write_it(prefix: str) -> None:
    data = encoded(picture(0))
    assert ImageReader().read(prefix + base64.encodebytes(data).decode(), "x") == data


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
    reader = ImageReader.parse(f"https://images.example/, {web}/open, {web}/moved/")
    assert reader.read(f"{web}/open/a.png", "x") == encoded(picture(0))
    for url in (
        *(f"{web}/a.png", f"{web}/opener/a.png", f"{web}/open/../a.png", f"{web}/open/%2e%2e/a.png"),
        *(f"{web.replace('http', 'https')}/open/a.png", f"{web.replace('//', '//user@')}/open/a.png"),
        *("file:///open/a.png", "https://images.example.evil.org/a.png", "ftp://images.example/a.png"),
        *("s3://images.example/a.png", f"{web}/open/%252e%252e/a.png", f"{web}/open/..\\a.png"),
        *(f"{web}/open/..;/a.png", f"{web}/open/..;x=1/a.png", f"{web}/open/%2e%2e;/a.png", f"{web}/open/./a.png"),
    ):
        with pytest.raises(UserError, match="reads no URLs but those below"):
            reader.read(url, "x")
    with pytest.raises(UserError, match="cannot be read"):
        reader.read(f"{web}/moved/a.png", "x")  # a redirect may lead anywhere


def test_a_url_that_is_none_fails_its_row_alone(web: str, tiny_detector: Detector) -> None:
    service = Service(tiny_detector, ImageReader.parse(f"{web}/open"))
    bad = [f"{web}/open/a b.png", f"{web}/open/a\x00.png", f"{web}/open/ä.png"]
    rows = service.answer([MANY[0], *bad], RequestOptions())
    assert rows[0]["error"] is None
    assert all(f"image {number}: " in row["error"] for number, row in enumerate(rows[1:], 1))


def test_buckets_can_be_allowed(moto_bucket: str) -> None:
    Store(f"{moto_bucket}/photos").write("a.png", b"content")
    assert ImageReader.parse(f"{moto_bucket}/photos/").read(f"{moto_bucket}/photos/a.png", "x") == b"content"
    with pytest.raises(UserError, match="none"):
        ImageReader.parse(moto_bucket).read(f"{moto_bucket}/none.png", "x")


@pytest.mark.parametrize("text", ["file:///", "*", "https://", "images.example", "https://a.b/?x=1"])
def test_places_that_cannot_be_allowed(text: str) -> None:
    with pytest.raises(UserError, match="FMAD_SERVE_URLS"):
        ImageReader.parse(text)


def test_a_request_has_limits(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are refused by their headers, one by one; too many of them altogether."""
    with pytest.raises(UserError, match="1001 images in one request; send at most 1000"):
        service.answer(MANY[:1] * 1001, RequestOptions())
    large = sent(encoded(Image.new("1", (6000, 6000))))
    first, refused, last = service.answer([MANY[0], large, MANY[1]], RequestOptions())
    assert (first["error"], last["error"]) == (None, None)
    assert refused["error"] == "image 1: has more than 34 megapixels, which this server does not take."
    monkeypatch.setenv("FMAD_MAX_PIXELS", "40000000")
    assert service.answer([large], RequestOptions())[0]["error"] is None


def test_a_small_request_does_not_wait_for_the_end_of_a_large_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    original = Service.answer

    def told(self: Service, images: list[str], options: RequestOptions) -> list[dict]:
        rows = original(self, images, options)
        order.append(f"{len(images)} images")
        return rows

    monkeypatch.setattr(Service, "answer", told)
    with ThreadPoolExecutor(2) as clients:
        large = clients.submit(service.answer, MANY * 12, RequestOptions())
        small = clients.submit(service.answer, MANY[:1], RequestOptions())
        small.result()
        large.result()
    assert order == ["1 images", f"{12 * len(MANY)} images"]
