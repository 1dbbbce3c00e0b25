"""What is wrong with configurations, folders and disks is one line that names it, and leaves nothing half-made."""

import os
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from wavepos_fairseq import data
from wavepos_fairseq.common.files import PAPER, refuse_unwritable, write_whole
from wavepos_fairseq.data import command as prepare
from wavepos_fairseq.lab import claims, experiments, report, runs
from wavepos_fairseq.lab import configs as lab_configs
from wavepos_fairseq.lab import evaluate as evaluation
from wavepos_fairseq.lab.figures import command as figures

ROOT = Path(__file__).resolve().parents[1]
P = "position: {name: nope}"
DEMO = (ROOT / "configs/presets/demo.yaml").read_text(encoding="utf-8")
LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
ROW = "title: T\nrows:\n  one: {labels: {method: M}, position: {name: nope}}\n"


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """configs(text, name): where presets and tables are read, with that file; a preset t and a table t are sound."""
    folder = tmp_path / "configs"
    monkeypatch.setattr(lab_configs, "CONFIGS", folder)
    monkeypatch.setattr(claims, "CONFIGS", folder)

    def write(text, name):
        for there, content in (("presets/t.yaml", DEMO), ("tables/t.yaml", ROW), (name, text)):
            (folder / there).parent.mkdir(parents=True, exist_ok=True)
            (folder / there).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name

    return write


def one_line_error(capsys, main, *words):
    """What main says after ``error: ``, being all that it says, with status 2."""
    assert main([*map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and len(said.err) < 2000, said.err
    return said.err


UNSOUND = [
    ("", "expected a mapping, not NoneType"),
    ("- a\n", "expected a mapping, not list"),
    ("just text", "expected a mapping, not str"),
    ("a: [\n", "line 2: "),
    ("a: 1\na: 2\n", "line 2: key 'a' appears twice"),
    ("a: {b: 1,\n  b: 2}\n", "line 2: key 'b' appears twice"),
    ("1: a\n", "line 1: a key is not text"),
    ("? [a]\n: b\n", "line 1: a key is not text"),
    (LAUGHS, "line 2: aliases are not accepted"),
    ("a: &a [*a]\n", "line 1: aliases are not accepted"),
    ("a: &a {b: 1}\n<<: *a\n", "line 2: "),
    ("a: !!python/object/apply:os.system [exit]\n", "line 1: could not determine a constructor for the tag"),
    ("a: 2026-99-99\n", "cannot be read: month must be in 1..12"),
    ("a: " + 500 * "[", "cannot be read: "),
    ("a: " + 10_000 * "9", "cannot be read: "),
    ("a: \0\n", "cannot be read: "),
    (b"a: caf\xe9\n", "cannot be read: 'utf-8' codec can't decode byte 0xe9"),
]


@pytest.mark.parametrize("content, message", UNSOUND, ids=range(len(UNSOUND)))
@pytest.mark.parametrize("name", ["presets/t.yaml", "tables/t.yaml", "claims.yaml"])
def test_what_is_no_plain_mapping_is_one_line_with_the_file(configs, tmp_path, capsys, name, content, message):
    path = configs(content, name)
    if name == "claims.yaml":
        (tmp_path / "t").mkdir()
        said = one_line_error(capsys, claims.main, "--preset", "t", "--results", tmp_path)
    else:
        said = one_line_error(capsys, experiments.main, "reproduce", "t", "--preset", "t", "--runs", tmp_path / "runs")
    assert str(path) in said and message in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("corpus", 3, "corpus must be text, not 3"),
        ("l_train", "64", "l_train must be a whole number > 0, not '64'"),
        ("l_train", True, "l_train must be a whole number > 0, not True"),
        ("lengths", 64, "lengths must be a list of distinct whole numbers > 0, not 64"),
        ("lengths", [64, 0], "lengths must be a list of distinct whole numbers > 0, not [64, 0]"),
        ("lengths", [64, 32, 64], "lengths must be a list of distinct whole numbers > 0, not [64, 32, 64]"),
        ("lengths", [32], "lengths [32] must contain l_train 64"),
        ("gpus", -1, "gpus must be a whole number >= 0, not -1"),
        ("tokens_per_update", 0, "tokens_per_update must be a whole number > 0"),
        ("checkpoint", None, "checkpoint must be checkpoint_last.pt, checkpoint_best.pt or another of"),
        ("checkpoint", "../checkpoint_last.pt", "checkpoint must be checkpoint_last.pt, checkpoint_best.pt or another"),
        ("tokens_per_update", 100, "tokens_per_update 100 is no multiple of l_train 64"),
        ("tokens_per_device", 63, "tokens_per_device 63 is less than l_train 64"),
        ("train", [], "train must be a mapping of options"),
        ("train", {"lr": [1, 2]}, "train must be a mapping of options to text, numbers or true"),
        ("train", {"fp16": False}, "train must be a mapping of options to text, numbers or true"),
        ("train", {"lr": 1}, "train: max-update is missing"),
        ("train", {"max-update": "60"}, "train: max-update must be a whole number > 0, not '60'"),
        ("evaluate", "fp16", "evaluate must be a mapping"),
        ("slurm", 3, "slurm must be a mapping, not 3"),
        ("lenghts", [64], "lenghts is unknown; accepted are corpus, l_train"),
    ],
)
def test_a_presets_wrong_value_or_key_is_named_with_what_is_accepted(configs, capsys, key, value, message):
    path = configs(yaml.safe_dump({**yaml.safe_load(DEMO), key: value}), "presets/t.yaml")
    said = one_line_error(capsys, experiments.main, "status", "t", "--preset", "t")
    assert message in said and ("lengths [32]" in message or str(path) in said)


