"""Pieces that answers are made of: thoughts in every tag, and scraps of anything."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def tokens(*said: Any) -> list[dict[str, float]]:
    return [one if isinstance(one, dict) else {one: 1.0} for one in said]


THOUGHTS = ("1", ".", " **", "Yes", " or", " no", "?\n")


THINKING = st.sampled_from(
    [
        "",
        "<think>{}</think>\n",
        "<thinking>\n{}\n</thinking>",
        "{}</think>",
        "[THINK]{}[/THINK]",
        "<reasoning>{}</reasoning>\n",
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    ]
)
MUSINGS = st.sampled_from(
    ["Yes? No?", "The answer is yes.", "It is not relevant.", "Score: 1", '{"relevant": true}', "No"]
)


SCRAPS = st.sampled_from(
    [
        "yes",
        "No",
        "relevant",
        "not ",
        "<think>",
        "</think>",
        "[THINK]",
        "{",
        "}",
        '"relevant": ',
        "true",
        "[",
        "]",
        ":",
        "3",
        "/3",
        "0 to 3",
        "Answer",
        "\n",
        ". ",
        "<|channel|>",
        "final",
        "<|message|>",
        "```",
        "out of",
        "is ",
        "\ud83d",
        "ß",
        "İ",
        "-",
    ]
)
TEXTS = st.text() | st.lists(SCRAPS, max_size=30).map("".join)
POSITIONS = st.lists(st.dictionaries(SCRAPS | st.text(max_size=3), st.floats(0, 1), max_size=3), max_size=6)
