"""A stand-in for a W&B server: what `wandb.init` and `wandb sync` ask of one, kept in memory.

It proves that our side speaks and orders things rightly, with the real `wandb` package and its real processes. It does
not prove how W&B's own server behaves. Requests and answers are those of wandb 0.31.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "0123456789abcdef" * 2 + "standin0"  # as long as W&B's keys are
ENTITY = "lab"
SOMEONE = {"id": "1", "entity": ENTITY, "username": "someone", "email": "a@b.c", "flags": "{}", "teams": {"edges": []}}
ANSWERS: dict[str, dict[str, Any]] = {  # to operations that are answered alike for every run
    "Viewer": {"viewer": SOMEONE},
    "ServerFeaturesQuery": {"serverInfo": {"features": []}},
    "RunStoppedStatus": {"project": {"run": {"stopped": False}}},
    "OrganizationCoreWeaveOrganizationID": {"entity": None},
    "ArtifactType": {"project": None},
}


@dataclass
class StoredRun:
    """One run as the server has it."""

    entity: str
    project: str
    id: str
    fields: dict[str, Any] = field(default_factory=dict)  # displayName, groupName, jobType, tags, config, …
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: dict[str, dict[str, bytes]] = field(default_factory=dict)  # name -> path in it -> content

    @property
    def state(self) -> str:
        """As W&B names it."""
        if self.exit_code is None:
            return "running"
        return "finished" if self.exit_code == 0 else "preempted" if self.preempting else "failed"


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that hang up: wandb-core does so when it ends."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Only what is wrong with the server itself is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class WandbServer:
    """A server on a free port of this machine, while the context lasts.

    `silent`: it accepts connections and never answers.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.runs: dict[tuple[str, str, str], StoredRun] = {}
        self.asked: list[str] = []  # names of the GraphQL operations
        self.unknown: list[str] = []  # those that this server has no answer to
        self.elsewhere: list[str] = []  # other addresses
        self.artifacts: dict[str, dict[str, Any]] = {}  # id -> name, run, files; while it is made
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def __enter__(self) -> WandbServer:
        handler = type("Handler", (Handler,), {"server_state": self})
        self.http = QuietServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.http.server_port}"

    def environment(self, folder: Path) -> dict[str, str]:
        """What makes the wandb package talk to this server, and keep its own files under `folder`."""
        names = ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
        kept = {name: str(Path(folder) / name.lower()) for name in names}
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "NETRC": str(Path(folder) / "netrc"), **kept}

    def run(self, entity: str | None, project: str, name: str) -> StoredRun:
        """The run of that name, made if it is new."""
        key = (entity or ENTITY, project or "uncategorized", name)
        return self.runs.setdefault(key, StoredRun(*key))

    def only(self) -> StoredRun:
        """The one run there is."""
        (run,) = self.runs.values()
        return run


