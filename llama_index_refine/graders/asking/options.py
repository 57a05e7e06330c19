"""What a teacher asks of a model beside the answer, and how it gives up what the model refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index_refine.graders.asking.failures import Failure
from llama_index_refine.locks import Lock

# Numbers of log-probabilities to try below one that is refused: what servers with a lower limit than 20 allow.
_FEWER_LOGPROBS = (5, 1)
_LIMITS = ("max_tokens", "max_completion_tokens")
_LOGPROBS = ("logprobs", "top_logprobs")
_MOST_TRIES = 12

_NUMBER = re.compile(r"(?<![\w.-])\d{1,6}(?![\w]|-\w|\.\d)")
_ABOUT_A_NUMBER = re.compile(
    r"at most|max|more than|less than|greater|higher|exceed|between|range|too (?:large|many|high|big)|allow|<=|\u2264|<"
    r"|up to|limit|fewer|above|no more"
)
_AT_LEAST = re.compile(
    r"(?:>=|\u2265|at least|minimum(?: value)?(?: of| is)?|greater than or equal to)\D{0,12}?(\d{1,6})"
)


@dataclass
class _Known:
    """What is known of a model: the options to send, and whether they brought an answer that could be read."""

    options: dict[str, Any]
    proven: bool = False


@dataclass
class Attempt:
    """The options of one question, as it goes through what the model refuses.

    :param model: which model is asked.
    :param options: what to send now, with what the user set.
    """

    model: str
    options: dict[str, Any]
    refused: bool = False
    tried: list[dict[str, Any]] = field(default_factory=list)
    all_of_them: dict[str, Any] | None = None


class Options:
    """The optional arguments of a call, less what each model has refused.

    Not every model takes log-probabilities, so many of them, a temperature or a limit of tokens by this name. What an
    error names is dropped, renamed or lowered, and what then brings an answer is what that model is sent from then on.
    Where an error names nothing, each is left out in turn, and all together at last. What the user set stays.

    :param optional: arguments that may be given up.
    :param required: what the user set.
    :param implied: arguments that the client adds by itself, with values to try in their place; None leaves them out.
    """

    def __init__(
        self,
        optional: Mapping[str, Any],
        required: Mapping[str, Any] | None = None,
        implied: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.required = {**(required or {})}
        body = self.required.get("extra_body")
        self._users = {*self.required, *(body if isinstance(body, Mapping) else ())}
        self._wanted = {name: value for name, value in optional.items() if name not in self._users}
        if any(name in self._users for name in _LIMITS):
            self._wanted = _without(self._wanted, *_LIMITS)
        if "logprobs" in self._users:
            self._wanted = _without(self._wanted, *_LOGPROBS)
        self._implied = {name: value for name, value in (implied or {}).items() if name not in self._users}
        self._known: dict[str, _Known] = {}
        self._lock = Lock()

    def attempt(self, model: str, wanted: Mapping[str, Any] | None = None) -> Attempt:
        """Begin a question.

        :param model: which model is asked.
        :param wanted: what to ask of a model of this kind in the place of the usual options.
        :return: the options to send.
        """
        with self._lock:
            if model not in self._known:
                kept = self._wanted if wanted is None else {n: v for n, v in wanted.items() if n not in self._users}
                self._known[model] = _Known(dict(kept))
            return Attempt(model, {**self._known[model].options, **self.required})

    def worked(self, attempt: Attempt) -> None:
        """Keep to these options for this model: an answer to a call with them could be read."""
        sent = self._ours(attempt)
        with self._lock:
            known = self._known[attempt.model]
            if not known.proven or attempt.refused or _size(sent) > _size(known.options):
                known.options, known.proven = sent, True

    def proven(self, attempt: Attempt) -> bool:
        """Whether any options have brought an answer of this model."""
        return self._known[attempt.model].proven

    def adapt(self, attempt: Attempt, failure: Failure) -> bool:
        """Give up what an error speaks of.

        :param attempt: the question, whose options change.
        :param failure: what the error means.
        :return: whether there is another way to ask; not where the options are not to blame, or are the user's.
        """
        sent = self._ours(attempt)
        attempt.tried.append(sent)
        known = self._known[attempt.model]
        candidates = [known.options] if known.proven else []
        if failure.options:
            attempt.all_of_them = None
            candidates += _changed(sent, failure, self._implied)
        elif value := _named_by_value(sent, failure.said.text):
            candidates += _lowered(sent, failure.said.text) if value == "top_logprobs" else [_without(sent, value)]
        elif not known.proven:
            attempt.all_of_them = attempt.all_of_them or sent
            candidates += _one_by_one(attempt.all_of_them)
        for options in candidates:
            if options not in attempt.tried and len(attempt.tried) < _MOST_TRIES:
                attempt.options = {**options, **self.required}
                attempt.refused = attempt.refused or bool(failure.options)
                return True
        return False

    def lift(self, attempt: Attempt) -> bool:
        """Lift the limit of tokens, once, because thoughts may have eaten it.

        :param attempt: the question, whose options change.
        :return: whether there was a limit of ours.
        """
        sent = self._ours(attempt)
        attempt.tried.append(sent)
        options = _without(sent, *_LIMITS)
        if options in attempt.tried:
            return False
        attempt.options = {**options, **self.required}
        return True

    def _ours(self, attempt: Attempt) -> dict[str, Any]:
        return _without(attempt.options, *self.required)


def _without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _size(options: Mapping[str, Any]) -> tuple[int, int]:
    top = options.get("top_logprobs", 0)
    return len(options), top if isinstance(top, int) else 0


def _changed(sent: dict[str, Any], failure: Failure, implied: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Change what an error names, in the gentlest way first."""
    text, names = failure.said.text, failure.options
    if names & {*_LOGPROBS} and "logprobs" in sent:
        yield from _fewer_logprobs(sent, text, names)
    limit = next((name for name in _LIMITS if name in sent), None)
    if names & {*_LIMITS} and limit is not None:
        yield from _other_limit(sent, limit, text, failure.said.status is not None)
    if "temperature" in names and "temperature" in implied:
        yield from ({**sent, "temperature": value} for value in implied["temperature"])
    elif "temperature" in names and "temperature" in sent:
        yield _without(sent, "temperature")


