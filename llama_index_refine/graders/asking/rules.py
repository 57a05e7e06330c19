"""The table of what an error of an LLM server means: what is done about it, and what the user is told.

From the top: the first rule that fits decides. A code says more than a status. Words decide four questions only: which
optional argument is refused, whether the context is too long, whether it is quota or rate, and whether it is an image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from llama_index_refine.graders.asking.errors import Said


class Remedy(Enum):
    """What can be done about an error."""

    WAIT = "ask the same again later"
    ADAPT = "ask in another way"
    SKIP = "leave this one text"
    STOP = "tell the user, who has to change something"
    OURS = "no fault of the server"


Kind = Literal["", "busy", "late", "blind", "image"]


@dataclass(frozen=True)
class Rule:
    """A row of the table: it fits where any of its codes, words or statuses do."""

    remedy: Remedy
    advice: str
    codes: re.Pattern[str] | None = None
    words: re.Pattern[str] | None = None
    statuses: tuple[int, ...] = ()
    kind: Kind = ""

    def fits(self, said: Said) -> str | None:
        """Say by which code it fits, empty where by another sign; None where it does not."""
        found = next((spelled for bare, spelled in said.codes.items() if self.codes and self.codes.fullmatch(bare)), "")
        words = self.words is not None and any(said.words(self.words))
        return found if found or words or said.status in self.statuses else None


def any_of(*patterns: str) -> re.Pattern[str]:
    """Make one pattern of several."""
    return re.compile("|".join(patterns))


BLIND = "the LLM takes no images, so nodes with images get no grade: give the grader a model that sees"
TOO_LONG = "a document was too long for the LLM's context: lower the grader's max_document_tokens"
RATE = "the LLM server's rate limit is reached{status}: lower the grader's concurrency"
CREDIT = "the LLM's account has no credit left{status}: check its plan and billing"
KEY = "the LLM server refused the credentials{status}: check the api_key and its rights to the model"
MODEL = "the LLM server does not know the model or the address{status}: check the model's name and the base URL"
LATE = "the LLM did not answer in time: raise the grader's timeout or lower its concurrency"
REFUSED = "the LLM server refused the request{status}: check the model's name, its limits and the grader's llm_kwargs"

OF_IMAGES = (
    Rule(
        Remedy.SKIP,
        "the LLM server takes fewer images in one question{status}: raise its limit, or lower batch_size",
        words=any_of(
            r"at most [1-9]\d* images?\b|at most [1-9]\d* image\(s\)|too many images|maximum number of images"
        ),
    ),
    Rule(
        Remedy.SKIP,
        BLIND,
        words=any_of(
            r"image_url is only supported|at most 0 image|unknown variant .image_url|unsupported content block type",
            r"not a multimodal model|content must be a string|mmproj|required for image input",
            r"(?:not|n't|found that) support (?:the )?(?:image|vision|multi-?modal)",
            r"(?:image|vision)s?(?: inputs?)?(?: modality)? (?:is|are) not (?:supported|enabled)",
        ),
        kind="blind",
    ),
    Rule(
        Remedy.SKIP,
        "the LLM server could not use an image{status}",
        any_of(r"(?:invalid|unsupported|emptyimage|failedtodownload)\w*image\w*|image(?:parse|too|file|content)\w*"),
        any_of(
            r"(?:invalid|unsupported|corrupt(?:ed)?|malformed) (?:base64[ -])?image",
            r"(?:could not|cannot|can't|unable to|failed to|error|while) \w+(?: the| this| an| or download)* image",
            r"(?:while|failed|error) download|image exceeds|image (?:is )?too (?:large|small)",
        ),
        kind="image",
    ),
)
# Before a rejected option is looked for: these name options too, as in "more credits, or fewer max_tokens".
FIRST = (
    Rule(
        Remedy.STOP,
        "the quota of the LLM's account for today or longer is used up{status}: raise it, or wait until it is renewed",
        any_of(r"\w*perday\w*"),
        any_of(r"\blimit: 0\b|\bdaily (?:rate )?(?:limit|quota)\b|\w[- ]per[- ](?:day|month)\b"),
    ),
    Rule(Remedy.WAIT, RATE, any_of("resourceexhausted"), kind="busy"),
    Rule(
        Remedy.STOP,
        CREDIT,
        any_of(
            r"insufficient(?:quota|credits?|balance|funds)|billing\w*|budgetexceeded\w*|arrearage|paymentrequired",
            r"exceededcurrentquota\w*|(?:account)?overdue\w*|1113",
        ),
        any_of(
            r"exceeded your current quota|credit balance is too low|insufficient (?:credits?|balance|funds|quota)",
            r"budget has been exceeded|over budget|(?:spending|usage) limits?\b|available credits|included credits",
            r"requires more credits|any credits|余额不足|欠费",
        ),
        (402,),
    ),
    Rule(
        Remedy.STOP,
        "a proxy between here and the LLM server wants credentials{status}: set them in HTTPS_PROXY",
        statuses=(407,),
    ),
    Rule(
        Remedy.STOP,
        KEY,
        any_of(
            r"(?:invalid|incorrect|missing|expired)apikey\w*|apikey(?:invalid|missing|expired|notfound)\w*",
            r"authentication(?:error|failed)?|unauthori[sz]ed\w*|unauthenticated|unrecognizedclient\w*|invalidsignature\w*",
            r"expiredtoken\w*|\w*(?:no|partial|default)credentials\w*|consumersuspended|accountdeactivated",
        ),
        statuses=(401,),
    ),
    Rule(
        Remedy.SKIP,
        "the LLM server's content filter refused a document",
        any_of(
            r"content(?:filter|policy|moderation|blocked)\w*|responsibleaipolicy\w*|datainspection\w*|moderation\w*",
            r"safety|prohibitedcontent|blocklist|sensitive\w*|1301|guardrail\w*|promptblocked|recitation",
        ),
    ),
    Rule(
        Remedy.SKIP,
        TOO_LONG,
        any_of(r"context(?:length|window)\w*|exceedcontextsize\w*|stringabovemaxlength|\w*toolarge|3051"),
        any_of(
            r"context[ _](?:length|window|size|limit)|maximum prompt length|request too large|longer than the model",
            r"too (?:long|large) for (?:the )?(?:requested )?model|(?:prompt|input|message)s? (?:is|are) too long",
            r"`inputs`|input token count|too many (?:input )?tokens: |max_tokens must be at least 1, got -",
        ),
        (413,),
    ),
)
LATER = (
    Rule(
        Remedy.STOP,
        "the request cannot be sent: check the base URL, and that the api_key has no spaces or line breaks",
        any_of(r"localprotocolerror|unsupportedprotocol|invalidurl"),
    ),
    Rule(
        Remedy.STOP,
        "the LLM server's certificate is not trusted: name its authority's in SSL_CERT_FILE",
        any_of(r"sslcertverificationerror|clientconnectorcertificateerror"),
    ),
    Rule(
        Remedy.ADAPT,
        REFUSED,
        any_of(r"unsupportedparam\w*|unsupportedvalue|unknownparameter|extraforbidden"),
        any_of(r"requested parameters|extraneous key|extra inputs are not permitted|unexpected keyword argument"),
    ),
    Rule(
        Remedy.STOP,
        MODEL,
        any_of(
            r"modeldecommissioned|modelnot(?:found|exist|supported|available)\w*|(?:invalid|unknown)model\w*",
            r"deploymentnotfound|resourcenotfound\w*|operationnotsupported|notsupportederror",
        ),
    ),
    Rule(
        Remedy.STOP,
        "the LLM is not offered where this program runs{status}: choose another provider or region",
        any_of(r"unsupportedcountry\w*"),
    ),
    Rule(
        Remedy.WAIT,
        RATE,
        any_of(
            r"(?:request)?ratelimit\w*|throttl\w*|toomanyrequests\w*|servicetiercapacity\w*|limit(?:requests|burstrate)"
        ),
        any_of(r"rate[ _-]?limit|too many requests"),
        (429,),
        "busy",
    ),
    Rule(
        Remedy.WAIT,
        LATE,
        any_of(
            r"apitimeout\w*|timeouterror|timeoutexception|deadlineexceeded|modeltimeout\w*|(?:read|connect)timeout\w*"
        ),
        statuses=(408,),
        kind="late",
    ),
    Rule(
        Remedy.WAIT,
        "the LLM server has too much to do{status}",
        any_of(
            r"overloaded\w*|(?:service)?unavailable\w*|modelnotready\w*|engineoverloaded\w*|serverbusy|modelerror\w*"
        ),
        statuses=(409, 424, 425, 498, 503, 529),
        kind="busy",
    ),
    Rule(Remedy.STOP, KEY, any_of(r"(?:access|permission)denied\w*|permissionerror|notauthorized\w*"), None, (403,)),
    Rule(Remedy.STOP, MODEL, statuses=(404, 405, 410, 501)),
)
