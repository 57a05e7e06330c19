"""What retrievers on one client share."""

from __future__ import annotations

import gc
import multiprocessing
import os

import pytest
import torch

from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.known import ENTRIES, Known, Shelf
from llama_index_refine.qdrant.space import Space
from llama_index_refine.qdrant.vectors import Vectors


class Client:
    pass


def test_a_client_finds_what_was_put_there_and_another_does_not():
    shelf, client = Shelf(), Client()
    known = shelf.entry(client, "a")
    assert shelf.entry(client, "a") is known
    assert shelf.entry(client, "b") is not known
    assert shelf.entry(Client(), "a") is not known


def test_the_oldest_entries_make_room_and_a_client_takes_its_own_along():
    shelf, client = Shelf(), Client()
    first = shelf.entry(client, 0)
    second = shelf.entry(client, 1)
    for key in range(2, ENTRIES):
        shelf.entry(client, key)
    assert shelf.entry(client, 0) is first
    shelf.entry(client, ENTRIES)
    assert shelf.entry(client, 1) is not second
    assert len(shelf._of_client) == 1
    del client
    gc.collect()
    assert len(shelf._of_client) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_while_a_thread_looks_something_up_does_not_wait_for_it():
    shelf, client = Shelf(), Client()
    shelf.entry(client, "a")
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    with shelf._lock:
        child = fork.Process(target=lambda: answers.put(type(shelf.entry(client, "a")).__name__), daemon=True)
        child.start()
        try:
            assert answers.get(timeout=60) == "Known"
        finally:
            child.kill()
            child.join()


def test_a_background_from_another_space_is_dropped():
    known = Known()
    space = Space("", 4, "cosine")
    known.learn(space)
    known.background = Background(Vectors(torch.zeros(1, 4)), [1], 1)
    known.learn(Space("", 4, "cosine"))
    assert known.background is not None
    known.learn(Space("", 8, "cosine"))
    assert known.background is None
    known.forget()
    assert known.space is None
