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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
    "select": """Rows are added query by query, and no query depends on another. `found.jsonl.run` has JSON lines: the
first describes the run, and each of the others a selection, with its vector and its threshold. `kept` gets a file for
each query, which `match` reads.""",
    "match": """`new.txt` has one text per line. A row has the query, the number of the text's line as `id`, the
probability that the text is relevant, and the text. Call it again, and it reads what is new in `new.txt`.""",
    "classify": """`labels.json` is `{labels}`. `labelled.csv.run` describes the
run, and says which documents have a row. `labelled.csv.safetensors` is the classifier, unless `--model` names another
file. With `--model` and without an LLM, the command uses a classifier that exists, and more texts cost no call. A row's
`id` is the document's, or the number of the text's line.""",
    "calibrate": """`ask.csv` has query, id, text, an empty `relevant` and the weight. Fill in 1 or 0, and give the file
as `--labels`. The grades are kept beside the labels, so a later call grades only new labels. [People's
labels](labels.md) says what is measured.""",
    "bench run": """The folder of `--out` has `run.json`, `table.md`, the pictures, and `cells/`, with a file for each
finished part. [Measuring](measuring.md) says what the figures are.""",
    "mcp": """Standard output carries the protocol. Warnings, and where the server listens, go to standard error. If the
teacher fails, the answers say so, and the server goes on. [Agents](agents.md) has the tools, and what to write into a
client's configuration.""",
    "demo": "The collection stays in the folder of `--path`, the picture in the folder of `--out`.",
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
| 1 | Something went wrong that you can fix: one line on standard error says what. |
| 2 | An option is unknown, missing or out of its range. |
| 130 | You pressed Ctrl-C. |

## Stopped runs

Call `select`, `match`, `classify`, `calibrate` or `bench` again, and it goes on where it was stopped, even in the
middle of a row. The file beside `--out` says what decides the rows: the collection, the models, the instruction, the
labels, the target. If anything differs, the command says what, names the files to remove, and changes nothing.
No file has a key in it.

- The command leaves rows alone that you have changed, and says so. It writes rows again that are gone.
- `select` stops if the number of documents has changed. `classify` adds rows for new documents and lines. It ends with
  status 1 if a document that has a row was changed or is gone.
- `bench` measures again what has changed: labels, texts, vectors, options, the LLM.
- If the LLM does not answer, the command ends with status 1. The next run asks again for what is ungraded.

## Files

Texts and labels may be UTF-8, or UTF-16 with a byte order mark, as PowerShell writes it. Each line is a text; empty
lines have no row. `--texts` also takes a `.csv` file with the column `text`, whose fields may have several lines. If a
file has another encoding, the error names the line.

In `.csv` files, a cell that a spreadsheet would run as a formula gets a `'` before it: one that begins with `=`, `+`,
`-` or `@`. In `.jsonl` files, texts stay as they are. A console that lacks a character shows `?` for it.

## Shared options

{shared}
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


def rows_of(command: Any) -> list[tuple[str, str, str]]:
    """Options and arguments, with their defaults and what they mean."""
    rows = []
    for option in command.params:
        if option.name == "help":
            continue
        argument = option.param_type_name == "argument"
        names = [option.metavar or option.name.upper()] if argument else [*option.opts, *option.secondary_opts]
        least = f" At least {option.min}." if getattr(option, "min", None) is not None else ""
        rows.append((", ".join(f"`{name}`" for name in names), default_of(option), f"{option.help or ''}{least}"))
    return rows


def shared_rows() -> list[tuple[str, str, str]]:
    """What three commands or more have alike."""
    counts = Counter(row for _, command in commands() for row in rows_of(command))
    return [row for row, count in counts.items() if count > 2]


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    lines = [("option", "default", "meaning"), ("---",) * 3, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(outputs: Mapping[str, str]) -> str:
    """The page, with what the examples printed."""
    named = list(commands())
    listed = "\n".join(
        f"| [`{name}`](#{name.replace(' ', '-')}) | {command.help.splitlines()[0]} |" for name, command in named
    )
    shared = shared_rows()
    parts = [HEAD.format(server=SERVER, commands=listed, shared=table(shared))]
    for name, command in named:
        parts.append(f"## `{name}`\n\n{command.help}\n")
        if name in EXAMPLES:
            parts.append(f"```console\nllama-index-refine {EXAMPLES[name]}\n```\n")
            parts.append(f"```text\n{outputs[name]}\n```\n")
        if name in ABOUT:
            parts.append(ABOUT[name].replace("{labels}", json.dumps(LABELS)) + "\n")
        rows = rows_of(command)
        parts.append(table([row for row in rows if row not in shared]) + "\n")
        if also := ", ".join(row[0] for row in rows if row in shared):
            parts.append(f"[Shared options](#shared-options): {also}.\n")
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
