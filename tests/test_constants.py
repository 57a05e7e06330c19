"""The table of what the engine's constants are worth, and the way one of them is changed for it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from results.constants import ARGUMENTS, PACKAGE, Multiplied, settings, table

ROOT = Path(__file__).parent.parent


def test_what_is_made_of_a_constant_at_import_follows_it():
    code = (
        "import sys; from results.constants import Multiplied\n"
        f"sys.meta_path.insert(0, Multiplied('{PACKAGE}.refining.trust', 'CHANCE', 0.5))\n"
        f"from {PACKAGE}.refining import trust; print(trust.CHANCE, trust.Belief().hypotheses[0], trust.INVERTED)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert said.stdout.split() == ["0.125", "0.125", "0.01"]


def test_every_constant_is_where_it_is_said_to_be():
    for name, factor in settings():
        module, _, constant = name.rpartition(".")
        if module:
            source = Path(find_spec(f"{PACKAGE}.{module}").origin).read_bytes()
            Multiplied(f"{PACKAGE}.{module}", constant, factor).changed(source)
    with pytest.raises(ValueError, match=r"refining\.trust does not define NOTHING"):
        Multiplied(f"{PACKAGE}.refining.trust", "NOTHING", 2.0).changed(b"CHANCE = 1\n")


def test_the_greatest_change_comes_first():
    rows = [
        {"constant": name, "factor": factor, **{key: [0.5 + change, 0.4, 12.0] for key in ("good", "noisy", "strict")}}
        for name, factor, change in (("as it is", 1.0, 0.0), ("refining.a.B", 0.5, 0.001), (ARGUMENTS[0], 2.0, -0.03))
    ]
    lines = [line for line in table(rows, "told").splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["as it is", ARGUMENTS[0], "refining.a.B"]
    assert "1 of 2 rows change less than .002." in table(rows, "told")
    assert "-0.030, +0.000, +0.0" in lines[3]
