"""Instruction data: every format and template, what is trained token by token, what is cut, mixed and packed."""

import copy
import itertools
import json
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import command_line
from lengthen.data.collate import collate
from lengthen.data.documents import BrokenRecordError
from lengthen.data.hub import HubSource
from lengthen.data.instruct import dataset
from lengthen.data.instruct.dataset import load_instructions, mix, pack_instructions
from lengthen.data.instruct.encoding import encode
from lengthen.data.instruct.formats import Example, take_example
from lengthen.data.instruct.messages import Turn
from lengthen.data.instruct.templates import TEMPLATES, Template, use_template
from lengthen.data.stdlib import stdlib_documents
from lengthen.errors import DataError, RecipeError
from lengthen.models.load import load_tokenizer
from lengthen.recipe import parse_recipe
from lengthen.training.objective import CausalLMObjective
from lengthen.training.run import train

IGNORED = -100
MARKS = ["<|im_start|>", "<|im_end|>"]
# One that says who answers only in the generation prompt and thinks in between, as Qwen3's does.
OWN = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES = [*TEMPLATES, "tokenizer"]


@pytest.fixture
def bytes_tokenizer(tokenizer):
    """One token per byte, and ChatML's marks; with a chat template of its own."""
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"additional_special_tokens": MARKS})
    changed.chat_template = OWN
    return changed


@pytest.fixture(scope="module")
def tiny():
    loaded = load_tokenizer("tiny")
    loaded.add_special_tokens({"additional_special_tokens": MARKS})
    loaded.chat_template = OWN
    return loaded


@pytest.fixture(scope="module")
def tiny_with(tiny):
    """The tokenizer of tiny with each template, and the template."""
    prepared = {}
    for name in NAMES:
        own = copy.deepcopy(tiny)
        use_template(own, name)
        prepared[name] = own, Template(own)
    return prepared


def conversation(*texts, system=None):
    turns = [Turn("system", system)] if system else []
    return Example((*turns, *(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))), None)


# What each template writes, cut where training begins and ends: not trained, trained, not trained, trained, ...
BY_HAND = {
    "llama2": ["<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nOne? [/INST]", " 1 <s>", "<s>[INST] Two? [/INST]", " 2 <s>"],
    "vicuna": ["<s>Be kind. USER: One? ASSISTANT:", " 1<s>", "USER: Two? ASSISTANT:", " 2<s>"],
    "alpaca": [
        "<s>Be kind.\n\n### Instruction:\nOne?\n\n### Response:\n", "1<s>",
        "\n\n### Instruction:\nTwo?\n\n### Response:\n", "2<s>",
    ],
    "chatml": [
        "<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n",
        "1<|im_end|>", "\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n", "2<|im_end|>", "\n",
    ],
    "tokenizer": [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n",
        "1<|im_end|>", "\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\n2<|im_end|>", "\n",
    ],
}  # fmt: skip
RECORDS = {
    "sharegpt": {
        "conversations": [
            {"from": "system", "value": "Be kind."}, {"from": "human", "value": "One?"}, {"from": "gpt", "value": "1"},
            {"from": "human", "value": "Two?"}, {"from": "gpt", "value": " 2\n"},
        ]
    },
    "openai": {
        "messages": [
            {"role": "system", "content": "Be kind."}, {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "1"}, {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "2"},
        ]
    },
    "alpaca": {"instruction": "One?", "input": "", "output": "1"},
    "alpaca with input": {"instruction": "One?", "input": "Or two", "output": "1"},
    "longalpaca": {"instruction": "One?", "output": "1"},
    "longqlora": {"input": "One?", "output": "1"},
    "prompt": {"prompt": "One?", "completion": "1"},
}  # fmt: skip
BY_HAND_OF_PAIRS = {
    "llama2": ["<s>[INST] ASKED [/INST]", " 1 <s>"],
    "vicuna": [
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: ASKED ASSISTANT:", " 1<s>",
    ],
    "alpaca": [
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nASKED\n\n### Response:\n", "1<s>",
    ],
    "chatml": ["<s><|im_start|>user\nASKED<|im_end|>\n<|im_start|>assistant\n", "1<|im_end|>", "\n"],
    "tokenizer": [
        "<|im_start|>user\nASKED<|im_end|>\n<|im_start|>assistant\n", "<think>\n\n</think>\n\n1<|im_end|>", "\n",
    ],
}  # fmt: skip


