"""A small server of the OpenAI form, over real HTTP, that misbehaves where it is told to."""

import json
import math
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
# (text that is asked, number of the request) → (status, body as bytes)
Answer = Callable[[str, int], tuple[int, bytes]]


def reply(text: str, top: dict[str, float] | None = None) -> bytes:
  """Makes a reply: its text, and probabilities of first tokens if there are to be some."""
  content = None
  if top is not None:
    tokens = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in top.items()]
    content = [
      {"token": text, "logprob": tokens[0]["logprob"], "bytes": None, "top_logprobs": tokens}
    ]
  body: Body = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "judge",
    "choices": [
      {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": None if content is None else {"content": content, "refusal": None},
      }
    ],
    "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
  }
  return json.dumps(body).encode()


class Server:
  """Serves until it is stopped; counts requests, and how many there were at one time.

  Attributes:
    asked: what was asked, in the order of arrival.
    keys: the authorisation of each request.
    most: requests at one time.
  """

  def __init__(self, answer: Answer):
    """Starts on a port that is free."""
    self.asked: list[Body] = []
    self.keys: list[str | None] = []
    self.most = self._now = 0
    self._lock = threading.Lock()
    server = self

    class Handler(BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server._lock:
          server.asked.append(body)
          server.keys.append(self.headers.get("Authorization"))
          number = len(server.asked)
          server._now += 1
          server.most = max(server.most, server._now)
        try:
          status, data = answer(body["messages"][0]["content"], number)
        finally:
          with server._lock:
            server._now -= 1
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "1")  # the client waits no longer than it is told to
        self.end_headers()
        self.wfile.write(data)

      def log_message(self, *args: object) -> None:
        pass

    self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._http.daemon_threads = True
    self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
    self._thread.start()

  @property
  def url(self) -> str:
    """Its address."""
    return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

  def stop(self) -> None:
    """Ends it, whatever is being answered."""
    self._http.shutdown()
    self._http.server_close()
