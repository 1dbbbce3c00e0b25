"""The corpus redpajama: two data sets of the hub, here of a server on this machine, become three texts."""

import gzip
import hashlib
import http.server
import json
import sys
import threading
import urllib.parse

import pytest

from wavepos_fairseq.data import DataError, prepare
from wavepos_fairseq.data.command import main
from wavepos_fairseq.data.redpajama import TRAIN, VALID
from wavepos_fairseq.lab import experiments

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SAMPLE = {"book_sample.jsonl": ["A café.\n", "two lines\nno end"], "arxiv_sample.jsonl": ["$x$\n"]}
CODE = [f"print({number})\n" for number in range(5)]


def json_lines(field, documents):
    return "".join(json.dumps({field: document, "meta": {}}) + "\n" for document in documents).encode()


FILES = {
    TRAIN: {**{name: json_lines("text", of) for name, of in SAMPLE.items()}, "README.md": b"no", "sample.py": b"no"},
    VALID: {"file-1.json.gz": gzip.compress(json_lines("content", CODE)), ".gitattributes": b"no"},
}
TEXTS = {"train": "$x$\nA café.\ntwo lines\nno end\n", "valid": "".join(CODE[::2]), "test": "".join(CODE[1::2])}


INSTEAD = (
    "; wavepos prepare redpajama --from FOLDER takes RedPajama-Data-1T-Sample and codeparrot-clean-valid as "
    "folders in it"
)


def write(folder, files=FILES):
    """A folder with both data sets, as a download leaves it."""
    for data_set, contents in files.items():
        of = folder / data_set.rpartition("/")[2]
        of.mkdir(parents=True)
        for name, content in contents.items():
            (of / name).write_bytes(content)
    return folder


def texts(data):
    return {split: (data / f"{split}.txt").read_text(encoding="utf-8") for split in TEXTS}