@pytest.mark.parametrize("key", ["corpus", "lengths", "train", "slurm"])
def test_a_key_that_a_preset_lacks_is_named(configs, capsys, key):
    configs(
        yaml.safe_dump({name: value for name, value in yaml.safe_load(DEMO).items() if name != key}), "presets/t.yaml"
    )
    assert f"{key} is missing" in one_line_error(capsys, experiments.main, "status", "t", "--preset", "t")


@pytest.mark.parametrize(
    "rows, message",
    [
        ("{}", "rows must be a mapping of rows, not {}"),
        ("{one: text}", "row one: expected a mapping with labels, position, not 'text'"),
        ("{one: {labels: {m: M}, position: 3}}", "row one: position must be a mapping of name and options to text or"),
        ("{one: {labels: {m: M}, position: {wavelet: haar}}}", "row one: position must be a mapping of name"),
        ("{one: {labels: {m: M}, position: {name: nope, of: [1]}}}", "row one: position must be a mapping of name"),
        ("{one: {labels: {m: M}}}", "row one: position is missing"),
        (
            f"{{one: {{labels: {{m: M}}, {P}, train: [lr]}}}}",
            "row one: train must be a mapping of options to text, num",
        ),
        (f"{{one: {{labels: {{m: M}}, {P}}}}}\nevaluate: full", "t.yaml: evaluate must be a mapping of options to"),
        (f"{{one: {{method: M, {P}}}}}", "row one: method is unknown; accepted are labels, position"),
        (f"{{one: {{labels: {{}}, {P}}}}}", "row one: labels must be a mapping of columns to text, not {}"),
        (f"{{one: {{labels: {{m: 5}}, {P}}}}}", "row one: m must be text, not 5"),
        (f"{{one: {{labels: {{m: M}}, {P}}}, two: {{labels: {{n: M}}, {P}}}}}", "row two: n is unknown"),
        (f"{{one: {{labels: {{m: M}}, {P}}}, two: {{labels: {{m: M, n: a}}, {P}}}}}", "row two: n is unknown"),
        (f"{{../one: {{labels: {{m: M}}, {P}}}}}", "row ../one: the name '../one' names a folder"),
        (f"{{..: {{labels: {{m: M}}, {P}}}}}", "row ..: the name '..' names a folder"),
        (f"{{one seed 2: {{labels: {{m: M}}, {P}}}}}", "row one seed 2: a name that ends with a seed"),
        (
            f"{{a: {{labels: {{m: A}}, {P}}}, b: {{labels: {{m: B}}, {P}}}, c: {{labels: {{m: A}}, {P}}}}}",
            "rows a and c have the same labels",
        ),
        *(
            (f"{{one: {{labels: {{n: d/{part}}}, {P}}}}}", f"row one: n 'd/{part}': accepted after d/ is a whole")
            for part in ("0", "x", "²")
        ),
        *(
            (f"{{one: {{labels: {{'{column}': s}}, {P}}}}}", f"row one: the label {column} has the name of another")
            for column in ("seed", "mean", "128", "perplexity", "lag95")
        ),
    ],
)
def test_a_tables_wrong_row_is_named_with_what_is_accepted(configs, capsys, rows, message):
    path = configs(f"title: T\nrows: {rows}\n", "tables/t.yaml")
    said = one_line_error(capsys, experiments.main, "status", "t", "--preset", "t")
    assert message in said and str(path) in said


