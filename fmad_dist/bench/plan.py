"""What a benchmark run will do and roughly how long it takes, said before anything is started."""

import shlex
from dataclasses import dataclass

from fmad_dist.bench.checks import check_comparisons
from fmad_dist.bench.config import BenchConfig
from fmad_dist.bench.parts import Part, divide
from fmad_dist.bench.stages import Evaluate, Options, Stage, Train, stages_of, survey
from fmad_dist.features.backbones import Backbone
from fmad_dist.features.prepare import feature_spec
from fmad_dist.scoring.build import Trained, build_scorer
from fmad_dist.training.forecast import forecast


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
    parts = divide(config)
    check_comparisons(config, parts)
    for part in parts:
        stages = stages_of(part, config)
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
        found = forecast(stage.part.config, machines.nodes, machines.gpus, machines.gpu, machines.mfu)
        found.check()
        hours = found.hours(stage.part.config.train.steps - stage.last_step())
        return f"about {hours:.2f} h", hours
    if isinstance(stage, Evaluate):
        return f"{num_test(stage.part)} images x {_evaluations(stage.part)} network evaluations", 0.0
    return "", 0.0


def num_test(part: Part) -> int:
    counts = [one for manifest in part.manifests.values() for one in manifest.classes.values()]
    return sum(one.test_normal + one.test_anomalous for one in counts)


def _evaluations(part: Part) -> int:
    if part.taken:
        spec = part.taken_spec
        shape = (spec.network.channels, spec.network.grid, spec.network.grid)
        return build_scorer(spec.scorer, Trained(spec.objective, 0.0, shape, 1, spec.seed)).evaluations
    config = part.config
    grid = config.features.grid
    shape = (Backbone(feature_spec(config.features)).num_channels, grid, grid)
    return build_scorer(config.scorer, Trained(config.objective, 0.0, shape, 1, config.train.seed)).evaluations
