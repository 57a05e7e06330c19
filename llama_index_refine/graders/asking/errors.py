"""What an error of an LLM client says, whatever client, server or provider it comes from.

Clients differ and may not be installed, so an error is read by what it carries: a status, a body, headers, the names of
its classes. Its texts are matched and never repeated, because servers echo keys and documents in them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

# Bodies are strangers' data: neither deep nor large ones are read to the end.
_DEPTH = 8
_ENTRIES = 400
_TEXT = 600

_CODE_KEYS = frozenset(
    [
        "code",
        "type",
        "error_type",
        "status",
        "reason",
        "errorcode",
        "error_code",
        "__type",
        "limit_source",
        "quotaid",
        "quota_limit",
        "block_reason",
    ]
)
_TEXT_KEYS = frozenset(
    ["message", "msg", "detail", "error", "raw", "error_message", "errormessage", "title", "developer_message"]
)
_PARAMETER_KEYS = frozenset({"param", "loc", "field", "parameter"})
_STATUS_KEYS = frozenset({"code", "status", "statuscode", "status_code", "httpstatuscode", "http_code"})
# What stands here is the request, with the document in it.
_ECHO_KEYS = frozenset({"input", "ctx", "flagged_input", "failed_generation", "request", "prompt", "messages"})

_NOT_A_CODE = re.compile(r"[^0-9a-z]+")
_PARAMETER = re.compile(r"[a-z][a-z_]{2,39}", re.IGNORECASE)
_DURATION = re.compile(r"(?:(?P<h>[\d.]+)h)?(?:(?P<m>[\d.]+)m(?!s))?(?:(?P<s>[\d.]+)s)?(?:(?P<ms>[\d.]+)ms)?")
_WAIT_TEXT = re.compile(
    r"(?:try again|retry|reset|wait)[^.\d]{0,40}?(?P<number>\d[\d.]{0,18})\s*"
    r"(?P<unit>ms|milliseconds?|s\b|sec\w*|m\b|m(?=\d)|min\w*|h\b|hours?)(?P<rest>\s?\d[\d.]{0,18}s)?",
)


@dataclass
class Said:
    """What an error says.

    :param status: the HTTP status it stands for, None where it stands for none.
    :param codes: its codes, types and reasons and the names of its classes, as bare lower-case letters and digits.
    :param parameters: the parameters of the request that it names as such, lower case.
    :param text: its messages, lower case, cut.
    :param wait: the seconds that the server asked to wait, at least 0; None where it did not ask.
    """

    status: int | None = None
    codes: set[str] = field(default_factory=set)
    parameters: set[str] = field(default_factory=set)
    text: str = ""
    wait: float | None = None


class ServerError(Exception):
    """An error object in the place of an answer, under a status of success.

    :param body: what came.
    """

    def __init__(self, body: Any) -> None:
        super().__init__("the LLM server answered with an error")
        self.body = body


def chain(error: BaseException) -> Iterator[BaseException]:
    """Go from an error to its causes, each once."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(seen) < _ENTRIES:
        yield link
        seen.add(id(link))
        link = link.__cause__ or link.__context__


def code(word: str) -> str:
    """Bring a code to its bare form: `insufficient_quota`, `InsufficientQuota` and `insufficient-quota` are one."""
    return _NOT_A_CODE.sub("", word.casefold())


def read(error: BaseException) -> Said:
    """Read what an error says; never raises.

    :param error: what a client raised.
    :return: all of it that is known, from the first of its causes that carries a status or a body.
    """
    said = Said()
    links = list(chain(error))
    for link in links:
        said.codes |= {code(kind.__name__) for kind in type(link).__mro__ if kind.__module__ != "builtins"}
    speaker = next((link for link in links if _status(link) is not None or _bodies(link)), None)
    if speaker is None:
        said.text = _string(links[0]).casefold()[:_TEXT]
        return said
    said.status = _status(speaker)
    reading = _Reading(said)
    bodies = _bodies(speaker)
    for body in bodies:
        reading.walk(body)
    if not reading.texts:
        reading.texts.append(_string(speaker))
    said.text = " \n ".join(text[:_TEXT] for text in reading.texts[:12]).casefold()
    asked = _asked_in_headers(speaker)
    said.wait = next((wait for wait in (asked, said.wait, _asked_in_text(said.text)) if wait is not None), None)
    return said


