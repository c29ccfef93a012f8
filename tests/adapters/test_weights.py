"""The weights in a PEFT folder, whoever wrote them and in whichever of the two formats."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lengthen
from lengthen.adapters.finite import check_adapter
from lengthen.adapters.folder import adapter_rows
from lengthen.adapters.weights import plain_name, read_shapes, read_tensors, weights_file
from lengthen.errors import ModelError
from lengthen.models.load import empty_model, load_config
from lengthen.models.resolve import resolve_model

TENSORS = {"base_model.model.a.lora_A.weight": torch.ones(2, 3), "base_model.model.b.weight": torch.arange(4.0)}


class Unsafe:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_both_formats_hold_the_same(kind, tmp_path):
    path = tmp_path / f"adapter_model.{kind}"
    save_file(TENSORS, path) if kind == "safetensors" else torch.save(TENSORS, path)
    assert weights_file(tmp_path) == path
    torch.testing.assert_close(read_tensors(path), TENSORS)
    assert read_shapes(tmp_path) == {key: tuple(value.shape) for key, value in TENSORS.items()}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files here")
def test_a_file_that_was_read_is_not_mapped(tmp_path):
    """What is mapped changes with the file, and leaves some memory behind when it goes."""
    save_file(TENSORS, tmp_path / "adapter_model.safetensors")
    tensors = read_tensors(tmp_path / "adapter_model.safetensors")
    assert "adapter_model.safetensors" not in Path("/proc/self/maps").read_text()
    assert tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "is not a state dict"),
        ({"step": 3}, "is not a state dict"),
        ({"a": Unsafe()}, "could run any code"),
        (b"PK\x03\x04 and no more", "are damaged"),
        (b"", "are damaged"),
    ],
)
def test_a_bin_file_of_something_else_is_refused_by_every_reader(content, message, base, tmp_path, capfd):
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    (tmp_path / "adapter_config.json").write_text("{}")
    readers = (check_adapter, read_shapes, lambda folder: lengthen.load(str(base), adapter=folder))
    for read in readers:
        with pytest.raises(ModelError, match=rf"adapter_model\.bin.*{message}"):
            read(tmp_path)
    assert "never run" not in capfd.readouterr().out


def test_a_folder_without_weights_is_named(base, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has neither adapter_model\.safetensors nor adapter_model\.bin"):
        lengthen.load(str(base), adapter=tmp_path)


@pytest.mark.parametrize("part", ["", ".modules_to_save", ".base_layer", ".default"])
def test_names_in_the_base(part):
    assert plain_name(f"base_model.model.model.embed_tokens{part}.weight") == "model.embed_tokens.weight"


def test_the_rows_of_embeddings_and_head_are_found_by_module_and_not_by_name(base, tmp_path):
    model = empty_model(load_config(resolve_model(str(base))))
    names = {"model.embed_positions.weight": 8, "model.layers.0.self_attn.embed.weight": 9}
    for ends, rows in (({}, None), ({"lm_head.weight": 259}, 259), ({"model.embed_tokens.weight": 260}, 260)):
        tensors = {f"base_model.model.{name}": torch.zeros(size, 2) for name, size in (names | ends).items()}
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        assert adapter_rows(tmp_path, model) == rows
