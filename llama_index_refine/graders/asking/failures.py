"""What an error means: by the table of `rules`, or else by its status."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_index_refine.graders.asking.errors import Said, ServerError, chain, read
from llama_index_refine.graders.asking.rules import FIRST, LATE, LATER, REFUSED, Kind, Remedy, Rule


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


_UNREACHABLE = re.compile(r"\w*connection\w*error|transporterror|maxretryerror|urlerror|gaierror")
# Errors of programs, whose texts quote whatever they worked on.
_OURS = (TypeError, ValueError, LookupError, AttributeError)

# Options that teachers add by themselves, by the names that servers have for them.
_ALIASES = {
    "toplogprobs": "top_logprobs",
    "topntokens": "top_logprobs",
    "numlogprobs": "top_logprobs",
    "logprob": "logprobs",
    "responselogprobs": "logprobs",
    "maxtokens": "max_tokens",
    "responseformat": "response_format",
    "maxnewtokens": "max_tokens",
    "maxoutputtokens": "max_tokens",
    "maxcompletiontokens": "max_completion_tokens",
}
_OPTION = re.compile(
    r"(?<![a-z])(?:top[_ ]?log_?probs?|top_n_tokens|num_logprobs|(?:response_?)?log_?probs?"
    r"|max_?(?:new_?|output_?|completion_?)?tokens|temperature|response_format)(?![a-z])"
)
# Options that are the user's to set, and that servers insist on.
_OTHERS = re.compile(
    r"(?<![a-z_])(?:enable_thinking|thinking_budget|reasoning_effort|chat_template_kwargs|num_ctx)(?![a-z_])"
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
        return Failure(Remedy.ADAPT, _named(options, said), said, options=options)
    return _by_rule(LATER, said) or _by_status(error, said)


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


def _by_status(error: BaseException, said: Said) -> Failure:
    if said.status is not None and said.status >= 500:
        return Failure(Remedy.WAIT, _advice("the LLM server failed{status}", said), said, servers=True)
    if said.status is not None and said.status >= 400:
        return Failure(Remedy.ADAPT, _advice(REFUSED, said), said)
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
        return Failure(Remedy.SKIP, "the LLM server answered with an error in the place of an answer", said)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Failure(Remedy.OURS, f"the LLM call failed ({name}{place})", said)


def _named(options: frozenset[str], said: Said) -> str:
    named = " and ".join(f"`{name}`" for name in sorted(options))
    advice = "the LLM server refused the request{status} because of %s: set it right in the grader's llm_kwargs"
    return _advice(advice, said) % named


def _options(said: Said) -> Iterator[str]:
    """Find the options that an error names, by parameter or else in its text."""
    if parameters := said.parameters - _NO_OPTIONS:
        yield from (_ALIASES.get(name.replace("_", ""), name) for name in parameters)
        return
    named = {re.sub(r"[_ ]", "", match.group()) for match in said.words(_OPTION)}
    yield from (_ALIASES.get(name) or _ALIASES.get(f"{name}s", name) for name in named)
    if not named:
        yield from (match.group() for match in said.words(_OTHERS))
