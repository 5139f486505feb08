"""How many of four CounterFact facts about each of N subjects hold, by ``shared_subjects`` (docs/forgetting.md).

python scripts/shared_subjects.py together 3 ../shared/data/counterfact_core.jsonl.gz
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from betaedit import Editor, Fact
from betaedit.evaluation.scoring import score_targets
from betaedit.facts import iter_cases

_FACTS = 4


def main(mode: str, n_subjects: str, path: str) -> None:
    """Write the first fact of each subject, then the second of each, and so on; then ask for all."""
    prompts: dict[str, dict[str, Fact]] = defaultdict(dict)
    for case in iter_cases(Path(path)):
        prompts[case.fact.subject].setdefault(case.fact.prompt, case.fact)
    groups = [list(facts.values())[:_FACTS] for facts in prompts.values() if len(facts) >= _FACTS][: int(n_subjects)]
    facts = [group[at] for at in range(_FACTS) for group in groups]
    editor = Editor.from_pretrained("smollm2", shared_subjects=mode)
    editor.edit(facts)
    scores = score_targets(editor.language_model, [(fact.text, fact.target_new) for fact in facts])
    sys.stdout.write(f"{mode}: {sum(score.argmax for score in scores)} of {len(scores)} hold\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
