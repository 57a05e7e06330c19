"""Yes or no, from an answer in words."""

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
from llama_index_refine.graders.asking.words import ADJECTIVES, NO, WEAK, YES, word

_I = re.IGNORECASE
_WORD = re.compile(r"[\w'\u2019\u0300-\u036f\u0900-\u0e7f]+")
# Of a form's boxes, those without a mark, and the marks of the others.
_BOXES = re.compile(
    r"(?:\[ \]|[\u2610\u25a1\u25fb\u2b1c])\s*[^\W_]+|\[[xX\u2713\u2714]\]|[\u2611\u2612\u25a0\u2705\u2714]"
)
# The question's own choice, and answers that choose both: blanked before anything is read.
_BOTH = re.compile(
    r"\b(?:yes\b[\"'*`\u201d\u2019)]*(?:\s*,?\s*(?:or|and)\s+|\s*[/|]\s*|[\s,]+)[\"'*`\u201c\u2018(]*no"
    r"|no\b[\"'*`\u201d\u2019)]*(?:\s*,?\s*(?:or|and)\s+|\s*[/|]\s*|[\s,]+)[\"'*`\u201c\u2018(]*yes"
    r"|true\s*(?:or|/|\|)\s*false|relevant\s*(?:or|/|\|)\s*(?:not(?:\s+relevant)?|irrelevant))\b",
    _I,
)
_LABELS = (
    r"relevan(?:t|ce|cy)|answer|verdict|judge?ment|decision|conclusion|result|response|output|label|classification"
    r"|assessment|evaluation|match(?:es)?|determination|rating|prediction|boxed|final"
    r"|r\u00e9ponse|antwort|respuesta|resposta|risposta|\u043e\u0442\u0432\u0435\u0442|\u7b54\u6848|\u56de\u7b54|\u7ed3\u8bba|\u7d50\u8ad6|\u76f8\u5173\u6027?"
)
_BIT = r"[01](?!\w|\s*[.,/%-]\s*\d|\s*%|\s*(?:out )?of\b)"
_VALUE = (
    rf"{OPENING}(?:an?\s+|clear(?:ly)?\s+|definite(?:ly)?\s+)?"
    rf"(?P<value>(?:not[\s_-]+)?[^\W\d_]+[\u0900-\u0e7f]*|{_BIT})"
)
_LABEL = re.compile(
    rf"(?<![^\W_])(?:(?P<draft>{DRAFT})\W+)?(?:(?P<final>{FINAL})\W+)?(?P<negated>(?:not|non|ir|un)[\s_-]*)?"
    rf"(?:{_LABELS})(?=(?:(?P<gap>[^.!?\n:=<>{{]{{0,40}}?)(?:{SEPARATOR})|{END_OF_LINE}){_VALUE})",
    _I,
)
_IS = re.compile(
    rf"(?<![^\W_])(?:(?P<draft>{DRAFT})\W+)?(?:(?P<final>{FINAL})\W+)?(?P<negated>(?!))?"
    rf"(?:answer|verdict|judge?ment|decision|conclusion|relevance)"
    rf"(?=(?P<gap>)\W{{0,3}}\s*(?:is|would be)\b\s*:?{_VALUE})",
    _I,
)
_STATEMENT = re.compile(
    r"\b(?:document|text|passage|article|content|it|this|that|snippet|page)\b[^.!?\n:]{0,30}?"
    r"(?:\b(?:is|are|seems?|appears?|looks?|be)|'s|isn.t|aren.t)\b(?P<between>[^.!?\n:]{0,25}?)\b(?P<word>(?P<ir>ir|un)?rel(?:evant|ated))\b"
    r"(?!\s*[:?]|\s+to\s+(?!(?:the|this|your|that|a|given)\s+(?:\w+\s+)?(?:query|question|search|topic|user)|it\b|what\b|your\b))",
    _I,
)
_DENIAL = re.compile(
    r"\b(?:do(?:es)?(?:n.t| not)|not|never)\s+(?:\w+\s+)?(?:think|believe|consider|find|see|say)"
    r"[^.!?\n]{0,60}\brelevant\b"
    r"|\b(?:of|has|have|is of) no relevance\b",
    _I,
)
_NOT = re.compile(r"\bnot\b|n.t\b|\bnever\b|\bno\b|\bhardly\b|\bbarely\b|\bneither\b|\bnor\b|\bfar from\b", _I)
_HEDGE = re.compile(
    r"\b(?:whether|if|unclear|unsure|uncertain|depends?|might|may|could|perhaps|possibly|potentially|partly|partially"
    r"|somewhat|slightly|marginally|loosely|only|hard to|difficult to|determine|judge|decides?|asks?|asked"
    r"|question|would be|seemed?|at first|think(?:s|ing)?)\b",
    _I,
)
_SENTENCE = re.compile(r"[.!?\n\u3002]")
_FINAL = re.compile(rf"\b(?:{FINAL})\b", _I)
# After a first word: it stands alone.
_ALONE = re.compile(
    r"[\"'*_`\u201d\u2019\u00bb\u300d\u300f)\]}~]*\s*(?:\Z|[.,;!\n<(|\u2014\u2013\u2026\u3002\uff0c\u3001\uff01\uff1b-])"
)
# After a word that describes: it is a label.
_A_LABEL = re.compile(r"[^.!\n,;]{0,60}?(?:[:?=|\uff1a\u2192]|->)")
_NO_BUT = re.compile(
    r"\s+(?:doubt|question|problem|matter|longer|one\b|less|reason to|way to|idea|clue|answer|opinion|comment|more"
    r"|need|wonder|clear|wait|yes)\b|\.?\s*\d",
    _I,
)
# Before a first word: it only makes it stronger.
_STRONGER = re.compile(
    r"\W*(?:(?:it(?:'s| is)|is|this is)\W+)?(?:(?:highly|very|clearly|directly|definitely|absolutely"
    r"|certainly|completely|totally|entirely|strongly|surely|of course|most likely)\W+)?"
    r"(?=(?:not|relevant|irrelevant|unrelated)\b)",
    _I,
)
_YES_BUT = re.compile(r"\s+(?:and|or|but|if|only|no|maybe)\b", _I)
_BECAUSE = re.compile(r"[\"'*_`\u201d\u2019)]*\s+(?:to|because|since|as|for)\b", _I)
_NOT_RELEVANT = re.compile(r"[\s_-]+(?:at all|really|relevant|related|a match)\b", _I)
_LEADS_TO = re.compile(
    r"(?:[:,\u2014\u2013>=(\"'*`\u201c-]|\b(?:so|say|is|answer|therefore|thus|hence|a|be|\w+ly))[\s\"'*`\u201c(]*\Z|\A\s*\Z"
    r"|[.!\n\u3002][\s\"'*`\u201c(]*\Z",
    _I,
)
_KEYS = re.compile(
    r"relevan|answer|verdict|judg|decision|result|label|match|classif|response|output|predict|conclu|assess|final", _I
)
_SCORE = re.compile(r"score|rating|grade|rank|level|mark|point", _I)
_NEGATED_KEYS = re.compile(r"(?:not|non|ir|un)[\s_-]*relevan", _I)


