"""A detector on disk: `detector.json` and `weights.safetensors`, in a folder, at a URL or in the registry.

Nothing is unpickled, so reading files of strangers runs no code of theirs; the scorer that they name must be installed
here. Two digests inside `detector.json`, of the rest of it and of the weights, tell damage and files of two detectors;
they are no help against somebody who may write both files. Against that a registered version has the digests of all
its files among its tags, in another place.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.config.protocol import Protocol
from fmad_dist.config.run import FeatureConfig, ObjectiveConfig, ScoringPrecision
from fmad_dist.config.scorers import AnyScorer
from fmad_dist.networks.build import NetworkSpec
from fmad_dist.scoring.calibration import Calibration
from fmad_dist.storage import Store
from fmad_dist.storage.scratch import passing_folder
from fmad_dist.tracking.registered_files import download_model

SPEC_NAME = "detector.json"
WEIGHTS_NAME = "weights.safetensors"
FORMAT: Final = "fmad-detector/3"


class DetectorSpec(BaseModel):
    """Everything about a detector but its tensors: the content of `detector.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["fmad-detector/3"] = FORMAT
    features: FeatureConfig
    backbone_digest: str
    network: NetworkSpec
    objective: ObjectiveConfig = ObjectiveConfig()
    coupling_strength: float = 0.0  # a of the training, -E<e, x> / E|x|^2
    scorer: AnyScorer
    precision: ScoringPrecision = "fp32"  # of the network and its weights
    protocol: Protocol
    seed: int
    class_names: tuple[str, ...]
    manifest_digests: dict[str, str]  # dataset name -> digest of the manifest it was trained on
    licences: dict[str, str]  # dataset name -> licence of the training data
    train_step: int
    calibration: Calibration | None = None
    weights_sha256: str = ""  # of weights.safetensors; set when the detector is saved
    spec_sha256: str = ""  # of everything above; set when the detector is saved


def write_detector(folder: Path, spec: DetectorSpec, tensors: Mapping[str, Tensor]) -> None:
    """Write both files; `detector.json` comes last and is replaced atomically."""
    from safetensors.torch import save

    store = Store(folder)
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    tree = spec.model_copy(update={"weights_sha256": hashlib.sha256(data).hexdigest()}).model_dump(mode="json")
    store.write(WEIGHTS_NAME, data)
    store.write(SPEC_NAME, json.dumps(tree | {"spec_sha256": _digest(tree)}, indent=1).encode())


def read_spec(folder: Path) -> DetectorSpec:
    """The content of `detector.json`.

    Raises:
        UserError: it is damaged, was changed or is of another version.
    """
    path = folder / SPEC_NAME
    try:
        data = path.read_bytes()
        tree = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable detector ({first_line(error)}).") from None
    found = tree.get("format", FORMAT) if isinstance(tree, dict) else FORMAT
    if found != FORMAT:
        raise UserError(
            f"{path}: its format is {found}, this version reads {FORMAT}; make it again with "
            "`fmad export --run DIR --out FOLDER`."
        )
    try:
        spec = DetectorSpec.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{path}: not a readable detector ({first_line(error)}).") from None
    if _digest(tree) != spec.spec_sha256:
        raise UserError(f"{path}: changed after it was written; export the detector again.")
    return spec


def _digest(tree: dict[str, Any]) -> str:
    rest = {key: value for key, value in tree.items() if key != "spec_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_weights(path: Path, sha256: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a detector with the names and shapes of `wanted`.

    Raises:
        UserError: they are damaged, are those of another detector, or this is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable weights ({first_line(error)}); export the detector again.") from None
    bad = _misfits(tensors, wanted)
    if bad:
        raise UserError(
            f"{path}: its tensors do not fit {SPEC_NAME} (first: {bad[0]}); the folder mixes two detectors."
        )
    _check_digest(path, sha256)
    return tensors


def check_intact(folder: Path, spec: DetectorSpec) -> None:
    """Check the digest of the weights without loading them.

    Raises:
        UserError: the weights are not there, or not those that `detector.json` was written with.
    """
    path = folder / WEIGHTS_NAME
    try:
        _check_digest(path, spec.weights_sha256)
    except OSError as error:
        raise UserError(f"{path}: not readable weights ({first_line(error)}); export the detector again.") from None


def _check_digest(path: Path, sha256: str) -> None:
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise UserError(f"{path}: changed after it was written; export the detector again.")


def _misfits(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    names: Iterable[str] = sorted(tensors.keys() | wanted.keys())
    return [n for n in names if n not in tensors or n not in wanted or tensors[n].shape != wanted[n].shape]


def locate_detector(source: str) -> Path:
    """The local folder that holds `detector.json`, after a download where `source` is a URL or in the registry.

    Raises:
        UserError: nothing is there, or it is not what was registered.
    """
    if source.startswith(("models:", "runs:")):
        return _registered(source)
    if "://" in source:
        return _fetched(source)
    for folder in (Path(source), Path(source) / "detector"):
        if (folder / SPEC_NAME).is_file():
            return folder
    raise _nothing(source)


def _registered(uri: str) -> Path:
    found = sorted(download_model(uri).rglob(SPEC_NAME))
    if not found:
        raise UserError(f"{uri}: this registered model was not made by fmad (no {SPEC_NAME} in it).")
    return found[0].parent


def _fetched(url: str) -> Path:
    store = next((s for s in (Store(url), Store(url).child("detector")) if s.exists(SPEC_NAME)), None)
    if store is None:
        raise _nothing(url)
    if store.is_local:
        return Path(store.path())
    folder = passing_folder("fmad-detector-")
    for name in (SPEC_NAME, WEIGHTS_NAME):
        if store.exists(name):  # what is missing is said where it is read
            (folder / name).write_bytes(store.read(name))
    return folder


def _nothing(source: str) -> UserError:
    return UserError(
        f"{source}: no detector here (no {SPEC_NAME}); give a run directory of a finished training, a detector folder, "
        "its URL or a URI like models:/fmad@candidate."
    )


@contextmanager
def naming(source: str, folder: Path) -> Iterator[None]:
    """Errors about the files of a download name its source."""
    try:
        yield
    except UserError as error:
        if ":/" not in source:
            raise
        raise UserError(str(error).replace(str(folder), source.rstrip("/"))) from None
