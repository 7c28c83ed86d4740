"""Counts in sentences."""


def counted(number: int, one: str, many: str) -> str:
    """`1 class`, `2 classes`."""
    return f"{number} {one if number == 1 else many}"
