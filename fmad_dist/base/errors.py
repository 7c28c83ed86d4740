"""The exception for errors that the user can fix, and the quoting of other errors without secrets."""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NAMED = 10  # problems of one input that are told in full; the others are counted

# What libraries quote from requests and environments must not reach a log: key ids, secrets, tokens, signatures.
_SECRETS = re.compile(
    r"(?i)((?:x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|aws_?(?:secret)?_?access_?key(?:_?id)?"
    r"|aws_?session_?token|password|secret|token)[\"']?\s*[=:>]\s*[\"']?)([^\s&\"',;<>]+)"
)
# scheme, and what stands before the last @ of the host; a password may hold a slash, and a port is none
_USERINFO = re.compile(
    r"(?i)\b([a-z][a-z0-9+.-]*)://([^\s/?#\"'<>]+|[^\s/@:?#\"'<>]*:(?!\d+(?:[/\s\"']|$))[^\s@\"'<>]*)@"
)
_PARAMETERS = re.compile(
    r"(?i)([?&;](?:[a-z0-9_.-]*(?:sig|signature|token|secret|password|passwd|pwd|credentials?|auth|sas|access[_-]?key"
    r"|access[_-]?key[_-]?id|account[_-]?key|api[_-]?key)|key)=)[^&;\s\"'<>#]+"
)
_NAMES_ARE_KEYS = ("http", "https", "s3", "s3a", "gs", "gcs")  # abfs://container@account has a name alone


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


def without_secrets(text: str) -> str:
    """The text with values that look like credentials replaced by `***`."""
    return _of_urls(_SECRETS.sub(r"\1***", text))


def holds_secret(url: str) -> bool:
    """Whether a URL has a password, a token or a signature in it."""
    return _of_urls(url) != url


def _of_urls(text: str) -> str:
    return _PARAMETERS.sub(r"\1***", _USERINFO.sub(_without_userinfo, text))


def _without_userinfo(found: re.Match[str]) -> str:
    scheme, userinfo = found.groups()
    secret = ":" in userinfo or scheme.lower() in _NAMES_ARE_KEYS
    return f"{scheme}://***@" if secret else found[0]


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
