"""What of a reply is the answer, and where its log-probabilities are: found before anything is read from it."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from llama_index_refine.graders.asking.reply import Answer

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
