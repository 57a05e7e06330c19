"""The one table from what an error says to what is done about it, and what the user is told.

From the top: the first rule that fits decides. A code, a type or a text says more than a status, so statuses come last.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Sequence
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


Kind = Literal["", "busy", "late", "blind"]


@dataclass(frozen=True)
class Failure:
    """What an error means.

    :param remedy: what can be done.
    :param advice: what went wrong and what to do, in one sentence, without the error's own text.
    :param wait: the seconds that the server asked to wait, None where it did not ask.
    :param options: options of the request that the error names: "logprobs", "top_logprobs", "temperature",
        "max_tokens" or "max_completion_tokens", and others by their own name.
    :param servers: the server as a whole failed, and not this text or this answer.
    :param kind: "busy" where the server has no place for a question now, "late" where no answer came in time, "blind"
        where the model takes no images.
    :param said: all that the error says.
    """

    remedy: Remedy
    advice: str
    wait: float | None
    options: frozenset[str]
    servers: bool
    kind: Kind
    said: Said


@dataclass(frozen=True)
class _Rule:
    """A row of the table: it fits where any of its codes, texts or statuses do."""

    remedy: Remedy
    advice: str
    codes: str = ""
    texts: str = ""
    statuses: Sequence[int] = ()
    kind: Kind = ""

    def fits(self, said: Said) -> bool:
        if said.status in self.statuses:
            return True
        if self.codes and any(re.fullmatch(self.codes, word) for word in said.codes):
            return True
        return bool(self.texts and re.search(self.texts, said.text))


_RATE_LIMIT = "the LLM server's rate limit is reached{status}: lower the grader's concurrency"
_OVERLOADED = "the LLM server failed or has too much to do{status}"

BLIND = "the LLM takes no images, so nodes with images get no grade: give the grader a model that sees"

_OF_IMAGES = (
    _Rule(
        Remedy.SKIP,
        "the LLM server takes fewer images in one question{status}: raise its limit, or lower batch_size",
        texts=r"at most [1-9]\d* images?\b|at most [1-9]\d* image\(s\)|too many images|maximum number of images"
        r"|(?:only|up to) \d+ images? (?:is|are|can be|may be)",
    ),
    _Rule(
        Remedy.SKIP,
        BLIND,
        texts=r"image_url is only supported|at most 0 images?\b|at most 0 image\(s\)|is not a multimodal model"
        r"|(?:\bnot|n't|cannot|found that) (?:yet |currently )?support (?:the )?(?:images?|vision|multi-?modal)\b(?!-)"
        r"|(?:images?|vision|multi-?modal)(?: inputs?)?(?: modality)? (?:is|are) not (?:supported|enabled|allowed)"
        r"|(?:missing data required|not (?:configured|enabled)) for (?:image|vision)|unknown variant .image_url"
        r"|unsupported content\[\]\.type|(?:do(?:es)? not|n't|cannot) (?:accept|take|process|handle) images\b|mmproj"
        r"|content must be a string",
        kind="blind",
    ),
    _Rule(
        Remedy.SKIP,
        "the LLM server could not use an image{status}",
        codes=r"invalidimage.*|imageparseerror|unsupportedimage.*|invalidbase64image.*|imagetoo(?:large|small).*"
        r"|emptyimagefile|imagefile(?:toolarge|notfound)|failedtodownloadimage|imagecontentpolicy.*",
        texts=r"(?:invalid|unsupported|corrupt(?:ed)?|malformed|damaged) (?:base64[ -])?image"
        r"|(?:could not|cannot|can't|unable to|failed to|error|timeout while) (?:process|decod|preprocess|load|open"
        r"|read|fetch|download|access|identify|retriev)\w*(?: the| this| an| or download)* (?:image|url|file from)"
        r"|image.{0,40}(?:exceeds?|too (?:large|small|big)|dimensions)",
    ),
)
# Before a rejected option is looked for: these name options too, as in "more credits, or fewer max_tokens".
_FIRST = (
    _Rule(
        Remedy.STOP,
        "the quota of the LLM's account for today or longer is used up{status}: raise it, or wait until it is renewed",
        codes=r".*perday.*",
        texts=r"\blimit: 0\b|\bper day\b.{0,40}\bexceeded|\bdaily (?:rate )?(?:limit|quota)\b"
        r"|\w[- ]per[- ](?:day|month)\b(?![\s\S]*try again in)",
    ),
    _Rule(Remedy.WAIT, _RATE_LIMIT, codes=r"resourceexhausted", kind="busy"),
    _Rule(
        Remedy.STOP,
        "the LLM's account has no credit left{status}: check its plan and billing",
        codes=r"insufficient(?:quota|credits?|balance|funds)|billing.*|budgetexceeded.*|arrearage|paymentrequired"
        r"|exceededcurrentquota.*|openroutercredits|(?:account)?overdue.*|1113",
        texts=r"exceeded your current quota|credit balance is too low|insufficient[ _](?:credits?|balance|funds|quota)"
        r"|requires more credits|budget has been exceeded|over budget|exceeded budget|crossed budget"
        r"|billing (?:hard )?limit|(?:spending|usage) limit|out of credits|(?:all|any) (?:available )?credits"
        r"|included credits|in good standing|in arrears|余额不足|欠费",
        statuses=(402,),
    ),
    _Rule(
        Remedy.STOP,
        "the LLM's account is disabled or suspended{status}: ask its provider",
        codes=r"consumersuspended|accountdeactivated|organizationdisabled",
        texts=r"\b(?:account|organi[sz]ation|project|team|consumer)\b.{0,60}\b(?:disabled|suspended|deactivated)\b",
    ),
    _Rule(
        Remedy.STOP,
        "a proxy between here and the LLM server wants credentials{status}: set them in HTTPS_PROXY",
        statuses=(407,),
    ),
    _Rule(
        Remedy.STOP,
        "the LLM server refused the credentials{status}: check the api_key",
        codes=r"(?:invalid|incorrect|missing|expired)apikey.*|apikey(?:invalid|missing|expired|notfound).*"
        r"|authentication(?:error|failed)?|unauthori[sz]ed.*|unauthenticated|invalidauthentication.*"
        r"|unrecognizedclient.*|invalidsignature.*|expiredtoken.*|missingauthenticationtoken.*|invalidaccesskey.*"
        r"|nocredentials.*|partialcredentials.*|credentialretrieval.*|tokennotfoundindb|defaultcredentials.*",
        texts=r"(?:incorrect|invalid|missing|no) api[ _-]?key|api[ _-]?key (?:not valid|is invalid|expired|not found)"
        r"|invalid x-api-key|no auth credentials|invalid subscription key|proxy server token|invalid token\b",
        statuses=(401,),
    ),
    _Rule(
        Remedy.SKIP,
        "the LLM server's content filter refused a document",
        codes=r"contentfilter.*|contentpolicy.*|responsibleaipolicy.*|datainspection.*|contentmoderation.*|moderation.*"
        r"|contentblocked.*|safety|prohibitedcontent|blocklist|sensitive.*|1301|guardrail.*|promptblocked|recitation",
        texts=r"content[ _-]?filter|content management policy|content[ _]polic|filtering policy|usage polic"
        r"|inappropriate content|requires moderation|input was flagged|flagged as|considered high risk"
        r"|safety (?:system|filter|reason|setting)|guardrail|敏感|不安全",
    ),
    _Rule(
        Remedy.SKIP,
        "a document was too long for the LLM's context: lower the grader's max_document_tokens",
        codes=r"contextlength.*|contextwindow.*|exceedcontextsize.*|stringabovemaxlength|request(?:entity)?toolarge"
        r"|payloadtoolarge|contentlengthexceeded.*|3051",
        texts=r"context[ _](?:length|window|size)|context of \d|maximum prompt length"
        r"|(?:prompt|input|request|message)s? (?:is|are) too (?:long|large)"
        r"|too (?:long|large) for (?:the )?(?:requested )?model|`inputs`|inputs? length|longer than the model"
        r"|reduce (?:the|your) (?:length|message|prompt)|input token count|max_tokens must be at least 1, got -"
        r"|too many (?:input )?tokens(?!,? please| per)|request too large"
        r"|exceeds? the (?:model's )?maximum (?:context|input|number)",
        statuses=(413,),
    ),
)
_LATER = (
    _Rule(
        Remedy.STOP,
        "the request cannot be sent: check the base URL, and that the api_key has no spaces or line breaks",
        codes=r"localprotocolerror|unsupportedprotocol|invalidurl",
    ),
    _Rule(
        Remedy.STOP,
        "the LLM server's certificate is not trusted: name its authority's in SSL_CERT_FILE",
        codes=r"sslcertverificationerror|clientconnectorcertificateerror",
        texts=r"certificate[_ ]verify[_ ]failed|self.signed certificate",
    ),
    _Rule(
        Remedy.STOP,
        "the model or its server does not chat{status}: choose one that answers chat completions",
        texts=r"chat[_ ]template(?!_kwargs)|template error|not support chat|not a chat model|chatcompletion operation",
    ),
    _Rule(
        Remedy.ADAPT,
        "the LLM server refused the request{status}: check the model's limits and the grader's llm_kwargs",
        codes=r"unsupportedparam.*|unsupportedvalue|unknownparameter|extraforbidden",
        texts=r"requested parameters|unsupported param|unknown param|support (?:the )?param|unexpected keyword argument"
        r"|extraneous key|extra inputs are not permitted",
    ),
    _Rule(
        Remedy.STOP,
        "the LLM server does not know the model{status}: check the model's name",
        codes=r"modeldecommissioned|modelnot(?:found|exist|supported|available).*|invalidmodel.*|unknownmodel.*"
        r"|deploymentnotfound|resourcenotfound(?:exception)?",
        texts=r"\bmodels?\b.{0,120}?\b(?:(?:does|do) ?n[o']t exist|(?:was |is )?not found|not exist"
        r"|decommissioned|no longer|not supported by)\b|invalid model\b"
        r"|model identifier is invalid|no endpoints found|throughput isn.t supported|try pulling it|unknown model"
        r"|not a valid model|no such model|must provide a model|llm provider not provided"
        r"|model .{0,60}\bis not (?:available|loaded|deployed)"
        r"|don't have access to the model|model access",
    ),
    _Rule(
        Remedy.STOP,
        "the LLM server has too little memory for the model{status}: choose a smaller one",
        texts=r"requires more (?:system )?memory|(?:out of|not enough) memory|unable to load model",
    ),
    _Rule(
        Remedy.STOP,
        "the LLM is not offered where this program runs{status}: choose another provider or region",
        codes=r"unsupportedcountry.*",
        texts=r"location is not supported|not (?:supported|available) in your (?:country|region)",
    ),
    _Rule(
        Remedy.WAIT,
        _RATE_LIMIT,
        codes=r"(?:request)?ratelimit.*|throttl.*|toomanyrequests.*|servicetiercapacity.*|limit(?:requests|burstrate)"
        r"|1302|1303|servicequotaexceeded.*",
        texts=r"rate[ _-]?limit|too many requests|please wait before",
        statuses=(429,),
        kind="busy",
    ),
    _Rule(
        Remedy.WAIT,
        "the LLM did not answer in time: raise the grader's timeout or lower its concurrency",
        codes=r"apitimeout.*|timeouterror|timeoutexception|deadlineexceeded|modeltimeout.*|(?:read|connect)timeout.*",
        statuses=(408,),
        kind="late",
    ),
    _Rule(
        Remedy.WAIT,
        _OVERLOADED,
        codes=r"overloaded.*|(?:service)?unavailable.*|modelnotready.*|engineoverloaded.*|serverbusy"
        r"|modelstreamerror.*|modelerror.*",
        texts=r"\boverloaded\b|temporarily unavailable|loading model|(?:is|currently) loading|no deployments available"
        r"|capacity exceeded",
        statuses=(409, 424, 425, 498),
        kind="busy",
    ),
    _Rule(
        Remedy.STOP,
        "the LLM server refused the credentials{status}: check the api_key and its rights to the model",
        codes=r"accessdenied.*|permissiondenied(?:error)?|permissionerror|notauthorized.*",
        statuses=(403,),
    ),
    _Rule(
        Remedy.STOP,
        "the LLM server does not know the model or the address{status}: check the model's name and the base URL",
        texts=r"api version not supported",
        statuses=(404, 405, 410),
    ),
)
_UNREACHABLE = frozenset(
    [
        "apiconnectionerror",
        "clientconnectionerror",
        "connectionclosederror",
        "endpointconnectionerror",
        "transporterror",
        "connectionerror",
        "maxretryerror",
        "urlerror",
        "gaierror",
    ]
)
# What LlamaIndex's classes raise for servers that take no images, lower case.
_UNSUPPORTED_BLOCK = "unsupported content block type: imageblock"
# Errors of programs, whose texts quote whatever they worked on.
_OURS = (TypeError, ValueError, LookupError, AttributeError)

# Options that teachers add by themselves, by the names that servers have for them.
_ALIASES = {
    "toplogprobs": "top_logprobs",
    "topntokens": "top_logprobs",
    "numlogprobs": "top_logprobs",
    "logprobs": "logprobs",
    "logprob": "logprobs",
    "responselogprobs": "logprobs",
    "logprobabilities": "logprobs",
    "maxtokens": "max_tokens",
    "maxnewtokens": "max_tokens",
    "maxoutputtokens": "max_tokens",
    "maxtokenstosample": "max_tokens",
    "maxcompletiontokens": "max_completion_tokens",
    "temperature": "temperature",
}
_OPTION = re.compile(
    r"(?<![a-z])(?:top[_ ]?log_?probs?|top_n_tokens|num_logprobs|(?:response_?)?log[_ -]?prob(?:abilitie)?s?"
    r"|max_?(?:new_?|output_?|completion_?)?tokens(?:_to_sample)?|temperature)(?![a-z])"
)
# Options that are the user's to set, and that servers insist on.
_OTHERS = re.compile(
    r"(?<![a-z_])(?:enable_thinking|thinking_budget|reasoning_effort|thinking|top_p|top_k|seed|stream|tools|tool_choice"
    r"|response_format|num_ctx|chat_template_kwargs|stop|n)(?![a-z_])(?=['`\"]|\s+(?:must|is|should|cannot|has))"
)
# Parameters that are not what a teacher may leave out: the text, the model, the key, and no name at all.
_NO_OPTIONS = frozenset(
    "messages message prompt input inputs content body query user text model key api_key none null".split()  # noqa: SIM905
)


def judge(error: BaseException) -> Failure:
    """Say what an error means. Never raises.

    :param error: what a client raised.
    :return: the first row of the table that fits.
    """
    said = read(error)
    if any(isinstance(link, UnicodeError) for link in chain(error)):
        return _failure(Remedy.OURS, f"a text could not be sent ({type(error).__name__})", said)
    if said.text == _UNSUPPORTED_BLOCK:
        return _failure(Remedy.SKIP, BLIND, said, kind="blind")
    for rule in () if _is_ours(error, said) else (*_OF_IMAGES, *_FIRST):
        if rule.fits(said):
            return _failure(rule.remedy, rule.advice, said, kind=rule.kind)
    options = _options(said)
    if options and said.status != 429 and _speaks_of_options(error, said):
        return _failure(Remedy.ADAPT, _refused(options), said, options)
    for rule in _LATER:
        if rule.fits(said):
            return _failure(rule.remedy, rule.advice, said, kind=rule.kind)
    return _by_status(error, said)


def _is_ours(error: BaseException, said: Said) -> bool:
    return said.status is None and isinstance(error, _OURS) and not isinstance(error, json.JSONDecodeError)


def _by_status(error: BaseException, said: Said) -> Failure:
    if said.status is not None and said.status >= 500 and said.status != 501:
        busy: Kind = "busy" if said.status in (503, 529) else ""
        return _failure(Remedy.WAIT, "the LLM server failed{status}", said, kind=busy)
    if said.status is not None and said.status >= 400:
        advice = "the LLM server refused the request{status}: check the model's limits and the grader's llm_kwargs"
        return _failure(Remedy.ADAPT, advice, said)
    name = type(error).__name__
    if said.codes & _UNREACHABLE or any(isinstance(link, (ConnectionError, TimeoutError)) for link in chain(error)):
        if any(isinstance(link, TimeoutError) for link in chain(error)):
            advice = "the LLM did not answer in time: raise the grader's timeout or lower its concurrency"
            return _failure(Remedy.WAIT, advice, said, kind="late")
        return _failure(Remedy.WAIT, f"no usable answer came from the LLM server ({name}): check its address", said)
    if any(isinstance(link, json.JSONDecodeError) for link in chain(error)):
        advice = f"no usable answer came from the LLM server ({name}): check its address"
        return Failure(Remedy.WAIT, advice, said.wait, frozenset(), False, "", said)
    if isinstance(error, ServerError):
        return _failure(Remedy.SKIP, "the LLM server answered with an error in the place of an answer", said)
    return _failure(Remedy.OURS, f"the LLM call failed ({name}{_place(error)})", said)


def _failure(
    remedy: Remedy, advice: str, said: Said, options: frozenset[str] = frozenset(), kind: Kind = ""
) -> Failure:
    status = f" (HTTP {said.status})" if said.status is not None else ""
    servers = remedy in (Remedy.WAIT, Remedy.STOP)
    return Failure(remedy, advice.replace("{status}", status), said.wait, options, servers, kind, said)


def _refused(options: frozenset[str]) -> str:
    named = " and ".join(f"`{name}`" for name in sorted(options))
    if options == {"enable_thinking"}:
        return f'the LLM server insists on {named}: llm_kwargs={{"extra_body": {{"enable_thinking": False}}}} sets it'
    return f"the LLM server refused the request because of {named}: set it right in the grader's llm_kwargs"


def _options(said: Said) -> frozenset[str]:
    """Find the options that an error names, by parameter or else in its text."""
    parameters = {_ALIASES.get(name.replace("_", ""), name) for name in said.parameters - _NO_OPTIONS}
    if parameters:
        return frozenset(parameters)
    found = (re.sub(r"[_ -]", "", match.group()) for match in _OPTION.finditer(said.text))
    named = {_ALIASES.get(name) or _ALIASES.get(f"{name}s", name) for name in found}
    return frozenset(named or {match.group() for match in _OTHERS.finditer(said.text)})


def _speaks_of_options(error: BaseException, said: Said) -> bool:
    """Whether the options in an error's text are there because the request had them: not so in a connection's error."""
    return said.status is not None or isinstance(error, (ServerError, TypeError, ValueError)) or bool(said.parameters)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
