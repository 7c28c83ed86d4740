"""Peak speed and memory of accelerators, from their data sheets: dense bf16, without sparsity."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`peak_flops` in operations per second, `memory` in bytes."""

    name: str
    peak_flops: float
    memory: int


ACCELERATORS = tuple(
    Accelerator(name, teraflops * 1e12, gib << 30)
    for name, teraflops, gib in (
        ("B200", 2250, 179),
        ("H200", 989, 140),
        ("GH200", 989, 94),
        ("H100", 989, 79),
        ("A100-80", 312, 79),
        ("A100", 312, 39),
        ("L40S", 362, 44),
        ("L4", 121, 22),
        ("A10", 125, 22),
    )
)


def find_accelerator(device_name: str) -> Accelerator | None:
    """By a name like "h200" or "NVIDIA A100-SXM4-80GB"; None if unknown."""
    wanted = device_name.upper()
    matching = [one for one in ACCELERATORS if all(word in wanted for word in one.name.split("-"))]
    return max(matching, key=lambda one: len(one.name)) if matching else None
