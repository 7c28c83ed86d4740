"""The exception for errors that the user can fix, and how others are quoted in it."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fmad_dist.base.secrets import without_secrets

NAMED = 10  # problems of one input that are told in full; the others are counted


class UserError(ValueError):
    """Bad input. The message is one sentence that names the file or field and the fix.

    Command lines print it without a traceback and exit with `exit_code`; everything else that escapes is a bug of ours.
    """

    exit_code = 2
    problems: "tuple[UserError, ...]" = ()  # those that this one tells together

    def __str__(self) -> str:
        return without_secrets(super().__str__())

    @classmethod
    def together(cls, problems: "Sequence[UserError]") -> "UserError":
        """One error that tells several: their number, and the first `NAMED` of them, one a line."""
        flat = tuple(one for problem in problems for one in (problem.problems or (problem,)))
        if len(flat) == 1:
            return flat[0]
        lines = [f"- {problem}" for problem in flat[:NAMED]]
        if len(flat) > NAMED:
            lines.append(f"- and {len(flat) - NAMED} more")
        whole = cls("\n".join([f"{len(flat)} problems:", *lines]))
        whole.problems = flat
        return whole


class Problems:
    """Collects what is wrong with one input, so that all of it is told together, in one `UserError`, at the end.

    with Problems() as problems:
        for item in items:
            with problems.noted():
                read(item)
    """

    def __init__(self) -> None:
        self.found: list[UserError] = []

    def __enter__(self) -> "Problems":
        return self

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the `UserError` that ends this block, and go on behind it."""
        try:
            yield
        except UserError as problem:
            self.found.append(problem)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, UserError):
            self.found.append(error)
        elif error is not None:
            return
        if self.found:
            raise UserError.together(self.found) from None


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, a limit of file sizes


def full_disk(error: OSError, where: object = None) -> UserError | None:
    """The sentence for a disk with no room, None for other errors; `where` is what was written, if it is known."""
    if error.errno not in FULL:
        return None
    named = where or error.filename or "a file that was being written (results, cache, or a temporary file in TMPDIR)"
    return UserError(f"{named}: no room ({error.strerror}); free some space, or choose another place, and start again.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a local file: its failure is a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        told = full_disk(error, path)
        raise told or UserError(f"{path}: cannot be written ({error.strerror}); check disk and permissions.") from None


def check_utf8(name: str) -> None:
    """Refuse a file name whose bytes are no UTF-8, which cannot be written into any table (UserError)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode(errors="backslashreplace").decode()
        raise UserError(f"{shown}: the bytes of this name are no UTF-8; rename the file.") from None


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first non-empty line of an exception's text, without secrets, for quoting inside a `UserError`.

    Pydantic's first line only counts its errors, so the first of them is quoted instead.
    """
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        return without_secrets(f"{key}: {problem['msg']}" if key else str(problem["msg"]))[:limit]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(lines[0] if lines else type(error).__name__)[:limit]
