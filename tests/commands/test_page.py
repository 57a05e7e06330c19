"""The page of the command line says what the commands say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import Result

from tests.commands.page import EXAMPLES, PAGE, commands, page, run_examples, without_figures

HOW = "python -m tests.commands.page writes the page"


def written() -> str:
    return PAGE.read_text(encoding="utf-8")


def outputs_on(text: str) -> dict[str, str]:
    found = re.findall(r"```text\n(.*?)\n```", text, re.DOTALL)
    return dict(zip((name for name, _ in commands() if name in EXAMPLES), found, strict=True))


def test_the_page_is_made_of_the_commands():
    assert page(outputs_on(written())) == written(), HOW


def test_every_option_of_every_command_is_on_it():
    for name, command in commands():
        section = written().split(f"\n## `{name}`\n")[1].split("\n## ")[0]
        missing = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        assert [option for option in missing if f"`{option}`" not in section and option != "--help"] == [], name


@pytest.mark.timeout(1200)
def test_the_examples_print_what_is_on_it(first_run: Result, folder: Path, tmp_path: Path):
    pytest.importorskip("gradio", reason="needs the extra ui")
    assert first_run.exit_code == 0, first_run.output
    shutil.copytree(folder / "qdrant", tmp_path / "qdrant")
    printed = run_examples(tmp_path)
    for name, output in outputs_on(written()).items():
        assert without_figures(printed[name]) == without_figures(output), f"{name}: {HOW}"
    for made in ("found.jsonl", "found.jsonl.run", "labelled.csv", "labelled.csv.run", "labelled.csv.safetensors"):
        assert (tmp_path / made).exists()
