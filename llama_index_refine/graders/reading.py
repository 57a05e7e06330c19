# ruff: noqa: RUF001
"""What an LLM's answer says: yes or no, or a number. It is read narrowly.

What counts is a word or number that stands alone at the beginning or on the last line, a line with a label ("Relevance:
Yes") or JSON; then the log-probabilities at its place decide. No sentence is interpreted. What contradicts itself, and
whatever else a model may say, is no grade.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from llama_index_refine.graders.asking.answer import Answer, found, position_of

_NOT_A_LETTER = re.compile(r"[\W_]+")

_YES = (
    "yes y yeah yep true relevant correct oui vrai pertinent relevante ja jawohl relevant sí si sim sì da да "
    "так tak ano áno igen evet kyllä jah taip jā はい 関連あり 是 是的 相关 相關 有关 有關 对 "
    "네 예 ya có vâng đúng ใช่ po ναι نعم بله हाँ हां כן"
)
_NO = (
    "no n nope false irrelevant unrelated incorrect notrelevant notrelated notatall non faux irrelevante "
    "nein nee nej nei ikke não nao нет ні nie ne nem nu hayır hayir ei いいえ 関連なし 否 不 不是 不相关 "
    "不相關 无关 無關 没有 아니요 아니오 아니 tidak không ไม่ ไม่ใช่ όχι لا خیر नहीं לא"
)


def word(token: str) -> str:
    """Bring a token or word to its bare letters and digits, lower case.

    Spaces, quotes, stops and Markdown go, and so do the marks that tokenizers put for a leading space (▁, Ġ).
    """
    folded = unicodedata.normalize("NFKC", token).replace("Ġ", "").replace("Ċ", "").casefold()
    return _NOT_A_LETTER.sub("", folded)


# What each of these words says.
_VALUES = {word(entry): value for words, value in ((_NO, 0.0), (_YES, 1.0)) for entry in words.split()}
# A position of the answer is the verdict where at least this probability lies on tokens that are one; where the model
# wanted to chat and its text says nothing, its first word still counts with the lower one.
_LEAST_MASS = 0.5
_FAINT_MASS = 1 / 3
_LONGEST = 1000

_I = re.IGNORECASE | re.MULTILINE
_WORD = r"(?:not[\s_-]+(?:at all|relevant|related)\b|[\w'’\u0300-\u036f\u0900-\u0e7f]+)"
_DIGITS = r"(?<![\w.,<≤≥-])\d{1,9}(?:[.,]\d{1,9})?(?![\w%+])"
_OPENING = r"(?:[^\w\n.!?,;:<-]|_){0,12}(?:\\?(?:boxed|text|math)(?:bf|it|rm|tt|sf)?\{){0,2}[*_`\"'“‘]{0,4}"
_MARKS = r"[\"'*_`”’»」』)\]}$~]*\s*"
_ALONE = re.compile(_MARKS + r"(?:\Z|[.,;!:\n<(|—–…。，、！；}]|-(?=\s))(?!,?\s*but\b)")
# What describes a document is a label where more of its line follows: "Relevant (to cats): no".
_DESCRIBES = frozenset("relevant irrelevant unrelated notrelevant true false correct incorrect 相关 不相关".split())  # noqa: SIM905
_DESCRIBED = re.compile(_MARKS + r"(?:\Z|[.,;!\n。}])")
_NUMBERED = re.compile(r"\s*[分点점]?" + _ALONE.pattern)

# A line, a sentence, or an entry of JSON; within JSON's strings a quote is escaped.
_BEGIN = r"(?:(?:^|(?<=[.!?])\s)[^\w\n]{0,12}|[{,]\s*[\"'])"
_LEAD = r"(?:(?:so|thus|therefore|hence)\W+)?(?:(?:the|my)\W+)?(?:(?:final|overall|correct)\W+)?"
_SEPARATOR = r"[\"'*_`)\]\s]*(?:[:=>|{：→]|[-–—]+>?\s|\n)\s*|\s+(?:is|of)\b\s*:?\s*"
_NAMES = (
    "relevant|relevance|answer|verdict|judge?ment|decision|conclusion|result|label|classification|assessment|evaluation"
    "|rating|boxed|final|réponse|antwort|respuesta|resposta|risposta|ответ|答案|回答|结论|相关性?"
)
_SCORES = "score|rating|relevan(?:ce|cy)|grade|mark|level|answer|verdict|result|value|output|boxed|final|评分"
_ASIDE = r"(?:\s*\([^()\n]{0,40}\))?"
_YES_NO_LABEL = re.compile(
    # A label may stand in a tag: "<answer>Relevant: yes</answer>".
    rf"{_BEGIN}(?:\w{{1,12}}>[^\w\n]{{0,12}})?{_LEAD}(?:is_?)?(?:{_NAMES})(?:\s+to the (?:search )?query)?{_ASIDE}"
    rf"(?:{_SEPARATOR}|\?\s*){_OPENING}"
    rf"(?P<value>{_WORD})",
    _I,
)
_SCORE_LABEL = re.compile(
    rf"{_BEGIN}(?P<label>{_LEAD}(?:(?:relevance[ _])?(?:{_SCORES}){_ASIDE}(?:{_SEPARATOR}|[ \t])"
    rf"|on a scale (?:of|from) \d+ ?(?:to|-) ?\d+,?{_ASIDE}(?:{_SEPARATOR}|[ \t])){_OPENING})(?P<value>{_DIGITS})",
    _I,
)
_FIRST_WORD = re.compile(rf"\A[\W_]*(?P<value>{_WORD})", _I)
_LAST_WORD = re.compile(rf"[.!?\n。][\W_]*(?P<value>{_WORD})[\W_]*\Z", _I)
_FIRST_NUMBER = re.compile(rf"\A[\W_]*?(?P<value>{_DIGITS})(?![.)]\s+\S)", _I)
_LAST_NUMBER = re.compile(rf"\n[\W_]*?(?P<value>{_DIGITS})", _I)
_OF = re.compile(r"[*_`\"']*\s*(?:/|(?:out )?of\b)\s*(?P<highest>\d+)", _I)
_ITEM = re.compile(r"^[\s*#-]*\d+\**\s?[.):=–-]\s", re.MULTILINE)


class _Claim(NamedTuple):
    value: float
    start: int


def yes_or_no(answer: Answer) -> float | None:
    """Read the answer to a yes/no question.

    :param answer: what the LLM said.
    :return: p(yes) / (p(yes) + p(no)) over all spellings of the two where there are log-probabilities of the word that
        answers, else 1 or 0 by the text; None where it says neither, or both.
    """
    return _verdict(answer, _words, _of_word, _FAINT_MASS)


def number(answer: Answer, highest: int) -> float | None:
    """Read the answer to a question for a number from 0 to `highest`; "2/3" and "2 out of 3" are 2, "2,5" is 2.5.

    :param answer: what the LLM said.
    :param highest: the end of the scale, 1 to 9.
    :return: the expected value over the digits where there are log-probabilities of the digit that answers, else the
        number in the text; None where there is none from 0 to `highest`, or more than one.
    """
    return _verdict(answer, partial(_numbers, highest=highest), partial(_digit, highest=highest), _LEAST_MASS)


def _verdict(
    answer: Answer, claims_in: Callable[[str], Iterable[_Claim]], value_of: Callable[[str], float | None], faint: float
) -> float | None:
    """Read a verdict: what all claims in the text say, finer by the probabilities where the first one stands.

    :param claims_in: finds the claims in a text; a value below 0 is none of this scale.
    :param value_of: the value that a token is, None where it is none.
    :param faint: how likely values must be where the text begins, where it claims nothing and begins with no value.
    """
    text = _ends(found(answer))
    claims = [*claims_in(text)]
    if not claims:
        first = _FIRST_WORD.search(text)
        if first is None or first["value"].isdecimal() or value_of(first["value"]) is not None:
            return None
        return _expected(position_of(text, first.start("value"), answer)[0], value_of, faint)
    value, start = claims[0]
    if value < 0 or any(claim.value != value for claim in claims):
        return None
    tokens, said = position_of(text, start, answer)
    expected = _expected(tokens, value_of, _LEAST_MASS) if value_of(said) == value else None
    return value if expected is None else expected


def _ends(text: str) -> str:
    """Shorten an endless answer to where a verdict may stand."""
    return text if len(text) <= 2 * _LONGEST else f"{text[:_LONGEST]} ... {text[-_LONGEST:]}"


def _of_word(token: str) -> float | None:
    return _VALUES.get(word(token))


def _digit(token: str, highest: int) -> float | None:
    bare = word(token)
    return float(bare) if bare.isdecimal() and len(bare) < 10 and int(bare) <= highest else None


def _words(text: str) -> Iterator[_Claim]:
    if (digit := text.strip(" \n\t.*_`\"'")) in ("0", "1"):
        yield _Claim(float(digit), text.index(digit))
    for form in (_YES_NO_LABEL, _FIRST_WORD, _LAST_WORD):
        for match in form.finditer(text):
            bare, tail = word(match["value"]), text[match.end("value") :]
            value = float(bare) if form is _YES_NO_LABEL and bare in ("0", "1") else _of_word(match["value"])
            alone = _DESCRIBED if bare in _DESCRIBES else _ALONE
            if value is not None and alone.match(tail) and not re.match(r"[.,]?\s*\d", tail):
                yield _Claim(value, match.start("value"))


def _numbers(text: str, highest: int) -> Iterator[_Claim]:
    listed = len(_ITEM.findall(text)) > 1
    for form in (_SCORE_LABEL, *(() if listed else (_FIRST_NUMBER, _LAST_NUMBER))):
        for match in form.finditer(text):
            of = _OF.match(text, match.end())
            scales = re.findall(r"\d+", match.groupdict().get("label") or "")[-1:] + ([of["highest"]] if of else [])
            alone = _NUMBERED.match(text, of.end() if of else match.end())
            if not alone or re.match(r"\s*[-–]\s*\d", text[match.end() :]) or text[match.end() :].strip() == "..":
                continue
            # Another scale, and what may be thousands, is no number of this one.
            on_scale = all(int(scale) == highest for scale in scales)
            thousands = re.fullmatch(r"\d{1,3}[.,]\d{3}", match["value"])
            value = float(match["value"].replace(",", ".")) if on_scale and not thousands else -1.0
            yield _Claim(value if value <= highest else -1.0, match.start("value"))


def _expected(tokens: Mapping[str, float], value_of: Callable[[str], float | None], least: float) -> float | None:
    """The expected value over the tokens that are one, where so much probability lies on them."""
    known = [(value, probability) for token, probability in tokens.items() if (value := value_of(token)) is not None]
    mass = sum(probability for _, probability in known)
    # Rounding can lead past the end of the scale.
    return min(sum(value * p for value, p in known) / mass, max(known)[0]) if mass >= least else None
