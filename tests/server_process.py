"""`lengthen serve tiny` as a process of its own, and clients of it, for tests."""

import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx
import openai

TOKEN = "a secret"


class Server:
    """A running server process, and clients of it."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "lengthen.cli", "serve", "tiny", "--dtype", "float32", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"LENGTHEN_TOKEN": TOKEN}
        )
        self.said, self.url = [], None
        while self.url is None:
            line = self.process.stderr.readline()
            assert line, "".join(self.said)
            self.said.append(line)
            found = re.match(r"serving (.*) at (http://\S+)/v1$", line)
            if found:
                self.names, self.url = found[1].split(", "), found[2]
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()
        self.http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=120)
        self.client = self.openai(openai.OpenAI)

    def openai(self, kind):
        return kind(base_url=f"{self.url}/v1", api_key=TOKEN, max_retries=0, timeout=120)

    def complete(self, model, prompt, count=20, **more):
        return self.client.completions.create(model=model, prompt=prompt, max_tokens=count, temperature=0, **more)

    def metric(self, name):
        found = re.findall(rf"^lengthen_{name}(?:{{[^}}]*}})? (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        return sum(map(float, found))

    def close(self):
        self.http.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def serving(*arguments):
    server = Server("--port", "0", *arguments)
    try:
        yield server
    finally:
        server.close()
