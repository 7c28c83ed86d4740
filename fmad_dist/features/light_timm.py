"""Import timm without torch's compiler, more than half of what the import costs; benchmarks/startup has the figures.

timm and torchvision take `torch._dynamo` (900 modules) for one function that tells whether a device can compile and for
a decorator of models that fmad has none of. While they are imported, stand-ins take its place; afterwards it is there
for whoever compiles.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.compiler

COMPILER, FUNCTIONS = "torch._dynamo", "torch._dynamo.utils"


def import_timm() -> Any:
    """The module timm; as it would be by itself if it wants more of the compiler than the stand-ins have."""
    if COMPILER not in sys.modules and "timm" not in sys.modules:
        try:
            with _stand_ins():
                import timm
        except (ImportError, AttributeError):
            for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
                del sys.modules[name]
    import timm

    return timm


def is_compile_supported(device: Any) -> bool:
    """What torchvision asks before it compiles: answered by the compiler itself, which is imported now."""
    from torch._dynamo.utils import is_compile_supported as answer

    return bool(answer(device))


@contextmanager
def _stand_ins() -> Iterator[None]:
    package, functions, disable = ModuleType(COMPILER), ModuleType(FUNCTIONS), torch.compiler.disable
    package.__path__ = []
    functions.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    sys.modules |= {COMPILER: package, FUNCTIONS: functions}
    torch.compiler.disable = _undecorated  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compiler.disable = disable
        del sys.modules[COMPILER], sys.modules[FUNCTIONS]


def _undecorated(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return function if function is not None else lambda decorated: decorated
