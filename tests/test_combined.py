"""The claims of wavepos_fairseq/positions/combined.py: a combination's scores are the sums of its parts' terms.

A representation that is registered later is combined here too, without an edit.
"""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from conftest import L_TRAIN, PLAIN, TINY, command_line, gates_of, parse
from test_attention import (
    PUBLISHED,
    PUBLISHED_SCORES,
    causal_attention,
    draw,
    numbers_of,
    reference_attention,
    value_and_gradients,
)
from test_model import log_probs, random_tokens, spread, stepwise
from torch import nn
from typing_extensions import Annotated

from wavepos_fairseq import attention
from wavepos_fairseq.attention import attention_weights
from wavepos_fairseq.plugin.checkpoint import load_checkpoint
from wavepos_fairseq.plugin.options import position_arguments
from wavepos_fairseq.positions import (
    Position,
    build_position,
    position_class,
    position_names,
    register_position,
    registry,
)
from wavepos_fairseq.positions.wavelet import WaveletPosition

TURNING = {name for name in position_names() if position_class(name).overrides("rotate_query", "rotate_key")}
GATED = {name for name in position_names() if position_class(name).overrides("gates")}
PAIRS = [
    "+".join(pair)
    for pair in itertools.combinations(position_names(), 2)
    if not TURNING.issuperset(pair) and not GATED.issuperset(pair)
]
THREE = ["alibi+rope+wavelet", "rpe+trans-xl+wavelet", "rpe+transformer-xl+wavelet", "alibi+sinusoidal+t5"]
ATTENTIONS = {
    "auto": causal_attention,
    "blockwise": functools.partial(causal_attention, implementation="blockwise"),
    "reference": reference_attention,
}


def drawn(name, num_heads=2, **options):
    """The combination in fp64 for heads of width 16, anything that it learns drawn at random."""
    position = build_position(name, head_dim=16, num_heads=num_heads, **options).double()
    torch.manual_seed(0)
    for parameter in position.parameters():
        nn.init.normal_(parameter, std=0.3)
    return position


# The definition


def published_scores(name, part, query, key):
    """The score of query q at m and key k at n in head h before the softmax, as published for `name` alone."""
    if name in PUBLISHED_SCORES:
        return functools.partial(PUBLISHED_SCORES[name], numbers_of(part, query, key))
    slots = PUBLISHED[name]

    def turned(x, m):
        pairs = [complex(*x[2 * i : 2 * i + 2]) * slots["R"](m, i) for i in range(8)] if "R" in slots else x
        return np.array([part for pair in pairs for part in (pair.real, pair.imag)]) if "R" in slots else x

    def score(h, q, k, m, n):
        relative = q @ np.array(slots["p"](m - n)) if "p" in slots else 0
        return (turned(q, m) @ turned(k, n) + relative) / 4 + (slots["b"](h, m - n) if "b" in slots else 0)

    return score


@pytest.mark.parametrize("name", PAIRS + THREE)
def test_scores_are_the_published_product_and_what_each_part_adds_to_it(name):
    (query, key, value), position = draw(4, 9, head_dim=16, num_heads=8, batch=1), drawn(name, num_heads=8)
    parts = zip(sorted(name.split("+")), position.parts)
    scores = [published_scores(part, module, query, key) for part, module in parts]
    outputs = [attend(query, key, value, position)[0].detach() for attend in ATTENTIONS.values()]
    q, k, v = (tensor[0].numpy() for tensor in (query, key, value))
    for h, i in itertools.product(range(8), range(4)):
        m = 5 + i
        total = []
        for n in range(m + 1):
            content = q[h, i] @ k[h, n] / 4  # which is a part of every score, but of a combination's only once
            total.append(content + sum(score(h, q[h, i], k[h, n], m, n) - content for score in scores))
        expected = np.exp(total) @ v[h, : m + 1] / np.exp(total).sum()
        for output in outputs:
            np.testing.assert_allclose(output[h, i], expected, rtol=0, atol=1e-10)


def sum_of_parts(query, key, value, position):
    """Attention by the sum of each part's scores alone, which are the logarithms of its weights, up to a shift."""
    num_queries, num_keys = query.size(2), key.size(2)
    future = torch.ones(num_queries, num_keys, dtype=torch.bool).triu(num_keys - num_queries + 1)

    def scores(part):
        return attention_weights(query, key, part, gates=gates_of(part, query, key)).masked_fill(future, 1).log()

    content = scores(Position(position.head_dim, position.num_heads))
    total = content + sum(scores(part) - content for part in position.parts)
    return total.masked_fill(future, -math.inf).softmax(-1) @ value


