"""The command line. Commands import what is heavy or optional when they run."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

import typer

from llama_index_refine.commands.bench import app as bench
from llama_index_refine.commands.calibrate import calibrate
from llama_index_refine.commands.classify import classify
from llama_index_refine.commands.demo import demo
from llama_index_refine.commands.match import match
from llama_index_refine.commands.mcp import mcp
from llama_index_refine.commands.search import search
from llama_index_refine.commands.select import select
from llama_index_refine.commands.ui import ui

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Let an LLM grade the first results, refine the query vector by the grades, and search Qdrant again.",
)


@app.callback()
def quiet() -> None:
    """Keep the libraries' own progress bars out of the commands' output."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


app.command()(demo)
app.command()(search)
app.command()(select)
app.command()(match)
app.command()(classify)
app.command()(calibrate)
app.command()(ui)
app.command()(mcp)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A console or a pipe that cannot show a character gets ? for it.
            stream.reconfigure(errors="replace")
    app()
