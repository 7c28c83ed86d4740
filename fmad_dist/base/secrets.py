"""Passwords, tokens and signatures in texts and URLs: found, and left out of what is written or told."""

import re

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
