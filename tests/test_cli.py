"""What all commands share: their help, light and under any of Python's switches, and one line for what is missing."""

import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from wavepos_fairseq import __main__ as wavepos
from wavepos_fairseq import __version__
from wavepos_fairseq.data import command as prepare
from wavepos_fairseq.lab import alibi_release, experiments, report
from wavepos_fairseq.lab import evaluate as evaluation
from wavepos_fairseq.lab.figures import command as figures
from wavepos_fairseq.lab.figures import trained
from wavepos_fairseq.lab.figures.formulas import FIGURES

ROOT = Path(__file__).resolve().parents[1]
MODULES = ["wavepos_fairseq", *(f"wavepos_fairseq.{name}" for name in ("evaluation", "lab.alibi_release"))]
HEAVY = ("torch", "numpy", "pandas", "fairseq", "matplotlib", "plotly", "jinja2", "submitit", "pyarrow", "sacremoses")
NEED_LAB = [
    (figures.main, ["figure4"], "matplotlib"),
    (figures.main, ["--preset", "paper"], "matplotlib"),
    (report.main, ["--preset", "paper"], "jinja2"),
    (report.main, ["--preset", "paper"], "plotly"),
    (experiments.main, ["reproduce", "table1", "--preset", "demo", "--launcher", "slurm"], "submitit"),
]
NEED_FAIRSEQ = [
    (alibi_release.main, ["512", "--from", "NONE"]),
    (figures.main, ["--path", "NONE", "--data", "NONE"]),
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


def test_a_folder_of_that_name_where_one_stands_is_no_fairseq(tmp_path):
    (tmp_path / "fairseq").mkdir()
    program = """
import sys
from pathlib import Path
from wavepos_fairseq.common import commands
sys.path[:] = [path for path in sys.path if not Path(path, "fairseq", "__init__.py").exists()]
commands.require_fairseq()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=str(tmp_path), env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: this needs fairseq, ")


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


@pytest.mark.parametrize("main, words, module", NEED_LAB)
def test_a_command_without_what_an_extra_brings_says_which_in_one_line(
    monkeypatch, tmp_path, capsys, main, words, module
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == f'error: this needs {module}: pip install "wavepos-fairseq[lab]"\n'


def test_wavepos_says_what_its_commands_do_and_its_version(capsys):
    assert wavepos.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"  {name:<11}{line}" in lines for name, (_, _, line) in wavepos.COMMANDS.items())
    assert wavepos.main(["--version"]) == 0 and capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("words, said", [(["trian"], "'trian' is unknown"), (["-x"], "'-x' is"), ([], "a command is")])
def test_a_command_that_wavepos_does_not_know_is_one_line(capsys, words, said):
    assert wavepos.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {said}") and err.count("\n") == 1
    assert err.endswith(f"; accepted are {', '.join(wavepos.COMMANDS)}\n")


@pytest.mark.parametrize("command", wavepos.COMMANDS)
def test_help_of_wavepos_imports_nothing_heavy(command):
    program = f"""
import sys
from wavepos_fairseq.__main__ import main
try:
    main([{command!r}, "--help"])
except SystemExit as stop:
    assert stop.code == 0
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-OO", "-W", "error", "-c", program], cwd=str(ROOT), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: wavepos {command} ") and done.stdout.splitlines()[-1] == "[]"


def test_what_wavepos_figures_says_can_be_drawn_is_what_is_drawn():
    assert figures.FORMULAS == tuple(FIGURES)
    assert figures.TABLES == (*trained.PERPLEXITY, *trained.COMPARED) and figures.MEASURED == tuple(trained.MEASURED)


@pytest.mark.parametrize(
    "words",
    [
        *(["--runs", "r", "figure4"], ["--threshold", "0.1"], ["--trust-checkpoint"], ["--position-encoding", "rope"]),
        *(["--preset", "paper", "--output", "o"], ["--path", "c", "--data", "d", "--output", "o"]),
        ["--preset", "paper", "--path", "c"],
    ],
)
def test_figures_of_formulas_and_of_what_was_trained_have_options_of_their_own(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        figures.main(words)
    assert stopped.value.code == 2 and "wavepos figures: error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.long
def test_help_needs_no_docstrings_and_warns_of_nothing():
    """Under -OO, which drops docstrings; under -W error but for what others' modules set off, such as fairseq's own."""
    program = """
import runpy, sys, warnings
sys.path.insert(0, "benchmarks")
programs = dict.fromkeys(sys.argv[1].split(), runpy.run_module)
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
    words = [" ".join(MODULES), " ".join(["examples/plain_pytorch.py", *files])]
    command = [sys.executable, "-OO", "-W", "error", "-W", "ignore::RuntimeWarning:runpy", "-c", program, *words]
    done = subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("usage: ") == len(MODULES) + 1 + len(files)
