"""What a benchmark run will do, roughly how long it takes, and what would make a later stage fail and is cheap to find
out before the first one starts."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fmad_dist.bench.config import BenchConfig
from fmad_dist.bench.models import BenchModel, models_of
from fmad_dist.bench.stages import Evaluate, Options, Stage, Train, stages_of, survey
from fmad_dist.comparison.choice import check_peers, choose, choose_peers
from fmad_dist.comparison.compare import check_same_data
from fmad_dist.features.backbones import Backbone
from fmad_dist.features.prepare import feature_spec
from fmad_dist.scoring.interface import Trained, build_scorer
from fmad_dist.stream.mixture import Mixture
from fmad_dist.training.preflight import check_job, forecast


@dataclass(frozen=True, slots=True)
class Machines:
    """What the durations are estimated for: nodes x GPUs of a kind at a share of their peak speed."""

    nodes: int
    gpus: int
    gpu: str
    mfu: float


def plan_lines(config: BenchConfig, options: Options, machines: Machines) -> list[str]:
    """Every stage with its status, its cost and its command.

    Raises:
        UserError: the configuration is not valid, or a training does not fit the machines.
    """
    lines, hours, left, total = list[str](), 0.0, 0, 0
    models = models_of(config)
    check_comparisons(config, models)
    for model in models:
        stages = stages_of(model, config)
        for stage, status in zip(stages, survey(stages), strict=True):
            total += 1
            note = status.note
            if status.state != "done":
                left += 1
                cost, needs = _cost(stage, machines)
                note = "; ".join(filter(None, (note, cost)))
                hours += needs
            lines.append(f"{stage.name:28} {status.state:6} {note}".rstrip())
            if status.state != "done":
                lines.append(f"    fmad {shlex.join(stage.command(options))}")
    where = f"{machines.nodes} x {machines.gpus} {machines.gpu}"
    time = f"training about {hours:.2f} h on {where}, if data and network keep up"
    return [*lines, f"{left} of {total} stages to do; {time}"]


def _cost(stage: Stage, machines: Machines) -> tuple[str, float]:
    """In words, and hours of training."""
    if isinstance(stage, Train):
        found = forecast(stage.model.config, machines.nodes, machines.gpus, machines.gpu, machines.mfu)
        found.check()
        hours = found.hours(stage.model.config.train.steps - stage.last_step())
        return f"about {hours:.2f} h", hours
    if isinstance(stage, Evaluate):
        return f"{num_test(stage.model)} images x {_evaluations(stage.model)} network evaluations", 0.0
    return "", 0.0


def num_test(model: BenchModel) -> int:
    """Of the test images of its benchmarks."""
    counts = [one for manifest in model.manifests.values() for one in manifest.classes.values()]
    return sum(one.test_normal + one.test_anomalous for one in counts)


def _evaluations(model: BenchModel) -> int:
    """Of the network, for one image."""
    settings = model.settings
    grid = settings.features.grid
    shape = (Backbone(feature_spec(settings.features)).num_channels, grid, grid)
    return build_scorer(settings.scorer, Trained(settings.objective, 0.0, shape, 1, seed=0)).evaluations


def check_comparisons(config: BenchConfig, models: Sequence[BenchModel]) -> None:
    """Check that all scorers and peers are known and fit the models and their data.

    Raises:
        UserError: one does not.
    """
    if not config.compares:
        return
    peers = choose_peers(config.peers)
    for model in models:
        choose(config.scorers, model.settings.objective, model.settings.scorer)
        if model.taken:
            check_same_data(model.taken, model.taken_spec, model.digests, config.peers)
        check_peers(peers, Mixture.load(model.config.data.manifests), model.settings.features.taps)


def check_trainings(models: Sequence[BenchModel], processes: int) -> None:
    """Check the trainings that are not done as `fmad train` would.

    Raises:
        UserError: the first thing that would make one fail.
    """
    for model in models:
        if not model.taken and Train(model).status().state != "done":
            check_job(model.config, processes)
