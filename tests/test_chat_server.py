"""The chat server that other tests count on."""

from __future__ import annotations

import httpx


def test_who_means_another_server_at_this_port_is_not_counted(chat_server):
    body = {"model": "m", "messages": [{"role": "user", "content": "Query: cats"}]}
    strangers = [f"http://127.0.0.1:{chat_server.port}/{path}v1/chat/completions" for path in ("", "0/", "%2e/")]
    assert [httpx.post(url, json=body).status_code for url in strangers] == [404] * 3
    assert chat_server.calls == 0
    assert httpx.post(f"{chat_server.url}/chat/completions", json=body).status_code == 200
    assert chat_server.calls == 1
