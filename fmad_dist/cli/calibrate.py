"""`fmad calibrate`: the thresholds of a model again, without training."""

import json
import math
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmad_dist.base.console import warn
from fmad_dist.base.errors import UserError
from fmad_dist.cli import options

if TYPE_CHECKING:
    from fmad_dist.detector.fit import GivenNormals
    from fmad_dist.scoring.calibration import Calibration

SPLITS = ("train", "val", "test")


def calibrate(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="New folder for the detector.")],
    data: Annotated[
        list[str] | None, typer.Option("--data", help="URL of a converted dataset, for its normal images; repeatable.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="train, val or test of --data; repeatable. Default train, val.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="URL of a folder of normal pictures, in a folder per class; repeatable."),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of all pictures of --source, instead of their folders.")
    ] = None,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(min=1e-6, max=0.499, help="Share of normal images above a threshold; default the model's."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse if a class has no images.")] = False,
    run: Annotated[
        str | None,
        typer.Option("--run", help="The run that trained the model; default what lies beside the model says it."),
    ] = None,
    max_bad: Annotated[
        int, typer.Option("--max-bad", min=0, help="Unreadable images that are no error; 0 = none.")
    ] = 10,
    overwrite: options.Overwrite = False,
    tracking_uri: options.TrackingUri = None,
    endpoint_url: options.EndpointUrl = None,
) -> None:
    """Fit the thresholds of a model to any normal images and write it to a new folder. Nothing is trained.

    Images that trained the model are left out, since they score lower than new ones. A class without images keeps its
    threshold. A test split is taken only if it is named.
    """
    splits = tuple(dict.fromkeys(split or ("train", "val")))
    if not set(splits) <= set(SPLITS):
        raise UserError(f"--split {', '.join(splits)}: choose from {', '.join(SPLITS)}.")
    if class_name and not source:
        raise UserError("--class: is of the pictures of --source; datasets know their classes.")
    found = options.find_model(model, tracking_uri)
    if out.resolve() == Path(found.folder).resolve():
        raise UserError(f"--out {out}: holds the model itself, which stays as it is; choose another folder.")

    from fmad_dist.config.run import CalibrationConfig
    from fmad_dist.prediction.normal_images import find_normals
    from fmad_dist.storage.scratch import check_empty

    check_empty(out, "--out", overwrite)
    holdout, names = _holdout(run, Path(found.folder)), found.spec.class_names
    normals = find_normals(found.spec, data or (), splits, holdout, source or (), class_name)
    empty = [name for number, name in enumerate(names) if number not in normals.class_numbers]
    if empty and strict:
        raise UserError(f"--strict: no images of {', '.join(empty)}; give some, or leave --strict out.")
    before = found.spec.calibration
    rate = false_alarm_rate or (before or CalibrationConfig()).false_alarm_rate
    after = _fit(found.folder, normals, rate, max_bad, out)
    typer.echo("\n".join(_lines(names, empty, before, after)))
    enough = math.ceil(1.0 / rate)
    few = [name for name, count in zip(names, after.num_images, strict=True) if count < enough]
    if few:
        warn(f"fewer than {enough} images of {', '.join(few)}: their thresholds assume normally distributed scores")
    typer.echo(f"{out}: thresholds at a false-alarm rate of {rate:g}")


def _fit(model: str, normals: "GivenNormals", rate: float, max_bad: int, out: Path) -> "Calibration":
    """Write the model with other thresholds to `out`; returns them. Up to `max_bad` damaged images are left out."""
    from fmad_dist.base.world import World
    from fmad_dist.detector.detector import Detector
    from fmad_dist.detector.fit import recalibrate
    from fmad_dist.stream.reader import BadSample

    bad: list[BadSample] = []

    def note_bad(new: list[BadSample]) -> None:
        bad.extend(new)
        if len(bad) > max_bad:
            raise UserError(f"{len(bad)} images cannot be read and --max-bad allows {max_bad}; {bad[0]}")

    detector = recalibrate(Detector.load(model).move_to(World().device), normals, note_bad, rate)
    detector.save(out)
    if bad:
        warn(f"{len(bad)} images were left out; {bad[0]}")
    assert detector.spec.calibration is not None
    return detector.spec.calibration


def _holdout(run: str | None, folder: Path) -> float | None:
    """`data.holdout` of the training, as `run` says it, or the run directory or lineage that the detector is in."""
    from fmad_dist.config.files import load_config, parse_config
    from fmad_dist.registry.register import LINEAGE_NAME
    from fmad_dist.training.export import checkpoints_of, find_checkpoint

    if run is not None:
        config = checkpoints_of(run)[1]
        return (config or parse_config(find_checkpoint(run, None).state.config, run)).data.holdout
    if (folder.parent / "config.yaml").is_file():
        return load_config(folder.parent / "config.yaml").data.holdout
    lineage = folder / LINEAGE_NAME
    return float(json.loads(lineage.read_text())["config"]["data"]["holdout"]) if lineage.is_file() else None


def _lines(
    names: Sequence[str], empty: Container[str], before: "Calibration | None", after: "Calibration"
) -> Iterator[str]:
    """One line per class: the images behind its threshold, the threshold, and the one before."""
    width = max(map(len, names))
    earlier = before.thresholds if before else (math.inf,) * len(names)
    for name, count, new, old in zip(names, after.num_images, after.thresholds, earlier, strict=True):
        change = "no images given, so it stays" if name in empty else f"was {old:.4g}"
        yield f"{name:<{width}} {count:>6} images, threshold {new:.4g}, {change}"
    change = "stays" if empty and before else f"was {before.global_threshold:.4g}" if before else "new"
    yield f"{'all':<{width}} {sum(after.num_images):>6} images, threshold {after.global_threshold:.4g}, {change}"
