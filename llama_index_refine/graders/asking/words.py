# ruff: noqa: RUF001
"""How models say yes and no, whatever language they answer in."""

from __future__ import annotations

import re
import unicodedata

_NOT_A_LETTER = re.compile(r"[\W_]+")

_YES_NO = (
    (
        "yes y yeah yep true relevant correct",
        "no n nope false irrelevant unrelated incorrect notrelevant notrelated notatall",
    ),
    ("oui vrai pertinent relevante", "non faux irrelevante"),
    ("ja jawohl relevant", "nein nee nej nei ikke"),
    ("sí si sim sì", "não nao"),
    ("da да так tak ano áno igen", "нет ні nie ne nem nu"),
    ("evet kyllä jah taip jā", "hayır hayir ei"),
    (
        "はい 関連あり 是 是的 相关 相關 有关 有關 对 네 예",
        "いいえ 関連なし 否 不 不是 不相关 不相關 无关 無關 没有 아니요 아니오 아니",
    ),
    ("ya có vâng đúng ใช่ po", "tidak không ไม่ ไม่ใช่"),
    ("ναι نعم بله हाँ हां כן", "όχι لا خیر नहीं לא"),
)


def word(token: str) -> str:
    """Bring a token or word to its bare letters and digits, lower case.

    Spaces, quotes, stops and Markdown go, and so do the marks that tokenizers put for a leading space (▁, Ġ).
    """
    folded = unicodedata.normalize("NFKC", token).replace("Ġ", "").replace("Ċ", "").casefold()
    return _NOT_A_LETTER.sub("", folded)


YES = frozenset(word(entry) for yes, _ in _YES_NO for entry in yes.split())
NO = frozenset(word(entry) for _, no in _YES_NO for entry in no.split())
