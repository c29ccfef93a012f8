"""RULER's prompts have exact lengths and hold what they ask for, worked out again from their text; and its scores."""

import json
import re
from collections import Counter
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, make

import command_line
from lengthen.errors import DataError, LengthenError, ModelError
from lengthen.evaluation.haystack import documentation
from lengthen.evaluation.prompts import encode
from lengthen.evaluation.ruler import (
    PUBLISHED_THRESHOLD,
    TASKS,
    Essay,
    RulerTexts,
    base_id,
    base_threshold,
    effective_context,
    make_prompts,
    read_hotpotqa,
    read_squad,
)
from lengthen.evaluation.ruler.scoring import averages, match_score
from lengthen.evaluation.ruler.tasks import SampleRequest
from lengthen.evaluation.ruler.words import ADJECTIVES, NOUNS, VERBS
from lengthen.results import check_results

WITHOUT_FILES = [name for name in TASKS if not name.startswith("qa")]
NIAH = [name for name in TASKS if name.startswith("niah")]
seeds = st.integers(0, 10**6)
NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+) is: (\S+)\.")


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: make(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def squad_file(tmp_path_factory):
    """Three articles of 30 paragraphs, each with a question that its first words answer, and one that nothing does."""
    generator = Random(0)
    articles = []
    for _ in range(3):
        paragraphs = []
        for _ in range(30):
            name = f"{generator.choice(ADJECTIVES)} {generator.choice(NOUNS)} {generator.randint(100, 999)}"
            prose = " ".join(generator.choices(VERBS, k=generator.randint(20, 120)))
            answer = {"text": name, "answer_start": 4}
            questions = [
                {"question": f"What does {prose[:40]}?", "answers": [answer, answer], "is_impossible": False},
                {"question": "What is not said?", "answers": [], "is_impossible": True},
            ]
            paragraphs.append({"context": f"The {name} does {prose}.", "qas": questions})
        articles.append({"title": "An article", "paragraphs": paragraphs})
    path = tmp_path_factory.mktemp("squad") / "dev.json"
    path.write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def hotpotqa_file(tmp_path_factory):
    """Twenty questions with ten paragraphs each."""
    generator = Random(1)
    entries = []
    for number in range(20):
        context = [
            [f"{generator.choice(NOUNS)} {number} {place}", [f"Of {word}. ", f"And {word} again."]]
            for place, word in enumerate(generator.sample(ADJECTIVES, 10))
        ]
        entries.append({"question": f"What about {number}?", "answer": context[3][0], "context": context})
    path = tmp_path_factory.mktemp("hotpotqa") / "dev.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sources(squad_file, hotpotqa_file):
    essay = Essay(documentation()[1][:60_000])
    return RulerTexts(essay, {"qa_1": read_squad(squad_file), "qa_2": read_hotpotqa(hotpotqa_file)})


@pytest.fixture(scope="module")
def write(tokenizers, sources):
    """A function that makes one prompt, checks its length, and returns its text and answers."""

    def prompt(task, tokens, seed=0, kind="tiny"):
        count = partial(_count, tokenizers[kind])
        builder = TASKS[task].make(SampleRequest(Random(seed), tokens, sources, seed % 20))
        room = tokens - TASKS[task].answer_tokens
        text = builder.prompt_of_length(count, room)
        assert count(text) == room
        return text, builder.answers

    return prompt


def _count(tokenizer, text):
    return len(encode(tokenizer, text))


@settings(max_examples=15)
@given(kind=st.sampled_from(KINDS), task=st.sampled_from(list(TASKS)), tokens=st.integers(2400, 4000), seed=seeds)
def test_prompts_are_exactly_as_long_as_asked_and_hold_their_answers(write, kind, task, tokens, seed):
    text, answers = write(task, tokens, seed, kind)
    assert answers
    context = text.rsplit("\n", 1)[0]  # the question can't give the answer away
    assert all(answer in context for answer in answers)


@settings(max_examples=20)
@given(task=st.sampled_from(list(TASKS)), extra=st.integers(60, 260), seed=seeds)
def test_lengths_from_the_least_possible_one_on(tokenizers, sources, task, extra, seed):
    tokenizer, tokens = tokenizers["tiny"], 2000
    least = make_prompts(task, tokenizer, tokens, 2, seed, sources).least_tokens
    # The least length belongs to the samples of a length: at another one there are others, hence some room.
    prompts = make_prompts(task, tokenizer, least + extra, 2, seed, sources)
    assert {prompt.tokens for prompt in prompts.prompts} == {least + extra - TASKS[task].answer_tokens}
    with pytest.raises(
        DataError, match=rf"{task} needs at least \d+ tokens with this tokenizer, but {least // 2} were"
    ):
        make_prompts(task, tokenizer, least // 2, 2, seed, sources)


@settings(max_examples=20)
@given(task=st.sampled_from(NIAH), tokens=st.integers(600, 3000), seed=seeds)
def test_needles_are_the_ones_asked_for(write, task, tokens, seed):
    text, answers = write(task, tokens, seed)
    context, question = text.rsplit("\n", 1)
    hidden = [needle.groups() for needle in NEEDLE.finditer(context)]
    kind = "uuids" if task in ("niah_single_3", "niah_multikey_3") else "numbers"
    assert {things for things, _, _ in hidden} == {kind}
    keys = re.search(r"for (.+?) in the text above\?", question)[1].replace("and ", "").split(", ")
    expected = [value for key in keys for _, at, value in hidden if at == key]
    assert sorted(answers) == sorted(expected)
    assert len(set(answers)) == len(answers) == (4 if task in ("niah_multivalue", "niah_multiquery") else 1)
    assert question.endswith(f"{', '.join(keys[:-1])}, and {keys[-1]} are" if len(keys) > 1 else (" are", " is"))
    distinct = {key for _, key, _ in hidden}
    wanted = {"niah_multikey_1": 4, "niah_multiquery": 4}.get(task, 1)
    if task in ("niah_multikey_2", "niah_multikey_3"):
        assert len(hidden) == len(distinct)
        assert len(hidden) > (tokens - 500) / 90, "the haystack is made of other keys"
    else:
        assert len(distinct) == wanted


def test_needles_are_spread_over_all_depths(write):
    depths = []
    for seed in range(40):
        context = write("niah_single_2", 1000, seed)[0].split("\n", 1)[1].rsplit("\n", 1)[0]
        depths.append(NEEDLE.search(context).start() / len(context))
    thirds = Counter(min(2, int(3 * depth)) for depth in depths)
    assert min(thirds.values()) >= 6
    assert min(depths) < 0.1
    assert max(depths) > 0.9


def test_needles_stand_between_whole_sentences(write, sources):
    text, _ = write("niah_multiquery", 2000)
    prose = NEEDLE.sub("\x00", text.split("\n", 1)[1].rsplit("\n", 1)[0])
    pieces = [piece.strip() for piece in prose.split("\x00")]
    everything = " ".join(sources.essay.sentences * 2)
    assert all(piece in everything for piece in pieces)
    assert all(
        any(piece.startswith(sentence) for sentence in sources.essay.sentences) for piece in pieces[1:-1] if piece
    )


@settings(max_examples=15)
@given(tokens=st.integers(700, 5000), seed=seeds)
def test_the_chain_leads_to_every_variable(write, tokens, seed):
    text, answers = write("vt", tokens, seed)
    solved, asked = text.split("Track the chain")[1:]
    for part, expected in ((solved, None), (asked, answers)):
        values = {}
        for name, other, value in re.findall(r"VAR ([A-Z]+) = (?:VAR ([A-Z]+)|([0-9]{5}))", part):
            values[name] = value or values[other]  # a variable is assigned before it is used
        wanted = re.search(r"assigned the value ([0-9]{5})", part)[1]
        assert set(values.values()) == {wanted}
        assert len(values) == 5
        found = part.split("they are: ")[1].split() if expected is None else expected
        assert set(found) == set(values)
    assert {len(name) for name in answers} == {5}


@settings(max_examples=15)
@given(tokens=st.one_of(st.integers(1000, 4095), st.integers(6000, 9000)), seed=seeds)
def test_the_common_words_are_the_most_common_ones(write, tokens, seed):
    text, answers = write("cwe", tokens, seed)
    _, solved, asked = text.split("Below is a numbered list")
    often, seldom = (6, 1) if tokens < 4096 else (30, 3)
    entries = re.findall(r"(\d+)\. (\S+)", asked.split("\nQuestion")[0])
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    counts = Counter(word for _, word in entries)
    assert {word for word, _ in counts.most_common(10)} == set(answers)
    assert {counts[word] for word in answers} == {often}
    others = [count for word, count in counts.items() if word not in answers]
    assert max(others, default=0) <= seldom
    assert others.count(seldom) >= len(others) - 12, "but for the end of the list"
    example = Counter(re.findall(r"\d+\. (\S+)", solved.split("\nQuestion")[0]))
    shown = re.findall(r"\d+\. (\S+)", solved.split("are:")[1])
    assert {word for word, _ in example.most_common(10)} == set(shown)


def test_long_lists_have_pairs_of_words(write):
    assert all("-" in answer for answer in write("cwe", 16385)[1])
    assert all("-" not in answer for answer in write("cwe", 16384)[1])


@settings(max_examples=15)
@given(tokens=st.integers(400, 6000), seed=seeds)
def test_the_frequent_words_follow_zipfs_law(write, tokens, seed):
    text, answers = write("fwe", tokens, seed)
    context = text.split("appears. ", 1)[1].split("\nQuestion")[0]
    counts = Counter(word for word in context.split() if word.strip("."))
    ranked = [word for word, _ in counts.most_common(4)]
    assert set(ranked[:3]) == set(answers)
    assert counts[ranked[2]] > counts.get(ranked[3], 0) if len(ranked) > 3 else True
    dots = context.split().count("...")
    assert dots > counts[ranked[0]] > counts[ranked[1]]
    # n / 4, n / 9 and n / 16 words, rounded down.
    n = [(rank**2 * counts[word], rank**2 * (counts[word] + 1)) for rank, word in zip((2, 3, 4), answers, strict=True)]
    assert max(low for low, _ in n) < min(high for _, high in n)
    assert len(counts) < max(6, tokens // 50)


@settings(max_examples=15)
@given(tokens=st.integers(1000, 5000), seed=seeds)
def test_the_question_s_document_is_there_whole_among_others(write, sources, tokens, seed):
    text, answers = write("qa_1", tokens, seed)
    asked = sources.questions["qa_1"].questions[seed % 20]
    (own,) = asked.documents
    documents = re.findall(r"Document (\d+):\n(.+)", text)
    assert [int(number) for number, _ in documents] == list(range(1, len(documents) + 1))
    shown = [document for _, document in documents]
    assert shown.count(sources.questions["qa_1"].documents[own]) == 1
    assert all(document in sources.questions["qa_1"].documents for document in shown[:-1])
    assert f"Question: {asked.text} Answer:" in text
    assert answers == asked.answers
    assert answers[0] in sources.questions["qa_1"].documents[own]
    related = {sources.questions["qa_1"].documents[number] for number in asked.related}
    assert len(documents) > 30 or {*shown[:-1]} <= {sources.questions["qa_1"].documents[own], *related}


def test_hotpotqa_brings_all_ten_paragraphs(write, sources):
    text, _ = write("qa_2", 2000, seed=3)
    asked = sources.questions["qa_2"].questions[3]
    assert len(asked.documents) == 10
    assert all(sources.questions["qa_2"].documents[number] in text for number in asked.documents)


def test_question_files(sources, tmp_path):
    assert len(sources.questions["qa_1"].questions) == 90  # those without an answer are left out
    assert len(sources.questions["qa_1"].questions[0].answers) == 1  # given twice
    with pytest.raises(DataError, match=r"can't read .*no.json"):
        read_squad(tmp_path / "no.json")
    for broken in ("", "{", "[1]", '{"data": [{}]}', '{"data": {"paragraphs": 1}}'):
        (tmp_path / "broken.json").write_text(broken, encoding="utf-8")
        with pytest.raises(DataError, match="is not a JSON file of SQuAD"):
            read_squad(tmp_path / "broken.json")
    (tmp_path / "empty.json").write_text('{"data": []}', encoding="utf-8")
    with pytest.raises(DataError, match="no question with an answer"):
        read_squad(tmp_path / "empty.json")


def test_too_little_text_is_refused(tokenizers, sources):
    with pytest.raises(DataError, match=r"qa_1 at 50000 tokens.* there is text for \d+ tokens"):
        make_prompts("qa_1", tokenizers["tiny"], 50_000, 1, 0, sources)
    with pytest.raises(DataError, match="qa_2 has 20 questions in its file, but 21 trials were asked for"):
        make_prompts("qa_2", tokenizers["tiny"], 2000, 21, 0, sources)
    with pytest.raises(DataError, match="the haystack is empty"):
        Essay(" \n")


@pytest.mark.parametrize("task", TASKS)
def test_prompts_depend_on_seed_length_and_number_only(task, tokenizers, sources):
    make = partial(make_prompts, task, tokenizers["tiny"], sources=sources)
    first = make(2000, trials=3, seed=1)
    assert make(2000, trials=3, seed=1) == first
    assert make(2000, trials=2, seed=1).prompts == first.prompts[:2]
    assert len({tuple(prompt.context) for prompt in first.prompts}) == 3
    assert make(2000, trials=3, seed=2).prompts != first.prompts
    assert make(2001, trials=3, seed=1).prompts != first.prompts


def test_what_is_drawn_is_the_same_on_every_machine(sources):
    def answers(task):
        return TASKS[task].make(SampleRequest(Random("0"), 1000, sources, 0)).answers

    assert {task: answers(task) for task in ("niah_single_1", "vt", "cwe", "fwe")} == {
        "niah_single_1": ("5302849",),
        "vt": ("VUEDB", "WZNUK", "WFMMT", "HWXLM", "BRIXM"),
        "cwe": ("chemist", "crystal", "wrench", "scarf", "urban", "hurricane", "frugal", "nice", "spruce", "invite"),
        "fwe": ("jxjyca", "gjgljv", "vwiecm"),
    }


def test_words():
    words = [*NOUNS, *ADJECTIVES, *VERBS]
    assert len(words) == len(set(words)) > 2500
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)


def test_least_tokens_are_what_a_prompt_without_haystack_takes(tokenizers, sources):
    count = partial(_count, tokenizers["tiny"])
    builder = TASKS["niah_single_1"].make(SampleRequest(Random(0), 1000, sources, 0))
    least = builder.least_tokens(count)
    assert count(builder.prompt_of_length(count, least)) == least
    assert "grass" not in builder.prompt_of_length(count, least)


def test_scores():
    assert match_score("It is 12, and\t34.", ("12", "34"), "all") == 1
    assert match_score("12", ("12", "34", "56", "78"), "all") == 0.25
    assert match_score("the AMBER-river\x00", ("amber-River",), "all") == 1
    assert match_score("", ("12",), "all") == 0
    assert match_score("in Paris, France", ("Rome", "paris"), "any") == 1
    assert match_score("London", ("Rome", "Paris"), "any") == 0
    assert averages([(8, 50.0), (4, 100.0), (8, 100.0), (4, 0.0)]) == {4: 50.0, 8: 75.0}


@given(scores=st.dictionaries(st.integers(1, 100), st.floats(0, 100), min_size=1), threshold=st.floats(0, 100))
def test_the_effective_context_is_the_longest_length_with_all_shorter_ones_passing(scores, threshold):
    passing = [at for at in scores if all(score >= threshold for tokens, score in scores.items() if tokens <= at)]
    assert effective_context(scores, threshold) == max(passing, default=None)


@pytest.fixture
def results_file(tmp_path):
    """A function that writes the results file of a base, with changes."""

    def write(**changes):
        content = {
            "model": "tiny", "adapter": None, "method": None, "context": 256,
            "results": [{"task": task, "tokens": 256, "score": 40.0} for task in ("vt", "fwe")],
            "averages": [{"tokens": 128, "score": 90.0}, {"tokens": 256, "score": 40.0}],
        }  # fmt: skip
        path = tmp_path / "base.json"
        path.write_text(json.dumps(content | changes), encoding="utf-8")
        return path

    return write


def test_the_base_s_own_score_is_the_threshold(results_file):
    assert base_threshold(results_file(), "tiny", ["fwe", "vt"]) == 40.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "llama"}, ModelError, r"of another model \(llama\); give one of the base, tiny"),
        ({"adapter": "runs/a"}, ModelError, r"of another model \(tiny, adapter runs/a\)"),
        ({"method": "yarn"}, ModelError, r"of another model \(tiny, method yarn\)"),
        (
            {"results": [{"task": "vt", "tokens": 256, "score": 1.0}]},
            DataError,
            r"other tasks \(vt\); measure both with the same `tasks`",
        ),
        ({"averages": [{"tokens": 128, "score": 90.0}]}, DataError, "no score at the base's own context of 256 tokens"),
        ({"averages": 1}, DataError, "averages: Input should be a valid list"),
    ],
)
def test_no_threshold_from_another_model_s_results(results_file, changes, error, message):
    with pytest.raises(error, match=message):
        base_threshold(results_file(**changes), "tiny", ["vt", "fwe"])