def yes_or_no_claim(text: str) -> tuple[Claim | None, bool]:
    """Read yes as 1 and no as 0.

    JSON, labels ("Relevance: Yes"), the first word ("Yes, because ..."), plain statements in English and the last word
    are read, in some thirty languages where a word is enough. A refusal is no answer, whatever else it says, and
    neither is an echo of the question.

    :param text: an answer, without thoughts.
    :return: the claim, None where there is none or they contradict each other; and whether anything was claimed at all.
    """
    if (digit := text.strip(" \n\t.*_`\"'")) in ("0", "1"):
        return Claim(float(digit), text.index(digit)), True
    text = _BOXES.sub(lambda match: " " * len(match.group()), text)
    text = _BOTH.sub(lambda match: " " * len(match.group()), text)
    in_json, text = json_claims(text, _of_json, _KEYS, _NEGATED_KEYS)
    plain = [*in_json, *_labelled(text), *_first(text)]
    if not plain and REFUSAL.search(text):
        return None, True
    claims = [*plain, *_stated(text), *_closing(text)]
    return decide(claims), bool(claims)


def _of_json(key: str, value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, (int, float)) and value in (0, 1):
        # The 1 of a score may be the least or the most.
        return None if value and _SCORE.search(key) else float(value)
    if not isinstance(value, str):
        return None
    return _of_word(value) if len(value) < 40 else None


