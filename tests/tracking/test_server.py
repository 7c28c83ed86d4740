"""Names of registered models and their versions, as users write them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import TrackingConfig
from fmad_dist.tracking.server import connect, version_of


@pytest.mark.parametrize("name", ["team/line3", "team:line3", "line3@champion", "", " ", "."])
def test_a_name_that_mlflow_refuses_is_refused_before_training(name: str) -> None:
    with pytest.raises(ValidationError, match="cannot be the name of a registered model; take one without / : and @"):
        TrackingConfig(model_name=name)


def test_other_names_are_taken() -> None:
    assert TrackingConfig(model_name="Line 3, v2.1_b").model_name == "Line 3, v2.1_b"


def test_the_latest_version(tmp_path: Path) -> None:
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    client.create_registered_model("x")
    with pytest.raises(UserError, match="models:/x/latest: the registry has no version of x"):
        version_of(client, "models:/x/latest")
    for _ in range(11):
        client.create_model_version("x", str(tmp_path))
    assert str(version_of(client, "models:/x/latest").version) == "11"
    assert str(version_of(client, "models:/x/2").version) == "2"
    with pytest.raises(UserError, match="models:/x/newest: not in the registry"):
        version_of(client, "models:/x/newest")
