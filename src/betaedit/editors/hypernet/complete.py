"""Whether records have all that a hypernetwork is trained on; no torch is needed."""

from __future__ import annotations

from collections.abc import Sequence

from betaedit.errors import FactError
from betaedit.facts.fact import EvaluationCase

_HINT = "Give each record both: zsRE files of MEND have them (rephrase, loc, loc_ans); see docs/hypernetworks.md."


def check_complete(cases: Sequence[EvaluationCase]) -> None:
    """Refuse records that lack a rephrase or an unrelated prompt with its answer.

    Raises:
        FactError: There are no records, or some lack one; the message says how many lack what, and names the first.
    """
    if not cases:
        raise FactError("there is no record to train on.", hint=_HINT)
    lacking = {
        "a rephrase of their prompt (paraphrases)": [case for case in cases if not case.paraphrases],
        "an unrelated prompt with its answer (neighbors)": [
            case for case in cases if not any(probe.target for probe in case.neighbors)
        ],
    }
    told = [
        f"{len(found)} of {len(cases)} records lack {what}, the first of them {found[0].fact.id or found[0].fact.text}"
        for what, found in lacking.items()
        if found
    ]
    if told:
        raise FactError(f"{'; '.join(told)}.", hint=_HINT)