def expected(parts, tokenizer):
    """Ids and labels of parts that are trained in turn, each tokenized by itself: bytes don't depend on neighbors."""
    ids, labels = [], []
    for index, part in enumerate(parts):
        tokens = tokenizer(part, add_special_tokens=False)["input_ids"]
        ids += tokens
        labels += tokens if index % 2 else [IGNORED] * len(tokens)
    return ids, labels


@pytest.mark.parametrize("packing", ["documents", "none"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("record", RECORDS)
def test_each_token_of_each_format_and_template(record, name, packing, bytes_tokenizer, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(RECORDS[record]) + "\n" + json.dumps(RECORDS["longqlora"]))
    asked = "One?"
    if record == "alpaca with input":
        asked += ("\n\n### Input:\n" if name == "alpaca" else "\n\n") + "Or two"
    is_pair = record not in ("sharegpt", "openai")
    first = [part.replace("ASKED", asked) for part in BY_HAND_OF_PAIRS[name]] if is_pair else BY_HAND[name]
    wanted = [expected(first, bytes_tokenizer)]
    wanted.append(expected([part.replace("ASKED", "One?") for part in BY_HAND_OF_PAIRS[name]], bytes_tokenizer))

    use_template(bytes_tokenizer, name)
    (loaded,) = load_instructions([path], bytes_tokenizer, 1000, name)
    blocks = pack_instructions(loaded.examples, 1000, packing)
    assert len(blocks) == (1 if packing == "documents" else 2)
    batch = collate(blocks, pad_id=0)
    if packing == "documents":
        assert blocks[0].segments == tuple(len(ids) for ids, _ in wanted)
        assert batch["input_ids"][0].tolist() == wanted[0][0] + wanted[1][0]
        assert batch["labels"][0].tolist() == wanted[0][1] + wanted[1][1]
        assert batch["position_ids"][0].tolist() == [i for ids, _ in wanted for i in range(len(ids))]
        return
    for row, (ids, labels) in enumerate(wanted):
        padding = batch["labels"].shape[1] - len(ids)
        assert batch["input_ids"][row, : len(ids)].tolist() == ids
        assert batch["labels"][row].tolist() == labels + [IGNORED] * padding


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=30).map(str.strip)
spoken = texts.filter(lambda text: text and not any(mark in text for mark in ("<|", "<s>", "(message")))


@pytest.mark.parametrize("name", NAMES)
@given(said=st.lists(st.tuples(spoken, spoken), min_size=1, max_size=3), system=st.none() | spoken)
def test_any_text(name, tiny_with, said, system):
    """With merges, in any script: all that is trained is the answers and what ends them, and nothing is lost."""
    tokenizer, template = tiny_with[name]
    example = conversation(*(text for pair in said for text in pair), system=system)
    layout = template.lay_out(example)
    (encoded,) = encode([layout], tokenizer)
    assert tokenizer.decode(encoded.input_ids) == layout.text
    assert encoded.cut == 0
    end = "<|im_end|>" if name in ("chatml", "tokenizer") else tokenizer.eos_token
    answers = [answer for _, answer in said]
    for (start, stop), answer in zip(layout.answers, answers, strict=True):
        written = layout.text[start:stop]
        assert written.endswith(end)
        assert written.removesuffix(end).strip().removeprefix("<think>\n\n</think>").strip() == answer
    edges = np.flatnonzero(np.diff(np.r_[0, encoded.trained.astype(int), 0]))
    runs = [tokenizer.decode(encoded.input_ids[a:b]) for a, b in edges.reshape(-1, 2)]
    whole = [layout.text[start:stop] for start, stop in layout.answers]
    assert len(runs) == len(whole)
    for run, text in zip(runs, whole, strict=True):
        # A token that begins in the prompt and ends in the answer is trained, as the prompt can't have it.
        assert run.endswith(text)
        assert len(run) - len(text) <= 8


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_of_inference_ends_where_training_begins(name, bytes_tokenizer):
    use_template(bytes_tokenizer, name)
    layout = Template(bytes_tokenizer).lay_out(conversation("One?", "1", "Two?", "2"))
    asked = [{"role": role, "content": text} for role, text in (("user", "One?"), ("assistant", "1"), ("user", "Two?"))]
    prompt = bytes_tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    if name != "tokenizer":  # which writes earlier answers in another way than the last one
        assert layout.text[: layout.answers[-1][0]] == prompt
    else:
        assert layout.text[: layout.answers[-1][0]].endswith("<|im_start|>assistant\n")


# --- what is refused -------------------------------------------------------------------------------------------------


def said(*pairs):
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("text", ["str where an object"]),
        ({}, ["known formats", "none"]),
        ({"question": "a", "reply": "b"}, ['no "answer"', "question, reply"]),
        ({"instruction": "a", "input": "b"}, ['no "output"']),
        ({"instruction": "a", "output": " \n"}, ["nothing in", "answer"]),
        ({"prompt": " ", "completion": "b"}, ['nothing in "prompt"']),
        ({"input": "a", "output": None}, ["nothing in", '"output"']),
        ({"input": "a", "output": ["b"]}, ["list where text", '"output"']),
        ({"input": "a", "output": "\ud83d"}, ["surrogate"]),
        ({"messages": []}, ["no messages"]),
        ({"messages": "a"}, ["no list of messages"]),
        ({"conversations": [{"from": "human", "text": "a"}]}, ['"value"', "message 1"]),
        (said(("user", "a"), ("critic", "b")), ["unknown role 'critic'", "message 2"]),
        (said(("assistant", "a")), ["nothing before its answer"]),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
            ["no answer that is to be trained"],
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]},
            ['"weight" 0.5', "message 2"],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            ["type 'image_url'", "message 1"],
        ),
        ({"prompt": "a", "completion": "b", "images": ["x.png"]}, ['"images"']),
        ({"system": "a", **said(("system", "b"), ("user", "c"), ("assistant", "d"))}, ["two system messages"]),
        ({"instruction": "a", "output": "b", "history": ["c"]}, ['"history"']),
        ({"instruction": "a", "output": "b", "tools": "{"}, ['"tools"', "not JSON"]),
        (said(("user", "a"), ("assistant", "")), ["nothing in message 2 (assistant)"]),
        (said(("system", "a")), ["no answer"]),
    ],
)
def test_unusable_records(record, words):
    with pytest.raises(BrokenRecordError) as caught:
        take_example(record)
    for word in words:
        assert word in str(caught.value)