def assert_is_the_sum_of_its_parts(position):
    for num_queries, num_keys in ((40, 40), (5, 40), (1, 40)):
        inputs = draw(num_queries, num_keys, head_dim=16)
        exact = value_and_gradients(sum_of_parts, inputs, position, torch.float64)
        for attend in ATTENTIONS.values():
            for one, other in zip(value_and_gradients(attend, inputs, position, torch.float64), exact):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * max(1, other.abs().max().item()))


@pytest.mark.parametrize("name", PAIRS + THREE)
def test_values_and_gradients_are_those_of_the_sum_of_the_parts_scores(name):
    assert_is_the_sum_of_its_parts(drawn(name))


@pytest.mark.parametrize("name", [name for name in position_names() if name != "nope"])
def test_nope_and_another_is_the_other_bit_for_bit(name):
    alone, both = drawn(name), drawn(f"nope+{name}")
    assert both.adds_to_embedding == alone.adds_to_embedding
    for num_queries, attend in itertools.product((40, 1), ATTENTIONS.values()):
        inputs = draw(num_queries, 40, head_dim=16)
        found = [value_and_gradients(attend, inputs, position, torch.float64) for position in (alone, both)]
        assert len(found[0]) == len(found[1]) and all(map(torch.equal, *found))


@pytest.mark.parametrize("name", PAIRS + THREE)
def test_the_order_of_names_changes_no_bit_and_no_parameters_name(name):
    inputs = draw(9, 9, head_dim=16)
    one, *others = (drawn("+".join(order)) for order in itertools.permutations(name.split("+")))
    for other in others:
        assert list(other.state_dict()) == list(one.state_dict())
        assert torch.equal(causal_attention(*inputs, other), causal_attention(*inputs, one))


def test_a_saved_combination_is_loaded_in_any_order_of_its_names(tmp_path):
    torch.save(drawn("t5+rpe+wavelet").state_dict(), tmp_path / "state.pt")
    position = build_position("rpe+wavelet+t5", head_dim=16, num_heads=2).double()
    position.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    inputs = draw(9, 9, head_dim=16)
    assert torch.equal(causal_attention(*inputs, position), causal_attention(*inputs, drawn("t5+rpe+wavelet")))


# What is computed once


def test_the_sum_of_two_fixed_tables_is_one_product_of_low_rank_computed_once():
    one, other = (build_position("trans-xl+wavelet", head_dim=128, num_heads=2) for _ in range(2))
    exact = one.relative(1000, like=torch.empty(0, dtype=torch.float64))
    projection, rows = one.factors(1000, like=torch.empty(0))
    assert projection.size(1) < 128
    error = (rows.double() @ projection.double().T - exact).norm(dim=1).max() / exact.norm(dim=1).max()
    assert error <= 3 * torch.finfo(torch.float32).eps
    assert other.factors(1000, like=torch.empty(0))[1].data_ptr() == rows.data_ptr()


def test_a_learned_table_adds_as_many_columns_as_it_has_vectors_and_none_of_them_needs_a_gradient():
    like = torch.empty(0, dtype=torch.float64)
    _, waves = drawn("trans-xl").factors(500, like)
    projection, rows = drawn("rpe+trans-xl", rpe_clip=8).factors(500, like)
    assert rows.shape == (500, waves.size(1) + 8)
    assert projection.requires_grad and not rows.requires_grad


def test_a_sum_reaches_as_far_as_the_part_that_reaches_furthest():
    options = {"wavelet": "haar", "wavelet_scales": "2^0*8", "rpe_clip": 20}
    _, rows = drawn("rpe+wavelet", **options).factors(500, like=torch.empty(0, dtype=torch.float64))
    assert len(rows) == 20


def test_a_replica_for_several_gpus_reads_what_it_has_learned_itself():
    """As torch.nn.parallel.replicate makes one, of copies of parts and parameters."""
    position = drawn("rpe+wavelet")
    replica = position._replicate_for_data_parallel()
    replica.parts = position.parts._replicate_for_data_parallel()
    for place, part in enumerate(position.parts):
        copied = part._replicate_for_data_parallel()
        for name, parameter in part.named_parameters(recurse=False):
            setattr(copied, name, 2 * parameter)
        replica.parts._modules[str(place)] = copied
    like = torch.empty(0, dtype=torch.float64)
    rpe, waves = (part.relative(9, like) for part in position.parts)
    torch.testing.assert_close(replica.relative(9, like), 2 * rpe + waves)
    torch.testing.assert_close(position.relative(9, like), rpe + waves)


