"""One question to a model, in whatever way it has to be asked; and the ladder of what is asked beside the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ImageBlock

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.asking.answer import Answer, CutShort, NoText, Unreadable, Withheld
from llama_index_refine.graders.asking.errors import words_of
from llama_index_refine.graders.asking.failures import Failure, Remedy
from llama_index_refine.graders.asking.showing import Shown, Sight, can_be_plainer, count_tokens, tokens_of, with_images
from llama_index_refine.graders.chat import Chat

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


# About how many tokens the answer has for each document.
_ANSWER_TOKENS = 16


@dataclass
class Question:
    """What is asked about one or several documents, and how far it has got.

    :param chat: the model to ask.
    :param options: what is asked of it beside the answer.
    :param sight: what is known of whether it sees.
    :param account: the bill of the query.
    :param shown: the query and the documents.
    :param messages: the prompt, with a mark in the place of each image.
    :param read: reads so many grades, one a document, from an answer, None where there is none in it.
    """

    chat: Chat
    options: Options
    sight: Sight
    account: Account
    shown: Sequence[Shown]
    messages: Sequence[ChatMessage]
    read: Callable[[Answer, int], Sequence[float | None]]
    _attempt: Attempt = field(init=False)
    _images: Mapping[str, ImageBlock] = field(init=False)
    _plain: bool = field(default=False, init=False)
    _unread: Unreadable | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._attempt = self._begin()
        self._images = {mark: image for shown in self.shown for mark, image in shown.images.items()}

    def _begin(self) -> Attempt:
        return self.options.attempt(self.chat.fingerprint(), self.chat.completion_options())

    async def ask(self) -> Sequence[float | None]:
        """Ask it once, and read the answer.

        :return: one grade a document, None where there is none in it.
        :raises Unreadable: there is none at all.
        :raises Exception: whatever the client raises.
        """
        if not self._attempt.tried:
            self._attempt = self._begin()
        images = self._images
        if self._plain or self._attempt.model in self.sight.reads_plain:
            images = await self.sight.plain(images)
        messages = with_images(self.messages, images)
        answer = await self.chat.ask(messages, {**self._attempt.sent, **self.options.required})
        # Where the server has not counted, an estimate has to do.
        prompt = answer.prompt_tokens or tokens_of(messages)
        self.account.charge(prompt, answer.completion_tokens or count_tokens(answer.text))
        if images:
            self.sight.answered(self._attempt.model, self._plain)
        grades = self.read(answer, len(self.shown) - 1)
        if all(grade is None for grade in grades):
            raise answer.why_unreadable()
        self.options.worked(self._attempt)
        return grades

    def tokens(self) -> int:
        """Estimate the tokens of question and answer."""
        return tokens_of(with_images(self.messages, self._images)) + _ANSWER_TOKENS * (len(self.shown) - 1)

    def sent(self) -> frozenset[str]:
        """Collect the words of the question, which an error may repeat."""
        return words_of(" ".join(message.content or "" for message in self.messages))

    def needless(self) -> str | None:
        """Say why it need not be asked any more, None where it has to be."""
        return self.sight.why_not(self._attempt.model, True, *self.shown)

    def adapt(self, error: Unreadable | Failure) -> bool:
        """Find another way to ask.

        :param error: what came of the last one.
        :return: whether there is another.
        :raises Unreadable: the last answer was, and the model refuses to give it a form.
        """
        if isinstance(error, Failure):
            return self._give_up(error)
        eaten = isinstance(error, CutShort) or (isinstance(error, NoText) and not self._attempt.known.proven)
        if isinstance(error, (CutShort, NoText)):
            return eaten and self.options.lift(self._attempt)
        first, self._unread = self._unread is None, error
        return first and not isinstance(error, Withheld) and self.options.reform(self._attempt)

    def _give_up(self, failure: Failure) -> bool:
        if self._images:
            self.sight.refused(self._attempt.model, failure.kind)
        if not self._plain and (failure.kind == "image" or (failure.remedy is Remedy.ADAPT and not failure.options)):
            self._plain = any(map(can_be_plainer, self._images.values()))
            if self._plain:
                return True
        if failure.remedy not in (Remedy.ADAPT, Remedy.OURS):
            return False
        descends = self.options.descend(self._attempt, failure)
        if self._unread is not None and not descends:
            raise self._unread from None
        return descends
