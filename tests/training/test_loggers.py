"""Loggers by name: their files are in the run folder, and only the first process writes."""

import importlib.util

import pytest

from lengthen.errors import RecipeError
from lengthen.run_folder import RunFolder
from lengthen.training.loggers import LOGGERS, check_loggers, start_loggers


def test_what_is_not_there_is_refused(monkeypatch):
    with pytest.raises(RecipeError, match="unknown logger 'tensorbord'; did you mean 'tensorboard'"):
        check_loggers(["tensorbord"])
    with pytest.raises(RecipeError, match="unknown logger 'mlflow'; choose from tensorboard, wandb, trackio"):
        check_loggers(["mlflow"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in LOGGERS:
        with pytest.raises(RecipeError, match=f"report_to={name} needs the package {name}: .*lengthen.loggers.'"):
            check_loggers([name])
    check_loggers([])


def test_tensorboard_in_the_run_folder(make_run, base, monkeypatch, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    run = make_run(base, "reported", report_to=["tensorboard", "tensorboard"])
    (file,) = (run / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([record["loss"] for record in RunFolder(run).read_metrics()])
    assert [event.step for event in events.Scalars("train/learning_rate")] == [1, 2]
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_where_the_user_says(monkeypatch, tmp_path):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    (logger,) = start_loggers(["tensorboard"], tmp_path / "run")
    logger.finish()
    assert [path.name.split(".")[0] for path in (tmp_path / "mine").iterdir()] == ["events"]
    assert not (tmp_path / "run").exists()


def test_wandb_without_a_key_says_what_to_set(make_run, base, monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="wandb is missing: pip install 'lengthen[loggers]'")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    with pytest.raises(RecipeError, match=r"report_to=wandb: .* WANDB_MODE=offline"):
        make_run(base, "unlogged", report_to=["wandb"])
