"""What a command left on the disk, to be compared with what it should have left."""

import hashlib
import json
import re
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import yaml

# What tells of time, memory or the command is different in each run.
_TIMES = {
    "tokens_per_second", "mfu", "seconds", "peak_memory_bytes", "started", "commands", "command",
    "seconds_per_step", "training", "measuring",
}  # fmt: skip


def write_recipe(path, base, documents, out, **changes):
    """Six steps with checkpoints over random weights in float32, with dropout so that random states matter."""
    content = {
        "model": str(base),
        "out": str(out),
        "context": {"target": 128, "method": "yarn"},
        "adapter": {"rank": 4, "dropout": 0.1, "embeddings": True},
        "data": {"train": [str(documents)], "validation": [str(documents)]},
        "training": {"steps": 6, "learning_rate": 1e-3, "warmup_steps": 1, "dtype": "float32", "save_every": 2},
        "memory": {"activation_checkpointing": False},
    }  # fmt: skip
    for name, value in changes.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def read_tree(folder):
    """What each file below a folder holds, as a hash, without what differs in each run; links as where they lead."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(_content(path)).hexdigest()
    return found


def _content(path):
    content = path.read_bytes()
    if path.suffix == ".html":  # which has times in its sentences
        return content[-8:]
    if path.suffix == ".npz":
        return _arrays(path)
    if path.suffix in (".json", ".jsonl"):
        try:
            records = (
                [json.loads(line) for line in content.splitlines()] if path.suffix == ".jsonl" else json.loads(content)
            )
        except (ValueError, RecursionError):
            return content
        content = json.dumps(_without_times(records)).encode()
    return content


def _arrays(path):
    try:
        with np.load(path) as arrays:
            about = json.loads(str(arrays["about"]))
            rest = b"".join(arrays[name].tobytes() for name in sorted(arrays) if name != "about")
    except (ValueError, OSError, BadZipFile):
        return path.read_bytes()
    return json.dumps(_without_times(about)).encode() + rest


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if key not in _TIMES}
    if isinstance(value, list):
        return [_without_times(each) for each in value if not str(each).startswith("cost: ")]  # of a verdict
    return value


def differences(found, expected):
    """What is not as expected, one line for each file."""
    return [
        f"{name}: {'missing' if name not in found else 'not expected' if name not in expected else 'other bytes'}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]


def is_hidden(name):
    return any(part.startswith(".") for part in Path(name).parts)


def halves(folder, expected):
    """Files under final names that are not whole. Of JSON lines, which grow, all but the last have to be."""
    found = read_tree(folder)
    wrong = []
    for name, content in found.items():
        if is_hidden(name) or name == "recipe.yaml":
            continue
        path = Path(folder, name)
        if path.suffix == ".jsonl":
            lines = path.read_text().split("\n")[:-1]
            wrong += [] if all(_is_json(line) for line in lines) else [name]
        elif re.search(r"checkpoints/checkpoint-\d+/", name) and name not in expected:
            wrong += [] if (path.parent / "state.json").is_file() else [name]
        elif path.name == "extend.json":  # how far it is, rewritten after each phase
            wrong += [] if _is_json(path.read_text()) else [name]
        elif expected.get(name) != content:
            wrong.append(name)
    return wrong


def _is_json(line):
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def leftovers(folder):
    """Files and folders that only a killed write leaves."""
    return [str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.name.endswith(".tmp")]
