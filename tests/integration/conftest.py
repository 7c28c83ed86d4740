import pytest
from jobs import Job, convert_tree, make_product_tree


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One converted dataset and one feature cache for all jobs of the session."""
    root = tmp_path_factory.mktemp("jobs")
    manifest = convert_tree(make_product_tree(root / "images"), root / "data")
    return Job(root, manifest)
