"""Benchmark tasks: metrics, files as published, prompts that fit, and lm-eval, on the shipped base."""

import json
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import command_line
import lengthen
from lengthen.errors import ContextError, DataError, LengthenError, ModelError
from lengthen.evaluation.compare.benchmarks import benchmark_rows
from lengthen.evaluation.prompts import encode
from lengthen.evaluation.tasks.files import Sample, choose, read_samples
from lengthen.evaluation.tasks.metrics import METRICS, check_metric, score
from lengthen.evaluation.tasks.scoring import answer_samples, summarize
from lengthen.evaluation.tasks.suites import LEVAL, LONGBENCH, PromptLayout
from lengthen.results import check_results

CODE = "def add(a, b):\n    return a + b\n\n\n"


invoke = partial(command_line.invoke, "eval", "tasks", columns=160, catch_exceptions=False)
succeed = partial(command_line.succeed, "eval", "tasks", columns=160)


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = lengthen.load("tiny", dtype="float32")
    return model.eval(), tokenizer


def longbench(**changes):
    record = {
        "input": "What does add return?",
        "context": CODE,
        "answers": ["a + b", "the sum"],
        "length": 9,
        "dataset": "qasper",
        "language": "en",
        "all_classes": None,
        "_id": "0",
    }
    return record | changes


def leval(**changes):
    record = {
        "instructions": ["What is added?", "How many arguments?"],
        "input": CODE,
        "outputs": ["a and b", "two"],
        "source": "library",
        "evaluation": "f1",
    }
    return record | changes


SQUALITY = {
    "document": CODE,
    "metadata": {"passage_id": "1"},
    "questions": [
        {"question_text": "What is the plot?", "responses": [{"response_text": "Adding."}, {"response_text": "A sum."}]}
    ],
}
QMSUM = {
    "meeting_transcripts": [{"speaker": "A", "content": "Let us add."}, {"speaker": "B", "content": "Yes."}],
    "general_query_list": [{"query": "Summarize the whole meeting.", "answer": "They add."}],
    "specific_query_list": [{"query": "What did B say?", "answer": "B agreed."}],
    "topic_list": [],
}


def lines(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


# Metrics


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "expected"),
    [
        # SQuAD's normalization leaves "cat sat" and "cat sat down": precision 1, recall 2/3.
        ("f1", "The cat sat.", "a cat sat down", 0.8),
        ("f1", "dog", "cat", 0),
        ("f1", "", "cat", 0),
        # Each word counts as often as in both: one of two "no" is right.
        ("f1", "no no", "no", 2 / 3),
        ("exact-match", "The  Answer!", "answer", 1),
        ("exact-match", "answers", "answer", 0),
        ("rouge-l", "the cat lay", "the cat sat", 2 / 3),
        ("rouge-l-longbench", "the cat lay", "the cat sat", 2 / 3),
        ("rouge-l-longbench", "", "the cat sat", 0),
        ("rouge-l-longbench", "...", "the cat sat", 0),
        ("f1-zh", "北京", "北京。", 1),
        ("rouge-l-longbench-zh", "我在北京", "我在北京", 1),
        ("count", "12 or 13", "12", 0.5),
        ("count", "none", "12", 0),
        ("retrieval", "Paragraph 7", "Paragraph 7", 1),
        ("retrieval", "It is 7 or 17", "Paragraph 7", 0.5),
        ("retrieval", "段落7", "段落7", 1),
        ("retrieval", "7", "no number", 0),
        ("code-similarity", "\n# why\n```\nreturn a\nreturn b", "return a", 1),
        ("code-similarity", "# nothing but this", "return a", 0),
        # difflib finds "return " alone: 2 * 7 / 16, in hundredths 0.88.
        ("code-similarity", "return b", "return a", 0.88),
        ("contains", "\n\nIt is New York.", "new york", 1),
        ("contains", "It is York\nNew York", "new york", 0),
        ("choice", "The answer: B, for", "(B) Because", 1),
        ("choice", "(C) No", "(B) Because", 0),
        ("choice", "none of them", "(A) Because", 0),
        ("choices", "BD", "BD", 1),
        ("choices", "B", "BD", 0.25),
        ("choices", "B and D.", "BD", 1),
        ("choices", "BC", "BD", 0),
        ("choices", "no idea", "BD", 0),
        ("number", "So 3 apples. The answer is $1,250.00. Done", "... The answer is 1250", 1),
        ("number", "It makes 41 or 42\n\nQuestion 43", "The answer is 42.", 1),
        ("number", "no idea", "The answer is 42.", 0),
        ("truth", "It is False, not true", "False", 1),
        ("truth", "It is untrue? False", "False", 0),
        ("truth", "perhaps", "False", 0),
        ("code-output", "So the final output is [[1, 2], [3]].", "[[1,2],[3]]", 1),
        ("code-output", "after the loop it is 3.0 5", "3 5", 1),
        ("code-output", "3 5 and so on and so on and so", "3 5", 0),
    ],
)
def test_metrics_by_hand(metric, prediction, reference, expected):
    assert score(metric, prediction, [reference]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("Type: human", 1),
        ("human being", 0.5),  # names "human being" too
        ("number", 0),
        ("nothing", 0),
    ],
)
def test_classification_shares_its_score_among_the_classes_that_are_named(prediction, expected):
    assert score("classification", prediction, ["human"], ["human", "human being", "number"]) == expected


