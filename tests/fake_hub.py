# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A Hub small enough for tests: the few endpoints that pushing and loading a model use, on 127.0.0.1, in memory.

The real `huggingface_hub` client talks to it: set `HF_ENDPOINT` to its `url` in a process of its own, since the client
reads that once, at import, and `HF_HUB_DISABLE_XET=1`, since it does not speak that protocol.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id


LICENCES = set(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m openrail++ afl-3.0 "
    "bsl-1.0 bsd bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 agpl-3.0 gpl gpl-2.0 "
    "gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc mpl-2.0 ofl-1.1 unlicense llama2 llama3 llama3.1 llama3.2 llama3.3 gemma "
    "unknown other".split()
)
TASKS = "huggingface_hub.inference._generated.types"


def _is_id(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


# Field of a card -> what each text in it must be.
RULES: dict[str, Callable[[str], object]] = {
    "license": LICENCES.__contains__,
    "license_name": re.compile(r"[a-z0-9.-]+").fullmatch,
    "library_name": re.compile(r"[a-z0-9.-]+").fullmatch,
    "pipeline_tag": lambda task: find_spec(f"{TASKS}.{task.replace('-', '_')}"),
    "language": re.compile(r"[a-z]{2,3}(-[A-Za-z]+)?|code|multilingual").fullmatch,
    "tags": lambda tag: len(tag) <= 256,
    **dict.fromkeys(("base_model", "datasets", "new_version"), _is_id),
}
SINGLE = ("license_name", "library_name", "pipeline_tag", "new_version")


def metadata_errors(data: object) -> list[str]:
    """
    What the Hub would refuse of a card's metadata, by the rules that its documentation states; ids are checked by its
    client's own validator, tasks by the client's list of them.
    """
    if not isinstance(data, dict):
        return [f"the metadata is no mapping: {data!r}"]
    errors = [f"{key} is empty" for key, value in data.items() if value in (None, "")]
    for key in RULES.keys() & data.keys():
        values = data[key] if isinstance(data[key], list) and key not in SINGLE else [data[key]]
        errors += [
            f"{key}: {value!r}" for value in values if value and not (isinstance(value, str) and RULES[key](value))
        ]
    if data.get("license") == "other" and "license_name" not in data:
        errors.append("license_name is missing, and the licence is `other`")
    return errors


class FakeHub:
    def __init__(self, url: str):
        self.url = url
        self.repos: dict[str, dict[str, bytes]] = {}  # repository -> path -> content
        self.objects: dict[str, bytes] = {}  # sha256 -> content
        self.commits: list[dict] = []  # {"repo", "summary", "paths", "create_pr"}
        self.tokens: set[str | None] = set()  # Authorization headers of all writing requests

    def sha(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()

    # Each answer below is (status, what to send as JSON or bytes, headers).

    def create(self, body: bytes, query: str) -> tuple:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        known = repo in self.repos
        self.repos.setdefault(repo, {})
        return (409 if known else 200), {"url": f"{self.url}/{repo}"}, {}

    def validate(self, body: bytes, query: str) -> tuple:
        """As the Hub does before it takes a `README.md`."""
        block = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        if block is None:
            return 200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]}, {}
        errors = [{"message": text} for text in metadata_errors(yaml.safe_load(block[1]))]
        return (400 if errors else 200), {"errors": errors, "warnings": []}, {}

    def preupload(self, body: bytes, query: str, repo: str) -> tuple:
        def mode(path: str) -> str:
            return "lfs" if path.endswith((".safetensors", ".bin")) else "regular"

        files = [
            {"path": file["path"], "uploadMode": mode(file["path"]), "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": files}, {}

    def batch(self, body: bytes, query: str, repo: str) -> tuple:
        def action(oid: str) -> dict:
            return {"upload": {"href": f"{self.url}/objects/{oid}"}}

        objects = [{**file, "actions": action(file["oid"])} for file in json.loads(body)["objects"]]
        return 200, {"transfer": "basic", "objects": objects}, {}

    def put(self, body: bytes, query: str, oid: str) -> tuple:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "content does not match its name"}, {}
        self.objects[oid] = body
        return 200, {}, {}

    def commit(self, body: bytes, query: str, repo: str) -> tuple:
        lines = [json.loads(line) for line in body.splitlines()]
        files = {}
        for line in lines[1:]:
            value = line["value"]
            content = self.objects[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
            files[value["path"]] = content
        pull_request = "create_pr=1" in query
        self.commits.append(
            {"repo": repo, "summary": lines[0]["value"]["summary"], "paths": sorted(files), "create_pr": pull_request}
        )
        if not pull_request:
            self.repos[repo].update(files)
        url = {"pullRequestUrl": f"{self.url}/{repo}/discussions/1"} if pull_request else {}
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{self.sha(repo)}", "commitOid": self.sha(repo), **url}, {}

    def info(self, body: bytes, query: str, repo: str) -> tuple:
        siblings = [{"rfilename": path} for path in sorted(self.repos[repo])]
        return 200, {"id": repo, "sha": self.sha(repo), "siblings": siblings, "private": False, "tags": []}, {}

    def tree(self, body: bytes, query: str, repo: str) -> tuple:
        def entry(path: str, content: bytes) -> dict:
            return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

        return 200, [entry(*item) for item in sorted(self.repos[repo].items())], {}

    def resolve(self, body: bytes, query: str, repo: str, path: str) -> tuple:
        if path not in self.repos.get(repo, {}):
            return 404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"}
        content = self.repos[repo][path]
        return 200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.sha(repo)}


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("POST", r"/api/repos/create", FakeHub.create),
    ("POST", r"/api/validate-yaml", FakeHub.validate),
    ("POST", rf"/api/models/{REPO}/preupload/main", FakeHub.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", FakeHub.batch),
    ("PUT", r"/objects/(\w+)", FakeHub.put),
    ("POST", rf"/api/models/{REPO}/commit/main", FakeHub.commit),
    ("GET", rf"/api/models/{REPO}/tree/\w+", FakeHub.tree),
    ("GET", rf"/api/models/{REPO}(?:/revision/\w+)?", FakeHub.info),
    ("GET", rf"/{REPO}/resolve/\w+/(.+)", FakeHub.resolve),
)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Runs while the context lasts; what was pushed is then in `repos`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _, query = self.path.partition("?")
            verb = "GET" if self.command == "HEAD" else self.command
            for method, pattern, reply in ROUTES:
                if method == verb and (match := re.fullmatch(pattern, path)):
                    if method == "POST":
                        hub.tokens.add(self.headers.get("Authorization"))
                    status, content, headers = reply(hub, body, query, *match.groups())
                    break
            else:
                status, content, headers = 501, {"error": f"{self.command} {self.path} is not spoken here"}, {}
            if not isinstance(content, bytes):
                content, headers = json.dumps(content).encode(), headers | {"Content-Type": "application/json"}
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
