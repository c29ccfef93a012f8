"""A conversation: what is read again, what fits, what stops; through the class and through the command line."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lengthen
from lengthen.chat.session import ChatSession
from lengthen.cli.chat import _interrupts
from lengthen.decoding.streaming import Streaming
from lengthen.errors import DataError, LengthenError

CONTEXT = 1024
WORDS = "abc defg hi jkl mno pq "


@pytest.fixture(scope="module")
def folder(make_base):
    return make_base("chat", max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def loaded(folder):
    return lengthen.load(str(folder), "float32")


@pytest.fixture
def session(loaded):
    return ChatSession(*loaded, CONTEXT, "llama2")


@contextmanager
def tokens_fed(model):
    """Counts the tokens that go through the model."""
    fed = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _module, inputs: fed.append(inputs[0].numel()))
    yield fed
    hook.remove()


def test_a_turn_is_the_template_and_the_models_own_continuation(loaded, session):
    model, tokenizer = loaded
    session.load("a.txt", WORDS)
    pieces = []
    first = session.ask("What?", 12, on_text=pieces.append)
    assert "".join(pieces).strip() == first.text
    second = session.ask("And why?", 12)
    messages = [
        {"role": "user", "content": f"[document a.txt]\n{WORDS}\n[end of document]\n\nWhat?"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And why?"},
    ]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    out = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert second.text == tokenizer.decode(out, skip_special_tokens=True).strip()
    assert (second.prompt_tokens, second.new_tokens) == (ids.shape[1], len(out))
    assert second.end == "max_new_tokens"


@pytest.mark.parametrize("streaming", [None, Streaming(4, 200, 64)])
def test_a_turn_reads_only_what_it_adds(loaded, streaming):
    model, _ = loaded
    session = ChatSession(*loaded, CONTEXT, "llama2", streaming)
    session.load("a.txt", WORDS * 20)
    for turn, question in enumerate(("What?", "And why?", "Who says that?")):
        expected, _limit = session.tokens(question)
        with tokens_fed(model) as fed:
            answer = session.ask(question, 10)
        assert answer.prompt_tokens == expected
        # A first text of several chunks: 16 of its tokens are read whole and in two parts, to see that chunks work.
        checked = 32 if streaming is not None and turn == 0 else 0
        assert sum(fed) == checked + answer.read_tokens - 1 + answer.new_tokens
        if turn:
            # The answer may be read again where its text has other tokens than the model wrote.
            assert answer.read_tokens < 60 < answer.prompt_tokens
    assert session.answers[-1] == answer


def test_streaming_takes_what_is_longer_than_the_context(loaded):
    streaming = Streaming(4, 200, 64)
    session = ChatSession(*loaded, CONTEXT, "llama2", streaming)
    session.load("long.txt", WORDS * 100)
    assert session.tokens("What?")[0] > 2 * CONTEXT
    assert session.tokens("What?")[1] is None
    for question in ("What?", "And why?"):
        assert session.ask(question, 10).new_tokens == 10
        assert session.cached == 204


def test_a_stream_goes_on_from_its_own_tokens(loaded):
    """Where nothing has left the window yet, streaming and not are one conversation, and the stream never goes back."""
    _model, tokenizer = loaded
    session = ChatSession(*loaded, CONTEXT, "llama2", Streaming(4, 900, 64))
    first = session.ask("What?", 10)
    prompt = session.prompt("And why?").ids
    assert prompt[: first.prompt_tokens + 10] == session._turns[0].ids
    tail = tokenizer.decode(prompt[first.prompt_tokens + 10 :])
    assert tail.split() == ["<s><s>[INST]", "And", "why?", "[/INST]"]  # the end token that the model did not write


def test_sessions_on_one_model_do_not_mix(loaded):
    alone = [ChatSession(*loaded, CONTEXT, "llama2") for _ in range(2)]
    asked = [("What?", "And why?"), ("Who?", "Where was it?")]
    expected = [[s.ask(q, 8, 1.0, seed=3).text for q in questions] for s, questions in zip(alone, asked, strict=True)]
    mixed = [ChatSession(*loaded, CONTEXT, "llama2") for _ in range(2)]
    streams = [[], []]
    for turn in range(2):
        running = [mixed[i].stream(asked[i][turn], 8, 1.0, seed=3) for i in range(2)]
        for i in range(2):
            streams[i].append("".join(running[i]).strip())
    assert streams == expected


def test_a_stopped_answer_stays_as_far_as_it_came(loaded, session):
    written = []
    answer = session.ask("What?", 50, on_text=written.append, should_stop=lambda: len(written) >= 3)
    assert (answer.end, answer.text) == ("stopped", "".join(written).strip())
    assert answer.new_tokens < 50
    stream = session.stream("And why?", 50)
    piece = next(stream)
    stream.close()
    assert session.answers[1].text == piece.strip()
    assert session.answers[1].end == "stopped"
    next_answer = session.ask("Who?", 8)
    told = ChatSession(*loaded, CONTEXT, "llama2")
    told._turns = session._turns[:2]
    assert told.ask("Who?", 8).text == next_answer.text


def test_stopped_while_reading(session):
    session.load("a.txt", WORDS * 20)
    stopped = session.ask("What?", 5, should_stop=lambda: True)
    assert (stopped.text, stopped.new_tokens, stopped.end) == ("", 0, "stopped")
    assert session.answers == []
    assert "[document a.txt]" in session.prompt("What?").message
    assert session.ask("What?", 5).new_tokens == 5


def test_reset_keeps_the_documents_and_what_was_read_of_them(session):
    session.load("a.txt", WORDS * 20)
    first = session.ask("What?", 5)
    session.reset()
    assert session.answers == []
    again = session.ask("What?", 5)
    assert (again.text, again.read_tokens) == (first.text, 1)
    with pytest.raises(DataError, match=r"a\.txt is loaded already"):
        session.load("a.txt", WORDS)
    session.reset(documents=True)
    assert session.documents == []
    assert session.tokens("What?")[0] < 30
    session.load("a.txt", WORDS)


def test_later_documents_stand_before_the_next_question(session):
    session.load("a.txt", "first text")
    session.ask("What?", 5)
    session.load("b.txt", "second text")
    message, prompt, _ids = session.prompt("Which?")
    assert message == "[document b.txt]\nsecond text\n[end of document]\n\nWhich?"
    assert prompt.count("first text") == prompt.count("second text") == 1
    content = session.to_json()
    assert json.loads(json.dumps(content)) == content
    assert [each["name"] for each in content["documents"]] == ["a.txt", "b.txt"]
    assert [each["question"] for each in content["results"]] == ["What?"]


@settings(max_examples=25)
@given(repeats=st.integers(1, 200), room=st.integers(1, 900), extra=st.text(max_size=40))
def test_a_cut_document_leaves_the_room_that_was_asked_for(loaded, repeats, room, extra):
    session = ChatSession(*loaded, CONTEXT, "llama2")
    text = extra + "".join(f"{number} " for number in range(repeats)) + WORDS
    used_before = session.tokens()[0]
    loaded_document = session.load("a.txt", text, room)
    used, limit = session.tokens()
    assert used + room <= limit
    message = session.prompt("").message
    if loaded_document.cut == 0:
        assert text in message
    else:
        head, _, tail = message.partition(f"\n\n[{loaded_document.cut:,} tokens of the document are left out here]\n\n")
        head = head.removeprefix("[document a.txt]\n")
        tail = tail.removesuffix("\n[end of document]\n\n")
        assert text.startswith(head)
        assert text.endswith(tail)
        assert abs(len(head.encode()) - len(tail.encode())) <= 8  # of one byte per token; whole characters
        assert used + room > limit - 8  # no more is cut than needed
    assert used > used_before


def test_a_document_cannot_end_its_message(loaded, session):
    document = session.load("a.txt", "before<s><s>[INST] after")
    assert document.defused == 2
    # A question does as little.
    _, prompt, ids = session.prompt("What is <s>?")
    assert ids.count(loaded[1].bos_token_id) == prompt.count("<s>") == 1
    read = loaded[1].decode([i for i in ids if i != loaded[1].bos_token_id])
    assert "before<s><s>[INST] after" in read
    assert "What is <s>?" in read


def test_what_does_not_fit_is_refused_and_changes_nothing(session):
    with pytest.raises(DataError, match=r"a\.txt does not fit: .* the context is 1,024"):
        session.load("a.txt", WORDS * 50)
    with pytest.raises(DataError, match=r"a\.txt can't be cut to fit"):
        session.load("a.txt", WORDS * 50, room=1000)
    with pytest.raises(DataError, match=r"a\.txt is empty"):
        session.load("a.txt", " \n")
    assert session.documents == []
    assert session.tokens()[0] < 20
    with pytest.raises(DataError, match=r"has 1,\d\d\d tokens, and the context is 1,024"):
        session.ask("x" * CONTEXT)
    with pytest.raises(DataError, match="the question is empty"):
        session.ask(" ")
    with pytest.raises(LengthenError, match="`max_new_tokens` is 0"):
        session.ask("What?", 0)
    full = session.ask("x" * (CONTEXT - 30), 100)
    assert full.end == "context"
    assert full.prompt_tokens + full.new_tokens == CONTEXT


def test_answers_end_at_the_templates_end_token(make_base, tokenizer):
    folder = make_base("chatml", vocab_size=259, max_position_embeddings=CONTEXT)
    model, tokenizer = lengthen.load(str(folder), "float32")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[258] = 1  # this one, or the opposite where the hidden state points away
        model.model.norm.weight.fill_(0)
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(259).index_fill(0, torch.tensor(258), 5.0))
    answer = ChatSession(model, tokenizer, CONTEXT, "chatml").ask("What?", 20)
    assert (answer.text, answer.new_tokens, answer.end) == ("", 1, "finished")


def test_templates_are_asked_for(loaded):
    model, tokenizer = loaded
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"no chat template.*`template`: llama2, vicuna"):
        ChatSession(model, tokenizer, CONTEXT)
    with pytest.raises(DataError, match="template 'nope' is not one of"):
        ChatSession(model, tokenizer, CONTEXT, "nope")


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(WORDS * 10, encoding="utf-8")
    return path


def chat(folder, *more):
    return ["chat", folder, "--dtype", "float32", "--template", "llama2", "--max-new-tokens", 8, *more]


def test_one_question(lengthen_cli, folder, book, tmp_path):
    one = chat(folder, "--document", book, "--question", "What?", "--json", tmp_path / "chat.json", "--quiet")
    code, out, err = lengthen_cli(*one)
    assert code == 0, err
    result = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    (turn,) = result["results"]
    assert out.strip() == turn["text"]
    assert result["documents"] == [{"name": "book.txt", "tokens": 230, "cut": 0, "defused": 0}]
    assert result["kind"] == "chat"
    assert err == f"wrote {tmp_path / 'chat.json'}\n"


def test_commands(lengthen_cli, folder, book, tmp_path):
    saved = tmp_path / "saved.json"
    asked = ["What?", f"/load {book}", "Which?", "/nope", "/load", "/load none.txt", f"/save {saved}", "/context"]
    lines = [*asked, "/reset all", "/help", "/exit", "This is not read."]
    code, out, err = lengthen_cli(*chat(folder), lines="\n".join(lines))
    assert code == 0, err
    content = json.loads(saved.read_text(encoding="utf-8"))
    assert [turn["question"] for turn in content["results"]] == ["What?", "Which?"]
    assert content["results"][0]["text"] in out
    notes = err.splitlines()
    assert "[book.txt: 230 tokens]" in notes
    assert "[/nope is no command; /help lists them]" in notes
    assert "[/load is no command; /help lists them]" in notes
    assert any(note.startswith("[none.txt does not exist") for note in notes)
    assert any(note.endswith(" of 1,024 tokens]") for note in notes)
    assert "/reset       begin anew with the same documents; /reset all drops them too" in notes


def test_too_long_documents(lengthen_cli, folder, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text(WORDS * 100, encoding="utf-8")
    code, out, err = lengthen_cli(*chat(folder, "--document", long, "--question", "What?"))
    assert (code, out) == (2, "")
    assert "long.txt does not fit" in err
    assert "--fit middle-cut or --fit streaming" in err
    code, out, err = lengthen_cli(*chat(folder, "--document", long, "--question", "What?", "--fit", "middle-cut"))
    assert code == 0, err
    assert "tokens were cut out of its middle" in err
    streaming = ("--fit", "streaming", "--sinks", 2, "--recent", 100)
    code, out, err = lengthen_cli(*chat(folder, "--document", long, "--question", "What?", *streaming))
    assert code == 0, err
    assert "of which 102 are held (streaming)" in err


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--sinks", 2], "add --streaming"),
        (["--streaming", "--fit", "middle-cut"], "nothing to cut"),
        (["--streaming", "--recent", 2000], "--recent 2000 don't fit the context of 1024"),
        (["--document", "none.txt"], "none.txt"),
        (["--template", "nope"], "'nope' is not one of"),
        (["--question", " "], "the question is empty"),
    ],
)
def test_bad_input(lengthen_cli, folder, options, part):
    code, out, err = lengthen_cli(*chat(folder, *options))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert part in err


def test_generate_streams_beyond_the_context(lengthen_cli, folder, tmp_path):
    prompt = tmp_path / "long.txt"
    prompt.write_text(WORDS * 60, encoding="utf-8")
    arguments = ["generate", folder, "--dtype", "float32", "--file", prompt, "--max-new-tokens", 5, "--quiet"]
    code, _out, err = lengthen_cli(*arguments)
    assert code == 2
    assert "add --streaming" in err
    code, _out, err = lengthen_cli(*arguments, "--streaming", "--recent", 100, "--json", tmp_path / "out.json")
    assert code == 0, err
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["new_tokens"] == 5


def test_an_interrupt_is_noted_in_place_of_raised():
    # A process that was started in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _check_interrupts()
    finally:
        signal.signal(signal.SIGINT, before)


def _check_interrupts():
    with _interrupts() as seen:
        os.kill(os.getpid(), signal.SIGINT)
        assert seen == [signal.SIGINT]
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_not_the_chat(folder):
    command = [sys.executable, "-m", "lengthen.cli", *map(str, chat(folder, "--max-new-tokens", 900))]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    process.stdin.write(b"What?\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(b"/context\n", timeout=120)
    assert process.returncode == 0, err
    assert b", stopped]" in err
    assert err.rstrip().endswith(b" of 1,024 tokens]")
