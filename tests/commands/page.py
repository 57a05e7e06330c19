"""docs/commands.md, made from the commands: `python -m tests.commands.page` writes it, and runs each example for it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from llama_index_refine.commands.cli import app
from tests.chat_server import ChatServer
from tests.toy_data import write_folder

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
SERVER = "http://localhost:8000/v1"
LLM = f"--llm-base-url {SERVER} --llm-model llama-3.2"
SAMPLE = "--path qdrant --collection banking77-sample"

# One for each command that ends by itself or says where it can be found; `qdrant` is what the first one writes.
EXAMPLES = {
    "demo": "demo --path qdrant --queries 12",
    "search": f'search {SAMPLE} --query "my card was stolen" --top-k 5 {LLM}',
    "select": f'select {SAMPLE} --query "lost or stolen" --out found.jsonl --keep kept {LLM}',
    "match": "match --selection kept/1.safetensors --texts new.txt --out matched.jsonl",
    "classify": f"classify {SAMPLE} --labels labels.json --out labelled.csv {LLM}",
    "calibrate": f"calibrate {SAMPLE} --query 'lost or stolen' --query 'exchange rate' --propose 20 --to ask.csv {LLM}",
    "ui": f"ui {SAMPLE} {LLM} --no-browser",
    "bench run": "bench my-data --peers rerank,rocchio --feedback-top-k 10 --out before --no-plots",
    "bench compare": "bench compare before after",
}
LABELS = {"loss": "lost or stolen", "exchange": "exchange rate"}

ABOUT = {
    "select": """Beside `found.jsonl` lies `found.jsonl.run`, with JSON lines: the first says what the run is, and each
of the others what is known of a selection, its vector and its threshold among it. Rows are appended query by query;
each query is selected by itself, so that its rows do not depend on the others. `kept` gets a file for each query, which
`match` reads.""",
    "match": """`new.txt` has a text a line. A row has the query, the text's line as `id`, the probability that it is
relevant, and the text. Nobody is asked. Called again, it reads what is new in `new.txt`.""",
    "classify": """`labels.json` is `{labels}`. Beside `labelled.csv` lie
`labelled.csv.run`, which says what the run is and which documents have a row, and `labelled.csv.safetensors`, the
classifier, unless `--model` names it. With `--model` and without an LLM, a classifier that is there is taken as it
is, and further texts cost no call. A row's `id` is the document's, or the number of the text's line.""",
    "calibrate": """`ask.csv` has query, id, text, an empty `relevant` and the weight. Fill in 1 or 0 and give the file
as `--labels`. The grades are kept beside the labels, so that only new labels are graded when you call it again.
[People's labels](labels.md) says what is measured.""",
    "bench run": """The folder of `--out` has `run.json`, `table.md`, the pictures, and `cells/`, a file for each part
that is finished, named after all that decides its figures. [Measuring](measuring.md) says what the figures are.""",
    "mcp": """Standard output is the protocol's. Where the server listens, and warnings, are on standard error. A
teacher that fails is told of in the answers, and the server goes on. [Agents](agents.md) has the tools, and what to
write into a client's configuration.""",
    "demo": "The collection stays in the folder of `--path`, the picture in that of `--out`.",
}

HEAD = """# The command line

<!-- Written by: python -m tests.commands.page -->

`llama-index-refine COMMAND --help` says the same in the terminal. Each example was run as it stands here, with an LLM
behind `{server}` that calls a document relevant where it shares a long word with the query.

| command | what it is for |
|---|---|
{commands}

## Exit statuses

| status | meaning |
|---|---|
| 0 | All was done. Warnings, if any, are in the output. |
| 1 | Something went wrong that you can mend: one line on standard error says what. |
| 2 | An option is unknown, missing or out of its range. |
| 130 | You pressed Ctrl-C. |

## Files that are gone on with

`select`, `match`, `classify`, `calibrate` and `bench` go on where they were stopped, even where they were killed in the
middle of a row, when you call them again. They compare all that decides the rows with what the file beside `--out`
says: the collection and where it is, the embedding model, the LLM with its server and arguments, the instruction, the
labels, the target. If anything differs, they say what, name the files to remove, and change nothing. Keys are in none
of these files.

- Rows that you have changed are left alone, and the command says so. Rows that are gone are written anew.
- `select` refuses to go on where the number of documents has changed. `classify` gives new documents and lines their
  rows, and ends with status 1 where one that has a row was changed or is gone.
- `bench` measures anew what has changed: labels, texts, vectors, options, the LLM.
- An LLM that does not answer ends a command with status 1. What it left ungraded is not written, and asked again next
  time.

## Files that are read

Texts and labels may be UTF-8, or UTF-16 with a byte order mark, as PowerShell writes it. Lines end with a newline,
also Windows' way, and nowhere else; empty lines have no row. `--texts` takes a `.csv` file too, with the column
`text`, whose fields may have several lines. A file in another encoding is refused with its line.

In `.csv` files that are written, a cell that a spreadsheet would run as a formula, because it begins with `=`, `+`,
`-` or `@`, gets a `'` before it. In `.jsonl` files texts are what they are. A console that lacks a character shows
`?` for it.
"""


