"""The shell scripts: from any folder, into any folder, and no further than the first step that fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import synthetic_text

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK, CI = "benchmarks/gpu.sh", ".ci/run"
SCRIPTS = sorted(f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.sh") if path.name != "env.sh")
STEPS = {  # what each step of the scripts that have several is given, in order
    "scripts/quickstart.sh": ["wavepos_fairseq prepare demo", "wavepos_fairseq reproduce table1"],
    "scripts/test.sh": ["ruff check", "mypy", "pytest"],
    CI: ["ruff check", "mypy", "pytest"],
}
PARTS = {  # what a step of the benchmark on a GPU runs
    "right": ["pytest", "benchmarks/kernel.py errors", "benchmarks/attention.py"],
    "fast": ["benchmarks/kernel.py speed"],
    "paper": ["benchmarks/paper.py updates"],
    "table1": ["benchmarks/paper.py table1"],
    "rest": ["benchmarks/attention.py", "benchmarks/training.py"],
}
NEEDED = {BENCHMARK: ["rest"]}  # the words without which a script does nothing


def run(script, *words, cwd, path=os.environ["PATH"], shell="bash"):
    environment = {
        **os.environ,
        "PATH": str(path),
        "OMP_NUM_THREADS": "1",
        "PYTHON": "",  # the project's
        "PYTHONPATH": "",
        "PYTHONWARNINGS": "ignore",
    }
    command = [shutil.which(shell), str(script), *map(str, words)]
    return subprocess.run(command, cwd=str(cwd), env=environment, capture_output=True, text=True)


def project_with(folder, python):
    """The project's scripts in `folder`, as if it were installed; its Python, also python3, is a shell script."""
    for name in ("scripts", ".ci", "benchmarks"):
        shutil.copytree(str(ROOT / name), str(folder / name), ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".venv/bin").mkdir(parents=True)
    for name in ("setup.py", "constraints.txt", ".venv/installed"):
        (folder / name).write_text("")
    os.utime(str(folder / "setup.py"), (1, 1))
    os.utime(str(folder / "constraints.txt"), (1, 1))
    for name in ("python", "python3", "sbatch"):  # where there is sbatch, .ci/run installs nothing
        (folder / ".venv/bin" / name).write_text(f"#!/bin/sh\n{python}\n", encoding="utf-8")
        (folder / ".venv/bin" / name).chmod(0o755)
    return folder


@pytest.fixture
def stub(tmp_path):
    """stub(script, words, failing=step): its status, stderr, and the calls of a Python that fails in that step."""
    python = (
        'printf "%s\\n" "$*" >>"$(dirname "$0")/calls"; case "$*" in *"$(cat "$(dirname "$0")/failing")"*) exit 7; esac'
    )
    project = project_with(tmp_path / "project", python)

    def called(script, *words, failing="nothing", shell="bash"):
        bin = project / ".venv/bin"
        (bin / "failing").write_text(failing)
        (bin / "calls").write_text("")
        done = run(project / script, *words, cwd=tmp_path, path=f"{bin}:{os.environ['PATH']}", shell=shell)
        return done, (bin / "calls").read_text().splitlines()

    return called


def test_shellcheck_has_nothing_to_say():
    command = [str(Path(sys.executable).with_name("shellcheck")), "scripts/env.sh", *SCRIPTS, BENCHMARK, CI]
    done = subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("script", [*SCRIPTS, BENCHMARK])
def test_help_is_the_scripts_head_and_starts_nothing(stub, script):
    head = [line for line in (ROOT / script).read_text(encoding="utf-8").splitlines() if line.startswith("#")][1]
    for word in ("--help", "-h"):
        done, calls = stub(script, word)
        assert (done.returncode, calls, done.stderr) == (0, [], "")
        assert done.stdout.startswith(head[2:])


