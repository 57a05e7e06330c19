"""What an LLM's answer says: yes or no, or a number, from its log-probabilities or else from its text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llama_index_refine.graders.asking.answer import Answer
from llama_index_refine.graders.asking.words import NO, YES, word

# Where the answer is a sentence: the last statement of this kind counts.
_STATEMENT = re.compile(
    r"\b(?:answer|verdict|judge?ment|conclusion|relevant|relevance)\b\W*(?:is|=|:)\W*\b(?P<word>yes|no|true|false)\b"
    r"|\b(?:it|(?:the|this)\s+(?:document|text|passage|article))\s*(?:is|seems|appears|'s)"
    r"(?P<negation>n.t|\s+not)?(?:\s+\w+ly)?\s+(?P<relevance>(?:ir)?relevant)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|cannot|can.t|unable|won.t|not able to|as an ai|not comfortable|decline)\b",
    re.IGNORECASE,
)
_ECHO = re.compile(r"\W*(?:yes\W+(?:or\W+)?no|no\W+(?:or\W+)?yes)\b", re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)|\A.*</think>", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.,-])\d+(?:[.,]\d+)?(?![\w]|[.,]\d)")
_GAP = re.compile(r"[^\w'\u2019▁Ġ\u0300-\u036f\u0900-\u0e7f]+")
_SENTENCE_END = re.compile(r"[.!?\n。]")
_STOPS = " \n\t.!?。*\"'`)]}"

# A position of the answer is the verdict where at least this probability lies on tokens that are one; where the model
# wanted to chat and its text says nothing either, its first word still counts with the lower one.
_LEAST_MASS = 0.5
_FAINT_MASS = 0.1
_END = 1000


def yes_or_no(answer: Answer) -> float | None:
    """Read the answer to a yes/no question.

    :param answer: what the LLM said.
    :return: p(yes) / (p(yes) + p(no)) over all spellings of the two where there are log-probabilities, else 1 or 0 by
        the text; None where neither says yes or no.
    """
    yes, no = _yes_no_mass(_first_word(answer.tokens))
    if yes + no >= _LEAST_MASS:
        return yes / (yes + no)
    by_text = yes_or_no_text(answer.text)
    if by_text is not None:
        return _softened(by_text, answer.tokens)
    if yes + no >= _FAINT_MASS and not _REFUSAL.search(answer.text):
        return yes / (yes + no)
    return None


def _first_word(positions: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """Find the first position that is a word, past spaces, quotes and Markdown."""
    return next((tokens for tokens in positions if tokens and word(max(tokens, key=tokens.__getitem__))), {})


def _softened(verdict: float, positions: Sequence[Mapping[str, float]]) -> float:
    """Put the probability in place of a verdict read from a sentence, where the sentence's last yes or no has one."""
    for tokens in reversed(positions):
        yes, no = _yes_no_mass(tokens)
        if yes + no >= _LEAST_MASS and (yes > no) == (verdict > 0.5):
            return yes / (yes + no)
    return verdict


def _yes_no_mass(tokens: Mapping[str, float]) -> tuple[float, float]:
    yes = sum(probability for token, probability in tokens.items() if word(token) in YES)
    no = sum(probability for token, probability in tokens.items() if word(token) in NO)
    return yes, no


def yes_or_no_text(text: str) -> float | None:
    """Read yes as 1 and no as 0 from an answer in words, in some thirty languages; None where it is neither.

    The first word decides ("Yes, because ..."), then a plain statement in English, then the last word of the last
    sentence. A refusal is no answer, whatever else it says, and neither is an echo of the question.
    """
    text = _ends(_THOUGHT.sub("", text))
    words = _words(text)
    if not words:
        return None
    if words[0] in YES or words[0] in NO:
        return None if _ECHO.match(text) else float(words[0] in YES)
    if _REFUSAL.search(text):
        return None
    statements = list(_STATEMENT.finditer(text))
    if statements:
        return float(_affirms(statements[-1]))
    end = set(_words(_SENTENCE_END.split(text.strip(_STOPS))[-1]))
    if words[-1] in YES or words[-1] in NO:
        return None if end & YES and end & NO else float(words[-1] in YES)
    return None


def _ends(text: str) -> str:
    """Shorten an endless answer to where a verdict may stand."""
    return text if len(text) <= 2 * _END else f"{text[:_END]} ... {text[-_END:]}"


def _words(text: str) -> list[str]:
    return [bare for part in _GAP.split(text) if (bare := word(part))]


def _affirms(statement: re.Match[str]) -> bool:
    if statement["word"]:
        return statement["word"].casefold() in ("yes", "true")
    return statement["relevance"].casefold() == "relevant" and not statement["negation"]


def number(answer: Answer, highest: int) -> float | None:
    """Read the answer to a question for a number from 0 to `highest`.

    :param answer: what the LLM said.
    :param highest: the end of the scale, 1 to 9.
    :return: the expected value over the digits where there are log-probabilities, else the number in the text; None
        where there is none from 0 to `highest`.
    """
    digits = [(int(bare), p) for token, p in _first_word(answer.tokens).items() if (bare := word(token)).isdecimal()]
    on_scale = [(digit, p) for digit, p in digits if digit <= highest]
    mass = sum(p for _, p in on_scale)
    if mass >= _LEAST_MASS:
        return sum(digit * p for digit, p in on_scale) / mass
    return number_text(answer.text, highest)


def number_text(text: str, highest: float) -> float | None:
    """Read the first number of a text; None where there is none or it is not from 0 to `highest`.

    "2/3", "2 out of 3" and "2,5" are 2, 2 and 2.5.
    """
    text = _ends(_THOUGHT.sub("", text))
    if _REFUSAL.search(text):
        return None
    match = _NUMBER.search(text)
    if match is None:
        return None
    value = float(match.group().replace(",", "."))
    return value if value <= highest else None
