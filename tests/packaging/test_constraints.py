"""constraints.txt: what is installed has one version, and files that are known by their digests."""

import re
import sysconfig
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "constraints.txt").read_text()
PINS = {
    pin["name"]: (pin["version"], re.findall(r"--hash=(\S+)", pin["hashes"]))
    for pin in re.finditer(
        r"(?m)^(?P<name>[a-z0-9._-]+)==(?P<version>[^\s;]+)[^\n]*\\\n(?P<hashes>(?:    .*\n)+)", TEXT
    )
}


def test_every_version_has_digests() -> None:
    assert len(PINS) == len(re.findall(r"(?m)^[^\s#]", TEXT)) > 200
    for name, (_, hashes) in PINS.items():
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), name
    assert "://" not in TEXT


def test_everything_that_is_asked_for_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name != project["name"]:
            assert requirement.specifier.contains(PINS[name][0], prereleases=True), name


def test_it_is_what_is_installed() -> None:
    """Of packages that are in it; pip and the like come with an environment. Others carry copies in themselves."""
    installed = distributions(path=[sysconfig.get_path("purelib")])
    found = {canonicalize_name(one.metadata["Name"]): one.version.split("+")[0] for one in installed}
    assert {"torch", "deepspeed", "mlflow"} <= found.keys() & PINS.keys()
    assert {name: found[name] for name in found.keys() & PINS.keys()} == {
        name: PINS[name][0] for name in found.keys() & PINS.keys()
    }