ASKED, TOLD = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


@pytest.mark.parametrize(
    ("record", "turns", "unused"),
    [
        ({"conversations": [ASKED, TOLD]}, "u:Q a:A", ()),
        ({"messages": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "u:Q a:A", ()),
        ({"instruction": "Q", "output": "A", "system": "S", "history": [["q", "a"]]}, "s:S u:q a:a u:Q a:A", ()),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
         "s:S u:Q a:A", ()),
        ({"system_prompt": "S", "question": "Q", "response": "A", "id": "7"}, "s:S u:Q a:A", ("id",)),
        ({"system": "", "question": "Q", "answer": "A"}, "u:Q a:A", ()),
        ({"instruction": "Q", "context": "C", "response": "A", "category": "qa"}, "u:Q|C a:A", ("category",)),
        ({"query": "Q", "response": "A", "history": []}, "u:Q a:A", ()),
        ({"instruction": "Q", "input": "<noinput>", "output": "A", "text": "all"}, "u:Q a:A", ("text",)),
        ({"instruction": "Q", "input": float("nan"), "output": "A"}, "u:Q a:A", ()),
        ({"conversations": None, "messages": [ASKED, TOLD]}, "u:Q a:A", ()),
        ({"messages": [], "prompt": "Q", "completion": "A", "instruction": None}, "u:Q a:A", ()),
        ({"messages": [{"role": "developer", "content": "S"}, ASKED, TOLD]}, "s:S u:Q a:A", ()),
        ({"messages": [{"role": "system", "content": ""}, ASKED, TOLD]}, "u:Q a:A", ()),
        ({"messages": [ASKED, ASKED, {**TOLD, "refusal": None, "name": "x"}]}, "u:Q u:Q a:A", ("messages[].name",)),
        ({"messages": [TOLD, ASKED, TOLD]}, "a:A u:Q a:A", ()),
        ({"messages": [ASKED, TOLD, ASKED]}, "u:Q a:A", ("messages after the last answer",)),
        ({"messages": [ASKED, {**TOLD, "weight": 0}, ASKED, {**TOLD, "weight": 1}]}, "u:Q -:A u:Q a:A", ()),
        ({"messages": [ASKED, {**TOLD, "train": False}, ASKED, TOLD]}, "u:Q -:A u:Q a:A", ()),
        ({"prompt": [ASKED, TOLD, ASKED], "completion": [TOLD]}, "u:Q -:A u:Q a:A", ()),
        ({"prompt": [ASKED], "completion": "A"}, "u:Q a:A", ()),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Q", "image": None}]}, TOLD]},
         "u:Q a:A", ()),
        ({"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                       {"role": "tool", "tool_call_id": "1", "content": "sun"}, TOLD]}, "u:Q a: t:sun a:A", ()),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "observation", "value": "sun"},
                            {"from": "gpt", "value": "A"}], "tools": "[]"}, "u:Q t:sun a:A", ()),
    ],
)  # fmt: skip
def test_records_as_they_are_published(record, turns, unused):
    example = take_example(record)
    found = [
        f"{turn.role[0] if turn.trained or turn.role != 'assistant' else '-'}:{turn.text}" for turn in example.turns
    ]
    assert " ".join(found).replace("\n\n", "|") == turns
    assert example.unused == unused


TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.reasoning_content and loop.last %}"
    "{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}"
    "{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '<call>' + (call.function | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def trained_texts(layout):
    return [layout.text[start:stop] for start, stop in layout.answers]


def test_tools_calls_and_reasoning_are_where_the_template_puts_them(bytes_tokenizer):
    bytes_tokenizer.chat_template = TOOL_TEMPLATE
    template = Template(bytes_tokenizer)
    record = {
        "messages": [
            ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "sun"},
            {**TOLD, "weight": 0}, ASKED, {**TOLD, "reasoning_content": "because"},
        ],
        "tools": [{"name": "weather", "parameters": {}}],
    }  # fmt: skip
    layout = template.lay_out(take_example(record))
    called = '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call><|im_end|>'
    assert trained_texts(layout) == [called, "<think>because</think>A<|im_end|>"]
    assert 'Tools: [{"type": "function", "function": {"name": "weather"' in layout.text
    assert layout.unused == ()
    # The same as ShareGPT writes it: a call is an answer, which is trained as a call.
    shared = [("human", "Q"), ("function_call", json.dumps(CALL["function"])), ("observation", "sun"), ("gpt", "A")]
    example = take_example({"conversations": [{"from": role, "value": text} for role, text in shared]})
    assert trained_texts(template.lay_out(example)) == [called, "A<|im_end|>"]
    # What a template drops by design is named.
    record = {"messages": [ASKED, {**TOLD, "reasoning_content": "because"}, ASKED, TOLD]}
    (unused,) = template.lay_out(take_example(record)).unused
    assert "reasoning_content" in unused


@pytest.mark.parametrize("name", NAMES)
def test_templates_without_a_place_for_tools_leave_such_records_out(name, tiny_with):
    _, template = tiny_with[name]
    called = {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}
    told = {"messages": [ASKED, {"role": "tool", "content": "sun"}, TOLD]}
    offered = {"messages": [ASKED, TOLD], "tools": [{"name": "weather"}]}
    for record in (called, offered, *([] if name in ("chatml", "tokenizer") else [told])):
        with pytest.raises(BrokenRecordError, match=r"leaves out|no place for messages of role tool|told apart"):
            template.lay_out(take_example(record))


