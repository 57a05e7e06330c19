"""Each teacher's record, shared by all retrievers that it grades for."""

from __future__ import annotations

from weakref import ref

from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.locks import Lock
from llama_index_refine.refining.trust import Reliability

# By what the teacher is, not by what it equals: users' classes may compare by value, or have no hash.
_records: dict[int, tuple[ref[BaseGrader], Reliability]] = {}
_records_lock = Lock()


def trust_in(grader: BaseGrader) -> Reliability | float:
    """Say how far to follow a teacher, where the user does not say.

    :param grader: the teacher.
    :return: 1 for a trusted one, else its record.
    """
    return 1.0 if grader.trusted else reliability_of(grader)


def reliability_of(grader: BaseGrader) -> Reliability:
    """Return the teacher's record, which all its retrievers share.

    :param grader: the teacher.
    :return: its record, kept as long as the teacher is.
    """
    key = id(grader)
    with _records_lock:
        known, record = _records.get(key, (None, Reliability()))
        if known is None or known() is not grader:
            record = Reliability()
            _records[key] = (ref(grader, lambda gone: _forget(key, gone)), record)
        return record


def _forget(key: int, gone: ref[BaseGrader]) -> None:
    # Without the lock, which the thread that collects may hold.
    if _records.get(key, (None, None))[0] is gone:
        _records.pop(key, None)
