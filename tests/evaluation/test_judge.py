from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from betaedit.errors import ConfigError, JudgeError
from betaedit.evaluation import Answered, EndpointJudge, MatchJudge, agreement, estimate, normalize
from betaedit.evaluation.judge import JUDGE_PROMPT, JUDGE_SYSTEM, judge_message

# Words compared


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("the U.S.", "us"),
        ("Jean-Paul / Sartre", "jean paul sartre"),
        ("“Ägypten”, an ﬁne\nland", "ägypten fine land"),
        ("The The", "the"),
        ("A", "a"),
        ("a Serie A.", "serie a"),
        ("C#, C++ and #1", "c# c++ and 1"),
        ("Paris### Next", "paris next"),
        ("?!", ""),
    ],
)
def test_words_are_compared_without_capitals_punctuation_and_articles(text: str, words: str):
    assert normalize(text) == words


@pytest.mark.parametrize(
    ("golds", "answer", "right"),
    [
        (["Paris"], "paris", True),
        (["Paris"], "It is the city of Paris, in France", True),
        (["Paris"], "Parisian", False),
        (["New York"], "York, New", False),
        (["New York"], "new and old York", False),
        (["the Netherlands"], "Netherlands", True),
        (["Rome", "Paris"], "Paris", True),
        (["Paris, France"], "Paris", False),
        (["Paris"], "", False),
        (["?", ""], "anything", False),
        (["Netherlands"], "in the Netherlands", True),
        (["A Tale of Two Cities"], "Tale of Two Cities", True),
        (["University of Tokyo"], "the University of the Tokyo", True),
        (["Serie A"], "It is Serie A, in Italy", True),
        (["Serie A"], "Serie B", False),
        (["Vitamin A"], "It is vitamin C", False),
        (["Hepatitis A"], "hepatitis B virus", False),
        (["A"], "a", True),
        (["A"], "The answer is (A)", True),
        (["A"], "It is a vitamin", False),
        (["C"], "C#", False),
        (["C"], "C++", False),
        (["C#"], "It is written in C#.", True),
    ],
)
def test_an_answer_matches_when_a_gold_answer_stands_in_it_word_for_word(golds: list[str], answer: str, right: bool):
    assert MatchJudge().judge("Where?", golds, answer) is right


# A model asked


@dataclass
class Endpoint:
    """A chat endpoint that gives prepared replies (status and body, or the model's text) and remembers requests."""

    url: str = ""
    replies: list[tuple[int, str] | str] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
                reply = endpoint.replies.pop(0)
                status, text = (200, _completion(reply)) if isinstance(reply, str) else reply
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _completion(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    with ThreadingHTTPServer(("127.0.0.1", 0), endpoint.handler()) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield endpoint
        server.shutdown()
        thread.join()


def judge_at(endpoint: Endpoint, **settings: Any) -> EndpointJudge:
    return EndpointJudge(endpoint.url, "grader", wait_seconds=0.0, **settings)


@pytest.mark.parametrize(
    ("reply", "right"),
    [("A", True), ("B", False), (" A.\n", True), ("(B)", False), ("<think>A or B?</think>\n\nA", True)],
)
def test_the_letter_of_the_reply_is_the_verdict(endpoint: Endpoint, reply: str, right: bool):
    endpoint.replies = [reply]
    assert judge_at(endpoint).judge("Where?", ["Paris"], "Rome") is right


def test_the_request_holds_question_gold_answer_and_temperature_zero(endpoint: Endpoint):
    endpoint.replies = ["A"]
    judge_at(endpoint, api_key="secret").judge("Where is {it}?", ["Paris"], "in Paris")
    (request,) = endpoint.requests
    system, user = request["messages"]
    assert (request["path"], request["model"], request["temperature"]) == ("/v1/chat/completions", "grader", 0)
    assert request["key"] == "Bearer secret"
    assert (system["role"], system["content"]) == ("system", JUDGE_SYSTEM)
    assert user["role"] == "user"
    assert "Question: Where is {it}?\nGold answer: Paris\nPredicted answer: in Paris\n" in user["content"]
    assert "A: CORRECT\nB: INCORRECT" in user["content"]


def test_without_a_key_none_is_sent_and_a_key_is_not_shown(endpoint: Endpoint):
    endpoint.replies = ["A"]
    judge_at(endpoint).judge("q", ["g"], "a")
    assert endpoint.requests[0]["key"] is None
    assert "secret" not in repr(judge_at(endpoint, api_key="secret"))


def test_further_gold_answers_are_named():
    message = judge_message("Who?", ["Anna", "Ann", "Annie"], "Ann")
    assert "Gold answer: Anna (also accepted: Ann; Annie)\n" in message
    assert message.count("Question:") == JUDGE_PROMPT.count("Question:") == 2


@pytest.mark.parametrize("trouble", [(500, "overloaded"), (429, "slow down"), (200, "no json"), (200, "{}"), "perhaps"])
def test_trouble_is_tried_again_until_there_is_a_verdict(endpoint: Endpoint, trouble: tuple[int, str] | str):
    endpoint.replies = [trouble, trouble, "A"]
    assert judge_at(endpoint).judge("q", ["g"], "a")
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ((503, "overloaded"), "status 503: overloaded"),
        ((200, "no json"), "not a chat completion"),
        ("CORRECT", "replies 'CORRECT' instead of A or B"),
        ("A, not B", "instead of A or B"),
        ("", "instead of A or B"),
    ],
)
def test_three_failures_are_an_error_and_not_a_wrong_answer(
    endpoint: Endpoint, trouble: tuple[int, str] | str, message: str
):
    endpoint.replies = [trouble] * 5
    with pytest.raises(JudgeError, match=message):
        judge_at(endpoint).judge("q", ["g"], "a")
    assert len(endpoint.requests) == 3


def test_a_refused_request_is_not_sent_again(endpoint: Endpoint):
    endpoint.replies = [(401, "no such key")]
    with pytest.raises(JudgeError, match="status 401: no such key"):
        judge_at(endpoint).judge("q", ["g"], "a")
    assert len(endpoint.requests) == 1


def test_an_endpoint_that_is_not_there_is_an_error():
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
    judge = EndpointJudge(f"http://127.0.0.1:{port}/v1", "grader", wait_seconds=0.0)
    with pytest.raises(JudgeError, match="cannot be reached"):
        judge.judge("q", ["g"], "a")


@pytest.mark.parametrize("settings", [{"base_url": "file:///etc"}, {"tries": 0}])
def test_impossible_settings_are_refused(settings: dict[str, Any]):
    with pytest.raises(ConfigError):
        EndpointJudge(**{"base_url": "http://localhost", "model": "grader", **settings})


# Two judges


class Always:
    def __init__(self, verdict: bool) -> None:
        self.verdict = verdict

    def judge(self, question: str, golds: object, answer: str) -> bool:
        return self.verdict


def test_agreement_is_the_share_of_equal_verdicts():
    sample = [Answered("q", ("Paris",), answer) for answer in ("Paris", "in Paris", "Rome", "Paris!")]
    assert agreement(MatchJudge(), Always(True), sample) == estimate([1, 1, 0, 1])
    assert agreement(MatchJudge(), Always(False), sample) == estimate([0, 0, 1, 0])
    assert agreement(MatchJudge(), MatchJudge(), sample).mean == 1


def test_there_is_no_agreement_on_nothing():
    with pytest.raises(ConfigError, match="no sample"):
        agreement(MatchJudge(), MatchJudge(), [])
