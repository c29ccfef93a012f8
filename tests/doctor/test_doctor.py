"""`lengthen doctor`: what it says of bases, adapters and runs, and that nothing is hidden or made up."""

import copy
import json
import re
import shutil

import pytest
from transformers import AutoConfig

from lengthen.doctor import examine_model
from lengthen.doctor.model import s2_of, scaling_of
from lengthen.errors import ModelError
from lengthen.models.resolve import resolve_model


def said(findings, subject):
    return " | ".join(finding.text for finding in findings if finding.subject == subject)


def test_a_base(base):
    findings = examine_model(str(base))
    assert said(findings, "context") == "32 tokens, from max_position_embeddings"
    assert said(findings, "layers") == "2 attend to the whole context, RoPE default: rope_theta 10000"
    assert said(findings, "scaling").startswith("takes linear, ntk, yarn, llama3, theta")
    assert said(findings, "S2") == "yes, in all attention layers; documents can be packed"
    assert said(findings, "embeddings") == "apart from the head"
    assert said(findings, "tokenizer") == "257 ids, 257 embedding rows"
    assert "begins texts with bos" in said(findings, "tokens")
    assert "no chat template" in said(findings, "template")
    assert not any(finding.is_problem for finding in findings)


def test_a_run(run):
    findings = examine_model(str(run))
    assert "run folder" in said(findings, "model")
    assert "made by lengthen" in said(findings, "adapter")
    assert "positions for 128 tokens" in said(findings, "adapter")


def test_problems_are_marked_and_the_rest_is_said_too(make_base, tokenizer):
    folder = make_base(
        "open", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, vocab_size=200
    )
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**content, "model_max_length": 10**30}))
    findings = examine_model(str(folder))
    problems = {finding.subject for finding in findings if finding.is_problem}
    assert {"context", "tokenizer"} <= problems
    assert "`base_context`" in said(findings, "context")
    assert "257 ids, 200 embedding rows" in said(findings, "tokenizer")
    assert said(examine_model(str(folder), context=128), "context").startswith("128 tokens, from stated by the user")


def test_the_command_and_its_json(base, tmp_path, lengthen_cli):
    code, out, _ = lengthen_cli("doctor", base, "--json", tmp_path / "d.json")
    assert code == 0
    assert "context     32 tokens" in out
    assert "transformers" in out
    found = json.loads((tmp_path / "d.json").read_text())["findings"]
    assert {"subject", "text", "is_problem"} == set(found[0])


def test_data_are_read_with_the_tokenizer_beside_the_adapter(base, run, tokenizer, tmp_path, lengthen_cli):
    folder = shutil.copytree(run / "adapter", tmp_path / "adapter")
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    own.save_pretrained(folder)
    (tmp_path / "a.txt").write_text("What ends here: <|im_end|>")
    code, out, _ = lengthen_cli("doctor", base, "--adapter", folder, "--data", tmp_path / "a.txt")
    assert code == 0
    assert "1 control tokens written in it" in out
    assert "258 ids" in out


def test_what_is_open_is_said_with_the_flag_that_settles_it(make_base, lengthen_cli):
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    folder = make_base("unclear", rope_parameters=rope)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**content, "model_max_length": 10**30}))
    _, out, _ = lengthen_cli("doctor", folder)
    assert "context.base in a recipe, or --base-context" in out


def test_what_is_no_model(run, tmp_path):
    with pytest.raises(ModelError):
        examine_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"holds an adapter.*give its base as the model"):
        resolve_model(
            str(shutil.copytree(run / "adapter", tmp_path / "lora", ignore=shutil.ignore_patterns("config.json")))
        )


def test_a_base_that_is_scaled_says_why_it_takes_no_other_method(make_base):
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8}
    scaling = said(examine_model(str(make_base("scaled", rope_parameters=rope))), "scaling")
    assert scaling.startswith("takes yarn, none; the base is scaled already with 'yarn'")


@pytest.mark.parametrize(
    ("kind", "s2", "scaling"),
    [
        ("llama", "yes, in all", True),
        ("cohere2", "yes, in 10 of 40", False),
        ("gemma2", "no: .*capped", True),
        ("gpt_oss", "no: .*sinks", True),
        ("mistral", "no: every attention layer", False),
        ("qwen3_moe", "yes, in all", True),
    ],
)
def test_s2_and_scaling_by_config(kind, s2, scaling):
    config = AutoConfig.for_model(kind)
    assert re.match(s2, s2_of(config)), s2_of(config)
    methods, _ = scaling_of(config)
    assert ("yarn" in methods) == scaling
    assert "none" in methods