def test_the_base_of_a_run_is_what_it_extended(run, base):
    assert base_id(str(run), None) == base.name
    assert base_id(str(base), run / "adapter") == base.name
    assert base_id("tiny", None) == "tiny"


invoke = partial(command_line.invoke, "eval", "ruler")
succeed = partial(command_line.succeed, "eval", "ruler")


def test_command(tmp_path, squad_file):
    options = [
        "--quiet",
        "--beyond",
        "--trials",
        2,
        "--batch-size",
        2,
        "--tasks",
        "fwe,niah_multikey_2",
        "--dtype",
        "float32",
    ]
    first = tmp_path / "base.json"
    shown = succeed("tiny", "--lengths", "512,256", "--json", first, *options)
    result = json.loads(first.read_text(encoding="utf-8"))
    assert [(row["task"], row["tokens"]) for row in result["results"]] == [
        (task, tokens) for task in ("niah_multikey_2", "fwe") for tokens in (512, 256)
    ]
    assert all(row["trials"] == 2 and 0 <= row["score"] <= 100 for row in result["results"])
    assert all(100 < row["least_tokens"] <= row["tokens"] for row in result["results"])
    for row in result["results"]:
        assert 0 <= row["right_tokens"] <= 1
        assert (sum(row["first_wrong"]) == 0) == (row["right_tokens"] == 1)
        assert sum(row["first_wrong"]) <= 2
        assert f"{row['found']:.1f} / {row['nats']:.2f}" in shown.output
    assert check_results("ruler", result, first)["results"] == [
        {key: value for key, value in row.items() if key != "least_tokens"} for row in result["results"]
    ]
    for average in result["averages"]:
        scores = [row["score"] for row in result["results"] if row["tokens"] == average["tokens"]]
        assert average["score"] == pytest.approx(sum(scores) / 2)
    assert [average["tokens"] for average in result["averages"]] == [256, 512]
    assert result["model"] == result["base"] == "tiny"
    assert result["context"] == 256
    assert result["threshold"] == PUBLISHED_THRESHOLD
    assert "Python" in result["haystack"]["source"]
    assert first.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "average" in shown.output
    assert "512 tokens are beyond the 256" in shown.output

    own = {average["tokens"]: average["score"] for average in result["averages"]}
    second = tmp_path / "again.json"
    succeed("tiny", "--lengths", "256,512", "--threshold-from", first, "--json", second, *options)
    repeated = json.loads(second.read_text(encoding="utf-8"))
    assert repeated["threshold"] == own[256]
    assert repeated["effective_context"] == (512 if own[512] >= own[256] else 256)
    assert {(row["task"], row["tokens"], row["score"]) for row in repeated["results"]} == {
        (row["task"], row["tokens"], row["score"]) for row in result["results"]
    }

    asked = succeed("tiny", "--lengths", 400, "--beyond", "--trials", 3, "--tasks", "qa_1", "--squad", squad_file,
                   "--threshold", 0, "--batch-size", 2, "--quiet")  # fmt: skip
    assert "effective context (average of at least 0.0 there and at all shorter lengths): 400 tokens" in asked.output


