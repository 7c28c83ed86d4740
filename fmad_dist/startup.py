"""What makes the start and the end of a process quick; benchmarks/startup has the figures.

A training process imports some 5,000 modules. Their objects live as long as the process, yet Python's garbage collector
looks at them again and again while they come, and takes them all apart when the process ends.
"""

import atexit
import gc
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

THRESHOLDS = (50_000, 20, 100)  # of the collector's generations; Python's own are 700, 10, 10
SPINS = "1000"  # what GNU OpenMP itself takes where there are more threads than cores; else 300,000


def spare_collector() -> None:
    """Collect garbage less often from now on."""
    gc.set_threshold(*THRESHOLDS)


def share_cores() -> None:
    """Let torch's threads sleep soon while they wait for each other; to be called before torch is imported.

    GNU OpenMP lets them spin for milliseconds instead, and the kernel cannot tell that from work: beside
    anything else on the same cores, a second training say, each waits for threads that wait. Whoever has chosen
    `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY` keeps it. benchmarks/training has the figures.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def end_process(code: int) -> NoReturn:
    """End this process, and leave its modules to the operating system: threads end, exit handlers run, output is
    written, as at the end of a child of `multiprocessing`."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(BrokenPipeError):  # whoever read it has left
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def import_deepspeed() -> None:
    """Import DeepSpeed without two things that only others need.

    Its autotuner would load the MLflow client into every process. On a CPU it would compile an operation for inference
    when processes meet: minutes once, and for ever if a process is killed meanwhile, since its lock stays behind.
    """
    absent = "mlflow" not in sys.modules
    if absent:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # what Python takes for "cannot be imported"
    try:
        import deepspeed.ops
    finally:
        if absent:
            del sys.modules["mlflow"]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
