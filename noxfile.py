"""The whole test suite under each Python for which there is a fairseq: nox -s tests-3.8 tests-3.11 tests-3.12

3.8 has fairseq 0.12.2 itself, with PyTorch 2.0.1; 3.11 and 3.12 have the same code as ve-fairseq. scripts/test.sh,
which CI runs, is the one of its Python, without nox. The interpreters must be on the PATH.
"""

import nox

nox.options.default_venv_backend = "venv"  # its pip for 3.8 still reads the metadata of what fairseq 0.12.2 needs


@nox.session(python=["3.8", "3.11", "3.12"])
def tests(session):
    session.install("-c", "constraints.txt", "-e", ".[test]")
    python = f"{session.bin}/python"  # the scripts' too, for they would take the one of .venv
    workers = ["-n", "auto", "--dist", "loadfile"]
    session.run("pytest", *workers, *session.posargs, env={"PYTHON": python, "OMP_NUM_THREADS": "1"})