def test_what_the_command_refuses(results_file):
    all_of_it = invoke("tiny", "--lengths", 256, "--trials", 1, "--quiet")
    assert isinstance(all_of_it.exception, DataError)
    assert re.search(r"vt needs at least \d+ tokens.*; cwe needs at least \d+ tokens", str(all_of_it.exception))
    assert "qa_1 is skipped: it needs --squad FILE" in all_of_it.output
    assert "qa_2 is skipped: it needs --hotpotqa FILE" in all_of_it.output
    beyond = invoke("tiny", "--lengths", 512, "--tasks", "fwe")
    assert isinstance(beyond.exception, LengthenError)
    assert "add --beyond" in str(beyond.exception)
    other = invoke("tiny", "--lengths", 256, "--tasks", "fwe,vt", "--threshold-from", results_file(model="llama"))
    assert isinstance(other.exception, ModelError)
    for arguments, message in (
        (["--tasks", "niah"], "no task 'niah'; choose from niah_single_1"),
        (["--tasks", "qa_2"], "it needs --hotpotqa FILE"),
        (["--threshold", 50, "--threshold-from", results_file()], "not both"),
        (["--threshold", 101], "less than or equal to 100"),
        (["--trials", 0], "greater than or equal to 1"),
    ):
        refused = invoke("tiny", "--lengths", 256, *arguments)
        assert refused.exit_code == 2
        assert message in re.sub(r"[\s\u2502]+", " ", refused.output)
