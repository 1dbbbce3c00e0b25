"""The corpus redpajama: two data sets of the hub, here of a server on this machine, become three texts."""

import gzip
import hashlib
import http.server
import json
import threading
import urllib.parse

import pytest

from wavepos_fairseq.data import DataError, prepare
from wavepos_fairseq.data.command import main
from wavepos_fairseq.data.redpajama import TRAIN, VALID

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
    assert json.loads((tmp_path / "data/redpajama/provenance.json").read_text())["source"] == "hub"


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
        ("file-1.json.gz", b"{}", ": no whole gzip file (Not a gzipped file"),
        ("file-1.json.gz", gzip.compress(b""), " is empty"),
        ("file-1.json.gz", gzip.compress(json_lines("content", ["x"]) + b"{"), ", line 2: not JSON ("),
        ("file-2.json.gz", gzip.compress(json_lines("code", ["x"])), ", line 1: accepted is an object whose text or"),
    ],
    ids=["cut off", "no gzip", "empty", "no JSON", "another field"],  # gzip has the time in it
)
def test_a_broken_file_is_refused_with_its_name(tmp_path, name, content, said):
    source = write(tmp_path / "hub", {**FILES, VALID: {**FILES[VALID], name: content}})
    with pytest.raises(DataError) as raised:
        prepare("redpajama", source, tmp_path / "data")
    assert f"/{name}{said}" in str(raised.value)
    assert not (tmp_path / "data").exists()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Paths that a server, which answers as the hub does, was asked for; requests go there and the cache is empty."""
    pytest.importorskip("transformers", reason="transformers is not installed (extra hf, Python 3.11)")
    from huggingface_hub import constants

    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, content, **headers):
            self.send_response(200)
            for name, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            asked.append(path)
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
                    return self.answer(files[name], ETag=f'"{oids[name]}"', X_Repo_Commit=COMMIT)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *unused):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield asked
    server.shutdown()
    server.server_close()


def test_the_hub_gives_the_same_texts_and_is_asked_for_no_other_files(hub, tmp_path):
    data = prepare("redpajama", None, tmp_path / "data")
    assert texts(data) == TEXTS
    fetched = {path.rpartition("/")[2] for path in hub if "/resolve/" in path}
    assert fetched == {*SAMPLE, "file-1.json.gz"}
    provenance = json.loads((data / "provenance.json").read_text())
    assert provenance["source"] == f"{TRAIN} at {COMMIT}, {VALID} at {COMMIT}"
    hub.clear()
    assert texts(prepare("redpajama", None, tmp_path / "other")) == TEXTS
    assert not [path for path in hub if "/resolve/" in path]  # the hub's library keeps what it has


@pytest.mark.parametrize("reason", ["offline", "unknown"])
def test_without_the_hub_one_line_says_what_to_give(hub, tmp_path, monkeypatch, capsys, reason):
    from huggingface_hub import constants

    if reason == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.delitem(FILES, TRAIN)
    assert main(["redpajama", "--dest", str(tmp_path / "data")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {TRAIN} cannot be had from the hub (")
    assert said.endswith("; --from FOLDER takes RedPajama-Data-1T-Sample and codeparrot-clean-valid as folders in it")
    assert not (tmp_path / "data").exists()