def _fewer_logprobs(sent: dict[str, Any], text: str, names: frozenset[str]) -> Iterator[dict[str, Any]]:
    if "integer" in text and sent["logprobs"] is True:
        yield {**_without(sent, *_LOGPROBS), "logprobs": sent.get("top_logprobs", _FEWER_LOGPROBS[0])}
    numbers = names == {"top_logprobs"} or _NUMBER.search(text)
    if "top_logprobs" in sent and numbers and _ABOUT_A_NUMBER.search(text):
        yield from _lowered(sent, text)
    if names == {"top_logprobs"}:
        yield _without(sent, "top_logprobs")
    if sent["logprobs"] is not True and isinstance(sent["logprobs"], int):
        yield from ({**sent, "logprobs": n} for n in _lower(sent["logprobs"], text))
    yield _without(sent, *_LOGPROBS)


def _lowered(sent: dict[str, Any], text: str) -> Iterator[dict[str, Any]]:
    yield from ({**sent, "top_logprobs": number} for number in _lower(sent["top_logprobs"], text))


def _lower(number: int, text: str) -> Iterator[int]:
    """Numbers to try in the place of one that is too large: the largest that the error allows comes first."""
    named = [int(match.group()) for match in _NUMBER.finditer(text)]
    yield from sorted({n for n in named if 1 <= n < number}, reverse=True)[:1]
    yield from (fewer for fewer in _FEWER_LOGPROBS if fewer < number)


def _other_limit(sent: dict[str, Any], limit: str, text: str, by_a_server: bool) -> Iterator[dict[str, Any]]:
    least = _AT_LEAST.search(text)
    if least and int(least[1]) > sent[limit]:
        yield {**sent, limit: int(least[1])}
    if by_a_server:
        other = _LIMITS[1 - _LIMITS.index(limit)]
        yield {**_without(sent, limit), other: sent[limit]}
    yield _without(sent, *_LIMITS)


def _named_by_value(sent: Mapping[str, Any], text: str) -> str | None:
    """Find the one option whose value an error speaks of, where it is no everyday number."""
    numbers = {int(match.group()) for match in _NUMBER.finditer(text)}
    ours = {name: value for name, value in sent.items() if isinstance(value, int) and not isinstance(value, bool)}
    named = [name for name, value in ours.items() if value in numbers]
    return named[0] if len(named) == 1 else None


def _one_by_one(wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Leave out one option at a time, and all of them at last."""
    if isinstance(wanted.get("top_logprobs"), int) and wanted["top_logprobs"] > _FEWER_LOGPROBS[0]:
        yield {**wanted, "top_logprobs": _FEWER_LOGPROBS[0]}
    yield _without(wanted, *_LOGPROBS)
    yield _without(wanted, *_LIMITS)
    yield _without(wanted, "temperature")
    yield {}
