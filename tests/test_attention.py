"""The claims of wavepos_fairseq/attention: the definition is the papers' formula, and the fast path the definition.

A representation that is registered later is tested here too, without an edit.
"""

import cmath
import copy
import functools
import itertools
import math
import subprocess
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import HALVES, PYTORCH, LargestTensor, gated, gates_of, skip_where_plain_attention_is_old
from torch.utils.checkpoint import checkpoint

from wavepos_fairseq import attention
from wavepos_fairseq.attention import attention_weights, blockwise, score_mod
from wavepos_fairseq.positions import Position, build_position, position_class, position_names
from wavepos_fairseq.positions.low_rank import low_rank
from wavepos_fairseq.positions.temperature import TemperedPosition
from wavepos_fairseq.wavelets import SHIFT_DIRECTIONS

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {name: (name, {}) for name in position_names()}
VARIANTS["rope 500000"] = ("rope", {"rope_theta": 500000.0})
for _wavelet in ("ricker", "gaussian", "morlet", "haar"):
    for _direction in SHIFT_DIRECTIONS:
        VARIANTS[f"{_wavelet} {_direction}"] = (
            "wavelet",
            {"wavelet": _wavelet, "wavelet_shift_direction": _direction},
        )
VARIANTS["haar 2^0*8 past"] = ("wavelet", {"wavelet": "haar", "wavelet_scales": "2^0*8"})
VARIANTS["haar 2^0*8 future"] = (
    "wavelet",
    {"wavelet": "haar", "wavelet_scales": "2^0*8", "wavelet_shift_direction": "future"},
)
VARIANTS["alibi learned"] = ("alibi", {"alibi_slopes": "learned"})
VARIANTS["db4"] = ("wavelet", {"wavelet": "db4"})
VARIANTS["ricker learned"] = ("wavelet", {"wavelet_learn": "both"})
# What attention can tell apart: the names, a table that ends within the keys, one of both signs, what is learned.
FORMS = [*position_names(), "haar 2^0*8 past", "haar scaled", "morlet future", "db4"]
FORMS += ["alibi learned", "ricker learned", "every slot"]
causal_attention, reference_attention = gated(attention.causal_attention), gated(attention.reference_attention)
ATTENTIONS = (causal_attention, reference_attention)


class EverySlot(Position):
    """All three slots at once, p and b learned."""

    def __init__(self, head_dim, num_heads):
        super().__init__(head_dim, num_heads)
        self.embedding = torch.nn.Parameter(torch.zeros(600, head_dim))
        self.biases = torch.nn.Parameter(torch.zeros(num_heads, 600))

    def rotate_query(self, query, first):
        return self.rotate_key(query, first)

    def rotate_key(self, key, first):
        return key * (1 - 2 * ((first + torch.arange(key.size(-2))) % 2))[:, None].to(key)

    def relative(self, num_lags, like):
        return self.embedding[:num_lags].to(like)

    def bias(self, num_lags, like):
        return self.biases[:, torch.arange(num_lags).clamp(max=599)].to(like)


def build(variant, head_dim, num_heads):
    """The representation in fp64, anything that it learns moved at random."""
    if variant == "every slot":
        position = EverySlot(head_dim, num_heads)
    else:
        name, options = VARIANTS.get(variant, (variant, {})) if isinstance(variant, str) else variant
        position = build_position(name, head_dim=head_dim, num_heads=num_heads, **options)
    for parameter in position.double().parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return position


def draw(num_queries, num_keys, head_dim, num_heads=2, batch=2, num_key_heads=None):
    """query, key and value in fp64."""
    torch.manual_seed(num_keys)
    num_key_heads = num_key_heads or num_heads
    return [
        torch.randn(batch, heads, length, head_dim, dtype=torch.float64)
        for heads, length in ((num_heads, num_queries), (num_key_heads, num_keys), (num_key_heads, num_keys))
    ]


def weights(attend, query, key, position):
    """The attention weights (B, H, L, S): what attention does to the values e_1 .. e_S, where d = S."""
    assert key.size(-2) == key.size(-1)
    return attend(query, key, torch.eye(key.size(-1), dtype=key.dtype).expand_as(key), position)


# The definition against the papers, in plain Python


def ricker(x):
    return (1 - x**2) * math.exp(-(x**2) / 2)


def haar(x):
    """Eq. 15, of x = n - m <= 0."""
    return 1.0 if -1 / 2 <= x < 0 else -1.0 if -1 <= x < -1 / 2 else 0.0


# R_m(x) as complex pairs, p(t) for d = 16 and b_h(t) for 8 heads, as published; t = m - n.
PUBLISHED = {
    "nope": {},
    "sinusoidal": {},
    "rope": {"R": lambda m, i: cmath.exp(1j * m * 10000 ** (-2 * i / 16))},
    "rope 500000": {"R": lambda m, i: cmath.exp(1j * m * 500000 ** (-2 * i / 16))},
    "alibi": {"b": lambda h, t: -[1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256][h] * t},
    "trans-xl": {
        "p": lambda t: [f(t / 10000 ** (2 * i / 16)) for i in range(8) for f in (math.sin, math.cos)],
    },
    "ricker past": {"p": lambda t: [ricker((t - b) / 2**e) for b in range(2) for e in range(8)]},
    "ricker future": {"p": lambda t: [ricker((t + b) / 2**e) for b in range(2) for e in range(8)]},
    "ricker scaled": {"p": lambda t: [ricker((t - 2**e * b) / 2**e) for b in range(2) for e in range(8)]},
    "gaussian past": {"p": lambda t: [math.exp(-(((t - b) / 2**e) ** 2)) for b in range(2) for e in range(8)]},
    "gaussian future": {"p": lambda t: [math.exp(-(((t + b) / 2**e) ** 2)) for b in range(2) for e in range(8)]},
    "gaussian scaled": {"p": lambda t: [math.exp(-(((t - 2**e * b) / 2**e) ** 2)) for b in range(2) for e in range(8)]},
    "morlet past": {
        "p": lambda t: [math.exp(-(((t - b) / 2**e) ** 2)) * math.cos(t - b) for b in range(2) for e in range(8)]
    },
    "morlet future": {
        "p": lambda t: [math.exp(-(((t + b) / 2**e) ** 2)) * math.cos(t + b) for b in range(2) for e in range(8)]
    },
    "morlet scaled": {
        "p": lambda t: [
            math.exp(-(((t - 2**e * b) / 2**e) ** 2)) * math.cos(t - 2**e * b) for b in range(2) for e in range(8)
        ]
    },
    "haar past": {"p": lambda t: [haar((-t + b) / 2**e) for b in range(2) for e in range(8)]},
    "haar future": {"p": lambda t: [haar((-t - b) / 2**e) for b in range(2) for e in range(8)]},
    "haar scaled": {"p": lambda t: [haar((-t + 2**e * b) / 2**e) for b in range(2) for e in range(8)]},
    "haar 2^0*8 past": {"p": lambda t: [haar(-t + b) for b in range(2) for _ in range(8)]},
    "haar 2^0*8 future": {"p": lambda t: [haar(-t - b) for b in range(2) for _ in range(8)]},
}
PUBLISHED["wavelet"] = PUBLISHED["ricker past"]
# Chi et al. 2023, the products of sinusoids of 128 dimensions, less that at lag 0, over 8 h / H with h = 1 .. H
PUBLISHED["sandwich"] = {"b": lambda h, t: sum(math.cos(t / 10000 ** (i / 64)) - 1 for i in range(64)) / (h + 1)}


