"""The claims of wavepos_fairseq/data, on a synthetic WikiText, a local server, and the real WikiText-2 if there."""

import hashlib
import http.server
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from conftest import Forked
from pyarrow import parquet as pq

from wavepos_fairseq import data
from wavepos_fairseq.data import command
from wavepos_fairseq.data.lock import one_at_a_time
from wavepos_fairseq.lab import alibi_release, experiments
from wavepos_fairseq.plugin import streams

ROOT = Path(__file__).resolve().parents[1]
WIKITEXT2 = Path(os.environ.get("WAVEPOS_WIKITEXT2") or ROOT.parent / "shared/data/wikitext-2")

# Three train lines, one of them blank as in WikiText; <unk> stands in the text, "heron" in valid only.
CORPUS = {
    "train": " = Lobsters = \n \n The lobster is a <unk> of the sea , 0 @.@ 5 m long . \n",
    "valid": " The lobster is long . \n",
    "test": " The <unk> of the sea . \n The <unk> is long . \n",
}
TEXT = {
    "train": "The well-known heron sleeps.\n\nThe heron eats, the heron sleeps; the heron isn't well-known.\r\n",
    "valid": "The heron eats 1,000.5 frogs.\n",
    "test": "Frogs eat the heron?\n",
}


@pytest.fixture(scope="module", autouse=True)
def preprocess_in_forks():
    """fairseq-preprocess runs in forks, which saves fairseq's start; the demo of another process has a real one."""
    run, python = subprocess.run, sys.executable

    def in_a_fork(command, **words):
        if command[0] != python or "fairseq_cli.preprocess" not in command:
            return run(command, **words)
        process = Forked(command[command.index("fairseq_cli.preprocess") :], words["stdout"], words["cwd"])
        process.wait()
        return process

    pytest.importorskip("fairseq_cli.preprocess")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", in_a_fork)
        yield


def tokens_of(text):
    """Tokens as fairseq counts them: the words, and an end of each line."""
    return len(text.split()) + text.count("\n")