def test_null_columns_decide_nothing_and_what_is_not_read_is_named(bytes_tokenizer, tmp_path):
    rows = [{"conversations": None, "messages": [ASKED, TOLD], "id": 1}] * 3
    rows += [{"messages": None, "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}] * 2
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "union.parquet")
    (loaded,) = load_instructions([tmp_path / "union.parquet"], bytes_tokenizer)
    assert len(loaded.examples) == 5
    assert loaded.warnings == [f"{tmp_path / 'union.parquet'}: not read: id (3 records)"]


def write_lines(path, *records):
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


def test_unusable_records_are_counted_and_the_first_is_named(bytes_tokenizer, tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", {"input": "a", "output": "b"}, {"input": "a"}, "{", {"prompt": "c", "completion": "d"}
    )
    (loaded,) = load_instructions([path], bytes_tokenizer)
    assert loaded.names == [f"{path}:1", f"{path}:4"]
    (warning,) = loaded.warnings
    assert "left out 2 of 4 lines" in warning
    assert f'{path}:2, has no "output"' in warning
    path.write_text("[{}]")
    with pytest.raises(DataError, match="no usable lines of 1") as caught:
        load_instructions([write_lines(path, {"text": "no question"})], bytes_tokenizer)
    assert '"instruction"' in str(caught.value)


def test_sources_that_are_refused(bytes_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "none").mkdir()
    for name, words in [("no.json", "not exist"), ("a.txt", ".jsonl"), ("empty.json", "is empty"), ("none", "no inst")]:
        with pytest.raises(DataError, match=words):
            load_instructions([tmp_path / name], bytes_tokenizer)
    with pytest.raises(DataError, match="no instruction data were named"):
        load_instructions([], bytes_tokenizer)


def test_templates_that_a_tokenizer_lacks(tokenizer, bytes_tokenizer):
    plain = copy.deepcopy(tokenizer)
    with pytest.raises(DataError, match=r"no chat template .* llama2"):
        use_template(plain, "tokenizer")
    with pytest.raises(DataError, match=r"chatml needs .*im_start"):
        use_template(plain, "chatml")
    with pytest.raises(DataError, match="not one of"):
        use_template(plain, "llama3")
    plain.eos_token = None
    with pytest.raises(DataError, match="vicuna needs an end token"):
        use_template(plain, "vicuna")
    bytes_tokenizer.chat_template = "{% for m in messages %}{{ m.role + m.content + ' ' }}{% endfor %}"
    with pytest.raises(DataError, match="no end token"):
        Template(bytes_tokenizer).lay_out(conversation("a", "b"))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + OWN,
            "refuses: no system here",
        ),
        (OWN.replace("message.content", "message.content | upper"), "leaves out"),
        (OWN.replace("message.content", "message.content | replace('kind', 'good')"), "changes"),
        (
            "{% for message in messages[1:] %}{{ message.content + '<|im_end|>' }}{% endfor %}",
            "leaves out",
        ),
    ],
)
def test_templates_that_do_not_take_messages_as_they_are(bytes_tokenizer, template, words):
    bytes_tokenizer.chat_template = template
    with pytest.raises(BrokenRecordError, match=words):
        Template(bytes_tokenizer).lay_out(conversation("a", "b", system="Be kind."))


# --- documents that are too long -------------------------------------------------------------------------------------

PAPER = "Line of the paper.\n" * 20


@pytest.mark.parametrize(
    ("record", "document"),
    [
        (
            {
                "instruction": "Below is a paper. Memorize the paper and answer my question after the paper.\n The "
                f"paper begins. \n {PAPER} \n Now the paper ends. \nWhat is it about?\nIn a word.",
                "output": "Lines.",
            },
            f" \n {PAPER} \n ",
        ),
        (
            {
                "input": f"There are two papers.\n The first paper begins. \n {PAPER} Now the first paper ends.\n The "
                f"second paper begins. {PAPER} Now the second paper ends. Compare.",
                "output": "Equal.",
            },
            f" \n {PAPER} Now the first paper ends.\n The second paper begins. {PAPER} ",
        ),
        ({"instruction": "Sum up.", "input": PAPER, "output": "Lines."}, PAPER.strip()),
        ({"instruction": f"Read.\n{PAPER}What is it?", "input": "In a word.", "output": "Lines."}, PAPER[:-1]),
        ({"prompt": f"Read.\n\n{PAPER}\nWhat is it?\n(a) Lines\n(b) A tree", "completion": "a"}, PAPER[:-1]),
        ({"prompt": "x" * 5000, "completion": "a"}, "x" * 3000),
        (said(("system", f"Use this:\n{PAPER}Be brief."), ("user", "What?"), ("assistant", "Lines.")), PAPER[:-1]),
        (said(("user", "Hi"), ("assistant", PAPER * 9)), None),
    ],
)
def test_where_the_document_is(record, document):
    example = take_example(record)
    if document is None:
        assert example.document is None
    else:
        index, start, stop = example.document
        assert example.turns[index].text[start:stop] == document


