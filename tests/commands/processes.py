"""Commands as processes of their own, which can be killed at the moment in which they are about to touch a file.

The processes are forked from one that has imported everything, so that a test can afford dozens of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What a process of its own would spend seconds on.
import llama_index.embeddings.openai
import llama_index.llms.openai_like  # noqa: F401

import llama_index_refine.classifier
import llama_index_refine.evaluation.benchmark
import llama_index_refine.graders.openai  # noqa: F401
from llama_index_refine.commands.cli import app

_WRITES = ("open", "os.rename", "os.truncate", "os.remove", "os.mkdir", "sqlite3.connect")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    :param status: its exit status, negative for the signal that killed it.
    :param said: what it printed.
    :param touched: how often it was about to write into a file of the folder.
    """

    status: int
    said: str
    touched: int


def run(
    arguments: Sequence[object], folder: Path, kill_at: int = 0, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run the command line in a process.

    :param arguments: of the command line.
    :param folder: the files that count.
    :param kill_at: the process kills itself when it is about to write for the so-manieth time; 0 for never.
    :param environment: more variables.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    log = folder / "said.log"
    named = {"OPENAI_API_KEY": "none", "COLUMNS": "200", "NO_COLOR": "1", **(environment or {})}
    words = [str(argument) for argument in arguments]
    process = context.Process(target=_child, args=(words, str(folder), kill_at, named, str(log), sender))
    process.start()
    sender.close()
    try:
        touched = receiver.recv()
    except EOFError:
        touched = 0
    process.join(120)
    assert process.exitcode is not None, "the command does not end"
    return Ended(process.exitcode, log.read_text(encoding="utf-8"), touched)


def _child(
    arguments: list[str], folder: str, kill_at: int, environment: Mapping[str, str], log: str, sender: object
) -> None:
    os.environ.update(environment)
    os.environ.pop("OPENAI_BASE_URL", None) if "OPENAI_BASE_URL" not in environment else None
    sys.stdout = sys.stderr = open(log, "w", encoding="utf-8")  # noqa: SIM115
    touched = 0

    def hook(event: str, values: tuple[object, ...]) -> None:
        nonlocal touched
        if event not in _WRITES or not isinstance(values[0], str | os.PathLike):
            return
        path = os.fspath(values[0])
        reading = event == "open" and isinstance(values[1], str) and not set(values[1]) & set("wax+")
        if reading or not str(path).startswith(folder) or str(path) == log:
            return
        touched += 1
        if touched == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        app(arguments)
    except SystemExit as ended:
        sys.stdout.flush()
        sender.send(touched)
        sys.exit(ended.code)
