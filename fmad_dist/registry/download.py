"""The files of a registered version as a detector folder."""

from pathlib import Path

from fmad_dist.detector.files import (
    SPEC_NAME,
    WEIGHTS_NAME,
    DetectorSpec,
    check_intact,
    locate_detector,
    naming,
    read_spec,
)
from fmad_dist.registry.register import LINEAGE_NAME
from fmad_dist.storage import Store
from fmad_dist.storage.scratch import check_empty


def download(model: str, out: Path, overwrite: bool = False) -> DetectorSpec:
    """Write `detector.json`, `weights.safetensors` and `lineage.json` of a version to the folder `out`.

    Nothing is written before all digests were checked: `detector.json` against the version's tag and its own digest,
    the weights against `detector.json`, which is written last.

    Raises:
        UserError: the registry has no such version or cannot be reached, the stored files are damaged or were changed,
            or `out` cannot be written or has files that `overwrite` does not allow to replace.
    """
    check_empty(out, "--out", overwrite)
    folder = locate_detector(model)
    with naming(model, folder):
        spec = read_spec(folder)
        check_intact(folder, spec)
    for name in (LINEAGE_NAME, WEIGHTS_NAME, SPEC_NAME):
        if (folder / name).is_file():  # versions of other tools have no lineage
            Store(out).write(name, (folder / name).read_bytes())
    return spec
