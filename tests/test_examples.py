"""The example without fairseq runs as it says, and its model is an ordinary PyTorch module."""

import copy
import importlib.util
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from wavepos_fairseq.positions import position_names

EXAMPLE = ROOT / "examples" / "plain_pytorch.py"
RUN_WITHOUT_FAIRSEQ = """
import runpy, sys
sys.modules["fairseq"] = None  # importing it fails
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("plain_pytorch", str(EXAMPLE))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*words):
    command = [sys.executable, "-c", RUN_WITHOUT_FAIRSEQ, str(EXAMPLE), *map(str, words)]
    return subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_without_fairseq_it_prints_what_three_representations_learned_at_three_lengths():
    done = run("README.md", "--steps", 20, "--length", 16)
    heading, *rows = (line.split() for line in done.stdout.splitlines())
    assert heading == ["perplexity", "16", "32", "64"], done.stdout
    assert [row[0] for row in rows] == ["wavelet", "alibi", "rope"]
    for _, *perplexities in rows:
        assert len(perplexities) == 3 and all(1 < float(number) < 128 for number in perplexities)  # uniform: 256


def test_a_text_too_short_for_the_longest_pieces_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("word " * 100)
    done = run(tmp_path / "short.txt")
    assert done.returncode == 2
    assert "short.txt: the last tenth, 49 bytes, is not longer than 4 x --length" in done.stdout


@pytest.fixture
def models(example):
    """models(representation, seed): the example's model, with random numbers also where they start at zero."""

    def model(representation, seed=0):
        torch.manual_seed(seed)
        built = example.gpt(representation).eval()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return built

    return model


TEXT = torch.arange(2 * 40).view(2, 40) * 7 % 256


@pytest.mark.parametrize("representation", position_names())
@torch.no_grad()
def test_a_model_is_copied_saved_moved_to_another_dtype_and_told_from_another_seed(models, representation, tmp_path):
    model, other = models(representation), models(representation, seed=1)
    logits = model(TEXT)
    assert not torch.allclose(other(TEXT), logits, atol=0.1)
    torch.save(model.state_dict(), str(tmp_path / "model.pt"))
    other.load_state_dict(torch.load(str(tmp_path / "model.pt")))
    for same in other, copy.deepcopy(model):
        assert torch.equal(same(TEXT), logits)
    in_fp64 = copy.deepcopy(model).double()(TEXT)
    assert in_fp64.dtype == torch.float64
    torch.testing.assert_close(in_fp64.float(), logits, rtol=1e-3, atol=1e-3)
    assert copy.deepcopy(model).bfloat16()(TEXT).dtype == torch.bfloat16
