"""What an error of an LLM client says, whatever client, server or provider it comes from.

Clients differ and may not be installed, so an error is read by what it carries: a status, a body, headers, the names of
its classes. Its texts are matched and never repeated, because servers echo keys and documents in them; and what was
sent counts for nothing in them, in whatever spelling it comes back.
"""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any

# Bodies are strangers' data: neither deep nor large ones are read to the end.
_DEPTH = 8
_ENTRIES = 400
_TEXT = 600

_CODE_KEYS = frozenset(
    "code type error_type status reason errorcode error_code __type quotaid quota_limit block_reason".split()  # noqa: SIM905
)
_TEXT_KEYS = frozenset(
    "message msg detail error raw error_message errormessage title developer_message".split()  # noqa: SIM905
)
_PARAMETER_KEYS = frozenset({"param", "loc", "field", "parameter"})
_STATUS_KEYS = frozenset({"code", "status", "statuscode", "status_code", "httpstatuscode", "http_code"})
_WAIT_KEYS = frozenset({"retrydelay", "quotaresetdelay", "retry_after", "retry_after_ms", "retry_after_seconds"})
# Details that only a content filter gives.
_FILTER_KEYS = frozenset({"flagged_input", "content_filter_result"})
# What stands here is the request, with the document in it.
_ECHO_KEYS = frozenset("input ctx flagged_input failed_generation request prompt messages body content".split())  # noqa: SIM905

