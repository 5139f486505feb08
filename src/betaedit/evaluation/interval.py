"""A mean with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over records of a share from 0 to 1, with its 95% interval.

    Args:
        mean: The mean.
        count: How many records it is over.
        low: Lower end of the interval.
        high: Upper end.
    """

    mean: float
    count: int
    low: float
    high: float

    def to_dict(self) -> dict[str, float | int]:
        """The estimate as plain data."""
        return asdict(self)


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of one share per record with its Wilson interval; ``None`` without a record.

    Exact for records that are right or wrong; a little wide where a record is itself a mean over prompts, because a
    share in between varies less than a coin of that mean.
    """
    count = len(values)
    if count == 0:
        return None
    mean, z2 = math.fsum(values) / count, _NORMAL_95**2
    middle = (mean + z2 / (2 * count)) / (1 + z2 / count)
    spread = _NORMAL_95 / (1 + z2 / count) * math.sqrt(mean * (1 - mean) / count + z2 / (4 * count**2))
    # The interval of a share of 0 or 1 ends there; rounding would miss it slightly.
    low, high = (0.0 if mean == 0 else middle - spread), (1.0 if mean == 1 else middle + spread)
    return Estimate(mean, count, low, high)
