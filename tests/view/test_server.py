"""What the server of the page answers, and to whom."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image
from starlette.testclient import TestClient

from fmad_dist.base.errors import UserError
from fmad_dist.prediction.inputs import dataset_images
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import read_stamp, write_stamp
from fmad_dist.view.pictures import Cache, Picture, as_shown
from fmad_dist.view.results import open_results, page_data
from fmad_dist.view.server import make_app

OWN = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def client(predicted: Path) -> TestClient:
    return TestClient(make_app(open_results(str(predicted))), base_url=OWN)


def opened(client: TestClient, path: str) -> tuple[Image.Image, str]:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content)), answer.headers["content-type"]


def test_the_page_is_whole_and_only_loads_from_itself(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    for name in ("page.css", "page.js", "grid.js", "large.js", "histogram.js", "icon.svg"):
        found = client.get(f"/page/{name}")
        assert found.status_code == 200
        assert "http" not in found.text.replace("http://www.w3.org/2000/svg", "")


def test_data_are_those_of_the_table(client: TestClient, predicted: Path) -> None:
    data = client.get("/data.json").json()
    assert data["names"] == sorted(data["names"])
    assert len(data["names"]) == 11
    cut = data["names"].index("cut.png")
    assert data["values"][cut] is None
    assert "cannot be decoded" in data["errors"][str(cut)]
    assert data["facts"]["model"] == "models:/toy/1"
    assert data["scale"]["start"] == 0.5
    above = sum(value > data["scale"]["start"] for value in data["values"] if value is not None)
    assert 3 <= above <= 7
    table = Store(predicted).read("scores.csv").decode()
    assert above == table.count("anomalous")


def test_the_threshold_starts_where_the_prediction_decided(predicted: Path, tmp_path: Path) -> None:
    Store(tmp_path).write("scores.parquet", Store(predicted).read("scores.parquet"))
    assert open_results(str(tmp_path)).columns.scale.start == 0.5
    stamp = read_stamp(Store(predicted))
    assert stamp is not None
    write_stamp(Store(tmp_path), stamp.key, stamp.facts | {"sensitivity": "0.7"}, ())
    assert open_results(str(tmp_path)).columns.scale.start == pytest.approx(0.3)


def test_pictures_are_shown_as_the_detector_sees_them(client: TestClient, photographs: Path) -> None:
    names = client.get("/data.json").json()["names"]
    wide, deep, high = (names.index(name) for name in ("wide-3.jpg", "deep.tif", "high.png"))
    assert client.get(f"/image/{wide}").content == (photographs / "wide-3.jpg").read_bytes()
    image, kind = opened(client, f"/image/{deep}")
    assert (kind, image.mode) == ("image/png", "RGB")
    grey = np.asarray(Image.open(photographs / "deep.tif")).astype(float) / 257
    assert np.abs(np.asarray(image)[..., 0] - grey).max() <= 0.5
    assert opened(client, f"/thumbnail/{wide}")[0].size == (160, 100)
    assert opened(client, f"/thumbnail/{high}")[1] == "image/jpeg"
    large, small = opened(client, f"/image/{wide}/heat")[0], opened(client, f"/thumbnail/{wide}/heat")[0]
    assert (large.mode, large.size) == (small.mode, small.size) == ("RGBA", (32, 32))
    cut = names.index("cut.png")
    for path in (f"/image/{cut}", f"/thumbnail/{cut}", f"/image/{cut}/heat"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/image/../../etc/passwd",
        "/image/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/image/..%5c..%5cetc",
        "/image/%2fetc%2fpasswd",
        "/page/../server.py",
        "/page/..%2fserver.py",
        "/page/%2fetc%2fpasswd",
        "/thumbnail/-1",
        "/thumbnail/99999999999999999999",
        "/image/1.0",
        "//etc/passwd",
    ],
)
def test_no_path_leads_out(client: TestClient, path: str) -> None:
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code in (404, 405)
    assert b"root:" not in answer.content
    assert b"import" not in answer.content


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "127.0.0.1@evil.example"]
)
def test_another_name_for_this_machine_gets_nothing(client: TestClient, host: str) -> None:
    for path in ("/", "/data.json", "/image/1", "/page/page.js"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 400
        assert "wide" not in answer.text


def test_it_answers_to_its_own_names(client: TestClient) -> None:
    for host in ("127.0.0.1:8000", "localhost:8000", "localhost"):
        assert client.get("/data.json", headers={"host": host}).status_code == 200
    assert client.post("/data.json").status_code == 405


def test_an_evaluation_shows_truths_and_the_images_of_its_dataset(tiny_url: str, tmp_path: Path) -> None:
    rows = [item for item in dataset_images(tiny_url) if "/test/" in item.name]
    lines = [
        f"{item.name},{'/'.join(item.name.split('/')[:2])},{int('hole' in item.name)},hole,{n / 10},"
        for n, item in enumerate(rows)
    ]
    Store(tmp_path).write("scores.csv", "\n".join(["sample_id,class,label,defect_type,score,group", *lines]).encode())
    with pytest.raises(UserError, match="holds no finished results"):
        open_results(str(tmp_path))
    Store(tmp_path).write("results.json", b"{}")
    alone = page_data(open_results(str(tmp_path)))
    assert alone["pictures"] == [0] * 6
    results = open_results(str(tmp_path), [tiny_url])
    data = page_data(results)
    assert data["pictures"] == [1] * 6
    assert data["truthNames"] == ["good", "hole"]
    assert data["scale"]["low"] < data["scale"]["start"] < data["scale"]["high"]
    client = TestClient(make_app(results), base_url=OWN)
    assert opened(client, "/image/2")[0].size == (64, 64)
    assert client.get("/image/2/heat").status_code == 404


def test_heat_of_an_evaluation_is_half_at_the_threshold_whatever_the_scores(tmp_path: Path) -> None:
    """Scores of a density are negative."""
    lines = [f"d/c/{n}.a,d/c,{int(n > 2)},{'hole' if n > 2 else 'good'},{-50.0 + 10 * n}," for n in range(5)]
    Store(tmp_path).write("scores.csv", "\n".join(["sample_id,class,label,defect_type,score,group", *lines]).encode())
    Store(tmp_path).write("results.json", b"{}")
    results = open_results(str(tmp_path))
    start, mean = results.columns.scale.start, -40.0  # of the three normal images
    buffer = io.BytesIO()
    np.save(buffer, np.array([[mean, start], [start + (start - mean), -1e9]], dtype=np.float32))
    maps = tmp_path / "maps"
    maps.mkdir()
    with tarfile.open(maps / "maps-0.tar", "w") as tar:
        member = tarfile.TarInfo("d/c/4_a.map.npy")
        member.size = len(buffer.getvalue())
        tar.addfile(member, io.BytesIO(buffer.getvalue()))
    (maps / "maps.json").write_text('{"shards": [{"name": "maps-0.tar"}]}')
    results = open_results(str(tmp_path), maps=str(maps))
    assert list(results.columns.heats) == [False] * 4 + [True]
    np.testing.assert_allclose(results.heat(4), [[0.25, 0.5], [0.75, 0.0]], atol=1e-6)


def test_results_at_any_url(predicted: Path) -> None:
    for name in Store(predicted).list():
        Store("memory://viewed").write(name, Store(predicted).read(name))
    results = open_results("memory://viewed")
    row = list(results.columns.names).index("high.png")
    np.testing.assert_array_equal(results.heat(row), open_results(str(predicted)).heat(row))


def test_what_is_no_table_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished results"):
        open_results(str(tmp_path / "missing"))
    (tmp_path / "scores.parquet").write_bytes(b"none")
    with pytest.raises(UserError, match=r"scores\.parquet: not results of this version"):
        open_results(str(tmp_path))


def test_the_cache_is_bounded_and_keeps_what_was_asked_for_last() -> None:
    cache, made = Cache(limit=25), []

    def get(row: int) -> None:
        cache.get(("image", row), lambda: made.append(row) or Picture(bytes(10), "image/png"))

    for row in (1, 2, 1, 3, 1, 2):
        get(row)
    assert made == [1, 2, 3, 2]
    assert cache.num_bytes == 20


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_browser_turns_no_photograph(orientation: int) -> None:
    """It would turn a file with an orientation tag, and not the heat that lies over it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12) * 2).save(buffer, format="JPEG", exif=exif)
    shown = as_shown(buffer.getvalue(), "a.jpg")
    assert (shown.data == buffer.getvalue()) == (orientation == 1)
    found = Image.open(io.BytesIO(shown.data))
    assert found.size == (12, 8)
    assert found.getexif().get(ExifTags.Base.Orientation, 1) == 1


@pytest.mark.parametrize("where", ["absolute", "parent", "beside", "http"])
def test_a_strangers_table_names_no_files_of_this_machine(
    predicted: Path, photographs: Path, tmp_path: Path, where: str
) -> None:
    """Only what lies below the sources of the stamp is read and sent."""
    (tmp_path / "secret.png").write_bytes((photographs / "high.png").read_bytes())
    urls = {
        "absolute": str(tmp_path / "secret.png"),
        "parent": f"{photographs}/../{tmp_path.name}/secret.png",
        "beside": f"{photographs}-beside/secret.png",
        "http": "http://127.0.0.1:9/secret.png",
    }
    out = Path(shutil.copytree(predicted, tmp_path / "out"))
    table = pq.read_table(out / "scores.parquet")
    row = table["image"].to_pylist().index("high.png")
    named = table["url"].to_pylist()
    named[row] = urls[where]
    hostile = table.set_column(table.schema.get_field_index("url"), "url", pa.array(named, pa.string()))
    pq.write_table(hostile, out / "scores.parquet")
    results = open_results(str(out))
    with pytest.raises(UserError, match="not below the sources of this prediction, so it is not read"):
        results.picture(row)
    assert results.picture(row + 1)
