"""The model card says what the newest comparison says."""

import json
import shutil

import pytest

import report_files as files
from lengthen.errors import ModelError
from lengthen.report import write_model_card


@pytest.fixture
def folder(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    return copy


def test_verdict_table_and_perplexity(folder, tmp_path):
    base_id = json.loads((folder / "run.json").read_text())["base"]["id"]
    files.write(folder / "evals", "compare-1.json", files.compare("run", base_id, run=0.1))
    files.write(folder / "evals", "compare-2.json", files.compare("run", base_id))
    card = write_model_card(folder, tmp_path, "me/long").read_text()
    assert "\n# long\n\nUsable up to 2,048 tokens (base: 128); short ability kept.\n" in card
    assert "| | 128 | 2,048 |\n|---|--:|--:|\n| base | 80% | 0% |\n| run | 90% | 90% |\n" in card
    assert "the run has 12.40, the base with a sliding window of 32 tokens 45.70" in card
    assert "LongPPL: 3.21 \u2192 2.50 (base \u2192 run, on 320 tokens that a long context helps).\n" in card
    assert card.count('from_pretrained("me/long")') == 2


def test_a_run_that_was_not_compared_says_so(folder, tmp_path):
    card = write_model_card(folder, tmp_path, "me/long").read_text()
    assert "is not measured" in card
    assert "|" not in card.partition("---\n\n")[2]


def test_a_base_of_the_hub_is_linked(folder, tmp_path):
    about = json.loads((folder / "run.json").read_text())
    about["base"]["model"] = "HuggingFaceTB/SmolLM2-135M"
    files.write(folder, "run.json", about)
    assert "\nbase_model: HuggingFaceTB/SmolLM2-135M\n" in write_model_card(folder, tmp_path, "me/long").read_text()


def test_what_is_no_run(tmp_path):
    with pytest.raises(ModelError, match="is not a run folder"):
        write_model_card(tmp_path, tmp_path, "me/long")
