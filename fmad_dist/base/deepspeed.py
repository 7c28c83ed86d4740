"""Import DeepSpeed, and check what fmad uses of its insides before it is used.

DeepSpeed documents neither the attributes that hold ZeRO's partitions nor the methods that gradients.py replaces, and
releases change them: 0.17.2 gave `average_tensor` a second argument. ZeRO-1, 2 and 3 were compared on one and two
processes, with two micro batches per step: before 0.19 they differ (ZeRO-2 of 0.17.6 and 0.18.0 adds up other
gradients) or fail beside torch 2.15 (ZeRO-1 and 2 of 0.18.9 on two processes).
"""

import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable

from fmad_dist.base.errors import UserError

OLDEST, NEWEST_TRIED = "0.19.0", "0.19.8"


def import_deepspeed() -> None:
    """Import DeepSpeed without two things that only others need.

    Its autotuner would load the MLflow client into every process. On a CPU it would compile an operation for inference
    when processes meet: minutes once, and for ever if a process is killed meanwhile, since its lock stays behind. To
    learn which of its operations could be compiled, it would start a compiler for each, a second of every process.

    Raises:
        UserError: this DeepSpeed is too old.
    """
    from packaging.version import Version

    absent = "mlflow" not in sys.modules
    if absent:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # what Python takes for "cannot be imported"
    try:
        import deepspeed.ops
    finally:
        if absent:
            del sys.modules["mlflow"]
    if Version(deepspeed.__version__) < Version(OLDEST):
        raise _not_known("is too old")
    deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # none


def check_attributes(owner: object, names: Iterable[str]) -> None:
    """Check that an object of DeepSpeed has these attributes.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise _not_known(f"{_name(owner)} has no {', '.join(missing)}")


def replace_method(owner: object, name: str, known: Iterable[str], replacement: Callable[..., object]) -> None:
    """Put `replacement` in the place of a method of one object, if the method has a signature that we know.

    `known` are parameter lists without `self` and annotations, such as "gradients, params, norm_type=2".

    Raises:
        UserError: there is no such method, or it has another signature.
    """
    check_attributes(owner, [name])
    found = _parameters(getattr(owner, name))
    if found not in known:
        raise _not_known(f"{_name(owner)}.{name} takes ({found}) instead of ({' or '.join(known)})")
    setattr(owner, name, replacement)


def _parameters(method: Callable[..., object]) -> str:
    # DeepSpeed's decorator for profiling says nothing of the method that it wraps, which is the `func` of its closure
    wrapped = inspect.getclosurevars(inspect.unwrap(method)).nonlocals.get("func", method)
    found = [one.replace(annotation=one.empty) for one in inspect.signature(wrapped).parameters.values()]
    return ", ".join(str(one) for one in found if one.name != "self")


def _name(owner: object) -> str:
    return getattr(owner, "__name__", type(owner).__name__)


def _not_known(what: str) -> UserError:
    import deepspeed

    return UserError(
        f"DeepSpeed {deepspeed.__version__}: {what}; fmad is known to work with {OLDEST} to {NEWEST_TRIED}, install one"
        " of these."
    )