@given(
    document=st.text(st.sampled_from("ab \u00e9\U0001f600"), min_size=30, max_size=300),
    limit=st.integers(40, 400),
    name=st.sampled_from(["llama2", "vicuna", "tokenizer"]),
)
def test_only_the_middle_of_the_document_is_cut(tiny_with, document, limit, name):
    tokenizer, template = tiny_with[name]
    document = "[" + document + "]"
    record = {"instruction": "What does this say?", "input": document, "output": "It says nothing."}
    layout = template.lay_out(take_example(record))
    (whole,), (fitted,) = (encode([layout], tokenizer, length) for length in (None, limit))
    if isinstance(fitted, int):
        assert fitted == len(whole) > limit
        start, stop = layout.document
        assert len(tokenizer(layout.text[:start] + layout.text[stop:]).input_ids) >= limit - 8
        return
    assert len(fitted) <= limit
    assert fitted.whole == len(whole)
    if len(whole) <= limit:
        assert fitted.input_ids.tolist() == whole.input_ids.tolist()
        return
    assert len(fitted) > limit - 16  # not more than needed, but for what merges where the ends meet
    text = tokenizer.decode(fitted.input_ids)
    before, after = layout.text[: layout.document[0]], layout.text[layout.document[1] :]
    assert text.startswith(before)
    assert text.endswith(after)
    kept = text[len(before) : len(text) - len(after)]
    assert any(document.startswith(kept[:i]) and document.endswith(kept[i:]) for i in range(len(kept) + 1))
    assert tokenizer.decode(fitted.input_ids[fitted.trained]) == tokenizer.decode(whole.input_ids[whole.trained])


def test_a_real_document_in_several_turns(tiny_with):
    source = max(stdlib_documents("validation"), key=lambda path: path.stat().st_size).read_text("utf-8")[:20_000]
    tokenizer, template = tiny_with["chatml"]
    example = take_example(said(("user", "Hi"), ("assistant", "Hello."), ("user", f"Read:\n{source}\nWhat is it?"),
                                ("assistant", "A module."), ("user", "Sure?"), ("assistant", "Yes.")))  # fmt: skip
    layout = template.lay_out(example)
    (fitted,) = encode([layout], tokenizer, 512)
    assert 500 <= len(fitted) <= 512
    assert tokenizer.decode(fitted.input_ids[fitted.trained]) == "Hello.<|im_end|>A module.<|im_end|>Yes.<|im_end|>"
    assert "What is it?" in tokenizer.decode(fitted.input_ids)


def test_what_is_too_long_without_its_document_is_left_out_and_counted(bytes_tokenizer, tmp_path):
    use_template(bytes_tokenizer, "llama2")
    path = write_lines(
        tmp_path / "a.jsonl",
        {"instruction": "Sum up.", "input": PAPER, "output": "Lines."},
        {"instruction": "Short?", "output": "Yes."},
        {"instruction": "Write much.", "output": "long " * 50},
    )
    (loaded,) = load_instructions([path], bytes_tokenizer, 100, "llama2")
    assert [len(example) for example in loaded.examples] == [100, len("?[INST] Short? [/INST] Yes. ?")]
    assert loaded.truncated == 1
    assert loaded.left_out == {"too long without their document": 1}
    assert "left out 1 too long" in loaded.warnings[0]
    assert f"1 of 2 examples have a document that is too long; {loaded.examples[0].cut} tokens" in loaded.warnings[1]
    (limited,) = load_instructions([path], bytes_tokenizer, 1000, "llama2", min_tokens=50, max_tokens=300)
    assert limited.left_out == {"longer than max_tokens": 1, "shorter than min_tokens": 1}
    with pytest.raises(DataError, match=r"no example can be used: .*3 too long.*sequence_length 10"):
        load_instructions([path], bytes_tokenizer, 10, "llama2")


# --- sources, mixing, packing ----------------------------------------------------------------------------------------