def _string(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def _get(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name, None)
    except Exception:
        return None


def _number(value: Any) -> int | None:
    """Read a status, also from a string or an enumeration."""
    value = value if isinstance(value, (int, str)) else _get(value, "value")
    if isinstance(value, tuple) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    if isinstance(value, str):
        if not re.fullmatch(r"[1-5]\d\d", value):
            return None
        value = int(value)
    return value if 100 <= value < 600 else None


def _status(error: BaseException) -> int | None:
    response = _get(error, "response")
    places = ((error, "status_code"), (response, "status_code"), (error, "status"), (error, "code"))
    found = (value for owner, name in places if isinstance(value := _number(_get(owner, name)), int))
    # Under a status of success it is the body that says what went wrong.
    status = next((status for status in found if status >= 400), None)
    if status is None and isinstance(response, Mapping):
        metadata = response.get("ResponseMetadata")
        status = _number(metadata.get("HTTPStatusCode")) if isinstance(metadata, Mapping) else None
    return status


def _bodies(error: BaseException) -> list[Any]:
    """Find what the server sent: parsed by the client, or in the response."""
    given = [_get(error, name) for name in ("body", "details", "json_body", "response_body")]
    response = _get(error, "response")
    given.append(response if isinstance(response, Mapping) else None)
    parsed = [parsed for body in given if (parsed := _parsed(body)) is not None]
    if not parsed and response is not None and not isinstance(response, Mapping):
        text = _parsed(_get(response, "text"))
        parsed = [text] if text is not None else []
    return parsed


def _parsed(value: Any) -> Any:
    """Parse JSON in a string. Anything that is neither that nor data is nothing."""
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value[: 100 * _TEXT]).decode(errors="replace")
    if isinstance(value, str):
        start = value.lstrip()[:1]
        try:
            return json.loads(value) if start in ("{", "[") else (value or None)
        except (ValueError, RecursionError):
            return value
    return value if isinstance(value, (Mapping, list, tuple)) and value else None


class _Reading:
    """One walk through a body, of whatever form."""

    def __init__(self, said: Said) -> None:
        self._said = said
        self._left = _ENTRIES
        self.texts: list[str] = []

    def walk(self, value: Any, key: str = "message", depth: int = 0) -> None:
        self._left -= 1
        if self._left < 0 or depth > _DEPTH or key in _ECHO_KEYS:
            return
        if isinstance(value, Mapping):
            for name, inner in value.items():
                self._entry(str(name).casefold(), inner, depth)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self.walk(item, key, depth + 1)
        elif isinstance(value, str) and key in _TEXT_KEYS:
            parsed = _parsed(value)
            if isinstance(parsed, (Mapping, list)):
                self.walk(parsed, key, depth + 1)
            else:
                self.texts.append(value)

    def _entry(self, key: str, value: Any, depth: int) -> None:
        if key in _STATUS_KEYS and self._said.status is None:
            self._said.status = _number(value)
        if key in _CODE_KEYS and isinstance(value, (str, int)) and not isinstance(value, bool):
            self._said.codes.add(code(str(value)[:100]))
        if key in _PARAMETER_KEYS:
            named = value if isinstance(value, (list, tuple)) else [value]
            self._said.parameters |= {
                name.casefold() for name in named if isinstance(name, str) and _PARAMETER.fullmatch(name)
            }
            return
        if key in ("retrydelay", "quotaresetdelay", "retry_after", "retry_after_ms", "retry_after_seconds"):
            wait = _seconds(value, milliseconds=key.endswith("_ms"))
            self._said.wait = wait if self._said.wait is None else self._said.wait
        elif key != "responsemetadata":
            self.walk(value, key, depth + 1)


def _seconds(value: Any, milliseconds: bool = False) -> float | None:
    """Read a duration: 3, "0.5", "34.07s", "1m2s", a date; at least 0, None where it is none of these."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and len(value) < 100:
        read = _from_string(value.strip())
        if read is None:
            return None
        seconds = read
    else:
        return None
    if seconds != seconds:
        return None
    return max(0.0, seconds / 1000 if milliseconds else seconds)


def _from_string(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        pass
    match = _DURATION.fullmatch(value)
    try:
        if match and any(match.groupdict().values()):
            scale = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
            return sum(float(number) * scale[unit] for unit, number in match.groupdict().items() if number)
        return parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None


def _asked_in_headers(error: BaseException) -> float | None:
    response = _get(error, "response")
    headers: Any = _get(response, "headers") or _get(error, "headers")
    if isinstance(response, Mapping):
        metadata = response.get("ResponseMetadata")
        headers = metadata.get("HTTPHeaders") if isinstance(metadata, Mapping) else None
    if not hasattr(headers, "get"):
        return None
    for name in ("retry-after-ms", "x-ms-retry-after-ms", "retry-after", "Retry-After"):
        try:
            wait = _seconds(headers.get(name), milliseconds=name.endswith("-ms"))
        except Exception:
            wait = None
        if wait is not None:
            return wait
    return None


def _asked_in_text(text: str) -> float | None:
    match = _WAIT_TEXT.search(text)
    if match is None:
        return None
    unit = match["unit"]
    scale = 0.001 if unit.startswith(("ms", "milli")) else {"s": 1.0, "m": 60.0, "h": 3600.0}[unit[0]]
    rest = _seconds((match["rest"] or "0s").strip()) or 0.0
    try:
        return float(match["number"].rstrip(".")) * scale + rest
    except ValueError:
        return None
