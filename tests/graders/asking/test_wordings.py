"""Many wordings of the same few things, each as some server or provider has it."""

from __future__ import annotations

import json
import socket
import ssl
from pathlib import Path

import httpx
import pytest

from llama_index_refine.graders.asking.failures import Remedy, judge
from tests.graders.asking.bodies import Refusal
from tests.graders.asking.test_failures import caused, of_openai

WAIT, STOP = Remedy.WAIT, Remedy.STOP

# One wording a line: status, body, what is to be made of it, and the options that it names where those matter.
WORDINGS = [json.loads(line) for line in Path(__file__).with_name("wordings.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("wording", WORDINGS, ids=lambda wording: json.dumps(wording["body"])[:100])
def test_the_wording_is_understood(wording):
    failure = judge(of_openai(Refusal(wording["status"], wording["body"], Remedy[wording["remedy"]])))
    assert failure.remedy.name == wording["remedy"], failure
    assert failure.options == set(wording.get("options", failure.options))


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (400, {"error": '"m" does not support chat'}, "(HTTP 400): check the model's name"),
        (429, {"error": {"message": "no", "type": "insufficient_quota"}}, "(HTTP 429, insufficient_quota)"),
        (407, "Proxy Authentication Required", "HTTPS_PROXY"),
        (429, {"error": "you've reached your weekly usage limit"}, "credit"),
        (429, {"message": "limit is 1000 api calls per month"}, "quota"),
        (400, {"error": {"code": "model_decommissioned"}}, "(HTTP 400, model_decommissioned): check the model's name"),
        (500, "", "the LLM server failed (HTTP 500)"),
    ],
)
def test_the_advice_fits(status, body, advice):
    assert advice in judge(of_openai(Refusal(status, body, STOP))).advice


def test_a_plain_failure_is_no_sign_of_too_many_questions():
    assert judge(of_openai(Refusal(500, "", WAIT))).kind == ""
    assert judge(of_openai(Refusal(503, "", WAIT))).kind == "busy"


@pytest.mark.parametrize(
    "error",
    [ssl.SSLCertVerificationError("no"), caused(httpx.ConnectError("no"), ssl.SSLCertVerificationError("self-signed"))],
)
def test_a_certificate_that_is_not_trusted_is_for_the_user_to_mend(error):
    assert judge(error).remedy is STOP
    assert "SSL_CERT_FILE" in judge(error).advice


def test_a_host_that_is_not_known_is_no_fault_of_ours():
    failure = judge(socket.gaierror(-2, "Name or service not known"))
    assert failure.remedy is WAIT
    assert failure.servers
    assert "address" in failure.advice
