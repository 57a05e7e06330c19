"""What an error of an LLM server means: what is done about it, and what the user is told.

A table says so, from the top: the first rule that fits decides. A code says more than a status. Words decide four
questions only: which optional argument is refused, whether the context is too long, whether it is quota or rate, and
whether it is an image.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from llama_index_refine.graders.asking.errors import Said, ServerError, chain, read


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
    codes: str = "(?!)"
    words: str = "(?!)"
    statuses: Collection[int | None] = ()
    kind: Kind = ""

    def fits(self, said: Said) -> str | None:
        """Say by which code it fits, empty where by another sign; None where it does not."""
        found = next((spelled for bare, spelled in said.codes.items() if re.fullmatch(self.codes, bare)), "")
        return found if found or said.status in self.statuses or any(said.words(self.words)) else None


@dataclass(frozen=True)
class Failure:
    """What an error means.

    :param remedy: what can be done.
    :param advice: what went wrong and what to do, in one sentence with status and code, without the error's own text.
    :param said: all that the error says.
    :param kind: "busy" where the server has no place for a question now, "late" where no answer came in time, "blind"
        where the model takes no images, "image" where the server cannot use this one.
    :param options: options of the request that the error names: "logprobs", "top_logprobs", "temperature",
        "max_tokens" or "max_completion_tokens", and others by their own name.
    :param servers: the server as a whole failed, and not this text or this answer.
    """

    remedy: Remedy
    advice: str
    said: Said
    kind: Kind = ""
    options: frozenset[str] = frozenset()
    servers: bool = False


BLIND = "the LLM takes no images, so nodes with images get no grade: give the grader a model that reads images"
LATE = "the LLM did not answer in time: raise the grader's timeout or lower its concurrency"
REFUSED = "the LLM server refused the request{status}: check the model's name, its limits and the grader's llm_kwargs"
_OPTION_REFUSED = "the LLM server refused the request{status} because of %s: change it in the grader's llm_kwargs"
_FEWER = "the LLM server takes fewer images in one question{status}: raise its limit, or lower batch_size"
_IMAGE = "the LLM server could not use an image{status}"
_DAY = "the LLM account's quota is used up for today or longer{status}: raise it, or wait until it is renewed"
_RATE = "the LLM server's rate limit is reached{status}: lower the grader's concurrency"
_FAILED = "the LLM server failed{status}"
_BUSY = "the LLM server is overloaded{status}"
_CREDIT = "the LLM's account has no credit left{status}: check its plan and billing"
_PROXY = "a proxy on the way to the LLM server asks for credentials{status}: set them in HTTPS_PROXY"
_KEY = "the LLM server refused the credentials{status}: check the api_key and its rights to the model"
_FILTER = "the LLM server's content filter refused a document"
_TOO_LONG = "a document was too long for the LLM's context: lower the grader's max_document_tokens"
_UNSENT = "the request cannot be sent: check the base URL, and that the api_key has no spaces or line breaks"
_UNTRUSTED = "the LLM server's certificate is not trusted: set SSL_CERT_FILE to a file with its authority's certificate"
_MODEL = "the LLM server does not know the model or the address{status}: check the model's name and the base URL"

_BLIND_WORDS = (
    r"image_url is only supported|at most 0 image|unknown variant .image_url|unsupported content block type"
    r"|not a multimodal model|content must be a string|mmproj|required for image input"
    r"|(?:not|n't|found that) support (?:the )?(?:image|vision|multi-?modal)"
    r"|(?:image|vision)s?(?: inputs?)?(?: modality)? (?:is|are) not (?:supported|enabled)"
)
_IMAGE_CODES = r"(?:invalid|unsupported|emptyimage|failedtodownload)\w*image\w*|image(?:parse|too|file|content)\w*"
_IMAGE_WORDS = (
    r"(?:invalid|unsupported|corrupt(?:ed)?|malformed) (?:base64[ -])?image|image (?:exceeds|is too |too )"
    r"|(?:could not|cannot|can't|unable to|failed to|error|while) \w+(?: the| this| an| or download)* image"
    r"|(?:while|failed|error) download"
)
_CREDIT_CODES = (
    r"insufficient(?:quota|credits?|balance|funds)|billing\w*|budgetexceeded\w*|arrearage|paymentrequired"
    r"|exceededcurrentquota\w*|1113"
)
_CREDIT_WORDS = (
    r"exceeded your current quota|credit balance is too low|insufficient (?:credits?|balance|funds|quota)"
    r"|budget has been exceeded|over budget|(?:spending|usage) limits?\b|(?:any|more|available|included) credits"
)
_KEY_CODES = (
    r"(?:invalid|expired)apikey\w*|apikey(?:invalid|expired)\w*|authentication(?:error|failed)?|unauth\w+"
    r"|unrecognizedclient\w*|expiredtoken\w*|\w*credentialserror|consumersuspended|accountdeactivated"
)
_FILTER_CODES = (
    r"content(?:filter|policy|moderation|blocked)\w*|responsibleaipolicy\w*|datainspection\w*|moderation\w*|safety"
    r"|prohibitedcontent|blocklist|sensitive\w*|1301|guardrail\w*|promptblocked|recitation"
)
_LONG_CODES = r"context(?:length|window)\w*|exceedcontextsize\w*|stringabovemaxlength|\w*toolarge|3051"
_LONG_WORDS = (
    r"context[ _](?:length|window|size|limit)|maximum prompt length|request too large|longer than the model|`inputs`"
    r"|too (?:long|large) for (?:the )?(?:requested )?model|(?:prompt|input|message)s? (?:is|are) too long"
    r"|input token count|too many (?:input )?tokens: |is too large to process|max_tokens must be at least 1, got -"
)
_MODEL_CODES = (
    r"modeldecommissioned|modelnot(?:found|exist|supported|available)\w*|(?:invalid|unknown)model\w*"
    r"|deploymentnotfound|resourcenotfound\w*|operationnotsupported|notsupportederror"
)
_OPTION_CODES = r"unsupportedparam\w*|unsupportedvalue|unknownparameter|extraforbidden"
_OPTION_WORDS = r"requested parameters|extraneous key|extra inputs are not permitted|unexpected keyword argument"
_RATE_CODES = r"(?:request)?ratelimit\w*|throttl\w*|toomanyrequests\w*|servicetiercapacity\w*"
_LATE_CODES = r"apitimeout\w*|timeouterror|timeoutexception|deadlineexceeded|modeltimeout\w*|(?:read|connect)timeout\w*"
_BUSY_CODES = r"overloaded\w*|(?:service)?unavailable\w*|modelnotready\w*|engineoverloaded\w*|modelerror\w*"

# What comes before a rejected option is looked for: some name options too, as in "more credits, or fewer max_tokens".
FIRST = (
    Rule(Remedy.SKIP, _FEWER, words=r"at most [1-9]\d* image|too many images|maximum number of images"),
    Rule(Remedy.SKIP, BLIND, words=_BLIND_WORDS, kind="blind"),
    Rule(Remedy.SKIP, _IMAGE, _IMAGE_CODES, _IMAGE_WORDS, kind="image"),
    Rule(Remedy.STOP, _DAY, r"\w*perday\w*", r"\blimit: 0\b|\bdaily (?:limit|quota)\b|\w[- ]per[- ](?:day|month)\b"),
    Rule(Remedy.WAIT, _RATE, "resourceexhausted", kind="busy"),
    Rule(Remedy.STOP, _CREDIT, _CREDIT_CODES, _CREDIT_WORDS, (402,)),
    Rule(Remedy.STOP, _PROXY, statuses=(407,)),
    Rule(Remedy.STOP, _KEY, _KEY_CODES, statuses=(401,)),
    Rule(Remedy.SKIP, _FILTER, _FILTER_CODES),
    Rule(Remedy.SKIP, _TOO_LONG, _LONG_CODES, _LONG_WORDS, (413,)),
)
LATER = (
    Rule(Remedy.STOP, _UNSENT, r"localprotocolerror|unsupportedprotocol|invalidurl"),
    Rule(Remedy.STOP, _UNTRUSTED, r"sslcertverificationerror|clientconnectorcertificateerror"),
    Rule(Remedy.ADAPT, REFUSED, _OPTION_CODES, _OPTION_WORDS),
    Rule(Remedy.STOP, _MODEL, _MODEL_CODES),
    Rule(Remedy.WAIT, _RATE, _RATE_CODES, r"rate[ _-]?limit|too many requests", (429,), "busy"),
    Rule(Remedy.WAIT, LATE, _LATE_CODES, statuses=(408,), kind="late"),
    Rule(Remedy.WAIT, _BUSY, _BUSY_CODES, statuses=(409, 424, 425, 498, 503, 529), kind="busy"),
    Rule(Remedy.STOP, _KEY, r"(?:access|permission)denied\w*|permissionerror", statuses=(403,)),
    Rule(Remedy.STOP, _MODEL, statuses=(404, 405, 410, 501)),
    Rule(Remedy.ADAPT, REFUSED, statuses=range(400, 500)),
    Rule(Remedy.WAIT, _FAILED, statuses=range(500, 600)),
)

_UNREACHABLE = re.compile(r"\w*connection\w*error|transporterror|maxretryerror|urlerror|gaierror")
# Errors of programs, whose texts quote whatever they worked on.
_OURS = (TypeError, ValueError, LookupError, AttributeError)

# Options that teachers add by themselves, by the names that servers have for them.
_SPELLINGS = {
    "top_logprobs": "toplogprobs topntokens numlogprobs",
    "logprobs": "logprob responselogprobs",
    "max_tokens": "maxtokens maxnewtokens maxoutputtokens",
    "max_completion_tokens": "maxcompletiontokens",
    "response_format": "responseformat",
}
_ALIASES = {spelled: name for name, spellings in _SPELLINGS.items() for spelled in spellings.split()}
# The last ones are the user's to set, and servers insist on them.
_OPTION = re.compile(
    r"(?<![a-z])(?:top[_ ]?log_?probs?|top_n_tokens|num_logprobs|(?:response_?)?log_?probs?|temperature|response_format"
    r"|max_?(?:new_?|output_?|completion_?)?tokens|enable_thinking|thinking_budget|reasoning_effort"
    r"|chat_template_kwargs|num_ctx)(?![a-z])"
)
# Parameters that are not what a teacher may leave out: the text, the model, the key, and no name at all.
_NO_OPTIONS = frozenset(
    "messages message prompt input inputs content body query user text model key api_key none null".split()  # noqa: SIM905
)


def judge(error: BaseException, sent: frozenset[str] = frozenset()) -> Failure:
    """Say what an error means. Never raises.

    :param error: what a client raised.
    :param sent: the words of the question: an error that repeats them has not said them.
    :return: the first row of the table that fits.
    """
    said = read(error, sent)
    if any(isinstance(link, UnicodeError) for link in chain(error)):
        return Failure(Remedy.OURS, f"a text could not be sent ({type(error).__name__})", said)
    program = said.status is None and isinstance(error, _OURS) and not isinstance(error, json.JSONDecodeError)
    if not program and (failure := _by_rule(FIRST, said)):
        return failure
    # A request's options are in an error's text for a reason; in a connection's error they are not.
    speaks = said.status is not None or program or isinstance(error, ServerError) or bool(said.parameters)
    if speaks and said.status != 429 and (options := frozenset(_options(said))):
        advice = _advice(_OPTION_REFUSED % " and ".join(f"`{name}`" for name in sorted(options)), said)
        return Failure(Remedy.ADAPT, advice, said, options=options)
    return _by_rule(LATER, said) or _by_class(error, said)


def _by_rule(rules: Sequence[Rule], said: Said) -> Failure | None:
    for rule in rules:
        code = rule.fits(said)
        if code is not None:
            servers = rule.remedy in (Remedy.WAIT, Remedy.STOP)
            return Failure(rule.remedy, _advice(rule.advice, said, code), said, rule.kind, servers=servers)
    return None


def _advice(advice: str, said: Said, code: str = "") -> str:
    """Put status and code in. A code that a rule knows is no secret."""
    named = [f"HTTP {said.status}"] if said.status is not None else []
    named += [code[:60]] if code and not code.endswith("Error") else []
    return advice.replace("{status}", f" ({', '.join(named)})" if named else "")


def _by_class(error: BaseException, said: Said) -> Failure:
    links = list(chain(error))
    if any(isinstance(link, TimeoutError) for link in links):
        return Failure(Remedy.WAIT, LATE, said, "late", servers=True)
    name = type(error).__name__
    unreachable = any(_UNREACHABLE.fullmatch(code) for code in said.codes)
    garbled = any(isinstance(link, json.JSONDecodeError) for link in links)
    if unreachable or garbled or any(isinstance(link, ConnectionError) for link in links):
        advice = f"no usable answer came from the LLM server ({name}): check its address"
        return Failure(Remedy.WAIT, advice, said, servers=not garbled)
    if isinstance(error, ServerError):
        return Failure(Remedy.SKIP, "the LLM server answered with an error instead of an answer", said)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Failure(Remedy.OURS, f"the LLM call failed ({name}{place})", said)


def _options(said: Said) -> Iterator[str]:
    """Find the options that an error names, by parameter or else in its text."""
    if parameters := said.parameters - _NO_OPTIONS:
        yield from (_ALIASES.get(name.replace("_", ""), name) for name in parameters)
        return
    for name in {match.group() for match in said.words(_OPTION)}:
        bare = re.sub(r"[_ ]", "", name)
        yield _ALIASES.get(bare) or _ALIASES.get(f"{bare}s", name)