def zipped(entries, **attributes):
    """Bytes of a zip archive; `entries` are (name, content) pairs, `attributes` are set on the last ZipInfo."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, content) in enumerate(entries):
            info = zipfile.ZipInfo(name)
            if number == len(entries) - 1:
                for attribute, value in attributes.items():
                    setattr(info, attribute, value)
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


ENTRIES = [(f"wikitext-2/wiki.{split}.tokens", text) for split, text in CORPUS.items()]
ARCHIVE = zipped(ENTRIES)
SYNTHETIC = data.wikitext.WikiText(
    name="wikitext-2",
    md5=hashlib.md5(ARCHIVE).hexdigest(),
    train_lines=CORPUS["train"].count("\n"),
    tokens={split: tokens_of(text) for split, text in CORPUS.items()},
    types=len(set(CORPUS["train"].split()) | {"<unk>", "</s>"}),
    train_files=2,
    sha256={split: hashlib.sha256(CORPUS[split].encode()).hexdigest() for split in ("valid", "test")},
)


def parquet(text, column="text", **options):
    """Bytes of a parquet file as on the hub: a row a line, '' where it is blank."""
    buffer = io.BytesIO()
    rows = [line if line.strip() else "" for line in text.splitlines(keepends=True)]
    pq.write_table(pyarrow.table({column: rows}), buffer, **{"row_group_size": 1000, **options})
    return buffer.getvalue()


def parquet_files(corpus, train_files):
    """The hub's files by name; the first of train's, if there are several, have a line each."""
    lines = corpus["train"].splitlines(keepends=True)
    train = [*lines[: train_files - 1], "".join(lines[train_files - 1 :])]
    files = {f"train-{number:05}-of-{train_files:05}": text for number, text in enumerate(train)}
    files.update({"validation-00000-of-00001": corpus["valid"], "test-00000-of-00001": corpus["test"]})
    return {f"{name}.parquet": parquet(text) for name, text in files.items()}


def write_files(folder, contents, pattern):
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in contents.items():
        (folder / pattern.format(split)).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


class Handler(http.server.BaseHTTPRequestHandler):
    """The path chooses the behaviour; the server keeps (path, Range) of every request."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        behaviour = self.path.split("/")[1]
        if behaviour == "missing" or self.headers["User-Agent"].startswith("Python-urllib"):
            return self.send_error(404)
        moved = {
            "moved": "/good/archive.zip",
            "endless": "/endless/archive.zip",
            "tofile": f"file://{__file__}",
            "toftp": "ftp://127.0.0.1:9/archive.zip",
            "tonowhere": "http://[",
        }
        if behaviour in moved:
            self.send_response(302)
            self.send_header("Location", moved[behaviour])
            return self.end_headers()
        good = self.server.parquet.get(self.path.split("/")[-1], ARCHIVE)
        body = {"wrong": ARCHIVE[::-1], "page": b"<html>This dataset has moved.</html>"}.get(behaviour, good)
        if behaviour == "nonsense":
            return self.wfile.write(b"\0" * 100)
        start = int(re.match(r"bytes=(\d+)-$", wanted).group(1)) if wanted and behaviour != "norange" else 0
        if start and behaviour == "unsatisfied":
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            return self.end_headers()
        if start >= len(body) or (start and behaviour == "unsaid"):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            said = {"lying": start, "otherrange": 7, "norangesaid": None}.get(behaviour, start)
            self.send_header("Content-Range", f"bytes {said}-{len(body) - 1}/{len(body)}")
            start = 3 if behaviour == "lying" else start  # the bytes are others than it says
            body = body[: start + 50] if behaviour == "pieces" else body
        if behaviour != "nolength":
            self.send_header("Content-Length", "x" if behaviour == "badlength" else str(len(body) - start))
        self.end_headers()
        dropped = behaviour in ("stuck", "nolength") or (behaviour in ("drop", "stall") and not start)
        self.wfile.write(body[start : len(body) // 2] if dropped else body[start:])
        if behaviour == "stall" and not start:
            self.wfile.flush()
            self.server.stop_stalling.wait(20)


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        yield patch


@pytest.fixture(scope="module")
def running_server(module_patch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.stop_stalling, server.parquet = [], threading.Event(), {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.stop_stalling.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running_server):
    running_server.requests.clear()
    running_server.parquet = parquet_files(CORPUS, SYNTHETIC.train_files)
    running_server.folder = lambda behaviour: f"http://127.0.0.1:{running_server.server_port}/{behaviour}/"
    running_server.url = lambda behaviour: running_server.folder(behaviour) + "archive.zip"
    return running_server


def use_synthetic(patch):
    for corpora in (data.WIKITEXT, data.data_bin.CORPORA):
        patch.setitem(corpora, "wikitext-2", SYNTHETIC)


@pytest.fixture
def synthetic(monkeypatch):
    """WikiText-2 is the synthetic corpus."""
    use_synthetic(monkeypatch)


@pytest.fixture(scope="module")
def wikitext_bin(running_server, module_patch, tmp_path_factory):
    """The synthetic corpus, downloaded and prepared over what a killed run left."""
    dest = tmp_path_factory.mktemp("dest")
    write_files(dest / ".wikitext-2.partial/text", {"train": "left by a killed run\n"}, "{}.tokens")
    write_files(dest / ".wikitext-2.partial/data-bin", {"dict": "killed 1\n"}, "{}.txt")
    with pytest.MonkeyPatch.context() as patch:
        use_synthetic(patch)
        here = f"http://127.0.0.1:{running_server.server_port}"
        patch.setattr(data.wikitext, "MIRRORS", [f"{here}/missing/", f"{here}/good/"])
        return data.prepare("wikitext-2", dest=dest)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("own"), TEXT, "{}.txt")


@pytest.fixture(scope="module")
def word_bin(text_folder, tmp_path_factory):
    return data.prepare("text", text_folder, tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def bpe_bin(text_folder, tmp_path_factory):
    return data.prepare("text", text_folder, tmp_path_factory.mktemp("bpe"), bpe=10)


def forbid_work(monkeypatch):
    """Any attempt to make a data-bin fails the test."""
    monkeypatch.setattr(data.data_bin, "make_data_bin", lambda *args: pytest.fail("work was done"))


def provenance(data_bin):
    return json.loads((data_bin / "provenance.json").read_text(encoding="utf-8"))


# What comes out


def test_data_bin_has_the_files_fairseq_reads_and_nothing_is_left_beside_it(wikitext_bin):
    files = {path.name for path in wikitext_bin.iterdir()}
    assert files == {*data.data_bin.DATA_BIN_FILES, "preprocess.log"}
    assert {path.name for path in wikitext_bin.parent.iterdir()} == {"wikitext-2", ".downloads"}


def test_provenance_says_what_the_data_bin_was_made_from(wikitext_bin):
    made = provenance(wikitext_bin)
    assert (made["name"], made["source"], made["bpe"]) == ("wikitext-2", "wikitext-2-v1.zip", None)
    assert made["sha256"] == {split: hashlib.sha256(text.encode()).hexdigest() for split, text in CORPUS.items()}
    assert made["lines"] == {split: text.count("\n") for split, text in CORPUS.items()}
    assert made["tokens"] == SYNTHETIC.tokens
    assert made["types"] == SYNTHETIC.types


@pytest.mark.parametrize("name", ["provenance.json", "preprocess.log"])
def test_no_absolute_path_is_written_down(wikitext_bin, word_bin, text_folder, name):
    for data_bin in (wikitext_bin, word_bin):
        content = (data_bin / name).read_text(encoding="utf-8")
        assert str(data_bin.parent) not in content
        assert str(text_folder.parent) not in content


def test_data_bin_reads_back_as_the_text(wikitext_bin):
    from fairseq.data import Dictionary, data_utils

    dictionary = Dictionary.load(str(wikitext_bin / "dict.txt"))
    for split, text in CORPUS.items():
        dataset = data_utils.load_indexed_dataset(str(wikitext_bin / split), dictionary)
        lines = [" ".join(dictionary[index] for index in line) for line in dataset]
        assert lines == [" ".join([*line.split(), "</s>"]) for line in text.splitlines()]


def test_fairseqs_symbols_in_a_users_text_are_text_and_named_with_file_and_line(tmp_path, capsys):
    from fairseq.data import Dictionary, data_utils

    symbols = ["<s>", "<pad>", "</s>", "<unk>"]
    assert Dictionary().symbols == symbols
    train = "A heron.\n" + "".join(3 * f"A heron, {symbol}heron{symbol}.\n" for symbol in symbols)
    own = write_files(tmp_path / "own", {"train": train, "valid": "A heron <pad>.\n", "test": "A heron.\n"}, "{}.txt")
    data_bin = data.prepare("text", own, tmp_path)
    dictionary = Dictionary.load(str(data_bin / "dict.txt"))
    for split in streams.SPLITS:
        for line in data_utils.load_indexed_dataset(str(data_bin / split), dictionary):
            assert line[-1] == dictionary.eos() and (line[:-1] >= len(symbols)).all()
    said = capsys.readouterr().out
    assert f"{own}/train.txt, line 2: <s> becomes < s >, and is not fairseq's symbol\n" in said
    assert f"{own}/valid.txt, line 1: <pad> becomes < pad >, " in said and "test.txt, line" not in said


@pytest.mark.skipif(not WIKITEXT2.is_dir(), reason=f"no WikiText-2 in {WIKITEXT2}; WAVEPOS_WIKITEXT2 names its folder")
def test_the_real_wikitext2_has_the_published_counts(tmp_path, capsys):
    made = provenance(data.prepare("wikitext-2", WIKITEXT2, tmp_path))
    assert made["tokens"] == {"train": 2_088_628, "valid": 217_646, "test": 245_569}
    assert (made["lines"]["train"], made["types"]) == (36_718, 33_278)
    assert "all counts are right" in capsys.readouterr().out


def test_other_text_under_a_wikitext_name_is_an_error_with_both_counts():
    counts = streams.Counts({"train": 36_718}, {"train": 2_088_628, "valid": 217_646, "test": 245_568}, 33_278)
    with pytest.raises(data.DataError, match="test tokens: expected 245,569, found 245,568"):
        data.check_counts("wikitext-2", counts)


def test_the_commands_module_imports_nothing_outside_the_standard_library():
    code = """if True:
        import sys
        before = set(sys.modules)  # what an environment's .pth files import
        import wavepos_fairseq.data.command
        added = {name.split(".")[0] for name in set(sys.modules) - before} - {"wavepos_fairseq"}
        heavy = {name for name in added if "-packages" in str(getattr(sys.modules.get(name), "__file__", ""))}
        sys.exit(str(heavy) if heavy else 0)"""
    assert subprocess.run([sys.executable, "-c", code], cwd=str(ROOT)).returncode == 0


# Again, and after an accident


def test_second_call_does_nothing(synthetic, wikitext_bin, monkeypatch, tmp_path, capsys):
    forbid_work(monkeypatch)
    folder = write_files(tmp_path, CORPUS, "wiki.{}.tokens")
    before = {path: path.stat().st_mtime_ns for path in wikitext_bin.iterdir()}
    assert data.prepare("wikitext-2", dest=wikitext_bin.parent) == wikitext_bin
    assert data.prepare("wikitext-2", folder, wikitext_bin.parent) == wikitext_bin
    assert before == {path: path.stat().st_mtime_ns for path in wikitext_bin.iterdir()}
    assert capsys.readouterr().out.count("already prepared") == 2


def test_data_bin_of_another_text_or_bpe_is_not_overwritten(text_folder, word_bin, monkeypatch, tmp_path):
    forbid_work(monkeypatch)
    other = write_files(tmp_path / "other", {**TEXT, "valid": "Another heron.\n"}, "{}.txt")
    for source, bpe in ((other, None), (text_folder, 10)):
        with pytest.raises(data.DataError, match=f"{re.escape(str(word_bin))} was made from something else"):
            data.prepare("text", source, word_bin.parent, bpe)


def test_a_folder_that_is_no_complete_data_bin_is_not_trusted(tmp_path):
    write_files(tmp_path / "demo", {"dict": "a 1\n"}, "{}.txt")
    with pytest.raises(data.DataError, match="no complete data-bin .*train.bin"):
        data.prepare("demo", dest=tmp_path)


def test_unreadable_provenance_is_an_error_that_names_it(tmp_path):
    write_files(tmp_path / "demo", dict.fromkeys(data.data_bin.DATA_BIN_FILES, "[]"), "{}")
    with pytest.raises(data.DataError, match="provenance.json is not readable"):
        data.prepare("demo", dest=tmp_path)


def test_interrupted_preprocess_leaves_nothing_behind(synthetic, monkeypatch, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(data.data_bin.subprocess, "run", interrupted)
    folder = write_files(tmp_path / "source", CORPUS, "wiki.{}.tokens")
    with pytest.raises(KeyboardInterrupt):
        data.prepare("wikitext-2", folder, tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_failing_preprocess_shows_its_last_lines_and_leaves_nothing_behind(synthetic, monkeypatch, tmp_path, capsys):
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho to stdout\necho 'No module named fairseq_cli' >&2\nexit 3\n")
    stub.chmod(0o755)
    monkeypatch.setattr(data.data_bin.sys, "executable", str(stub))
    folder = write_files(tmp_path / "source", CORPUS, "wiki.{}.tokens")
    assert command.main(["wikitext-2", "--from", str(folder), "--dest", str(tmp_path / "dest")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: fairseq-preprocess failed with status 3:")
    assert "to stdout" in error and "No module named fairseq_cli" in error
    assert not (tmp_path / "dest").exists()


def test_a_second_process_waits_for_the_first(tmp_path, capsys):
    entered = threading.Event()

    def second():
        with one_at_a_time(tmp_path / "lock"):
            entered.set()

    with one_at_a_time(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(timeout=10)
    assert entered.is_set()
    assert "waiting for another process" in capsys.readouterr().out


def test_the_words_and_the_characters_of_wikitext_are_downloaded_by_one_process_at_a_time(server, synthetic, tmp_path):
    (tmp_path / "text").mkdir()
    source, downloads = data.WIKITEXT["wikitext-2"], tmp_path / "downloads"
    thread = threading.Thread(target=source.write_tokens, args=(server.url("good"), {}, tmp_path / "text", downloads))
    with one_at_a_time(downloads / ".wikitext-2.lock"):
        thread.start()
        thread.join(timeout=0.2)
        assert thread.is_alive() and not server.requests
    thread.join(timeout=10)
    assert server.requests and (tmp_path / "text" / "train.tokens").is_file()


@pytest.mark.long
def test_a_large_train_is_preprocessed_by_several_workers_into_the_same_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    text = "".join(f"The heron {n % 7} eats frogs,\u2028 {n % 11} of them é.\n" + "\n" * (n % 3) for n in range(90))
    write_files(tmp_path / "own", dict.fromkeys(streams.SPLITS, text), "{}.txt")
    made = []
    for size in (64 << 20, 1000):
        monkeypatch.setattr(data.data_bin, "BYTES_PER_WORKER", size)
        made.append(data.prepare("text", tmp_path / "own", tmp_path / str(size)))
    said = capsys.readouterr().out
    assert "workers: 1\n" in said and "workers: 3\n" in said
    assert all((made[0] / name).read_bytes() == (made[1] / name).read_bytes() for name in data.data_bin.DATA_BIN_FILES)


def test_many_take_turns_though_each_takes_its_lock_away(tmp_path):
    lock, inside, most = tmp_path / "lock", [], []

    def one():
        for _ in range(20):
            with one_at_a_time(lock):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80 and not lock.exists()


# Download


def fetch(server, tmp_path, *behaviours):
    return data.WIKITEXT["wikitext-2"].fetch_zip([server.url(behaviour) for behaviour in behaviours], tmp_path)


@pytest.mark.parametrize("behaviour", ["good", "moved"])
def test_download_gives_the_archive(synthetic, server, tmp_path, behaviour):
    archive = fetch(server, tmp_path, behaviour)
    assert archive == tmp_path / "wikitext-2.zip"
    assert archive.read_bytes() == ARCHIVE
    assert list(tmp_path.iterdir()) == [archive]


def test_a_verified_archive_is_not_downloaded_again(synthetic, server, tmp_path):
    (tmp_path / "wikitext-2.zip").write_bytes(ARCHIVE)
    fetch(server, tmp_path, "good")
    assert server.requests == []


@pytest.mark.parametrize("behaviour", ["drop", "stall"])
def test_dropped_or_stalled_connection_is_resumed_where_it_broke(synthetic, server, tmp_path, monkeypatch, behaviour):
    monkeypatch.setattr(data.download, "TIMEOUT_SECONDS", 0.5)
    assert fetch(server, tmp_path, behaviour).read_bytes() == ARCHIVE
    assert [wanted for _, wanted in server.requests] == [None, f"bytes={len(ARCHIVE) // 2}-"]


def test_part_of_an_earlier_run_is_continued(synthetic, server, tmp_path):
    (tmp_path / "wikitext-2.zip.part").write_bytes(ARCHIVE[:100])
    assert fetch(server, tmp_path, "good").read_bytes() == ARCHIVE
    assert server.requests == [("/good/archive.zip", "bytes=100-")]


@pytest.mark.parametrize("behaviour", ["norange", "otherrange", "lying"])
def test_server_without_ranges_or_with_wrong_ones_is_read_from_the_start(synthetic, server, tmp_path, behaviour):
    (tmp_path / "wikitext-2.zip.part").write_bytes(ARCHIVE[:100])
    assert fetch(server, tmp_path, behaviour).read_bytes() == ARCHIVE


def test_part_that_is_already_whole_is_taken(synthetic, server, tmp_path):
    (tmp_path / "wikitext-2.zip.part").write_bytes(ARCHIVE)
    assert fetch(server, tmp_path, "good").read_bytes() == ARCHIVE
    assert server.requests == [("/good/archive.zip", f"bytes={len(ARCHIVE)}-")]  # answered with 416


@pytest.mark.parametrize("size", [100, len(ARCHIVE), len(ARCHIVE) + 100])
def test_wrong_bytes_of_an_earlier_run_are_thrown_away(synthetic, server, tmp_path, size):
    (tmp_path / "wikitext-2.zip.part").write_bytes(b"x" * size)
    assert fetch(server, tmp_path, "good").read_bytes() == ARCHIVE
    assert [wanted for _, wanted in server.requests] == [f"bytes={size}-", None]


@pytest.mark.parametrize(
    "behaviour, size, said",
    [
        ("unsatisfied", 100, f"100 of {len(ARCHIVE)} bytes"),
        ("unsaid", 100, "does not tell the file's length"),
        ("pieces", 100, f"{100 + 50 * data.download.ATTEMPTS_PER_MIRROR} of {len(ARCHIVE)} bytes"),
        ("nolength", 0, "does not tell the file's length"),
    ],
)
def test_without_a_checksum_a_file_is_taken_at_the_length_that_is_told_and_no_other(
    server, tmp_path, behaviour, size, said
):
    part, archive = tmp_path / "archive.zip.part", tmp_path / "archive.zip"
    part.write_bytes(ARCHIVE[:size])
    with pytest.raises(data.DataError, match=said):
        data.download.fetch_file(archive, [server.url(behaviour)], Path.stat, "", by_length=True)
    assert not archive.exists() and len(part.read_bytes()) >= size
    data.download.fetch_file(archive, [server.url("good")], Path.stat, "", by_length=True)
    assert archive.read_bytes() == ARCHIVE and not part.exists()


@pytest.mark.parametrize("behaviour", ["unsatisfied", "otherrange"])
def test_without_a_checksum_too_many_bytes_or_others_are_no_part_of_the_file(server, tmp_path, behaviour):
    size = len(ARCHIVE) + 100 if behaviour == "unsatisfied" else 100
    (tmp_path / "archive.zip.part").write_bytes(b"x" * size)
    archive = data.download.fetch_file(tmp_path / "archive.zip", [server.url(behaviour)], Path.stat, "", by_length=True)
    assert archive.read_bytes() == ARCHIVE


BAD = ["wrong", "page", "missing", "stuck", "nolength", "badlength", "nonsense"]
BAD += ["endless", "tofile", "toftp", "tonowhere"]


@pytest.mark.parametrize("bad", BAD)
def test_next_mirror_is_tried_after_a_bad_one(synthetic, server, tmp_path, bad):
    assert fetch(server, tmp_path, bad, "good").read_bytes() == ARCHIVE


def test_error_names_each_mirror_with_its_reason_and_both_checksums(synthetic, server, tmp_path):
    with pytest.raises(data.DataError) as raised:
        fetch(server, tmp_path, "missing", "page", "wrong", "stuck")
    lines = str(raised.value).splitlines()[1:]
    assert [line.split(": ")[0].strip() for line in lines] == [
        server.url(behaviour) for behaviour in ("missing", "page", "wrong", "stuck")
    ]
    assert "404" in lines[0]
    assert f"expected MD5 {SYNTHETIC.md5}, found {hashlib.md5(ARCHIVE[::-1]).hexdigest()}" in lines[2]
    assert f"connection ended after {len(ARCHIVE) // 2:,} of {len(ARCHIVE):,} bytes" in lines[3]
    assert not (tmp_path / "wikitext-2.zip").exists()


@pytest.mark.parametrize(
    "behaviour, reason", [("endless", "infinite loop"), ("tofile", "not allowed"), ("toftp", "not allowed")]
)
def test_redirection_without_an_end_or_out_of_http_is_one_line_and_leaves_nothing(
    synthetic, server, tmp_path, behaviour, reason
):
    with pytest.raises(data.DataError, match=reason) as raised:
        fetch(server, tmp_path / "downloads", behaviour)
    assert len(str(raised.value).splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("behaviour", ["good", "nolength"])
def test_download_of_more_than_the_bound_is_stopped_and_not_kept(synthetic, server, tmp_path, monkeypatch, behaviour):
    monkeypatch.setattr(data.download, "MAX_BYTES", 10)
    with pytest.raises(data.DataError, match="more than 10 bytes"):
        fetch(server, tmp_path / "downloads", behaviour)
    assert list(tmp_path.iterdir()) == [] and len(server.requests) == 1


def test_local_archive_with_another_checksum_is_refused(tmp_path):
    (tmp_path / "local.zip").write_bytes(ARCHIVE)
    with pytest.raises(data.DataError, match=f"expected MD5 542cc.*, found {SYNTHETIC.md5}"):
        data.prepare("wikitext-2", tmp_path / "local.zip", tmp_path / "dest")


def test_credentials_and_query_of_a_url_are_not_written_down():
    url = "https://user:secret@example.org:8000/w.zip?token=secret"
    assert data.wikitext.without_secrets(url) == "https://example.org:8000/w.zip"


# The hub's parquet files


def written_from_hub(server, monkeypatch, folder, behaviour="good"):
    """The text that `WikiText.download` writes where the mirrors have nothing, by split."""
    monkeypatch.setattr(data.wikitext, "MIRRORS", [server.folder("missing")])
    monkeypatch.setattr(data.wikitext, "HUB", server.folder(behaviour))
    (folder / "text").mkdir()
    where = data.WIKITEXT["wikitext-2"].download(folder / "text", folder / "downloads")
    assert where == "Salesforce/wikitext, wikitext-2-v1"
    return {split: (folder / f"text/{split}.tokens").read_bytes().decode() for split in streams.SPLITS}


def test_where_no_mirror_has_the_archive_the_hubs_parquet_files_give_the_same_text(
    synthetic, server, monkeypatch, tmp_path
):
    assert written_from_hub(server, monkeypatch, tmp_path) == CORPUS
    asked = [path for path, _ in server.requests]
    assert asked[0].startswith("/missing/")
    assert asked[1:] == [f"/good/wikitext-2-v1/{name}" for name in parquet_files(CORPUS, 2)]


def test_a_mirror_that_has_the_archive_is_all_that_is_asked(synthetic, server, monkeypatch, tmp_path):
    monkeypatch.setattr(data.wikitext, "MIRRORS", [server.folder("page"), server.folder("good")])
    assert data.WIKITEXT["wikitext-2"].download(tmp_path, tmp_path / "downloads") == "wikitext-2-v1.zip"
    assert [path.split("/")[1] for path, _ in server.requests] == ["page", "good"]


def test_a_parquet_file_is_resumed_where_the_connection_broke(synthetic, server, monkeypatch, tmp_path):
    assert written_from_hub(server, monkeypatch, tmp_path, "drop") == CORPUS
    sizes = [len(content) for content in server.parquet.values()]
    assert [wanted for _, wanted in server.requests[1:]] == [
        wanted for size in sizes for wanted in (None, f"bytes={size // 2}-")
    ]


@pytest.mark.parametrize(
    "split, text, reason",
    [
        (
            "train",
            CORPUS["train"] + " One more line . \n",
            r"train tokens: expected 21, found 26; train lines: expected 3, found 4",
        ),
        ("train", CORPUS["train"].replace("lobster", "<unk>"), "this is not wikitext-2 (types: "),
        (
            "valid",
            CORPUS["valid"].replace("lobster", "heron"),
            "wrong checksum of wiki.valid.tokens: expected SHA-256 ",
        ),
    ],
)
def test_other_text_on_the_hub_is_refused_with_all_reasons_and_not_kept(
    synthetic, server, monkeypatch, tmp_path, split, text, reason
):
    server.parquet = parquet_files({**CORPUS, split: text}, SYNTHETIC.train_files)
    with pytest.raises(data.DataError) as raised:
        written_from_hub(server, monkeypatch, tmp_path)
    first, mirror, hub = str(raised.value).splitlines()
    assert first == "wikitext-2 could not be downloaded; scripts/prepare_data.sh wikitext-2 --from takes a local copy:"
    assert "HTTP Error 404" in mirror and hub.split(": ")[0].endswith("/good/wikitext-2-v1") and reason in hub
    assert list((tmp_path / "downloads").iterdir()) == []
    server.parquet = parquet_files(CORPUS, SYNTHETIC.train_files)
    shutil.rmtree(tmp_path / "text")
    assert written_from_hub(server, monkeypatch, tmp_path) == CORPUS


def test_parquet_of_more_rows_than_are_read_at_once_gives_all_lines(tmp_path):
    lines = [f" line {number} \n" if number % 5 else " \n" for number in range(2 * data.archives.ROWS_AT_ONCE + 500)]
    (tmp_path / "x.parquet").write_bytes(parquet("".join(lines), row_group_size=10_000))
    assert [line.decode() for line in data.archives.parquet_lines(tmp_path / "x.parquet")] == lines


PARQUET = parquet(CORPUS["test"])
NUMBERS = io.BytesIO()
pq.write_table(pyarrow.table({"text": [1, 2]}), NUMBERS)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"PAR1", "damaged, truncated or no parquet file"),
        (b"<html>", "damaged, truncated or no parquet file"),
        (PARQUET[: len(PARQUET) // 2], "damaged, truncated or no parquet file"),
        (PARQUET[:8] + PARQUET[-200:], "damaged, truncated or no parquet file"),
        (parquet(CORPUS["test"], column="words"), "has no column of strings named text"),
        (NUMBERS.getvalue(), "has no column of strings named text"),
        (parquet("heron " * 2_000), "declares 12,"),
    ],
    ids=["its mark alone", "a page", "truncated", "a hole", "no text", "numbers", "large"],
)
def test_what_is_no_parquet_file_of_text_is_one_line_and_not_kept(
    synthetic, server, monkeypatch, tmp_path, content, reason
):
    monkeypatch.setattr(data.archives, "MAX_BYTES", 10_000)
    server.parquet["test-00000-of-00001.parquet"] = content
    with pytest.raises(data.DataError, match=reason) as raised:
        written_from_hub(server, monkeypatch, tmp_path)
    assert len(str(raised.value).splitlines()) == 3
    assert not any(path.name.startswith("wikitext-2-test") for path in (tmp_path / "downloads").iterdir())


def test_a_small_parquet_file_of_enormous_text_is_stopped_at_the_bound_in_little_memory(tmp_path, monkeypatch):
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1_000, pyarrow.int32()), ["x" * 1_000_000])
    pq.write_table(pyarrow.table({"text": rows}), tmp_path / "bomb.parquet", store_schema=False)
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    monkeypatch.setattr(data.archives, "MAX_BYTES", 20_000_000)
    with pytest.raises(data.DataError, match="bomb.parquet holds more than the 20,000,000 bytes accepted"):
        data.archives.unpack_parquet({"train": [tmp_path / "bomb.parquet"]}, tmp_path)
    assert (tmp_path / "train.tokens").stat().st_size <= 20_000_000
    assert pyarrow.default_memory_pool().max_memory() < 100_000_000


def test_a_parquet_file_with_any_byte_changed_or_cut_off_anywhere_gives_lines_or_an_error(tmp_path):
    file, refused = tmp_path / "test.parquet", 0
    damaged = [PARQUET[:at] for at in range(0, len(PARQUET), 50)]
    damaged += [PARQUET[:at] + bytes([PARQUET[at] ^ 0xFF]) + PARQUET[at + 1 :] for at in range(0, len(PARQUET), 3)]
    for content in damaged:
        file.write_bytes(content)
        try:
            assert all(line.endswith(b"\n") for line in data.archives.parquet_lines(file))
        except data.DataError:
            refused += 1
    assert refused > len(damaged) / 4


@pytest.mark.skipif(not WIKITEXT2.is_dir(), reason=f"no WikiText-2 in {WIKITEXT2}; WAVEPOS_WIKITEXT2 names its folder")
def test_the_real_wikitext2_from_parquet_files_is_the_original_byte_for_byte(server, monkeypatch, tmp_path):
    original = {split: (WIKITEXT2 / f"wiki.{split}.tokens").read_bytes().decode() for split in streams.SPLITS}
    server.parquet = parquet_files(original, data.WIKITEXT["wikitext-2"].train_files)
    assert written_from_hub(server, monkeypatch, tmp_path) == original


# Archives


def unpack(tmp_path, content):
    (tmp_path / "archive.zip").write_bytes(content)
    (tmp_path / "text").mkdir()
    data.archives.unpack_zip(tmp_path / "archive.zip", tmp_path / "text")
    return {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "text").iterdir()}


def test_archive_gives_the_three_files_and_no_others(tmp_path):
    expected = {f"{split}.tokens": text for split, text in CORPUS.items()}
    assert unpack(tmp_path, zipped([("wikitext-2/", ""), ("wikitext-2/LICENSE", "x"), *ENTRIES])) == expected


@pytest.mark.parametrize(
    "name", ["../wiki.test.tokens", "a/../../x", "/etc/x", "\\x", "C:/x", "c:x", "a\\..\\..\\x", "//host/share/x"]
)
def test_entry_that_leads_out_of_the_archive_is_refused(tmp_path, name):
    with pytest.raises(data.DataError, match=re.escape(repr(name))):
        unpack(tmp_path, zipped([*ENTRIES[:2], (name, "x")]))
    assert list((tmp_path / "text").iterdir()) == []


def test_symbolic_link_is_refused(tmp_path):
    linked = zipped([*ENTRIES[:2], ("wiki.test.tokens", "/etc/passwd")], external_attr=(stat.S_IFLNK | 0o777) << 16)
    with pytest.raises(data.DataError, match="'wiki.test.tokens' is a symbolic link"):
        unpack(tmp_path, linked)


def test_encrypted_entry_is_refused():
    info = zipfile.ZipInfo("wiki.train.tokens")
    info.flag_bits |= 1
    info.header_offset = 0
    with pytest.raises(data.DataError, match="'wiki.train.tokens' is encrypted"):
        data.archives.choose_members([info])


def test_two_candidates_for_one_file_are_refused(tmp_path):
    with pytest.raises(data.DataError, match="'wikitext-2/wiki.test.tokens' and 'other/wiki.test.tokens'"):
        unpack(tmp_path, zipped([*ENTRIES, ("other/wiki.test.tokens", "x")]))


def test_archive_without_one_of_the_files_is_refused(tmp_path):
    with pytest.raises(data.DataError, match="no entry wiki.test.tokens"):
        unpack(tmp_path, zipped(ENTRIES[:2]))


def test_archive_that_declares_too_much_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(data.archives, "MAX_BYTES", 1000)
    with pytest.raises(data.DataError, match="at most 1,000 are accepted"):
        unpack(tmp_path, zipped([*ENTRIES[:2], ("wiki.test.tokens", "0" * 10_000)]))
    assert list((tmp_path / "text").iterdir()) == []


def test_archive_that_declares_less_than_it_holds_is_refused(tmp_path):
    bomb = zipped([*ENTRIES[:2], ("wiki.test.tokens", "0" * 10_000)])
    assert bomb.count((10_000).to_bytes(4, "little")) == 2  # in the local and in the central header
    with pytest.raises(data.DataError, match="damaged"):
        unpack(tmp_path, bomb.replace((10_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))


@pytest.mark.parametrize(
    "content",
    [ARCHIVE[: len(ARCHIVE) // 2], b"", b"<html></html>", ARCHIVE.replace(ARCHIVE[90:100], b"0123456789")],
    ids=["truncated", "empty", "a page", "damaged inside"],
)
def test_damaged_archive_is_an_error_that_names_it(tmp_path, content):
    with pytest.raises(data.DataError, match="archive.zip is damaged, truncated or no zip archive"):
        unpack(tmp_path, content)


def test_archive_with_any_one_byte_changed_or_cut_off_anywhere_gives_its_text_or_an_error(tmp_path):
    (tmp_path / "text").mkdir()
    damaged = [ARCHIVE[:at] for at in range(0, len(ARCHIVE), 9)]
    damaged += [ARCHIVE[:at] + bytes([ARCHIVE[at] ^ 0xFF]) + ARCHIVE[at + 1 :] for at in range(len(ARCHIVE))]
    refused = 0
    for content in damaged:
        (tmp_path / "archive.zip").write_bytes(content)
        try:
            data.archives.unpack_zip(tmp_path / "archive.zip", tmp_path / "text")
        except data.DataError:
            refused += 1
        else:
            for split, text in CORPUS.items():
                assert (tmp_path / "text" / f"{split}.tokens").read_bytes() == text.encode()
    assert refused > len(damaged) / 2


# Text of one's own


@pytest.fixture(scope="module")
def tokenize():
    return data.tokens.wikitext_tokenizer()


@pytest.mark.parametrize(
    "raw, wikitext",
    [
        ("a well-known 1,000.5 km", "a well @-@ known 1 @,@ 000 @.@ 5 km"),
        ("1,000,000 people, 5% of them", "1 @,@ 000 @,@ 000 people , 5 % of them"),
        ("It didn't bark; that's the dog's way.", "It didn 't bark ; that 's the dog 's way ."),
        ('in the U.S. (1914–18), "so-called" wars', 'in the U.S. ( 1914 – 18 ) , " so @-@ called " wars'),
        ("AT&T <b> a|b [x]", "AT & T < b > a | b [ x ]"),
        ("state-of-the-art", "state @-@ of @-@ the @-@ art"),
        ("", ""),
    ],
)
def test_tokens_are_spelled_as_in_wikitext(tokenize, raw, wikitext):
    assert tokenize(raw) == wikitext


def test_lines_may_end_as_on_windows_and_blank_lines_stay(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfOne.\r\n\r\n  \nTwo")
    assert list(data.tokens.read_paragraphs(tmp_path / "train.txt")) == ["One.", "", "", "Two"]


SEPARATED = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\u00a0h"


@pytest.mark.parametrize("raw", ["One.\rTwo.\r\rThree.\r", "One.\r\nTwo.\r\rThree.\n", f"{SEPARATED}\n"])
def test_lines_end_where_fairseq_ends_them(tmp_path, raw):
    from fairseq.file_chunker_utils import Chunker

    (tmp_path / "train.txt").write_bytes(raw.encode())
    with Chunker(str(tmp_path / "train.txt"), 0, -1) as lines:
        assert list(data.tokens.read_paragraphs(tmp_path / "train.txt")) == [line.strip() for line in lines]


def test_separators_of_unicode_are_spaces_between_words(tokenize):
    assert tokenize(SEPARATED) == "a b c d e f g h"


def test_a_long_line_is_one_line_of_the_data_bin_and_an_enormous_one_is_refused(text_folder, tmp_path, monkeypatch):
    words = write_files(tmp_path / "long", {**TEXT, "valid": "heron " * 10_000}, "{}.txt")
    made = provenance(data.prepare("text", words, tmp_path / "dest"))
    assert (made["lines"]["valid"], made["tokens"]["valid"]) == (1, 10_001)
    write_files(words, {"valid": "One.\n" + "heron " * 4_000_000}, "{}.txt")
    tracemalloc.start()
    with pytest.raises(data.DataError, match="valid.txt, line 2: more than 16,777,216 bytes"):
        data.prepare("text", words, tmp_path / "other")
    assert tracemalloc.get_traced_memory()[1] < 3 * data.tokens.MAX_LINE_BYTES
    tracemalloc.stop()
    assert not (tmp_path / "other").exists()


def test_rare_words_become_unk_in_all_splits_without_bpe(word_bin):
    dictionary = dict(line.rsplit(" ", 1) for line in (word_bin / "dict.txt").read_text(encoding="utf-8").splitlines())
    train = "The well @-@ known heron sleeps . The heron eats , the heron sleeps ; the heron isn 't well @-@ known ."
    frequent = {word: n for word, n in Counter(train.split()).items() if n >= 3}
    assert {word: int(n) for word, n in dictionary.items() if n != "0"} == frequent == {"heron": 4}
    assert provenance(word_bin)["types"] == 3  # and </s>, <unk>
    assert provenance(word_bin)["lines"]["train"] == 3


def test_bpe_codes_and_tokenizers_are_recorded(bpe_bin):
    made = provenance(bpe_bin)
    assert made["bpe"] == 10 and {"sacremoses", "subword-nmt"} <= set(made["versions"])
    assert (bpe_bin / "bpe.codes").read_text(encoding="utf-8").startswith("#version")
    words = {line.rsplit(" ", 1)[0] for line in (bpe_bin / "dict.txt").read_text(encoding="utf-8").splitlines()}
    assert "@-@" in words and "s@@" in words  # joiners stay whole; nothing falls to a threshold


def bpe_of(folder, **changed):
    texts = {"train": "the heron\n" * 3, "valid": "the stork\n", "test": "the heron\n", **changed}
    data.tokens.write_bpe(write_files(folder, texts, "{}.tokens"), 50, folder / "bpe.codes")
    return folder


def test_bpe_is_learned_on_train_only(tmp_path):
    one = bpe_of(tmp_path / "one")
    other = bpe_of(tmp_path / "other", valid="stork stork stork\n" * 10, test="stork\n")
    assert (one / "bpe.codes").read_bytes() == (other / "bpe.codes").read_bytes()


def test_bpe_is_applied_to_all_splits_and_can_be_undone(tmp_path):
    folder = bpe_of(tmp_path)
    segmented = {split: (folder / f"{split}.tokens").read_text(encoding="utf-8") for split in streams.SPLITS}
    assert segmented["train"] == "the heron\n" * 3  # 50 merges are more than these words have
    assert "@@ " in segmented["valid"] and segmented["valid"].replace("@@ ", "") == "the stork\n"
    assert segmented["test"] == "the heron\n"


def test_text_without_a_pair_to_merge_is_an_error(tmp_path):
    with pytest.raises(data.DataError, match="--bpe 50: train.txt is too small"):
        bpe_of(tmp_path, train="a b c\n")


# The demo


@pytest.fixture(scope="module")
def demo():
    return data.demo.demo_documents()


def test_demo_is_the_same_in_another_process(demo):
    """Another hash seed orders sets otherwise."""
    code = "import json; from wavepos_fairseq import data; print(json.dumps(list(data.demo.demo_documents().items())))"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=True).stdout
    assert json.loads(output) == [list(item) for item in demo.items()]


def test_demo_is_large_enough_to_train_and_to_evaluate_on(demo):
    splits = data.demo.split_documents(demo)
    words = {split: sum(len(paragraph.split()) for paragraph in splits[split]) for split in streams.SPLITS}
    assert words["train"] > data.demo.MIN_TRAIN_TOKENS
    assert min(words["valid"], words["test"]) > 0.02 * words["train"]


def test_demo_says_no_paragraph_twice(demo):
    paragraphs = [paragraph for document in demo.values() for paragraph in document]
    assert len(paragraphs) == len(set(paragraphs))


def test_demo_takes_nothing_from_tests_or_installed_packages(tmp_path):
    for path in ("a.py", "b/__init__.py", "test/c.py", "b/tests/d.py", "site-packages/e.py", "idlelib/idle_test/f.py"):
        write_files(tmp_path / Path(path).parent, {Path(path).name: '"""One sentence of five words."""'}, "{}")
    assert set(data.demo.docstring_documents(tmp_path)) == {"a", "b.__init__"}


def test_demo_splits_by_module():
    documents = {f"module{number}": [f"{number} first", f"{number} second"] for number in range(200)}
    splits = data.demo.split_documents(documents)
    where = {split: {paragraph.split()[0] for paragraph in paragraphs} for split, paragraphs in splits.items()}
    assert sum(map(len, where.values())) == len(documents)  # no module in two splits, none lost
    assert all(where.values()) and len(where["train"]) > 0.8 * len(documents)
    for number in where["valid"]:  # whatever other modules there are
        assert data.demo.split_documents({f"module{number}": ["text"]})["valid"] == ["text"]


def test_prose_keeps_paragraphs_and_drops_code_doctests_and_markup():
    docstring = """Return the mean of the data that was given.

    =====  =====
    Name   Value
    =====  =====

    It is the sum of the data
    divided by how many there are, for instance:

        x = [1, 2, 3]; print(sum(x) / len(x))

    >>> mean([1, 2, 3])
    2

    Too short.
    """
    assert data.demo.prose(docstring) == [
        "Return the mean of the data that was given.",
        "It is the sum of the data divided by how many there are, for instance:",
    ]


def test_docstrings_come_in_the_order_of_the_file_and_bad_code_has_none():
    code = b'"""module"""\nclass A:\n    """A"""\n    def f(self):\n        """f"""\ndef g():\n    """g"""\n'
    assert data.demo.docstrings(code) == ["module", "A", "f", "g"]
    assert data.demo.docstrings(b"print 1") == []


def test_demo_on_a_python_without_docstrings_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(data.demo, "demo_documents", lambda: {"a": ["Some words of a tiny library."]})
    with pytest.raises(data.DataError, match="at least 100,000"):
        data.prepare("demo", dest=tmp_path)
    assert list(tmp_path.iterdir()) == []


# Words of the user


# Characters


def test_characters_are_the_words_spelled_out_and_rare_ones_are_unk(text_folder, word_bin, tmp_path):
    from fairseq.data import Dictionary, data_utils

    data_bin = data.prepare("text-characters", text_folder, tmp_path)
    assert data_bin == tmp_path / "text-characters" and provenance(data_bin)["name"] == "text-characters"
    words, characters = (Dictionary.load(str(folder / "dict.txt")) for folder in (word_bin, data_bin))
    tokenize = data.tokens.wikitext_tokenizer()
    counts = Counter("".join(map(tokenize, TEXT["train"].splitlines())))
    assert {character for character in counts if counts[character] < 20}  # or nothing would be rare
    for split, text in TEXT.items():
        lines = data_utils.load_indexed_dataset(str(data_bin / split), characters)
        for line, paragraph in zip(lines, text.splitlines()):
            expected = [c if counts[c] >= 20 else "<unk>" for c in tokenize(paragraph)]
            assert [characters[index] for index in line] == [*("▁" if c == " " else c for c in expected), "</s>"]
        assert len(lines) == len(data_utils.load_indexed_dataset(str(word_bin / split), words))


@pytest.mark.skipif(not WIKITEXT2.is_dir(), reason=f"no WikiText-2 in {WIKITEXT2}; WAVEPOS_WIKITEXT2 names its folder")
def test_the_characters_that_wikitext2_is_checked_by_are_those_of_its_files():
    corpus = data.data_bin.CORPORA["wikitext-2-characters"]
    texts = {split: (WIKITEXT2 / f"wiki.{split}.tokens").read_bytes().decode() for split in streams.SPLITS}
    assert corpus.tokens == {split: len(text) for split, text in texts.items()}  # </s> is the line's end
    counts = Counter(texts["train"])
    kept = {character for character, count in counts.items() if count >= corpus.min_count} - {" ", "\n"}
    assert corpus.types == len(kept) + 3  # the blank, <unk> and </s>
    assert sum(count for character, count in counts.items() if count < corpus.min_count) < 1e-4 * len(texts["train"])


def test_every_white_space_is_one_blank():
    assert data.characters.spelled_out(" a\u3000b\t\u00a0c ") == "▁ a ▁ b ▁ ▁ c ▁"


def test_characters_of_another_text_under_a_wikitext_name_are_an_error_with_both_counts(word_bin):
    counts = data.data_bin.count(word_bin)
    message = "not the characters of wikitext-2 .train tokens: expected 10,780,437, found"
    with pytest.raises(data.DataError, match=message):
        data.data_bin.CORPORA["wikitext-2-characters"].check(word_bin, counts)


def text_with(**changed):
    return {**TEXT, **changed}


def status_of(main, words):
    try:
        return main(words)
    except SystemExit as stopped:  # argparse's, and that of a command without fairseq
        return stopped.code


@pytest.mark.parametrize(
    "arguments, files, message",
    [
        (["demo", "--from", "."], {}, "--from .: demo is always made from the documentation of Python itself"),
        (["text"], {}, "--from is missing: text needs a folder with train.txt, valid.txt and test.txt"),
        (["text", "--from", "http://127.0.0.1/x"], {}, "text needs a folder"),
        (["wikitext-2", "--bpe", "100"], {}, "--bpe 100: only text takes it"),
        (["text", "--from", "own", "--bpe", "0"], TEXT, "--bpe 0: the number of merges is 1 or more"),
        (["text", "--from", "absent"], {}, "--from absent: no such folder or file"),
        (["text", "--from", "own"], {"train": "a\n"}, "valid.txt, test.txt missing"),
        (["wikitext-2", "--from", "own"], TEXT, "wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens missing"),
        (["text", "--from", "own"], text_with(valid=b"a\nb\ncaf\xe9\n"), "valid.txt, line 3: not UTF-8"),
        (["text", "--from", "own"], text_with(test="a\nb\0\n"), "test.txt, line 2: a NUL byte"),
        (["text", "--from", "own"], text_with(train=""), "train.txt is empty"),
        (["text", "--from", "own"], text_with(valid=" \n\n"), "valid.txt is empty"),
        (["text", "--from", "own/train.txt"], TEXT, "--from own/train.txt: train.txt, valid.txt, test.txt missing"),
        (["text", "--from", "own"], dict.fromkeys(TEXT, "Each word once.\n"), "train would be nothing but <unk>"),
        (["text", "--from", "own"], text_with(test="Hérons.\n"), "test would be nothing but <unk>"),
        (["wikitext-2", "--from", "words"], {}, "wiki.valid.tokens, line 2: not UTF-8"),
        (["wikitext-2", "--from", "own/train.txt"], TEXT, "wrong checksum: expected MD5"),
        (["wikitext-2", "--from", "http://127.0.0.1:9/x.zip"], {}, "http://127.0.0.1:9/x.zip: <urlopen error"),
        (["wikitext-2", "--from", "http://[x"], {}, "http://[x: "),
        (["wikitext-3"], {}, "invalid choice: 'wikitext-3'"),
        ([], {}, "NAME"),
        (["text", "--from", "own", "--bpe", "many"], TEXT, "invalid int value: 'many'"),
        (["demo", "--characters"], {}, "--characters: accepted are wikitext-2, wikitext-103, text, not demo"),
        (["text", "--from", "own", "--characters", "--bpe", "9"], TEXT, "--characters: not with --bpe 9"),
        (["wikitext-2", "--characters", "--from", "own"], TEXT, "wiki.train.tokens, wiki.valid.tokens, wiki.test"),
        (["text", "--characters", "--from", "own"], dict.fromkeys(TEXT, "ab\n"), "train would be nothing but <unk>"),
    ],
)
def test_bad_input_is_one_error_status_2_and_nothing_under_the_name(
    module_patch, monkeypatch, tmp_path, capsys, arguments, files, message
):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "own", files, "{}.txt")
    write_files(tmp_path / "words", {**CORPUS, "valid": b" a \n caf\xe9 \n"}, "wiki.{}.tokens")
    assert status_of(command.main, [*arguments, "--dest", "dest/of/many"]) == 2
    error = capsys.readouterr().err
    assert "error: " in error and message in error
    assert not (tmp_path / "dest").exists()


NOWHERE = ("http://127.0.0.1:9/",)


@pytest.mark.parametrize(
    "main, words, message",
    [
        (
            command.main,
            ["wikitext-2"],
            "wikitext-2 could not be downloaded; scripts/prepare_data.sh wikitext-2 --from takes",
        ),
        (experiments.main, ["reproduce", "table1"], "; scripts/prepare_data.sh wikitext-2 --from takes a local copy:"),
        (experiments.main, ["train", "ricker"], "; scripts/prepare_data.sh wikitext-2 --from takes a local copy:"),
        (experiments.main, ["train", "ricker", "--data", "own"], "error: --data own: wiki.train.tokens, "),
        (alibi_release.main, ["512"], "; scripts/prepare_data.sh wikitext-103 --from takes a local copy:"),
    ],
)
def test_what_to_do_without_a_network_names_a_command_that_does_it(
    module_patch, monkeypatch, tmp_path, capsys, main, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for module in (command, experiments, alibi_release):
        monkeypatch.setattr(module, "ROOT", tmp_path, raising=False)
    monkeypatch.setattr(data.wikitext, "HUB", NOWHERE[0])
    monkeypatch.setattr(data.wikitext, "MIRRORS", NOWHERE)
    if main is experiments.main:
        words = [words[0], *(["wikitext2-cpu"] if words[0] == "train" else ["--preset", "wikitext2-cpu"]), *words[1:]]
    assert status_of(main, words) == 2
    assert message in capsys.readouterr().err.splitlines()[0]
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_wikitext_folder_may_lie_inside_the_given_one(tmp_path):
    write_files(tmp_path / "wikitext-2", CORPUS, "wiki.{}.tokens")
    inside = {split: tmp_path / "wikitext-2" / f"wiki.{split}.tokens" for split in streams.SPLITS}
    for folder in (tmp_path, tmp_path / "wikitext-2"):
        assert data.WIKITEXT["wikitext-2"].find_text(folder, "--from") == inside


def test_script_passes_its_arguments_on_from_any_folder(tmp_path):
    """The script in another project, whose Python writes down what it is given and where."""
    project = tmp_path / "a project"
    shutil.copytree(str(ROOT / "scripts"), str(project / "scripts"))
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    command = ["bash", str(project / "scripts/prepare_data.sh"), "text", "--from", "my text", "--dest", "here"]
    environment = {**os.environ, "PYTHON": ""}
    done = subprocess.run(command, cwd=str(tmp_path), env=environment, stdout=subprocess.PIPE, check=True)
    where, *arguments = done.stdout.decode().splitlines()
    assert where == str(tmp_path)
    assert arguments == ["-m", "wavepos_fairseq", "prepare", *command[2:]]
