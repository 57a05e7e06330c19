"""A number from 0 to N, from an answer in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from llama_index_refine.graders.asking.claims import (
    DRAFT,
    END_OF_LINE,
    FINAL,
    OPENING,
    REFUSAL,
    SEPARATOR,
    Claim,
    decide,
    json_claims,
)

_I = re.IGNORECASE
_DIGITS = r"(?<![\w.,<\u2264\u2265-])\d{1,9}(?:[.,]\d{1,9})?(?!(?![\u5206\u70b9\uc810])[\w%+]|[.,]\d|\s*(?:%|percent))"
_NUMBER = re.compile(_DIGITS)
_TO = r"\s*(?:to|through|until|and|bis|\u00e0|-|\u2013|\u2014|\.\.+|\u2026)\s*"
_ASIDE = r"(?:\s*\([^()\n]{0,40}\))?"
# A scale that is said again, with its ends or all of its levels: blanked before anything is read.
_SCALE = re.compile(
    rf"(?:\b(?P<scale>scale|range)|\bbetween|\bfrom)\b[^.\n\d]{{0,20}}\d+{_ASIDE}{_TO}(?P<end>\d+){_ASIDE}"
    rf"|(?<![\w.,])[01]{_TO}(?P<other_end>\d+)(?!\s*[/\d])"
    r"|(?<![\w.,])0\s*,\s*1\s*(?:,\s*\d\s*)*(?:,?\s*(?:or|and)\s*\d+)?|\(\s*\d\s*[=:\u2013-](?!\s*\d+\s*\))[^()\n]*\)"
    r"|\bwhere\b[^.:\n]{0,120}(?=:)|\b(?:max(?:imum)?|highest|lowest|min(?:imum)?|best|worst)\b[^.\n\d]{0,20}\d+",
    _I,
)
_LEVEL = re.compile(r"(?<![\w.,])\d(?=\s*[=:\u2013-]\s)")
_OF = re.compile(
    r"(?P<before>\d\s*)?(?P<of>/|\bout of\b|(?<=\d )(?:of|de|di|von|van|av|\u0438\u0437|sur)\b)"
    r"\s*(?P<highest>\d+(?:[.,]\d+)?)",
    _I,
)
_LABELS = (
    r"score|rating|relevan(?:ce|cy|t)|grade|mark|level|answer|verdict|judge?ment|result|value|number|output|response"
    r"|boxed|scale|assessment|evaluation|final"
)
_LABEL = re.compile(
    rf"(?<![^\W_])(?:(?P<draft>{DRAFT})\W+)?(?:(?P<final>{FINAL})\W+)?(?:{_LABELS})"
    rf"(?=(?:[^.!?\n\d:=]{{0,40}}?(?:{SEPARATOR}|\s+(?:is|of|at|would be|as)\b|[ \t])|{END_OF_LINE})"
    rf"{OPENING}(?:an?\s+|level\s+)?(?P<number>{_DIGITS}))",
    _I,
)
_GIVEN = re.compile(
    rf"\b(?:give|rate|rated|assign|score|scored|grade|graded|mark|choose|pick|say|deserves?|gets?|earns?|it's|is)\b"
    rf"(?=(?:\W+(?:it|this|the|document|text|passage|a|an|as|at|with|score|rating|of|relevance|to|level)){{0,6}}\W{{1,4}}"
    rf"(?P<number>{_DIGITS})(?P<tail>[\s\S]{{0,3}}))",
    _I,
)
_ALONE = re.compile(
    r"[*_`\"'\u201d\u2019)\]}]*\s*(?:\Z|[\u5206\u70b9\uc810]|[.,;:!\n(\[<|=\u2014\u2013\u3002-]"
    r"|(?:because|since|as|stars?|points?|on an?)\b)"
)
_RANGE = re.compile(r"\s*(?:-|\u2013|or|to|and|~)\s*\d", _I)
_ITEM = re.compile(r"^[\s*#-]*\d+\**\s?[.):=\u2013-]\s", re.MULTILINE)
_LAST = re.compile(rf"(?:\A|[\n:=>\u2192\uff1a])[\s*_`\"'(\[]*(?P<number>{_DIGITS})[\W_\u5206\u70b9\uc810]*\Z")
_WORDS = {name: value for value, name in enumerate("zero one two three four five six seven eight nine".split())}  # noqa: SIM905
_IN_LETTERS = re.compile(
    rf"(?:\A|:|\b(?:score|rating|grade|mark|relevance|answer|it)\s+(?:is|of))[\W_]*(?P<word>{'|'.join(_WORDS)})[\W_]*\Z",
    _I,
)
_SHORT = 40
_KEYS = re.compile(r"score|relevan|rating|grade|mark|answer|level|value|result|verdict|label|output|final", _I)


def number_claim(text: str, highest: float) -> tuple[Claim | None, bool]:
    """Read a number from 0 to `highest`; "2/3", "2 out of 3" and "2,5" are 2, 2 and 2.5.

    :param text: an answer, without thoughts.
    :param highest: the end of the scale.
    :return: the claim, None where there is none, where they contradict each other or leave the scale; and whether there
        is any number at all.
    """
    if REFUSAL.search(text):
        return None, True
    claims, text = json_claims(text, _of_json, _KEYS)
    on_scale, blanked = _without_scales(text, highest)
    claims += _labelled(blanked) if on_scale else [None]
    claims += [*_first(blanked), *_given(blanked), *_last(blanked), *_word(text)]
    claim = decide(claims)
    if claim is not None and not 0 <= claim.value <= highest:
        claim = None
    return claim, bool(claims) or _NUMBER.search(text) is not None


def _without_scales(text: str, highest: float) -> tuple[bool, str]:
    """Blank the scale where it is said again. :return: whether it is this scale, and the text with blanks."""
    fits = True

    def of(match: re.Match[str]) -> str:
        nonlocal fits
        if match["before"] or match["of"] != "/":
            fits = fits and float(match["highest"].replace(",", ".")) == highest
        return (match["before"] or "") + " " * (len(match.group()) - len(match["before"] or ""))

    def blank(match: re.Match[str]) -> str:
        nonlocal fits
        end = match["other_end"] or (match["end"] if match["scale"] else None)
        fits = fits and (end is None or float(end) == highest)
        return re.sub(r"\d", " ", match.group())

    if {"0", "1"} <= {match.group() for match in _LEVEL.finditer(text)}:
        text = _LEVEL.sub(" ", text)
    blanked = _OF.sub(of, _SCALE.sub(blank, text))
    return fits, blanked


def _of_json(key: str, value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value) if abs(value) < 1e9 else None
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d{1,9}(?:[.,]\d{1,9})?)\s*(?:/\s*\d+)?\s*", value)):
        return _value(match[1])
    return None


def _value(digits: str) -> float | None:
    """Read digits; what may be thousands is no number of a scale."""
    return None if re.fullmatch(r"\d{1,3}[.,]\d{3}", digits) else float(digits.replace(",", "."))


def _claim(text: str, match: re.Match[str], final: bool = False) -> Claim | None:
    start, end = match.span("number")
    value = _value(match["number"])
    return None if value is None or _RANGE.match(text[end:]) else Claim(value, start, final)


def _labelled(text: str) -> Iterator[Claim | None]:
    for match in _LABEL.finditer(text):
        if not match["draft"]:
            yield _claim(text, match, bool(match["final"]))


def _given(text: str) -> Iterator[Claim | None]:
    for match in _GIVEN.finditer(text):
        if _ALONE.match(text[match.end("number") :]):
            yield _claim(text, match)


def _first(text: str) -> Iterator[Claim | None]:
    """Read a number that the answer begins with, where it is not the first of a list."""
    match = re.match(rf"[\W_]*(?P<number>{_DIGITS})", text)
    if match is None:
        return
    tail = text[match.end() :]
    items = len(_ITEM.findall(text))
    if items > 1 or (match["number"] == "1" and re.match(r"[.)]\s*\w", tail)):
        return
    if re.match(r"[.)]\s+\*\*", tail):
        return
    if _ALONE.match(tail) or _RANGE.match(tail):
        yield _claim(text, match)


def _last(text: str) -> Iterator[Claim | None]:
    """Read a number that the answer ends with."""
    match = _LAST.search(text, max(0, len(text) - 100))
    if match is None and len(text.strip()) <= _SHORT:
        match = re.search(rf"(?P<number>{_DIGITS})[\W_]*\Z", text)
    if match is not None and not _RANGE.search(text[max(0, match.start("number") - 8) : match.end("number")]):
        yield _claim(text, match)


def _word(text: str) -> Iterator[Claim]:
    """Read a number in letters, where it is the whole answer, or all that follows its label."""
    match = _IN_LETTERS.search(text) if len(text) <= _SHORT else None
    if match is not None:
        yield Claim(float(_WORDS[match["word"].casefold()]), match.start("word"))
