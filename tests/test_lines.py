"""Text files as people have them."""

from pathlib import Path

import pytest

from llama_index_refine.lines import read_lines

LINES = ["größer", "", "the train\u2028is late", "page one\x0cof the cat", "the last\x85train", "猫"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_end_with_a_newline_and_nothing_else(tmp_path: Path, encoding: str, end: str, last: bool) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes((end.join(LINES) + end * last).encode(encoding))
    assert list(read_lines(file)) == list(enumerate(LINES, 1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("ok\ngrößer\n".encode("latin-1"), "--texts .*texts.txt is not in UTF-8 at line 2: save the file as UTF-8"),
        ("ok\nno\n".encode("utf-16-le"), "--texts .*texts.txt, line 1 holds NUL characters: save the file as UTF-8"),
        ("ok\nno\n".encode("utf-16")[:-1], "--texts .*texts.txt is not in UTF-8 at line 2"),
    ],
)
def test_another_encoding_is_one_sentence_with_file_line_and_option(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        list(read_lines(file, "--texts"))
