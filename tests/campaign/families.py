"""Kinds of bad input: each makes a command whose input is wrong in a way that follows from a seed.

A family is a function of (generator, folder, material) that writes into `folder` and returns the arguments. What a
change leaves right is no fault: a command may then do its work.
"""

import io
import json
import os
import shutil
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import yaml
from disk import write_recipe
from mutations import VALUES, change_bytes, change_json, change_safetensors, change_value
from safetensors.numpy import load_file

FAMILIES = {}


def family(make):
    FAMILIES[make.__name__] = make
    return make


class Material:
    """What is right, to be made wrong: a base, a run, a GGUF file, and documents of every kind."""

    def __init__(self, base, run, gguf, documents, pdf, epub, docx):
        self.base, self.run, self.gguf, self.documents = base, run, gguf, documents
        self.pdf, self.epub, self.docx = pdf, epub, docx


def write_epub(path):
    """A book of two chapters."""
    page = "<html xmlns='http://www.w3.org/1999/xhtml'><body><h2>{}</h2><p>caf\u00e9 and more</p></body></html>"
    package = (
        "<package xmlns='http://www.idpf.org/2007/opf'><manifest><item id='a' href='a.xhtml'/>"
        "<item id='b' href='b.xhtml'/></manifest><spine><itemref idref='a'/><itemref idref='b'/></spine></package>"
    )
    container = "<container><rootfiles><rootfile full-path='OEBPS/book.opf'/></rootfiles></container>"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("OEBPS/book.opf", package)
        for name in "ab":
            archive.writestr(f"OEBPS/{name}.xhtml", page.format(name))


def _copy(folder, source, name):
    target = shutil.copytree(source, folder / name)
    return target


def _tokenize(folder, base, path):
    return ["data", "tokenize", path, "--model", base, "--out", folder / "out.bin", "--quiet"]


def _rewrite(path, change, generator):
    path.write_bytes(change(path.read_bytes(), generator))


def _use(generator, model, folder, *more):
    """A command that reads a model."""
    return [
        *generator.choice([
            ("doctor", model, "--quiet"),
            ("generate", model, "--prompt", "abc", "--max-new-tokens", "2", "--quiet"),
            ("export", model, folder / "out", "--dtype", "float32", "--quiet"),
            ("data", "tokenize", folder / "text.txt", "--model", model, "--out", folder / "out.bin", "--quiet"),
        ]),
        *more,
    ]  # fmt: skip


def _text(folder):
    (folder / "text.txt").write_text("abc def " * 40)


@family
def recipes(generator, folder, material):
    path = write_recipe(
        folder / "recipe.yaml", material.base, material.documents, folder / "out", training={"steps": 1}
    )
    command = generator.choice(["plan", "plan", "train"])
    if generator.random() < 0.3:
        _rewrite(path, change_bytes, generator)
    elif generator.random() < 0.1:
        path.write_text(
            "a: &a [x]\n" + "".join(f"{c}: &{c} [{', '.join(['*' + chr(ord(c) - 1)] * 9)}]\n" for c in "bcdefghi")
        )
    elif generator.random() < 0.1:
        path.write_text("a: " + "[" * 5000)
    else:
        content = change_value(yaml.safe_load(path.read_text()), generator, generator.choice([1, 1, 2, 4]))
        path.write_text(yaml.safe_dump(content, allow_unicode=True))
    return [command, path, "--quiet"]


@family
def overrides(generator, folder, material):
    path = write_recipe(
        folder / "recipe.yaml", material.base, material.documents, folder / "out", training={"steps": 1}
    )
    keys = ["context.target", "context.method", "training.steps", "training.learning_rate", "adapter.rank",
            "data.train", "data.sequence_length", "seed", "out", "model", "training", "x", "", "a.b.c",
            "memory.preset", "parallel",
            "attention.group_size", "training.optimizer", "adapter.targets", "quantize",
            "data.validation",
            "attention.pattern", "training.schedule", "data.packing", "adapter.alpha",
            "training.batch_size"]  # fmt: skip
    value = generator.choice(
        [str(each) for each in VALUES] + ["[", "{a: b", "*x", "&a *a", "'", "-5", "1e400", "~", "0x10"]
    )
    value = value.replace("\0", "?")  # no argument of a process can hold one
    given = f"{generator.choice(keys)}{generator.choice(['=', '=', '=', '', '==', ':'])}{value[:2000]}"
    if given.startswith("-"):
        given = "x" + given
    return [generator.choice(["plan", "train"]), path, given, "--quiet"]


@family
def configs(generator, folder, material):
    base = _copy(folder, material.base, "base")
    _text(folder)
    _rewrite(base / "config.json", change_json, generator)
    return _use(generator, base, folder)


@family
def tokenizers(generator, folder, material):
    base = _copy(folder, material.base, "base")
    _text(folder)
    name = generator.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
    _rewrite(base / name, change_json, generator)
    if generator.random() < 0.2:
        (base / "chat_template.jinja").write_text(
            generator.choice(
                [
                    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
                    "{% for i in range(10**12) %}x{% endfor %}",
                    "{{",
                    "{% include '/etc/passwd' %}",
                ]
            )
        )
    return ["data", "tokenize", folder / "text.txt", "--model", base, "--out", folder / "out.bin", "--quiet"]


