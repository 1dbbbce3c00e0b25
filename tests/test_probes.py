"""The numbers of evaluation/probes.py, beside fairseq's own weights, closed forms and the evaluation."""

import functools
import math

import pytest
import torch
from conftest import L_TRAIN, LargestTensor, gates_of
from fairseq.modules import MultiheadAttention

from wavepos_fairseq.attention import attention_weights, causal_attention
from wavepos_fairseq.evaluation import probes
from wavepos_fairseq.evaluation.perplexity import evaluate
from wavepos_fairseq.plugin.checkpoint import FairseqScorer, load_checkpoint, open_checkpoint, token_nll
from wavepos_fairseq.plugin.streams import load_stream
from wavepos_fairseq.positions import build_position, position_names
from wavepos_fairseq.positions.interpolation import interpolated
from wavepos_fairseq.positions.temperature import TemperedPosition

LENGTH = 5 * L_TRAIN
ENCODINGS = ["nope", "rope", "alibi", "wavelet", "transformer-xl"]


@pytest.fixture(scope="module")
def load(trained, data_bin):
    """load(position encoding): scorer and stream."""

    def loaded(encoding):
        scorer = load_checkpoint(trained(encoding), str(data_bin))
        return scorer, load_stream(str(data_bin), "valid", scorer.task.dictionary)

    return loaded


def attention_inputs(model, tokens):
    return FairseqScorer(model, None, L_TRAIN, {}).attention_inputs(tokens)


def nothing_asked(position, length):
    """Queries and keys that are zero, so that all that a query sees is its position."""
    zero = torch.zeros(1, position.num_heads, length, position.head_dim)
    return zero, zero, position, None


# Attention maps


@pytest.mark.parametrize(
    "name, extend",
    [
        *((name, lambda position: position) for name in position_names()),
        ("wavelet+alibi", lambda position: interpolated(position, "linear", 32)),
        ("rope", lambda position: interpolated(position, "yarn", 32)),
        ("alibi", lambda position: TemperedPosition(position, 32)),
        ("alibi", lambda position: TemperedPosition(position, 32, 3.0)),
    ],
)
def test_blocks_of_a_map_are_the_weights_of_the_whole(name, extend):
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 150, 16, dtype=torch.float64)  # more than two of probes.BLOCK
    plain = build_position(name, head_dim=16, num_heads=2).double()
    position, gates = extend(plain), gates_of(plain, query, key)
    with torch.no_grad():
        whole = attention_weights(query, key, position, gates=gates)[0]
        torch.testing.assert_close(probes.attention_map(query, key, position, gates), whole, rtol=0, atol=1e-12)
        by_lag = probes.weight_by_lag(query, key, position, gates, first=40)
    for lag in (0, 3, 100, 149):
        of_lag = whole.diagonal(-lag, 1, 2)[:, max(0, 40 - lag) :].sum(1) / 110
        torch.testing.assert_close(by_lag[:, lag], of_lag, rtol=0, atol=1e-12)


