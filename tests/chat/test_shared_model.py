"""People who share a model: their own conversations, one after another, each with its own adapter."""

import shutil
import threading
import time

import pytest

import lengthen
from lengthen.adapters.multi import load_several
from lengthen.chat.session import ChatSession
from lengthen.chat.shared_model import NO_ADAPTER, Progress, SharedModel, UserSession
from lengthen.chat.turns import Reply
from lengthen.errors import DataError, ModelError

CODE = "import os\n\n\ndef main():\n    return os.getcwd()\n"
QUESTIONS = ["def first(", "class Second:", "import third"]


@pytest.fixture(scope="module")
def tiny():
    return lengthen.load("tiny", dtype="float32")


@pytest.fixture
def shared(tiny):
    return SharedModel(*tiny, template="llama2")


def answer_of(user, question, length=12):
    *news, answer = user.ask(question, length, 0.0)
    assert "".join(new for new in news if isinstance(new, str)).strip() == answer.text
    return answer


def test_an_answer_is_what_a_conversation_of_its_own_gives(shared, tiny, tmp_path):
    (tmp_path / "code.py").write_text(CODE)
    user, alone = UserSession(shared), ChatSession(*tiny, shared.context, "llama2")
    loaded, warnings = user.load(tmp_path / "code.py", None)
    assert [each.name for each in loaded] == ["code.py"]
    assert warnings == []
    alone.load("code.py", CODE)
    for question in QUESTIONS[:2]:
        assert answer_of(user, question).text == alone.ask(question, 12).text


def test_people_at_the_same_time_get_what_they_would_get_alone(shared):
    expected = [answer_of(UserSession(shared), question).text for question in QUESTIONS]
    assert len(set(expected)) == 3
    found = {}
    users = [UserSession(shared) for _ in range(6)]

    def talk(index):
        found[index] = [answer_of(users[index], QUESTIONS[index % 3]).text]
        found[index].append(answer_of(users[index], QUESTIONS[(index + 1) % 3]).text)

    threads = [threading.Thread(target=talk, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(6):
        assert found[index][0] == expected[index % 3]
        assert found[index] == found[index % 3]
        assert [each.question for each in users[index].session.answers] == [
            QUESTIONS[index % 3], QUESTIONS[(index + 1) % 3],
        ]  # fmt: skip


def test_who_waits_is_told_and_can_leave(shared, tiny, request):
    # The first one writes slowly enough that the second one leaves before its turn, on a busy machine too.
    request.addfinalizer(tiny[0].register_forward_pre_hook(lambda *_: time.sleep(0.01)).remove)
    first, second, third = UserSession(shared), UserSession(shared), UserSession(shared)
    writing = first.ask("def endless(", 150, 0.0)
    assert isinstance(next(writing), Progress)
    with shared.acquire(None, lambda _before: None, lambda: True) as is_ours:
        assert not is_ours
    waiting = second.ask("import", 5, 0.0)
    assert next(waiting) == Progress(1)
    second.stop()
    assert list(waiting)[-1] is None
    assert second.session.answers == []
    first.stop()
    *_, stopped = writing
    assert stopped.end == "stopped"
    assert stopped.new_tokens < 150
    assert answer_of(third, "import", 3).new_tokens > 0


def test_who_stops_listening_holds_up_nobody(shared):
    gone, next_one = UserSession(shared), UserSession(shared)
    listening = gone.ask("def endless(", 180, 0.0)
    next(listening)
    listening.close()
    gone.stop()
    assert answer_of(next_one, "import", 3).text


def test_nothing_changes_under_an_answer(shared, tmp_path):
    (tmp_path / "code.py").write_text(CODE)
    user = UserSession(shared)
    writing = user.ask("def endless(", 180, 0.0)
    next(writing)
    changes = [lambda: user.load(tmp_path / "code.py", None), user.reset, lambda: user.choose(NO_ADAPTER)]
    for change in changes:
        with pytest.raises(DataError, match="is being written"):
            change()
    with pytest.raises(DataError, match="is being written"):
        next(user.ask("import", 3, 0.0))
    user.stop()
    list(writing)
    user.load(tmp_path / "code.py", None)
    user.reset(documents=True)
    assert user.session.documents == []


def test_errors_come_to_who_asked_and_the_next_question_works(shared):
    user = UserSession(shared)
    for question in ("", "word " * 400):
        with pytest.raises(DataError):
            list(user.ask(question, 5, 0.0))
    assert isinstance(answer_of(user, "import", 5), Reply)


@pytest.fixture(scope="module")
def runs(make_run, base):
    """Two adapters over one base, of other trainable tensors."""
    return [make_run(base, name, seed_adapter) for name, seed_adapter in (
        ("one", {"rank": 4}), ("two", {"rank": 8, "embeddings": False}),
    )]  # fmt: skip


def test_each_chooses_an_adapter(runs, base, tmp_path):
    model, tokenizer, names = load_several(
        str(base), {"first.run": runs[0] / "adapter", "second": runs[1] / "adapter"}, dtype="float32"
    )
    shared = SharedModel(model, tokenizer, "llama2", names)
    assert shared.choices == ["first.run", "second", NO_ADAPTER]
    (tmp_path / "a.txt").write_text("words")
    said = {}
    users = {name: UserSession(shared) for name in shared.choices}
    for name, user in users.items():
        user.load(tmp_path / "a.txt", None)
        user.choose(name)
    for name in [*users, *users]:  # after each other, and back again
        answer = answer_of(users[name], "abc", 4)
        said.setdefault(name, []).append(answer.text)
        assert [each.name for each in users[name].session.documents] == ["a.txt"]
        users[name].choose(name)
    for name, run in zip(said, runs, strict=False):
        alone = ChatSession(*lengthen.load(run, dtype="float32"), shared.context, "llama2")
        alone.load("a.txt", "words")
        assert said[name] == [alone.ask("abc", 4).text] * 2
    assert len({tuple(texts) for texts in said.values()}) == 3


def test_adapters_that_do_not_go_together_are_refused(runs, base, make_base, make_run, tmp_path):
    one = runs[0] / "adapter"
    with pytest.raises(ModelError, match="holds no adapter"):
        load_several(str(base), {"a": one, "b": tmp_path})
    other = make_run(make_base("other", seed=1), "other") / "adapter"
    with pytest.raises(ModelError, match="other bases"):
        load_several(str(base), {"a": one, "b": other})
    longer = tmp_path / "longer"
    shutil.copytree(one, longer)
    config = (longer / "config.json").read_text()
    (longer / "config.json").write_text(
        config.replace('"max_position_embeddings": 128', '"max_position_embeddings": 160')
    )
    with pytest.raises(ModelError, match="128 and 160 tokens"):
        load_several(str(base), {"a": one, "b": longer})
