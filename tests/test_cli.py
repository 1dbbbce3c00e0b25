"""What all commands share: their help under any of Python's switches, and one line where there is no fairseq."""

import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from wavepos_fairseq.data import command as prepare
from wavepos_fairseq.lab import alibi_release, experiments
from wavepos_fairseq.lab.figures import trained as curves
from wavepos_fairseq.plugin import evaluate as evaluation

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["alibi_release", "claims", "curves", "data", "evaluation", "experiments", "figures", "report"]
NEED_FAIRSEQ = [
    (alibi_release.main, ["512", "--from", "NONE"]),
    (curves.main, ["--path", "NONE", "--data", "NONE"]),
    (prepare.main, ["demo"]),
    (evaluation.main, ["NONE", "--path", "NONE", "--lengths", "8"]),
    (experiments.main, ["reproduce", "table1", "--preset", "demo"]),
    *[(experiments.main, [command, "--preset", "demo", "--wavelet", "ricker"]) for command in ("sweep", "status")],
    *[(experiments.main, [command, "demo", "ricker"]) for command in ("train", "evaluate")],
]


@pytest.fixture
def no_fairseq(monkeypatch):
    for name in ("fairseq", "fairseq_cli"):
        monkeypatch.setitem(sys.modules, name, None)


def assert_one_line_names_the_pythons(stopped, said):
    assert stopped.value.code == 2
    assert said.startswith("error: this needs fairseq, ") and said.count("\n") == 1
    assert "Python 3.8, 3.11 and 3.12" in said


@pytest.mark.parametrize("main, words", NEED_FAIRSEQ, ids=lambda value: value[0] if isinstance(value, list) else None)
def test_a_command_without_fairseq_says_which_pythons_have_one_and_does_nothing(
    no_fairseq, monkeypatch, tmp_path, capsys, main, words
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert_one_line_names_the_pythons(stopped, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", ["parallel", *(f"benchmarks/{name}.py" for name in ("precision", "training"))])
def test_what_imports_fairseq_at_its_head_says_so_too(no_fairseq, monkeypatch, capsys, program):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    with pytest.raises(SystemExit) as stopped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a module that another test has imported already
        if program == "parallel":
            runpy.run_module("wavepos_fairseq.plugin.parallel", run_name="__main__")
        else:
            runpy.run_path(str(ROOT / program), run_name="__main__")
    assert_one_line_names_the_pythons(stopped, capsys.readouterr().err)


@pytest.mark.parametrize("main, words", NEED_FAIRSEQ[:5:2] + NEED_FAIRSEQ[3:4])
def test_without_fairseq_there_is_help_all_the_same(no_fairseq, capsys, main, words):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0 and capsys.readouterr().out.startswith("usage: ")


def test_help_needs_no_docstrings_and_warns_of_nothing():
    """Under -OO, which drops docstrings; under -W error but for what others' modules set off, such as fairseq's own."""
    program = """
import runpy, sys, warnings
sys.path.insert(0, "benchmarks")
programs = {f"wavepos_fairseq.{name}": runpy.run_module for name in sys.argv[1].split()}
programs.update({name: runpy.run_path for name in sys.argv[2].split()})
for name, run in programs.items():
    if "benchmarks/" in name:
        warnings.simplefilter("ignore")
    sys.argv = [name, "--help"]
    try:
        run(name, run_name="__main__")
    except SystemExit as stop:
        assert stop.code == 0, name
    else:
        raise AssertionError(name)
"""
    files = [f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py") if path.name != "measure.py"]
    words = [" ".join(COMMANDS), " ".join(["examples/plain_pytorch.py", *files])]
    command = [sys.executable, "-OO", "-W", "error", "-W", "ignore::RuntimeWarning:runpy", "-c", program, *words]
    done = subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("usage: ") == len(COMMANDS) + 1 + len(files)
