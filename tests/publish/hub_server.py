"""A hub on loopback: real HTTP, real commits, real large-file storage, and faults on demand.

It answers what huggingface_hub 2.4 asks, with the fields that it needs; trees and hashes are computed from
the bytes that arrived.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OWNER = "me"


@dataclass
class Commit:
    """One commit: its files by path, as bytes."""

    sha: str
    title: str
    author: str
    files: dict[str, bytes]
    large: set[str]


@dataclass
class Hub:
    """What the server holds. `faults` maps a step (`whoami`, `create`, `preupload`, `batch`, `put`, `commit`,
    `tree`, `info`, `part`, `complete`) to what happens at its next calls: a status, `cut` (the connection is
    closed), `lost` (it is done, but the answer never arrives), `empty` (an answer without what is needed),
    None (nothing).
    """

    role: str = "write"
    repos: dict[str, list[Commit]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    stored: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[int | str | None]] = field(default_factory=lambda: defaultdict(list))
    calls: Counter[str] = field(default_factory=Counter)
    between: Any = None  # called once before the next commit: somebody else's push
    after: Any = None  # called once after it
    cards: dict[str, Any] = field(default_factory=dict)  # front matter, as the Hub has it
    ignored: set[str] = field(default_factory=set)  # by a .gitignore of the repository
    part_size: int | None = None  # bytes: large files come in parts of it
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)

    def head(self, repo: str) -> Commit:
        """The newest commit."""
        return self.repos[repo][-1]

    def push(self, repo: str, files: dict[str, bytes], title: str, author: str = "somebody") -> Commit:
        """Add a commit on top."""
        before = self.repos[repo][-1] if self.repos[repo] else None
        merged = {**(before.files if before else {}), **files}
        sha = hashlib.sha1(f"{title}{len(self.repos[repo])}{sorted(merged)}".encode()).hexdigest()
        large = {path for path in merged if _is_large(path)}
        self.repos[repo].append(Commit(sha, title, author, merged, large))
        return self.repos[repo][-1]


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".parquet"))


def serve(hub: Hub) -> tuple[ThreadingHTTPServer, str]:
    """Start the server in a thread; returns it and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._chunked()
        if "Authorization" in self.headers:
            self.hub.tokens.add(self.headers["Authorization"].removeprefix("Bearer "))
        path = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        for pattern, step, wanted in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method in wanted:
                self.hub.calls[step] += 1
                fault = self.hub.faults[step].pop(0) if self.hub.faults[step] else None
                if fault == "cut":
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault == "empty":
                    self._send(200, {})
                    return
                if isinstance(fault, int):
                    self._send(fault, {"error": f"fault {fault}"})
                    return
                self.lost = fault == "lost"
                getattr(self, f"_{step}")(**found.groupdict())
                return
        self._send(404, {"error": f"no such page {path}"})

    def _chunked(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, data: Any = None, headers: dict[str, str] | None = None) -> None:
        if getattr(self, "lost", False):
            self.lost = False
            self.close_connection = True
            self.connection.close()
            return
        body = data if isinstance(data, bytes) else json.dumps(data).encode() if data is not None else b""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self._send(404, {"error": "not found"}, {"X-Error-Code": code})

    def _key(self, kind: str, repo: str) -> str:
        return f"datasets/{repo}" if kind == "datasets" else repo

    def _commit_of(self, key: str, revision: str) -> Commit | None:
        for commit in reversed(self.hub.repos.get(key, ())):
            if revision in ("main", commit.sha):
                return commit
        return None

    def _whoami(self) -> None:
        if "Authorization" not in self.headers:
            self._send(401, {"error": "Invalid username or password."})
            return
        token = {"displayName": "t", "role": self.hub.role}
        if self.hub.role == "fineGrained":
            token["fineGrained"] = {"scoped": [], "global": []}
        self._send(200, {"name": OWNER, "type": "user", "orgs": [], "auth": {"accessToken": token}})

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization'] or OWNER}/{asked['name']}"
        key = self._key("datasets" if asked.get("type") == "dataset" else "models", repo)
        known = key in self.hub.repos
        if not known:
            self.hub.repos[key] = []
            self.hub.push(key, {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit", OWNER)
            if asked.get("visibility") == "private":
                self.hub.private.add(key)
        self._send(409 if known else 200, {"url": f"http://{self.headers['Host']}/{key}"})

    def _info(self, kind: str, repo: str, revision: str | None = None) -> None:
        commit = self._commit_of(self._key(kind, repo), revision or "main")
        if commit is None:
            self._missing("RepoNotFound")
            return
        self._send(
            200,
            {
                "id": repo,
                "sha": commit.sha,
                "cardData": self.hub.cards.get(repo),
                "siblings": [],
                "tags": [],
                "private": self._key(kind, repo) in self.hub.private,
            },
        )

    def _tree(self, kind: str, repo: str, revision: str, below: str | None = None) -> None:
        commit = self._commit_of(self._key(kind, repo), revision)
        if commit is None:
            self._missing("RevisionNotFound")
            return
        start = f"{below}/" if below else ""
        paths = [path for path in sorted(commit.files) if path.startswith(start)]
        if below and not paths:
            self._missing("EntryNotFound")
        elif self.query.get("recursive", [""])[0].lower() == "true":
            self._send(200, [self._entry(commit, path) for path in paths])
        else:
            names = dict.fromkeys(start + path.removeprefix(start).partition("/")[0] for path in paths)
            self._send(200, [self._entry(commit, path) for path in names])

    def _entry(self, commit: Commit, path: str) -> dict[str, Any]:
        """A file, or the folder that files lie in."""
        content = commit.files.get(path)
        if content is None:
            return {"type": "directory", "path": path, "size": 0, "oid": _blob(path.encode())}
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
        if path in commit.large:
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def _paths(self, kind: str, repo: str, revision: str) -> None:
        commit = self._commit_of(self._key(kind, repo), revision)
        assert commit is not None
        asked = parse_qs(self.body.decode()).get("paths", [])
        known = [path for path in asked if any(f"{each}/".startswith(f"{path}/") for each in commit.files)]
        self._send(200, [self._entry(commit, path) for path in known])

    def _validate(self) -> None:
        self._send(200, {})

    def _preupload(self, kind: str, repo: str, revision: str) -> None:
        if self.hub.role == "read":
            self._send(403, {"error": "Forbidden"})
            return
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if _is_large(each["path"]) else "regular",
                "shouldIgnore": each["path"] in self.hub.ignored,
            }
            for each in json.loads(self.body)["files"]
        ]
        self._send(200, {"files": files})

    def _batch(self, kind: str | None, repo: str) -> None:
        objects = []
        for each in json.loads(self.body)["objects"]:
            answer: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.stored:
                here = f"http://{self.headers['Host']}"
                answer["actions"] = {"upload": {"href": f"{here}/storage/{each['oid']}"}}
                if self.hub.part_size is not None:
                    count = -(-each["size"] // self.hub.part_size)
                    header = {f"{n:05d}": f"{here}/part/{each['oid']}/{n}" for n in range(1, count + 1)}
                    header["chunk_size"] = str(self.hub.part_size)
                    upload = {"href": f"{here}/complete/{each['oid']}", "header": header}
                    answer["actions"] = {"upload": upload}
            objects.append(answer)
        self._send(200, {"transfer": "basic", "objects": objects})

    def _put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._send(400, {"error": "checksum"})
            return
        self.hub.stored[oid] = self.body
        self._send(200)

    def _part(self, oid: str, number: str) -> None:
        self.hub.parts[(oid, int(number))] = self.body
        self._send(200, headers={"ETag": f'"{number}"'})

    def _complete(self, oid: str) -> None:
        own = sorted(key for key in self.hub.parts if key[0] == oid)
        self.body = b"".join(self.hub.parts[key] for key in own)
        self._put(oid)

    def _commit(self, kind: str, repo: str, revision: str) -> None:
        key = self._key(kind, repo)
        if self.hub.between is not None:
            action, self.hub.between = self.hub.between, None
            action()
        lines = [json.loads(line) for line in self.body.decode().splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        head = self.hub.head(key)
        if header.get("parentCommit") not in (None, head.sha):
            self._send(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        commit = self.hub.push(key, files, header["summary"], OWNER)
        for line in lines:
            if line["key"] == "deletedFile":
                commit.files.pop(line["value"]["path"])
        if self.hub.after is not None:
            action, self.hub.after = self.hub.after, None
            action()
        url = f"http://{self.headers['Host']}/{key}/commit/{commit.sha}"
        self._send(200, {"commitUrl": url, "commitOid": commit.sha, "success": True})

    def _commits(self, kind: str, repo: str, revision: str) -> None:
        listed = [
            {
                "id": commit.sha,
                "title": commit.title,
                "message": "",
                "date": "2026-01-01T00:00:00.000Z",
                "authors": [{"user": commit.author}],
            }
            for commit in reversed(self.hub.repos[self._key(kind, repo)])
        ]
        self._send(200, listed)

    def _resolve(self, kind: str | None, repo: str, revision: str, path: str) -> None:
        commit = self._commit_of(f"datasets/{repo}" if kind else repo, revision)
        if commit is None:
            self._missing("RepoNotFound")
            return
        if path not in commit.files:
            self._send(404, {"error": "x"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.sha})
            return
        content = commit.files[path]
        etag = hashlib.sha256(content).hexdigest() if path in commit.large else _blob(content)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"', "Content-Length": str(len(content))}
        self._send(200, content, headers)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_REPO = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"/api/whoami-v2", "whoami", ("GET",)),
    (r"/api/repos/create", "create", ("POST",)),
    (r"/api/validate-yaml", "validate", ("POST",)),
    (_REPO, "info", ("GET",)),
    (_REPO + r"/revision/(?P<revision>[^/]+)", "info", ("GET",)),
    (_REPO + r"/tree/(?P<revision>[^/]+)(?:/(?P<below>.+))?", "tree", ("GET",)),
    (_REPO + r"/paths-info/(?P<revision>[^/]+)", "paths", ("POST",)),
    (_REPO + r"/preupload/(?P<revision>[^/]+)", "preupload", ("POST",)),
    (_REPO + r"/commit/(?P<revision>[^/]+)", "commit", ("POST",)),
    (_REPO + r"/commits/(?P<revision>[^/]+)", "commits", ("GET",)),
    (r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch", ("POST",)),
    (r"/storage/(?P<oid>[0-9a-f]{64})", "put", ("PUT",)),
    (r"/part/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)", "part", ("PUT",)),
    (r"/complete/(?P<oid>[0-9a-f]{64})", "complete", ("POST",)),
    (
        r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        "resolve",
        ("GET", "HEAD"),
    ),
)
