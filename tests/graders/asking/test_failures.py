"""What errors of many clients and servers mean."""

from __future__ import annotations

import asyncio
import json
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_refine.graders.asking.errors import ServerError, read
from llama_index_refine.graders.asking.failures import Failure, Remedy, judge
from tests.graders.asking.bodies import BEDROCK, REFUSALS, Refusal

URL = "http://127.0.0.1/v1/chat/completions"
CLIENT = openai.OpenAI(api_key="k", base_url="http://127.0.0.1/v1")


class ApiError(Exception):
    """An error as a client might have it."""

    def __init__(self, message: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.__dict__.update(fields)


class ClientError(Exception):
    """An error as botocore has it."""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(f"An error occurred ({code}) when calling the Converse operation: {message}")
        metadata = {"HTTPStatusCode": status, "HTTPHeaders": {"x-amzn-errortype": code}, "RetryAttempts": 0}
        self.response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def of_openai(refusal: Refusal) -> Exception:
    """Make the error that the openai client raises for a response."""
    body = refusal.body if isinstance(refusal.body, str) else json.dumps(refusal.body)
    headers = {"content-type": "application/json", **refusal.headers}
    response = httpx.Response(refusal.status, text=body, headers=headers, request=httpx.Request("POST", URL))
    return CLIENT._make_status_error_from_response(response)


def check(failure: Failure, refusal: Refusal) -> None:
    assert failure.remedy is refusal.remedy, failure
    assert refusal.word in failure.advice
    assert failure.options == refusal.options
    assert failure.said.wait == (pytest.approx(refusal.wait) if refusal.wait is not None else None)
    assert failure.servers is (refusal.remedy in (Remedy.WAIT, Remedy.STOP))


@pytest.mark.parametrize("name", REFUSALS)
def test_what_servers_say_is_understood(name):
    check(judge(of_openai(REFUSALS[name])), REFUSALS[name])


@pytest.mark.parametrize("name", [name for name, refusal in REFUSALS.items() if isinstance(refusal.body, dict)])
def test_it_is_understood_in_a_body_without_a_client(name):
    """As other clients have it: the parsed body and a status, or only the server's text."""
    refusal = REFUSALS[name]
    plain = ApiError("no", status=refusal.status, body=refusal.body, headers=refusal.headers)
    check(judge(plain), refusal)
    response = SimpleNamespace(status_code=refusal.status, text=json.dumps(refusal.body), headers=refusal.headers)
    check(judge(caused(ValueError("it failed"), ApiError("no", response=response))), refusal)


@pytest.mark.parametrize("name", BEDROCK)
def test_aws_nested_responses_are_understood(name):
    refusal = BEDROCK[name]
    check(judge(ClientError(*refusal.body, refusal.status)), refusal)


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        (
            {"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": "error code: 1015"}}},
            Remedy.WAIT,
        ),
        ({"error": {"message": "Insufficient credits", "code": 402}}, Remedy.STOP),
        ({"error": {"message": "logprobs are not supported", "code": 400}}, Remedy.ADAPT),
        ({"error": {"message": "what?"}}, Remedy.SKIP),
        ({"error": {"type": "overloaded_error"}}, Remedy.WAIT),
    ],
)
def test_an_error_under_a_status_of_success_is_read_as_well(body, remedy):
    assert judge(ServerError(body)).remedy is remedy


@pytest.mark.parametrize(
    "failure",
    [
        ApiError(status_code=401),
        ApiError(status=401),
        ApiError(code=401),
        ApiError(response=SimpleNamespace(status_code=401)),
        ApiError(code="invalid_api_key", status_code=401),
        ApiError(code=SimpleNamespace(value=(401, "unauthorized"))),
    ],
)
def test_the_status_is_found(failure):
    assert judge(failure).said.status == 401
    assert "api_key" in judge(failure).advice


