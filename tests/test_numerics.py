"""Numbers one can rely on: half precision, memory at great lengths, and what a perplexity must not depend on."""

import functools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import HALVES, TINY, TRAINING, command_line, needs_fp16, skip_where_plain_attention_is_old
from test_attention import causal_attention, gain, value_and_gradients
from test_model import random_tokens, spread

from wavepos_fairseq import attention
from wavepos_fairseq.evaluation.perplexity import pieces, stream_nll
from wavepos_fairseq.plugin.checkpoint import FairseqScorer, token_nll
from wavepos_fairseq.positions import Position, build_position, position_class, position_names


@pytest.fixture
def benchmark(monkeypatch):
    """benchmark("precision"): the module benchmarks/precision.py."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return lambda name: __import__(name)


# Half precision


def large(name, magnitude, dtype):
    """A representation, what it learns drawn at random, and inputs so large, in numbers that dtype holds."""
    torch.manual_seed(1)
    position = build_position(name, head_dim=64, num_heads=2)
    for parameter in position.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return position.to(dtype), [(magnitude * torch.randn(1, 2, 100, 64)).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", position_names())
def test_inputs_in_the_thousands_give_finite_values_and_gradients_in_half_precision(name, dtype):
    position, inputs = large(name, 1000, dtype)
    assert all(tensor.isfinite().all() for tensor in value_and_gradients(causal_attention, inputs, position, dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", [name for name in position_names() if not position_class(name).overrides("gates")])
def test_scores_in_the_thousands_err_in_half_precision_by_no_more_than_twice_what_plain_attention_does(name, dtype):
    """But for gates: they are a product, rounded before attention, as those that made the queries and keys were."""
    position, inputs = large(name, 30, dtype)
    inputs[0] /= 2 ** round(math.log2(gain(position, *(tensor.double() for tensor in inputs[:2]))))

    def errors(attend, position):
        exact = value_and_gradients(attention.reference_attention, inputs, position, torch.float64)
        found = value_and_gradients(attend, inputs, position, dtype)
        return [(one - other).norm() / other.norm() for one, other in zip(found[:4], exact)]

    plain = errors(lambda *inputs: F.scaled_dot_product_attention(*inputs[:3], is_causal=True), Position(64, 2))
    ours = errors(causal_attention, position)
    assert all(one <= 2 * other + torch.finfo(dtype).eps for one, other in zip(ours, plain))


@needs_fp16
@pytest.mark.parametrize("name", ["wavelet", "transformer-xl"])
def test_twenty_updates_in_half_precision_end_within_a_percent_of_fp32(benchmark, data_bin, tmp_path, name):
    train = benchmark("precision").train

    def last_losses(precision):
        changes = {"--position-encoding": name, "--save-dir": tmp_path, "--no-save": True}
        words = [str(data_bin), "--task", "language_modeling", "--tokens-per-sample", "32"]
        log = train([*words, *command_line({**TINY, **TRAINING, **changes})], precision)
        assert log.finite and len(log.updates) == 20
        return sum(update["loss"] for update in log.updates[-5:])

    assert [last_losses("fp16"), last_losses("bf16")] == pytest.approx(2 * [last_losses("fp32")], rel=0.01)


# Great lengths


@pytest.mark.parametrize("name", position_names())
def test_a_sequence_takes_memory_for_a_block_of_queries_and_not_for_all(benchmark, build, name):
    model = build({"--position-encoding": name, "--decoder-layers": "1"})
    skip_where_plain_attention_is_old(model.decoder.layers[0].self_attn.position)

    @torch.no_grad()
    def peak(length):
        tokens = random_tokens(1, length + 1)
        return benchmark("measure").peak_bytes(lambda: token_nll(model, tokens[:, :-1], tokens[:, 1:]), "cpu")

    at_2048, at_4096 = peak(2048), peak(4096)
    assert at_4096 < 2.4 * at_2048 and at_4096 < 4096 * 4096 * 4 / 3


def test_all_of_8192_tokens_have_a_finite_loss(build):
    tokens = random_tokens(1, 8192 + 1)
    with torch.no_grad():
        losses = token_nll(build({"--decoder-layers": "1"}), tokens[:, :-1], tokens[:, 1:])
    assert losses.shape == (1, 8192) and losses.isfinite().all()


# What a perplexity does not depend on


def perplexity(model, max_tokens=150, threads=1, implementation="blockwise"):
    """At length 70, of 300 random tokens."""
    tokens, before = random_tokens(301), torch.get_num_threads()
    for layer in model.decoder.layers:
        layer.self_attn.attend = functools.partial(attention.causal_attention, implementation=implementation)
    torch.set_num_threads(threads)
    try:
        losses = stream_nll(
            FairseqScorer(model, None, 70, {}), tokens[:-1], tokens[1:], pieces(300, 70, 70), max_tokens
        )
    finally:
        torch.set_num_threads(before)
    return math.exp(losses.double().mean())


@pytest.mark.parametrize("name", position_names())
def test_a_perplexity_depends_neither_on_the_batch_nor_on_the_threads_nor_on_the_implementation(build, name):
    model = spread(build({"--position-encoding": name}))
    ours = pytest.approx(perplexity(model), rel=1e-5)
    assert perplexity(model, max_tokens=1) == ours
    assert perplexity(model, max_tokens=10**6) == ours
    assert perplexity(model, threads=2) == ours
    assert perplexity(model, implementation="reference") == ours


def test_a_perplexity_is_that_of_the_triton_kernel(build):
    triton = pytest.importorskip("test_triton")  # which makes the interpreter work, where there is no GPU
    model = spread(build({"--position-encoding": "wavelet"})).to(triton.DEVICE)
    assert perplexity(model, implementation="triton") == pytest.approx(perplexity(model), rel=1e-5)