def test_rows_whose_labels_become_the_same_in_the_presets_heads_are_refused(configs, capsys):
    shifts = {"a": "d/4", "b": "8", "c": "d/64"}
    rows = [f"  {name}: {{labels: {{shifts: '{number}'}}, {P}}}\n" for name, number in shifts.items()]
    configs(f"title: T\nrows:\n{''.join(rows)}", "tables/t.yaml")
    said = one_line_error(capsys, experiments.main, "reproduce", "t", "--preset", "t")
    assert "rows a and b have the same labels (8)" in said and "heads of width 32" in said


def test_a_preset_is_not_named_as_the_folder_of_another_ones_seed(configs, capsys):
    configs(DEMO, "presets/t-seed2.yaml")
    said = one_line_error(capsys, experiments.main, "reproduce", "t", "--preset", "t-seed2")
    assert "'t-seed2': a name that ends with a seed is taken by another preset's folder" in said


def test_an_unsound_table_1_is_one_line_of_the_figures_too(configs, tmp_path, capsys):
    path = configs("title: T\nrows: {}\n", "tables/table1.yaml")
    said = one_line_error(capsys, figures.main, "--preset", "paper", "perplexity", "--results", ROOT / "results")
    assert f"{path}: rows must be a mapping of rows" in said


CLAIM = {"statement": "s", "source": "s", "table": "t", "rows": ["one"], "at": "every", "at_most": 1}


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("rows", "one", "rows: expected a list, not 'one'"),
        ("rows", [["one"]], "row ['one'] is unknown"),
        ("statement", 3, "statement: expected a str, not 3"),
        ("table", ["t"], "table: expected a str, not ['t']"),
        ("at", ["every"], "length ['every'] is unknown"),
        ("over", ["one"], "over: expected a dict, not ['one']"),
        ("over", {"rows": "one"}, "over: rows: expected a list, not 'one'"),
        ("rows", ["one", "one"], "rows: a row appears twice in one, one"),
        ("over", {"rows": ["one", "one"]}, "rows: a row appears twice in one, one"),
        ("at_most", "1", "as numbers"),
        ("at_most", float("nan"), "as numbers"),
        ("table", "../t", "table '../t' is unknown"),
    ],
)
def test_a_claims_wrong_value_is_named(configs, tmp_path, capsys, key, value, message):
    configs(yaml.safe_dump({"c": {**CLAIM, key: value}}), "claims.yaml")
    (tmp_path / "t").mkdir()
    said = one_line_error(capsys, claims.main, "--preset", "t", "--results", tmp_path)
    assert "claim c: " in said and message in said


