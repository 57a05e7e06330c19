"""What an LLM's answer says: yes or no, or a number, from its log-probabilities or else from its text."""

from __future__ import annotations

from collections.abc import Mapping

from llama_index_refine.graders.asking.answer import Answer, answer_in, found, position_of
from llama_index_refine.graders.asking.numbers import number_claim
from llama_index_refine.graders.asking.words import NO, YES, word
from llama_index_refine.graders.asking.yes_no import yes_or_no_claim

# A position of the answer is the verdict where at least this probability lies on tokens that are one; where the model
# wanted to chat and its text says nothing either, its first word still counts with the lower one.
_LEAST_MASS = 0.5
_FAINT_MASS = 0.1
_END = 1000


def yes_or_no(answer: Answer) -> float | None:
    """Read the answer to a yes/no question.

    :param answer: what the LLM said.
    :return: p(yes) / (p(yes) + p(no)) over all spellings of the two where there are log-probabilities of the word that
        answers, else 1 or 0 by the text; None where it says neither, or both.
    """
    text, _ = found(answer)
    text = _ends(text)
    claim, claimed = yes_or_no_claim(text)
    if claim is not None:
        tokens, said = position_of(text, claim.start, answer)
        yes, no = _yes_no_mass(tokens)
        says_so = word(said) in (YES if claim.value else NO)
        return yes / (yes + no) if says_so and yes + no >= _LEAST_MASS else claim.value
    if not claimed:
        yes, no = _yes_no_mass(_first_word(text, answer))
        if yes + no >= _FAINT_MASS:
            return yes / (yes + no)
    return None


def _first_word(text: str, answer: Answer) -> Mapping[str, float]:
    """Find the position where the answer's first word begins, past quotes and Markdown."""
    start = next((place for place, character in enumerate(text) if character.isalnum()), None)
    return position_of(text, start, answer)[0] if start is not None else {}


def _yes_no_mass(tokens: Mapping[str, float]) -> tuple[float, float]:
    yes = sum(probability for token, probability in tokens.items() if word(token) in YES)
    no = sum(probability for token, probability in tokens.items() if word(token) in NO)
    return yes, no


def yes_or_no_text(text: str) -> float | None:
    """Read yes as 1 and no as 0 from an answer in words; None where it is neither, or both."""
    claim, _ = yes_or_no_claim(_ends(answer_in(text)))
    return claim.value if claim is not None else None


def _ends(text: str) -> str:
    """Shorten an endless answer to where a verdict may stand."""
    return text if len(text) <= 2 * _END else f"{text[:_END]} ... {text[-_END:]}"


def number(answer: Answer, highest: int) -> float | None:
    """Read the answer to a question for a number from 0 to `highest`.

    :param answer: what the LLM said.
    :param highest: the end of the scale, 1 to 9.
    :return: the expected value over the digits where there are log-probabilities of the digit that answers, else the
        number in the text; None where there is none from 0 to `highest`, or more than one.
    """
    text, _ = found(answer)
    text = _ends(text)
    claim, claimed = number_claim(text, highest)
    if claim is None:
        return None if claimed else _expected(_first_word(text, answer), highest)
    tokens, said = position_of(text, claim.start, answer)
    bare = word(said)
    expected = _expected(tokens, highest) if bare.isdecimal() and int(bare) == claim.value else None
    return claim.value if expected is None else expected


def _expected(tokens: Mapping[str, float], highest: int) -> float | None:
    digits = [(int(bare), p) for token, p in tokens.items() if (bare := word(token)).isdecimal() and len(bare) < 10]
    on_scale = [(digit, p) for digit, p in digits if digit <= highest]
    mass = sum(p for _, p in on_scale)
    # Rounding can lead past the end of the scale.
    return min(sum(digit * p for digit, p in on_scale) / mass, float(highest)) if mass >= _LEAST_MASS else None


def number_text(text: str, highest: float) -> float | None:
    """Read a number from an answer in words; None where there is none from 0 to `highest`, or more than one."""
    claim, _ = number_claim(_ends(answer_in(text)), highest)
    return claim.value if claim is not None else None
