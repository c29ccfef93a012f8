"""Nothing that is read is run: what loads what in the sources, and files made to run something when loaded."""

import ast
import json
import os
import pickle
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lengthen
from lengthen.errors import DataError, LengthenError
from lengthen.upstream import chat_prompt

SOURCES = sorted(Path(lengthen.__file__).parent.rglob("*.py"))

# Calls that could run what a file holds, and where they may stand.
NOWHERE = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "marshal.load", "marshal.loads",
    "shelve.open", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "os.system", "os.popen",
    "joblib.load", "dill.load", "cloudpickle.load", "runpy.run_path",
    "subprocess.run", "subprocess.call", "subprocess.check_output", "os.execv", "os.execvp", "torch.jit.load",
    "torch.hub.load", "torch.package.PackageImporter", "etree.XSLT", "tarfile.open",
}  # fmt: skip
ONLY_IN = {
    "subprocess.Popen": {"serving/api/fine_tuning_jobs.py"},
    "urlopen": {"data/endpoint.py"},
    "Environment": {"templates.py"},  # of templates in the package
    "zipfile.ZipFile": {"data/text_files.py"},
}


@cache
def calls():
    """Every call in the package: file below it, name as written, node."""
    root = Path(lengthen.__file__).parent
    return [
        (str(path.relative_to(root)), ast.unparse(node.func), node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute))
    ]


def keywords(node):
    return {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_what_could_run_a_file_is_called_nowhere():
    found = [(file, name) for file, name, _ in calls() if name in NOWHERE]
    assert found == []
    assert [(file, name) for file, name, _ in calls() if file not in ONLY_IN.get(name, {file})] == []


def test_every_load_says_that_it_takes_weights_only():
    loads = [(file, keywords(node)) for file, name, node in calls() if name == "torch.load"]
    assert len(loads) >= 4
    assert [file for file, given in loads if given.get("weights_only") != "True"] == []
    arrays = [(file, keywords(node)) for file, name, node in calls() if name in ("np.load", "numpy.load")]
    assert [file for file, given in arrays if given.get("allow_pickle", "False") != "False"] == []


def test_no_model_brings_code():
    """`from_pretrained` of transformers is called in one place, which says so; peft's take configs and weights."""
    trusting = [(file, keywords(node)) for file, _, node in calls() if "trust_remote_code" in keywords(node)]
    assert [file for file, given in trusting if given["trust_remote_code"] != "False"] == []
    loads = {(file, name) for file, name, _ in calls() if name.endswith(".from_pretrained")}
    assert {name for _, name in loads} == {
        "kind.from_pretrained",
        "PeftModel.from_pretrained",
        "PeftConfig.from_pretrained",
    }
    assert [file for file, name in loads if name == "kind.from_pretrained"] == ["models/load.py"]


def test_shells_are_never_asked():
    assert [file for file, _, node in calls() if keywords(node).get("shell", "False") != "False"] == []


# -- files made to run something


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def ran(tmp_path):
    """The folder that code from a file would make."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def _refused(action, *parts):
    with pytest.raises(LengthenError) as caught:
        action()
    for part in parts:
        assert part in str(caught.value)


def test_pickled_weights_of_bases_and_adapters(base, run, tmp_path, ran):
    folder = shutil.copytree(base, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, "more": Runs(ran)}, folder / "pytorch_model.bin")
    _refused(lambda: lengthen.load(folder), "could run any code")
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({**tensors, "more": Runs(ran)}, adapter / "adapter_model.bin")
    _refused(lambda: lengthen.load(base, adapter=adapter), "could run any code")
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Runs(ran)))
    _refused(lambda: lengthen.load(base, adapter=adapter), str(adapter))


@pytest.mark.parametrize("name", ["optimizer.pt", "random-0.pt"])
def test_pickled_checkpoints(forks, base, documents, tmp_path, ran, name):
    from disk import write_recipe

    recipe = write_recipe(tmp_path / "recipe.yaml", base, documents, tmp_path / "out", training={"steps": 2})
    assert forks.run("train", recipe, "--quiet").code == 0
    shutil.rmtree(tmp_path / "out" / "adapter")
    content = (tmp_path / "recipe.yaml").read_text().replace("steps: 2", "steps: 3")
    recipe.write_text(content)
    torch.save({"state": Runs(ran), "param_groups": []}, tmp_path / "out" / "checkpoints" / "checkpoint-2" / name)
    ended = forks.run("train", recipe, "--resume", "--quiet")
    assert ended.is_refusal, ended.err


def test_code_beside_a_model_is_not_run(base, tmp_path, ran):
    folder = shutil.copytree(base, tmp_path / "base")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\nclass X: pass\n")
    config = json.loads((folder / "config.json").read_text())
    maps = {"AutoConfig": "evil.X", "AutoModelForCausalLM": "evil.X", "AutoTokenizer": ["evil.X", "evil.X"]}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": maps, "model_type": "new"}))
    _refused(lambda: lengthen.load(folder), "program code")
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": maps, "_attn_implementation": "evil/kernel"}))
    model, _ = lengthen.load(folder)  # its architecture is one of transformers'
    assert type(model).__module__.startswith("transformers.")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "change",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "evil"},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}},
        {"peft_type": "EVIL"},
        {"task_type": "../evil"},
        {"layer_replication": [[0, 10**9]]},
    ],
)
def test_code_named_by_an_adapter(run, base, tmp_path, ran, monkeypatch, change):
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    (adapter / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    monkeypatch.syspath_prepend(adapter)  # as where someone works in the folder
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with suppress(LengthenError):
        lengthen.load(base, adapter=adapter)


TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.mkdir('RAN') }}",
    "{{ raise_exception.__globals__['__builtins__']['__import__']('os').mkdir('RAN') }}",
    "{{ self._TemplateReference__context.eval_ctx.environment.loader }}{{ ().__class__.__base__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ (lipsum|attr('__globals__'))['os'].mkdir('RAN') }}",
    "{% for i in range(10**9) %}x{% endfor %}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_stay_in_their_sandbox(tokenizer, ran, template):
    import copy

    own = copy.deepcopy(tokenizer)
    own.chat_template = template.replace("RAN", str(ran))
    try:
        text = chat_prompt(own, [{"role": "user", "content": "a"}], tokenize=False)
    except DataError:
        return
    assert "root:" not in text
    assert "subprocess" not in text