# Names and paths


@pytest.mark.parametrize("preset", ["../presets/demo", "demo/", "", ".", 5000 * "x"])
def test_a_preset_is_a_name_and_no_path(preset, capsys):
    assert "is unknown; accepted are" in experiments_error(capsys, "train", preset, "ricker")


def experiments_error(capsys, *words):
    assert experiments.main([*words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "/tmp/x"])
def test_a_runs_name_does_not_leave_the_runs_folder(tmp_path, capsys, name):
    words = ["train", "demo", "ricker", "--name", name, "--runs", tmp_path / "runs", "--dry-run"]
    assert f"--name {name!r} names a folder" in one_line_error(capsys, experiments.main, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option, folder, mark",
    [("--data", "a:b", ":"), ("--data", "a${b}", "${"), ("--runs", "a${b}", "${"), ("--runs", "a\\'b", "\\'")],
)
def test_a_path_that_fairseq_would_read_as_something_else_is_refused(tmp_path, capsys, option, folder, mark):
    words = ["train", "demo", "ricker", option, tmp_path / folder, "--dry-run"]
    assert (
        f"{folder}" in (said := one_line_error(capsys, experiments.main, *words)) and f"with {mark} in its path" in said
    )


def test_any_other_path_reaches_fairseq_as_it_is(tmp_path):
    pytest.importorskip("fairseq")
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    folder = tmp_path / """a b=c,d ü'e"f$g[0]{h}\\i#j%k(l)*?~!&@;|m"""
    preset, row = lab_configs.load_preset("demo"), lab_configs.find_row("ricker")
    run = runs.Run(preset, row, folder / "data", folder / "run", 0, 1)
    config = convert_namespace_to_omegaconf(runs.fairseq_options(run))
    assert (config.task.data, config.checkpoint.save_dir) == (str(folder / "data"), str(folder / "run"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tokens-per-sample", "0"], "--tokens-per-sample 0: this run has 64"),
        (["--max-update=0"], "--max-update 0: accepted is a whole number > 0"),
        (["--max-update", "many"], "argument --max-update: invalid int value: 'many'"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_options_that_fairseq_cannot_use_are_one_line(tmp_path, capsys, words, message):
    pytest.importorskip("fairseq")
    said = one_line_error(capsys, experiments.main, "train", "demo", "ricker", *words, "--runs", tmp_path / "runs")
    assert message in said and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', "3", 100_000 * "["])
@pytest.mark.parametrize("name", ["training.json", "result.json"])
def test_a_runs_json_that_is_something_else_is_one_line_with_the_file(tmp_path, capsys, name, content):
    run = runs.Run(lab_configs.load_preset("demo"), lab_configs.find_row("ricker"), ROOT, tmp_path, 0, 1)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name} is not a JSON") as raised:
        run.result()
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "main, words",
    [
        (claims.main, ["--preset", "paper"]),
        (figures.main, ["--preset", "paper"]),
        (prepare.main, ["demo"]),
        (experiments.main, ["reproduce", "table1", "--preset", "demo"]),
        (experiments.main, ["sweep", "--preset", "demo", "--wavelet", "ricker"]),
        (experiments.main, ["status", "table1", "--preset", "demo"]),
        (figures.main, ["figure4"]),
        (report.main, ["--preset", "demo"]),
    ],
)
def test_an_unknown_option_is_status_2_and_named_in_the_last_line(capsys, main, words):
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--no-such-option"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("error: unrecognized arguments: --no-such-option")


# Folders that cannot be written, and disks that are full


WRITERS = {
    "data": (prepare.main, ["demo", "--dest"]),
    "claims": (claims.main, ["--preset", "paper", "--results"]),
    "figures": (figures.main, ["figure4", "--output"]),
    "report": (report.main, ["--preset", "demo", "--output"]),
    "curves": (figures.main, ["--preset", "paper", "perplexity", "--results"]),
}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """prepared(writer): the words of its command line, whose results or output lie in `tmp_path`/here."""
    monkeypatch.setattr(data.data_bin, "make_data_bin", lambda work, *_: (work / "data-bin").mkdir(parents=True))

    def words(writer):
        here = tmp_path / "here"
        (here / "paper").mkdir(parents=True)
        (here / "paper" / "table1.csv").write_bytes((PAPER / "table1.csv").read_bytes())
        (here / "demo").mkdir()
        extra = {"report": ["--results", str(here)]}.get(writer, [])
        return here, [*WRITERS[writer][1], str(here / "report.html" if writer == "report" else here), *extra]

    return words


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def status_and_error(capsys, main, words):
    try:
        status = main(words) or 0
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "data"])
def test_on_a_full_disk_the_old_files_stay_and_no_new_one_is_begun(prepared, capsys, writer):
    here, words = prepared(writer)
    main = WRITERS[writer][0]
    before = files(here)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limit[1]))
    try:
        status, said = status_and_error(capsys, main, words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert status == 2 and "error: [Errno 27] File too large" in said and said.count("\n") == 1
    assert files(here) == before


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_in_the_place_of_a_folder_is_one_line(prepared, capsys, writer):
    here, words = prepared(writer)
    for folder in sorted(here.rglob("*"), reverse=True):
        folder.rmdir() if folder.is_dir() else folder.unlink()
    here.rmdir()
    here.write_text("a file")
    status, said = status_and_error(capsys, WRITERS[writer][0], words)
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1 and str(here) in said
    assert here.read_text() == "a file"


def test_a_file_in_the_place_of_the_runs_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "runs").write_text("a file")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dict.txt").write_text("a 1\n")
    words = ["train", "demo", "ricker", "--data", tmp_path / "data", "--runs", tmp_path / "runs"]
    assert main_says(capsys, words).startswith("error: [Errno ")
    assert (tmp_path / "runs").read_text() == "a file"


