"""lm-eval's `local-completions` against `lengthen serve tiny`: what it measures is what it measures on the model."""

import json

import pytest
from adapter_files import CPU

from lengthen.adapters.load import load_apart
from lengthen.models.resolve import resolve_model
from server_process import TOKEN, serving

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("tenacity", reason="lm-eval's API models need lm-eval[api]")

CHOICES = [
    {"text": "for i in range(10):\n    print(", "choices": ["i)", "class)"], "label": 0},
    {"text": "import os\nimport", "choices": [" sys", " +=", " the"], "label": 0},
    {"text": "x = 1\n" * 80 + "x =", "choices": [" 1", " import"], "label": 0},
]
LINES = [
    {"text": "self.name = name\n" * 8 + "self.name =", "answer": " name"},
    {"text": "import os\n" * 5 + "import", "answer": " os"},
]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    common = "dataset_path: json\ntest_split: train\ndoc_to_text: '{{text}}'\n"
    kinds = {
        "served_choice": "output_type: multiple_choice\ndoc_to_choice: '{{choices}}'\ntarget_delimiter: ''\n"
        "doc_to_target: label\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
        "served_line": "output_type: generate_until\ndoc_to_target: '{{answer}}'\n"
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
    }
    for (name, rest), rows in zip(kinds.items(), (CHOICES, LINES), strict=True):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{name}.yaml").write_text(
            f"task: {name}\n{common}dataset_kwargs: {{data_files: {file}}}\n{rest}", encoding="utf-8"
        )
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def test_loglikelihood_and_generation(tasks, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("OPENAI_API_KEY", TOKEN)
    names = ["served_choice", "served_line"]
    apart = load_apart("tiny", "float32", None, CPU)
    # Of a prompt that is too long, both keep the last 255 tokens: one of the 256 there is for the answer of the server.
    local = HFLM(pretrained=apart.model, tokenizer=apart.tokenizer, max_length=254, batch_size=1)
    measured = {"local": lm_eval.simple_evaluate(local, tasks=names, task_manager=tasks, bootstrap_iters=0)}
    with serving() as server:
        settings = {
            "model": "tiny",
            "base_url": f"{server.url}/v1/completions",
            "tokenizer": str(resolve_model("tiny").location),
            "add_bos_token": True,  # as the tokenizer does by itself, by which the local model is asked
            "max_length": 256,
            "num_concurrent": 2,
            "batch_size": 2,
        }
        measured["served"] = lm_eval.simple_evaluate(
            "local-completions", model_args=settings, tasks=names, task_manager=tasks, bootstrap_iters=0
        )
    for task in names:
        ours, theirs = (measured[kind]["samples"][task] for kind in ("served", "local"))
        assert len(ours) == len(theirs) == len(CHOICES if task == "served_choice" else LINES)
        for served, alone in zip(ours, theirs, strict=True):
            if task == "served_line":
                assert served["resps"] == alone["resps"]
                continue
            for (value, is_greedy), (expected, was_greedy) in zip(
                (each[0] for each in served["resps"]), (each[0] for each in alone["resps"]), strict=True
            ):
                assert float(value) == pytest.approx(float(expected), abs=1e-3)
                assert is_greedy == was_greedy
    scores = {kind: [run["results"][task] for task in names] for kind, run in measured.items()}
    assert scores["served"][0]["acc,none"] == scores["local"][0]["acc,none"] >= 2 / 3
    assert scores["served"][1]["exact_match,none"] == scores["local"][1]["exact_match,none"]