def published_attention(query, key, value, R=lambda m, i: 1, p=None, b=lambda h, t: 0):
    """softmax over n <= m of (R_m(q_m) . R_n(k_n) + q_m . p(m - n)) / sqrt(d) + b_h(m - n), times the values."""

    def turned(x, m):
        pairs = [complex(x[2 * i], x[2 * i + 1]) * R(m, i) for i in range(len(x) // 2)]
        return np.array([part for pair in pairs for part in (pair.real, pair.imag)])

    def attention_of_head(head, q, k, v):
        output = []
        for m, q_m in enumerate(q, start=len(k) - len(q)):
            scores = []
            for n in range(m + 1):
                product = turned(q_m, m) @ turned(k[n], n) + (0 if p is None else q_m @ np.array(p(m - n)))
                scores.append(product / math.sqrt(len(q_m)) + b(head, m - n))
            exponentials = np.exp(scores)
            output.append(exponentials @ v[: m + 1] / exponentials.sum())
        return output

    arrays = [tensor.numpy() for tensor in (query, key, value)]
    return [[attention_of_head(head, *qkv) for head, qkv in enumerate(zip(*row))] for row in zip(*arrays)]


@pytest.mark.parametrize("num_queries, num_keys", [(12, 12), (3, 12), (1, 1)])
@pytest.mark.parametrize("variant", PUBLISHED)
def test_reference_is_the_published_formula(variant, num_queries, num_keys):
    query, key, value = draw(num_queries, num_keys, head_dim=16, num_heads=8, batch=1)
    expected = published_attention(query, key, value, **PUBLISHED[variant])
    output = reference_attention(query, key, value, build(variant, 16, 8))
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-12)


def equation_28(x, m):
    """The product of Eq. 28's matrix with x."""
    output, total = [], 0
    for i in range(len(x) // 2):
        total += complex(x[2 * i], x[2 * i + 1])
        turned = total * cmath.exp(1j * m * 10000 ** (-2 * i / len(x)))
        output += [turned.real, turned.imag]
    return np.array(output)


# The score of query q at m and key k at n in head h before the softmax, of what is learned or mixes dimensions.
PUBLISHED_SCORES = {
    # Eq. 28 in the place of Eq. 6
    "rope-wavelet": lambda learned, h, q, k, m, n: equation_28(q, m) @ equation_28(k, n) / 4,
    # Shaw et al., Eq. 4
    "rpe": lambda learned, h, q, k, m, n: q @ (k + learned["embedding"][min(m - n, 16)]) / 4,
    # Eq. 12 to 14, the scales in octaves and the shifts in tokens from where they begin
    "ricker learned": lambda learned, h, q, k, m, n: q @ (k + learned_ricker(learned, m - n)) / 4,
    # Raffel et al., section 2.1; the lags of this test have a bucket each
    "t5": lambda learned, h, q, k, m, n: q @ k / 4 + learned["weight"][h, m - n],
    # Dai et al., section 3.3, the terms (a), (b), (c), (d) in their order
    "transformer-xl": lambda learned, h, q, k, m, n: (
        (
            q @ k
            + q @ learned["projection"][h] @ sinusoid(m - n, 128)
            + learned["content_bias"][h, 0] @ k
            + learned["position_bias"][h, 0] @ learned["projection"][h] @ sinusoid(m - n, 128)
        )
        / 4
    ),
    # Chi et al. 2022, section 3: -r1 log(1 + r2 t) and -r1 t^r2, here with r1 = exp(.), r2 = exp(.) or r2 in (0, 2)
    "kerple-log": lambda learned, h, q, k, m, n: (
        q @ k / 4 - math.exp(learned["log_first"][h]) * math.log(1 + math.exp(learned["raw_second"][h]) * (m - n))
    ),
    "kerple-power": lambda learned, h, q, k, m, n: (
        q @ k / 4 - math.exp(learned["log_first"][h]) * (m - n) ** (2 / (1 + math.exp(-learned["raw_second"][h])))
    ),
    # Sun et al., section 3, with gamma = 0.4 and a scale of 512 tokens
    "xpos": lambda learned, h, q, k, m, n: xpos(q, k, m - n) / 4,
    # Lin et al., and Veisi et al.: the gates of the tokens after the key, up to the query
    "fox": lambda learned, h, q, k, m, n: (
        q @ k / 4 + sum(math.log(1 / (1 + math.exp(-gate))) for gate in learned["gates"][h, n + 1 : m + 1])
    ),
    "cable": lambda learned, h, q, k, m, n: (
        q @ k / 4 - sum(math.log(1 + math.exp(gate)) for gate in learned["gates"][h, n + 1 : m + 1])
    ),
}


def numbers_of(position, query, key):
    """What the representation has learned, by name, and the gates (H, S) that it makes of one sequence's tokens."""
    learned = {name: parameter.detach().numpy() for name, parameter in position.named_parameters()}
    gates = gates_of(position, query, key)
    return learned if gates is None else {**learned, "gates": gates[0].detach().numpy()}


def xpos(q, k, t):
    total = 0
    for i in range(len(q) // 2):
        wave = cmath.exp(1j * t * 10000 ** (-2 * i / len(q))) * ((2 * i / len(q) + 0.4) / 1.4) ** (t / 512)
        total += (complex(*q[2 * i : 2 * i + 2]) * complex(*k[2 * i : 2 * i + 2]).conjugate() * wave).real
    return total


def learned_ricker(learned, t):
    scales = [2 ** (e + 8 * math.tanh(u / 8)) for e, u in enumerate(learned["scale_octaves"])]
    shifts = [b + 2**24 * math.tanh(v / 2**24) for b, v in enumerate(learned["shift_tokens"])]
    return np.array([ricker((t - b) / a) for b in shifts for a in scales])


def sinusoid(t, width):
    return np.array([f(t / 10000 ** (2 * i / width)) for i in range(width // 2) for f in (math.sin, math.cos)])


@pytest.mark.parametrize("num_queries", [12, 3, 1])
@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize("name", PUBLISHED_SCORES)
def test_attention_is_the_softmax_of_the_published_scores(name, attend, num_queries):
    inputs, position = draw(num_queries, 12, head_dim=16, num_heads=8, batch=1), build(name, 16, 8)
    learned = numbers_of(position, *inputs[:2])
    output = attend(*inputs, position).detach().numpy()
    query, key, value = (tensor.numpy() for tensor in inputs)
    for h, i in itertools.product(range(8), range(num_queries)):
        m = 12 - num_queries + i
        scores = [PUBLISHED_SCORES[name](learned, h, query[0, h, i], key[0, h, n], m, n) for n in range(m + 1)]
        expected = np.exp(scores) @ value[0, h, : m + 1] / np.exp(scores).sum()
        np.testing.assert_allclose(output[0, h, i], expected, rtol=0, atol=1e-12)


def test_every_representation_is_compared_with_its_publication():
    assert len({*PUBLISHED, *PUBLISHED_SCORES} & {*position_names()}) == 16  # all but what a user adds to the folder


# Segments, and fewer key heads than heads

SEGMENTS = torch.tensor([[3, 3, 3, 1, 1, 1, 1, 1, 2], [0, 5, 0, 0, 5, 5, -1, 0, 5]])  # packed, and in any order
EVERYWHERE = {
    "auto": causal_attention,
    "blockwise": functools.partial(causal_attention, implementation="blockwise"),
    "reference": reference_attention,
}


def spelled_out(query, key, value, position, segments):
    """The formula query by query and key by key; query head h has key head h // (H // K)."""
    (batch, num_heads, num_queries, head_dim), num_keys = query.shape, key.size(2)
    share = num_heads // key.size(1)
    key, value = (torch.stack([x[:, h // share] for h in range(num_heads)], dim=1) for x in (key, value))
    turned_query, turned_key = position.rotate(query, key)
    p, b = position.relative(num_keys, like=query), position.bias(num_keys, like=query)
    for_p, output = position.relative_query(query), torch.empty_like(query)
    c = position.key_bias(gates_of(position, query, key))
    for at, h, i in itertools.product(range(batch), range(num_heads), range(num_queries)):
        m = num_keys - num_queries + i
        seen = [n for n in range(m + 1) if segments is None or segments[at, n] == segments[at, m]]
        scores = []
        for n in seen:
            score = turned_query[at, h, i] @ turned_key[at, h, n]
            if p is not None:
                score = score + for_p[at, h, i] @ (p if p.dim() == 2 else p[h])[m - n]
            score = score / math.sqrt(head_dim)
            score = score if b is None else score + b[h, m - n]
            scores.append(score if c is None else score + c[at, h, n])
        output[at, h, i] = torch.stack(scores).softmax(dim=0) @ value[at, h, seen]
    return output


@pytest.mark.parametrize(
    "num_queries, num_key_heads, segments", [(9, 2, None), (9, 4, SEGMENTS), (4, 1, SEGMENTS), (1, 2, SEGMENTS)]
)
@pytest.mark.parametrize("variant", [*position_names(), "alibi learned", "ricker learned", "every slot"])
def test_attention_is_the_formula_with_segments_and_repeated_heads_spelled_out(
    variant, num_queries, num_key_heads, segments
):
    inputs = draw(num_queries, 9, 16, num_heads=4, num_key_heads=num_key_heads)
    position = build(variant, 16, 4)
    exact = value_and_gradients(functools.partial(spelled_out, segments=segments), inputs, position, torch.float64)
    for attend in EVERYWHERE.values():
        with torch.no_grad():
            output = attend(*inputs, position, segments=segments)
        torch.testing.assert_close(output, exact[0], rtol=0, atol=1e-10)
        found = value_and_gradients(functools.partial(attend, segments=segments), inputs, position, torch.float64)
        for one, other in zip(found, exact):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


CUTS = [(0, 30, 130, 200), (0, 1, 64, 200)]  # of two sequences of 200 tokens, blocks being of 64


def of_cuts(cuts):
    return torch.stack([torch.repeat_interleave(torch.tensor([4, 0, 2]), torch.tensor(c).diff()) for c in cuts])


@pytest.mark.parametrize("attend", EVERYWHERE.values(), ids=EVERYWHERE)
@pytest.mark.parametrize("num_queries", [200, 100, 1])
@pytest.mark.parametrize("variant", [*position_names(), "every slot"])
def test_each_of_the_packed_sequences_and_one_padded_on_the_left_is_as_if_alone(variant, num_queries, attend):
    query, key, value = draw(200, 200, 16, num_heads=2, num_key_heads=1)
    position = build(variant, 16, 2)
    alone = torch.empty_like(query)
    with torch.no_grad():
        for row, cuts in enumerate(CUTS):
            for start, stop in zip(cuts, cuts[1:]):
                part = slice(row, row + 1), slice(None), slice(start, stop)
                alone[part] = attend(query[part], key[part], value[part], position)
        packed = attend(query[:, :, -num_queries:], key, value, position, segments=of_cuts(CUTS))
    torch.testing.assert_close(packed, alone[:, :, -num_queries:], rtol=0, atol=1e-10)


# Query heads that share a key head are more or fewer than a block's, which are 8 learning and 4 otherwise.
@pytest.mark.parametrize("batch, num_heads, num_key_heads", [(2, 10, 2), (3, 4, 2), (2, 12, 1), (3, 3, 3)])
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("variant", ["nope", "alibi", "ricker past", "transformer-xl", "every slot"])
def test_heads_in_groups_share_keys_as_if_these_were_repeated_and_see_their_segments(
    variant, segmented, batch, num_heads, num_key_heads, monkeypatch
):
    monkeypatch.setattr(blockwise, "_SCORES_PER_BLOCK", 1)
    inputs = draw(130, 200, 16, num_heads=num_heads, batch=batch, num_key_heads=num_key_heads)
    position = build(variant, 16, num_heads)
    segments = of_cuts([*CUTS, (0, 199, 199, 200)][:batch]) if segmented else None

    def repeated(query, key, value, position):
        key, value = (tensor.repeat_interleave(num_heads // num_key_heads, dim=1) for tensor in (key, value))
        return reference_attention(query, key, value, position, segments=segments)

    attend = functools.partial(causal_attention, segments=segments)
    with torch.no_grad():
        torch.testing.assert_close(attend(*inputs, position), repeated(*inputs, position), rtol=1e-10, atol=1e-10)
    fast = value_and_gradients(attend, inputs, position, torch.float64)
    for one, other in zip(fast, value_and_gradients(repeated, inputs, position, torch.float64)):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32"])
@pytest.mark.parametrize("attend", EVERYWHERE.values(), ids=EVERYWHERE)
def test_segments_may_have_any_integer_dtype_and_any_strides(attend, dtype):
    inputs, position = draw(200, 200, 16), build("alibi", 16, 2)
    segments = of_cuts(CUTS)
    given = segments.to(getattr(torch, dtype)).T.contiguous().T
    assert torch.equal(attend(*inputs, position, segments=given), attend(*inputs, position, segments=segments))


# The fast path against the definition

# (L, S, d): whole sequences, those of one block and the ones beside them, then incremental decoding
SIZES = [(1, 1, 16), (2, 2, 64), (17, 17, 128), (63, 63, 16), (64, 64, 16), (65, 65, 16), (513, 513, 16)]
SIZES += [(1, 9, 64), (5, 17, 16), (70, 100, 16)]


def gain(position, query, key):
    """How much longer R makes queries times keys: 1, but for the sums of `rope-wavelet`."""
    rotated_query, rotated_key = position.rotate(query, key)
    return (rotated_query.norm() * rotated_key.norm() / query.norm() / key.norm()).item()


def value_and_gradients(attend, inputs, position, dtype):
    """The output and the gradients of query, key, value and whatever is learned, for one random cotangent, in fp64."""
    position = copy.deepcopy(position).to(dtype)
    inputs = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    output = attend(*inputs, position)
    assert output.dtype == dtype
    torch.manual_seed(0)
    cotangent = torch.randn(output.shape, dtype=torch.float64).bfloat16().to(dtype)
    gradients = torch.autograd.grad(output, [*inputs, *position.parameters()], cotangent)
    return [tensor.double() for tensor in (output, *gradients)]


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("num_queries, num_keys, head_dim", SIZES)
@pytest.mark.parametrize("variant", FORMS)
def test_causal_attention_is_the_definition(variant, num_queries, num_keys, head_dim, dtype, tolerance):
    # Numbers that bf16 holds, so that the fp64 definition and any dtype start from the same ones.
    inputs = [tensor.bfloat16().double() for tensor in draw(num_queries, num_keys, head_dim)]
    position = build(variant, head_dim, num_heads=2).bfloat16().double()
    inputs[0] /= 2 ** round(math.log2(gain(position, *inputs[:2])))
    fast = value_and_gradients(causal_attention, inputs, position, getattr(torch, dtype))
    exact = value_and_gradients(reference_attention, inputs, position, torch.float64)
    names = ["output", "query", "key", "value"]
    if dtype != "bfloat16":  # it drowns the gradient of a learned bias, a sum of terms that cancel
        names += ["learned"] * (len(exact) - 4)
    for name, one, other in zip(names, fast, exact):
        largest = other.abs().max() if num_keys > 1 else 1.0  # a lone key has weight 1, and gradients that are 0
        largest = largest or 1.0  # two keys have no lag of which a power is more than itself
        error = (one - other).abs().max() / largest
        assert error <= tolerance, f"{name}: {error:.1e} of the largest magnitude"


@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize("variant", FORMS)
def test_the_last_queries_alone_give_the_last_rows_of_all(variant, attend):
    query, key, value = draw(17, 17, 16)
    position = build(variant, 16, 2)
    whole = attend(query, key, value, position)
    for last in (1, 2, 5, 16):
        torch.testing.assert_close(attend(query[:, :, -last:], key, value, position), whole[:, :, -last:])


@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize("variant", FORMS)
def test_decoding_token_by_token_gives_what_the_whole_sequence_gives(variant, attend):
    query, key, value = draw(9, 9, 16)
    position = build(variant, 16, 2)
    rows = [attend(query[:, :, n : n + 1], key[:, :, : n + 1], value[:, :, : n + 1], position) for n in range(9)]
    torch.testing.assert_close(torch.cat(rows, dim=2), attend(query, key, value, position))


@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize("variant", [*position_names(), "every slot", "wavelet+rope"])
def test_keys_that_were_turned_in_pieces_give_what_attention_gives_that_turns_them(variant, attend):
    query, key, value = draw(11, 11, 16)
    position = build(variant, 16, 2)
    pieces = [position.rotate_key(key[:, :, first:last], first) for first, last in ((0, 6), (6, 7), (7, 11))]
    turned, whole = torch.cat(pieces, dim=2), attend(query, key, value, position)
    for last in (11, 4, 1):
        attended = attend(query[:, :, -last:], turned, value, position, rotated_keys=True)
        torch.testing.assert_close(attended, whole[:, :, -last:], rtol=0, atol=1e-12)


# FlexAttention

SEVERAL = ["alibi+rope+wavelet", "alibi+fox+rpe+transformer-xl+wavelet"]  # the second: two products with p, and a gate
FAR = ("wavelet", {"wavelet": "haar", "wavelet_shifts": "500,600"})  # zero at all lags of these tests


def flex_attention(query, key, value, position):
    """PyTorch's FlexAttention, uncompiled, with the position as its score_mod."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention", reason="PyTorch has no FlexAttention before 2.5")
    length = query.size(2)
    causal = flex.create_block_mask(lambda b, h, m, n: m >= n, None, None, length, length, device="cpu")
    turned = position.rotate(query, key)
    added = score_mod(position, query, gates_of(position, query, key))
    return flex.flex_attention(*turned, value, score_mod=added, block_mask=causal)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("variant", [*position_names(), *SEVERAL, "haar future", "every slot", FAR])
def test_flex_attention_with_the_score_mod_is_the_definition(variant):
    inputs, position = draw(40, 40, 16), build(variant, 16, 2)
    with torch.no_grad():
        attended = flex_attention(*inputs, position)
        torch.testing.assert_close(attended, reference_attention(*inputs, position), rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("variant", ["rpe", "t5", "ricker learned", "every slot", "kerple-log+rpe+wavelet"])
def test_what_is_learned_gets_the_definitions_gradients_through_the_score_mod(variant):
    """On a CPU, FlexAttention has no gradients of queries, keys and values."""
    inputs, position = draw(40, 40, 16), build(variant, 16, 2)
    attended = [attend(*inputs, position) for attend in (flex_attention, reference_attention)]
    for one, other in zip(*(torch.autograd.grad(of.square().sum(), [*position.parameters()]) for of in attended)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.skipif(PYTORCH < (2, 5), reason="PyTorch has no FlexAttention before 2.5")
def test_the_score_mod_of_empty_slots_is_none():
    for name in ("nope", "sinusoidal", "rope", "rope-wavelet"):
        assert score_mod(build(name, 16, 2), draw(5, 5, 16)[0]) is None


@pytest.mark.skipif(PYTORCH >= (2, 5), reason="PyTorch has FlexAttention")
def test_before_pytorch_2_5_the_score_mod_says_what_it_needs():
    with pytest.raises(
        RuntimeError, match=r"^score_mod is for FlexAttention, which PyTorch has from 2.5 on; this is 2"
    ):
        score_mod(build("alibi", 16, 2), draw(5, 5, 16)[0])


@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize("changed", [0, 7, 15])
@pytest.mark.parametrize("variant", FORMS)
def test_a_changed_token_changes_no_output_before_it_and_every_output_from_it_on(variant, changed, attend):
    inputs = draw(16, 16, 16)
    position = build(variant, 16, 2)
    before = attend(*inputs, position)
    for tensor in inputs:
        tensor[:, :, changed] += 1
    difference = (attend(*inputs, position) - before).abs().amax(dim=(0, 1, 3))
    assert (difference[:changed] < 1e-12).all() and (difference[changed:] > 1e-6).all()


@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("variant", FORMS)
def test_a_broken_query_breaks_its_output_alone_and_a_broken_key_none_before_it(variant, broken, attend):
    clean, position = draw(16, 16, 16), build(variant, 16, 2)
    if attend is causal_attention:
        skip_where_plain_attention_is_old(position)
    before = attend(*clean, position)
    for number, reached in enumerate((slice(7, 8), slice(7, None))):
        inputs = [tensor.clone() for tensor in clean]
        inputs[number][:, :, 7] = broken
        after = attend(*inputs, position)
        assert after[:, :, reached].isnan().all()
        after[:, :, reached] = before[:, :, reached]
        torch.testing.assert_close(after, before)


# The scores, through the weights


@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize("variant", FORMS[:-1])
def test_scores_of_equal_tokens_depend_on_the_lag_alone(variant, attend):
    query, key, _ = (tensor[:, :, :1].expand(-1, -1, 16, -1) for tensor in draw(16, 16, 16))
    score = weights(attend, query, key, build(variant, 16, 2)).log()
    score = score - score.diagonal(dim1=-2, dim2=-1)[..., None]  # of the row's own token, lag 0
    for lag in range(16):
        diagonal = score.diagonal(-lag, dim1=-2, dim2=-1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal), rtol=0, atol=1e-11)
    assert (score.triu(1)[..., :-1, -1] == -math.inf).all()


@pytest.mark.parametrize("attend", ATTENTIONS)
def test_the_relative_term_is_divided_by_the_root_of_the_width(attend):
    torch.manual_seed(1)
    query, nothing = torch.randn(1, 1, 16, 16, dtype=torch.float64), torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    weight = weights(attend, query, nothing, build("ricker past", 16, 1))[0, 0].numpy()
    p = np.array([PUBLISHED["ricker past"]["p"](t) for t in range(16)])
    for m in range(16):
        expected = [query[0, 0, m].numpy() @ (p[m - n] - p[0]) / 4 for n in range(m + 1)]  # 4 = sqrt(16)
        np.testing.assert_allclose(np.log(weight[m, : m + 1] / weight[m, m]), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("attend", ATTENTIONS)
def test_the_alibi_bias_is_not_divided_by_the_root_of_the_width(attend):
    nothing = torch.zeros(1, 8, 4, 4, dtype=torch.float64)
    weight = weights(attend, nothing, nothing, build("alibi", 4, 8))[0]
    rows = [[0, 0, 0, 0], [-1, 0, 0, 0], [-2, -1, 0, 0], [-3, -2, -1, 0]]  # -(m - n), figure 3 of Press et al.
    for head, slope in enumerate([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]):
        expected = np.tril(np.exp(slope * np.array(rows)))
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(weight[head], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("attend", ATTENTIONS)
def test_scales_up_to_2_to_127_and_every_dtype_give_finite_numbers(attend):
    position = build_position("wavelet", head_dim=128, num_heads=2, wavelet_scales="2^0..2^127")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert attend(*(tensor.to(dtype) for tensor in draw(17, 17, 128)), position).isfinite().all()


# What the fixed bases are cut to


@pytest.mark.parametrize("variant", [*position_names(), *SEVERAL, "every slot"])
@pytest.mark.parametrize("num_keys", [24, 60])
def test_a_temperature_multiplies_all_scores_beyond_l_train_by_yarns_factor(variant, num_keys):
    position = build(variant, head_dim=16, num_heads=2)
    tempered = TemperedPosition(position, l_train=24)
    query, key, value = draw(5, num_keys, 16)
    factor = 1 if num_keys == 24 else (0.1 * math.log(60 / 24) + 1) ** 2  # Eq. 22: sqrt(1 / t) = 0.1 ln(s) + 1
    # softmax(c x) is softmax(x) to the power of c, normalised
    powers = attention_weights(query, key, position, gates=gates_of(position, query, key)) ** factor
    expected = powers / powers.sum(-1, keepdim=True) @ value
    for attend in ATTENTIONS:
        torch.testing.assert_close(attend(query, key, value, tempered), expected, atol=1e-10, rtol=1e-10)


def test_no_far_weight_of_alibi_is_denormal_which_cpus_multiply_slowly():
    position = build_position("alibi", head_dim=16, num_heads=8)
    query, key, value = (tensor.float().requires_grad_() for tensor in draw(300, 300, 16, num_heads=8))
    denormal = lambda weights: (weights > 0) & (weights < torch.finfo(torch.float32).tiny)  # noqa: E731
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        causal_attention(query, key, value, position)
    assert denormal(attention_weights(query, key, position)).any()
    assert sum(tensor.numel() for tensor in saved) > 2 * 8 * 300 * 150  # the weights are among them
    assert not any(denormal(tensor).any() for tensor in saved)


@pytest.fixture
def leaves_out_what_it_can(monkeypatch):
    """Keys beyond a head's reach are left out of few keys, too, and of each head's blocks."""
    monkeypatch.setattr(blockwise, "_MANY_KEYS", 0)
    monkeypatch.setattr(blockwise, "_UNSEEN_PER_BLOCK", 0)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["alibi", "alibi+wavelet"])
def test_a_far_key_may_outweigh_any_bias(name, recompute, leaves_out_what_it_can):
    position = build_position(name, head_dim=16, num_heads=8).double()
    query, key, value = draw(300, 300, 16, num_heads=8)
    query, key[..., :9, :] = query.abs(), 200.0  # the scores of these keys are above any other's, 290 tokens away, too
    assert attention_weights(query, key, position)[..., -1, :9].sum(-1).amin() > 0.99
    assert position.bias(300, like=query).amin() < 3 * math.log(torch.finfo(torch.float64).eps)  # far keys are clamped
    attend = functools.partial(causal_attention, implementation="blockwise", recompute=recompute)
    found, expected = (
        value_and_gradients(attention, (query, key, value), position, torch.float64)
        for attention in (attend, reference_attention)
    )
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "variant, num_keys, num_key_heads, segments",
    [("alibi learned", 300, 8, None), ("alibi+wavelet", 600, 4, torch.arange(600).expand(1, -1) // 590)],
)
def test_keys_that_no_sum_sees_are_left_out(
    variant, num_keys, num_key_heads, segments, recompute, leaves_out_what_it_can, monkeypatch
):
    scores, weights_of = [], blockwise._weights
    monkeypatch.setattr(blockwise, "_weights", lambda *given: scores.append(weights_of(*given)) or scores[-1])
    name, options = VARIANTS.get(variant, (variant, {}))
    position = build_position(name, head_dim=16, num_heads=8, **options).double()
    attend = functools.partial(causal_attention, implementation="blockwise", recompute=recompute, segments=segments)
    query, key, value = draw(num_keys - 10, num_keys, 16, num_heads=8, batch=1, num_key_heads=num_key_heads)

    def seen(first_keys):
        """How many scores are made if the first nine keys are so many times as long."""
        scores.clear()
        longer = torch.cat((key[..., :9, :] * first_keys, key[..., 9:, :]), dim=-2)
        found, expected = (
            value_and_gradients(of, (query / 100, longer, value), position, torch.float64)
            for of in (attend, functools.partial(reference_attention, segments=segments))
        )
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
        return sum(block.numel() for block in scores)

    left_out, none_left_out = seen(1), seen(1e4)
    monkeypatch.setattr(blockwise, "_reach", lambda query, key, *slots: [key.size(1)])
    assert left_out < none_left_out == seen(1)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "variant, batch, heads, key_heads, num_queries, num_keys, parts",
    [
        ("alibi", 2, 6, 6, 20, 1500, None),
        ("alibi+wavelet", 3, 6, 2, 140, 1300, 2),
        ("alibi learned", 2, 12, 1, 129, 1100, None),
        ("ricker past", 2, 10, 5, 520, 520, 3),
        ("transformer-xl", 3, 6, 3, 130, 520, None),
    ],
)
def test_many_keys_of_a_batch_have_the_definitions_values_and_gradients(
    variant, batch, heads, key_heads, num_queries, num_keys, parts, recompute
):
    """Without a threshold moved: blocks of 128 queries, more heads than a group has, keys beyond the reach of some."""
    query, key, value = draw(num_queries, num_keys, 8, num_heads=heads, batch=batch, num_key_heads=key_heads)
    inputs, position = (query / 4, key / 4, value), build(variant, 8, heads)
    segments = parts and torch.arange(num_keys).expand(batch, -1) * parts // num_keys
    if num_keys > blockwise._MANY_KEYS:
        flat = [tensor.flatten(0, 1) for tensor in inputs[:2]]
        bias = position.bias(num_keys, like=query).flip(-1)
        assert min(blockwise._reach(*flat, None, None, bias, None)) < num_keys
    attend = functools.partial(causal_attention, recompute=recompute, segments=segments)
    exact = functools.partial(reference_attention, segments=segments)
    with torch.no_grad():
        torch.testing.assert_close(attend(*inputs, position), exact(*inputs, position), rtol=0, atol=1e-10)
    found, expected = (value_and_gradients(of, inputs, position, torch.float64) for of in (attend, exact))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("by", ["keys", "wavelets"])
def test_a_far_key_that_one_head_of_one_sequence_asks_for_is_seen_whatever_the_bias(by):
    """Beyond 1024 keys some are left out, by a bound that the scores here reach: 300 below and above 0, or 600."""
    options = {"alibi_slope_factor": 7.2}  # the second of four heads: -585 at the first keys, 1299 tokens back
    if by == "wavelets":
        options.update(wavelet="gaussian", wavelet_scales="4", wavelet_shifts="1283..1290")
    position = build_position("alibi" if by == "keys" else "alibi+wavelet", head_dim=8, num_heads=4, **options).double()
    query, key = torch.full((2, 4, 130, 8), 0.01).double(), torch.full((2, 2, 1300, 8), 0.01).double()
    value = torch.randn(2, 2, 1300, 8, dtype=torch.float64)
    if by == "keys":
        query[1, 1], key[1, 0] = 10.4, -10.4  # 8 x 10.4^2 / sqrt(8) = 306
        key[1, 0, :4] = 10.4
    else:
        query[1, 1] = 320.0
    assert attention_weights(query, key, position)[1, 1, -1, :50].sum() > 0.9
    bias = position.bias(1300, like=query).flip(-1)
    assert blockwise._reach(query.flatten(0, 1) * 0, key.flatten(0, 1), None, None, bias, None)[1] < 600
    attend = functools.partial(causal_attention, implementation="blockwise")
    found, expected = (
        value_and_gradients(of, (query, key, value), position, torch.float64) for of in (attend, reference_attention)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_bias_that_all_lags_have_leaves_no_key_out():
    class Lower(position_class("alibi")):
        def bias(self, num_lags, like):
            return super().bias(num_lags, like) - 1000

    query, key, value = torch.randn(3, 2, 2, 1100, 8)
    found, expected = (of(query[:, :, -20:], key, value, Lower(8, 2)) for of in (causal_attention, reference_attention))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_on_a_gpu_auto_is_the_kernel_or_blockwise_where_that_cannot_run():
    def on_gpu(head_dim, dtype=torch.float32):
        like = torch.empty(1, 2, 3, head_dim, dtype=dtype, device="meta")
        return SimpleNamespace(is_cuda=True, dtype=dtype, size=like.size, device=torch.device("cuda"))

    kernel = pytest.importorskip("wavepos_fairseq.attention.triton")
    if not kernel._INTERPRETED:
        pytest.skip("asks the GPU")
    chosen = [attention._choose("auto", of) for of in (on_gpu(256), on_gpu(257), on_gpu(64, torch.float64))]
    assert chosen == ["triton", "blockwise", "blockwise"]
    with pytest.raises(ValueError, match="triton': a head has 257"):
        attention._choose("triton", on_gpu(257))


def test_blocks_cover_all_scores_in_reach_and_are_whole_sequences_or_lie_in_one():
    random = Random(0)
    for _ in range(400):
        key_heads, shared, batch = random.choice((1, 2, 4, 6)), random.choice((1, 2)), random.choice((1, 2, 3, 16))
        num_queries, num_heads = random.choice((1, 20, 128, 300, 1100)), key_heads * shared
        num_keys = num_queries + random.choice((0, 700, 1500))
        reach = [random.choice((3, 400, num_keys)) for _ in range(num_heads)]
        query, key = (
            torch.empty(batch * heads, length, 1, device="meta")
            for heads, length in ((num_heads, num_queries), (key_heads, num_keys))
        )
        bias = torch.empty(num_heads, num_keys, device="meta")
        covered = torch.zeros(batch * num_heads, num_queries, dtype=torch.int)
        for block in blockwise._blocks(query, key, None, random.random() < 0.5, reach, bias):
            covered[block.of_queries] += 1
            first, last = block.heads.start, block.heads.stop
            assert first % num_heads == last % num_heads == 0 or first // num_heads == (last - 1) // num_heads
            assert block.keys.stop == num_keys - num_queries + block.queries.stop
            furthest = max(reach[head % num_heads] for head in range(first, last))
            assert block.keys.start <= max(0, num_keys - num_queries + block.queries.start - furthest + 1)
        assert (covered == 1).all()


def test_a_bias_of_minus_infinity_leaves_a_weight_of_zero():
    class Window(position_class("alibi")):
        def bias(self, num_lags, like):
            return super().bias(num_lags, like).masked_fill(torch.arange(num_lags) >= 250, -math.inf)

    query, key, value = draw(300, 300, 16, num_heads=8)
    value[..., 0, :] = 1e60
    attended = causal_attention(query, key, value, Window(16, 8), implementation="blockwise")[..., 250:, :]
    torch.testing.assert_close(attended, reference_attention(query, key, value, Window(16, 8))[..., 250:, :])


TABLES = [variant for variant, (name, _) in VARIANTS.items() if name in ("wavelet", "trans-xl")]
TABLES.remove("ricker learned")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", TABLES)
def test_factors_are_the_basis_to_the_rounding_that_they_promise(variant, dtype):
    position, like = build(variant, 128, 2), torch.empty(0, dtype=dtype)
    exact = position.relative(2512, like=torch.empty(0, dtype=torch.float64))
    projection, rows = (tensor.double() for tensor in position.factors(2512, like=like))
    product = torch.zeros_like(exact)
    product[: len(rows)] = rows @ projection.T
    error = (product - exact).norm(dim=1).max() / exact.norm(dim=1).max()
    eps = torch.finfo(dtype).eps
    assert error <= (1 + 2) * eps if dtype != torch.float64 else error <= 1e-13  # the bound, and what is rounded
    assert product[len(rows) :].abs().max() == 0 if len(rows) < 2512 else True


def test_a_basis_of_low_rank_and_short_reach_is_cut_to_both_and_another_to_neither():
    table = torch.zeros(100, 20, dtype=torch.float64)
    table[:30, :9] = torch.randn(30, 9, dtype=torch.float64)
    projection, rows = low_rank(table @ torch.randn(20, 20, dtype=torch.float64), 1e-7)
    assert projection.shape == (20, 16) and rows.shape == (32, 16)  # the next multiples of 8
    projection, rows = low_rank(torch.randn(100, 20, dtype=torch.float64), 1e-7)
    assert projection.shape == (20, 20) and rows.shape == (100, 20)
    assert low_rank(torch.zeros(100, 20, dtype=torch.float64), 1e-7)[1].shape == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_transformer_xl_takes_its_waves_to_their_rounding(dtype):
    position = build_position("transformer-xl", head_dim=32, num_heads=4).double()
    torch.nn.init.normal_(position.projection)
    exact = position.relative(2512, like=torch.empty(0, dtype=torch.float64))
    rows = position.factors(2512, like=torch.empty(0, dtype=dtype))[1].double()
    wave = math.sqrt(128 / 2)  # the length of each, of sin^2 + cos^2
    error = (rows - exact).norm(dim=-1).amax(-1) / (wave * torch.linalg.matrix_norm(position.projection, 2))
    assert error.max() <= (4 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-13)


# Blocks


class ShortReach(Position):
    """A basis that ends at lag T - 1, T being chosen."""

    def __init__(self, reach):
        super().__init__(16, 2)
        self.rows = torch.randn(reach, 16, dtype=torch.float64)

    def factors(self, num_lags, like):
        return None, self.rows[:num_lags].to(like)

    def relative(self, num_lags, like):
        rows = torch.zeros(num_lags, 16, dtype=torch.float64)
        rows[: len(self.rows)] = self.rows[:num_lags]
        return rows.to(like)


ZERO_AT_FIRST = {  # wavelets of 32 dimensions, and the tokens up to which all of them are zero
    "haar": (8, {"wavelet": "haar", "wavelet_scales": "1*8", "wavelet_shifts": "8..11"}),
    "ricker": (20, {"wavelet": "ricker", "wavelet_scales": "1*8", "wavelet_shifts": "64..67"}),
    "haar scaled": (
        64,
        {
            "wavelet": "haar",
            "wavelet_scales": "2^3*8",
            "wavelet_shifts": "8..11",
            "wavelet_shift_direction": "scaled",
        },
    ),
    "haar future": (
        70,
        {
            "wavelet": "haar",
            "wavelet_scales": "1*8",
            "wavelet_shifts": "8..11",
            "wavelet_shift_direction": "future",
        },
    ),
}


@pytest.mark.parametrize("implementation", ["auto", "blockwise", "reference"])
@pytest.mark.parametrize("num_queries", ["all", 2, 1])
@pytest.mark.parametrize("name", ZERO_AT_FIRST)
def test_a_basis_that_is_zero_over_all_lags_in_view_adds_nothing(name, num_queries, implementation):
    length, options = ZERO_AT_FIRST[name]
    position = build_position("wavelet", head_dim=32, num_heads=2, **options)
    attend = functools.partial(causal_attention, implementation=implementation)
    for num_keys in (1, 4, length):
        inputs = draw(num_keys if num_queries == "all" else min(num_queries, num_keys), num_keys, 32)
        found = value_and_gradients(attend, inputs, position, torch.float64)
        plain = value_and_gradients(reference_attention, inputs, Position(32, 2), torch.float64)
        for one, other in zip(found, plain):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert ("future" in name) != position.relative(2 * length + 100, like=inputs[0]).any()  # further lags are seen


@pytest.mark.parametrize("implementation", ["auto", "blockwise"])
@pytest.mark.parametrize("variant", ["rpe", "t5", "transformer-xl", "every slot"])
def test_learned_slots_that_are_all_zero_are_the_definition_and_learn(variant, implementation):
    position = build(variant, 16, 2)
    for parameter in position.parameters():
        torch.nn.init.zeros_(parameter)
    attend = functools.partial(causal_attention, implementation=implementation)
    inputs = draw(70, 70, 16)
    fast = value_and_gradients(attend, inputs, position, torch.float64)
    for one, other in zip(fast, value_and_gradients(reference_attention, inputs, position, torch.float64)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("implementation", ["auto", "blockwise", "reference"])
@pytest.mark.parametrize("batch, num_queries", [(0, 5), (0, 1), (2, 0)])
@pytest.mark.parametrize("variant", FORMS)
def test_no_sequences_and_no_queries_give_an_empty_output(variant, batch, num_queries, implementation):
    inputs = draw(num_queries, 5, 16, batch=batch)
    attend = functools.partial(causal_attention, implementation=implementation)
    output, *gradients = value_and_gradients(attend, inputs, build(variant, 16, 2), torch.float64)
    assert output.shape == inputs[0].shape and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("reach", [1, 2, 63, 64, 65, 127, 128, 129, 199, 200])
@pytest.mark.parametrize("num_queries", [200, 129, 1])
def test_a_basis_may_end_anywhere_in_a_block(num_queries, reach):
    inputs, position = draw(num_queries, 200, 16), ShortReach(reach)
    fast = value_and_gradients(causal_attention, inputs, position, torch.float64)
    for one, other in zip(fast, value_and_gradients(reference_attention, inputs, position, torch.float64)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "variant", ["nope", "rope", "alibi", "ricker past", "haar past", "every slot", "transformer-xl"]
)
@pytest.mark.parametrize("num_queries, num_keys", [(513, 513), (640, 640), (767, 767), (3, 1300)])
def test_long_sequences_have_larger_blocks_and_the_same_values_and_gradients(variant, num_queries, num_keys):
    inputs, position = draw(num_queries, num_keys, 16, num_heads=2, batch=1), build(variant, 16, 2)
    if variant == "every slot":
        position.embedding = torch.nn.Parameter(torch.randn(1300, 16, dtype=torch.float64))
    fast = value_and_gradients(causal_attention, inputs, position, torch.float64)
    exact = value_and_gradients(reference_attention, inputs, position, torch.float64)
    for one, other in zip(fast, exact):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch, num_heads", [(4, 3), (2, 10)])
@pytest.mark.parametrize("variant", FORMS)
def test_many_heads_go_in_groups_and_give_the_same_values_and_gradients(variant, batch, num_heads, monkeypatch):
    # Learning, groups of 8 heads; where those of a sequence differ, of two sequences' 6, or of a sequence's 8 and 2.
    # Else groups of 4, or of 3, or of 4, 4 and 2.
    monkeypatch.setattr(blockwise, "_SCORES_PER_BLOCK", 1)
    inputs, position = draw(70, 70, 16, num_heads=num_heads, batch=batch), build(variant, 16, num_heads)
    with torch.no_grad():
        attended = (attend(*inputs, position) for attend in (causal_attention, reference_attention))
        torch.testing.assert_close(*attended, rtol=1e-10, atol=1e-10)
    fast = value_and_gradients(causal_attention, inputs, position, torch.float64)
    exact = value_and_gradients(reference_attention, inputs, position, torch.float64)
    for one, other in zip(fast, exact):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("num_key_heads, segments", [(2, None), (1, torch.arange(70)[None] // 69)])
@pytest.mark.parametrize("variant", ["nope", "alibi", "haar past", "every slot", "transformer-xl"])
def test_gradients_are_those_of_finite_differences(variant, num_key_heads, segments, dropout_p, recompute):
    drawn = draw(4, 70, 8, num_heads=2, batch=1, num_key_heads=num_key_heads)
    inputs, position = [tensor.requires_grad_() for tensor in drawn], build(variant, 8, 2)

    def attend(query, key, value):
        torch.manual_seed(0)
        return causal_attention(query, key, value, position, dropout_p, recompute=recompute, segments=segments)

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("variant", FORMS)
def test_recomputing_the_weights_changes_nothing(variant, dropout_p):
    inputs, position = draw(100, 100, 16), build(variant, 16, 2)

    def attend(recompute, *arguments):
        torch.manual_seed(0)
        return causal_attention(*arguments, dropout_p, recompute=recompute)

    kept, anew = (
        value_and_gradients(functools.partial(attend, recompute), inputs, position, torch.float64)
        for recompute in (False, True)
    )
    assert all(torch.equal(one, other) for one, other in zip(kept, anew))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("variant", ["ricker past", "haar past", "alibi", "trans-xl", "t5", "every slot"])
def test_half_precision_at_4096_errs_no_more_than_twice_what_plain_attention_does(variant, dtype):
    inputs = [tensor.to(dtype) for tensor in draw(4096, 4096, 64, num_heads=1, batch=1)]
    position = build(variant, 64, 1)
    if variant == "every slot":
        position.embedding = torch.nn.Parameter(torch.randn(4096, 64, dtype=torch.float64))
    last = [tensor.double()[:, :, -1:] if n == 0 else tensor.double() for n, tensor in enumerate(inputs)]
    with torch.no_grad():
        ours = causal_attention(*inputs, position)
        plain = F.scaled_dot_product_attention(*inputs, is_causal=True)
        assert ours.dtype == dtype and ours.isfinite().all()
        error = (ours[:, :, -1:] - reference_attention(*last, position)).abs().max()
        plain_error = (plain[:, :, -1:] - reference_attention(*last, Position(64, 1))).abs().max()
    assert error <= 2 * plain_error + torch.finfo(dtype).eps * ours[:, :, -1:].abs().max()


@pytest.mark.parametrize("variant", ["nope", "alibi", "ricker past", "every slot"])
def test_autocast_changes_no_dtype_inside(variant):
    inputs, position = [tensor.float() for tensor in draw(100, 100, 16)], build(variant, 16, 2).float()
    plain = value_and_gradients(causal_attention, inputs, position, torch.float32)

    def attend(*arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return causal_attention(*arguments)

    cast = value_and_gradients(attend, inputs, position, torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(cast, plain))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # backward, too, where q C is PyTorch's own product
        cast = value_and_gradients(causal_attention, inputs, position, torch.float32)
    torch.testing.assert_close(cast, plain, rtol=0.02, atol=0.02)


COMPILED = """
import torch
from wavepos_fairseq.attention import causal_attention
from wavepos_fairseq.positions import build_position

packed = torch.arange(100)[None] // 70
for name, key_heads, segments in (
    ("nope", 2, None),
    ("alibi+rpe+transformer-xl+wavelet", 2, None),
    ("nope", 1, packed),
    ("wavelet", 1, packed),
):
    position = build_position(name, head_dim=16, num_heads=2)
    for parameter in position.parameters():
        torch.nn.init.normal_(parameter)
    attend = lambda q, k, v: causal_attention(2 * q, k, v, position, segments=segments) + 1
    inputs = [torch.randn(1, heads, 100, 16, requires_grad=True) for heads in (2, key_heads, key_heads)]
    for one, other in zip(*(
        (output, *torch.autograd.grad(output.sin().sum(), inputs))
        for output in (attend(*inputs), torch.compile(attend, backend="aot_eager")(*inputs))
    )):
        torch.testing.assert_close(one, other)
"""


def test_torch_compile_changes_nothing():
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=str(ROOT), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


# Traced, exported, imagined. Heads of another shape than anywhere else here, so that no table is there beforehand.

TRACED = [variant for variant in FORMS if variant not in ("sinusoidal", "every slot")]
TRACED += ["rope+t5+trans-xl+wavelet", "alibi+rpe+transformer-xl+wavelet"]


class Attending(torch.nn.Module):
    def __init__(self, position):
        super().__init__()
        self.position = position

    def forward(self, query, key, value, segments=None):
        return causal_attention(query, key, value, self.position, segments=segments)


def lengths_open(inputs):
    """The dynamic shapes of query, key, value and, if they are given, segments."""
    length = torch.export.Dim("length", min=2, max=64)
    names = ("query", "key", "value", "segments")[: len(inputs)]
    return {name: {1 if name == "segments" else 2: length} for name in names}


def exported(module, inputs):
    shapes = lengths_open(inputs)
    return torch.export.export(module, tuple(inputs), dynamic_shapes=shapes).module()


def imagined(module, inputs):
    """No function of other numbers, but the module itself, after it has been given tensors without any."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert module(*map(mode.from_tensor, inputs)).shape == inputs[0].shape
    return module


TRACERS = {
    "torch.jit.trace": lambda module, inputs: torch.jit.trace(module, tuple(inputs), check_trace=False),
    "torch.export": exported,
    "make_fx": lambda module, inputs: torch.fx.experimental.proxy_tensor.make_fx(module)(*inputs),
    "FakeTensorMode": imagined,
}


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("variant", TRACED)
def test_traced_or_exported_it_is_the_definition_at_other_lengths_too_and_leaves_nothing_behind(variant, tracer):
    if PYTORCH < (2, 6) and tracer == "torch.export":
        pytest.skip("before PyTorch 2.6 torch.export follows Python's bytecode, which is not ours to test")
    module = Attending(build(variant, 24, 5).float())
    torch.manual_seed(0)
    cases = [[tensor.float() for tensor in draw(length, length, 24, num_heads=5)] for length in (7, 7, 11)]
    if tracer == "make_fx":
        cases.pop()  # it records one shape
    exact = copy.deepcopy(module.position).double()
    expected = [reference_attention(*(tensor.double() for tensor in inputs), exact) for inputs in cases]
    traced = TRACERS[tracer](module, cases[0])
    for attend in (traced, module):
        for inputs, output in zip(cases, expected):
            atol = 2e-5 if variant == "rope-wavelet" else 2e-6  # whose scores are large
            torch.testing.assert_close(attend(*inputs).double(), output, rtol=0, atol=atol)


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("variant", ["rope+t5", "wavelet"])
def test_traced_or_exported_it_keeps_segments_apart_and_shares_keys(variant, tracer):
    if PYTORCH < (2, 6) and tracer == "torch.export":
        pytest.skip("before PyTorch 2.6 torch.export follows Python's bytecode, which is not ours to test")
    module = Attending(build(variant, 24, 5).float())
    first, other = with_segments(7), with_segments(7, number=2)
    exact_position = copy.deepcopy(module.position).double()
    traced = TRACERS[tracer](module, first)
    for inputs in (first, other) if tracer == "make_fx" else (first, other, with_segments(11)):
        exact = reference_attention(*(x.double() for x in inputs[:3]), exact_position, segments=inputs[3])
        torch.testing.assert_close(traced(*inputs).double(), exact, rtol=0, atol=2e-6)


def with_segments(length, number=3):
    """query, key, value of five heads that share one, and segments of `number` tokens."""
    drawn = draw(length, length, 24, num_heads=5, num_key_heads=1)
    return [*(tensor.float() for tensor in drawn), torch.arange(length).expand(2, -1) // number]


@pytest.mark.parametrize("variant", ["transformer-xl", "db4", "alibi and segments"])
def test_onnx_computes_the_same_at_other_lengths(variant):
    pytest.importorskip("onnxscript", reason="no onnxscript for this Python")
    runtime = pytest.importorskip("onnxruntime", reason="no onnxruntime for this Python")
    module = Attending(build(variant.split()[0], 24, 5).float())
    cases = [[tensor.float() for tensor in draw(length, length, 24, num_heads=5)] for length in (7, 11)]
    if "segments" in variant:
        cases = [with_segments(7), with_segments(11)]
    shapes = lengths_open(cases[0])
    model = torch.onnx.export(module, tuple(cases[0]), dynamo=True, dynamic_shapes=shapes, verbose=False).model_proto
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for inputs in cases:
        given = dict(zip(shapes, (tensor.numpy() for tensor in inputs)))
        torch.testing.assert_close(torch.from_numpy(session.run(None, given)[0]), module(*inputs), rtol=0, atol=5e-6)


@pytest.mark.parametrize("variant", TRACED)
def test_a_representation_can_be_built_on_the_meta_device_and_used_there_and_filled_later(variant):
    with torch.device("meta"):
        position = build(variant, 24, 5)
        meta = torch.empty(2, 5, 7, 24, requires_grad=True)
        for dropout_p in (0.0, 0.1):
            with torch.no_grad():
                output = causal_attention(meta, meta, meta, position, dropout_p)
                segments = torch.zeros(2, 7, dtype=torch.int64)
                shared = causal_attention(meta, meta[:, :1], meta[:, :1], position, dropout_p, segments=segments)
            assert output.shape == shared.shape == meta.shape and output.is_meta and shared.is_meta
            causal_attention(meta, meta, meta, position, dropout_p).sum().backward()
            assert meta.grad.shape == meta.shape and meta.grad.is_meta
    real = build(variant, 24, 5)
    position = position.to_empty(device="cpu")
    position.load_state_dict(real.state_dict())
    inputs = draw(9, 9, 24, num_heads=5)
    torch.testing.assert_close(causal_attention(*inputs, position), reference_attention(*inputs, real))


@pytest.mark.parametrize("implementation", ["blockwise", "triton"])
def test_an_implementation_that_cannot_be_traced_is_refused_there(implementation):
    def attend(x):
        return causal_attention(x, x, x, build("alibi", 16, 2), implementation=implementation)

    with pytest.raises(ValueError, match=f"implementation='{implementation}' cannot be traced or exported"):
        torch.jit.trace(attend, torch.randn(1, 2, 3, 16))


@pytest.mark.parametrize("of_output", [torch.square, torch.neg], ids=["square", "linear"])
@pytest.mark.parametrize("recompute", [False, True])
def test_second_derivatives_are_those_of_the_reference_and_refused_elsewhere(recompute, of_output):
    position = build_position("wavelet", head_dim=16, num_heads=2)
    x = torch.randn(1, 2, 9, 16, dtype=torch.float64, requires_grad=True)

    def second(implementation):
        attended = causal_attention(x, x, x, position, implementation=implementation, recompute=recompute)
        (gradient,) = torch.autograd.grad(of_output(attended).sum(), x, create_graph=True)
        (gradient.square().sum() + attended.sum()).backward()  # of which there would be a first derivative

    second("reference")
    assert x.grad.any()
    with pytest.raises(RuntimeError, match=r"create_graph=True\) need implementation='reference'"):
        second("blockwise")


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
@pytest.mark.parametrize("name", ["rope", "rope-wavelet", "xpos"])
def test_keys_may_have_any_layout_in_memory(name, pairs):
    options = {} if name == "xpos" else {"rope_pairs": pairs}
    position = build_position(name, head_dim=8, num_heads=2, **options)
    key = torch.randn(1, 2, 9, 8)
    layouts = {
        "transposed": key.mT.contiguous().mT,
        "odd rows": torch.cat((key, key[..., :1]), -1)[..., :8],
        "odd offset": torch.cat((torch.zeros(1), key.flatten()))[1:].view_as(key),
    }
    expected = position.rotate_key(key, 3)
    for layout in layouts.values():
        assert torch.equal(layout, key) and torch.equal(position.rotate_key(layout, 3), expected)


@pytest.mark.parametrize("position", [None, "wavelet"])
def test_what_is_no_position_is_refused(position):
    x = torch.zeros(1, 2, 3, 16)
    with pytest.raises(ValueError, match=f"^position must be a Position, .*build_position makes, not {position!r}$"):
        attention.causal_attention(x, x, x, position)


@pytest.mark.parametrize("implementation", ["blockwise", "reference"])
def test_gates_that_nothing_reads_are_refused(implementation):
    x, rope = torch.zeros(1, 2, 3, 16), build("rope", 16, 2)
    with pytest.raises(ValueError, match="^gates are given, but RotaryPosition has no slot c that reads them$"):
        attention.causal_attention(x, x, x, rope, implementation=implementation, gates=torch.zeros(1, 2, 3))


@pytest.mark.parametrize("dropout_p", [-0.1, 1.0, 1.5, math.nan])
def test_a_dropout_that_is_no_probability_or_drops_all_is_refused(dropout_p):
    x = torch.zeros(1, 2, 3, 16)
    with pytest.raises(ValueError, match=f"dropout_p={dropout_p}: must be a probability"):
        causal_attention(x, x, x, build_position("nope", head_dim=16, num_heads=2), dropout_p)


def test_an_unknown_implementation_is_refused_and_the_reference_can_be_had():
    inputs, position = draw(9, 9, 16), build("ricker past", 16, 2)
    with pytest.raises(ValueError, match="^implementation='flash' is unknown; accepted are auto, blockwise"):
        causal_attention(*inputs, position, implementation="flash")
    reference = causal_attention(*inputs, position, implementation="reference")
    assert torch.equal(reference, reference_attention(*inputs, position))


@pytest.mark.parametrize("num_queries", [9, 1])
@pytest.mark.parametrize("variant", ["nope", "rope", "rope-wavelet", "sinusoidal", "ricker past"])
def test_an_implementation_that_is_asked_for_is_taken_even_where_pytorchs_own_would_do(
    variant, num_queries, monkeypatch
):
    inputs, position = draw(num_queries, 9, 16), build(variant, 16, 2)
    expected = causal_attention(*inputs, position)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    torch.testing.assert_close(causal_attention(*inputs, position, implementation="blockwise"), expected)


# Dropout


@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize("variant", FORMS[:-1])
def test_dropout_doubles_a_weight_or_drops_it_and_keeps_the_mean(variant, attend):
    query, key, _ = (tensor.expand(1000, -1, -1, -1) for tensor in draw(8, 8, 8, batch=1))
    value, position = torch.eye(8, dtype=torch.float64).expand_as(key), build(variant, 8, 2)
    kept = attend(query[:1], key[:1], value[:1], position)
    torch.manual_seed(0)
    dropped = attend(query, key, value, position, dropout_p=0.5)
    assert torch.minimum(dropped.abs(), (dropped - 2 * kept).abs()).max() < 1e-12
    # 1000 draws of a weight w have a mean with a standard deviation of w / sqrt(1000); 5 of them
    assert ((dropped.mean(dim=0) - kept[0]).abs() <= kept[0] * 5 / math.sqrt(1000) + 1e-12).all()
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize("variant", FORMS[:-1])
def test_without_dropout_two_calls_give_the_same_bits(variant, attend):
    inputs, position = draw(17, 17, 16), build(variant, 16, 2)
    assert torch.equal(attend(*inputs, position), attend(*inputs, position, dropout_p=0.0))


# Memory


def largest_tensor(attend, position, inputs, learn=True):
    """... forward and backward."""
    inputs = [tensor.detach().requires_grad_(learn) for tensor in inputs]
    attend(*inputs, position)  # what is made once is made before
    with LargestTensor() as largest:
        output = attend(*inputs, position)
        if learn:
            output.sum().backward()
    return largest.nbytes // inputs[0].element_size()


def kept_for_backward(attend, position, inputs):
    """The numbers that autograd keeps between forward and backward."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.update({tensor.data_ptr(): tensor.numel()}) or tensor, lambda tensor: tensor
    ):
        attend(*inputs, position)
    return sum(sizes.values())


@pytest.mark.parametrize("num_key_heads, segments", [(2, None), (1, torch.arange(1024)[None] % 2)])
@pytest.mark.parametrize("variant", FORMS)
def test_causal_attention_makes_no_tensor_larger_than_a_blocks_scores_and_keeps_half_of_them_all(
    variant, num_key_heads, segments
):
    position, inputs, block = build(variant, 64, 2), draw(1024, 1024, 64, batch=1, num_key_heads=num_key_heads), 128
    skip_where_plain_attention_is_old(position)
    attend = functools.partial(causal_attention, segments=segments)
    with torch.no_grad():
        assert largest_tensor(attend, position, inputs, learn=False) <= 2 * block * (1024 + block + 1)
    assert largest_tensor(attend, position, inputs) <= 2 * block * (1024 + block + 1)
    assert 0.5 <= kept_for_backward(attend, position, inputs) / (2 * 1024 * 1024) < 0.5 + 6 * block / 1024
    recomputing = functools.partial(attend, recompute=True)
    assert kept_for_backward(recomputing, position, inputs) <= 9 * inputs[0].numel()


def test_packed_sequences_cost_the_scores_of_their_own_keys_alone():
    position, inputs = build("wavelet", 64, 2), draw(1024, 1024, 64, batch=1)
    packed = functools.partial(causal_attention, segments=torch.arange(1024)[None] // 128)
    kept = kept_for_backward(packed, position, inputs) - kept_for_backward(
        functools.partial(packed, recompute=True), position, inputs
    )
    assert kept == 2 * 1024 * 128


@pytest.mark.parametrize("num_queries", [16, 1])
@pytest.mark.parametrize("variant", [name for name in position_names() if name != "transformer-xl"])  # p as large
def test_keys_and_values_that_heads_share_are_not_copied(variant, num_queries):
    position, inputs = build(variant, 64, 8), draw(num_queries, 4096, 64, num_heads=8, batch=1, num_key_heads=1)
    copied = 8 * 4096 * 64
    with torch.no_grad():
        attend = functools.partial(attention.causal_attention, gates=gates_of(position, *inputs[:2]))
        assert largest_tensor(attend, position, inputs, learn=False) < copied / 2
    assert largest_tensor(attend, position, inputs) < copied / 2


@pytest.mark.skipif(PYTORCH < (2, 5), reason="PyTorch's own attention takes fewer key heads since 2.5")
def test_pytorchs_own_attention_is_taken_for_fewer_key_heads_where_it_has_a_kernel_for_them(monkeypatch):
    inputs, position = draw(200, 200, 16, num_heads=4, num_key_heads=2), build("rope", 16, 4)
    expected, taken = reference_attention(*inputs, position), []
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *given, **more: taken.append(1) or plain(*given, **more)
    )
    for fused in (1, 0):
        monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *given, fused=fused, **more: fused)
        torch.testing.assert_close(causal_attention(*inputs, position), expected)
        assert len(taken) == 1


def test_the_probe_sees_the_large_tensor_of_the_definition():
    inputs = draw(256, 256, 64, batch=1)
    assert largest_tensor(reference_attention, build("wavelet", 64, 2), inputs) >= 256 * 256 * 64


# Errors


@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize(
    "query, key, value, message",
    [
        ((2, 2, 6, 16), (2, 2, 5, 16), (2, 2, 5, 16), "6 queries for 5 keys"),
        ((2, 2, 5, 16), (2, 2, 5, 32), (2, 2, 5, 32), "do not fit"),
        ((2, 2, 5, 16), (2, 2, 5, 16), (2, 2, 6, 16), "do not fit"),
        ((2, 2, 5, 16), (2, 2, 5, 16), (2, 2, 5, 32), "do not fit"),
        ((2, 2, 5, 16), (2, 3, 5, 16), (2, 3, 5, 16), "3 heads of key and value do not fit 2 heads; accepted are 1, 2"),
        ((2, 2, 5, 16), (2, 4, 5, 16), (2, 4, 5, 16), "4 heads of key and value do not fit 2 heads"),
        ((2, 2, 5, 16), (2, 0, 5, 16), (2, 0, 5, 16), "0 heads of key and value do not fit 2 heads"),
        ((1, 2, 5, 16), (2, 2, 5, 16), (2, 2, 5, 16), "do not fit"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(query, key, value, message, attend):
    with pytest.raises(ValueError, match=message):
        attend(torch.ones(query), torch.ones(key), torch.ones(value), build_position("nope", head_dim=16, num_heads=2))


@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"value": torch.bfloat16},
            "not torch.float32, torch.float32, torch.bfloat16; accepted is one floating-point dtype for all",
        ),
        ({"query": torch.float64}, "must have one dtype, not torch.float64, torch.float32, torch.float32"),
        ({"key": "meta", "value": "meta"}, "must have one device, not cpu, meta, meta"),
        (dict.fromkeys(("query", "key", "value"), torch.int64), "must be floating-point tensors, not torch.int64"),
    ],
)
def test_dtypes_and_devices_that_do_not_fit_are_refused(changed, message, attend):
    inputs = {name: torch.ones(1, 2, 3, 16).to(changed.get(name)) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match=message):
        attend(**inputs, position=build("alibi", 16, 2))


@pytest.mark.parametrize("attend", EVERYWHERE.values(), ids=EVERYWHERE)
@pytest.mark.parametrize(
    "segments, message",
    [
        (torch.zeros(2, 4, dtype=torch.int64), r"shape \(B, S\) = \(2, 5\) of the keys, not \(2, 4\)"),
        (torch.zeros(1, 5, dtype=torch.int64), r"shape \(B, S\) = \(2, 5\) of the keys, not \(1, 5\)"),
        (torch.zeros(2, 1, 5, 5, dtype=torch.int64), r"not \(2, 1, 5, 5\)"),
        (torch.zeros(2, 5), "segments must be integers, not torch.float32; accepted are torch.int64"),
        (torch.ones(2, 5, dtype=torch.bool), "segments must be integers, not torch.bool"),
        (torch.zeros(2, 5, dtype=torch.int64, device="meta"), "on the device of query, key and value, cpu, not meta"),
    ],
)
def test_segments_that_do_not_fit_are_refused(segments, message, attend):
    with pytest.raises(ValueError, match=f"^segments must .*{message}|^{message}"):
        attend(*draw(3, 5, 16), build("alibi", 16, 2), segments=segments)


@pytest.mark.parametrize("num_queries", [9, 1])
def test_a_broken_scale_breaks_the_output_without_gradients_too(num_queries):
    query, key, value = torch.randn(3, 1, 2, 9, 16)
    position = build_position("wavelet", head_dim=16, num_heads=2, wavelet_learn="both")
    with torch.no_grad():
        position.scale_octaves[3] = math.nan
        assert reference_attention(query, key, value, position).isnan().all()
        assert causal_attention(query[:, :, -num_queries:], key, value, position).isnan().all()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_factors_of_a_broken_table_are_broken(broken):
    table = torch.randn(16, 8).double()
    table[3, 2] = broken
    columns, rows = low_rank(table, 1e-7)
    assert not (rows @ columns.T)[3].isfinite().all()


def test_dropout_drops_the_same_weights_in_both_passes_where_a_slot_is_made_of_no_parameter():
    class Made(Position):
        def bias(self, num_lags, like):
            return -self.made[:, None] * torch.arange(num_lags).to(like)

    query, (key, value) = torch.randn(1, 8, 128, 16).double(), torch.randn(2, 1, 8, 640, 16).double()
    position, slopes = Made(16, 8), torch.full((8,), 0.05).double().requires_grad_()

    def loss(slopes):
        torch.manual_seed(5)
        position.made = slopes
        return (causal_attention(query, key, value, position, dropout_p=0.3) * value[:, :, -128:]).sum()

    (found,) = torch.autograd.grad(loss(slopes), slopes)
    with torch.no_grad():
        steps = 1e-6 * torch.eye(8).double()
        expected = torch.stack([(loss(slopes + step) - loss(slopes - step)) / 2e-6 for step in steps])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "name, num_keys, num_heads", [("rope", 40, 2), ("nope", 40, 2), ("wavelet", 40, 2), ("alibi", 1024, 8)]
)
def test_a_reentrant_checkpoint_drops_the_same_weights_in_both_of_its_calls(name, num_keys, num_heads):
    position = build_position(name, head_dim=16, num_heads=num_heads)
    tensors = torch.randn(3, 1, num_heads, num_keys, 16)

    def value_and_gradient(attend):
        query, key, value = (tensor.clone().requires_grad_() for tensor in tensors)
        torch.manual_seed(7)
        output = attend(lambda *inputs: causal_attention(*inputs, position, dropout_p=0.3), query, key, value)
        output.square().sum().backward()
        return output, value.grad

    checkpointed = value_and_gradient(functools.partial(checkpoint, use_reentrant=True))
    for one, other in zip(checkpointed, value_and_gradient(lambda attend, *inputs: attend(*inputs))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(torch._C, "_are_functorch_transforms_active"), reason="PyTorch 2.0 does not say so")
@pytest.mark.parametrize("name", ["nope", "alibi", "wavelet", "rpe"])
def test_torch_func_gives_the_definitions_gradients_by_sample(name):
    query, key, value = torch.randn(3, 4, 2, 9, 16)
    position = build_position(name, head_dim=16, num_heads=2)

    def loss(query, key, value):
        return causal_attention(query[None], key[None], value[None], position).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(query, key, value)
    query.requires_grad_()
    (expected,) = torch.autograd.grad(causal_attention(query, key, value, position).square().sum(), query)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="torch.func; accepted are auto and reference"):
        torch.func.vmap(lambda x: causal_attention(x, x, x, position, implementation="blockwise"))(query[:, None])
