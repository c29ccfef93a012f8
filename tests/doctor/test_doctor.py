"""`lengthen doctor`: what it says of bases, adapters and runs, and that nothing is hidden or made up."""

import copy
import json
import re
import shutil

import pytest
from transformers import AutoConfig

from gguf_files import write_gguf
from lengthen.context import available_methods
from lengthen.doctor import examine_model
from lengthen.doctor.model import s2_of
from lengthen.errors import ModelError
from lengthen.models.resolve import resolve_model


def said(findings, subject):
    return " | ".join(finding.text for finding in findings if finding.subject == subject)


def test_a_base(base):
    findings = examine_model(str(base))
    assert said(findings, "context") == "32 tokens (max_position_embeddings)"
    assert said(findings, "layers") == "2 attend to the whole context, RoPE default: rope_theta 10000"
    assert said(findings, "scaling").startswith("takes linear, ntk, yarn, llama3, theta, longrope, none")
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
    assert "LORA of rank 4 on k_proj, o_proj, q_proj, v_proj; trained whole: embed_tokens" in said(findings, "adapter")


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
    assert said(examine_model(str(folder), context=128), "context").startswith("128 tokens (stated by the user)")


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
    assert "1 control token written in it" in out
    assert "258 ids, 257 embedding rows; some ids have no row; the adapter's own" in out


def test_where_the_context_comes_from_is_said_as_it_stands_in_the_files(make_base):
    folder = make_base("yarn")
    content = json.loads((folder / "config.json").read_text())
    # In the words of older files.
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "finetuned": True}
    old = {"rope_parameters": None, "rope_theta": 1234567.0, "rope_scaling": scaling}
    (folder / "config.json").write_text(json.dumps({**content, **old}))
    findings = examine_model(str(folder))
    assert said(findings, "context") == (
        "64 tokens (original maximum 16 times the yarn factor 4) | 16 tokens before its positions were scaled"
    )
    assert re.search(r"RoPE yarn: .*factor 4,.* finetuned true, rope_theta 1234567$", said(findings, "layers"))


def test_a_gguf_file_says_how_its_weights_are_stored(make_base, tmp_path):
    file = write_gguf(tmp_path / "a.gguf", make_base("one_more", vocab_size=258), {"rope.scaling.factor": 2.0})
    findings = examine_model(str(file))
    assert said(findings, "weights") == "stored as F32; dequantized when they are loaded"
    assert (
        said(findings, "context") == "32 tokens (max_position_embeddings) | 16 tokens before its positions were scaled"
    )


def test_what_is_open_is_said_with_the_flag_that_settles_it(make_base, lengthen_cli):
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    folder = make_base("unclear", rope_parameters=rope)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**content, "model_max_length": 10**30}))
    _, out, _ = lengthen_cli("doctor", folder)
    assert "context.base in a recipe, or --base-context" in out


def test_what_is_no_model(tmp_path):
    with pytest.raises(ModelError):
        examine_model(str(tmp_path))


@pytest.mark.parametrize("left_out", ["nothing", "config.json", "adapter_config.json"])
def test_an_adapter_is_called_one_and_its_base_is_named(left_out, base, run, tmp_path, lengthen_cli):
    """Lengthen's have a config of their own, those of other trainers none; some have a tokenizer too."""
    folder = shutil.copytree(run / "adapter", tmp_path / "lora", ignore=shutil.ignore_patterns(left_out))
    if left_out == "adapter_config.json":
        (folder / left_out).write_text("{ broken")
    code, out, said = lengthen_cli("doctor", folder)
    name = "its base" if left_out == "adapter_config.json" else base
    assert (code, out) == (2, "")
    assert said == (
        f"lengthen: {folder} is an adapter over {name}, and no model of its own; give {name} as the model, and this "
        "folder as --adapter\n"
    )
    code, _, said = lengthen_cli("eval", "perplexity", run / "adapter", "--data", "none.txt", "--context", 32)
    assert code == 2
    assert said.endswith(f"give the run folder {run}\n")


def test_a_whole_model_beside_its_adapter_is_a_model(base, run, tmp_path):
    folder = shutil.copytree(base, tmp_path / "both")
    shutil.copy(run / "adapter" / "adapter_config.json", folder)
    assert resolve_model(str(folder)).location == str(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_base_without_a_tokenizer_says_so(name, base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer.json", name))
    (finding,) = [each for each in examine_model(str(folder)) if each.subject == "tokenizer"]
    assert finding.is_problem
    assert finding.text.startswith("bare has no tokenizer: ")


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
    methods, _ = available_methods(config)
    assert ("yarn" in methods) == scaling
    assert "none" in methods