def test_a_class_inside_the_right_one_s_name_is_not_counted():
    assert score("classification", "human being", ["human being"], ["human", "human being"]) == 1


def test_the_best_reference_counts():
    assert score("f1", "the sum", ["a + b", "sum"]) == 1


words = st.lists(st.sampled_from(["cat", "sat", "mat", "dog", "3", "B"]), max_size=8).map(" ".join)


@given(st.sampled_from(sorted(set(METRICS) - {"classification"})), words, words)
@settings(max_examples=150)
def test_scores_are_from_0_to_1(metric, prediction, reference):
    assert 0 <= score(metric, prediction, [reference]) <= 1


@given(st.sampled_from(["f1", "f1-zh", "exact-match", "rouge-l", "rouge-l-longbench", "contains"]), words)
def test_a_right_answer_scores_1(metric, answer):
    if answer.split():
        assert score(metric, answer, [answer]) == pytest.approx(1, abs=1e-6)


@given(words, words)
def test_rouge_l_is_the_longest_common_subsequence(prediction, reference):
    """Another way to the same number: LCS by recursion over prefixes, F of its shares in either text."""
    a, b = prediction.lower().split(), reference.lower().split()
    row = [0] * (len(b) + 1)
    for word in a:
        row = _lcs_row(row, word, b)
    common = row[-1]
    expected = 2 * common / (len(a) + len(b)) if common else 0
    assert score("rouge-l", prediction, [reference]) == pytest.approx(expected)


def _lcs_row(above, word, b):
    row = [0]
    for (left_above, just_above), other in zip(pairwise(above), b, strict=True):
        row.append(left_above + 1 if word == other else max(just_above, row[-1]))
    return row


def test_metrics_equal_lm_eval_s_longbench():
    """Where lm-eval's copy of LongBench's script agrees with the script: it strips lines of code otherwise."""
    theirs = pytest.importorskip("lm_eval.tasks.longbench.metrics")
    pairs = [
        ("The treaty was signed in Paris. Nobody came", "A treaty signed in Paris. In 1900, nobody came."),
        ("return a + c", "return a + b"),
        ("unanswerable", "yes"),
        ("Paragraph 3, not 30", "Paragraph 3"),
    ]
    names = {
        "f1": "qa_f1_score",
        "f1-zh": "qa_f1_zh_score",
        "rouge-l-longbench": "rouge_score",
        "rouge-l-longbench-zh": "rouge_zh_score",
        "count": "count_score",
        "code-similarity": "code_sim_score",
    }
    for metric, name in names.items():
        for prediction, reference in pairs:
            expected = getattr(theirs, name)(prediction, reference)
            assert score(metric, prediction, [reference]) == pytest.approx(expected), (metric, prediction)
    assert score("retrieval", *pairs[3][:1], [pairs[3][1]]) == theirs.retrieval_score(*pairs[3])


def test_an_unknown_metric_and_a_missing_package_are_refused(monkeypatch):
    with pytest.raises(LengthenError, match="`metric=bleu` is unknown; choose one of auto, f1"):
        check_metric("bleu")
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(LengthenError, match=r"rouge-score: pip install 'lengthen\[tasks\]'"):
        check_metric("rouge-l")


# Files