def commands() -> Iterator[tuple[str, Any]]:
    """All commands by name, those of groups too."""

    def inside(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        for part, other in getattr(command, "commands", {}).items():
            yield from inside(f"{name} {part}".strip(), other)
        if not getattr(command, "commands", None):
            yield name, command

    yield from inside("", typer.main.get_command(app))


def default_of(option: Any) -> str:
    """What holds where an option is not given."""
    if option.required:
        return "must be given"
    if isinstance(option.show_default, str):
        return option.show_default
    value = option.default
    if value is None or value == []:
        return f"`{option.envvar}`" if option.envvar else "none"
    if isinstance(value, bool):
        return f"`{(option.opts if value else option.secondary_opts or ['no'])[0]}`" if option.secondary_opts else "no"
    return ", ".join(f"`{one}`" for one in (value if isinstance(value, list) else [value]))


def table(command: Any) -> str:
    """Options and arguments, with their defaults."""
    rows = []
    for option in command.params:
        if option.name == "help":
            continue
        argument = option.param_type_name == "argument"
        names = [option.metavar or option.name.upper()] if argument else [*option.opts, *option.secondary_opts]
        least = f" At least {option.min}." if getattr(option, "min", None) is not None else ""
        rows.append([", ".join(f"`{name}`" for name in names), default_of(option), f"{option.help or ''}{least}"])
    lines = [["option", "default", "meaning"], ["---"] * 3, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(outputs: Mapping[str, str]) -> str:
    """The page, with what the examples printed."""
    named = list(commands())
    listed = "\n".join(
        f"| [`{name}`](#{name.replace(' ', '-')}) | {command.help.splitlines()[0]} |" for name, command in named
    )
    parts = [HEAD.format(server=SERVER, commands=listed)]
    for name, command in named:
        parts.append(f"## `{name}`\n\n{command.help}\n")
        if name in EXAMPLES:
            parts.append(f"```console\nllama-index-refine {EXAMPLES[name]}\n```\n")
            parts.append(f"```text\n{outputs[name]}\n```\n")
        if name in ABOUT:
            parts.append(ABOUT[name].replace("{labels}", json.dumps(LABELS)) + "\n")
        parts.append(table(command) + "\n")
    return "\n".join(parts)


def run_examples(folder: Path) -> dict[str, str]:
    """Run the examples in a folder, and return what they print."""
    (folder / "labels.json").write_text(json.dumps(LABELS))
    (folder / "new.txt").write_text("My card was stolen.\nWhat is the rate for yen?\n")
    write_folder(folder / "my-data", vectors=False)
    server = ChatServer().start()
    environment = {"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None, "COLUMNS": "100", "NO_COLOR": "1"}
    environment |= {"LLAMA_INDEX_REFINE_CACHE": str(folder / "cache")}
    outputs = {}
    try:
        with contextlib.chdir(folder) if sys.version_info >= (3, 11) else _inside(folder), _pages_that_close():
            for name, example in EXAMPLES.items():
                if name == "bench compare":
                    again = EXAMPLES["bench run"].replace("before", "after").replace("--feed", "--seed 2 --feed")
                    assert CliRunner(env=environment).invoke(app, shlex.split(again)).exit_code == 0
                ran = CliRunner(env=environment).invoke(app, shlex.split(example.replace(SERVER, server.url)))
                assert ran.exit_code == 0, ran.output
                lines = [line.rstrip() for line in ran.output.replace(server.url, SERVER).splitlines()]
                outputs[name] = "\n".join(
                    line for line in lines if "━" not in line or "┃" in line or line[:1] in ("┏", "┡")
                ).strip()
    finally:
        server.stop()
    return outputs


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _pages_that_close() -> Iterator[None]:
    """Let the playground end when it has said where it is."""
    from gradio import Blocks

    blocking = Blocks.block_thread
    Blocks.block_thread = lambda self: self.close(verbose=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Blocks.block_thread = blocking  # type: ignore[method-assign]


def without_figures(text: str) -> str:
    """A page as it is compared: figures and the width of tables depend on the machine."""
    return re.sub(r"[ ─━-]+", " ", re.sub(r"\d[\d,.]*", "#", text))


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        PAGE.write_text(page(run_examples(folder)), encoding="utf-8")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
