"""Each teacher's record, shared by all retrievers that it grades for."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.refining.trust import Reliability

_records: WeakKeyDictionary[BaseGrader, Reliability] = WeakKeyDictionary()
_records_lock = threading.Lock()


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
    with _records_lock:
        return _records.setdefault(grader, Reliability())
