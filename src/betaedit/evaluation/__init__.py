"""Measuring a model: edit metrics in both published forms, judged answers, sampled text, drift, ability, time."""

from betaedit.evaluation.abilities import AbilityResult, Classification, measure_abilities
from betaedit.evaluation.answers import CHAT, PLAIN, REASONING, AnswerStyle, greedy_answers
from betaedit.evaluation.drift import (
    Drift,
    Leakage,
    UneditedStates,
    compare,
    held_out_prose,
    leakage,
    leakage_on,
    perplexity,
)
from betaedit.evaluation.fluency import Fluency, TextSimilarity, measure_fluency, n_gram_entropy, sample_texts
from betaedit.evaluation.free_text import Answer, Likely, ask
from betaedit.evaluation.interval import Estimate, estimate
from betaedit.evaluation.judge import Answered, EndpointJudge, Judge, MatchJudge, agreement, normalize
from betaedit.evaluation.latency import (
    Latency,
    PeakMemory,
    RelativeLatency,
    measure_latency,
    measure_relative_latency,
    peak_memory,
    reset_peak,
    timed_part,
)
from betaedit.evaluation.metrics import EditMeasures, Figure, before_and_after, measure_edits, summarize
from betaedit.evaluation.paired import PairedTest, holm, paired_test
from betaedit.evaluation.questions import QuestionMeasures, QuestionOutcome, measure_questions, summarize_questions
from betaedit.evaluation.scoring import Score, score_targets
from betaedit.evaluation.tokens import (
    TokenAccuracy,
    TokenAgreement,
    TokenOutcome,
    choose_tokens,
    greedy_tokens,
    token_accuracy,
    token_agreement,
)

__all__ = [
    "CHAT",
    "PLAIN",
    "REASONING",
    "AbilityResult",
    "Answer",
    "AnswerStyle",
    "Answered",
    "Classification",
    "Drift",
    "EditMeasures",
    "EndpointJudge",
    "Estimate",
    "Figure",
    "Fluency",
    "Judge",
    "Latency",
    "Leakage",
    "Likely",
    "MatchJudge",
    "PairedTest",
    "PeakMemory",
    "QuestionMeasures",
    "QuestionOutcome",
    "RelativeLatency",
    "Score",
    "TextSimilarity",
    "TokenAccuracy",
    "TokenAgreement",
    "TokenOutcome",
    "UneditedStates",
    "agreement",
    "ask",
    "before_and_after",
    "choose_tokens",
    "compare",
    "estimate",
    "greedy_answers",
    "greedy_tokens",
    "held_out_prose",
    "holm",
    "leakage",
    "leakage_on",
    "measure_abilities",
    "measure_edits",
    "measure_fluency",
    "measure_latency",
    "measure_questions",
    "measure_relative_latency",
    "n_gram_entropy",
    "normalize",
    "paired_test",
    "peak_memory",
    "perplexity",
    "reset_peak",
    "sample_texts",
    "score_targets",
    "summarize",
    "summarize_questions",
    "timed_part",
    "token_accuracy",
    "token_agreement",
]
