"""The one exception that means: the user can fix this."""

import re

# What libraries quote from requests and environments must not reach a log: key ids, secrets, tokens, signatures.
_SECRETS = re.compile(
    r"(?i)((?:x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|aws_?(?:secret)?_?access_?key(?:_?id)?"
    r"|aws_?session_?token|password|secret|token)[\"']?\s*[=:>]\s*[\"']?)([^\s&\"',;<>]+)"
)
_USERINFO = re.compile(r"(://)[^/@\s]+@")


class UserError(ValueError):
    """Bad input. The message is one sentence that names the file or field and the fix.

    Command lines print it without a traceback and exit with `exit_code`; everything else that escapes is a bug of ours.
    """

    exit_code = 2


def without_secrets(text: str) -> str:
    """The text with values that look like credentials replaced by `***`."""
    return _USERINFO.sub(r"\1***@", _SECRETS.sub(r"\1***", text))


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first non-empty line of an exception's text, without secrets, for quoting inside a `UserError`.

    Pydantic's first line only counts its errors, so the first of them is told instead.
    """
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        return without_secrets(f"{place}: {problem['msg']}" if place else str(problem["msg"]))[:limit]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(lines[0] if lines else type(error).__name__)[:limit]
