"""The one exception that means: the user can fix this."""


class UserError(ValueError):
    """Bad input. The message is one sentence that names the file or field and the fix.

    Command lines print it without a traceback and exit with code 2; everything else that escapes is a bug of ours.
    """


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first non-empty line of an exception's text, for quoting inside a `UserError`.

    Pydantic's first line only counts its errors, so the first of them is told instead.
    """
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        return (f"{place}: {problem['msg']}" if place else str(problem["msg"]))[:limit]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:limit]
