"""The models of a benchmark run, each trained or taken from elsewhere, with the benchmarks it is evaluated on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fmad_dist.base.errors import UserError
from fmad_dist.bench.config import BenchConfig, Tree
from fmad_dist.config.files import dump_config, parse_config
from fmad_dist.config.run import RunConfig
from fmad_dist.detector.files import SPEC_NAME, DetectorSpec, locate_detector, read_spec
from fmad_dist.storage import Store, use_endpoint
from fmad_dist.stream.manifest import Manifest, load_manifest
from fmad_dist.training.fingerprint import training_fingerprint

WHOLE = "all"  # the name of the only model of mode one_model


@dataclass(frozen=True)
class BenchModel:
    """`manifests` are those of its datasets by name; `taken` is a model that is not trained here.

    The name of its run has a digest of all that the weights depend on, so the same configuration finds a killed
    training again, and another configuration trains beside it.
    """

    name: str
    root: Path
    config: RunConfig
    manifests: Mapping[str, Manifest]
    taken: str | None = None

    @property
    def digests(self) -> dict[str, str]:
        return _digests(self.manifests)

    @property
    def uri(self) -> str:
        """What `--model` takes."""
        return self.taken or str(self.config.run_dir)

    @property
    def config_file(self) -> Path:
        """The resolved configuration of its training, for `fmad train --config` here or on many nodes."""
        return self.root / "configs" / f"{self.config.name}.yaml"

    def write_config(self) -> None:
        Store(self.config_file.parent).write(self.config_file.name, dump_config(self.config).encode())

    @cached_property
    def taken_spec(self) -> DetectorSpec:
        """That of the model that is taken.

        Raises:
            UserError: it is not there.
        """
        assert self.taken is not None
        return read_spec(locate_detector(self.taken))

    @property
    def settings(self) -> DetectorSpec | RunConfig:
        """What says features, objective, scorer and protocol of the model, trained or not."""
        return self.taken_spec if self.taken else self.config

    def spec(self) -> DetectorSpec | None:
        """That of the model; None while it is not trained.

        Raises:
            UserError: the detector is damaged, or the model that is taken is not there.
        """
        if self.taken is not None:
            return self.taken_spec
        folder = self.config.run_dir / "detector"
        return read_spec(folder) if (folder / SPEC_NAME).is_file() else None


def models_of(config: BenchConfig) -> list[BenchModel]:
    """The models, in the order of the configuration.

    Raises:
        UserError: a manifest cannot be read, two hold a dataset of one name, or a run's configuration is not valid.
    """
    use_endpoint(parse_config(config.run, source="run").data.endpoint_url)
    manifests = _manifests(config)
    if config.mode == "one_model":
        urls = tuple(url for one in config.benchmarks.values() for url in one.manifests)
        every = {name: manifest for own in manifests.values() for name, manifest in own.items()}
        return [_model(config, WHOLE, urls, every, {}, config.model)]
    models = [
        _model(config, name, one.manifests, manifests[name], one.run, one.model)
        for name, one in config.benchmarks.items()
    ]
    _check_protocols(models)
    return models


def _model(
    config: BenchConfig,
    name: str,
    urls: tuple[str, ...],
    manifests: Mapping[str, Manifest],
    over: Tree,
    taken: str | None,
) -> BenchModel:
    root = Path(config.out)
    run = config.run_config(name, urls, over)
    fingerprint = training_fingerprint(run, _digests(manifests))
    named = run.model_copy(update={"name": f"{name}-{fingerprint[:8]}", "output": str(root / "runs")})
    return BenchModel(name, root, named, manifests, taken)


def _digests(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    return {name: manifest.digest for name, manifest in sorted(manifests.items())}


def _manifests(config: BenchConfig) -> dict[str, dict[str, Manifest]]:
    """Benchmark -> dataset -> its manifest."""
    found: dict[str, dict[str, Manifest]] = {}
    owner: dict[str, str] = {}
    for name, benchmark in config.benchmarks.items():
        found[name] = {}
        for url in benchmark.manifests:
            manifest = load_manifest(url)
            first = owner.setdefault(manifest.dataset, name)
            if first != name or manifest.dataset in found[name]:
                raise UserError(f"benchmarks.{name}: {url} holds {manifest.dataset!r}, as a manifest of {first} does.")
            found[name][manifest.dataset] = manifest
    return found


def _check_protocols(models: list[BenchModel]) -> None:
    """Refuse protocols that differ or cannot be joined: the numbers of one report must be comparable."""
    first = models[0].settings.protocol
    for model in models:
        if model.settings.protocol != first:
            where = f"benchmarks.{model.name}.{'model' if model.taken else 'run.protocol'}"
            raise UserError(f"{where}: its protocol is not that of benchmarks.{models[0].name}; use one for all.")
    if first.needs_map_sum and len(models) > 1:
        raise UserError(
            f"run.protocol: {first.name} makes image scores of all test images together, so evaluations cannot "
            "be joined; use mode=one_model or another protocol."
        )
