"""The configuration of a whole benchmark run: what to train, on which benchmarks, beside which peers.

    run: {config: base.yaml, train: {steps: 30000}}     a run's file, and what replaces its values
    benchmarks:
      visa: {manifests: [s3://bucket/visa], run: {data: {temperature: 2}}}

It is read like the configuration of a run: YAML, then dotted overrides, and an unknown key names the nearest valid one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from fmad_dist.config.files import find_config, merge_trees, override_all, parse_config, read_tree, validated
from fmad_dist.config.run import RunConfig, Section

Tree = dict[str, Any]
SET_HERE = {"name": "benchmarks", "output": "out", "data.manifests": "benchmarks.NAME.manifests"}


class Benchmark(Section):
    manifests: tuple[str, ...] = Field(min_length=1, description="URLs of converted datasets")
    model: str | None = Field(
        None, description="evaluate this model and train none: a run directory, a detector folder or a models:/ URI"
    )
    run: Tree = Field({}, description="sections of the run's configuration that differ on this benchmark")


class BenchConfig(Section):
    """Everything that defines a benchmark run."""

    title: str = Field("fmad benchmarks", description="heading of the report")
    out: str = Field("bench", description="folder of everything that is made; all nodes must share it")
    mode: Literal["per_benchmark", "one_model"] = Field(
        "per_benchmark", description="one model for all classes of each benchmark, or one for all classes of all"
    )
    run: Tree = Field(
        {}, description="the trainings' configuration: config = a file beside this one or a shipped one; sections over"
    )
    model: str | None = Field(None, description="mode one_model: evaluate this model and train none")
    benchmarks: dict[str, Benchmark] = Field(min_length=1, description="the benchmarks by name")
    scorers: str = Field(
        "own", description="scorers that stand beside the peers, as in fmad compare; own = the one of the run"
    )
    peers: str = Field("", description="methods of others, trained on the same features, as in fmad compare")

    @model_validator(mode="after")
    def _check(self) -> "BenchConfig":
        for name, benchmark in self.benchmarks.items():
            if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
                raise ValueError(f"benchmarks: {name!r} becomes a folder; use letters, digits, - and _")
            if self.mode == "one_model" and (benchmark.model or benchmark.run):
                raise ValueError(f"benchmarks.{name}: mode one_model has one model; set `model` or `run` of the whole")
            _check_free(benchmark.run, f"benchmarks.{name}.run")
        _check_free(self.run, "run")
        if self.mode == "per_benchmark" and self.model:
            raise ValueError("model: belongs to mode one_model; set benchmarks.NAME.model")
        return self

    @property
    def takes_models(self) -> bool:
        return self.model is not None or any(one.model for one in self.benchmarks.values())

    @property
    def compares(self) -> bool:
        """Whether there is anything beside the model's own evaluation."""
        return bool(self.peers.strip()) or self.scorers.strip() != "own"

    def run_config(self, part: str, manifests: Sequence[str], over: Tree) -> RunConfig:
        """The configuration of one training, not yet with the name and folder of its run; where there are several
        trainings, each has a registered model of its own.

        Raises:
            UserError: a key or value is not valid.
        """
        base = parse_config(self.run, source="run")
        own: Tree = {"data": {"manifests": list(manifests)}}
        if self.mode == "per_benchmark":
            own["tracking"] = {"model_name": f"{base.tracking.model_name}-{part}"}
        return parse_config(merge_trees(merge_trees(self.run, own), over), source=f"run of {part}")


def load_bench(path: str | Path, overrides: Sequence[str] = ()) -> BenchConfig:
    """Read a YAML file and apply `section.key=value` overrides; a run's file is put in the place that names it.

    Raises:
        UserError: a file cannot be read, a key is unknown, or a value has the wrong type.
    """
    tree = read_tree(path)
    over = [text for text in overrides if text.startswith("run.") and not text.startswith("run.config=")]
    override_all(tree, [text for text in overrides if text not in over])
    run = tree.setdefault("run", {})
    if isinstance(run, dict) and "config" in run:
        base = read_tree(find_config(str(run.pop("config")), folder=find_config(path).parent))
        for key in SET_HERE:  # a file that says what one run is called and reads may be the base of many
            _drop(base, key)
        tree["run"] = merge_trees(base, run)
    if isinstance(run, dict):
        override_all(tree["run"], [text.removeprefix("run.") for text in over])
    return validated(BenchConfig, tree, str(path))


def _check_free(tree: Tree, place: str) -> None:
    for key, instead in SET_HERE.items():
        if _holds(tree, key):
            raise ValueError(f"{place}.{key}: the bench sets it itself; use `{instead}`")


def _holds(tree: Tree, key: str) -> bool:
    section, _, last = key.rpartition(".")
    inner = tree.get(section, {}) if section else tree
    return isinstance(inner, dict) and last in inner


def _drop(tree: Tree, key: str) -> None:
    if _holds(tree, key):
        section, _, last = key.rpartition(".")
        (tree[section] if section else tree).pop(last)
