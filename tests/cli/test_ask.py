"""``betaedit ask``: what is asked of whom, what is printed, what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from betaedit.evaluation import ask
from betaedit.models import load_language_model
from support.chat import NO_SYSTEM, TEMPLATE
from support.families import language_model

FACT = ["The capital of [Japan] is", "Madrid"]
QUESTION = "The capital of Japan is"


def the_object(ran) -> dict:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


class Terminal(io.StringIO):
    """Standard input that is typed."""

    def isatty(self) -> bool:
        return True


def said(folder: Path, *questions: str) -> list[dict]:
    """What the model in ``folder`` says, as ``--json`` prints it."""
    return json.loads(json.dumps([answer.to_dict() for answer in ask(load_language_model(str(folder)), questions)]))


@pytest.fixture
def chat_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with a chat template."""
    return chatting(tiny_folder, tmp_path / "chat", TEMPLATE)


def chatting(folder: Path, place: Path, template: str) -> Path:
    model = load_language_model(str(folder))
    model.tokenizer.chat_template = template
    model.model.save_pretrained(place)
    model.tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def saved(betaedit, tiny, tmp_path: Path) -> Path:
    """The tiny model, edited and saved."""
    place = tmp_path / "edited"
    assert betaedit("edit", *FACT, "--save", place, *tiny).code == 0
    return place


@pytest.fixture
def workspace(betaedit, tiny, tmp_path: Path) -> Path:
    """A workspace of the tiny model with one fact."""
    place = tmp_path / "mine"
    assert betaedit("init", place, *tiny).code == 0
    assert betaedit("edit", *FACT, "--workspace", place).code == 0
    return place


@pytest.fixture
def run(betaedit, tiny, tmp_path: Path) -> Path:
    """A measured run of the tiny model with one fact."""
    place = tmp_path / "run"
    assert betaedit("edit", *FACT, "--out", place, *tiny).code == 0
    return place


@pytest.fixture
def adapter(betaedit, tiny, run) -> Path:
    """The edits of the run as a PEFT adapter."""
    place = run.parent / "adapter"
    assert betaedit("export", run, "--to", "adapter", "--out", place, *tiny[2:4]).code == 0
    return place


def test_a_plain_model_has_one_answer(betaedit, tiny_folder) -> None:
    ran = betaedit("ask", QUESTION, "--model", tiny_folder)
    assert ran.code == 0
    assert QUESTION in ran.out
    assert "base" not in ran.out
    found = the_object(betaedit("ask", QUESTION, "--model", tiny_folder, "--json"))
    assert (found["base"], found["why_no_base"]) == (None, None)
    (question,) = found["questions"]
    assert question == {"question": QUESTION, "answer": said(tiny_folder, QUESTION)[0], "base": None, "differs": None}


@pytest.mark.parametrize("kind", ["workspace", "run", "saved", "adapter"])
def test_what_holds_edits_answers_beside_its_base(betaedit, tiny, tiny_folder, kind, request) -> None:
    place = request.getfixturevalue(kind)
    statistics = tiny[2:4] if kind == "run" else []
    found = the_object(betaedit("ask", QUESTION, "Rome", "--model", place, "--top", "2", "--json", *statistics))
    assert found["base"] == str(tiny_folder)
    assert [each["question"] for each in found["questions"]] == [QUESTION, "Rome"]
    for each, base in zip(found["questions"], said(tiny_folder, QUESTION, "Rome"), strict=True):
        assert each["base"]["text"] == base["text"]
        assert [one["text"] for one in each["base"]["likely"]] == [one["text"] for one in base["likely"][:2]]
    first = found["questions"][0]
    assert first["answer"] != first["base"]
    shown = betaedit("ask", QUESTION, "--model", place, *statistics).out
    assert "base (" in shown
    assert ("differs" in shown) is first["differs"]


def test_the_workspace_of_the_current_folder_is_asked(betaedit, workspace, monkeypatch) -> None:
    named = the_object(betaedit("ask", QUESTION, "--workspace", workspace, "--json"))
    inner = workspace / "notes"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert the_object(betaedit("ask", QUESTION, "--json"))["questions"] == named["questions"]


@pytest.mark.parametrize("told", ["{", "[]", "{}", '{"model": 7}', '{"model": "no/where/at/all"}', '{"model": "."}'])
def test_a_saved_model_whose_base_is_not_there_answers_alone_and_says_why(betaedit, saved, told, monkeypatch) -> None:
    (saved / "betaedit.json").write_text(told)
    monkeypatch.chdir(saved)
    found = the_object(betaedit("ask", QUESTION, "--model", saved, "--json"))
    assert found["base"] is None
    assert found["why_no_base"]
    assert found["questions"][0]["base"] is None
    ran = betaedit("ask", QUESTION, "--model", saved)
    assert ran.code == 0
    assert f"the model without the edits cannot be asked: {found['why_no_base']}" in ran.out