def main_says(capsys, words):
    assert experiments.main([*map(str, words)]) == 2
    return capsys.readouterr().err


def test_a_read_only_disk_is_one_line(tmp_path):
    """A mount of its own, where root is refused, too."""
    (tmp_path / "disk").mkdir()
    program = (
        "import sys; from wavepos_fairseq.lab.figures import command; "
        "sys.exit(command.main(['figure4', '--output', sys.argv[1]]))"
    )
    mounted = 'mount -t tmpfs -o ro none "$1" || exit 77; shift; exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mounted, "sh", str(tmp_path / "disk")]
    command += [sys.executable, "-c", program, str(tmp_path / "disk" / "figures")]
    done = subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True)
    if done.returncode not in (0, 2) or "unshare" in done.stderr:
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "error: [Errno 30] Read-only file system" in done.stderr


def test_what_killed_writers_left_is_removed_by_the_next_and_what_others_are_writing_is_not(tmp_path):
    target = tmp_path / "table [1].csv"
    left, written, other = (
        tmp_path / name for name in ("table [1].csv.1.part", "table [1].csv.2.part", "table 1.csv.1.part")
    )
    for part in (left, written, other):
        part.write_text("half")
    long_ago = time.time() - 7200
    for part in (left, other):
        os.utime(str(part), (long_ago, long_ago))
    write_whole(target, "whole")
    assert {path.name for path in tmp_path.iterdir()} == {target.name, written.name, other.name}
    assert target.read_text() == "whole"


