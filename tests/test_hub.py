"""An id of a model stands wherever its directory can; what cannot be brought is refused in a sentence.

The hub is a server of this test's, on this machine. Its address and the cache are read when huggingface_hub is
imported, so each way to be connected is a process of its own, which is asked everything at once.
"""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxcompress import CompressError, hub

COMMIT, OLDER = "0f" * 20, "1e" * 20
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"values",
    "model.safetensors.index.json": b"{}",
    "tokenizer.model": b"pieces",
    "additional_chat_templates/tool.jinja": b"{{ m }}",
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "modeling_mine.py": b"raise SystemExit",
    "consolidated.safetensors": b"again",
    "onnx/config.json": b"{}",
    "README.md": b"",
}
ASK = """
import json, sys
from fxcompress import CompressError, hub
for arguments in json.load(sys.stdin):
    try:
        print(json.dumps(str(hub.resolve(*arguments))))
    except CompressError as error:
        print(json.dumps({"refused": str(error)}))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Speaks what snapshot_download asks for: commit of a revision, list of files, file."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        match re.fullmatch(r"/(?:api/models/)?(\w+/\w+)/(revision|tree|resolve)/(\w+)(?:/(.+))?", path):
            case re.Match() as found if found[1] == "org/good" and found[3] in ("main", "v1", COMMIT, OLDER):
                self.answer_good(found[2], found[3], found[4])
            case re.Match() as found if found[1] == "org/good":
                self.answer(404, error="RevisionNotFound")
            case re.Match() as found if found[1] == "org/gated":
                self.answer(403, error="GatedRepo")
            case re.Match() as found if found[1] == "org/broken":
                self.answer(200, b"<html>log in to the hotel's network</html>")
            case _:
                self.answer(404, error="RepoNotFound")

    def answer_good(self, what: str, revision: str, file: str | None) -> None:
        commit = {"main": COMMIT, "v1": OLDER}.get(revision, revision)
        held = FILES | UNWANTED
        if what == "revision":
            self.answer(200, json.dumps({"id": "org/good", "sha": commit, "siblings": []}).encode())
        elif what == "tree":
            listed = [{"type": "file", "path": p, "size": len(c), "oid": hash_of(c)} for p, c in held.items()]
            self.answer(200, json.dumps(listed).encode())
        else:
            self.answer(200, held[str(file)], commit)

    def answer(self, status: int, content: bytes = b"", commit: str = COMMIT, error: str = "") -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": error, "X-Repo-Commit": commit, "ETag": f'"{hash_of(content)}"'}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def hash_of(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def ask(cache: Path, *questions: tuple[object, ...], **environment: str) -> list[str | dict[str, str]]:
    """What ``resolve`` says in a process of that environment: a path, or {"refused": why}."""
    given = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    told = {"HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(questions),
        env=given | told,
        cwd=cache,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    Hub.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def online(server: str, cache: Path) -> dict[str, str | dict[str, str]]:
    questions = {
        "good": ("org/good",),
        "tag": ("org/good", "v1"),
        "gated": ("org/gated",),
        "missing": ("org/missing",),
        "no revision": ("org/good", "v9"),
        "broken": ("org/broken",),
        "cached only": ("org/other", None, True),
    }
    return dict(zip(questions, ask(cache, *questions.values(), HF_ENDPOINT=server), strict=True))


def test_an_id_is_brought_to_the_cache(online, cache):
    folder = Path(online["good"])
    assert folder == cache / "hub" / "models--org--good" / "snapshots" / COMMIT
    assert {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()} == FILES


def test_a_tag_is_another_snapshot(online):
    assert Path(online["tag"]).name == OLDER


def test_no_pickle_and_no_code_is_even_asked_for(online):
    brought = {path.partition(f"{COMMIT}/")[2] for path in Hub.asked if "/resolve/" in path}
    assert brought >= set(FILES)
    assert not brought & set(UNWANTED)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("gated", "org/gated is gated: ask for access on its page, then log in"),
        ("missing", "org/missing is neither a path nor a model on the hub"),
        ("no revision", "org/good is on the hub, but has no revision v9"),
        ("broken", "org/broken could not be brought from the hub: JSONDecodeError"),
        ("cached only", "org/other is neither a path nor whole in the cache"),
    ],
)
def test_what_cannot_be_brought_is_refused_in_a_sentence(online, what, said):
    assert said in online[what]["refused"]
    assert len(online[what]["refused"].splitlines()) == 1


def test_offline_the_cache_is_all_there_is(online, cache, server):
    before = len(Hub.asked)
    good, missing = ask(cache, ("org/good",), ("org/missing", "v1"), HF_ENDPOINT=server, HF_HUB_OFFLINE="1")
    assert good == online["good"]
    assert "org/missing (revision v1) is neither a path nor whole in the cache" in missing["refused"]
    assert "unset HF_HUB_OFFLINE" in missing["refused"]
    assert len(Hub.asked) == before


def test_a_hub_that_cannot_be_reached_leaves_the_cache(online, cache):
    good, missing = ask(cache, ("org/good",), ("org/missing",), HF_ENDPOINT="http://127.0.0.1:9")
    assert good == online["good"]
    assert "and the hub cannot be reached: ConnectError" in missing["refused"]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is filled by hand, without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--org--mine"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    return model / "snapshots" / COMMIT


def test_a_cache_filled_by_hand_is_found(cached):
    assert hub.resolve("org/mine") == cached
    assert hub.resolve("org/mine", "main") == cached
    assert hub.resolve("org/mine", COMMIT) == cached
    with pytest.raises(CompressError, match=r"org/mine \(revision v1\) is neither a path nor whole in the cache"):
        hub.resolve("org/mine", "v1")


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("revision", ["../../x", "/etc", "a/../../b", "", "-f", "a\0b", "a b", "ü"])
def test_a_revision_that_leads_out_of_the_cache_is_refused(revision):
    with pytest.raises(CompressError, match="is not a revision of org/mine"):
        hub.resolve("org/mine", revision)


def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    (tmp_path / "org" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("org/mine") == Path("org/mine")
    assert hub.resolve(tmp_path) == tmp_path
    with pytest.raises(CompressError, match="org/mine is a path and has no revision v1"):
        hub.resolve("org/mine", "v1")


@pytest.mark.parametrize(
    "model",
    ["/no/where", "./mine", "../mine", "a/b/c", "org/mine/", "a--b", "mine.git", "", "a\0b", "a" * 5000, "config.json"],
)
def test_what_is_neither_path_nor_id_is_not_looked_up(model, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CompressError, match="does not exist: a model is a directory") as error:
        hub.resolve(model)
    assert len(str(error.value)) < 400


def test_a_full_disk_is_said(monkeypatch):
    def fill(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", fill)
    with pytest.raises(
        CompressError, match=r"org/mine does not fit on the disk of the cache .*: No space left on device"
    ):
        hub.resolve("org/mine")


def test_a_repository_without_a_model_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path / "nothing"))
    with pytest.raises(CompressError, match="org/mine holds no model"):
        hub.resolve("org/mine")
