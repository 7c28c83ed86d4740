"""Write the results, tables and report of an evaluation from its state: when it ends, and again without scoring."""

from collections.abc import Mapping
from pathlib import Path

from fmad_dist.base.console import warn
from fmad_dist.base.errors import UserError
from fmad_dist.jobs.speed import SPEED_NAME, read_speed
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.results import Results
from fmad_dist.metrics.state import EvaluationState
from fmad_dist.metrics.wire import decode_state
from fmad_dist.report.html import REPORT_NAME, write_report
from fmad_dist.report.result_files import write_results
from fmad_dist.report.tables import write_tables
from fmad_dist.storage import Store
from fmad_dist.storage.stamp import changed_files, read_stamp, write_stamp

STATE_NAME = "state.safetensors"  # everything that was counted; evaluations can be joined from it without scoring again
SETTINGS_NAME = "settings.json"  # of the detector, for the report
KEPT_FILES = (STATE_NAME, SETTINGS_NAME)  # beside EVALUATION_FILES
OUTPUTS = ("Maps", "TIFFs")  # facts of the stamp that are not in the report: where else something was written


def write_results_and_report(out: Path, state: EvaluationState, results: Results, facts: Mapping[str, str]) -> None:
    """Write EVALUATION_FILES into the folder `out`, which has speed.json and the detector's settings already."""
    store = Store(out)
    settings = store.read(SETTINGS_NAME).decode() if store.exists(SETTINGS_NAME) else ""
    write_results(results, out)
    write_tables(results, out)
    write_report(
        results,
        state,
        out / REPORT_NAME,
        title="fmad evaluation",
        facts=dict(facts),
        configuration=settings,
        speed=read_speed(out),
    )


def report_again(out: Path) -> None:
    """Write the results, tables and report of a finished evaluation again from its state, and stamp them.

    Raises:
        UserError: there is no finished evaluation, it is of another version, or what is not written again was changed.
    """
    store = Store(out)
    stamp = read_stamp(store)
    if stamp is None or STATE_NAME not in stamp.files:
        raise UserError(f"{out}: holds no finished evaluation (no stamp with {STATE_NAME}); give the --out of one.")
    changed = [name for name in changed_files(store, stamp) if name in (*KEPT_FILES, SPEED_NAME)]
    if changed:
        raise UserError(f"{out / changed[0]}: changed after it was written, or is missing; evaluate again.")
    if SETTINGS_NAME not in stamp.files:
        warn(f"{out}: was evaluated by an earlier version of fmad; its report has no settings of the detector any more")
    state = decode_state(store.read(STATE_NAME))
    facts = {name: text for name, text in stamp.facts.items() if name not in OUTPUTS}
    write_results_and_report(out, state, compute_results(state), facts)
    write_stamp(store, stamp.key, stamp.facts, tuple(stamp.files))