def test_folders_and_datasets(bytes_tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps([RECORDS["longalpaca"], RECORDS["openai"]]))
    write_lines(folder / "b.jsonl", RECORDS["longqlora"])
    rows = {"instruction": ["One?", "Two?"], "input": [None, "x"], "output": ["1", None]}
    pq.write_table(pa.table(rows), folder / "c.parquet")
    (loaded,) = load_instructions([folder], bytes_tokenizer)
    assert len(loaded.examples) == 4
    assert "c.parquet" in loaded.warnings[0]
    (first,) = load_instructions([folder], bytes_tokenizer, max_examples=2)
    assert len(first.examples) == 2

    dataset_folder = tmp_path / "hub"
    dataset_folder.mkdir()
    pq.write_table(pa.table(rows), dataset_folder / "train.parquet")
    write_lines(dataset_folder / "pretrain.jsonl", {"text": "no question"})
    write_lines(dataset_folder / "sft.jsonl", RECORDS["longqlora"], RECORDS["longqlora"])
    known = HubSource(str(dataset_folder), data_files="sft.jsonl")
    monkeypatch.setitem(dataset._KNOWN, "owner/known", known)
    for name in ("owner/known", "hf:owner/known"):
        (loaded,) = load_instructions([name], bytes_tokenizer)
        assert len(loaded.examples) == 2
    (dataset_folder / "pretrain.jsonl").unlink()
    (dataset_folder / "sft.jsonl").unlink()
    (loaded,) = load_instructions([f"hf:{dataset_folder}"], bytes_tokenizer)
    assert len(loaded.examples) == 1
    assert "left out 1 of 2 rows" in loaded.warnings[0]


def test_the_known_names():
    assert {name: (source.name, source.data_files) for name, source in dataset._KNOWN.items()} == {
        "Yukang/LongAlpaca-12k": ("Yukang/LongAlpaca-12k", None),
        "YeungNLP/LongQLoRA-Dataset": ("YeungNLP/LongQLoRA-Dataset", "LongQLoRA-SFT-Data-39k.jsonl"),
    }


def test_mixing_by_weight(bytes_tokenizer, tmp_path):
    paths = [
        write_lines(tmp_path / f"{word}.jsonl", *({"input": f"{word}{i}", "output": "x"} for i in range(count)))
        for word, count in (("a", 10), ("b", 4), ("c", 3))
    ]
    loaded = load_instructions(paths, bytes_tokenizer)
    assert len(mix(loaded, None, 0)) == 17
    mixed = mix(loaded, [0.5, 2.25, 0.01], seed=1)
    ids = [id(example) for example in mixed]
    counts = [[ids.count(id(example)) for example in source.examples] for source in loaded]
    assert sorted(counts[0]) == [0] * 5 + [1] * 5
    assert sorted(counts[1]) == [2, 2, 2, 3]
    assert sorted(counts[2]) == [0, 0, 1]
    assert ids == [id(example) for example in mix(loaded, [0.5, 2.25, 0.01], seed=1)]
    assert ids != [id(example) for example in mix(loaded, [0.5, 2.25, 0.01], seed=2)]
    with pytest.raises(DataError, match="2 weights for 3 sources"):
        mix(loaded, [1, 1], 0)


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_packing_keeps_each_example_whole(tokenizer, lengths):
    own = copy.deepcopy(tokenizer)
    use_template(own, "llama2")
    template = Template(own)
    examples = encode([template.lay_out(conversation("a" * length + "?", "b")) for length in lengths], own)
    for packing in ("documents", "none"):
        blocks = pack_instructions(examples, 80, packing)
        assert all(len(block) <= 80 for block in blocks)
        found = []
        for block in blocks:
            spans = itertools.pairwise(np.cumsum([0, *block.segments]))
            found += [(block.input_ids[a:b].tolist(), block.trained[a:b].tolist()) for a, b in spans]
        wanted = [(example.input_ids.tolist(), example.trained.tolist()) for example in examples]
        assert sorted(found) == sorted(wanted)


def test_packed_examples_have_the_loss_of_each_alone(base, bytes_tokenizer, tmp_path):
    use_template(bytes_tokenizer, "llama2")
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="sdpa").eval()
    path = write_lines(tmp_path / "a.jsonl", *({"input": "why " * i, "output": "so " * i} for i in range(1, 5)))
    (loaded,) = load_instructions([path], bytes_tokenizer)
    packed = pack_instructions(loaded.examples, 1000)
    alone = pack_instructions(loaded.examples, 1000, "none")
    assert len(packed) == 1
    objective = CausalLMObjective(model)
    with torch.no_grad():
        together = objective(**collate(packed, 0)).item()
        apart = sum(objective(**collate([block], 0)).item() for block in alone)
        batch = collate(alone, 0)
        padded = objective(**batch).item()
    assert together == pytest.approx(apart, rel=1e-5)
    assert padded == pytest.approx(apart, rel=1e-5)
    trained = sum(int(example.trained.sum()) for example in loaded.examples)
    assert int((batch["labels"] != IGNORED).sum()) == trained


