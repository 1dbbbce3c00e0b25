"""Both fairseqs: nox -s tests-3.8 tests-3.11 tests-3.12, then nox -s exchange-3.8 exchange-3.11 exchange-3.12

3.8 has fairseq 0.12.2 itself, with PyTorch 2.0.1; 3.11 and 3.12 have the same code as ve-fairseq. scripts/test.sh,
which CI runs, is the tests of its Python, without nox. The interpreters must be on the PATH.
"""

import json
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"  # its pip for 3.8 still reads the metadata of what fairseq 0.12.2 needs
PYTHONS = ["3.8", "3.11", "3.12"]


def install(session):
    """The environment of what is run in it; the scripts take its Python, too, where they would take that of .venv."""
    session.install("-c", "constraints.txt", "-e", ".[test]")
    session.run("pip", "uninstall", "--yes", "torchaudio")  # scripts/env.sh says why
    return {"PYTHON": f"{session.bin}/python", "OMP_NUM_THREADS": "1"}


@nox.session(python=PYTHONS)
def tests(session):
    """The whole test suite."""
    session.run("pytest", "-m", "", "-n", "auto", "--dist", "loadfile", *session.posargs, env=install(session))


@nox.session(python="3.12")
@nox.parametrize("pytorch", ["oldest", "newest"])
def gpu(session, pytorch):
    """What benchmarks/gpu.sh does on a machine with a GPU, small and on the CPU, and the kernel's tests."""
    environment = install(session)
    if pytorch == "oldest":  # whose Triton has what the kernel needs; its interpreter cannot take NumPy 2.4
        session.install("torch==2.7.0", "numpy<2.4")
    tests = ["tests/test_benchmarks.py", "tests/test_triton.py"]
    session.run("pytest", "-m", "", *tests, *session.posargs, env=environment)


@nox.session(python=PYTHONS)
def exchange(session):
    """Trains two checkpoints, then evaluates them and those of the sessions before, which must give what they gave."""
    environment, folder = install(session), Path(session.cache_dir, "exchange").resolve()
    data, runs = folder / "data" / "demo", folder / "runs"
    session.run("scripts/prepare_data.sh", "demo", "--dest", str(data.parent), env=environment, external=True)
    for row in ("ricker", "trans-xl"):
        words = ["demo", row, "--name", f"{row}-{session.python}", "--max-update", "60", "--runs", str(runs)]
        session.run("scripts/train.sh", *words, "--data", str(data), env=environment, external=True)
    for checkpoint in sorted(runs.glob("demo/*/checkpoint_last.pt")):
        words = [str(data), "--path", str(checkpoint), "--lengths", "64,200", "--cpu"]
        output = checkpoint.with_name(f"evaluated-{session.python}.json")
        session.run("python", "-m", "wavepos_fairseq.evaluation", *words, "--output", str(output), env=environment)
        results = {path.stem: json.loads(path.read_text())["cells"] for path in output.parent.glob("evaluated-*.json")}
        for by, cells in results.items():
            for cell, ours in zip(cells, results[output.stem]):
                if abs(cell["nll"] - ours["nll"]) > 1e-6:
                    session.error(f"{checkpoint.parent.name}: {cell['nll']} nats {by}, {ours['nll']} {output.stem}")
