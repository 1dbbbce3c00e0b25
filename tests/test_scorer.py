"""Evaluation and probes of a model that fairseq knows nothing of; and what importing them imports."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from wavepos_fairseq.attention import causal_attention
from wavepos_fairseq.evaluation import probes
from wavepos_fairseq.evaluation.perplexity import evaluate, evaluate_lines, inputs_of
from wavepos_fairseq.positions import build_position

TYPES = 11


class OneLayer(torch.nn.Module):
    """Attention with ALiBi over the tokens' embeddings, which are its queries, keys and values."""

    l_train, bos, device = 8, 0, torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(TYPES, 6)
        self.position = build_position("alibi", head_dim=3, num_heads=2)

    def heads(self, tokens):
        return self.embedding(tokens).unflatten(-1, (2, 3)).transpose(1, 2)  # (B, L) -> (B, H, L, d)

    def score(self, source, target):
        x = self.heads(source)
        attended = causal_attention(x, x, x, self.position).transpose(1, 2).flatten(2)  # (B, L, C)
        return F.cross_entropy((attended @ self.embedding.weight.T).transpose(1, 2), target, reduction="none")

    def attention_inputs(self, tokens):
        return [(self.heads(tokens[None]), self.heads(tokens[None]), self.position, None)]


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    return OneLayer().requires_grad_(False)


@pytest.fixture
def stream():
    return torch.randint(TYPES, (90,), generator=torch.Generator().manual_seed(1))


def test_its_perplexity_is_that_of_its_losses_whole_and_in_pieces(scorer, stream):
    source = inputs_of(stream, bos=0)
    full, pieces = evaluate(scorer, stream, [20])
    for cell, length in ((full, 20), (pieces, 8)):
        cuts = [
            (at, min(at + length, end)) for end in range(20, 101, 20) for at in range(end - 20, min(end, 90), length)
        ]
        cuts = [(start, min(stop, 90)) for start, stop in cuts]
        losses = torch.cat([scorer.score(source[None, a:b], stream[None, a:b])[0] for a, b in cuts])
        assert len(losses) == 90 and cell["nll"] == pytest.approx(losses.double().mean().item(), rel=1e-6)
        assert cell["perplexity"] == math.exp(cell["nll"])
    assert full["nll"] != pieces["nll"]


def test_its_lines_begin_with_its_first_token(scorer, stream):
    (line,) = evaluate_lines(scorer, [stream[:5]])
    expected = scorer.score(torch.tensor([[0, *stream[:4].tolist()]]), stream[None, :5])
    assert line["nll"] == pytest.approx(expected.mean().item(), rel=1e-6)


def test_its_receptive_field_and_its_loss_over_positions_are_measured(scorer, stream):
    heads = probes.receptive_field(scorer, stream)
    assert [(line["layer"], line["head"]) for line in heads] == [(1, 1), (1, 2)]
    bins = probes.loss_by_position(scorer, stream)
    assert [line["start"] for line in bins] == list(range(40))
    (cell,) = evaluate(scorer, stream[:80], [40], ["full"])
    of_80 = probes.loss_by_position(scorer, stream[:80])
    assert sum(line["nll"] for line in of_80) / 40 == pytest.approx(cell["nll"], rel=1e-6)


@pytest.mark.parametrize(
    "module, unwanted",
    [
        ("evaluation.perplexity", {"fairseq", "omegaconf"}),
        ("evaluation.probes", {"fairseq", "omegaconf"}),
        ("lab.evaluate", {"fairseq", "torch", "transformers", "numpy"}),
        ("plugin.evaluate", {"fairseq", "torch", "numpy"}),
        ("plugin.options", {"fairseq", "torch", "numpy"}),
        ("plugin.streams", {"fairseq", "torch", "numpy"}),
    ],
)
def test_importing_a_module_imports_nothing_above_it_and_nothing_slow(module, unwanted):
    program = f"import sys, wavepos_fairseq.{module}; print(sorted({unwanted} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=str(ROOT), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("l_train, stops", [(3, [*range(1, 16)]), (23, [*range(2, 116, 2), 115])])
def test_a_length_that_the_bins_do_not_divide_ends_in_a_shorter_one(scorer, stream, l_train, stops):
    scorer.l_train = l_train
    assert [line["stop"] for line in probes.loss_by_position(scorer, stream.repeat(2))] == stops


def test_the_receptive_field_is_of_the_first_eight_sequences(scorer, stream):
    of, text = probes.receptive_field, stream.repeat(5)[:407]
    assert of(scorer, text) == of(scorer, text[:320]) != of(scorer, text[:280])
