"""Paired test of two methods on the same records. Needs no model.

Records on which both do equally well are ignored. If the methods do not differ, each other record is won by either with
equal probability: this is the exact sign test, which for records that are right or wrong is McNemar's exact test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.05
"""Significance level."""
_POWER = 0.8


@dataclass(frozen=True, slots=True)
class PairedTest:
    """How often each of two methods did better on the same records.

    Args:
        first: Records on which the first did better.
        second: Records on which the second did.
        count: All records, those on which both did equally well among them.
    """

    first: int
    second: int
    count: int

    @property
    def p(self) -> float:
        """Two-sided p-value of the exact sign test, above 0 and at most 1."""
        unequal = self.first + self.second
        tail = sum(math.comb(unequal, won) for won in range(min(self.first, self.second) + 1))
        # Integers up to the division, whose result may underflow to 0; a p-value is above 0.
        return max(min(1.0, 2 * tail / (1 << unequal)), math.ulp(0.0))

    def records_needed(self, level: float = LEVEL) -> int | None:
        """Approximate number of records for a significant difference with 80% power, if these records are typical.

        Args:
            level: The significance level.

        Returns:
            More than ``count``; ``None`` if the methods have won equally often.
        """
        unequal, most = self.first + self.second, max(self.first, self.second)
        if 2 * most == unequal:
            return None
        share, normal = most / unequal, NormalDist()
        spread = 0.5 * normal.inv_cdf(1 - level / 2) + math.sqrt(share * (1 - share)) * normal.inv_cdf(_POWER)
        fewest = math.ceil(math.log2(2 / level))  # even if one method wins all of them
        needed = max((spread / (share - 0.5)) ** 2, fewest)
        return max(math.ceil(needed * self.count / unequal), self.count + 1)


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """The test of two methods on the same records.

    Args:
        first: The first method's figure of each record, more is better; 0 or 1 for records that are wrong or right.
        second: The second method's, in the same order.
    """
    pairs = list(zip(first, second, strict=True))
    return PairedTest(sum(a > b for a, b in pairs), sum(b > a for a, b in pairs), len(pairs))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Holm-corrected p-values of several tests, in the same order."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    corrected, largest = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[index]))
        corrected[index] = largest
    return corrected
