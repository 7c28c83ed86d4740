"""The folder of an evaluation before anything is scored: can it be written, and does it hold another evaluation?"""

from collections.abc import Mapping
from pathlib import Path

from fmad_dist.errors import UserError
from fmad_dist.storage import Store
from fmad_dist.storage.scratch import check_writable
from fmad_dist.storage.stamp import read_stamp

INPUTS = ("Weights", "Scorer", "Protocol", "Tested on")  # the facts that the key of an evaluation stands for


def prepare_out(out: Path, key: str, facts: Mapping[str, str], overwrite: bool) -> None:
    """Make the folder of the evaluation that `key` stands for and `facts` say in words. Only the main rank calls.

    Raises:
        UserError: it cannot be written, holds something else, or another finished evaluation that `overwrite` does not
            allow to replace.
    """
    check_writable(out, "--out")
    found = read_stamp(Store(out))
    if found is None or found.key == key:
        return
    if found.facts.keys().isdisjoint(INPUTS):
        raise UserError(f"{out}: holds something else than an evaluation; choose another --out.")
    if overwrite:
        return
    before = {name: found.facts.get(name, "unknown") for name in INPUTS}
    changed = [f"{name} {before[name]} instead of {facts[name]}" for name in INPUTS if before[name] != facts[name]]
    raise UserError(
        f"{out}: holds an evaluation with {' and '.join(changed) or 'other settings'}; choose another --out, or give "
        "--overwrite to replace it."
    )
