"""What a server replied, what of it is the answer, and where its log-probabilities are.

Servers put an answer into a string or into parts, with the thoughts before it, beside it or in the place of it.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
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
    :param scores: what a reranker gave in the place of a message.
    """

    text: str
    tokens: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    cut_short: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    thoughts: str = ""
    said: Sequence[str] = field(default_factory=tuple)
    filtered: bool = False
    scores: Sequence[Any] = ()

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
        return Unreadable("an answer was not one of those asked for (a refusal, or something else)")


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
        raise Unreadable("a call returned no chat completion: check the base_url")
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


_NAME = r"[\w:.-]{0,20}?(?:think|thought|reason|reflect|analy[sz]|scratch_?pad|monologue|deliberat|draft)[\w:.-]{0,20}"
_MARK = re.compile(
    rf"<\|?(?P<close>/|end(?:_of)?_)?(?:begin(?:_of)?_|start(?:_of)?_)?{_NAME}(?:\s[^<>]{{0,100}})?\|?>"
    r"|\[(?P<close_bracket>/)?(?:THINK|THINKING|THOUGHT|REASONING)\]"
    r"|\u25c1(?P<close_triangle>/)?think\u25b7",
    re.IGNORECASE,
)
_UNUSED = re.compile(r"<unused94>.*?(?:<unused95>|\Z)|<\|channel>.*?(?:<channel\|>|\Z)", re.DOTALL)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]{0,100}(?:<\|constrain\|>[^<]{0,100})?<\|message\|>")
_LEAKED_CHANNEL = re.compile(r"\A\s*(?:(?:analysis|commentary).*)?assistant\s*final", re.DOTALL)
_SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<eos>|<end_of_turn>|<turn\|>|\[/?INST\]")
# A model that goes on after its turn talks to itself.
_END_OF_TURN = re.compile(r"<\|(?:eot_id|im_end|endoftext|end_of_text|eom_id)\|>|<end_of_turn>|</s>")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w+-]*[ \t]*$", re.MULTILINE)
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+|(?<=\u3002)")
_FORMLESS = re.compile(r"[\s\u2581\u0120\u010a]+")


def answer_in(text: str) -> str:
    """Find the answer in a message: what is left without thoughts, channels, special tokens and code fences.

    :param text: any message.
    :return: the answer; empty where the message is still thinking when it ends.
    """
    finals = list(_FINAL_CHANNEL.finditer(text))
    if finals:
        text = text[finals[-1].end() :]
    elif "<|channel|>" in text:
        return ""
    text = "".join(_outside(_LEAKED_CHANNEL.sub("", _UNUSED.sub("", text))))
    turns = (_SPECIAL.sub("", turn) for turn in _END_OF_TURN.split(text))
    return _FENCE.sub("", next((turn for turn in turns if turn.strip()), ""))


def _outside(text: str) -> list[str]:
    """Keep what stands outside of thoughts. An end without a beginning ends thoughts that began with the message."""
    kept: list[str] = []
    place, inside = 0, False
    for mark in _MARK.finditer(text):
        if not (mark["close"] or mark["close_bracket"] or mark["close_triangle"]):
            if not inside:
                kept.append(text[place : mark.start()])
            inside = True
        elif inside:
            inside, place = False, mark.end()
        else:
            kept, place = [], mark.end()
    return kept if inside else [*kept, text[place:]]


def found(answer: Answer) -> str:
    """Find the answer in what a model said.

    :param answer: the reply.
    :return: the answer; where there is none, what the thoughts end with.
    """
    text = answer_in(answer.text)
    return text if text.strip() or answer.cut_short or not answer.thoughts else _conclusion(answer.thoughts)


def _conclusion(thoughts: str) -> str:
    """Find what thoughts end with: their last sentence, or the JSON that they end with."""
    text = _FENCE.sub("", _SPECIAL.sub("", _MARK.sub("", thoughts))).strip()
    if text.endswith(("}", "]")):
        values = [text[start:end] for start, end, _ in json_in(text)]
        return values[-1] if values else ""
    sentences = [sentence for sentence in _SENTENCES.split(text) if sentence.strip()]
    return sentences[-1] if sentences else ""


def json_in(text: str, attempts: int = 1000) -> Iterator[tuple[int, int, Any]]:
    """Decode every JSON array or object in a text that is not part of another one.

    :param text: any text.
    :param attempts: brackets to try as a beginning; a flood of them is no answer.
    :return: where each begins and ends, and its value.
    """
    decoder = json.JSONDecoder()
    place = 0
    for tried, start in enumerate(re.finditer(r"[\[{]", text)):
        if tried >= attempts:
            return
        if start.start() < place:
            continue
        try:
            value, place = decoder.raw_decode(text, start.start())
        except RecursionError:
            return
        except ValueError:
            continue
        yield start.start(), place, value


def position_of(text: str, start: int, answer: Answer) -> tuple[Mapping[str, float], str]:
    """Find the log-probabilities at a place of the answer.

    :param text: the answer, as it was found in the reply.
    :param start: where in it.
    :param answer: the reply, whose positions may cover thoughts as well.
    :return: the probabilities of the token that begins there, and the token; nothing where the positions do not hold
        this answer.
    """
    likely = (max(tokens, key=tokens.__getitem__, default="") for tokens in answer.tokens)
    said = [_bare(token) for token in answer.said or likely]
    whole, spoken = _bare(text), "".join(said)
    # Log-probabilities that end before the answer does are its own where they begin with it.
    offset = 0 if spoken and whole.startswith(spoken) else spoken.rfind(whole) if whole else -1
    ends = list(accumulate(map(len, said)))
    place = bisect_right(ends, offset + len(_bare(text[:start])))
    if offset < 0 or place >= min(len(said), len(answer.tokens)):
        return {}, ""
    begins = ends[place] - len(said[place]) == offset + len(_bare(text[:start]))
    return (answer.tokens[place], said[place]) if begins else ({}, "")


def _bare(text: str) -> str:
    """Drop spaces, and the marks that tokenizers put for them."""
    return _FORMLESS.sub("", text)
