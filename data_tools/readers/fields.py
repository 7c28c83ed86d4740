"""What is wrong in a JSON file of a benchmark, in words."""

from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """The place and the reason of the first problem, on one line."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "the whole file"
    return f"{place} is wrong ({first['msg']})".replace("\n", " ")
