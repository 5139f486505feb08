"""How many of five facts about each of N subjects hold, by ``shared_subjects`` (docs/forgetting.md).

python scripts/shared_subjects.py together 20 ../shared/data/counterfact_core.jsonl.gz [facts at a time]

CounterFact has hardly five facts about anybody. So the subjects are those of its facts about mother tongues, and each
is given an answer, drawn from CounterFact's own new answers, to five of CounterFact's own questions about people. The
facts come subject by subject, five at a time unless told otherwise; with 1 each is an edit of its own.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from pathlib import Path

from betaedit import Editor, Fact
from betaedit.evaluation.scoring import score_targets
from betaedit.facts import iter_cases

QUESTIONS = (
    "The mother tongue of {} is",
    "{} is a citizen of",
    "The occupation of {} is",
    "{} died in",
    "{} found employment in",
)


def facts_about(n_subjects: int, path: Path) -> list[Fact]:
    """Five facts about each of ``n_subjects``."""
    subjects: list[str] = []
    answers: dict[str, set[str]] = defaultdict(set)
    for case in iter_cases(path):
        if case.fact.prompt in QUESTIONS:
            answers[case.fact.prompt].add(case.fact.target_new)
        if case.fact.prompt == QUESTIONS[0] and case.fact.subject not in subjects:
            subjects.append(case.fact.subject)
    chance = random.Random(0)
    return [
        Fact(prompt, subject, chance.choice(sorted(answers[prompt])))
        for subject in subjects[:n_subjects]
        for prompt in QUESTIONS
    ]


def main(mode: str, n_subjects: str, path: str, at_a_time: str = "5") -> None:
    """Write the facts, then ask for all of them."""
    facts = facts_about(int(n_subjects), Path(path))
    editor = Editor.from_pretrained("smollm2", preset="smollm2-adam", shared_subjects=mode)
    editor.edit(facts, batch_size=int(at_a_time))
    scores = score_targets(editor.language_model, [(fact.text, fact.target_new) for fact in facts])
    right = sum(score.argmax for score in scores)
    sys.stdout.write(f"{mode}, {at_a_time} at a time: {right} of {len(scores)} hold\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
