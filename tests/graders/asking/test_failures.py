"""What errors of many clients mean."""

from __future__ import annotations

import json
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from llama_index_refine.graders.asking.failures import describe, is_setup_error, is_transient, retry_after, status_of


class ApiError(Exception):
    """An error as a client might have it."""

    def __init__(self, message: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.__dict__.update(fields)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "failure",
    [
        ApiError(status_code=401),
        ApiError(status=401),
        ApiError(code=401),
        ApiError(response=SimpleNamespace(status_code=401)),
        ApiError(code="invalid_api_key", status_code=401),
    ],
)
def test_the_status_is_found(failure):
    assert status_of(failure) == 401
    assert is_setup_error(failure)
    assert "api_key" in describe(failure)


@pytest.mark.parametrize("failure", [ApiError(), ApiError(code="x"), ApiError(status_code=7), ValueError("401")])
def test_there_may_be_no_status(failure):
    assert status_of(failure) is None


@pytest.mark.parametrize(
    ("failure", "transient"),
    [
        (ApiError(status_code=429), True),
        (ApiError(status_code=529), True),
        (ApiError(status_code=501), False),
        (ApiError(status_code=400), False),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (httpx.ReadTimeout(""), True),
        (httpx.RemoteProtocolError(""), True),
        (caused(ApiError(), httpx.ConnectError("")), True),
        (json.JSONDecodeError("", "", 0), True),
        (TypeError("unexpected argument"), False),
        (ValueError("nonsense"), False),
    ],
)
def test_what_may_pass(failure, transient):
    assert is_transient(failure) is transient


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), (formatdate(0), 0.0), ("soon", None), (None, None)],
)
def test_retry_after(header, seconds):
    headers = {} if header is None else {"retry-after": header}
    assert retry_after(ApiError(response=SimpleNamespace(headers=headers))) == seconds


def test_no_response_asks_for_no_wait():
    assert retry_after(ValueError()) is None


def test_a_program_error_is_described_by_its_place_and_not_its_text():
    with pytest.raises(TypeError) as caught:
        raise TypeError("sk-secret")
    assert "TypeError at test_failures.py:" in describe(caught.value)
    assert "sk-secret" not in describe(caught.value)