def test_every_layout_has_a_known_metric_and_asks_its_question():
    for name, layout in {**LONGBENCH, **LEVAL}.items():
        assert layout.metric in METRICS, name
        assert layout.max_new_tokens > 0
        without_question = {"gov_report", "multi_news", "vcsum", "passage_count", "lcc"}
        assert layout.after.count("{question}") == (name not in without_question), name


def test_the_four_formats_are_told_apart_by_their_keys(tmp_path):
    lines(tmp_path / "a.jsonl", longbench(), longbench(dataset="trec_e", all_classes=["x", "y"], answers=["x"]))
    lines(tmp_path / "b.jsonl", leval(), SQUALITY, QMSUM)
    samples = read_samples([tmp_path])
    assert [sample.task for sample in samples] == ["qasper", "trec", "b", "b", "squality", "qmsum", "qmsum"]
    assert samples[0].document == CODE
    assert samples[0].answers == ("a + b", "the sum")
    assert samples[1].classes == ("x", "y")
    assert [sample.question for sample in samples[2:4]] == leval()["instructions"]
    assert [sample.answers for sample in samples[2:4]] == [("a and b",), ("two",)]
    assert samples[4].answers == ("Adding.", "A sum.")
    assert samples[5].document == "A: Let us add.\nB: Yes."
    assert [sample.question for sample in samples[5:]] == ["Summarize the whole meeting.", "What did B say?"]
    assert {sample.layout.metric for sample in samples} == {"f1", "classification", "rouge-l"}


def test_sci_fi_asks_about_the_story_and_about_reality(tmp_path):
    question = "Cats fly, True or False? Answer this question based on the world described in the document."
    record = leval(instructions=[question], outputs=["True [fact: False]"], evaluation="exam")
    story, reality = read_samples([lines(tmp_path / "sci_fi.jsonl", record)])
    assert (story.document, story.answers, story.layout.metric) == (CODE, ("True",), "truth")
    assert (reality.document, reality.answers) == ("", ("False",))
    assert "document" not in reality.question


def test_the_first_samples_of_each_task_are_taken_and_judged_ones_left_out(tmp_path):
    samples = read_samples([lines(tmp_path / "x.jsonl", longbench(), leval(), leval(evaluation="LLM"), longbench())])
    chosen, left_out = choose(samples, "auto", 1)
    assert [sample.task for sample in chosen] == ["qasper", "x"]
    assert left_out == 2
    assert choose(samples, "f1", None) == (samples, 0)
    with pytest.raises(DataError, match="human or model judgment; choose a `metric`"):
        choose(samples[3:5], "auto", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no question"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "line 1: not JSON"),
        (b"[]", "line 1: a list instead of an object"),
        (b'{"text": "x"}', "line 1: the keys text are those of no known format"),
        (b"\n" + json.dumps({"context": "c", "input": "i"}).encode(), "line 2: LongBench misses answers, dataset"),
        (json.dumps(longbench(answers="a")).encode(), "'answers' is \"a\", not a list of texts"),
        (json.dumps(longbench(answers=[])).encode(), "'answers' is"),
        (json.dumps(longbench(context=None)).encode(), "'context' is null, not a text"),
        (json.dumps(longbench(dataset="squad")).encode(), "dataset 'squad' is none of LongBench's"),
        (json.dumps(longbench(dataset="trec")).encode(), "'all_classes' is null"),
        (json.dumps(leval(outputs=["one"])).encode(), "2 instructions but 1 outputs"),
        (json.dumps(leval(evaluation="bleu")).encode(), "evaluation 'bleu' is none of L-Eval's"),
        (json.dumps(SQUALITY | {"questions": [{"question_text": "?"}]}).encode(), "'responses' is missing"),
        (json.dumps(QMSUM | {"meeting_transcripts": ["x"]}).encode(), "not a list of objects"),
    ],
)
def test_a_malformed_file_is_refused_by_line(tmp_path, content, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_samples([path])
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="can't read"):
        read_samples([tmp_path / "none.jsonl"])
    with pytest.raises(DataError, match=r"no \.jsonl file"):
        read_samples([tmp_path])


# Prompts and answers