def test_another_model_in_the_place_of_the_base_is_no_base(betaedit, saved, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model = language_model("llama", seed=1)
    model.model.save_pretrained(other)
    model.tokenizer.save_pretrained(other)
    (saved / "betaedit.json").write_text(json.dumps({"model": str(other)}))
    found = the_object(betaedit("ask", QUESTION, "--model", saved, "--json"))
    assert found["base"] is None
    assert "is not the model that was edited" in found["why_no_base"]


def test_a_base_is_known_by_an_edited_model_of_a_narrower_type(betaedit, tiny, tiny_folder, tmp_path: Path) -> None:
    place = tmp_path / "narrow"
    assert betaedit("edit", *FACT, "--save", place, "--dtype", "bfloat16", *tiny).code == 0
    assert the_object(betaedit("ask", QUESTION, "--model", place, "--json"))["base"] == str(tiny_folder)


@pytest.mark.parametrize(
    ("piped", "questions"),
    [
        ("One\n\n Two \nThree", ["One", "Two", "Three"]),
        ("\ufeffWas?\r\nWie?\r\n", ["Was?", "Wie?"]),
        ("Only one", ["Only one"]),
    ],
)
def test_a_pipe_asks_a_question_a_line(betaedit, tiny_folder, monkeypatch, piped, questions) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(piped))
    found = the_object(betaedit("ask", "--model", tiny_folder, "--json"))
    assert [each["question"] for each in found["questions"]] == questions


@pytest.mark.parametrize("typed", ["One\nTwo\n\nThree\n", "One\nTwo\n"])
def test_at_a_terminal_questions_are_typed_until_an_empty_line_and_the_model_is_loaded_once(
    betaedit, tiny_folder, monkeypatch, typed
) -> None:
    from betaedit.models import load

    loaded = []
    original = load._load_weights
    monkeypatch.setattr(load, "_load_weights", lambda *args: loaded.append(1) or original(*args))
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    ran = betaedit("ask", "--model", tiny_folder)
    assert ran.code == 0, ran.err
    assert [name in ran.out for name in ("One", "Two", "Three")] == [True, True, False]
    assert loaded == [1]


def test_a_question_that_cannot_be_asked_does_not_end_the_prompt(betaedit, tiny_folder, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("word " * 100 + "\nTwo\n"))
    ran = betaedit("ask", "--model", tiny_folder)
    assert ran.code == 0
    assert "the model has 64 positions" in ran.out
    assert "Two" in ran.out


def test_chat_puts_questions_and_a_system_message_into_the_template(betaedit, chat_folder) -> None:
    found = the_object(betaedit("ask", "Who?", "--chat", "--model", chat_folder, "--json"))
    assert found["questions"][0]["answer"] == said(chat_folder, "<s>user\nWho?\n<s>assistant\n")[0]
    found = the_object(betaedit("ask", "Who?", "--chat", "--system", "Hi", "--model", chat_folder, "--json"))
    assert found["questions"][0]["answer"] == said(chat_folder, "<s>system\nHi\n<s>user\nWho?\n<s>assistant\n")[0]
    assert (found["chat"], found["system"]) == (True, "Hi")


def test_a_template_without_a_place_for_a_system_message_is_told(betaedit, tiny_folder, tmp_path: Path) -> None:
    for name, template in (("refuses", NO_SYSTEM), ("drops", "{{ messages[-1].content }}")):
        folder = chatting(tiny_folder, tmp_path / name, template)
        assert betaedit("ask", "Who?", "--chat", "--model", folder).code == 0
        ran = betaedit("ask", "Who?", "--chat", "--system", "Hi", "--model", folder)
        assert ran.code == 4
        assert "has no system message" in ran.err


def test_special_tokens_in_a_question_are_told(betaedit, tiny_folder, caplog) -> None:
    assert betaedit("ask", "<s>Who?</s>", "--model", tiny_folder).code == 0
    assert "<s>, </s>" in caplog.text


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["Who?", "--chat"], 4, "no chat template"),
        (["Who?", "--system", "Be brief."], 2, "--chat"),
        (["Who?", "--workspace", "nowhere"], 2, "cannot be combined"),
        (["Who?", " "], 2, "is empty"),
        ([], 2, "no question"),
        (["Who?", "--tokens", "0"], 2, "--tokens"),
        (["Who?", "--top", "0"], 2, "--top"),
        (["word " * 100], 4, "64 positions"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_hint(betaedit, tiny_folder, monkeypatch, args, code, says) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    ran = betaedit("ask", *args, "--model", tiny_folder)
    assert ran.code == code
    assert says in ran.err


def test_a_folder_that_is_no_workspace_is_refused(betaedit, tmp_path: Path) -> None:
    assert betaedit("ask", "Who?", "--workspace", tmp_path).code == 9


def test_an_object_needs_a_question_at_a_terminal(betaedit, tiny_folder, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("Who?\n"))
    ran = betaedit("ask", "--json", "--model", tiny_folder)
    assert ran.code == 2
    assert "--json needs a question" in ran.err


def test_a_pipe_that_is_no_text_is_refused(betaedit, tiny_folder, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Who\xff?\n"), encoding="utf-8"))
    ran = betaedit("ask", "--model", tiny_folder)
    assert ran.code == 2
    assert "UTF-8" in ran.err
