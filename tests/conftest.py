"""Real counterparts that many tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chat_server import ChatServer


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    """A chat completions server of its own for each test."""
    server = ChatServer().start()
    yield server
    server.stop()
