from pathlib import Path

import pytest

from tests.integration.jobs import Job, convert_tree, make_product_tree, train


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One converted dataset and one feature cache for all jobs of the session."""
    root = tmp_path_factory.mktemp("jobs")
    manifest = convert_tree(make_product_tree(root / "images"), root / "data")
    return Job(root, manifest)


@pytest.fixture(scope="session")
def zero2(job: Job) -> Path:
    """The reference: ZeRO-2 on two processes, six steps without interruption, logged to a real MLflow store."""
    train(job, "zero2", 2, "tracking.mlflow=true", TORCH_EXTENSIONS_DIR=str(job.root / "compiled"))
    return job.run("zero2")