def _of_word(value: str) -> float | None:
    """Read a word, or two with a not."""
    bare = word(value)
    if bare in ("0", "1"):
        return float(bare)
    if bare.startswith("not") and bare[3:] in ("relevant", "related", "amatch", "true", "correct"):
        return 0.0
    if bare == "not":
        return None
    return float(bare in YES) if bare in YES or bare in NO else None


def _labelled(text: str) -> Iterator[Claim | None]:
    for match in (*_LABEL.finditer(text), *_IS.finditer(text)):
        value = match["value"]
        verdict = _of_word(value) if len(value) < 40 else None
        tail = text[match.end("value") :]
        if verdict is None and " " in value.strip():
            verdict, tail = _of_word(value.split()[0]), text[match.start("value") + len(value.split()[0]) :]
        gap = match["gap"] or ""
        final = bool(match["final"] or _FINAL.search(_sentence_to(text, match.start())))
        if word(value) == "1" and _SCORE.search(f"{match.group()}{gap}"):
            continue
        if verdict is None or match["draft"] or _NOT.search(gap) or _HEDGE.search(gap):
            continue
        if word(value) in ADJECTIVES and _A_LABEL.match(tail):
            continue
        if _unlike_an_answer(value, tail):
            yield None
        elif match["negated"] and "relevant" not in word(value):
            yield Claim(1 - verdict, match.start("value"), final)
        else:
            yield Claim(verdict, match.start("value"), final)


def _unlike_an_answer(value: str, tail: str) -> bool:
    """Whether a word that may be an answer goes on as something else: "no doubt", "da der Text ..."."""
    bare = word(value)
    if bare in WEAK and not _ALONE.match(tail):
        return True
    return bool(_NO_BUT.match(tail) if bare == "no" else bare == "yes" and _YES_BUT.match(tail))


def _first(text: str) -> Iterator[Claim | None]:
    stronger = _STRONGER.match(text)
    begin = stronger.end() if stronger else 0
    match = next((match for match in _WORD.finditer(text, begin) if word(match.group())), None)
    if match is None or not (word(match.group()) in YES or word(match.group()) in NO):
        return
    bare, tail = word(match.group()), text[match.end() :]
    if bare == "not":
        if _NOT_RELEVANT.match(tail) or (begin and text[:begin].strip() and _ALONE.match(tail)):
            yield Claim(0.0, match.start())
    elif bare in ADJECTIVES:
        if (_ALONE.match(tail) or _BECAUSE.match(tail)) and not _A_LABEL.match(tail):
            yield Claim(float(bare in YES), match.start())
    elif bare in WEAK:
        if _ALONE.match(tail):
            yield Claim(float(bare in YES), match.start())
    elif not _unlike_an_answer(match.group(), tail):
        yield Claim(float(bare in YES), match.start())


def _stated(text: str) -> Iterator[Claim]:
    for match in _DENIAL.finditer(text):
        yield Claim(0.0, match.start(), bool(_FINAL.search(_sentence_to(text, match.start()))))
    for match in _STATEMENT.finditer(text):
        before = _sentence_to(text, match.start())
        if _HEDGE.search(before) or _HEDGE.search(match.group()) or _DENIAL.search(f"{before}{match.group()}"):
            continue
        denied = bool(_NOT.search(match.group()[: match.end("between") - match.start()]))
        affirms = denied if match["ir"] else not denied
        yield Claim(float(affirms), match.start("word"), bool(_FINAL.search(before)))


def _sentence_to(text: str, end: int) -> str:
    return _SENTENCE.split(text[max(0, end - 200) : end])[-1]


def _closing(text: str) -> Iterator[Claim]:
    """Read the last word, where what stands before it leads to it."""
    words = [match for match in _WORD.finditer(text, max(0, len(text) - 300)) if word(match.group())]
    if not words:
        return
    last, bare = words[-1], word(words[-1].group())
    answers = (bare in YES or bare in NO) and bare not in ADJECTIVES and bare not in WEAK and bare != "not"
    sentence = _sentence_to(text, last.start())
    if answers and _LEADS_TO.search(text[max(0, last.start() - 40) : last.start()]) and not _HEDGE.search(sentence):
        yield Claim(float(bare in YES), last.start(), bool(_FINAL.search(sentence)))
