"""The package as others get it: built, installed alone, and used from a folder that is not the checkout."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from wavepos_fairseq import __version__
from wavepos_fairseq.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"
IMPORT_ALL = """
import importlib, pkgutil, sys, wavepos_fairseq
modules = [module.name for module in pkgutil.walk_packages(wavepos_fairseq.__path__, "wavepos_fairseq.")]
for name in modules:
    if not name.endswith(("__main__", ".hf")):  # which are processes, and needs its extra
        importlib.import_module(name)
print(len(modules), [name for name in ("matplotlib", "plotly", "submitit", "tensorboardX") if name in sys.modules])
"""


def run(*command, cwd, accepted=0):
    done = subprocess.run(
        [str(word) for word in command], cwd=str(cwd), env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == accepted, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel of the checkout, the sdist, and the sdist's wheel; made from a copy, in which tables were judged."""
    folder = tmp_path_factory.mktemp("built")
    probe = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), "setuptools"]
    probed = subprocess.run(probe, env=ENVIRONMENT, capture_output=True, text=True)
    if probed.returncode:
        pytest.skip(f"no package index: {probed.stderr.strip().splitlines()[-1]}")
    checkout = folder / "a checkout"
    for name in ("wavepos_fairseq", "configs", "results/paper", "tests"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "results/paper/claims.md").write_text("made here")
    run(sys.executable, "-m", "build", "--outdir", folder / "built", checkout, cwd=folder)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder / "direct", checkout, cwd=folder)
    (sdist,), (of_sdist,) = (folder / "built").glob("*.tar.gz"), (folder / "built").glob("*.whl")
    return next((folder / "direct").glob("*.whl")), sdist, of_sdist


def needed_by(package):
    """What the package requires without extras, and what that requires: files and folders in this environment."""
    found, left = {}, [(package, "")]
    for distribution, extra in left:
        if (distribution.metadata["Name"], extra) in found:
            continue
        found[distribution.metadata["Name"], extra] = distribution
        for required in distribution.requires or ():
            requirement = Requirement(required.replace(".*", ""))  # omegaconf 2.0 has >=5.1.*, which is none
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                for needed in metadata.distributions(name=requirement.name):  # none is torchaudio's, if it did not load
                    left += [(needed, extra) for extra in ("", *requirement.extras)]
    paths = {
        Path(distribution.locate_file(name))
        for distribution in found.values()
        if distribution is not package  # an egg-info, as an old pip makes, lists the files before they are installed
        for name in [*(file.parts[0] for file in distribution.files), *_top_level(distribution)]
        if name not in ("..", "__pycache__")
    }
    return {path for path in paths if path.exists()}


def _top_level(distribution):
    return (distribution.read_text("top_level.txt") or "").split()


def link(path, to):
    """Links files, in new folders, because fairseq looks for plugins in the folder above its own."""
    if path.is_dir():
        shutil.copytree(str(path), str(to), copy_function=os.symlink)
    else:
        os.symlink(str(path), str(to))


@pytest.fixture(scope="module")
def outside(built, tmp_path_factory):
    """outside(program, words): run where the wheel is installed without extras, in a folder of another project.

    What it requires is linked from this environment, which is the same as installing it, but for minutes and gigabytes.
    """
    folder = tmp_path_factory.mktemp("outside")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    run(folder / "venv/bin/python", "-m", "pip", "install", "--no-deps", built[0], cwd=folder)
    (packages,) = (folder / "venv/lib").glob("*/site-packages")
    for path in needed_by(*metadata.distributions(name="wavepos-fairseq", path=[str(packages)])):
        if not (packages / path.name).exists():
            link(path, packages / path.name)
    here = folder / "another project"
    here.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    run(*git, "init", "--quiet", cwd=here)
    run(*git, "commit", "--quiet", "--allow-empty", "--message", "begun", cwd=here)

    def call(program, *words, accepted=0):
        return run(folder / "venv/bin" / program, *words, cwd=here, accepted=accepted)

    call.folder = here
    return call


@pytest.fixture(scope="module")
def trained(outside):
    outside("wavepos", "prepare", "demo")
    outside("wavepos", "train", "demo", "nope")
    outside("wavepos", "evaluate", "demo", "nope")


def contents_of_wheel(path):
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}


def contents_of_checkout():
    """The package's files, those behind its links to configs and the paper's tables included."""
    files = [
        Path(folder, name) for folder, _, names in os.walk(ROOT / "wavepos_fairseq", followlinks=True) for name in names
    ]
    kept = [path for path in files if path.suffix != ".pyc" and (path.parent.name != "paper" or path.suffix == ".csv")]
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in kept}


