"""What retrievers on one client share."""

from __future__ import annotations

import gc
import multiprocessing
import os

import pytest
import torch

from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.gateway import ENTRIES, CollectionState, States
from llama_index_refine.qdrant.limits import Limits
from llama_index_refine.qdrant.points import Vectors
from llama_index_refine.qdrant.requests import SearchOptions
from llama_index_refine.qdrant.vectors import Space


class Client:
    pass


def test_a_client_finds_what_was_put_there_and_another_does_not():
    states, client = States(), Client()
    state = states.entry(client, "a")
    assert states.entry(client, "a") is state
    assert states.entry(client, "b") is not state
    assert states.entry(Client(), "a") is not state


def test_the_oldest_entries_make_room_and_a_client_takes_its_own_along():
    states, client = States(), Client()
    first = states.entry(client, 0)
    second = states.entry(client, 1)
    for key in range(2, ENTRIES):
        states.entry(client, key)
    assert states.entry(client, 0) is first
    states.entry(client, ENTRIES)
    assert states.entry(client, 1) is not second
    assert len(states._of_client) == 1
    del client
    gc.collect()
    assert len(states._of_client) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_while_a_thread_looks_something_up_does_not_wait_for_it():
    states, client = States(), Client()
    states.entry(client, "a")
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    with states._lock:
        child = fork.Process(target=lambda: answers.put(type(states.entry(client, "a")).__name__), daemon=True)
        child.start()
        try:
            assert answers.get(timeout=60) == "CollectionState"
        finally:
            child.kill()
            child.join()


def test_a_background_from_another_space_is_dropped():
    state, options = CollectionState(), SearchOptions()
    state.learn(Space("", 4, "cosine"), options, Limits())
    state.background = Background(Vectors(torch.zeros(1, 4)), [1], 1)
    state.learn(Space("", 4, "cosine"), options, Limits())
    assert state.background is not None
    state.learn(Space("", 8, "cosine"), options, Limits())
    assert state.background is None
    state.forget()
    assert state.space is None
