"""Judges of answers: a comparison of words, or a language model."""

from __future__ import annotations

import http.client
import json
import re
import time
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from betaedit.errors import ConfigError, JudgeError
from betaedit.evaluation.answers import after_thinking
from betaedit.evaluation.interval import Estimate, estimate

JUDGE_SYSTEM = "You are a careful grader of short answers."

JUDGE_PROMPT = """\
You are given a question, its gold answer and a predicted answer. Decide whether the prediction is CORRECT or INCORRECT.

First some examples, all for one question:

Question: What are the names of Barack Obama's children?
Gold answer: Malia Obama and Sasha Obama

These predictions are CORRECT:
- sasha and malia obama
- Malia Ann and Natasha, called Sasha
They hold all the important information of the gold answer and contradict none of it. Order, capitals, punctuation, \
grammar and wording do not matter.

These predictions are INCORRECT:
- Malia
- Malia, Sasha and Susan
- Malia Obama and Sasha Obama. Malia Obama and Sasha Obama. Malia Obama and Sasha Obama
- Malia Obama and Sasha Obama. What are the names of Barack Obama's children?
The first leaves out a part of the gold answer, the second adds something wrong, the third repeats itself instead of \
ending, and the fourth goes on with the question after the answer.

Now the one to grade:

Question: {question}
Gold answer: {gold}
Predicted answer: {answer}

Reply with one letter and nothing else:
A: CORRECT
B: INCORRECT
"""

_ARTICLES = frozenset({"a", "an", "the"})
_ARTICLES_BETWEEN = " (?:(?:a|an|the) )*"
_SHARP = re.compile(r"[^\W\d_]#(?!#)")
_VERDICT = re.compile(r"\W*([AB])\W*")
_GIVES_UP_ON = range(400, 500)  # the request is wrong: it is not sent again ...
_EXCEPT = frozenset({408, 409, 425, 429})  # ... unless the server is only busy


class Judge(Protocol):
    """Decides whether an answer is right."""

    def judge(self, question: str, golds: Sequence[str], answer: str) -> bool:
        """Whether ``answer`` is a right answer to ``question``, of which each of ``golds`` is one."""


class Answered(NamedTuple):
    """A question, its gold answers (at least one), and the answer to judge."""

    question: str
    golds: tuple[str, ...]
    answer: str


def normalize(text: str) -> str:
    """``text`` for comparison: compatibility forms (NFKC), lower-case, without punctuation, without articles.

    Dashes and slashes separate words; other punctuation disappears (``U.S.`` is ``us``), except for a single ``#``
    right after a letter (``C#``). ``a``, ``an`` and ``the`` are removed if a word follows; the last word stays
    (``Serie A``). White space is one space.
    """
    words = _words(text)
    return " ".join([word for word in words[:-1] if word not in _ARTICLES] + words[-1:])


def _words(text: str) -> list[str]:
    """The words of ``text`` as ``normalize`` has them, articles among them."""
    plain = unicodedata.normalize("NFKC", text).lower()
    sharps = {match.end() - 1 for match in _SHARP.finditer(plain)}
    kept = []
    for at, character in enumerate(plain):
        kind = unicodedata.category(character)
        if kind == "Pd" or character == "/":
            kept.append(" ")
        elif not kind.startswith("P") or at in sharps:
            kept.append(character)
    return "".join(kept).split()


class MatchJudge:
    """Right if a gold answer occurs in the answer word for word, after ``normalize``.

    The gold's words must follow each other in the answer as whole words, with only articles between them. A gold answer
    that looks like an article (the ``A`` of a multiple choice) must be the answer's last word, and one without words is
    never found. Meaning is ignored: ``not Paris`` counts as ``Paris``, and ``United States`` is not found in ``USA``.
    """

    def judge(self, question: str, golds: Sequence[str], answer: str) -> bool:
        """Whether one of ``golds`` is in ``answer``; the question does not matter."""
        said = _words(answer)
        return any(_stands_in(normalize(gold).split(), said) for gold in golds)


def _stands_in(gold: list[str], said: list[str]) -> bool:
    if not gold:
        return False
    if gold[0] in _ARTICLES:  # the only word then: articles before others are gone
        return gold == said[-1:]
    return re.search(f" {_ARTICLES_BETWEEN.join(map(re.escape, gold))} ", f" {' '.join(said)} ") is not None


@dataclass(frozen=True)
class EndpointJudge:
    """A language model behind an OpenAI-compatible chat endpoint, asked at temperature 0 for ``A`` or ``B``.

    Args:
        base_url: The URL before ``/chat/completions``, such as ``http://localhost:8000/v1``.
        model: Name of the model on the server.
        api_key: Sent as a bearer token when given.
        timeout_seconds: How long one request may take.
        tries: How often a request is sent before it counts as failed.
        wait_seconds: Pause before the second try; it doubles with each.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 60.0
    tries: int = 3
    wait_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Refuse other URLs than http and https: a judge must not read files.

        Raises:
            ConfigError: It is not a URL, or ``tries`` is below 1.
        """
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"{self.base_url!r} is not a URL.", hint="Give a URL like http://localhost:8000/v1.")
        if self.tries < 1:
            raise ConfigError(f"tries is {self.tries}, but must be at least 1.", hint="Give tries=1 or more.")

    def judge(self, question: str, golds: Sequence[str], answer: str) -> bool:
        """Whether the model replies ``A``.

        Raises:
            JudgeError: The endpoint refuses, cannot be reached, or replies with neither letter, after all tries.
        """
        problem = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.wait_seconds * 2 ** (attempt - 1))
            try:
                reply = self._ask(judge_message(question, golds, answer))
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"status {error.code}: {error.read(300).decode(errors='replace').strip()}"
                if error.code in _GIVES_UP_ON and error.code not in _EXCEPT:
                    break
            except (OSError, http.client.HTTPException) as error:
                problem = f"it cannot be reached: {error}"
            except (ValueError, LookupError, TypeError) as error:
                problem = f"its reply is not a chat completion ({type(error).__name__}: {error})"
            else:
                if verdict := _VERDICT.fullmatch(after_thinking(reply)):
                    return verdict[1] == "A"
                problem = f"it replies {reply[:80]!r} instead of A or B"
        raise JudgeError(
            f"the judge {self.model!r} at {self.base_url} gives no verdict: {problem}.",
            hint="Check address, model name and key; unanswered questions are not counted as wrong.",
        )

    def _ask(self, message: str) -> str:
        """The text of the model's reply."""
        messages = [{"role": "system", "content": JUDGE_SYSTEM}, {"role": "user", "content": message}]
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(
            self.base_url.rstrip("/") + "/chat/completions",
            data=json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode(),
            headers=headers,
        )
        with urllib.request.urlopen(request, timeout=self.timeout_seconds) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])


def judge_message(question: str, golds: Sequence[str], answer: str) -> str:
    """The message of an ``EndpointJudge``; further gold answers are listed as also accepted."""
    first, *others = golds
    gold = first + (f" (also accepted: {'; '.join(others)})" if others else "")
    return JUDGE_PROMPT.format(question=question, gold=gold, answer=answer)


def agreement(judge_a: Judge, judge_b: Judge, sample: Sequence[Answered]) -> Estimate:
    """Share of ``sample`` on which two judges say the same.

    Raises:
        ConfigError: The sample is empty.
    """
    found = estimate([float(judge_a.judge(*each) == judge_b.judge(*each)) for each in sample])
    if found is None:
        raise ConfigError("there is no sample to compare two judges on.", hint="Give at least one answered question.")
    return found
