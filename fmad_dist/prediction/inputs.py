"""The images to score: found in folders, in tars that others wrote and in converted datasets, at any fsspec URL; then
read and decoded by threads ahead of the network.

An image is a byte range of a file, whatever the source, so everything reads them in one way. Decoders let other threads
run, so threads are enough.
"""

import json
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import numpy as np

from fmad_dist.base.errors import Problems, UserError, check_utf8, first_line
from fmad_dist.images.codec import IMAGE_SUFFIXES, open_image, square_rgb
from fmad_dist.storage import Store
from fmad_dist.storage.faults import explain
from fmad_dist.stream.dataset import load_dataset
from fmad_dist.stream.foreign_tars import mask_number, refuse_packed, regular_files
from fmad_dist.stream.manifest import MANIFEST_NAME
from fmad_dist.stream.reader import SampleReader

S = TypeVar("S")
T = TypeVar("T")

PATIENCE_S = 300.0  # a prediction waits this long for its storage


SOURCES_FACT = "source_urls"  # of a prediction's stamp


@dataclass(frozen=True, slots=True)
class Item:
    """An image to score: its name in the results, and the bytes [start, start + num_bytes) that it takes of the file
    `file` in the folder at the URL `folder`."""

    name: str
    folder: str
    file: str
    start: int
    num_bytes: int

    @property
    def url(self) -> str:
        """Of the file that holds it."""
        return f"{self.folder}/{self.file}"


def find_images(urls: Sequence[str], image_size: int, left_out: "list[str] | None" = None) -> list[Item]:
    """All images of the sources, sorted by name. A source is a folder, a tar, one picture or a converted dataset. An
    image of a tar is called `<tar>/<member>`; with several sources the others' names begin with the last part of their
    source's URL. Files of folders that are hidden or no images are added to `left_out`.

    Raises:
        UserError: there are none, two have one name, a name leads out of its folder or is no UTF-8, or a source cannot
            be read.
    """
    left_out = [] if left_out is None else left_out
    parts = (item for url in urls for item in _images_of(url, len(urls) > 1, image_size, left_out))
    found = sorted(parts, key=lambda i: i.name)
    if not found:
        raise UserError(f"{', '.join(urls)}: no images found ({', '.join(IMAGE_SUFFIXES)}); check the path.")
    with Problems() as problems:
        for item in found:
            with problems.noted():
                check_utf8(item.name)
                _check_name(item)
    for one, other in pairwise(found):
        if one.name == other.name:
            raise UserError(
                f"{other.url}: a second image is called {other.name} (the first: {one.url}); rename one of them, or "
                "score the sources into folders of their own."
            )
    return found


def _check_name(item: Item) -> None:
    """Names become files below the folder of the results; tars and object stores can hold ones that lead elsewhere."""
    if item.name.startswith("/") or not {".", ".."}.isdisjoint(item.name.split("/")) or "\0" in item.name:
        raise UserError(
            f"{item.url}: holds an image called {item.name!r}, and pictures of that name would lie outside --out; "
            "nothing was scored, rename the image."
        )


def _images_of(url: str, one_of_several: bool, image_size: int, left_out: list[str]) -> Iterator[Item]:
    folder, _, file = url.rstrip("/").rpartition("/")
    parent = folder or ("/" if url.startswith("/") else ".")
    if file.endswith(".tar"):
        yield from tar_images(Store(parent), file, file)
        return
    if file.lower().endswith(IMAGE_SUFFIXES) and Store(parent).is_file(file):
        yield Item(file, _lasting_url(Store(parent)), file, 0, Store(parent).size(file))
        return
    store = Store(url)
    prefix = f"{file}/" if one_of_several else ""
    if store.exists(MANIFEST_NAME):
        yield from dataset_images(url, image_size)
        return
    entries = store.entries()
    refuse_packed((entry.name for entry in entries), store)
    for entry in entries:
        if any(part.startswith(".") for part in entry.name.split("/")):
            left_out.append(entry.name)  # of the system or an editor: ._a.png, .thumbs/a.png
        elif entry.name.endswith(".tar"):
            yield from tar_images(store, entry.name, f"{prefix}{entry.name}")
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield Item(f"{prefix}{entry.name}", _lasting_url(store), entry.name, 0, entry.num_bytes)
        else:
            left_out.append(entry.name)


def _lasting_url(store: Store) -> str:
    """One that is the same from every working directory."""
    return store.path() if store.is_local else store.url