@family
def weights(generator, folder, material):
    base = _copy(folder, material.base, "base")
    _text(folder)
    path = base / "model.safetensors"
    if generator.random() < 0.2:
        index = {
            "metadata": {},
            "weight_map": dict.fromkeys(
                load_file(path), generator.choice(["../x", "/etc/passwd", "a.safetensors", 3, "", "model.safetensors"])
            ),
        }
        path.rename(base / "model-00001-of-00001.safetensors")
        (base / "model.safetensors.index.json").write_text(
            json.dumps(change_value(index, generator) if generator.random() < 0.5 else index)
        )
    else:
        _rewrite(path, change_safetensors, generator)
    return _use(generator, base, folder)


@family
def gguf(generator, folder, material):
    path = folder / "base.gguf"
    content = material.gguf.read_bytes()
    head = generator.choice([64, 512, 4096, len(content)])
    path.write_bytes(change_bytes(content[:head], generator) + content[head:])
    _text(folder)
    return _use(generator, path, folder)


@family
def adapters(generator, folder, material):
    run = _copy(folder, material.run, "run")
    _text(folder)
    adapter = run / "adapter"
    name = generator.choice(
        ["adapter_config.json", "adapter_config.json", "adapter_model.safetensors", "base.json", "config.json"]
    )
    _rewrite(adapter / name, change_safetensors if name.endswith(".safetensors") else change_json, generator)
    if generator.random() < 0.5:
        return _use(generator, run, folder)
    return ["generate", material.base, "--adapter", adapter, "--prompt", "abc", "--max-new-tokens", "2", "--quiet"]


@family
def runs(generator, folder, material):
    """A run folder that is to be gone on with, reported on, or used."""
    run = _copy(folder, material.run, "run")
    _text(folder)
    names = ["recipe.yaml", "run.json", "config.json", "metrics.jsonl", "tokenizer_config.json"]
    checkpoint = max((run / "checkpoints").iterdir())
    names += [
        f"checkpoints/{checkpoint.name}/{name}"
        for name in ("state.json", "optimizer.pt", "trainable.safetensors", "random-0.pt")
    ]
    name = generator.choice(names)
    change = (
        change_safetensors if name.endswith(".safetensors") else change_json if name.endswith(".json") else change_bytes
    )
    _rewrite(run / name, change, generator)
    recipe = folder / "recipe.yaml"
    content = yaml.safe_load((material.run / "recipe.yaml").read_text())
    recipe.write_text(yaml.safe_dump({**content, "out": str(run), "training": {**content["training"], "steps": 3}}))
    return generator.choice(
        [["train", recipe, "--resume", "--quiet"], ["report", run, "--quiet"], ["doctor", run, "--quiet"]]
    )


@family
def results(generator, folder, material):
    run = _copy(folder, material.run, "run")
    path = generator.choice(sorted((run / "evals").glob("*.json")))
    _rewrite(path, change_json, generator)
    if generator.random() < 0.3:
        return ["report", material.run, "--out", folder / "report.html", "--compare", path, "--quiet"]
    return ["report", run, "--quiet"]


@family
def json_documents(generator, folder, material):
    records = [{"text": "abc def " * generator.randint(1, 30), "id": number} for number in range(5)]
    kind = generator.choice([".jsonl", ".json", ".ipynb", ".csv"])
    if kind == ".jsonl":
        content = "\n".join(map(json.dumps, records)).encode()
    elif kind == ".ipynb":
        content = json.dumps(
            {"cells": [{"cell_type": "code", "source": ["a = 1"]}], "metadata": {}, "nbformat": 4}
        ).encode()
    elif kind == ".csv":
        content = b"id,text\n" + b"".join(f'{r["id"]},"{r["text"]}"\n'.encode() for r in records)
    else:
        content = json.dumps(records).encode()
    path = folder / f"books{kind}"
    path.write_bytes((change_bytes if kind in (".jsonl", ".csv") else change_json)(content, generator))
    return _tokenize(folder, material.base, path)


@family
def parquet(generator, folder, material):
    column = generator.choice([["abc def"] * 20, list(range(20)), [None] * 20, [[1]] * 20, [b"\xff"] * 20])
    table = pyarrow.table({generator.choice(["text", "text", "x"]): column})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    path = folder / "books.parquet"
    path.write_bytes(change_bytes(buffer.getvalue(), generator))
    return _tokenize(folder, material.base, path)


@family
def pdf(generator, folder, material):
    path = folder / "book.pdf"
    path.write_bytes(change_bytes(material.pdf.read_bytes(), generator))
    return _tokenize(folder, material.base, path)


