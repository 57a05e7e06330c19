"""Errors and warnings as a user of the command line should see them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from llama_index_refine.display.ranking import one_line


class Warnings(logging.Handler):
    """Collects what the library warns of, each message once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        if (message := one_line(record.getMessage())) not in self.messages:
            self.messages.append(message)


@contextmanager
def plain_errors() -> Iterator[Warnings]:
    """Tell what went wrong in one line on standard error and end with status 1; warnings come before it.

    :return: the warnings so far.
    :raises typer.Exit: what the user can mend went wrong.
    """
    console = Console(stderr=True)
    collected = Warnings()
    logger = logging.getLogger("llama_index_refine")
    logger.addHandler(collected)
    propagate, logger.propagate = logger.propagate, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield collected
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        console.print(Text(f"Error: {one_line(str(error))}", style="red"), soft_wrap=True)
        raise typer.Exit(1) from error
    finally:
        logger.removeHandler(collected)
        logger.propagate = propagate


def tell(console: Console, collected: Warnings) -> None:
    """Print the warnings, one a line."""
    for message in collected.messages:
        console.print(Text(f"Warning: {message}", style="yellow"), soft_wrap=True)
