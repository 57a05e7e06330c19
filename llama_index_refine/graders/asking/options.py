"""What a teacher asks of a model beside the answer, and the ladder down which it gives up what the model refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index_refine.graders.asking.failures import Failure

FORM = "response_format"
# Numbers of log-probabilities to try below one that is refused: what servers with a lower limit than 20 allow.
_FEWER_LOGPROBS = (5, 1)
_LIMITS = ("max_tokens", "max_completion_tokens")
_LOGPROBS = ("logprobs", "top_logprobs")
_MOST_TRIES = 12
_NUMBER = re.compile(r"(?<![\w.-])\d{1,6}(?![\w]|-\w|\.\d)")
_AT_LEAST = re.compile(r"(?:>=|\u2265|at least|minimum(?: value)?(?: of| is)?)\D{0,12}?(\d{1,6})")


@dataclass
class Known:
    """What is known of a model: the options to send, and whether they brought an answer that could be read."""

    options: dict[str, Any]
    proven: bool = False
    formless: bool = False


@dataclass
class Attempt:
    """The options of one question, on its way down the ladder.

    :param model: which model is asked.
    :param known: what is known of it.
    :param sent: what the teacher adds to the question now.
    """

    model: str
    known: Known
    sent: dict[str, Any]
    refused: bool = False
    reformed: bool = False
    tried: list[dict[str, Any]] = field(default_factory=list)


class Options:
    """The optional arguments of a call: all of them, fewer, and none at last; remembered for each model.

    Not every model takes log-probabilities, so many of them, a temperature, a limit of tokens by this name or a form.
    What an error names is dropped, renamed or lowered; where it names nothing, each is left out in turn. What then
    brings an answer is what that model is sent from then on. What the user set stays.

    :param optional: arguments that may be given up.
    :param required: what the user set.
    :param form: a JSON schema for the answer, which is asked for where an answer could not be read without it.
    :param form_first: ask for it from the beginning, and do without it where an answer could not be read.
    """

    def __init__(
        self,
        optional: Mapping[str, Any],
        required: Mapping[str, Any] | None = None,
        form: Mapping[str, Any] | None = None,
        form_first: bool = False,
    ) -> None:
        self.required = {**(required or {})}
        body = self.required.get("extra_body")
        self.users = {*self.required, *(body if isinstance(body, Mapping) else ())}
        limits = _LIMITS if self.users & {*_LIMITS} else ()
        logprobs = _LOGPROBS if "logprobs" in self.users else ()
        self._wanted = _without(optional, *self.users, *limits, *logprobs)
        self._form = {FORM: form} if form and FORM not in self.users else {}
        if form_first:
            self._wanted |= self._form
        self._known: dict[str, Known] = {}

    def attempt(self, model: str, wanted: Mapping[str, Any] | None = None) -> Attempt:
        """Begin a question.

        :param model: which model is asked.
        :param wanted: what to ask of a model of this kind in the place of the usual options.
        :return: the options to send.
        """
        usual = _without(self._wanted if wanted is None else wanted, *self.users)
        known = self._known.setdefault(model, Known(usual, formless=wanted is not None))
        return Attempt(model, known, dict(known.options))

    def worked(self, attempt: Attempt) -> None:
        """Keep to these options for this model: an answer to a call with them could be read."""
        known = attempt.known
        if not known.proven or attempt.refused or _size(attempt.sent) > _size(known.options):
            known.options, known.proven = attempt.sent, True

    def descend(self, attempt: Attempt, failure: Failure) -> bool:
        """Give up what an error speaks of.

        :param attempt: the question, whose options change.
        :param failure: what the error means.
        :return: whether there is another way to ask; not where the options are not to blame, or are the user's.
        """
        known = attempt.known
        known.formless = known.formless or FORM in failure.options or attempt.reformed
        if attempt.reformed:
            return False
        candidates = [known.options] if known.proven else []
        if failure.options:
            candidates += _changed(
                attempt.sent, failure, failure.options - self.users, "temperature" not in self._wanted
            )
        elif not known.proven:
            candidates += _rungs((attempt.tried or [attempt.sent])[0], failure.said.text)
        return self._try(attempt, candidates, bool(failure.options))

    def lift(self, attempt: Attempt) -> bool:
        """Lift the limit of tokens, once: thoughts may have eaten it. :return: whether there was one of ours."""
        return self._try(attempt, [_without(attempt.sent, *_LIMITS)])

    def reform(self, attempt: Attempt) -> bool:
        """Ask for a form where there was none, or for none where there was. :return: whether that is another way."""
        attempt.reformed = FORM not in attempt.sent and not attempt.known.formless
        return self._try(attempt, [attempt.sent | self._form if attempt.reformed else _without(attempt.sent, FORM)])

    def _try(self, attempt: Attempt, candidates: Sequence[dict[str, Any]], refused: bool = False) -> bool:
        attempt.tried.append(attempt.sent)
        for options in candidates:
            if options not in attempt.tried and len(attempt.tried) < _MOST_TRIES:
                attempt.sent, attempt.refused = options, attempt.refused or refused
                return True
        return False


def _without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _size(options: Mapping[str, Any]) -> tuple[int, int]:
    top = options.get("top_logprobs", 0)
    return len(_without(options, FORM)), top if isinstance(top, int) else 0


def _rungs(sent: dict[str, Any], text: str) -> Iterator[dict[str, Any]]:
    """The ladder for an error that names nothing: the form and log-probabilities first, and none of all at last."""
    yield _without(sent, FORM)
    yield from _fewer_logprobs(sent, text)
    yield _without(sent, *_LOGPROBS)
    yield _without(sent, *_LIMITS)
    yield _without(sent, "temperature")
    yield {}


def _changed(sent: dict[str, Any], failure: Failure, names: frozenset[str], implied: bool) -> Iterator[dict[str, Any]]:
    """Change what an error names, in the gentlest way first."""
    text = failure.said.text
    if names & {*_LOGPROBS}:
        yield from _fewer_logprobs(sent, text)
        if names == {"top_logprobs"}:
            yield _without(sent, "top_logprobs")
        yield _without(sent, *_LOGPROBS)
    limit = next((name for name in _LIMITS if name in sent), None)
    if names & {*_LIMITS} and limit is not None:
        yield from ({**sent, limit: int(least)} for least in _AT_LEAST.findall(text) if int(least) > sent[limit])
        if failure.said.status is not None:
            yield {**_without(sent, limit), _LIMITS[1 - _LIMITS.index(limit)]: sent[limit]}
        yield _without(sent, *_LIMITS)
    if "temperature" in names:
        # LlamaIndex's classes send one unasked, unless they are told another or none.
        yield from ({**sent, "temperature": one} for one in (1.0, None)) if implied else ()
    yield _without(sent, *names)


def _fewer_logprobs(sent: dict[str, Any], text: str) -> Iterator[dict[str, Any]]:
    """Ask for fewer: for as many as the error allows, where it gives a number."""
    name = "top_logprobs" if "top_logprobs" in sent else "logprobs"
    now = sent.get(name)
    if not isinstance(now, int) or isinstance(now, bool):
        return
    numbers = [int(match.group()) for match in _NUMBER.finditer(text)]
    if not numbers and "at most" not in text:
        return
    fewer = sorted({n for n in numbers if 1 <= n < now}, reverse=True)[:1]
    yield from ({**sent, name: n} for n in (*fewer, *_FEWER_LOGPROBS) if n < now)
