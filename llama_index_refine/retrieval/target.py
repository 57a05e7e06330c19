"""What is asked of a selection."""

from __future__ import annotations

from dataclasses import dataclass

# Grades beyond those that refine the query, as a multiple of them: where no target is set, and where one is.
MORE, MORE_FOR_TARGET = 1, 4


@dataclass(frozen=True)
class Target:
    """What is asked of a selection.

    :param precision: the least share of the selected that is relevant, None for no such target.
    :param recall: the least share of the relevant that is selected, None for no such target.
    :param confidence: the probability that a certificate is right.
    :param budget: the most documents to grade; None for a default.
    """

    precision: float | None = None
    recall: float | None = None
    confidence: float = 0.9
    budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("precision", "recall", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if self.precision is not None and self.recall is not None:
            raise ValueError("precision and recall are both given: set the one to be kept, and the other is maximised")

    def documents(self, feedback_top_k: int) -> int:
        """Return the most documents to grade.

        :param feedback_top_k: how many of them refine the query.
        :raises ValueError: a budget that leaves nothing to cut by.
        """
        aimed = self.precision is not None or self.recall is not None
        if self.budget is None:
            return feedback_top_k * (1 + (MORE_FOR_TARGET if aimed else MORE))
        if self.budget < feedback_top_k + aimed:
            least = (
                f"more than feedback_top_k, {feedback_top_k},"
                if aimed
                else f"at least feedback_top_k, {feedback_top_k},"
            )
            raise ValueError(f"budget must be {least} as that many refine the query; got {self.budget}")
        return self.budget