def lasting_sources(urls: Sequence[str]) -> list[str]:
    """The sources of a prediction by URLs that are the same from every working directory."""
    return [_lasting_url(Store(url)) for url in urls]


def source_urls(facts: Mapping[str, str]) -> list[str]:
    """The `lasting_sources` that the stamp of a prediction names; of fmad 0.1 as they were given."""
    if SOURCES_FACT in facts:
        return list(map(str, json.loads(facts[SOURCES_FACT])))
    return lasting_sources(facts.get("sources", "").split(", ")) if facts.get("sources") else []


def is_below(url: str, sources: Sequence[str]) -> bool:
    """Whether a URL is one of the sources or lies below one; a table of a stranger can name any."""
    if not {".", ".."}.isdisjoint(url.split("/")):
        return False
    return any(url == source or url.startswith(source.rstrip("/") + "/") for source in sources)


def tar_images(store: Store, file: str, called: str) -> Iterator[Item]:
    """The images of a plain tar, without the masks beside them, called `<called>/<member>`.

    Raises:
        UserError: it is no tar, is cut or damaged, or has a link or a sparse file.
    """
    for member in tar_members(store, file):
        if _is_image(member.name):
            # what is absolute stays so, and is refused
            yield replace(member, name=member.name if member.name.startswith("/") else f"{called}/{member.name}")


def tar_members(store: Store, file: str) -> Iterator[Item]:
    """The files in a plain tar by their own names; only headers are read where the storage can seek.

    Raises:
        UserError: it is no tar, is cut or damaged, or has a link or a sparse file.
    """
    where, folder = store.url_of(file), _lasting_url(store)
    with closing(store.open(file)) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in regular_files(tar):
                    yield Item(member.name.removeprefix("./"), folder, file, member.offset_data, member.size)
                stream.seek(tar.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes damage for the end
                    raise tarfile.ReadError(f"it is cut or damaged at byte {tar.offset}")
        except tarfile.TarError as error:
            raise UserError(f"{where}: not a plain and complete tar ({first_line(error)}); replace it.") from None
        except OSError as error:
            raise explain(error, where) or error from error


def _is_image(member: str) -> bool:
    base = member.rpartition("/")[2].lower()
    return base.endswith(IMAGE_SUFFIXES) and mask_number(base.partition(".")[2]) is None


def dataset_images(url: str, image_size: int | None = None) -> Iterator[Item]:
    """All images of a converted dataset by sample id, as a detector of this size takes them; without a size as they
    were published, where that is stored.

    Raises:
        UserError: there is no dataset, or it stores nothing that gives images of this size.
    """
    dataset, folder = load_dataset(url), _lasting_url(Store(url))
    original = (
        dataset.manifest.rendition.original if image_size is None else not SampleReader(dataset, image_size).resized
    )
    for row in range(len(dataset)):
        location = dataset.image_location(row, original)
        if location is not None:
            yield Item(dataset.sample_id(row), folder, location[0], location[1].offset, location[1].size)


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image uint8 [S, S, 3] as the detector takes it, or the sentence that says why there is none."""

    item: Item
    pixels: np.ndarray | None
    error: str = ""


def load(item: Item, size: int) -> Loaded:
    """Raises:
    UserError: the storage is away or refuses; that an image is damaged or gone is its own `error` and stops nothing.
    """
    try:
        data = read_bytes(item)
    except UserError as error:
        if not _concerns_one_file(error, _store(item.folder)):
            raise
        return Loaded(item, None, str(error))
    where = item.url if item.url.endswith(item.name.rpartition("/")[2]) else f"{item.url} ({item.name})"
    try:
        return Loaded(item, np.asarray(square_rgb(open_image(data, where), size, where)))
    except UserError as error:
        return Loaded(item, None, str(error))


def read_bytes(item: Item) -> bytes:
    """Still encoded; fewer than it should have if its file was cut.

    Raises:
        UserError: the file is gone, or the storage is away or refuses.
    """
    return _store(item.folder).read_range(item.file, item.start, item.start + item.num_bytes)


@lru_cache(maxsize=64)
def _store(folder: str) -> Store:
    return Store(folder, PATIENCE_S)


def _concerns_one_file(error: UserError, store: Store) -> bool:
    """An object store denies access to everything when credentials expire, which says nothing about an image."""
    own = (FileNotFoundError, PermissionError) if store.is_local else (FileNotFoundError,)
    return isinstance(error.__cause__, own)


def read_ahead(items: Iterable[S], read: Callable[[S], T], threads: int, ahead: int) -> Iterator[T]:
    """`read(item)` of every item, in order; so many are read before they are asked for."""
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