def test_a_text_about_help_is_not_asking_for_it(stub):
    done, calls = stub("scripts/figures.sh", "--text", "what does -h mean")
    assert done.returncode == 0 and len(calls) == 1 and "what does -h mean" in calls[0]


@pytest.mark.parametrize("script, steps", STEPS.items())
def test_every_step_is_made_until_one_fails(stub, script, steps):
    done, calls = stub(script)
    assert done.returncode == 0 and len(calls) == len(steps)
    assert all(step in call for step, call in zip(steps, calls))
    for number, step in enumerate(steps):
        done, calls = stub(script, failing=step)
        assert done.returncode == 7 and len(calls) == number + 1


@pytest.mark.parametrize("step, parts", PARTS.items())
def test_every_part_of_a_step_on_a_gpu_is_made_even_if_another_fails(stub, step, parts):
    for failing in ("nothing", *parts):
        done, calls = stub(BENCHMARK, step, failing=failing)
        assert done.returncode == (failing != "nothing")
        made = [call for call in calls if not call.startswith("-c ")]
        assert len(made) == len(parts) and all(part in call for part, call in zip(parts, made))


@pytest.mark.parametrize(
    "words, why",
    [
        ([], "no step is given"),
        (["all"], "not all"),
        (["right", "python3", "fast"], "not fast"),
        (["fast", "no-python"], "not no-python"),
    ],
)
def test_the_benchmark_on_a_gpu_says_what_its_steps_are(stub, words, why):
    done, calls = stub(BENCHMARK, *words)
    accepted = "a step (right, fast, paper, table1 or rest), the name of one Python and --dry-run"
    assert (done.returncode, calls, done.stderr) == (2, [], f"error: gpu.sh takes {accepted}; {why}\n")


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in STEPS])
def test_other_scripts_are_one_step_whose_status_is_theirs(stub, script):
    done, calls = stub(script, "a b", "--preset", "x", failing="a b")
    assert done.returncode == 7 and len(calls) == 1 and calls[0].endswith("a b --preset x")


@pytest.mark.parametrize("script", ["scripts/quickstart.sh", BENCHMARK])
def test_a_script_that_knows_no_options_says_so_and_starts_nothing(stub, script):
    done, calls = stub(script, "--no-such-option")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "--no-such-option" in done.stderr


@pytest.mark.parametrize("script", [*SCRIPTS, BENCHMARK])
def test_scripts_work_through_links_and_by_the_name_of_another_shell(stub, tmp_path, script):
    words = NEEDED.get(script, [])
    done, calls = stub(script, *words)
    assert done.returncode == 0 and calls
    here = tmp_path / "bin"
    here.mkdir()
    (here / "first").symlink_to(Path("..", "project", script))
    (here / "second").symlink_to("first")
    for name, shell in ((tmp_path / "bin/second", "bash"), (script, "sh"), (here / "first", "sh"), (script, "zsh")):
        if shutil.which(shell):
            done, again = stub(name, *words, shell=shell)
            assert (done.returncode, again) == (0, calls), (name, shell, done.stderr)
            done, again = stub(name, "--help", shell=shell)
            assert (done.returncode, again, done.stderr) == (0, [], "") and done.stdout


