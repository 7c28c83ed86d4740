"""What went wrong with a storage: which errors are worth a retry, how long to wait, and how to say it."""

import asyncio
import errno
import random
import time
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from fmad_dist.base.console import say
from fmad_dist.base.errors import UserError, first_line, full_disk

T = TypeVar("T")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 15.0
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs", "gcsfs")
_PASSING = {errno.EIO, errno.EBUSY, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE}
_PASSING |= {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, getattr(errno, "EREMOTEIO", errno.EIO)}


class Fault(Enum):
    """Kinds of failure, by what helps against them."""

    MISSING = "missing"
    DENIED = "denied"  # credentials: renewed once, then final
    PASSING = "passing"  # the storage is away or overloaded: wait and try again
    REFUSED = "refused"  # the storage says no, and would again
    FOREIGN = "foreign"  # not the storage's fault: a bug of ours


def fault_of(error: BaseException) -> Fault:
    if isinstance(error, FileNotFoundError):
        return Fault.MISSING
    if isinstance(error, PermissionError) or type(error).__name__.endswith("CredentialsError"):
        return Fault.DENIED
    if isinstance(error, (ConnectionError, TimeoutError, asyncio.TimeoutError)):
        return Fault.PASSING
    library = type(error).__module__.split(".")[0] in _LIBRARIES
    if isinstance(error, OSError):
        return Fault.PASSING if error.errno in _PASSING or (library and error.errno is None) else Fault.REFUSED
    if not library:
        return Fault.FOREIGN
    return Fault.PASSING if _is_passing_answer(error) else Fault.REFUSED


def code_of(error: BaseException) -> str:
    """The object store's own name for what it answered, like `PreconditionFailed`; "" if it did not answer."""
    for found in (error, error.__cause__):
        answer = getattr(found, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("Error", {}).get("Code", ""))
    return ""


def told(error: BaseException) -> str:
    """One line of what went wrong: the store's answer if the error stands for one."""
    answered = error.__cause__ if code_of(error) and error.__cause__ is not None else error
    return first_line(answered)


def _is_passing_answer(error: BaseException) -> bool:
    """Of the libraries' own errors: an answer of 5xx, or no answer at all."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429
    name = type(error).__name__
    return any(word in name for word in ("Connection", "Timeout", "HTTPClient", "IncompleteRead", "Payload", "Closed"))


def with_retries(operation: Callable[[], T], where: str, patience_s: float, renew: Callable[[], None]) -> T:
    """The result of `operation`, tried again for up to `patience_s` seconds while the storage is away.

    Waits double from 0.2 to 15 seconds, each shortened by a random part so that many processes do not come back at
    once. `renew` is called after a denial, once, because credentials may have expired; the next denial is final.
    """
    start = time.monotonic()
    wait, renewed, attempts = FIRST_WAIT_S, False, 0
    while True:
        try:
            result = operation()
        except Exception as error:
            fault = fault_of(error)
            if fault is Fault.DENIED and not renewed:
                renewed = True
                renew()
                continue
            left = start + patience_s - time.monotonic()
            if fault is not Fault.PASSING or left <= 0:
                raise
            attempts += 1
            if attempts == 1:
                say(f"{where}: the storage does not answer ({told(error)}); trying again for {patience_s:.0f} s")
            time.sleep(min(left, wait * random.uniform(0.5, 1.0)))
            wait = min(2 * wait, LONGEST_WAIT_S)
            continue
        if attempts:
            say(f"{where}: the storage answers again after {time.monotonic() - start:.1f} s")
        return result


def explain(error: Exception, where: str) -> UserError | None:
    """One sentence for a failure that a user can do something about; None for a bug of ours."""
    fault = fault_of(error)
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return UserError(f"{where}: {told(error)}; a folder was expected where a file is.")
    if fault is Fault.MISSING:
        return UserError(f"{where}: not found; check the path, and the bucket's name for object storage.")
    if fault is Fault.DENIED:
        hint = "check the credentials in the environment" if "://" in where else "check the permissions"
        return UserError(f"{where}: access denied ({told(error)}); {hint}.")
    if fault is Fault.PASSING:
        hint = "check the endpoint and the network" if "://" in where else "check the disk"
        return UserError(f"{where}: the storage does not answer ({told(error)}); {hint}.")
    if isinstance(error, OSError) and (told_full := full_disk(error, where)):
        return told_full
    if fault is Fault.REFUSED:
        return UserError(f"{where}: the storage failed ({told(error)}).")
    return None