def test_a_folder_with_both_becomes_three_texts_and_is_made_once(tmp_path, capsys):
    source = write(tmp_path / "hub")
    for said in ("ready", "already prepared"):
        assert texts(prepare("redpajama", source, tmp_path / "data")) == TEXTS
        assert said in capsys.readouterr().out
    provenance = json.loads((tmp_path / "data/redpajama/provenance.json").read_text())
    assert provenance["source"] == "hub"
    files = [path for pattern in ("*/*.jsonl", "*/*.json.gz") for path in source.glob(pattern)]
    assert provenance["source_sha256"] == {
        path.relative_to(source).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.mark.parametrize("data_set, name", [(TRAIN, "c4_sample.jsonl"), (VALID, "file-1.json.gz")])
def test_what_was_made_of_other_files_is_refused(tmp_path, data_set, name):
    prepare("redpajama", write(tmp_path / "hub"), tmp_path / "data")
    other = write(tmp_path / "other", {**FILES, data_set: {**FILES[data_set], name: gzip.compress(b"")}})
    with pytest.raises(DataError, match="was made from something else"):
        prepare("redpajama", other, tmp_path / "data")


@pytest.mark.parametrize("there", [{}, {TRAIN: FILES[TRAIN]}, {VALID: FILES[VALID]}])
def test_what_a_folder_lacks_is_named(tmp_path, capsys, there):
    source = write(tmp_path / "hub", there)
    assert main(["redpajama", "--from", str(source), "--dest", str(tmp_path / "data")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    for data_set, pattern in ((TRAIN, "RedPajama-Data-1T-Sample/*.jsonl"), (VALID, "codeparrot-clean-valid/*.json.gz")):
        assert (f"no {pattern}" in said) == (data_set not in there)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("file-1.json.gz", FILES[VALID]["file-1.json.gz"][:-12], ": no whole gzip file (Compressed file ended"),
        ("file-1.json.gz", FILES[VALID]["file-1.json.gz"][:10] + b"\xff" * 9, ": no whole gzip file (Error -3 while"),
        ("file-1.json.gz", b"{}", ": no whole gzip file (Not a gzipped file"),
        ("file-1.json.gz", gzip.compress(b""), " is empty"),
        ("file-1.json.gz", gzip.compress(json_lines("content", ["x"]) + b"{"), ", line 2: not JSON ("),
        ("file-2.json.gz", gzip.compress(json_lines("code", ["x"])), ", line 1: accepted is an object whose text or"),
    ],
    ids=["cut off", "damaged", "no gzip", "empty", "no JSON", "another field"],  # gzip has the time in it
)
def test_a_broken_file_is_refused_with_its_name(tmp_path, name, content, said):
    source = write(tmp_path / "hub", {**FILES, VALID: {**FILES[VALID], name: content}})
    with pytest.raises(DataError) as raised:
        prepare("redpajama", source, tmp_path / "data")
    assert f"/{name}{said}" in str(raised.value)
    assert not (tmp_path / "data").exists()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that answers as the hub does; requests go there, and the cache is empty.

    As on the hub, a file is elsewhere, and the answer that says where tells its size and hash. asked: the paths of
    requests; lost: names of files that cannot be had.
    """
    pytest.importorskip("transformers", reason="transformers is not installed (extra hf, Python 3.11)")
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, content, status=200, **headers):
            self.send_response(status)
            for name, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            self.server.asked.append(path)
            for data_set, files in FILES.items():
                oids = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
                if path == f"/api/datasets/{data_set}/revision/main":
                    return self.answer(json.dumps({"id": data_set, "sha": COMMIT}).encode())
                if path == f"/api/datasets/{data_set}/tree/{COMMIT}":
                    tree = [
                        {"type": "file", "path": name, "size": len(content), "oid": oids[name]}
                        for name, content in files.items()
                    ]
                    return self.answer(json.dumps(tree).encode())
                name = path.rpartition("/")[2]
                if path == f"/datasets/{data_set}/resolve/{COMMIT}/{name}" and name in files:
                    told = {"X_Linked_Etag": f'"{oids[name]}"', "X_Linked_Size": len(files[name])}
                    where = f"http://localhost:{self.server.server_port}/elsewhere/{data_set}/{name}"
                    return self.answer(b"", 302, Location=where, X_Repo_Commit=COMMIT, **told)
                if path == f"/elsewhere/{data_set}/{name}" and name not in self.server.lost:
                    return self.answer(files[name])
            unknown = {"X_Error_Code": "RepoNotFound"} if path.startswith("/api/datasets/") else {}
            self.answer(b"", 404, **unknown)

        do_HEAD = do_GET

        def log_message(self, *unused):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.lost = [], set()
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    close_session()  # the next one heeds no_proxy
    yield server
    close_session()
    server.shutdown()
    server.server_close()


def test_the_hub_gives_the_same_texts_and_is_asked_for_no_other_files(hub, tmp_path):
    data = prepare("redpajama", None, tmp_path / "data")
    assert texts(data) == TEXTS
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {*SAMPLE, "file-1.json.gz"}
    provenance = json.loads((data / "provenance.json").read_text())
    assert provenance["source"] == f"{TRAIN} at {COMMIT}, {VALID} at {COMMIT}"
    hub.asked.clear()
    assert texts(prepare("redpajama", None, tmp_path / "other")) == TEXTS
    assert not [path for path in hub.asked if "/resolve/" in path]  # the hub's library keeps what it has


def test_an_interrupted_download_is_not_taken_for_whole_and_is_resumed(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setitem(FILES[VALID], "file-0.json.gz", gzip.compress(json_lines("content", ["0\n"])))
    hub.lost.add("file-1.json.gz")
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(DataError, match=f"^{VALID} cannot be had from the hub"):
            prepare("redpajama", None, tmp_path / "data")
        assert not (tmp_path / "data").exists()
    hub.asked.clear()
    hub.lost.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = texts(prepare("redpajama", None, tmp_path / "data"))
    documents = ["0\n", *CODE]
    assert found == {**TEXTS, "valid": "".join(documents[::2]), "test": "".join(documents[1::2])}
    assert {path.rpartition("/")[2] for path in hub.asked if "/elsewhere/" in path} == {"file-1.json.gz"}


@pytest.mark.parametrize(
    "reason, said",
    [
        ("offline", "offline mode is enabled"),
        ("unreachable", "Connection refused"),
        ("unknown", "'404 Not Found' for url 'http://127.0.0.1:"),
    ],
)
def test_without_the_hub_one_line_says_what_to_give(hub, tmp_path, monkeypatch, capsys, reason, said):
    from huggingface_hub import constants

    if reason == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif reason == "unreachable":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.delitem(FILES, TRAIN)
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    train = ["train", "llama2-7b", "ricker-e2-9", "--runs", str(tmp_path / "runs")]
    for command, words in ((main, ["redpajama", "--dest", str(tmp_path / "data")]), (experiments.main, train)):
        assert command(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {TRAIN} cannot be had from the hub (") and said in line
        assert line.endswith(INSTEAD)
        assert not (tmp_path / "data").exists()


def test_a_data_set_without_such_files_is_named(hub, tmp_path, monkeypatch):
    monkeypatch.setitem(FILES, VALID, {"README.md": b"moved"})
    with pytest.raises(DataError) as raised:
        prepare("redpajama", None, tmp_path / "data")
    assert str(raised.value) == f"{VALID} on the hub has no *.json.gz{INSTEAD}"


def test_without_the_extra_one_line_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("wavepos_fairseq.hf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    assert main(["redpajama", "--dest", str(tmp_path / "data")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    install = 'pip install "wavepos-fairseq[hf]", with Python 3.11 or newer'
    assert line in {f"error: this needs {one}: {install}{INSTEAD}" for one in ("transformers", "huggingface_hub")}
    assert not (tmp_path / "data").exists()
