"""Rows that survive a kill at any byte, and that are nobody else's."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_index_refine.commands.rows import Rows

COLUMNS = ["query", "text"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PARTS = st.lists(st.lists(TEXTS, max_size=3), min_size=1, max_size=4)


def write(out: Path, parts: list[list[str]]) -> Rows:
    """What a command does, from the start or from where it was stopped."""
    rows = Rows(out, COLUMNS, {"--collection": "bank"})
    for number in range(len(rows.done), len(parts)):
        rows.add([{"query": str(number), "text": text} for text in parts[number]], number)
    return rows


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=PARTS, data=st.data())
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_kill_at_any_byte_leaves_no_trace(tmp_path: Path, suffix: str, parts: list[list[str]], data: st.DataObject):
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"stopped{suffix}"
    for file in tmp_path.iterdir():
        file.unlink()
    beside = write(whole, parts).beside
    # All bytes in the order in which they are written: a part's entry, then its rows.
    entries = beside.read_bytes().splitlines(keepends=True)
    ends = [0, *(json.loads(entry)["bytes"] for entry in entries[1:])]
    content = whole.read_bytes()
    steps = [(0, entries[0])]
    for entry, start, end in zip(entries[1:], ends, ends[1:], strict=False):
        steps += [(0, entry), (1, content[start:end])]
    at = data.draw(st.integers(0, sum(len(step) for _, step in steps)))
    # The rows are made when the first entry is about to be written.
    cut = [b"", b"" if at > len(entries[0]) else None]
    for which, step in steps:
        cut[which] = (cut[which] or b"") + step[:at] if step[:at] else cut[which]
        at -= min(at, len(step))
    for file, written in ((out.with_name(out.name + ".run"), cut[0]), (out, cut[1])):
        if written is not None:
            file.write_bytes(written)
    write(out, parts)
    assert out.read_bytes() == content
    assert write(out, parts).done == list(range(len(parts)))
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:20],
        lambda content: b"\0" * len(content),
        lambda content: content.replace(b"a", b"b"),
        lambda content: content + b'{"query": "mine"}\n',
        lambda content: b"",
        lambda content: content.upper() + content,
    ],
)
def test_rows_that_somebody_changed_are_left_alone(tmp_path: Path, change):
    out = tmp_path / "a.jsonl"
    write(out, [["alpha"], ["a"], ["b", "a"]])
    changed = change(out.read_bytes())
    out.write_bytes(changed)
    with pytest.raises(ValueError, match=r"was changed since it was written: remove .*a\.jsonl and .*a\.jsonl\.run"):
        write(out, [["alpha"], ["a"], ["b", "a"]])
    assert out.read_bytes() == changed


def test_rows_that_are_gone_are_written_anew(tmp_path: Path):
    out = tmp_path / "a.jsonl"
    write(out, [["alpha"], ["beta"]])
    content = out.read_bytes()
    out.rename(tmp_path / "moved.jsonl")
    assert write(out, [["alpha"], ["beta"]]).done == [0, 1]
    assert out.read_bytes() == content
    out.unlink()
    assert Rows(out, COLUMNS, {"--collection": "another"}).done == []


def test_somebody_else_who_writes_at_the_same_time_is_told_from_a_kill(tmp_path: Path):
    out = tmp_path / "a.jsonl"
    rows = write(out, [["alpha"]])
    with out.open("a") as file:
        file.write("another\n")
    with pytest.raises(ValueError, match="was changed while rows were written"):
        rows.add([], 1)


def test_an_error_names_what_differs_and_every_file(tmp_path: Path):
    out = tmp_path / "a.csv"
    Rows(out, COLUMNS, {"--path": "one", "--recall": None}).add([], "x")
    with pytest.raises(ValueError, match="was started with other options") as caught:
        Rows(out, COLUMNS, {"--path": "two", "--recall": 0.9})
    said = str(caught.value)
    assert '--path was "one" and is "two", --recall was not given and is 0.9' in said
    assert f"remove {out} and {out}.run to start again" in said


def test_a_file_beside_that_cannot_be_read_is_named(tmp_path: Path):
    out = tmp_path / "a.csv"
    write(out, [["a"]])
    (tmp_path / "a.csv.run").write_bytes(b"{broken\n")
    with pytest.raises(ValueError, match=r"a\.csv\.run cannot be read: remove"):
        write(out, [["a"]])


HOSTILE = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "'=1",
    "\tx",
    "two\nlines",
    "a\u2028b\u2029c\x85d",
    "plain, with a comma",
    "",
]


def test_cells_that_a_spreadsheet_would_run_are_defused_in_csv_and_whole_in_jsonl(tmp_path: Path):
    write(tmp_path / "a.csv", [HOSTILE])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        cells = [row["text"] for row in csv.DictReader(file)]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for cell in cells)
    assert [cell.removeprefix("'") if cell.startswith("'") else cell for cell in cells] == HOSTILE
    write(tmp_path / "a.jsonl", [HOSTILE])
    # A line for every reader, also for those that end lines where Unicode does.
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == HOSTILE


def test_what_utf_8_cannot_hold_stops_nothing(tmp_path: Path):
    write(tmp_path / "a.jsonl", [["lone \ud800"]])
    assert json.loads((tmp_path / "a.jsonl").read_bytes())["text"] == "lone \ud800"


def test_rows_in_a_folder_that_may_not_be_written_are_one_sentence(tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("needs a user who may not write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"):
        write(tmp_path / "a.jsonl", [["a"]])
