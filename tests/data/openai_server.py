"""A server that speaks OpenAI's chat protocol, for tests: `python openai_server.py` prints its port.

The name of the model says how it behaves; PARTS after a colon are what it does in turn, then again from the start:
good, chatty, empty, cut, nonsense, same, echo, busy, tool, html, refuse, die.
"""

import itertools
import json
import os
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_numbers = itertools.count()


def pair(prompt, number):
    first = re.search(r"The passage begins\.\s*(\S+(?: \S+){0,5})", prompt)[1]
    return f"What follows after {first!r} in version {number}?", f"The passage goes on after {first!r} ({number})."


def reply(behavior, prompt, number):
    question, answer = pair(prompt, number)
    texts = {
        "good": f"Question: {question}\nAnswer: {answer}\n\nIt has a second paragraph.",
        "chatty": f"<think>Question: or\nAnswer: what?</think>\nSure!\n**Question:** {question}\n**Answer:** {answer}",
        "empty": f"Question: {question}\nAnswer: ",
        "cut": f"Question: {question}\nAnswer: {answer} And then",
        "nonsense": "def double(x):\n    return 2 * x",
        "same": "Question: What is it about?\nAnswer: It is about many things.",
        "echo": f"Question: (the question)\nAnswer: {answer}",
        "tool": None,
    }
    return texts[behavior]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = next(_numbers)
        behaviors = body["model"].split(":")[-1].split(",")
        behavior = behaviors[number % len(behaviors)]
        if self.path != "/v1/chat/completions" or body["model"].startswith("unknown"):
            return self.send(404, {"error": {"message": f"there is no {body['model']} at {self.path}"}})
        if body["model"].startswith("closed") and self.headers["Authorization"] != "Bearer open sesame":
            return self.send(401, {"error": {"message": "no key, no reply"}})
        if behavior == "die":
            os._exit(1)
        if behavior == "busy":
            return self.send(503, {"error": {"message": "come again"}})
        if behavior == "html":
            return self.send(200, "<html>It works!</html>")
        text = reply(behavior, body["messages"][0]["content"], number)
        choice = {
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if behavior == "cut" else "stop",
        }
        return self.send(200, {"object": "chat.completion", "choices": [choice]})

    def send(self, status, content):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
