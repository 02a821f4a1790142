"""A hub on this machine: as much of the Hugging Face hub's interface as its client asks for."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping

COMMIT = hashlib.sha1(b"persona_jax").hexdigest()
REPO = "toys/tiny"


@contextlib.contextmanager
def serve(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
  """Serves one repository, as a model's and as a data set's; yields address and paths asked for."""
  asked: list[str] = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
      self.answer(False)

    def do_GET(self) -> None:
      self.answer(True)

    def answer(self, with_body: bool) -> None:
      asked.append(self.path)
      path = self.path.split("?")[0].replace("/api/datasets/", "/api/models/")
      path = path.removeprefix("/datasets")
      resolve = f"/{REPO}/resolve/"
      if path.startswith(resolve) and path.removeprefix(resolve).partition("/")[2] in files:
        body = files[path.removeprefix(resolve).partition("/")[2]]
        self.reply(200, body, with_body, ETag=f'"{hashlib.sha256(body).hexdigest()}"')
      elif path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
        about = {"id": REPO, "sha": COMMIT, "private": False, "cardData": {"license": "cc0-1.0"}}
        about["siblings"] = [{"rfilename": name} for name in files]
        self.reply(200, json.dumps(about).encode(), with_body)
      elif path.startswith(f"/api/models/{REPO}/tree/"):
        tree = [
          {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
          for name, body in files.items()
        ]
        self.reply(200, json.dumps(tree).encode(), with_body)
      else:
        self.reply(404, b"{}", with_body, **{"X-Error-Code": "RepoNotFound"})

    def reply(self, status: int, body: bytes, with_body: bool, **headers: str) -> None:
      self.send_response(status)
      for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": len(body), **headers}.items():
        self.send_header(name, str(value))
      self.end_headers()
      if with_body:
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f"http://127.0.0.1:{server.server_port}", asked
  finally:
    server.shutdown()
    server.server_close()
