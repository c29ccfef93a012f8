import json

import pytest

from lengthen.errors import DataError, ModelError, OutputError
from lengthen.run_folder import RunFolder, read_base_record, write_base_record


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def begin(run):
    run.recipe.write_text("model: tiny\n")
    return run


def test_a_folder_is_new_until_a_recipe_is_in_it_and_finished_with_what_was_trained(run):
    assert RunFolder(run.path / "none").state() == run.state() == "new"
    (run.path / ".recipe.yaml.1.tmp").touch()  # left by a killed write
    assert run.state() == "new"
    assert begin(run).state() == "begun"
    run.adapter.mkdir()
    assert run.state() == "finished"
    assert run.is_finished
    assert not run.is_full_finetune


def test_other_content_is_no_run(run):
    (run.path / "letter.txt").touch()
    with pytest.raises(OutputError, match="other content"):
        run.state()


@pytest.mark.parametrize("name", ["adapter", "model"])
def test_a_result_is_set_aside_under_its_step(run, name):
    (begin(run).path / name).mkdir()
    run.set_aside_result(12)
    assert (run.path / f"{name}-12").is_dir()
    assert run.state() == "begun"


def test_metrics_are_read_back_without_the_line_in_which_a_run_was_killed(run):
    assert run.read_metrics() == []
    records = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    for record in records:
        run.append_metrics(record)
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert run.read_metrics() == records
    assert run.read_metrics(start=2) == records[2:]
    run.trim_metrics(2)
    assert run.read_metrics() == records[:2]
    run.append_metrics(records[2])
    assert run.read_metrics() == records


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"step": 1}'])
def test_a_broken_line_of_metrics_is_named(run, line):
    run.metrics.write_text(f'{{"step": 1, "loss": 2.0}}\n{line}\n')
    with pytest.raises(DataError, match="line 2"):
        run.read_metrics()


def test_each_start_adds_its_command(run):
    run.write_metadata({"base": {"id": "a", "model": "a"}})
    run.write_metadata({"base": {"id": "b", "model": "b"}})
    content = run.read_metadata()
    assert content["base"]["id"] == "b"
    assert [set(command) for command in content["commands"]] == [{"command", "started", "versions"}] * 2
    run.metadata.write_text("{")
    with pytest.raises(DataError, match=r"run\.json"):
        run.read_metadata()


def test_the_base_is_noted_beside_the_adapter_and_in_the_metadata_of_full_fine_tuning(run):
    assert read_base_record(run.adapter) is None
    begin(run).adapter.mkdir()
    base = {"id": "a/b", "model": "a/b", "weight_hash": "12", "context": 32, "quantize": None}
    write_base_record(run.adapter, base)
    assert run.base_record() == {"id": "a/b", "model": "a/b", "weight_hash": "12", "context": 32}
    run.adapter.rename(run.model)
    run.write_metadata({"base": base})
    assert run.base_record() == {"id": "a/b", "model": "a/b"}
    run.write_metadata({})
    with pytest.raises(ModelError, match="does not say what the base was"):
        run.base_record()


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"id": "a", "model": "a"})])
def test_a_damaged_base_record_is_named(run, content):
    (run.path / "base.json").write_text(content)
    with pytest.raises(ModelError, match="damaged"):
        read_base_record(run.path)
