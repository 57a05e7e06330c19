"""What went wrong at Qdrant: whether asking again may help, and how to say it in one sentence."""

from __future__ import annotations

import json
import re
import ssl

import httpx
from grpc import RpcError, StatusCode  # type: ignore[import-untyped]
from pydantic import ValidationError
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

LONGEST = 300

# What REST says with a number, gRPC says with a word.
_STATUS = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.INTERNAL: 500,
    StatusCode.UNIMPLEMENTED: 501,
}
_HEADER = "the client's api_key or headers have a character that HTTP does not allow, such as a line break: remove it"
_UNREADABLE = "Qdrant's answer cannot be read: check that this is a Qdrant server of a version near the client's"
_TIMEOUT = (
    "Qdrant did not answer in time: give it longer with QdrantClient(timeout=...) or "
    "vector_store_kwargs={'timeout': ...}"
)
# The first row whose status and words are there says what to do. None is any status, 0 no answer.
_ADVICE: tuple[tuple[int | None, str, str], ...] = (
    (None, "client has been closed|instance is closed|closed channel", "make a new client, and a new retriever on it"),
    (0, "wrong.version.number", "the server does not speak TLS there, so use http:// or another port"),
    (0, "certificate", "set SSL_CERT_FILE to a file with the certificate that signed the server's"),
    (0, "illegal request line|http/2|disconnected without", "check whether the port is for REST or for gRPC"),
    (0, "name or service|nodename|name resolution|hostname", "check the spelling of the client's url"),
    (0, "", "check that the server runs, and that the client's url and port are right"),
    (401, "", "give the client the api_key of this server"),
    (403, "expired", "make the client with a token that has not expired"),
    (403, "", "use a key or a token that may read this collection"),
    (404, "", "check whether the collection was deleted or renamed"),
    (None, "collection .* not found", "check whether it was deleted or renamed"),
    (429, "larger than rate limiter capacity", "raise the collection's read_rate_limit to the searches of one query"),
    (429, "", "send fewer queries at a time, or raise the collection's read_rate_limit"),
    (None, "formula defaults", "points may lack it, so give it a value in FormulaQuery(formula=..., defaults=...)"),
    (400, "index required", "create a payload index for this field"),
    (400, "exact search disabled", "leave out search_params.exact, or allow it in the collection's strict mode"),
    (400, "limit exceeded|limit reached", "ask for less, or raise this limit of the collection's strict mode"),
    (400, "dimension|vector name", "the collection was replaced meanwhile: ask again"),
    (500, "read operations failed", "a node is down and consistency needs every replica: use 'quorum'"),
    (500, "", "check the server's log"),
    (502, "", "ask again later"),
    (503, "", "ask again later"),
    (504, "", "ask again later"),
)  # fmt: skip


def refused(error: Exception) -> bool:
    """Tell an answer that says what is wrong with the request from a failure on the way.

    :param error: what a client raised.
    :return: False where the same request may succeed later: no connection, no answer in time, overload, server error.
    """
    if isinstance(error, UnexpectedResponse):
        return error.status_code in (400, 404, 422)
    if isinstance(error, RpcError):
        return error.code() in (StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND)
    return not isinstance(error, ResponseHandlingException | ResourceExhaustedResponse | OSError)


def wants_another_filter(error: Exception) -> str:
    """Say what strict mode does not like about a filter.

    :param error: what a client raised.
    :return: the sentence; empty where it is not the filter.
    """
    told = in_a_sentence(error)
    return told if re.search("index required|condition (?:size )?limit reached", told, re.IGNORECASE) else ""


def in_a_sentence(error: Exception) -> str:
    """Say what went wrong, and what to do about it, without the client's raw text.

    :param error: what a client raised, over REST or gRPC, in local mode or Edge, or any other exception.
    :return: one line without a full stop.
    """
    source = error.source if isinstance(error, ResponseHandlingException) else None
    late = isinstance(error, RpcError) and error.code() == StatusCode.DEADLINE_EXCEEDED
    if late or isinstance(source, httpx.TimeoutException):
        return _TIMEOUT
    if isinstance(source, httpx.LocalProtocolError):
        # Its text is the key.
        return _HEADER
    if isinstance(source, ValidationError):
        return _UNREADABLE
    status, said = _answer(error)
    said = " ".join(said.split()).partition(". Help: ")[0].rstrip(".!: ").replace(". ", "; ")
    if said == "Invalid metadata":
        return _HEADER
    if len(said) > LONGEST:
        said = f"{said[: LONGEST - 4]} ..."
    if status is not None:
        said = f"Qdrant answers {status} ({said})" if status else f"Qdrant cannot be reached ({said})"
    for its_status, words, advice in _ADVICE:
        if its_status in (None, status) and re.search(words, said, re.IGNORECASE):
            return ": ".join(filter(None, [said, advice]))
    return said


def _answer(error: Exception) -> tuple[int | None, str]:
    """Return HTTP's status code and what was said; 0 where no answer came, None where nothing was sent."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code or 500, _content(error)
    if isinstance(error, ResourceExhaustedResponse):
        return 429, str(error)
    if isinstance(error, ResponseHandlingException):
        cause = _cause(error.source)
        return 0, str(cause) or type(cause).__name__
    if isinstance(error, RpcError):
        # The addresses that were tried say less than what came of the last.
        said = re.split("last error: (?:[A-Z]+: )?", error.details() or error.code().name)[-1]
        return _STATUS.get(error.code(), 0), said
    # Local mode and Edge raise what has no name to tell.
    plain = type(error) in (Exception, ValueError) and re.search(r"\w", str(error))
    return None, str(error) if plain else f"{type(error).__name__}: {error}"


def _content(error: UnexpectedResponse) -> str:
    """Return what Qdrant says in its JSON; of what stands before it, as a proxy's page, the status line."""
    text = error.content.decode(errors="replace")
    try:
        said = json.loads(text)["status"]["error"]
    except (ValueError, KeyError, TypeError):
        said = text if text.strip() and not text.lstrip().startswith(("<", "{")) else error.reason_phrase
    return str(said).strip() or "no reason given"


def _cause(error: BaseException) -> BaseException:
    """Return what lies behind the errors of two HTTP libraries."""
    while not isinstance(error, ssl.SSLError) and (behind := error.__cause__ or error.__context__):
        error = behind
    return error
