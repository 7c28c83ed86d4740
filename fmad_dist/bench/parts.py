"""The parts of a benchmark run: one model each, trained or taken, with the benchmarks that it is judged on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fmad_dist.bench.config import BenchConfig, Tree
from fmad_dist.config import RunConfig
from fmad_dist.config_files import dump_config, parse_config
from fmad_dist.detector_files import SPEC_NAME, DetectorSpec, locate_detector, read_spec
from fmad_dist.errors import UserError
from fmad_dist.storage import Store, use_endpoint
from fmad_dist.stream.manifest import Manifest, load_manifest
from fmad_dist.training.fingerprint import training_fingerprint

WHOLE = "all"  # the part of mode one_model


@dataclass(frozen=True)
class Part:
    """`manifests` are those of its datasets by name; `taken` is a model that is not trained here.

    The run's name has a digest of all that its weights depend on, so a killed training is found again by the same
    configuration, and another configuration trains beside it.
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
    def model(self) -> str:
        """What `fmad evaluate --model` takes."""
        return self.taken or str(self.config.run_dir)

    @property
    def config_file(self) -> Path:
        """The resolved configuration, for `fmad train --config` and for a launcher on many nodes."""
        return self.root / "configs" / f"{self.config.name}.yaml"

    def write_config(self) -> None:
        Store(self.config_file.parent).write(self.config_file.name, dump_config(self.config).encode())

    @cached_property
    def taken_spec(self) -> DetectorSpec:
        """Raises:
        UserError: the model that is taken is not there.
        """
        assert self.taken is not None
        return read_spec(locate_detector(self.taken))

    def spec(self) -> DetectorSpec | None:
        """That of the model; None while it is not trained.

        Raises:
            UserError: the detector is damaged, or the model that is taken is not there.
        """
        if self.taken is not None:
            return self.taken_spec
        folder = self.config.run_dir / "detector"
        return read_spec(folder) if (folder / SPEC_NAME).is_file() else None


def divide(config: BenchConfig) -> list[Part]:
    """The parts, in the order of the configuration.

    Raises:
        UserError: a manifest cannot be read, two hold a dataset of one name, or a run's configuration is not valid.
    """
    use_endpoint(parse_config(config.run, source="run").data.endpoint_url)
    found = _manifests(config)
    if config.mode == "one_model":
        urls = tuple(url for one in config.benchmarks.values() for url in one.manifests)
        every = {name: manifest for own in found.values() for name, manifest in own.items()}
        return [_part(config, WHOLE, urls, every, {}, config.model)]
    parts = [
        _part(config, name, one.manifests, found[name], one.run, one.model) for name, one in config.benchmarks.items()
    ]
    _check_protocols(parts)
    return parts


def _part(
    config: BenchConfig,
    name: str,
    urls: tuple[str, ...],
    manifests: Mapping[str, Manifest],
    over: Tree,
    taken: str | None,
) -> Part:
    root = Path(config.out)
    run = config.run_config(name, urls, over)
    fingerprint = training_fingerprint(run, _digests(manifests))
    named = run.model_copy(update={"name": f"{name}-{fingerprint[:8]}", "output": str(root / "runs")})
    return Part(name, root, named, manifests, taken)


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
            if manifest.dataset in owner:
                first = owner[manifest.dataset]
                raise UserError(f"benchmarks.{name}: {url} holds {manifest.dataset!r}, as a manifest of {first} does.")
            owner[manifest.dataset] = name
            found[name][manifest.dataset] = manifest
    return found


def _check_protocols(parts: list[Part]) -> None:
    """Numbers of one report must be comparable."""
    protocols = [part.taken_spec.protocol if part.taken else part.config.protocol for part in parts]
    for part, protocol in zip(parts, protocols, strict=True):
        if protocol != protocols[0]:
            where = f"benchmarks.{part.name}.{'model' if part.taken else 'run.protocol'}"
            raise UserError(f"{where}: its protocol is not that of benchmarks.{parts[0].name}; use one for all.")
    if protocols[0].needs_map_sum and len(parts) > 1:
        raise UserError(
            f"run.protocol: {protocols[0].name} makes image scores of all test images together, so evaluations cannot "
            "be joined; use mode=one_model or another protocol."
        )