def test_a_wheel_holds_the_package_its_configs_and_the_papers_tables_and_nothing_else(built):
    wheel, _, of_sdist = built
    expected = contents_of_checkout()
    named = ("py.typed", "lab/report.html", "paper/table1.csv", "paper/press2022.csv")
    assert {f"wavepos_fairseq/{name}" for name in named} < set(expected)
    assert contents_of_wheel(wheel) == expected == contents_of_wheel(of_sdist)


def test_an_sdist_holds_besides_what_builds_the_wheel_and_no_tests(built):
    with tarfile.open(built[1]) as sdist:
        files = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    rest = {name for name in files - set(contents_of_checkout()) if ".egg-info/" not in name}
    assert rest - {"setup.cfg"} == {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.py"}


def test_the_metadata_have_the_version_the_license_and_the_readme(built):
    with zipfile.ZipFile(built[0]) as wheel:
        about = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(wheel.read(about).decode())
        assert [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    assert (told["Version"], told["License"]) == (__version__, "MIT")
    assert told["License-File"] == "LICENSE" and told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert {"lab", "hf", "docs", "test"} <= set(told.get_all("Provides-Extra"))


def test_every_module_can_be_imported_without_the_extras(outside):
    count, heavy = outside("python", "-c", IMPORT_ALL).stdout.split(maxsplit=1)
    of_hf = [name for name in contents_of_checkout() if name.startswith("wavepos_fairseq/hf/")]
    others = {*contents_of_checkout()} - {*of_hf}
    assert int(count) == sum(name.endswith(".py") for name in others)  # hf itself, but not the package itself
    assert heavy == "[]\n"
    said = outside("python", "-c", "import wavepos_fairseq.hf", accepted=1).stderr.splitlines()[-1]
    assert said.startswith("ImportError: this needs ") and 'pip install "wavepos-fairseq[hf]"' in said


def test_the_command_wavepos_is_installed_and_so_is_its_module(outside):
    said = outside("wavepos", "--help").stdout
    assert all(f"\n  {name} " in said for name in COMMANDS)
    assert outside("python", "-m", "wavepos_fairseq", "--help").stdout == said
    assert outside("wavepos", "--version").stdout == f"{__version__}\n"
    assert outside("wavepos", "trian", accepted=2).stderr.count("\n") == 1


@pytest.mark.long
def test_the_demos_first_row_is_trained_and_evaluated_where_one_stands(outside, trained):
    run_folder = outside.folder / "runs/demo/nope"
    cells = json.loads((run_folder / "evaluation.json").read_text())["cells"]
    assert {cell["l_train"] for cell in cells} == {64} and len(cells) == 12
    assert all(10 < cell["perplexity"] < 500 for cell in cells)  # of 5,000 and more types
    assert {path.name for path in outside.folder.iterdir()} >= {".git", "data", "runs"}
    assert "| nope " in outside("wavepos", "status", "table1", "--preset", "demo").stdout


@pytest.mark.long
def test_what_is_recorded_names_no_folder_of_this_machine_and_not_the_commit_of_the_folders_own_project(
    outside, trained
):
    recorded = [path for path in outside.folder.rglob("*.*") if path.suffix in (".json", ".pt", ".txt", ".idx")]
    assert {"training.json", "evaluation.json", "checkpoint_last.pt"} <= {path.name for path in recorded}
    assert not [path for path in recorded if str(outside.folder.parent).encode() in path.read_bytes()]
    commit = "from wavepos_fairseq.lab import runs; print(runs._commit())"
    assert outside("python", "-c", commit).stdout == "not a git checkout\n"


def test_fairseq_train_finds_the_installed_plugin_by_its_name(outside):
    words = ["none", "--user-dir", "wavepos_fairseq", "--task", "language_modeling", "--arch", "transformer_lm_wavelet"]
    said = outside("python", "-m", "fairseq_cli.train", *words, "--wavelet-scales", accepted=2).stderr
    assert said.splitlines()[-1].endswith("error: argument --wavelet-scales: expected one argument")


def test_the_papers_own_tables_are_judged(outside):
    said = outside("wavepos", "claims", "--preset", "paper").stdout
    assert said.startswith("# The paper's statements, judged on paper\n") and "| **holds** |" in said
    assert (outside.folder / "results/paper/claims.json").is_file()


@pytest.mark.parametrize(
    "words, missing",
    [
        (["figures", "figure4"], "matplotlib"),
        (["figures", "--preset", "paper"], "matplotlib"),
        (["report", "--preset", "demo"], "plotly"),
        (["reproduce", "table1", "--preset", "demo", "--launcher", "slurm"], "submitit"),
    ],
)
def test_what_needs_the_extra_says_so_in_one_line(outside, words, missing):
    said = outside("wavepos", *words, accepted=2).stderr
    assert said == f'error: this needs {missing}: pip install "wavepos-fairseq[lab]"\n'
