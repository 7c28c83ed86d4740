"""What a benchmark run does again and what not. Evaluation and comparison are real; a stand-in trains."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmad_dist import cli
from fmad_dist.base.errors import UserError
from fmad_dist.base.world import World
from fmad_dist.bench.config import load_bench
from fmad_dist.bench.driver import StageFailed, collect_bench, prepare_bench, run_bench
from fmad_dist.bench.stages import Options
from fmad_dist.config.files import load_config
from fmad_dist.detector.completeness import what_lacks
from fmad_dist.evaluation.evaluate import EvaluationOptions, run_evaluation
from fmad_dist.launch.commands import CommandRunner
from fmad_dist.report.result_files import read_results
from fmad_dist.scoring.calibration import Calibration
from fmad_dist.storage import Store
from fmad_dist.storage.scratch import folder_lock
from fmad_dist.stream.mixture import Mixture

MakeDetector = Callable[..., object]
RUN = {
    "data": {"workers": 0},
    "features": {"image_size": 64, "grid": 4, "taps": [1, 2]},
    "protocol": {"map_size": 32},
    "train": {"steps": 10, "global_batch": 4},
    "scorer": {"name": "inversion", "steps": 2},
}


class Stand:
    """A folder with a configuration of two benchmarks, and the commands that were started."""

    def __init__(self, root: Path, urls: Sequence[str], make_detector: MakeDetector) -> None:
        self.root, self.make_detector = root, make_detector
        self.started: list[str] = []
        self.words: list[Sequence[str]] = []
        self.fail: dict[str, int] = {}
        self.stop_in = ""
        benchmarks = {name: {"manifests": [url]} for name, url in zip(("alpha", "beta"), urls, strict=True)}
        self.path = root / "bench.yaml"
        self.path.write_text(yaml.safe_dump({"out": str(root / "out"), "benchmarks": benchmarks, "run": RUN}))
        self.out = root / "out"

    def run(self, *overrides: str) -> list[str]:
        """The stages that a start of the bench runs."""
        self.started.clear()
        run_bench(load_bench(self.path, overrides), Options())
        return list(self.started)

    def run_command(self, commands: CommandRunner, words: Sequence[str]) -> int:
        """In place of CommandRunner.run: the command in this process."""
        self.words.append(words)
        pairs = [pair for pair in itertools.pairwise([*words, ""]) if pair[0].startswith("--")]
        options = dict(pairs) | {"manifests": [value for key, value in pairs if key == "--data"]}
        part = Path(options.get("--config") or options["--out"]).stem.partition("-")[0]
        self.started.append(f"{part}: {words[0]}")
        if self.started[-1] == self.stop_in:
            commands.stopped = True
            return 75
        if code := self.fail.get(self.started[-1]):
            return code
        {"train": self.train, "evaluate": self.evaluate, "compare": self.compare}[words[0]](options)
        return 0

    def train(self, options: dict[str, Any]) -> None:
        config = load_config(options["--config"])
        mixture = Mixture.load(config.data.manifests)
        number = len(mixture.class_names)
        folder = config.run_dir / "detector"
        digests = {"manifest_digests": mixture.digests}
        assert what_lacks(config.run_dir, config, digests) is not None, "fmad train would do nothing"
        rate = config.calibration.false_alarm_rate
        calibration = Calibration((1.0,) * number, (0.5,) * number, (4,) * number, 1.0, 0.5, rate)
        seed = int(config.name[-8:], 16)  # other settings, other weights
        spec = {"scorer": config.scorer, "protocol": config.protocol, "train_step": config.train.steps, "seed": seed}
        names = {"class_names": tuple(mixture.class_names), **digests}
        self.make_detector((1.0,) * number, calibration=calibration, **spec, **names).save(folder)

    def evaluate(self, options: dict[str, Any]) -> None:
        model, out = options["--model"], Path(options["--out"])
        overwrite = "--overwrite" in options
        data = tuple(options["manifests"])
        run_evaluation(EvaluationOptions(model, data, str(out), overwrite=overwrite), World())

    def compare(self, options: dict[str, Any]) -> None:
        from fmad_dist.comparison.compare import ComparisonOptions, run_comparison

        names = ("--out", "--model", "--scorers", "--peers")
        config, overwrite = load_config(options["--config"]), "--overwrite" in options
        run_comparison(ComparisonOptions(config, *map(options.get, names), overwrite=overwrite), World())


EVERY = [f"{name}: {stage}" for name in ("alpha", "beta") for stage in ("train", "evaluate", "compare")]


@pytest.fixture
def stand(
    tiny_url: str, other_url: str, tmp_path: Path, make_detector: MakeDetector, monkeypatch: pytest.MonkeyPatch
) -> Stand:
    stand = Stand(tmp_path, (other_url, tiny_url), make_detector)
    monkeypatch.setattr(CommandRunner, "run", lambda commands, words: stand.run_command(commands, words))
    page = "fmad_dist.evaluation.report.write_report"  # what others test, and what takes the most time
    monkeypatch.setattr(page, lambda results, state, out, **words: Store(out.parent).write(out.name, b"page"))
    monkeypatch.setattr("fmad_dist.comparison.table.draw", lambda rows: b"figure")
    return stand


@pytest.mark.slow
def test_everything_once_and_then_only_what_is_missing_or_damaged(stand: Stand) -> None:
    assert stand.run("scorers=own,endpoint") == EVERY
    assert stand.run("scorers=own,endpoint") == []
    run = next((stand.out / "runs").glob("beta-*"))
    numbers = (stand.out / "bench.json").read_bytes()
    for names in (
        ("alpha/results.json", "beta/state.safetensors", "alpha/comparison.json", "detector/weights.safetensors"),
        ("alpha/scores.csv", "beta/stamp.json", "alpha/stamp.json", "detector/detector.json"),
    ):
        folders = (stand.out / "evaluations", stand.out / "evaluations", stand.out / "comparisons", run)
        files = [folder / name for folder, name in zip(folders, names, strict=True)]
        for file in files:
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        again = ["alpha: evaluate", "alpha: compare", "beta: train", "beta: evaluate"]
        assert stand.run("scorers=own,endpoint") == again
        for file in files:
            file.unlink()
        assert stand.run("scorers=own,endpoint") == again
    assert (stand.out / "bench.json").read_bytes() == numbers


@pytest.mark.slow
def test_changed_inputs_repeat_what_depends_on_them(stand: Stand, tmp_path: Path, tiny_url: str) -> None:
    assert stand.run() == [name for name in EVERY if "compare" not in name]
    assert stand.run("scorers=own,endpoint") == ["alpha: compare", "beta: compare"]
    assert stand.run("run.scorer.steps=3") == ["alpha: train", "alpha: evaluate", "beta: train", "beta: evaluate"]
    assert len(list((stand.out / "runs").glob("alpha-*"))) == 1, "another scorer is no other training"
    assert stand.run("run.scorer.steps=3", "run.train.log_every=7") == []
    steps = ["run.scorer.steps=3", "benchmarks.beta.run={train: {lr: 0.01}}"]
    assert stand.run(*steps) == ["beta: train", "beta: evaluate"]
    assert len(list((stand.out / "runs").glob("beta-*"))) == 2
    assert stand.run("run.scorer.steps=3") == ["beta: evaluate"], "the first training is still there"
    moved = shutil.copytree(tiny_url, tmp_path / "moved")
    assert stand.run("run.scorer.steps=3", f"benchmarks.beta.manifests=[{moved}]") == [], "same content, other place"


def test_the_report_says_what_the_evaluations_say(stand: Stand) -> None:
    stand.run("scorers=own,endpoint")
    body = json.loads((stand.out / "bench.json").read_text())
    own = {name: read_results(stand.out / "evaluations" / name) for name in ("alpha", "beta")}
    assert body["classes"] == own["alpha"]["classes"] | own["beta"]["classes"]
    assert body["datasets"] == own["alpha"]["datasets"] | own["beta"]["datasets"]
    for dataset, name in (("other", "alpha"), ("tiny", "beta")):
        ours, endpoint = body["compared"][dataset]
        mean = own[name]["datasets"][dataset]
        assert all(mean[metric] == value for metric, value in ours["metrics"].items())
        comparison = json.loads((stand.out / "comparisons" / name / "comparison.json").read_text())
        assert endpoint["name"] == "fmad endpoint"
        assert endpoint["metrics"] == comparison["scorers"]["endpoint"]["mean"]
    page = (stand.out / "report.html").read_text()
    for name, result in body["classes"].items():
        assert name in page
        assert f"{100 * result['image_auroc']:.1f}" in page
    assert "Model, alpha" in page


def test_one_model_for_all(stand: Stand) -> None:
    assert stand.run("mode=one_model", "scorers=own,endpoint") == ["all: train", "all: evaluate", "all: compare"]
    body = json.loads((stand.out / "bench.json").read_text())
    whole = read_results(stand.out / "evaluations/all")
    assert {key: body[key] for key in whole} == whole
    assert {name: [row["name"] for row in rows] for name, rows in body["compared"].items()} == {
        name: ["fmad, this evaluation", "fmad endpoint"] for name in ("other", "tiny")
    }


def test_a_failing_part_does_not_hold_up_the_others(stand: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    stand.fail["alpha: train"] = 76
    with pytest.raises(StageFailed, match="alpha: train failed with exit code 76") as caught:
        stand.run()
    assert caught.value.exit_code == 76
    assert stand.started == ["alpha: train", "beta: train", "beta: evaluate"]
    assert json.loads((stand.out / "bench.json").read_text())["missing"] == ["alpha: train", "alpha: evaluate"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "collect", "--config", str(stand.path)])
    assert ended.value.code == 75
    assert "over what is done; missing: alpha: train, alpha: evaluate" in capsys.readouterr().err
    (file,) = prepare_bench(load_bench(stand.path))
    stand.train({"--config": file})  # on a cluster
    stand.fail.clear()
    assert stand.run() == ["alpha: evaluate"]
    assert prepare_bench(load_bench(stand.path)) == []
    collect_bench(load_bench(stand.path))


def test_the_tracking_server_is_not_shown(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    uri = "http://user:secret@nowhere"
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "run", "--config", str(stand.path), "--processes", "2", "--tracking-uri", uri])
    assert ended.value.code == 0
    shown = "".join(capfd.readouterr()) + (stand.out / "bench.json").read_text() + str(stand.words)
    assert "secret" not in shown
    assert os.environ["MLFLOW_TRACKING_URI"] == uri


def test_a_stop_ends_it_at_once(stand: Stand) -> None:
    stand.stop_in = "alpha: evaluate"
    with pytest.raises(StageFailed, match="start the same command again") as caught:
        stand.run()
    assert caught.value.exit_code == 75
    assert stand.started == ["alpha: train", "alpha: evaluate"]
    assert not (stand.out / "report.html").exists()
    with pytest.raises(UserError, match="nothing is evaluated yet; missing: alpha: evaluate, beta: train"):
        collect_bench(load_bench(stand.path))


def test_a_model_that_is_taken_is_not_trained(stand: Stand) -> None:
    stand.run()
    model = next((stand.out / "runs").glob("beta-*"))
    taken = f"benchmarks.beta.model={model}"
    assert stand.run(taken) == []
    (stand.out / "evaluations/beta/stamp.json").unlink()
    assert stand.run(taken) == ["beta: evaluate"]
    with pytest.raises(UserError, match=r"benchmarks\.beta\.model: its protocol is not that of benchmarks.alpha"):
        stand.run(taken, "run.protocol.top_percent=3")
    with pytest.raises(UserError, match="nowhere: no detector here"):
        stand.run("benchmarks.beta.model=nowhere")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("peers=bnk", "--peers: 'bnk' is not known"),
        ("scorers=ddim", "--scorers: ddim does not fit this model"),
        ("benchmarks.beta.run={train: {global_batch: 7}}", "not a multiple of the 2 processes"),
        ("benchmarks.beta.run={features: {image_size: 128}}", "stores 64 px images"),
        ("run.protocol={name: flowad}", "makes image scores of all test images together"),
        ("out=/proc/nowhere", "/proc/nowhere: cannot be written"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(
    stand: Stand, capsys: pytest.CaptureFixture[str], override: str, expected: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "run", "--config", str(stand.path), "--processes", "2", override])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert stand.started == []


def test_two_at_once_are_refused(stand: Stand) -> None:
    with folder_lock(stand.out), pytest.raises(UserError, match="another `fmad bench` is at work here"):
        stand.run()
    assert stand.started == []


def test_benchmarks_must_not_share_a_dataset(stand: Stand, tiny_url: str) -> None:
    with pytest.raises(UserError, match=r"benchmarks.beta: .* holds 'tiny', as a manifest of alpha does"):
        stand.run(f"benchmarks.alpha.manifests=[{tiny_url}]")