@pytest.mark.parametrize("failure", [ApiError(), ApiError(code="x"), ApiError(status_code=7), ValueError("401")])
def test_there_may_be_no_status(failure):
    assert read(failure).status is None


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        (ApiError(status_code=529), Remedy.WAIT),
        (ApiError(status_code=501), Remedy.STOP),
        (ApiError(status_code=400), Remedy.ADAPT),
        (ApiError(status_code=403), Remedy.STOP),
        (TimeoutError(), Remedy.WAIT),
        (asyncio.TimeoutError(), Remedy.WAIT),
        (ConnectionResetError(), Remedy.WAIT),
        (httpx.ReadTimeout(""), Remedy.WAIT),
        (httpx.RemoteProtocolError(""), Remedy.WAIT),
        (httpx.UnsupportedProtocol(""), Remedy.STOP),
        (caused(ApiError(), httpx.ConnectError("")), Remedy.WAIT),
        (caused(ApiError(), TimeoutError()), Remedy.WAIT),
        (json.JSONDecodeError("", "", 0), Remedy.WAIT),
        (TypeError("unexpected argument"), Remedy.OURS),
        (ValueError("the text speaks of invalid api key and content_filter"), Remedy.OURS),
        (caused(ApiError(status_code=500), UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates")), Remedy.OURS),
        (RuntimeError("boom"), Remedy.OURS),
    ],
)
def test_what_may_pass_and_whose_fault_it_is(failure, remedy):
    assert judge(failure).remedy is remedy


@pytest.mark.parametrize("failure", [TypeError("x"), json.JSONDecodeError("", "", 0), ApiError(status_code=400)])
def test_what_is_no_failure_of_the_server_is_not_counted_as_one(failure):
    assert not judge(failure).servers


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), (formatdate(0), 0.0), ("soon", None), (None, None)],
)
def test_retry_after(header, seconds):
    headers = {} if header is None else {"retry-after": header}
    assert judge(ApiError(status_code=429, response=SimpleNamespace(headers=headers))).said.wait == seconds


def test_no_response_asks_for_no_wait():
    assert judge(ValueError()).said.wait is None


def test_an_echo_of_the_request_is_not_read():
    detail = [
        {"loc": ["body", "messages"], "msg": "no", "input": "insufficient_quota, invalid api key, content_filter"}
    ]
    assert judge(ApiError(status_code=422, body={"detail": detail})).remedy is Remedy.ADAPT


def test_a_program_error_is_described_by_its_place_and_not_its_text():
    with pytest.raises(TypeError) as caught:
        raise TypeError("sk-secret")
    assert "TypeError at test_failures.py:" in judge(caught.value).advice
    assert "sk-secret" not in judge(caught.value).advice


@pytest.mark.parametrize("name", REFUSALS)
def test_no_advice_repeats_the_servers_words(name):
    secret = "sk-12345 and the document"
    body = json.loads(json.dumps(REFUSALS[name].body).replace('"message": "', f'"message": "{secret} '))
    assert "12345" not in judge(ApiError(status_code=REFUSALS[name].status, body=body)).advice


KEYS = st.sampled_from(
    ["error", "message", "code", "type", "param", "loc", "status", "details", "retryDelay", "raw", "x"]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["429", "{", "[1", '{"code": 7}']),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(body=JSON, status=st.none() | st.integers() | st.text(), headers=st.none() | JSON, text=st.text())
def test_whatever_an_error_carries_it_is_judged(body, status, headers, text):
    response = SimpleNamespace(headers=headers, text=text, status_code=status)
    for failure in (
        ApiError(text, status_code=status, body=body, response=response),
        ApiError(text, code=status, details=body, response=body),
        ServerError(body),
        caused(ValueError(text), ApiError(text, response=response)),
    ):
        judged = judge(failure)
        assert judged.advice
        assert judged.said.wait is None or judged.said.wait >= 0


class Hostile(Exception):
    """An error that fails whatever it is asked."""

    def __str__(self) -> str:
        raise RuntimeError

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_an_error_that_fails_when_it_is_read_is_judged():
    assert judge(Hostile()).remedy is Remedy.OURS


def test_errors_in_a_circle_are_judged():
    first, second = ApiError(), ApiError()
    first.__cause__, second.__cause__ = second, first
    assert judge(first).remedy is Remedy.OURS
