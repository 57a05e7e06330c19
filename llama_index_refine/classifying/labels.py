"""The labels that a user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def read_labels(labels: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Read labels, each with the text that is searched for.

    :param labels: names, or names with definitions.
    :return: name to text: the definition, or where there is none the name with its separators as spaces.
    :raises ValueError: fewer than two, one that is no text or blank, or two that are the same.
    """
    if isinstance(labels, str) or not isinstance(labels, Sequence | Mapping):
        raise ValueError(f"labels must be a list of names or a mapping from name to definition; got {labels!r}")
    names = list(labels)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"labels must be texts that are not blank; got {name!r}")
    folded: dict[str, str] = {}
    for name in names:
        key = _spaced(name).casefold()
        if key in folded:
            twice = f"{name!r} twice" if folded[key] == name else f"{folded[key]!r} and {name!r}, which read the same"
            raise ValueError(f"labels holds duplicates: {twice}")
        folded[key] = name
    if len(names) < 2:
        raise ValueError(f"labels must be at least 2; got {len(names)}")
    if not isinstance(labels, Mapping):
        return {name: _spaced(name) for name in names}
    for name, definition in labels.items():
        if not isinstance(definition, str):
            raise ValueError(f"labels must map names to texts; that of {name!r} is {definition!r}")
    return {name: definition.strip() or _spaced(name) for name, definition in labels.items()}


def _spaced(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
