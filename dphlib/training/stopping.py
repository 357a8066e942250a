"""When a run is stopped: at the first plateau of Pass@1 on the validation suite."""

from __future__ import annotations

from collections.abc import Sequence

PATIENCE = 2
"""Way-points that have to pass without a gain."""
GAIN = 0.01
"""Of Pass@1, a share: less is no gain."""


def plateau(values: Sequence[float], patience: int = PATIENCE, gain: float = GAIN) -> int:
    """Index of the first value that none of the next `patience` exceeds by more than `gain`; the last one without.

    >>> plateau([0.40, 0.46, 0.50, 0.505, 0.50, 0.60]), plateau([0.4, 0.5, 0.6])
    (2, 2)
    """
    for index, value in enumerate(values):
        following = values[index + 1 : index + 1 + patience]
        if len(following) == patience and max(following) <= value + gain:
            return index
    return len(values) - 1