@torch.no_grad()
def test_without_positions_a_map_is_the_weights_that_fairseqs_own_attention_gives(build):
    model, tokens = build({"--position-encoding": "nope"}), torch.arange(4, 64).repeat(2)[:100]
    future = torch.full((100, 100), -math.inf).triu(1)
    seen = []
    for layer in model.decoder.layers:
        layer.self_attn.register_forward_hook(lambda *given: seen.append(given[2]["query"]), with_kwargs=True)
    layers = attention_inputs(model, tokens)
    assert len(layers) == len(seen) == 2
    for layer, inputs, x in zip(model.decoder.layers, layers, seen):
        options = {"attn_mask": future, "incremental_state": {}, "need_head_weights": True}  # fairseq's path for these
        _, theirs = MultiheadAttention.forward(layer.self_attn, x, x, x, **options)  # (H, B, L, L)
        torch.testing.assert_close(probes.attention_map(*inputs), theirs[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_map_times_the_values_is_what_the_layers_fast_attention_gives(build, encoding):
    model, tokens = build({"--position-encoding": encoding}), torch.arange(4, 64).repeat(3)[:LENGTH]
    given = []

    def attend(query, key, value, position, dropout_p, **options):
        output = causal_attention(query, key, value, position, dropout_p, **options)
        given.append((value, output))
        return output

    for layer in model.decoder.layers:
        layer.self_attn.attend = attend
    model.decoder(tokens[None], features_only=True)
    expected = list(given)
    layers = attention_inputs(model, tokens)
    assert len(layers) == len(expected) == 2
    for inputs, (value, output) in zip(layers, expected):
        torch.testing.assert_close(probes.attention_map(*inputs) @ value[0], output[0], rtol=1e-5, atol=1e-5)


def test_reading_the_attention_leaves_the_model_as_it_was(build):
    model, tokens = build({"--position-encoding": "rope"}), torch.arange(4, 64)
    before = model(tokens[None])[0]
    attention_inputs(model, tokens)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert torch.equal(model(tokens[None])[0], before)


@pytest.mark.parametrize("measure", [probes.attention_map, lambda *inputs: probes.weight_by_lag(*inputs, first=32)])
def test_no_tensor_but_the_map_itself_grows_with_the_square_of_the_length(measure):
    length, ricker = 1024, build_position("wavelet", head_dim=8, num_heads=1, wavelet="ricker")
    inputs = nothing_asked(ricker, length)
    probes.weight_by_lag(*nothing_asked(ricker, length), first=length - 1)  # the basis is kept
    with LargestTensor() as largest:
        measure(*inputs)
    assert largest.nbytes <= 4 * length * max(length if measure is probes.attention_map else 0, probes.BLOCK * 8)
    assert largest.nbytes < 4 * length * length * 8  # of the definition


# The receptive field


def test_alibi_alone_falls_off_geometrically_with_each_heads_slope():
    alibi, length, first = build_position("alibi", head_dim=4, num_heads=2), 150, 40
    found = probes.weight_by_lag(*nothing_asked(alibi, length), first)
    for head, slope in enumerate([2**-4, 2**-8]):
        ratio = math.exp(-slope)
        expected = [
            sum((1 - ratio) * ratio**lag / (1 - ratio ** (query + 1)) for query in range(max(first, lag), length))
            for lag in range(length)
        ]
        torch.testing.assert_close(found[head], torch.tensor(expected, dtype=torch.float64) / 110, rtol=0, atol=1e-7)


def test_without_positions_zero_queries_see_all_their_past_alike():
    nope, length, first = build_position("nope", head_dim=4, num_heads=1), 150, 40
    found = probes.weight_by_lag(*nothing_asked(nope, length), first)[0]
    expected = [sum(1 / (query + 1) for query in range(max(first, lag), length)) / 110 for lag in range(length)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


def test_the_weights_at_a_lag_are_those_of_the_map_below_its_diagonal(build):
    model, tokens = build({"--position-encoding": "wavelet"}), torch.arange(4, 64).repeat(3)[:100]
    inputs = attention_inputs(model, tokens)[1]
    weights, by_lag = probes.attention_map(*inputs).double(), probes.weight_by_lag(*inputs, first=70)
    for lag in (0, 1, 50, 99):
        diagonal = weights[:, range(lag, 100), range(100 - lag)]  # of the queries lag .. 99
        torch.testing.assert_close(by_lag[:, lag], diagonal[:, max(0, 70 - lag) :].sum(1) / 30)


def test_spread_of_halves_is_a_mean_lag_of_1_and_95_percent_within_lag_4():
    halves = 0.5 ** torch.arange(1, 60, dtype=torch.float64)  # 1/2, 1/4, 1/8 ... at the lags 0, 1, 2 ...
    found = probes.spread(torch.stack([halves, halves.new_zeros(59).index_fill(0, torch.tensor(7), 1.0)]), l_train=3)
    assert found["mean_lag"].tolist() == pytest.approx([1, 7])
    assert found["lag95"].tolist() == [4, 7]  # 1 - 1/32 is the first above 0.95
    assert found["beyond"].tolist() == pytest.approx([1 / 8, 1])


def test_a_model_that_asks_nothing_has_the_receptive_field_of_uniform_attention(load):
    scorer, stream = load("nope")
    for layer in scorer.model.decoder.layers:
        for parameter in layer.self_attn.q_proj.parameters():
            parameter.data.zero_()
    lines = probes.receptive_field(scorer, stream)
    assert [(line["layer"], line["head"]) for line in lines] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    queries = range(L_TRAIN, LENGTH)
    for line in lines:
        assert line["mean_lag"] == pytest.approx(sum(query / 2 for query in queries) / len(queries), rel=1e-5)
        beyond = sum((query + 1 - L_TRAIN) / (query + 1) for query in queries) / len(queries)
        assert line["beyond"] == pytest.approx(beyond, rel=1e-5)


def test_the_receptive_field_is_the_mean_over_sequences_of_5_l_train(load):
    scorer, stream = load("wavelet")
    source = torch.cat((torch.tensor([scorer.task.dictionary.eos()]), stream[:-1]))
    assert len(stream) // LENGTH == 3  # fewer than SEQUENCES, and a rest that is left out
    means = []
    for start in range(0, 3 * LENGTH, LENGTH):
        for query, key, position, _ in scorer.attention_inputs(source[start : start + LENGTH]):
            weights = attention_weights(query, key, position)[0, :, L_TRAIN:].double()
            lag = torch.arange(L_TRAIN, LENGTH)[:, None] - torch.arange(LENGTH)
            means.append((weights * lag).sum(2).mean(1))
    expected = torch.stack(means).view(3, 2, 2).mean(0).flatten().tolist()
    assert [line["mean_lag"] for line in probes.receptive_field(scorer, stream)] == pytest.approx(expected)


def test_a_validation_set_shorter_than_one_sequence_is_refused(load):
    scorer, stream = load("nope")
    with pytest.raises(ValueError, match="has 159 tokens, fewer than 5 x L_train = 160"):
        probes.receptive_field(scorer, stream[:159])


# The loss over the position


@pytest.mark.parametrize("encoding", ["alibi", "wavelet"])
def test_the_mean_over_all_positions_is_the_evaluations_full_loss_at_that_length(load, encoding):
    scorer, stream = load(encoding)
    (cell,) = evaluate(scorer, stream, [LENGTH], ["full"])
    total = 0.0
    for line in probes.loss_by_position(scorer, stream):
        tokens = sum(1 for token in range(len(stream)) if line["start"] <= token % LENGTH < line["stop"])
        total += tokens * line["nll"]
    assert total / len(stream) == pytest.approx(cell["nll"], rel=1e-6)


def test_a_bin_is_the_mean_of_the_losses_at_its_positions_in_each_sequence(load):
    scorer, stream = load("alibi")
    source = torch.cat((torch.tensor([scorer.task.dictionary.eos()]), stream[:-1]))
    lines = probes.loss_by_position(scorer, stream)
    assert [(line["start"], line["stop"]) for line in lines] == [(start, start + 4) for start in range(0, LENGTH, 4)]
    cuts = range(0, len(stream), LENGTH)
    with torch.no_grad():
        nll = [
            token_nll(scorer.model, source[None, at : at + LENGTH], stream[None, at : at + LENGTH])[0] for at in cuts
        ]
    for line in (lines[0], lines[17], lines[-1]):
        there = torch.cat([sequence[line["start"] : line["stop"]] for sequence in nll])
        assert line["nll"] == pytest.approx(there.mean().item(), rel=1e-6)


def test_a_table_names_the_row_l_train_and_length_of_each_line(trained, data_bin):
    opened = functools.partial(open_checkpoint, data=data_bin)
    table = probes.table(probes.receptive_field, {("one", 1): trained("nope"), ("two", 3): trained("alibi")}, opened)
    assert list(table.columns) == "row seed l_train sequence_length layer head mean_lag lag95 beyond".split()
    assert list(zip(table.row, table.seed)) == [("one", 1)] * 4 + [("two", 3)] * 4
    assert set(table.l_train) == {L_TRAIN} and set(table.sequence_length) == {LENGTH}
