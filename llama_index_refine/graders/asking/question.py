"""One question to a model, in whatever way it has to be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from llama_index.core.base.llms.types import ChatMessage, ImageBlock

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.asking.errors import words_of
from llama_index_refine.graders.asking.failures import Failure, Remedy
from llama_index_refine.graders.asking.options import Attempt, Options
from llama_index_refine.graders.asking.reply import Answer, CutShort, NoText, Unreadable, Withheld
from llama_index_refine.graders.asking.showing import Shown, Sight, can_be_plainer, tokens_of, with_images
from llama_index_refine.graders.asking.text import count_tokens
from llama_index_refine.graders.chat import Chat

# About how many tokens the answer has for each document.
_ANSWER_TOKENS = 16

Read = Callable[[Answer], Sequence[float | None]]


@dataclass
class Question:
    """What is asked about one or several documents, and how far it has got.

    :param chat: the model to ask.
    :param options: what is asked of it beside the answer.
    :param sight: what is known of whether it sees.
    :param account: the bill of the query.
    :param shown: the query and the documents.
    :param messages: the prompt, with a mark in the place of each image.
    :param read: reads one grade a document from an answer, None where there is none in it.
    """

    chat: Chat
    options: Options
    sight: Sight
    account: Account
    shown: Sequence[Shown]
    messages: Sequence[ChatMessage]
    read: Read
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
        if self._plain or self.sight.wants_plain(self._attempt.model):
            images = await self.sight.plain(images)
        messages = with_images(self.messages, images)
        answer = await self.chat.ask(messages, {**self._attempt.sent, **self.options.required})
        # Where the server has not counted, an estimate has to do.
        prompt = answer.prompt_tokens or tokens_of(messages)
        self.account.charge(prompt, answer.completion_tokens or count_tokens(answer.text))
        if images:
            self.sight.answered(self._attempt.model, self._plain)
        grades = self.read(answer)
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
