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
_TEMPERATURE = ("temperature",)
# What is given up, in this order, where an error does not say what it refuses.
_LADDER = ((FORM,), _LOGPROBS, _LIMITS, _TEMPERATURE)
_MOST_TRIES = 12
_NUMBER = re.compile(r"(?<![\w.-])\d{1,6}(?![\w]|-\w|\.\d)")


@dataclass
class Known:
    """What is known of a model.

    :param options: what to send beside a question.
    :param proven: whether they brought an answer that could be read.
    :param formless: whether it takes no form.
    :param sees: whether it takes images, None where it has not shown it.
    :param plain: whether it takes PNG and JPEG only.
    """

    options: dict[str, Any]
    proven: bool = False
    formless: bool = False
    sees: bool | None = None
    plain: bool = False


class Model:
    """A chat model, and how it is asked.

    The optional arguments of a call: all of them, fewer, and none at last; remembered for each model.

    Not every model takes log-probabilities, so many of them, a temperature, a limit of tokens by this name or a form.
    What an error names is dropped, renamed or lowered; where it names nothing, each is left out in turn. What then
    brings an answer is what that model is sent from then on. What the user set stays.

    :param chat: the model.
    :param optional: arguments that may be given up.
    :param required: what the user set.
    :param form: a JSON schema for the answer, which is asked for where an answer could not be read without it.
    :param form_first: ask for it from the beginning, and do without it where an answer could not be read.
    """

    def __init__(
        self,
        chat: Chat,
        optional: Mapping[str, Any],
        required: Mapping[str, Any] | None = None,
        form: Mapping[str, Any] | None = None,
        form_first: bool = False,
    ) -> None:
        self.chat = chat
        self.required = {**(required or {})}
        body = self.required.get("extra_body")
        self.users = {*self.required, *(body if isinstance(body, Mapping) else ())}
        limits = _LIMITS if self.users & {*_LIMITS} else ()
        logprobs = _LOGPROBS if "logprobs" in self.users else ()
        self._wanted = _without(optional, *self.users, *limits, *logprobs)
        self.form = {FORM: form} if form and FORM not in self.users else {}
        if form_first:
            self._wanted |= self.form
        # LlamaIndex's classes send one unasked, unless they are told another or none.
        self.implies_temperature = "temperature" not in self._wanted
        self._known: dict[str, Known] = {}

    def known(self) -> Known:
        """Say what is known of the model that would be asked now."""
        wanted = self.chat.completion_options()
        usual = _without(self._wanted if wanted is None else wanted, *self.users)
        return self._known.setdefault(self.chat.fingerprint(), Known(usual, formless=wanted is not None))


def _without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _size(options: Mapping[str, Any]) -> tuple[int, int]:
    top = options.get("top_logprobs", 0)
    return len(_without(options, FORM)), top if isinstance(top, int) else 0


def _gentler(sent: dict[str, Any], failure: Failure, model: Model) -> Iterator[dict[str, Any]]:
    """The ladder: ways to ask for less of what an error names, else of each in turn, and for nothing at last."""
    text, names = failure.said.text, failure.options - model.users
    numbers = sorted({int(number) for number in _NUMBER.findall(text)}, reverse=True)
    for group in _LADDER:
        if failure.options and not names & {*group}:
            continue
        for name, now in [(name, sent[name]) for name in group if type(sent.get(name)) is int]:
            if group is _LOGPROBS and (numbers or "at most" in text):
                allowed = [number for number in numbers if 1 <= number < now][:1]
                yield from ({**sent, name: number} for number in (*allowed, *_FEWER_LOGPROBS) if number < now)
            if group is _LIMITS and names:
                yield from ({**sent, name: number} for number in numbers if number > now)
                yield {**_without(sent, name), _LIMITS[1 - _LIMITS.index(name)]: now}
        if group is _TEMPERATURE and names and model.implies_temperature:
            yield from ({**sent, "temperature": one} for one in (1.0, None))
        yield _without(sent, *group)
    yield _without(sent, *names) if failure.options else {}


# About how many tokens the answer has for each document.
_ANSWER_TOKENS = 16