def _change_zip(source, target, generator):
    """An archive of which one member is wrong, or its bytes are."""
    if generator.random() < 0.4:
        target.write_bytes(change_bytes(source.read_bytes(), generator))
        return
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        chosen = generator.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            if name == chosen:
                kind = generator.choice(["bytes", "drop", "entity", "deep", "empty", "bomb"])
                if kind == "drop":
                    continue
                content = {
                    "bytes": change_bytes(content, generator), "empty": b"", "deep": b"<a>" * 50_000,
                    "entity": b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + b"".join(
                        b'<!ENTITY %c "%s">' % (c, b"&%c;" % (c - 1) * 10) for c in range(98, 108)
                    ) + b'<!ENTITY f SYSTEM "file:///etc/passwd">]><a>&k;&f;</a>',
                    "bomb": b"<p>" + bytes(80 * 2**20),
                }[kind]  # fmt: skip
            new.writestr(name, content)


@family
def epub(generator, folder, material):
    _change_zip(material.epub, folder / "book.epub", generator)
    return _tokenize(folder, material.base, folder / "book.epub")


@family
def word(generator, folder, material):
    _change_zip(material.docx, folder / "book.docx", generator)
    return _tokenize(folder, material.base, folder / "book.docx")


@family
def html(generator, folder, material):
    content = b"<html><head><title>x</title></head><body><h1>One</h1><table><tr><td>a<td>b</table><ul><li>c</ul></html>"
    kind = generator.choice(["bytes", "bytes", "deep", "entities", "long", "attributes"])
    content = {
        "bytes": change_bytes(content, generator),
        "deep": generator.choice([b"<div>", b"<li>", b"<table><tr><td>", b"<b>"]) * 20_000 + b"text",
        "entities": b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><p>&a; &#99999999; &#0; &nosuch;</p>',
        "long": b"<p>" + b"x" * 3_000_000 + b" \xff",
        "attributes": b"<p " + b" ".join(b"a%d='<'" % number for number in range(20_000)) + b">text",
    }[kind]  # fmt: skip
    (folder / "page.html").write_bytes(content)
    return _tokenize(folder, material.base, folder / "page.html")


@family
def texts(generator, folder, material):
    suffix = generator.choice([".txt", ".txt.gz", ".txt.bz2", ".txt.xz", ".txt.zst", ".md"])
    path = folder / f"book{suffix}"
    content = b"abc def\n" * 100
    if suffix.count(".") == 2:
        content = _compressed(suffix.rpartition(".")[2], content)
    path.write_bytes(change_bytes(content, generator))
    return _tokenize(folder, material.base, path)


def _compressed(kind, content):
    import bz2
    import gzip
    import lzma

    import zstandard

    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}[kind](content)


@family
def token_files(generator, folder, material):
    path = folder / "tokens.bin"
    content = np.arange(400, dtype="<u2") % 257
    kind = generator.choice(["bytes", "ids", "odd", "empty", "wide"])
    path.write_bytes({
        "bytes": change_bytes(content.tobytes(), generator),
        "ids": (content + generator.choice([1, 300, 65000])).astype("<u2").tobytes(),
        "odd": content.tobytes()[:-1], "empty": b"", "wide": content.astype("<u4").tobytes(),
    }[kind])  # fmt: skip
    return generator.choice([
        ["data", "inspect", path, "--model", material.base, "--sequence-length", "64", "--quiet"],
        ["eval", "perplexity", material.run, "--data", path, "--context", "64", "--json", folder / "out.json"],
    ])  # fmt: skip


@family
def instructions(generator, folder, material):
    records = [
        {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]},
        {"instruction": "a", "input": "", "output": "b"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ]
    record = generator.choice(records)
    lines = [json.dumps(change_value(record, generator, generator.choice([0, 1, 2]))) for _ in range(4)]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines))
    return ["data", "inspect", path, "--model", material.base, "--kind", "instruct", "--template", "vicuna", "--quiet"]


@family
def paths(generator, folder, material):
    """Names that are no files, or lead elsewhere."""
    (folder / "circle.txt").symlink_to(folder / "circle.txt")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.bin")
    (folder / "folder.txt").mkdir()
    (folder / "folder.pdf").mkdir()
    name = generator.choice([
        folder / "circle.txt", folder / "gone.txt", folder / "folder.txt", folder / "folder.pdf",
        folder / ("x" * 300 + ".txt"), folder / "no" / "such.txt", "", "/dev/null", "/proc/self/mem", "~nobody/x.txt",
        "hf:", "hf:a", "hf:../x/y", "a\nb.txt",
        folder / "circle.txt" / "x.txt", "python-stdlib:", "python-stdlib:x", ".", "/", "/dev/full", "x.txt?", "?text",
    ])  # fmt: skip
    return generator.choice([
        _tokenize(folder, material.base, name),
        ["doctor", str(name), "--quiet"],
        ["generate", material.base, "--file", str(name), "--quiet"],
        ["generate", material.base, "--adapter", str(name), "--prompt", "a", "--quiet"],
        ["train", str(name), "--quiet"],
        ["export", material.run, str(name) if str(name) not in (".", "/", "") else "/dev/null/x", "--quiet"],
        ["report", str(name), "--quiet"],
        ["import", str(name), folder / "out", "--context", "64", "--quiet"],
    ])  # fmt: skip
