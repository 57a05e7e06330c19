import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_index_refine.commands.bench import app, make_llm
from llama_index_refine.commands.teacher import LLMOptions
from tests.chat_server import ChatServer
from tests.toy_data import write_folder

runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def bench(*arguments: object) -> tuple[int, str]:
    done = runner.invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_run_writes_everything_and_can_be_compared(toy: Path, tmp_path: Path) -> None:
    shared = (toy, "--embed-model", "toy", "--peers", "rerank,rocchio", "--max-queries", 4)
    code, output = bench(*shared, "--feedback-top-k", 5, "--out", tmp_path / "five", "--teacher", "auc:0.9")
    assert code == 0, output
    assert "best peer" in output
    written = {path.name for path in (tmp_path / "five").iterdir()}
    assert {"run.json", "table.md", "gain.png", "scores-toy--toy.png"} <= written
    found = json.loads((tmp_path / "five" / "run.json").read_text())
    assert list(found["cells"][0]["measured"]) == ["no feedback", "rerank", "rocchio", "refined"]
    code, output = bench("run", *shared, "--feedback-top-k", 5, "--out", tmp_path / "two", "--no-plots")
    assert code == 0, output
    assert not (tmp_path / "two" / "gain.png").exists()

    code, output = bench("compare", tmp_path / "five", tmp_path / "five", "--out", tmp_path / "table.md")
    assert code == 0, output
    assert "+0.000 [+0.000, +0.000]" in (tmp_path / "table.md").read_text()
    code, output = bench("compare", tmp_path / "five", tmp_path / "two")
    assert code == 1
    assert "in common" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "'nowhere' is neither a folder"),
        (["TOY", "--teacher", "nobody"], "unknown teacher 'nobody'"),
        (["TOY", "--peers", "nobody"], "unknown peers"),
        (["TOY", "--feedback-top-k", "1"], "feedback_top_k must be at least 2"),
        (["TOY", "--llm-base-url", "http://127.0.0.1:1/v1"], "--llm-base-url needs --llm-model"),
        (["compare", "nowhere", "nowhere"], "nowhere is missing: give the folder"),
    ],
)
def test_mistakes_end_in_one_line(toy: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    named = [str(toy) if argument == "TOY" else argument for argument in arguments]
    options = [] if arguments[0] == "compare" else ["--embed-model", "toy", "--out", str(tmp_path)]
    code, output = bench(*named, *options)
    assert code == 1
    assert message in " ".join(output.split())
    assert "Traceback" not in output


def test_help_names_the_data_sets() -> None:
    code, output = bench("run", "--help")
    assert code == 0
    assert "arguana" in output
    assert bench("--help")[0] == 0


def test_llm_is_asked_with_the_key_of_the_environment_which_is_kept_nowhere(
    tmp_path: Path, chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    data = write_folder(tmp_path / "data")
    server = ("--llm-model", "a-model", "--llm-base-url", chat_server.url)
    limits = ("--feedback-top-k", 2, "--max-queries", 1, "--peers", "none", "--embed-model", "toy")
    out, cache = tmp_path / "out", tmp_path / "cache"
    code, output = bench(data, "--teacher", "llm", *server, *limits, "--out", out, "--cache", cache)
    assert code == 0, output
    assert {question.headers["Authorization"] for question in chat_server.questions} == {"Bearer a-secret"}
    assert {question.body["model"] for question in chat_server.questions} == {"a-model"}
    kept = [path.read_bytes() for folder in (out, cache) for path in folder.rglob("*") if path.is_file()]
    assert len(kept) > 3
    assert not any(b"a-secret" in content for content in [*kept, output.encode()])


def test_without_options_there_is_no_llm() -> None:
    assert make_llm(LLMOptions()) is None
