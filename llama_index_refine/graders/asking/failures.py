"""What an error of an LLM client means: whether to try again, when, and what to tell the user.

Clients differ and may not be installed, so errors are told by their status code and the names of their classes. The
messages of errors are never repeated, because servers echo keys and documents in them.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

_CONNECTION_ERRORS = frozenset(
    {
        "APIConnectionError",
        "ClientConnectionError",
        "ConnectionError",
        "ServiceUnavailable",
        "TransportError",
    }
)
_TIMEOUTS = frozenset({"APITimeoutError", "TimeoutError", "TimeoutException", "DeadlineExceeded"})
_ADVICE = {
    400: "the LLM server refused the request (HTTP 400): check the model's limits and the grader's llm_kwargs",
    401: "the LLM server refused the credentials (HTTP 401): check the api_key",
    403: "the LLM server refused the credentials (HTTP 403): check the api_key and its rights to the model",
    404: "the LLM server does not know the model or the address (HTTP 404): check the model's name and the base URL",
    429: "the LLM server's rate limit is reached (HTTP 429): lower the grader's concurrency",
}


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_a(error: BaseException, names: frozenset[str]) -> bool:
    return any(kind.__name__ in names for link in _chain(error) for kind in type(link).__mro__)


def status_of(error: BaseException) -> int | None:
    """Read the HTTP status that an error stands for, None where it stands for none."""
    response = getattr(error, "response", None)
    for owner, name in ((error, "status_code"), (response, "status_code"), (error, "status"), (error, "code")):
        status = getattr(owner, name, None)
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None


def is_timeout(error: BaseException) -> bool:
    """Whether no answer came in time."""
    return status_of(error) == 408 or _is_a(error, _TIMEOUTS)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: rate limits, server errors, timeouts, broken connections or bodies."""
    status = status_of(error)
    if status is not None:
        return status in (408, 409, 425, 429) or (status >= 500 and status != 501)
    broken_body = any(isinstance(link, json.JSONDecodeError) for link in _chain(error))
    return broken_body or is_timeout(error) or _is_a(error, _CONNECTION_ERRORS)


def is_content_filter(error: BaseException) -> bool:
    """Whether the server would not read this one text; other texts may pass."""
    text = f"{getattr(error, 'code', '')} {error}".casefold()
    return "content_filter" in text or "content management policy" in text


def is_setup_error(error: BaseException) -> bool:
    """Whether the user has to change something before any call can succeed."""
    return status_of(error) in (400, 401, 403, 404, 405, 422) and not is_content_filter(error)


def retry_after(error: BaseException) -> float | None:
    """Read the seconds the server asked to wait, at least 0; None where it did not ask."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def describe(error: BaseException) -> str:
    """Say in one sentence what went wrong and what to do, without the error's own text."""
    status = status_of(error)
    if is_content_filter(error):
        return "the LLM server's content filter refused a document"
    if is_timeout(error):
        return "the LLM did not answer in time: raise the grader's timeout or lower its concurrency"
    if status is not None:
        return _ADVICE.get(status, f"the LLM server failed (HTTP {status})")
    if is_transient(error):
        return f"no usable answer came from the LLM server ({type(error).__name__}): check its address"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"the LLM call failed ({type(error).__name__}{place})"
