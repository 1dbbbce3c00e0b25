"""The layers of docs/architecture.md, read off the modules' imports."""

import ast
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wavepos_fairseq"
# From the ground up; what is on one floor is separated by a blank, and does not import one another but as written.
LAYERS = ["common", "wavelets", "positions", "attention", "evaluation", "tasks", "models", "plugin hf", "data", "lab"]
FLOOR = {part: number for number, parts in enumerate(LAYERS) for part in parts.split()}
LIBRARY = ("wavelets", "positions", "attention")
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__main__.py"]  # which are entry points
NAMES = {path.relative_to(PACKAGE).as_posix(): path for path in MODULES}


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Absolute names of all that a module imports, wherever in it."""
    package = ["wavepos_fairseq", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*module, name.name]) for name in node.names)


def third_parties(path):
    """The distributed packages that a module imports."""
    installed = tuple(str(Path(sysconfig.get_path(scheme)).resolve()) for scheme in ("purelib", "platlib"))
    for name in {name.split(".")[0] for name in imports(path)} - {"wavepos_fairseq"}:
        spec = importlib.util.find_spec(name)
        if spec is None or str(Path(spec.origin or "").resolve()).startswith(installed):
            yield name


def own_parts(path):
    """The parts of this package that a module imports from; '' where it is the package's own __init__."""
    for name in imports(path):
        first, *rest = name.split(".")
        if first == "wavepos_fairseq":
            yield rest[0] if rest[0] in FLOOR else ""


@pytest.mark.parametrize("name", NAMES)
def test_arrows_go_down_only(name):
    path = NAMES[name]
    above = {part for part in own_parts(path) if part and FLOOR[part] > FLOOR.get(part_of(path), -1)}
    beside = {part for part in own_parts(path) if part and FLOOR[part] == FLOOR.get(part_of(path))} - {part_of(path)}
    assert not above | beside, f"{name} imports {above | beside}"


@pytest.mark.parametrize("name", [name for name in NAMES if name.split("/")[0].split(".")[0] in LIBRARY])
def test_the_library_needs_pytorch_and_pywavelets_only(name):
    assert {*third_parties(NAMES[name])} <= {"torch", "pywt", "numpy", "typing_extensions", "triton"}
    assert "common" not in own_parts(NAMES[name])


@pytest.mark.parametrize("name", NAMES)
def test_fairseq_is_known_to_its_own_side_only_and_the_ground_floor_needs_nothing(name):
    part, needed = part_of(NAMES[name]), {*third_parties(NAMES[name])}
    if part not in ("models", "tasks", "plugin"):
        assert not needed & {"fairseq", "fairseq_cli"}
    if part == "common":
        assert not needed
    assert not any(imported.startswith("unittest") for imported in imports(NAMES[name]))


@pytest.mark.parametrize("name", NAMES)
def test_transformers_is_known_to_the_hugging_face_side_only_which_knows_nothing_of_fairseqs(name):
    if part_of(NAMES[name]) == "hf":
        assert not {*own_parts(NAMES[name])} & {"models", "tasks", "plugin"}
    else:
        assert not {*third_parties(NAMES[name])} & {"accelerate", "huggingface_hub", "tokenizers", "transformers"}


def test_importing_reads_no_file_of_the_project():
    known = importlib.util.find_spec("transformers")
    modules = [path for path in MODULES if known or part_of(path) != "hf"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
    program = f"""
import importlib, sys
read = []
def hear(event, arguments):
    if event == "open" and str(arguments[0]).startswith({str(ROOT)!r}) and "w" not in str(arguments[1]):
        read.append(str(arguments[0]))
sys.addaudithook(hear)
for name in {names!r}:
    if not name.endswith(("attention.triton", "plugin.parallel")):  # which need Triton, and are a process
        importlib.import_module(name.replace(".__init__", ""))
others = ("/lib/", ".egg-info/")  # installed packages, this one too, say which representations they bring
print([path for path in read if not path.endswith((".py", ".pyc")) and not any(of in path for of in others)])
"""
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=str(ROOT), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
