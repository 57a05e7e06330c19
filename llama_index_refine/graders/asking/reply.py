"""What a server replied: a message and its log-probabilities, from whatever form it has.

Servers put an answer into a string or into parts, with the thoughts before it, beside it or in the place of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llama_index_refine.graders.asking.errors import ServerError, get

_DEPTH = 5
_MOST_POSITIONS = 20_000

_THOUGHT_TYPE = re.compile(r"think|thought|reason|analysis", re.IGNORECASE)
_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "reasoning_text", "thinking", "thoughts")
_CUT = frozenset({"length", "max_tokens", "model_length", "max_output_tokens", "model_context_window_exceeded"})
_FILTERED = frozenset(
    {"content_filter", "safety", "prohibited_content", "blocklist", "guardrail_intervened", "recitation"}
)


class Unreadable(Exception):
    """The LLM answered, but not the question."""


class CutShort(Unreadable):
    """The LLM ran into `max_tokens` before it answered the question."""


class NoText(Unreadable):
    """The LLM answered with nothing."""


class Withheld(Unreadable):
    """The server's content filter took the answer away."""


@dataclass(frozen=True)
class Answer:
    """What a chat model said.

    :param text: the message, empty where there was none.
    :param tokens: for each position of the message, the probability of the most likely tokens; empty where the model
        gave no log-probabilities. They may cover the thoughts as well.
    :param cut_short: the message ended because it was too long.
    :param prompt_tokens: tokens of the question, as the server counted them; 0 where it did not.
    :param completion_tokens: tokens of the answer, likewise.
    :param thoughts: what the model thought, where the server keeps it apart from the message.
    :param said: the token that was said at each position, where it is known.
    :param filtered: the server's content filter ended the message.
    """

    text: str
    tokens: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    cut_short: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    thoughts: str = ""
    said: Sequence[str] = field(default_factory=tuple)
    filtered: bool = False

    def counted(self, *tokens: Any) -> Answer:
        """Put in what a server gave as the tokens of question and answer."""
        prompt, completion = (one if isinstance(one, int) and one > 0 else 0 for one in tokens)
        return replace(self, prompt_tokens=prompt, completion_tokens=completion)

    def why_unreadable(self) -> Unreadable:
        """Say why there is no grade in it."""
        if self.filtered:
            return Withheld("the LLM server's content filter refused a document")
        if self.cut_short:
            return CutShort("an answer was cut short by max_tokens before it said anything")
        if not self.text.strip():
            return NoText("an answer was empty")
        return Unreadable("an answer was not one of those asked for (a refusal, or idle talk)")


def reply_of(completion: Any) -> Answer:
    """Read a chat completion or a text completion.

    :param completion: the server's JSON, or a client's object of the same form.
    :return: what was said, without counts of tokens.
    :raises ServerError: it is an error in the place of an answer.
    :raises Unreadable: there is no message in it.
    """
    choices = get(completion, "choices")
    choice = choices[0] if isinstance(choices, (list, tuple)) and choices else None
    problem = get(completion, "error") or get(choice, "error")
    message = get(choice, "message")
    if message is None and isinstance(get(choice, "text"), str):
        message = {"content": get(choice, "text")}
    if problem and not _content(get(message, "content"))[0]:
        raise ServerError({"error": problem})
    if isinstance(choices, (list, tuple)) and not choices:
        raise NoText("an answer was empty")
    if message is None:
        if isinstance(completion, Mapping) and get(completion, "object") == "error":
            raise ServerError(completion)
        raise Unreadable("a call failed to bring a chat completion: check the base_url")
    text, thoughts = _content(get(message, "content"))
    apart = (_content(get(message, name)) for name in _THOUGHT_FIELDS)
    thoughts = thoughts or next((one + other for one, other in apart if one + other), "")
    refusal = get(message, "refusal")
    tokens, said = _positions(get(choice, "logprobs"))
    text = text or (refusal if isinstance(refusal, str) else "")
    return ended(text, thoughts, completion, tokens, said)


def ended(
    text: str, thoughts: str, response: Any, tokens: Sequence[Mapping[str, float]] = (), said: Sequence[str] = ()
) -> Answer:
    """Put together a message whose text and thoughts have been told apart."""
    reason = _finish_reason(response)
    return Answer(text, tokens, reason in _CUT, thoughts=thoughts, said=said, filtered=reason in _FILTERED)


def _finish_reason(response: Any) -> str:
    """Say why a message ended, lower case; empty where it is not known."""
    places = (get(response, name) for name in ("choices", "candidates"))
    owners = [place[0] for place in places if isinstance(place, (list, tuple)) and place]
    names = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason")
    reasons = (get(owner, name) for owner in (*owners, response) for name in names)
    texts = (reason if isinstance(reason, str) else get(reason, "name") for reason in reasons)
    return next((text.casefold() for text in texts if isinstance(text, str)), "")


def _content(content: Any, depth: int = 0) -> tuple[str, str]:
    """Split content, a string or parts, into text and thoughts."""
    if isinstance(content, str):
        return content, ""
    if depth > _DEPTH:
        return "", ""
    if isinstance(content, (list, tuple)):
        split = [_content(part, depth + 1) for part in content]
        return "".join(text for text, _ in split), "".join(thoughts for _, thoughts in split)
    kind = get(content, "type")
    inner = next((value for name in ("text", "content", "value") if (value := get(content, name))), None)
    if get(content, "thought") is True or (isinstance(kind, str) and _THOUGHT_TYPE.search(kind)):
        named = next((value for name in _THOUGHT_FIELDS if (value := get(content, name))), inner)
        return "", "".join(_content(named, depth + 1))
    return _content(inner, depth + 1) if inner is not None else ("", "")


def probabilities(logprobs: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    """Turn pairs of token and log-probability into token: probability; what is not a number is left out."""
    return {
        token: math.exp(min(logprob, 0.0))
        for token, logprob in logprobs
        if isinstance(token, str) and isinstance(logprob, (int, float)) and not math.isnan(logprob)
    }


def _positions(logprobs: Any) -> tuple[Sequence[Mapping[str, float]], Sequence[str]]:
    """Read log-probabilities in the form of chat completions, or else of text completions."""
    entries = get(logprobs, "content")
    if isinstance(entries, (list, tuple)):
        said = [get(item, "token") for item in entries[:_MOST_POSITIONS]]
        tops = [get(item, "top_logprobs") or [item] for item in entries[:_MOST_POSITIONS]]
        pairs = [[(get(one, "token"), get(one, "logprob")) for one in top] for top in tops if isinstance(top, list)]
    else:
        said, tops = (
            one[:_MOST_POSITIONS] if isinstance(one := get(logprobs, name), list) else []
            for name in ("tokens", "top_logprobs")
        )
        pairs = [[*top.items()] if isinstance(top, Mapping) else [] for top in tops]
    return [probabilities(each) for each in pairs], said if all(isinstance(token, str) for token in said) else []