# Options and names


def test_an_option_goes_to_the_part_that_reads_it():
    position = build_position("wavelet+t5+rope", head_dim=16, num_heads=2, wavelet="haar", t5_num_buckets=4)
    haar, like = build_position("wavelet", head_dim=16, num_heads=2, wavelet="haar"), torch.empty(0)
    assert torch.equal(position.relative(40, like), haar.relative(40, like))
    assert [parameter.shape for parameter in position.parameters()] == [(2, 4)]


@pytest.fixture
def registered(monkeypatch):
    """Representations of a user's own, gone after the test: all slots but R, an empty p, the wavelets' options."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_position("own")
    class Own(Position):
        def __init__(self, head_dim: int, num_heads: int, own_width: Annotated[int, "a rank"] = 3):
            super().__init__(head_dim, num_heads)
            self.columns = nn.Parameter(torch.randn(head_dim, own_width))
            self.rows = nn.Parameter(torch.randn(num_heads, 50, own_width))

        def factors(self, num_lags, like):
            return self.columns.to(like), self.rows[:, :num_lags].to(like)

        def relative(self, num_lags, like):
            return (self.rows[:, :num_lags] @ self.columns.T).to(like)

        def bias(self, num_lags, like):
            return self.rows[:, :num_lags, 0].to(like)

    @register_position("gated")
    class Gated(Own):
        def relative_query(self, query):
            return query * self.rows[0, :16, :1].T.to(query)

    @register_position("empty")
    class Empty(Position):
        def relative(self, num_lags, like):
            return None

        def relative_query(self, query):
            return query + 1

    register_position("wavelet-2")(type("SecondWavelet", (WaveletPosition,), {}))


@pytest.mark.parametrize("own", ["own", "gated", "empty"])
def test_a_representation_of_ones_own_is_combined_unnamed(registered, own):
    for name in position_names():
        if name != own:
            assert_is_the_sum_of_its_parts(drawn(f"{name}+{own}"))


def test_a_representation_of_ones_own_reads_its_option_beside_another(registered):
    assert drawn("rope+own", own_width=5).parts[0].rows.shape == (2, 50, 5)


def test_a_seed_draws_the_same_parameters_in_any_order_of_the_names(registered):
    states = []
    for name in ("own+gated", "gated+own"):
        torch.manual_seed(3)
        states.append(build_position(name, head_dim=16, num_heads=2).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("wavelet+", {}, r"^position_encoding='wavelet\+': '' is unknown; accepted beside \+ are alibi, .*wavelet"),
        ("+", {}, r"^position_encoding='\+': '' is unknown; accepted beside \+ are alibi, "),
        (
            "rotary+alibi",
            {},
            r"^position_encoding='rotary\+alibi': 'rotary' is unknown; accepted beside \+ are alibi, ",
        ),
        (
            "alibi+nope+alibi",
            {},
            r"^position_encoding='alibi\+nope\+alibi': alibi appears twice; accepted are different",
        ),
        (
            "rope-wavelet+t5+rope",
            {},
            r"'rope-wavelet\+t5\+rope': rope and rope-wavelet each change queries and keys .*R",
        ),
        ("fox+cable", {}, "^position_encoding='fox.cable': cable and fox each make a gate of each token .slot c"),
        ("rope+transformer-xl", {}, "rope and transformer-xl each change queries and keys before their product"),
        (
            "wavelet+alibi",
            {"rope_theta": 1e4},
            r"^rope_theta=10000.0 is given, but position_encoding='wavelet\+alibi' does not read it; it is read by",
        ),
        (
            "wavelet+alibi",
            {"nonsense": 1},
            r"^nonsense=1 is given, but .*'wavelet\+alibi' does not read it; accepted are alibi_slopes",
        ),
        (
            "wavelet+wavelet-2",
            {"wavelet": "haar"},
            r"^wavelet='haar' is given, but wavelet and wavelet-2 of position_encoding='wavelet\+wavelet-2' both read",
        ),
        ("wavelet+rpe", {"rpe_clip": 0}, "^rpe_clip=0: must be >= 1$"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_one_line(registered, name, options, message):
    with pytest.raises(ValueError, match=message) as refused:
        build_position(name, head_dim=16, num_heads=2, **options)
    assert "\n" not in str(refused.value)


def test_a_name_with_a_plus_is_not_registered():
    with pytest.raises(ValueError, match=r"^position_encoding='a\+b' cannot be registered: \+ joins"):
        register_position("a+b")(Position)


# In fairseq


def test_the_row_of_a_table_is_a_model_of_fairseq(build, data_bin):
    position = {"name": "wavelet+t5", "wavelet": "haar", "t5_num_buckets": 4}
    words = position_arguments(position)
    assert parse(data_bin, *command_line(TINY), *words).position_encoding == "wavelet+t5"
    model = build(dict(zip(words[::2], words[1::2])))
    parts = model.decoder.layers[1].self_attn.position.parts
    assert [part.weight.shape for part in parts if hasattr(part, "weight")] == [(2, 4)]
    assert [part.head[0] for part in parts if hasattr(part, "head")] == ["haar"]
    assert model.decoder.embed_positions is None


def test_sine_waves_are_added_to_the_embeddings_and_the_other_parts_fill_their_slots(build):
    model, nope = (build({"--position-encoding": name}) for name in ("alibi+sinusoidal", "nope"))
    assert model.decoder.embed_positions is not None and nope.decoder.embed_positions is None
    nope.decoder.embed_positions = model.decoder.embed_positions
    for layer in nope.decoder.layers:
        layer.self_attn.position = build_position("alibi", head_dim=16, num_heads=2)
    assert torch.equal(log_probs(model, random_tokens(2, 20)), log_probs(nope, random_tokens(2, 20)))


@pytest.mark.parametrize("name", PAIRS + THREE)
def test_one_query_with_turned_keys_and_gates_that_a_cache_keeps_is_a_row_of_the_whole(name):
    position, hidden = drawn(name), torch.randn(1, 20, 32, dtype=torch.float64)
    query, key, value = draw(20, 20, head_dim=16, batch=1)
    with torch.no_grad():
        gates = position.gates(hidden)
        whole = attention.causal_attention(query, key, value, position, gates=gates)
        turned, kept, rows = key[:, :, :0], [], []
        for m in range(20):
            turned = torch.cat((turned, position.rotate_key(key[:, :, m : m + 1], m)), dim=2)
            kept.append(position.gates(hidden[:, m : m + 1]))
            of_keys = None if gates is None else torch.cat(kept, dim=2)
            options = {"rotated_keys": True, "gates": of_keys}
            one = query[:, :, m : m + 1], turned, value[:, :, : m + 1]
            rows.append(attention.causal_attention(*one, position, **options))
    torch.testing.assert_close(torch.cat(rows, dim=2), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["alibi+rope+wavelet", "rpe+sinusoidal+transformer-xl", "fox+rope"])
def test_tokens_fed_one_at_a_time_score_as_in_one_forward(build, name):
    model, tokens = spread(build({**PLAIN, "--position-encoding": name})), random_tokens(2, L_TRAIN + 8)
    torch.testing.assert_close(stepwise(model, tokens, {}), log_probs(model, tokens), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_is_read_as_it_was_written(trained, build, data_bin):
    path, tokens = trained("wavelet+rpe+sinusoidal"), random_tokens(2, L_TRAIN)
    weights = torch.load(path, map_location="cpu", weights_only=False)["model"]
    learned = weights["decoder.layers.0.self_attn.position.parts.0.embedding"]
    assert learned.shape == (17, 16) and learned.abs().max() > 0
    model = build({"--position-encoding": "sinusoidal+wavelet+rpe"})
    model.load_state_dict(weights)
    assert torch.equal(log_probs(load_checkpoint(path, str(data_bin)).model, tokens), log_probs(model, tokens))


@pytest.mark.parametrize(
    "words, message",
    [
        ("--position-encoding wavelet+", r"^error: --position-encoding 'wavelet\+': '' is unknown; accepted"),
        ("--position-encoding rope+rope-wavelet", r"^error: --position-encoding 'rope\+rope-wavelet': rope and"),
        (
            "--position-encoding alibi+t5 --rope-theta 9",
            r"^error: --rope-theta 9.0 is given, but --position-encoding 'a",
        ),
        (
            "--position-encoding alibi+sinusoidal --no-token-positional-embeddings",
            r"^error: --no-token-positional-embeddings contradicts --position-encoding alibi\+sinusoidal$",
        ),
    ],
)
def test_fairseq_train_refuses_what_cannot_be_combined_in_one_line(words, message):
    with pytest.raises(SystemExit, match=message) as stopped:
        parse("nowhere", *command_line(TINY), *words.split())
    assert "\n" not in stopped.value.code


def test_a_checkpoint_of_transformer_lm_takes_names_that_can_be_combined(data_bin):
    with pytest.raises(ValueError, match=r"^--position-encoding 'alibi\+': '' is unknown"):
        load_checkpoint("checkpoint.pt", str(data_bin), "alibi+")