def test_a_device_is_written_to_and_stays_a_device(tmp_path):
    nothing, full = tmp_path / "null", tmp_path / "full"
    try:
        for minor, path in ((3, nothing), (7, full)):
            os.mknod(str(path), 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        write_whole(nothing, "whole")
        write_whole(nothing, b"whole")
    except PermissionError as error:
        pytest.skip(f"no device can be made here: {error}")
    refuse_unwritable(nothing)
    with pytest.raises(OSError, match=f"No space left on device: '{full}'"):
        write_whole(full, "whole")
    assert all(stat.S_ISCHR(path.stat().st_mode) for path in (nothing, full))
    assert {path.name for path in tmp_path.iterdir()} == {"null", "full"}


def test_a_pipe_gets_the_whole_and_stays_a_pipe(tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    refuse_unwritable(tmp_path / "pipe")
    write_whole(tmp_path / "pipe", "whole")
    assert reader.communicate(timeout=20)[0] == b"whole"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_stays_and_leads_to_the_new_content(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name, target in (("file", "elsewhere/file"), ("link", "file"), ("dangling", "elsewhere/new")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "elsewhere/file").write_text("old")
    write_whole(tmp_path / "link", "whole")
    write_whole(tmp_path / "dangling", "new")
    assert all((tmp_path / name).is_symlink() for name in ("file", "link", "dangling"))
    assert files(tmp_path / "elsewhere") == {"file": b"whole", "new": b"new"}
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        write_whole(tmp_path / "loop", "whole")


@pytest.mark.parametrize("where", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "its own path"])
@pytest.mark.parametrize("is_file", [True, False])
def test_what_is_written_to_stdout_stands_between_what_is_printed_before_and_after(tmp_path, where, is_file):
    program = "import sys; from pathlib import Path; from wavepos_fairseq.common.files import write_whole; "
    program += "print('before'); write_whole(Path(sys.argv[1]), 'whole\\n'); print('after')"
    printed = tmp_path / "printed"
    if not is_file:
        os.mkfifo(str(printed))
    command = [sys.executable, "-c", program, str(printed) if where == "its own path" else where]
    with printed.open("w+b", buffering=0) as output:
        subprocess.run(command, stdout=output, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        said = printed.read_bytes() if is_file else output.read(100)
    assert said.decode().split() == ["before", "whole", "after"]


def test_process_substitution_gets_the_whole(tmp_path):
    program = "import sys; from pathlib import Path; from wavepos_fairseq.common.files import write_whole; "
    program += "write_whole(Path(sys.argv[1]), 'whole')"
    script = f'"$0" -c "$1" >(cat >{tmp_path}/copy); wait'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-c", script, sys.executable, program], env=environment, check=True)
    assert (tmp_path / "copy").read_text() == "whole"


def test_a_file_keeps_its_mode_and_a_deleted_one_that_is_open_gets_the_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o600)
    write_whole(path, "whole")
    assert (path.stat().st_mode & 0o777, path.read_text()) == (0o600, "whole")
    with path.open("r+b") as opened:
        path.unlink()
        write_whole(Path(f"/dev/fd/{opened.fileno()}"), "again")
        assert opened.read() == b"again" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", [refuse_unwritable, lambda path: write_whole(path, "whole")])
def test_a_folder_in_the_place_of_a_file_is_named_and_stays(tmp_path, check):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path / 'folder'}'"):
        check(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_evaluation_whose_output_cannot_be_written_reads_nothing(tmp_path, capsys):
    words = ["no-data", "--path", "no-checkpoint", "--lengths", "8", "--output", tmp_path]
    assert f"Is a directory: '{tmp_path}'" in one_line_error(capsys, evaluation.main, *words)


def test_an_evaluation_of_a_truncated_best_checkpoint_names_it(tmp_path, capfd, forked):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dict.txt").write_text("a 1\n")
    folder = tmp_path / "runs/wikitext103-512/ricker"
    folder.mkdir(parents=True)
    (folder / "checkpoint_best.pt").write_bytes(b"PK\3\4 cut off")
    words = ["evaluate", "wikitext103-512", "ricker", "--data", tmp_path / "data", "--runs", tmp_path / "runs"]
    assert experiments.main([*map(str, words)]) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"error: --path {folder}/checkpoint_best.pt is no fairseq checkpoint")
    assert not (folder / "evaluation.json").exists()