# --- a run, and the command ------------------------------------------------------------------------------------------


def recipe(base, path, out, **data):
    content = {
        "model": str(base),
        "out": str(out),
        "context": {"target": 128, "method": "yarn"},
        "data": {"kind": "instruct", "template": "llama2", "train": [str(path)], **data},
        "training": {"steps": 2, "learning_rate": 1e-3, "warmup_steps": 0, "dtype": "float32"},
    }
    return parse_recipe(content, "test")


def test_a_run(base, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *({"input": f"What is {i}?", "output": f"It is {i}."} for i in range(8)))
    run = train(recipe(base, path, tmp_path / "run", validation=[str(path)], weights=[1.5]))
    (measured,) = json.loads((run / "evals" / "validation.json").read_text())["results"]
    assert measured["examples"] == 8
    assert measured["tokens"] == 8 * len(" It is 1. ?")
    assert measured["perplexity"] == pytest.approx(np.exp(measured["loss"]))
    # The prompt that it was trained with is there for whoever talks to it.
    saved = AutoTokenizer.from_pretrained(run)
    prompt = saved.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert prompt == "<s>[INST] Hi [/INST]"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"packing": "concatenate"}, "see each other"),
        ({"weights": [1, 2]}, "2 for 1 sources"),
        ({"weights": [0]}, "data.weights"),
        ({"kind": "text"}, "data.template is for data.kind=instruct"),
        ({"kind": "text", "template": "tokenizer", "weights": [1]}, "data.weights is for data.kind=instruct"),
        ({"kind": "text", "template": "tokenizer", "packing": "none"}, "packing=none"),
        ({"template": "lama2"}, "data.template"),
        ({"skip_wise": True, "sequence_length": 64}, "skip_wise"),
    ],
)
def test_recipes_that_are_refused(base, data, words):
    with pytest.raises(RecipeError, match=words):
        recipe(base, "a.jsonl", "run", **data)


inspect = partial(command_line.invoke, "data", "inspect")


def test_inspect(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    path = write_lines(
        tmp_path / "a.jsonl",
        {"instruction": "Sum up.", "input": PAPER * 9, "output": "Lines."},
        {"instruction": "Short?", "output": "Yes."},
        {"instruction": "No answer"},
    )
    report = tmp_path / "report.json"
    arguments = (path, "--model", "tiny", "--kind", "instruct", "--template", "vicuna", "--sequence-length", 256)
    result = command_line.succeed("data", "inspect", *arguments, "--context", 64, "--json", report)
    written = json.loads(report.read_text())
    assert written["examples"] == 2
    assert written["truncated"]["examples"] == 1
    assert 0 < written["truncated"]["tokens"] == written["tokens"] - written["packing"]["tokens"]
    assert sum(bucket["documents"] for bucket in written["histogram"]) == 2
    assert written["packing"]["segments"] == 2
    assert "a.jsonl:3" in result.stderr
    assert f"{written['truncated']['tokens']:,} tokens" in result.stdout
    green = "\x1b[1;32m"
    assert f"{green} Lines." in result.stdout
    assert "\x1b[2m<|endoftext|>A chat between" in result.stdout
    assert "tokens ...]" in result.stdout
    assert inspect(*arguments, "--quiet").stdout == ""


def test_inspect_refuses(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    path = write_lines(tmp_path / "a.jsonl", RECORDS["longqlora"])
    result = inspect(path, "--model", "tiny", "--kind", "instruct", "--packing", "concatenate")
    assert result.exit_code == 2
    assert "documents or none" in result.stderr
    result = inspect(path, "--model", "tiny", "--kind", "chat")
    assert result.exit_code == 2
    assert isinstance(inspect(path, "--model", "tiny", "--kind", "instruct").exception, DataError)