@dataclass
class Question:
    """What is asked about one or several documents, and how far it has got.

    :param model: the model to ask.
    :param sight: writes images anew.
    :param account: the bill of the query.
    :param shown: the query and the documents.
    :param messages: the prompt, with a mark in the place of each image.
    :param read: reads so many grades, one a document, from an answer, None where there is none in it.
    :param known: what is known of the model.
    :param options: what is asked of it beside the answer, now.
    :param tried: what was before.
    :param refused: whether it named what it refused of that.
    :param reformed: whether a form was added.
    :param spoilt: whether the server has refused one of the texts, and with it the question.
    """

    model: Model
    sight: Sight
    account: Account
    shown: Sequence[Shown]
    messages: Sequence[ChatMessage]
    read: Callable[[Answer, int], Sequence[float | None]]
    known: Known = field(init=False)
    options: dict[str, Any] = field(init=False)
    tried: list[dict[str, Any]] = field(default_factory=list, init=False)
    refused: bool = field(default=False, init=False)
    reformed: bool = field(default=False, init=False)
    spoilt: bool = field(default=False, init=False)
    _images: Mapping[str, ImageBlock] = field(init=False)
    _plain: bool = field(default=False, init=False)
    _unread: Unreadable | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.known = self.model.known()
        self.options = self.known.options
        self._images = {mark: image for shown in self.shown for mark, image in shown.images.items()}

    async def ask(self) -> Sequence[float | None]:
        """Ask it once, and read the answer.

        :return: one grade a document, None where there is none in it.
        :raises Unreadable: there is none at all.
        :raises Exception: whatever the client raises.
        """
        if not self.tried:
            self.options = self.known.options
        images = self._images
        if self._plain or self.known.plain:
            images = await self.sight.plain(images)
        messages = with_images(self.messages, images)
        answer = await self.model.chat.ask(messages, {**self.options, **self.model.required})
        # Where the server has not counted, an estimate has to do.
        prompt = answer.prompt_tokens or tokens_of(messages)
        self.account.charge(prompt, answer.completion_tokens or count_tokens(answer.text))
        if images:
            self.known.sees, self.known.plain = True, self.known.plain or self._plain
        grades = self.read(answer, len(self.shown) - 1)
        if all(grade is None for grade in grades):
            raise answer.why_unreadable()
        if not self.known.proven or self.refused or _size(self.options) > _size(self.known.options):
            self.known.options, self.known.proven = self.options, True
        return grades

    def tokens(self) -> int:
        """Estimate the tokens of question and answer."""
        return tokens_of(with_images(self.messages, self._images)) + _ANSWER_TOKENS * (len(self.shown) - 1)

    def sent(self) -> frozenset[str]:
        """Collect the words of the question, which an error may repeat."""
        return words_of(" ".join(message.content or "" for message in self.messages))

    def needless(self) -> str:
        """Say why it need not be asked any more, empty where it has to be."""
        return next(filter(None, (one.why_not(self.known.sees is False) for one in self.shown)), "")

    def adapt(self, error: Unreadable | Failure) -> bool:
        """Find another way to ask.

        :param error: what came of the last one.
        :return: whether there is another.
        :raises Unreadable: the last answer was, and the model refuses to give it a form.
        """
        if isinstance(error, Failure):
            return self._give_up(error)
        if isinstance(error, (CutShort, NoText)):
            # Thoughts may have eaten the limit of tokens: it is lifted, once.
            eaten = isinstance(error, CutShort) or not self.known.proven
            return eaten and self._try([_without(self.options, *_LIMITS)])
        first, self._unread = self._unread is None, error
        if not first or isinstance(error, Withheld):
            return False
        self.reformed = FORM not in self.options and not self.known.formless
        return self._try([self.options | self.model.form if self.reformed else _without(self.options, FORM)])

    def _give_up(self, failure: Failure) -> bool:
        self.spoilt = failure.remedy is Remedy.SKIP
        if self._images and failure.kind == "blind":
            self.known.sees = self.known.sees or False
        if not self._plain and (failure.kind == "image" or (failure.remedy is Remedy.ADAPT and not failure.options)):
            self._plain = any(map(can_be_plainer, self._images.values()))
            if self._plain:
                return True
        if failure.remedy not in (Remedy.ADAPT, Remedy.OURS):
            return False
        descends = self._descend(failure)
        if self._unread is not None and not descends:
            raise self._unread from None
        return descends

    def _descend(self, failure: Failure) -> bool:
        """Give up options that an error speaks of, and not those that the user set."""
        known = self.known
        known.formless = known.formless or FORM in failure.options or self.reformed
        if self.reformed:
            return False
        candidates = [known.options] if known.proven else []
        if failure.options or not known.proven:
            sent = self.options if failure.options else (self.tried or [self.options])[0]
            candidates += _gentler(sent, failure, self.model)
        return self._try(candidates, bool(failure.options))

    def _try(self, candidates: Sequence[dict[str, Any]], refused: bool = False) -> bool:
        self.tried.append(self.options)
        for options in candidates:
            if options not in self.tried and len(self.tried) < _MOST_TRIES:
                self.options, self.refused = options, self.refused or refused
                return True
        return False