_NOT_A_CODE = re.compile(r"[^0-9a-z]+")
_PARAMETER = re.compile(r"[a-z][a-z_]{2,39}", re.IGNORECASE)
_ESCAPED = re.compile(r"\\+(?:u([0-9a-f]{4})|x([0-9a-f]{2})|[nrtbf])", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")


@dataclass
class Said:
    """What an error says.

    :param status: the HTTP status it stands for, None where it stands for none.
    :param codes: its codes, types and reasons and the names of its classes: bare lower-case letters and digits, and how
        it spells them.
    :param parameters: the parameters of the request that it names as such, lower case.
    :param text: its messages, lower case, cut.
    :param wait: the seconds that the server asked to wait, at least 0; None where it did not ask.
    :param sent: the words that were sent to the server.
    """

    status: int | None = None
    codes: dict[str, str] = field(default_factory=dict)
    parameters: set[str] = field(default_factory=set)
    text: str = ""
    wait: float | None = None
    sent: frozenset[str] = frozenset()

    def words(self, pattern: str | re.Pattern[str]) -> Iterator[re.Match[str]]:
        """Find where the server's own words, and not what was sent to it, fit a pattern."""
        return (match for match in re.finditer(pattern, self.text) if not self.is_echo(match.group()))

    def is_echo(self, text: str) -> bool:
        """Whether all words of a text were sent."""
        words = words_of(text)
        return bool(words) and words <= self.sent


class ServerError(Exception):
    """An error object in the place of an answer, under a status of success.

    :param body: what came.
    """

    def __init__(self, body: Any) -> None:
        super().__init__("the LLM server answered with an error")
        self.body = body


def words_of(text: str) -> frozenset[str]:
    """Collect a text's words, however JSON, Python or HTML has escaped it."""
    return frozenset(_WORD.findall(_unescaped(text)))


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        return chr(int(match[1] or match[2], 16)) if match[1] or match[2] else " "

    return _ESCAPED.sub(character, html.unescape(text)).casefold()


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


def read(error: BaseException, sent: frozenset[str] = frozenset()) -> Said:
    """Read what an error says; never raises.

    :param error: what a client raised.
    :param sent: the words of the question, which an error may repeat.
    :return: all of it that is known, from the first of its causes that carries a status or a body.
    """
    said = Said(sent=sent)
    links = list(chain(error))
    names = [kind.__name__ for link in links for kind in type(link).__mro__ if kind.__module__ != "builtins"]
    said.codes = {code(name): name for name in names}
    speaker = next((link for link in links if _status(link) is not None or _bodies(link)), None)
    if speaker is None:
        said.text = _string(links[0]).casefold()[:_TEXT]
        return said
    said.status = _status(speaker)
    texts: list[str] = []
    for body in _bodies(speaker):
        for key, value in islice(_leaves(body, said), _ENTRIES):
            _take(said, texts, key, value)
    said.text = " \n ".join(_unescaped(text[: 2 * _TEXT])[:_TEXT] for text in (texts or [_string(speaker)])[:12])
    asked = _asked_in_headers(speaker)
    said.wait = said.wait if asked is None else asked
    return said


def _string(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def get(owner: Any, name: str) -> Any:
    """Read an entry of a mapping or an attribute, None where there is none."""
    try:
        return owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)
    except Exception:
        return None


def _number(value: Any) -> int | None:
    """Read a status, also from a string or an enumeration."""
    value = value if (held := get(value, "value")) is None else held
    spelled = str(value[0] if isinstance(value, tuple) and value else value)
    return int(spelled) if re.fullmatch(r"[1-5]\d\d", spelled) else None


def _status(error: BaseException) -> int | None:
    places = ((error, "status_code"), (get(error, "response"), "status_code"), (error, "status"), (error, "code"))
    found = (_number(get(owner, name)) for owner, name in places)
    # Under a status of success it is the body that says what went wrong.
    return next((status for status in found if status is not None and status >= 400), None)


def _bodies(error: BaseException) -> list[Any]:
    """Find what the server sent: parsed by the client, or in the response."""
    response = get(error, "response")
    given = [get(error, name) for name in ("body", "details", "json_body", "response_body")]
    given.append(response if isinstance(response, Mapping) else None)
    parsed = [parsed for body in given if (parsed := _parsed(body)) is not None]
    text = None if parsed else _parsed(get(response, "text"))
    return parsed if text is None else [text]


def _parsed(value: Any) -> Any:
    """Parse JSON in a string. Anything that is neither that nor data is nothing."""
    if isinstance(value, str):
        try:
            return json.loads(value) if value.lstrip()[:1] in ("{", "[") else (value or None)
        except (ValueError, RecursionError):
            return value
    return value if isinstance(value, (Mapping, list, tuple)) and value else None


def _leaves(value: Any, said: Said, key: str = "message", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Go through a body, of whatever form: all names with what they name, but not what repeats the request."""
    if depth > _DEPTH or key in _ECHO_KEYS:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name).casefold(), inner
            yield from _leaves(inner, said, str(name).casefold(), depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item, said, key, depth + 1)
    elif isinstance(value, str) and key in _TEXT_KEYS and not said.is_echo(value[: 100 * _TEXT]):
        parsed = _parsed(value)
        yield from [("text", value)] if isinstance(parsed, str) else _leaves(parsed, said, key, depth + 1)


def _take(said: Said, texts: list[str], key: str, value: Any) -> None:
    """Take from a name of a body, and what it names, what is known to say something."""
    if key == "text" and isinstance(value, str):
        texts.append(value)
    if key in _STATUS_KEYS and said.status is None:
        said.status = _number(value)
    if key in _CODE_KEYS and isinstance(value, (str, int)):
        said.codes[code(str(value)[:100])] = str(value)
    if key in _FILTER_KEYS:
        said.codes["contentfilter"] = key
    if key in _PARAMETER_KEYS:
        names = value if isinstance(value, (list, tuple)) else [value]
        said.parameters |= {one.casefold() for one in names if isinstance(one, str) and _PARAMETER.fullmatch(one)}
    if key in _WAIT_KEYS and said.wait is None:
        said.wait = _seconds(value, milliseconds=key.endswith("_ms"))


def _seconds(value: Any, milliseconds: bool = False) -> float | None:
    """Read a duration: 3, "0.5", "34.07s", a date; at least 0, None where it is none of these."""
    try:
        seconds = float(value.strip().removesuffix("s") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except Exception:
            return None
    return None if seconds != seconds else max(0.0, seconds / 1000 if milliseconds else seconds)


def _asked_in_headers(error: BaseException) -> float | None:
    headers: Any = get(get(error, "response"), "headers") or get(error, "headers")
    names = ("retry-after-ms", "x-ms-retry-after-ms", "retry-after", "Retry-After")
    waits = (_seconds(get(headers, name), milliseconds=name.endswith("-ms")) for name in names)
    return next((wait for wait in waits if wait is not None), None)