# A Python whose venv has a Python like itself, and then a pip; it kills the script that calls it where KILLED says so.
INSTALLING_PYTHON = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
*fcntl*) exec "$REAL_PYTHON" "$@" ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && [ "$KILLED" != venv ] && touch "$3/bin/pip" ;;
"-m pip --version") test -e "${0%/*}/pip" || exit 1 ;;
"-m pip install "*) sleep "$SECONDS_TO_INSTALL" && touch "${0%/*}/../a package" ;;
*"import torchaudio"*) [ "$KILLED" != torchaudio ] || exit 1 ;;
esac
case "$*" in "-m $KILLED"*) kill -9 $PPID ;; esac
"""


@pytest.fixture
def quickstart(tmp_path):
    """quickstart(killed): a process of quickstart.sh that is killed in that step, in a project without .venv."""
    project = project_with(tmp_path / "pro [ject]", "exit 1")
    shutil.rmtree(str(project / ".venv"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(INSTALLING_PYTHON, encoding="utf-8")
    (tmp_path / "bin/python3").chmod(0o755)

    def started(killed="nothing", seconds="0"):
        environment = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "REAL_PYTHON": sys.executable,
            "KILLED": killed,
            "SECONDS_TO_INSTALL": seconds,
        }
        command = ["bash", str(project / "scripts/quickstart.sh")]
        return subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, universal_newlines=True)

    started.venv = project / ".venv"
    started.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    return started


@pytest.mark.parametrize("killed", ["venv", "pip --version", "pip install"])
def test_a_quickstart_killed_while_it_installs_is_made_anew_by_the_next(quickstart, killed):
    first = quickstart(killed)
    first.communicate()
    assert first.returncode == -9
    (quickstart.venv / "half").write_text("of a package")
    second = quickstart()
    said = second.communicate()
    assert second.returncode == 0, said
    assert {path.name for path in quickstart.venv.iterdir()} == {"bin", "a package", "install.log", "installed"}
    calls = quickstart.calls()
    third = quickstart()
    third.communicate()
    assert third.returncode == 0
    assert [call for call in quickstart.calls()[len(calls) :] if "venv" in call or "pip" in call] == []


def test_a_quickstart_killed_before_there_is_anything_in_venv_goes_on(quickstart):
    quickstart.venv.mkdir()
    process = quickstart()
    assert process.communicate() and process.returncode == 0
    assert (quickstart.venv / "installed").exists()


@pytest.mark.parametrize("fails", ["nothing", "torchaudio"])
def test_a_torchaudio_that_does_not_load_is_removed_and_no_other(quickstart, fails):
    process = quickstart(fails)
    assert process.communicate() and process.returncode == 0
    assert ("-m pip uninstall --yes torchaudio" in quickstart.calls()) == (fails == "torchaudio")


def test_an_environment_of_the_users_own_is_installed_into_or_refused_but_never_removed(quickstart):
    (quickstart.venv / "bin").mkdir(parents=True)
    (quickstart.venv / "bin/mine").write_text("kept")
    process = quickstart()
    _, said = process.communicate()
    assert process.returncode == 1 and said.startswith("error: ") and said.count("\n") == 1
    assert f"{quickstart.venv} has no working pip; remove it" in said
    for name in ("python", "pip"):
        shutil.copy(str(quickstart.venv.parents[1] / "bin/python3"), str(quickstart.venv / "bin" / name))
    process = quickstart()
    assert process.communicate() and process.returncode == 0
    assert (quickstart.venv / "a package").exists() and (quickstart.venv / "bin/mine").read_text() == "kept"
    assert not any(call.startswith("-m venv") for call in quickstart.calls())


def test_two_quickstarts_at_once_install_once(quickstart):
    both = [quickstart(seconds="0.5"), quickstart(seconds="0.5")]
    assert all(process.communicate() and process.returncode == 0 for process in both)
    calls = quickstart.calls()
    assert sum(call.startswith("-m venv") for call in calls) == 1
    assert sum(call.startswith("-m pip install") for call in calls) == 1


def test_a_project_in_a_folder_with_a_colon_says_so(tmp_path):
    project = project_with(tmp_path / "a:b", "exit 0")
    done = run(project / "scripts/status.sh", "table1", "--preset", "demo", cwd=tmp_path)
    assert done.returncode == 2 and "a:b contains a colon" in done.stderr and done.stderr.count("\n") == 1


def test_what_the_scripts_make_of_the_papers_tables_is_not_the_projects(tmp_path):
    """Of results/paper only the paper's numbers are kept; what `--preset paper` writes beside them git leaves out."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copy(str(ROOT / ".gitignore"), str(tmp_path))
    made = ["claims.md", "claims.json", "figures/perplexity.svg", "figures/perplexity.png"]
    names = [f"results/paper/{name}" for name in (*made, "table1.csv", "table3.csv", "table4.csv")]
    command = ["git", "-C", str(tmp_path), "check-ignore", *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == names[: len(made)]


def test_an_unknown_option_is_status_2_and_named_in_the_last_line(tmp_path):
    done = run(ROOT / "scripts/prepare_data.sh", "demo", "--no-such-option", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("error: unrecognized arguments: --no-such-option")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_all_scripts_work_in_folders_with_spaces_and_other_letters_and_take_paths_from_where_one_stands(tmp_path):
    pytest.importorskip("fairseq")
    project = project_with(tmp_path / "my projéct, ü=1", f'exec {sys.executable} "$@"')
    for name in ("wavepos_fairseq", "configs", "results/paper"):
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(str(ROOT / name), str(project / name), symlinks=True, ignore=left_out)
    preset = yaml.safe_load((ROOT / "configs/presets/demo.yaml").read_text(encoding="utf-8"))
    preset.update(corpus="text", l_train=32, lengths=[32, 64], tokens_per_update=64, tokens_per_device=64)
    preset["train"].update({"max-update": 2, "warmup-updates": 1, "log-interval": 1})
    preset["train"].update({"adaptive-softmax-cutoff": "10,20", "adaptive-input-cutoff": "10,20"})
    (project / "configs/presets/tiny.yaml").write_text(yaml.safe_dump(preset), encoding="utf-8")
    rows = {"ricker": {"labels": {"method": "Wavelet Ricker"}, "position": {"name": "wavelet", "wavelet": "ricker"}}}
    (project / "configs/tables/tiny.yaml").write_text(yaml.safe_dump({"title": "Tiny", "rows": rows}), encoding="utf-8")
    here = tmp_path / "où l'on est"
    (here / "mon texte").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (here / f"mon texte/{split}.txt").write_text(synthetic_text(60, seed=len(split)), encoding="utf-8")
    before = sorted(project.rglob("*"))

    def said(script, *words):
        done = run(project / "scripts" / script, *words, cwd=here)
        assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
        return done.stdout

    runs, results = ["--runs", "mes exécutions"], ["--results", "mes résultats"]
    data = ["--data", "mes données/text"]
    assert "ready" in said("prepare_data.sh", "text", "--from", "mon texte", "--dest", "mes données")
    said("train.sh", "tiny", "ricker", *data, *runs)
    assert (here / "mes exécutions/tiny/ricker/checkpoint_last.pt").is_file()
    assert "on est/mes exécutions/tiny/ricker/" in said("evaluate.sh", "tiny", "ricker", *data, *runs, "--dry-run")
    said("sweep.sh", "--preset", "tiny", "--wavelet", "ricker", *data, *runs, *results)
    assert "ricker: done" in said("reproduce.sh", "tiny", "--preset", "tiny", *data, *runs, *results)
    assert "done" in said("status.sh", "tiny", "--preset", "tiny", *data, *runs)
    said("figures.sh", "--preset", "tiny", "positions", *data, *runs, *results)
    said("claims.sh", "--preset", "tiny", *results)
    said("report.sh", "--preset", "tiny", *results)
    made = {str(path.relative_to(here / "mes résultats/tiny")) for path in (here / "mes résultats/tiny").rglob("*.*")}
    assert {"sweep.md", "tiny.tidy.csv", "claims.json", "report.html", "figures/positions.svg"} <= made
    result = json.loads((here / "mes exécutions/tiny/ricker/result.json").read_text(encoding="utf-8"))
    assert [cell["sequence_length"] for cell in result["cells"]] == [32, 32, 64, 64]
    assert sorted(path for path in project.rglob("*") if "__pycache__" not in str(path)) == before
    assert {path.name for path in here.iterdir()} == {"mon texte", "mes données", "mes exécutions", "mes résultats"}
