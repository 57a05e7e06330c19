"""The command line as a whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llama_index_refine.commands.cli import app

COMMANDS = ("demo", "search", "ui", "bench")


def test_help_names_every_command():
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_no_command_shows_help():
    assert "demo" in CliRunner().invoke(app, []).output


@pytest.mark.parametrize("arguments", [["demos"], ["demo", "--speed", "9"], ["search"], ["search", "--query", "x"]])
def test_what_is_not_known_or_missing_is_told(arguments: list[str]):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_it_is_installed_as_a_script():
    script = Path(sys.executable).with_name("llama-index-refine")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout


def test_options_that_commands_share_are_the_same():
    commands = typer.main.get_command(app).commands
    options = {
        name: {option.opts[0]: (option.help, option.default) for option in commands[name].params}
        for name in ("search", "select", "classify", "ui")
    }
    shared = set.intersection(*map(set, options.values())) - {"--collection", "--help"}
    assert {"--embed-model", "--embed-base-url", "--llm-kwargs", "--instruction", "--feedback-top-k"} <= shared
    for option in shared:
        assert len({described[option] for described in options.values()}) == 1, option


def test_a_console_that_lacks_a_character_shows_a_question_mark():
    code = "from llama_index_refine.commands import cli; cli.app = lambda: print('\u732b \u2192 x'); cli.main()"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert done.stdout.strip() == b"? ? x"
