"""What the campaign's tests share: a process whose forks run commands, and commands that write."""

import hashlib
import json
import random
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

for room in ("evaluation", "serving"):  # results files for reports, adapters
    sys.path.append(str(Path(__file__).parents[1] / room))

from disk import write_recipe  # noqa: E402
from forks import Forks  # noqa: E402


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    with Forks(tmp_path_factory.mktemp("said")) as running:
        yield running


@pytest.fixture(scope="session")
def endpoint():
    """A server of OpenAI's chat protocol whose answers follow from the prompts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = hashlib.sha256(body["messages"][0]["content"].encode()).hexdigest()[:12]
            text = f"Question: What of {name}?\nAnswer: All of {name}."
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            content = json.dumps({"object": "chat.completion", "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


@pytest.fixture(scope="session")
def books(tmp_path_factory):
    """Four texts of 1,500 to 2,400 bytes, long enough for `extend` to train on and to measure."""
    folder, generator = tmp_path_factory.mktemp("books"), random.Random(0)
    words = ["".join(generator.choices("abcdefgh", k=generator.randint(2, 6))) for _ in range(30)]
    for index in range(4):
        sentences = [" ".join(generator.choices(words, k=9)) + "." for _ in range(100)]
        (folder / f"{index}.txt").write_text(" ".join(sentences)[: 1500 + 300 * index], encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small(make_base):
    return make_base("small", max_position_embeddings=256)


@pytest.fixture(scope="session")
def arguments_of(base, run, documents, endpoint, small, books):
    """A function that gives the arguments of a command that writes below a folder, which it makes."""

    def make(name, folder):
        folder.mkdir()
        out = folder / "out"
        if name == "train":
            return ["train", write_recipe(folder / "recipe.yaml", base, documents, out), "--resume"]
        if name == "extend":
            steps = ["training.steps=3", "training.save_every=1", "training.dtype=float32"]
            return ["extend", small, "--to", "512", "--data", books, "--out", out, *steps]
        if name == "export":
            return ["export", run, out, "--dtype", "float32", "--json", folder / "export.json"]
        if name == "data tokenize":
            file, json = folder / "tokens.bin", folder / "tokens.json"
            return ["data", "tokenize", documents, "--model", base, "--out", file, "--force", "--json", json]
        if name == "data qa":
            options = ["--endpoint", endpoint, "--model", "m", "--parallel", "1", "--passage-chars", "250"]
            return ["data", "qa", documents, *options, "--out", folder / "pairs.jsonl"]
        data = ["--data", documents, "--context", "32,64"]
        return ["eval", "perplexity", run, *data, "--json", folder / "result.json"]

    return make
