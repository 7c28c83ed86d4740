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


def spare_collector() -> None:
    """Collect garbage less often from now on."""
    gc.set_threshold(*THRESHOLDS)


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
    """Import DeepSpeed without the MLflow client that its autotuner, unused here, would load into every process."""
    if "mlflow" in sys.modules:
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # what Python takes for "cannot be imported"
    try:
        import deepspeed  # noqa: F401
    finally:
        del sys.modules["mlflow"]
