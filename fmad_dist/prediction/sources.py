"""Where the images to score are: folders, tars that others wrote, and converted datasets, at any fsspec URL.

An image is a byte range of a file, whatever the source, so everything that follows reads them in one way.
"""

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise

from fmad_dist.errors import UserError, first_line
from fmad_dist.images import IMAGE_SUFFIXES
from fmad_dist.storage import Store
from fmad_dist.storage.faults import explain
from fmad_dist.stream.dataset import load_dataset
from fmad_dist.stream.foreign_tars import mask_number, refuse_packed, regular_files
from fmad_dist.stream.manifest import MANIFEST_NAME
from fmad_dist.stream.reader import SampleReader


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


def find_images(urls: Sequence[str], image_size: int) -> list[Item]:
    """All images of the sources, sorted by name. An image of a tar is called `<tar>/<member>`; with several sources the
    others' names begin with the last part of their source's URL.

    Raises:
        UserError: there are none, two have one name, a name leads out of its folder, or a source cannot be read.
    """
    found = sorted((item for url in urls for item in _images_of(url, len(urls) > 1, image_size)), key=lambda i: i.name)
    if not found:
        raise UserError(f"{', '.join(urls)}: no images found ({', '.join(IMAGE_SUFFIXES)}); check the path.")
    for item in found:
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


def _images_of(url: str, one_of_several: bool, image_size: int) -> Iterator[Item]:
    folder, _, file = url.rstrip("/").rpartition("/")
    if file.endswith(".tar"):
        yield from tar_images(Store(folder or ("/" if url.startswith("/") else ".")), file, file)
        return
    store = Store(url)
    prefix = f"{file}/" if one_of_several else ""
    if store.exists(MANIFEST_NAME):
        yield from dataset_images(url, image_size)
        return
    entries = store.entries()
    refuse_packed((entry.name for entry in entries), store)
    for entry in entries:
        if entry.name.endswith(".tar"):
            yield from tar_images(store, entry.name, f"{prefix}{entry.name}")
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield Item(f"{prefix}{entry.name}", _lasting_url(store), entry.name, 0, entry.num_bytes)


def _lasting_url(store: Store) -> str:
    """One that is the same from every working directory."""
    return store.path() if store.is_local else store.url


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
    for row, sample_id in enumerate(dataset.sample_ids):
        place = dataset.image_place(row, original)
        if place is not None:
            yield Item(sample_id, folder, place[0], place[1].offset, place[1].size)
