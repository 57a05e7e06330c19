"""What an answer claims, in however many places, and what it then says as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llama_index_refine.graders.asking.answer import json_in

_DEPTH = 6

# Words before a label or in a sentence that tell a draft from the last word.
DRAFT = r"draft|initial|first|preliminary|tentative|provisional|previous|wrong|old"
FINAL = r"final|finally|revised|corrected|overall|actual|actually|therefore|thus|hence|conclusion|summary"
# Between a label and its value.
SEPARATOR = r"[\"'*_`)\]\s]*(?:[:=?>{|\uff1a\u2192]|[-\u2013\u2014]+>?\s)"
END_OF_LINE = r"[ \t]*[*_`#]*[ \t]*\n"
OPENING = r"(?:[^\w.!?,;:]|_){0,12}(?:\\?(?:text|math)(?:bf|it|rm|tt|sf)?\{)?"
REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|cannot|can.t|unable|won.t|not able to|as an ai|not comfortable|decline)\b", re.IGNORECASE
)
_NO_ANSWER = re.compile(
    r"reason|expla|confid|probab|max|scale|query|thought|document_?(?:id|number)|^id$|^doc", re.IGNORECASE
)


@dataclass(frozen=True)
class Claim:
    """One place where an answer says something.

    :param value: what it says.
    :param start: where in the text the word or number stands.
    :param final: it is said to be the last word.
    """

    value: float
    start: int
    final: bool = False


def decide(claims: Iterable[Claim | None]) -> Claim | None:
    """Say what an answer says as a whole: what is called final, or else what all claims agree on.

    :param claims: the claims, None for one that makes the answer doubtful.
    :return: the claim that stands for the answer; None where there is none, or where they contradict each other.
    """
    made: list[Claim | None] = []
    for claim in claims:
        # One word is one claim: what was read first, by the label before it, knows best.
        if claim is None or all(other is None or other.start != claim.start for other in made):
            made.append(claim)
    finals = [claim for claim in made if claim is not None and claim.final]
    counted: list[Claim | None] = [*finals] if finals else made
    if not counted or None in counted or len({claim.value for claim in counted if claim is not None}) > 1:
        return None
    return counted[0]


def json_claims(
    text: str, read: Callable[[str, Any], float | None], keys: re.Pattern[str], negated: re.Pattern[str] | None = None
) -> tuple[list[Claim | None], str]:
    """Find what the JSON in a text claims.

    :param text: the answer.
    :param read: reads the value of a key, None where it is none.
    :param keys: the names of entries that hold an answer; where no entry has one, an only value does.
    :param negated: names of entries whose values mean their opposite.
    :return: the claims, and the text with blanks in the place of the JSON that makes them.
    """
    claims: list[Claim | None] = []
    rest = text
    for start, end, value in json_in(text):
        named: list[Claim | None] = []
        others: list[Claim | None] = []
        for key, inner in _leaves(value):
            number = read(key, inner)
            if number is None or _NO_ANSWER.search(key):
                continue
            opposite = negated is not None and negated.search(key) is not None
            claim = Claim(1 - number if opposite else number, _place(text, start, end, key, inner))
            (named if keys.search(key) or opposite else others).append(claim)
        made = named or (others if len(others) == 1 else [])
        if made:
            claims += made
            rest = rest[:start] + " " * (end - start) + rest[end:]
    return claims, rest


def _leaves(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > _DEPTH:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            # What a bare "value" or "text" is the value of, its parent says.
            yield from _leaves(
                inner, key if str(name).casefold() in ("value", "text") and key else str(name), depth + 1
            )
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, key, depth + 1)
    else:
        yield key, value


def _place(text: str, start: int, end: int, key: str, value: Any) -> int:
    """Find where in a text a value of its JSON stands."""
    after = max(text.find(f'"{key}"', start, end), start)
    literal = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    place = text.find(literal, after + len(key), end)
    return place if place >= 0 else start
