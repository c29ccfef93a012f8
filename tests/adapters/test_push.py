"""An export on the Hub, here a stand-in: what arrives is what was written, and the card's own lines load it."""

import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from hub_server import TOKEN, hub

import lengthen
from command_line import invoke
from lengthen.adapters.push import create_repository
from lengthen.errors import OutputError

NAME = "me/a-long-model"


def python(server, folder, *arguments, token=TOKEN):
    """Run Python as a user of that hub who has nothing in the cache."""
    settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": token}
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | settings
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pushed(run, tmp_path_factory):
    """The stand-in with the exported run, and the export."""
    folder = tmp_path_factory.mktemp("pushed")
    with hub() as server:
        command = ["-m", "lengthen.cli", "export", run, folder / "out", "--dtype", "float32", "--push", NAME]
        done = python(server, folder, *command)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [str(folder / "out"), f"{server.url}/{NAME}"]
        yield server, folder


def test_what_arrives_is_the_exported_folder(pushed):
    server, folder = pushed
    written = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= written.keys()
    assert server.repositories[NAME] == written


def test_no_path_of_this_machine_is_among_it(pushed, run, base):
    server, folder = pushed
    for content in server.repositories[NAME].values():
        for path in (run, base, folder):
            assert str(path).encode() not in content


def test_the_card_s_own_lines_load_it(pushed, run, tmp_path):
    server, _ = pushed
    card = server.repositories[NAME]["README.md"].decode()
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in lines.splitlines() if "from_pretrained" in line]) == 2
    ids = [[(7 * i) % 257 for i in range(100)]]
    more = f"import torch\ntorch.save(model(torch.tensor({ids})).logits.detach(), {str(tmp_path / 'logits.pt')!r})\n"
    done = python(server, tmp_path, "-c", lines + more, token="hf_may_read")
    assert done.returncode == 0, done.stderr
    model, _ = lengthen.load(str(run), "float32")
    with torch.no_grad():
        torch.testing.assert_close(
            torch.load(tmp_path / "logits.pt"), model(torch.tensor(ids)).logits, atol=1e-4, rtol=0
        )


def test_the_card_s_head_is_yaml(pushed):
    server, _ = pushed
    card = server.repositories[NAME]["README.md"].decode()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "transformers"
    assert "base_model" not in head, "a folder of this machine is no model of the hub"


def test_a_token_that_may_not_write_stops_it_before_the_merge(pushed, run, tmp_path):
    server, _ = pushed
    command = ["-m", "lengthen.cli", "export", run, tmp_path / "out", "--push", NAME]
    done = python(server, tmp_path, *command, token="hf_may_read")
    assert done.returncode == 2
    assert re.search(rf"can't push to {NAME}: .*401 Unauthorized.*HF_TOKEN", " ".join(done.stderr.split()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["alone", "a/b/c", "me/ a name", "me/.hidden."])
def test_what_is_no_repository_s_name(name):
    with pytest.raises(OutputError, match="name"):
        create_repository(name, endpoint="http://127.0.0.1:9")


def test_a_hub_that_is_not_there(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(OutputError, match=r"can't push to me/model.*check the name and the connection"):
        create_repository("me/model", endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--for", "vllm"], "only a merge"), (["--adapter-scale", "0.5"], "whole adapter"), ([], "is not a run folder")],
)
def test_what_can_not_be_pushed(arguments, message, run, base, tmp_path):
    model = run if arguments else base
    ran = invoke("export", model, tmp_path / "out", "--push", NAME, *arguments)
    assert message in " ".join(f"{ran.output} {ran.exception}".split())
    assert not (tmp_path / "out").exists()