class Recorder:
    """Tokenizer that remembers the texts it was given."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.texts = []

    def __call__(self, text, **options):
        self.texts.append(text)
        return self._tokenizer(text, **options)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


PLAIN = PromptLayout("Read:\n", "\n\nQuestion: {question}\nAnswer:", "f1", 8)


def test_a_long_document_loses_its_middle_and_never_the_question(tiny):
    model, tokenizer = tiny
    document = "\n".join(f"line_{i} = {i}" for i in range(400))
    sample = Sample("t", PLAIN, document, "What is line_7?", ("7",))
    recorder = Recorder(tokenizer)
    (scored,) = answer_samples(model, recorder, [sample], 128)
    prompt = recorder.texts[-1]
    assert scored.truncated
    assert 110 <= scored.prompt_tokens <= 120, "the context less the answer, but for the seams"
    assert scored.prompt_tokens == len(encode(tokenizer, prompt))
    assert prompt.startswith("Read:\nline_0 = 0\nline_1 = 1")
    assert prompt.endswith("line_399 = 399\n\nQuestion: What is line_7?\nAnswer:")
    assert "line_200 " not in prompt
    kept = prompt.removeprefix("Read:\n").split("\n\nQuestion")[0]
    head = max(n for n in range(len(kept) + 1) if document.startswith(kept[:n]))
    assert 0.4 <= len(encode(tokenizer, kept[:head])) / len(encode(tokenizer, kept)) <= 0.6


def test_a_document_that_fits_is_whole(tiny):
    model, tokenizer = tiny
    recorder = Recorder(tokenizer)
    (scored,) = answer_samples(model, recorder, [Sample("t", PLAIN, CODE, "{words}?", ("7",))], 256)
    assert not scored.truncated
    assert recorder.texts == [f"Read:\n{CODE}\n\nQuestion: {{words}}?\nAnswer:"]


def test_no_room_for_the_question_is_refused(tiny):
    model, tokenizer = tiny
    sample = Sample("t", PLAIN, CODE, "why " * 100, ("7",))
    with pytest.raises(ContextError, match=r"t: a question takes \d+ tokens .* leaves 56; raise `context`"):
        answer_samples(model, tokenizer, [sample], 64)
    with pytest.raises(ContextError, match="leaves 0"):
        answer_samples(model, tokenizer, [sample], 64, max_new_tokens=100)


def test_answers_continue_the_prompt_greedily_and_are_scored(tiny):
    """The shipped base goes on with a pattern of code, so one right answer is known."""
    model, tokenizer = tiny
    layout = PromptLayout("", "{question}", "contains", 4)
    right = Sample("right", layout, "self.name = name\n" * 8, "self.name =", (" name",))
    scored = answer_samples(model, tokenizer, [right, replace(right, task="wrong", answers=("numpy",))], 256)
    assert [each.score for each in scored] == [1, 0]
    assert summarize(scored)[0] == {"task": "right", "metric": "contains", "score": 1, "samples": 1, "truncated": 0}
    first_line = replace(right, layout=replace(layout, first_line=True, metric="exact-match"))
    assert answer_samples(model, tokenizer, [first_line], 256)[0].score == 1, "what follows the first line is ignored"


def test_chat_wraps_requests_but_no_texts_to_continue(tiny):
    model, tokenizer = tiny
    sample = Sample("t", PLAIN, CODE, "What?", ("7",))
    with pytest.raises(ModelError, match="no chat template"):
        answer_samples(model, tokenizer, [sample], 128, chat=True)
    recorder = Recorder(tokenizer)
    recorder.chat_template = "template"
    recorder.apply_chat_template = lambda messages, **_: f"<user>{messages[0]['content']}<assistant>"
    bare = replace(sample, layout=replace(PLAIN, bare=True))
    answer_samples(model, recorder, [sample, bare], 128, chat=True)
    asked, continued = recorder.texts
    assert asked.startswith("<user>Read:")
    assert asked.endswith("Answer:<assistant>")
    assert continued.startswith("Read:")


def test_classification_without_classes_is_refused(tiny):
    model, tokenizer = tiny
    with pytest.raises(LengthenError, match="all_classes"):
        answer_samples(model, tokenizer, [Sample("t", PLAIN, CODE, "?", ("7",))], 128, metric="classification")


# The command


def test_the_command_writes_results_and_predictions(tmp_path):
    code = longbench(dataset="lcc", answers=["def subtract(a, b):"])
    data = lines(tmp_path / "data.jsonl", code, code, code | {"context": CODE * 60}, leval())
    out, answers = tmp_path / "out.json", tmp_path / "answers.jsonl"
    ran = succeed(
        *("tiny", "--data", data, "--max-new-tokens", 4, "--context", 200, "--trials", 3),
        *("--json", out, "--predictions", answers, "--quiet"),
    )
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["model"] == "tiny"
    assert (content["context"], content["max_new_tokens"], content["chat"]) == (200, 4, False)
    keys = ["task", "metric", "score", "samples", "truncated"]
    assert [list(result) for result in content["results"]] == [keys, keys]
    assert [(r["task"], r["samples"], r["truncated"]) for r in content["results"]] == [("lcc", 3, 1), ("data", 2, 0)]
    written = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert len(written) == 5
    mean = sum(each["score"] for each in written[:3]) / 3
    assert content["results"][0]["score"] == pytest.approx(mean)
    assert "lcc" in ran.stdout


def test_another_metric_can_be_chosen(tmp_path):
    data, out = lines(tmp_path / "data.jsonl", leval(evaluation="human")), tmp_path / "out.json"
    succeed("tiny", "--data", data, "--metric", "exact-match", "--max-new-tokens", 2, "--json", out, "--quiet")
    assert json.loads(out.read_text(encoding="utf-8"))["results"][0]["metric"] == "exact-match"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --data .* and --tasks"),
        (["--tasks", "hellaswag", "--data", "x.jsonl"], "one of --data .* and --tasks"),
        (["--data", "x.jsonl", "--include", "."], "--include goes with --tasks"),
        (["--tasks", "hellaswag", "--metric", "f1"], "--metric f1 goes with --data"),
        (["--data", "x.jsonl", "--metric", "bleu"], "bleu is unknown"),
        (["--data", "no-such.jsonl"], "can't read no-such.jsonl"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_loaded(arguments, message):
    with pytest.raises(LengthenError, match=message):
        invoke("no-such-model", *arguments)


# lm-eval


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory):
    """Two tasks of lm-eval over local files, one by likelihood and one by generation."""
    pytest.importorskip("lm_eval")
    tmp_path = tmp_path_factory.mktemp("tasks")
    far = "x = 1\n" * 200
    choices = [
        {"text": "for i in range(10):\n    print(", "choices": ["i)", "class)"], "label": 0},
        {"text": far + "import", "choices": [" os", " +="], "label": 0},
    ]
    pattern = "self.name = name\n" * 8 + "self.name ="
    continued = [{"text": pattern, "answer": " name"}, {"text": far + pattern, "answer": " nothing"}]
    common = "dataset_path: json\ntest_split: train\ndoc_to_text: '{{text}}'\n"
    for name, rows, rest in (
        (
            "code_choice",
            choices,
            "output_type: multiple_choice\ndoc_to_choice: '{{choices}}'\ntarget_delimiter: ''\ndoc_to_target: label\n"
            "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
        ),
        (
            "code_line",
            continued,
            "output_type: generate_until\ndoc_to_target: '{{answer}}'\n"
            'generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}\n'
            "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
        ),
    ):
        file = lines(tmp_path / f"{name}.jsonl", *rows)
        (tmp_path / f"{name}.yaml").write_text(
            f"task: {name}\n{common}dataset_kwargs: {{data_files: {file}}}\n{rest}", encoding="utf-8"
        )
    (tmp_path / "no_data.yaml").write_text(
        f"task: no_data\n{common}dataset_kwargs: {{data_files: {tmp_path}/none.jsonl}}\n"
        "output_type: generate_until\ndoc_to_target: '{{answer}}'\nmetric_list: [{metric: exact_match}]\n",
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        yield tmp_path


def test_lm_eval_s_tasks_run_on_what_we_loaded(task_folder, tmp_path):
    out, answers = tmp_path / "out.json", tmp_path / "answers.jsonl"
    succeed(
        *("tiny", "--tasks", "code_*", "--include", task_folder, "--json", out, "--predictions", answers),
        *("--dtype", "float32", "--quiet"),
    )
    results = {result["task"]: result for result in json.loads(out.read_text(encoding="utf-8"))["results"]}
    assert results["code_choice"] | {"stderr": None} == {
        "task": "code_choice",
        "metric": "acc",
        "score": 1,
        "stderr": None,
        "samples": 2,
        "truncated": 1,
    }
    assert (results["code_line"]["metric"], results["code_line"]["score"]) == ("exact_match", 0.5)
    assert (results["code_line"]["samples"], results["code_line"]["truncated"]) == (2, 1)
    written = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [each["task"] for each in written] == ["code_choice"] * 2 + ["code_line"] * 2
    assert written[2]["prediction"] == [" name"]


def test_lm_eval_s_limit_and_lengths(task_folder, tmp_path):
    out = tmp_path / "out.json"
    succeed("tiny", "--tasks", "code_line", "--include", task_folder, "--trials", 1, "--json", out, "--quiet")
    assert json.loads(out.read_text(encoding="utf-8"))["results"][0]["samples"] == 1
    with pytest.raises(ContextError, match="code_line generates up to 300 tokens"):
        invoke("tiny", "--tasks", "code_line", "--include", task_folder, "--max-new-tokens", 300, "--quiet")


def test_a_comparison_has_both_models_on_lm_eval_s_tasks(task_folder, run, base, tmp_path):
    out = tmp_path / "compare.json"
    common = ("--include", task_folder, "--dtype", "float32", "--quiet")
    shown = command_line.succeed(
        *("eval", "compare", run, "--tasks", "copy,code_*", "--trials", 1, "--documents", 0, "--json", out, *common)
    )
    content = json.loads(out.read_text(encoding="utf-8"))
    assert [row["task"] for row in content["scores"]] == ["copy digits"]
    rows = {row["task"]: row for row in content["lm_eval"]}
    assert list(rows) == ["code_choice", "code_line"]
    for side, model in (("base", base), ("run", run)):
        succeed(model, "--tasks", "code_*", "--context", 32, "--json", tmp_path / "alone.json", *common)
        for result in json.loads((tmp_path / "alone.json").read_text(encoding="utf-8"))["results"]:
            row = rows[result["task"]]
            assert (row[side], row[f"{side}_stderr"]) == (result["score"], result["stderr"])
            assert (row["metric"], row["samples"]) == (result["metric"], result["samples"])
            assert row["low"] <= row["difference"] <= row["high"]
    assert "code_choice" in shown.stdout
    assert check_results("compare", content, out)["lm_eval"] == content["lm_eval"]


def test_differences_are_paired_by_sample_where_samples_have_scores():
    def side(*scores, metric="acc"):
        mean = sum(scores) / len(scores)
        results = [{"task": "t", "metric": metric, "score": mean, "stderr": 0.1, "samples": len(scores)}]
        return results, [{"task": "t", "doc_id": number, "acc": score} for number, score in enumerate(scores)]

    (row,) = benchmark_rows(side(0, 1, 0, 1, 0, 1), side(1, 1, 1, 1, 1, 1))
    assert (row["base"], row["run"], row["difference"]) == (0.5, 1, 0.5)
    assert 0 <= row["low"] < 0.5 < row["high"] <= 1
    (row,) = benchmark_rows(side(0, 1, 0), side(0, 1, 0))
    assert (row["low"], row["high"]) == (0, 0), "the same answers, whatever the standard error of each score"
    (row,) = benchmark_rows(side(0, 1, metric="acc,some-filter"), side(1, 1, metric="acc,some-filter"))
    assert (row["low"], row["high"], row["base_stderr"]) == (None, None, 0.1)


def test_what_lm_eval_can_not_run_is_the_user_s_error(task_folder):
    with pytest.raises(DataError, match=r"code_lines is no task of lm-eval .* did you mean code_line"):
        invoke("tiny", "--tasks", "code_lines", "--include", task_folder)
    with pytest.raises(DataError, match="no folder"):
        invoke("tiny", "--tasks", "code_line", "--include", task_folder / "none")
    with pytest.raises(ModelError, match="no chat template"):
        invoke("tiny", "--tasks", "code_line", "--include", task_folder, "--chat")
    with pytest.raises(DataError, match=r"lm-eval can't run no_data: .*none\.jsonl"):
        invoke("tiny", "--tasks", "no_data", "--include", task_folder, "--quiet")


def test_without_lm_eval_its_tasks_name_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "lengthen.evaluation.tasks.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(LengthenError, match=r"lm-eval: pip install 'lengthen\[tasks\]'"):
        invoke("no-such-model", "--tasks", "hellaswag")