class Handler(BaseHTTPRequestHandler):
    """Answers GraphQL, the file stream, and uploads."""

    server_state: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        """GraphQL and the file stream; whatever else the package reports is taken and forgotten."""
        content = self.body()
        if self.path == "/graphql":
            self.answer(self.graphql(json.loads(content)))
        elif self.path.endswith("/file_stream"):
            _, _, entity, project, run, _ = self.path.split("/")
            self.answer(self.stream(self.server_state.run(entity, project, run), json.loads(content)))
        else:
            self.server_state.elsewhere.append(self.path)
            self.answer({})

    def do_PUT(self) -> None:
        """A file of a run or an artifact."""
        content = self.body()
        kind, owner, name = re.fullmatch(r"/upload/(run|artifact)/([^/]+)/(.+)", self.path).groups()
        with self.server_state.lock:
            if kind == "artifact":
                self.server_state.artifacts[owner]["content"][name] = content
            else:
                next(run for run in self.server_state.runs.values() if run.id == owner).files[name] = content
        self.answer({})

    def body(self) -> bytes:
        """The request's body."""
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server_state.silent:
            self.server_state.stopping.wait()
        return content

    def answer(self, content: Any) -> None:
        """Sends JSON."""
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, run: StoredRun, body: dict[str, Any]) -> dict[str, Any]:
        """The file stream: lines of history at an offset, the summary, the end of the run."""
        with self.server_state.lock:
            for name, part in (body.get("files") or {}).items():
                lines = [json.loads(line) for line in part["content"]] if name.endswith((".jsonl", ".json")) else []
                if name == "wandb-history.jsonl":
                    run.history[part["offset"] : part["offset"] + len(lines)] = lines
                elif name == "wandb-summary.json":
                    run.summary = lines[-1]
            run.preempting = run.preempting or bool(body.get("preempting"))
            if body.get("complete"):
                run.exit_code = body.get("exitcode", 0)
        return {"exitcode": None, "limits": {}}

    def graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        """One operation, by its name."""
        query, values = body.get("query", ""), body.get("variables") or {}
        operation = (re.search(r"(?:query|mutation)\s+(\w+)", query) or [None, ""])[1]
        state = self.server_state
        with state.lock:
            state.asked.append(operation)
            if operation in ANSWERS:
                return {"data": ANSWERS[operation]}
            handle = getattr(self, f"on_{operation}", None)
            if handle is None:
                state.unknown.append(operation)
                return {"data": {}}
            return {"data": handle(values)}

    @staticmethod
    def bucket(run: StoredRun) -> dict[str, Any]:
        """What every answer about a run says of it."""
        shown = run.fields.get("displayName")
        return {"id": f"b-{run.id}", "name": run.id, "displayName": shown, "historyLineCount": len(run.history)}

    def on_RunResumeStatus(self, values: dict[str, Any]) -> dict[str, Any]:
        key = (values["entity"] or ENTITY, values["project"], values["name"])
        run = self.server_state.runs.get(key)
        model = {"id": "m", "name": key[1], "entity": {"id": "e", "name": key[0]}, "bucket": None}
        if run is not None:  # it goes on
            run.exit_code, run.preempting = None, False
            model["bucket"] = {
                **self.bucket(run),
                "tags": run.fields.get("tags"),
                "summaryMetrics": json.dumps(run.summary),
                "logLineCount": 0,
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
                "eventsTail": "[]",
                "config": run.fields.get("config") or "{}",
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": model}

    def on_UpsertBucket(self, values: dict[str, Any]) -> dict[str, Any]:
        run = self.server_state.run(values.get("entity"), values.get("project"), values["name"])
        run.fields.update({key: value for key, value in values.items() if value is not None})
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": run.entity}}
        bucket = {**self.bucket(run), "config": run.fields.get("config"), "sweepName": None, "project": project}
        return {"upsertBucket": {"bucket": {**bucket, "description": None}, "inserted": not run.history}}

    def on_CreateRunFiles(self, values: dict[str, Any]) -> dict[str, Any]:
        place = f"{self.server_state.url}/upload/run/{values['run']}"
        files = [{"name": name, "uploadUrl": f"{place}/{name}"} for name in values["files"]]
        return {"createRunFiles": {"runID": f"b-{values['run']}", "uploadHeaders": [], "files": files}}

    def on_CreateArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        given = values["input"]
        identity = f"artifact-{len(self.server_state.artifacts)}"
        made = {"name": given["artifactCollectionName"], "run": given["runName"], "content": {}}
        self.server_state.artifacts[identity] = made
        told = {"id": identity, "state": "PENDING", "digest": given["digest"]}
        return {"createArtifact": {"artifact": {**told, "artifactSequence": {"id": "s", "latestArtifact": None}}}}

    def on_CreateArtifactManifest(self, values: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.server_state.url}/upload/artifact/{values['artifactID']}/{values['name']}"
        manifest = {"id": values["artifactID"], "file": {"id": "f", "uploadUrl": url, "uploadHeaders": []}}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def on_CreateArtifactFiles(self, values: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for spec in values["input"]["artifactFiles"]:
            url = f"{self.server_state.url}/upload/artifact/{spec['artifactID']}/{spec['name']}"
            upload = {"uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append(
                {"node": {"storagePath": f"store/{spec['name']}", "artifact": {"id": spec["artifactID"]}, **upload}}
            )
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        artifact = self.server_state.artifacts[values["artifactID"]]
        run = next(run for run in self.server_state.runs.values() if run.id == artifact["run"])
        run.artifacts[artifact["name"]] = artifact["content"]
        return {"commitArtifact": {"artifact": {"id": values["artifactID"], "digest": "d"}}}
