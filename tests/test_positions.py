"""The claims of wavepos_fairseq/positions: each slot against its published formula, the registry, and the errors."""

import cmath
import contextlib
import importlib
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import gated, gates_of
from torch import nn
from typing_extensions import Annotated

import wavepos_fairseq
from wavepos_fairseq.attention import attention_weights, causal_attention, reference_attention
from wavepos_fairseq.positions import (
    Position,
    alibi,
    build_position,
    position_class,
    position_names,
    position_options,
    register_position,
    registry,
    rope,
)
from wavepos_fairseq.positions.t5 import lag_buckets
from wavepos_fairseq.positions.trans_xl import sine_waves
from wavepos_fairseq.positions.wavelet import WaveletPosition
from wavepos_fairseq.wavelets import MOTHER_WAVELETS, wavelet_basis

PACKAGE = Path(wavepos_fairseq.__file__).parent
FP64 = torch.empty(0, dtype=torch.float64)


def slots_filled(name):
    """Which slots the representation `name` fills once it has learned something."""
    position, x = build_position(name, head_dim=16, num_heads=2), torch.ones(1, 2, 3, 16)
    for parameter in position.parameters():
        nn.init.ones_(parameter)
    return {
        slot
        for slot, filled in {
            "rotate": not all(torch.equal(turned, x) for turned in position.rotate(x, x)),
            "relative": position.relative(3, like=x) is not None,
            "relative_query": not torch.equal(position.relative_query(x), x),
            "bias": position.bias(3, like=x) is not None,
            "key_bias": position.key_bias(gates_of(position, x, x)) is not None,
        }.items()
        if filled
    }


def ricker_rows(num_lags, scales, shifts):
    """p(t) for each lag, Eq. 12 to 14, the scales running fastest."""
    return [
        [(1 - ((t - b) / a) ** 2) * math.exp(-(((t - b) / a) ** 2) / 2) for b in shifts for a in scales]
        for t in range(num_lags)
    ]


def sine_rows(num_lags, head_dim):
    """PE(t, 2i) = sin(t / 10000^(2i/d)), PE(t, 2i + 1) = cos(t / 10000^(2i/d)), Vaswani et al., section 3.5."""
    return [
        [
            (math.cos if column % 2 else math.sin)(t / 10000 ** (column // 2 * 2 / head_dim))
            for column in range(head_dim)
        ]
        for t in range(num_lags)
    ]


def turned(x, theta):
    """RoPE by complex numbers: pair i of row m times exp(i m theta^(-2i/d)), Su et al., section 3.2.2."""
    rows = np.empty_like(x)
    for m, row in enumerate(x):
        for i in range(0, len(row), 2):
            pair = complex(row[i], row[i + 1]) * cmath.exp(1j * m * theta ** (-i / len(row)))
            rows[m, i], rows[m, i + 1] = pair.real, pair.imag
    return rows


# The slots


@pytest.mark.parametrize(
    "name, slots",
    [
        ("nope", set()),
        ("sinusoidal", set()),
        ("rope", {"rotate"}),
        ("alibi", {"bias"}),
        ("trans-xl", {"relative"}),
        ("wavelet", {"relative"}),
        ("rope-wavelet", {"rotate"}),
        ("rpe", {"relative"}),
        ("t5", {"bias"}),
        ("transformer-xl", {"rotate", "relative", "relative_query"}),
        ("kerple-log", {"bias"}),
        ("kerple-power", {"bias"}),
        ("sandwich", {"bias"}),
        ("xpos", {"rotate"}),
        ("fox", {"key_bias"}),
        ("cable", {"key_bias"}),
    ],
)
def test_each_representation_fills_the_slot_of_the_formula_that_design_says(name, slots):
    assert slots_filled(name) == slots


@pytest.mark.parametrize("name", position_names())
def test_slots_have_the_shapes_and_dtypes_that_the_base_promises(name):
    position = build_position(name, head_dim=16, num_heads=3)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        query, key = torch.ones(2, 3, 4, 16, dtype=dtype), torch.ones(2, 3, 7, 16, dtype=dtype)
        for before, after in zip((query, key), position.rotate(query, key)):
            assert (after.shape, after.dtype) == (before.shape, dtype)
        relative_query = position.relative_query(query)
        assert (relative_query.shape, relative_query.dtype) == (query.shape, dtype)
        relative, bias = position.relative(7, like=query), position.bias(7, like=query)
        assert relative is None or (relative.shape in [(7, 16), (3, 7, 16)] and relative.dtype == dtype)
        assert bias is None or (bias.shape == (3, 7) and bias.dtype == dtype)
        gates = gates_of(position, query, key)
        assert gates is None or (gates.shape == (2, 3, 7) and gates.dtype == dtype)
        key_bias = position.key_bias(gates)
        assert key_bias is None or (key_bias.shape == (2, 3, 7) and key_bias.dtype == torch.float64)


@pytest.mark.parametrize("name", ["nope", "sinusoidal", "rope", "rope-wavelet", "alibi", "trans-xl", "wavelet"])
def test_nothing_in_the_fixed_representations_is_learned_or_saved(name):
    position = build_position(name, head_dim=16, num_heads=2)
    assert not list(position.parameters()) and not position.state_dict()


def test_only_sinusoidal_is_added_to_the_embedding():
    added = [name for name in position_names() if position_class(name).adds_to_embedding]
    assert added == ["sinusoidal"]


def slopes(num_heads):
    return -build_position("alibi", head_dim=16, num_heads=num_heads).bias(2, like=FP64)[:, 1]


def test_alibi_slopes_of_eight_heads_are_halves_to_256ths():
    assert slopes(8).tolist() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


def test_alibi_slopes_of_sixteen_heads_start_at_the_root_of_a_half():
    np.testing.assert_allclose(slopes(16), [math.sqrt(0.5) ** head for head in range(1, 17)], rtol=1e-14)


@pytest.mark.parametrize(
    "num_heads, expected",
    [
        (1, [1 / 256]),
        (2, [1 / 16, 1 / 256]),
        (3, [1 / 16, 1 / 256, 1 / 4]),
        (6, [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]),
        (12, [2.0**-h for h in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
    ],
)
def test_alibi_slopes_of_other_head_counts_follow_the_release(num_heads, expected):
    np.testing.assert_allclose(slopes(num_heads), expected, rtol=1e-15)


def test_alibi_bias_is_minus_slope_times_lag():
    bias = build_position("alibi", head_dim=16, num_heads=8).bias(600, like=FP64)
    assert bias.tolist() == [[-t / 2 ** (head + 1) for t in range(600)] for head in range(8)]


def test_alibi_for_half_of_the_heads_has_the_slopes_of_half_as_many_and_none_elsewhere():
    bias = build_position("alibi", head_dim=16, num_heads=8, alibi_share=0.5, alibi_slope_factor=3).bias(40, like=FP64)
    assert bias.tolist() == [[-3 * t / 4 ** (head + 1) for t in range(40)] for head in range(4)] + [[0] * 40] * 4


def test_learned_slopes_begin_at_the_fixed_ones_and_are_exponentials():
    options = dict(head_dim=16, num_heads=4, alibi_share=0.5, alibi_slope_factor=2)
    fixed, learned = (build_position("alibi", alibi_slopes=kind, **options).double() for kind in ("fixed", "learned"))
    np.testing.assert_allclose(learned.bias(40, FP64).detach(), fixed.bias(40, FP64), rtol=1e-7)
    with torch.no_grad():
        learned.log_slopes.copy_(torch.tensor([-1000.0, 0.5]))
    bias = learned.bias(3, FP64)
    np.testing.assert_allclose(bias.detach(), [[0, 0, 0], [0, -(math.e**0.5), -2 * math.e**0.5], [0] * 3, [0] * 3])
    bias[1, 2].backward()
    assert learned.log_slopes.grad.tolist() == [0, pytest.approx(-2 * math.e**0.5)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_learned_slopes_are_rounded_once_in_half_precision(dtype):
    fixed, learned = (build_position("alibi", head_dim=8, num_heads=8, alibi_slopes=of) for of in ("fixed", "learned"))
    like = torch.empty(0, dtype=dtype)
    torch.testing.assert_close(learned.bias(2048, like), fixed.bias(2048, like), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rope_wavelet_is_rounded_once_in_half_precision(dtype):
    position, key = build_position("rope-wavelet", head_dim=128, num_heads=1), torch.randn(1, 1, 50, 128).to(dtype)
    exact, found = position.rotate_key(key.double(), 0), position.rotate_key(key, 0).double()
    assert ((found - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-4).all()


def test_rpe_subtracts_in_the_precision_that_is_asked_for():
    position = build_position("rpe", head_dim=8, num_heads=1)
    torch.nn.init.normal_(position.embedding, std=3)
    _, rows = position.factors(17, torch.empty(0, dtype=torch.float64))
    table = position.embedding.double()
    assert torch.equal(rows, table[:-1] - table[-1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alibi_slopes": "free"}, "alibi_slopes='free' is unknown; accepted are fixed, learned"),
        ({"alibi_slope_factor": 0.0}, "alibi_slope_factor=0.0: must be > 0 and finite"),
        ({"alibi_slope_factor": math.inf}, "alibi_slope_factor=inf: must be > 0 and finite"),
        ({"alibi_share": 0.3}, "alibi_share=0.3: must be > 0, at most 1 and whole heads of 8"),
        ({"alibi_share": 1.5}, "alibi_share=1.5: must be > 0, at most 1 and whole heads of 8"),
        ({"alibi_share": math.nan}, "alibi_share=nan: must be > 0, at most 1 and whole heads of 8"),
    ],
)
def test_alibi_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError) as error:
        build_position("alibi", head_dim=16, num_heads=8, **options)
    assert str(error.value) == message


def kernel_of(name, t, first, second):
    """Chi et al. (2022), Eq. 7 and 8, with a plus."""
    return first * math.log(1 + second * t) if name == "kerple-log" else first * t**second


@pytest.mark.parametrize("name, first, second", [("kerple-log", 2, 1), ("kerple-power", 1, 2)])
def test_kerple_is_the_kernel_of_each_head_whose_parameters_begin_evenly_spread(name, first, second):
    bias = build_position(name, head_dim=16, num_heads=4).bias(50, like=FP64)
    shares = [1 / 8, 3 / 8, 5 / 8, 7 / 8]
    expected = [[-kernel_of(name, t, first * share, second * share) for t in range(50)] for share in shares]
    np.testing.assert_allclose(bias.detach(), expected, rtol=1e-6, atol=1e-12)  # parameters are fp32


def test_kerples_power_of_1_is_alibi():
    power, slopes = build_position("kerple-power", head_dim=16, num_heads=8), alibi.slopes_of(8)
    with torch.no_grad():
        power.log_first.copy_(torch.tensor(slopes).log())
        power.raw_second.zero_()
    expected = build_position("alibi", head_dim=16, num_heads=8).bias(300, like=FP64)
    torch.testing.assert_close(power.bias(300, like=FP64), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["kerple-log", "kerple-power"])
def test_kerples_bias_is_conditionally_positive_definite_whatever_is_learned(name):
    position = build_position(name, head_dim=16, num_heads=4)
    for parameter in position.parameters():
        nn.init.normal_(parameter, std=3)
    bias = position.bias(40, like=FP64).detach()
    lag = (torch.arange(40)[:, None] - torch.arange(40)).abs()
    centred = torch.eye(40, dtype=torch.float64) - 1 / 40  # onto the vectors whose sum is 0
    values = torch.linalg.eigvalsh(centred @ bias[:, lag] @ centred)  # (H, 40)
    assert (values.amin(1) > -1e-10 * values.amax(1)).all() and (values.amax(1) > 0).all()


# Gates


def drawn_gates(name, hidden):
    """The representation for 2 heads of width 4, w and z drawn at random, and w . x + z of each token: (B, H, L)."""
    position = build_position(name, head_dim=4, num_heads=2).double()
    for parameter in position.parameters():
        nn.init.normal_(parameter)
    return position, torch.einsum("hc,bnc->bhn", position.weight, hidden) + position.offset[:, None]


def test_a_key_is_forgotten_by_the_gates_of_all_tokens_after_it():
    """Lin et al.: weights go as exp(q_i . k_j / sqrt(d)) F_ij, F_ij being the product of f_l for l = j + 1 .. i."""
    query, key, value = torch.randn(3, 1, 2, 7, 4, dtype=torch.float64)
    hidden = torch.randn(1, 7, 8, dtype=torch.float64)
    position, logits = drawn_gates("fox", hidden)
    f = 1 / (1 + (-logits).exp())
    output = causal_attention(query, key, value, position, gates=position.gates(hidden))
    for h in range(2):
        for i in range(7):
            weight = [
                math.exp(query[0, h, i] @ key[0, h, j] / 2) * math.prod(f[0, h, j + 1 : i + 1]) for j in range(i + 1)
            ]
            expected = sum(w * value[0, h, j] for j, w in enumerate(weight)) / sum(weight)
            torch.testing.assert_close(output[0, h, i], expected, rtol=0, atol=1e-12)


def test_cable_adds_what_the_tokens_between_query_and_key_add_and_is_fox_with_the_gates_negated():
    """Veisi et al. without weights: to the score b_i - b_j, b the cumulated sum of -softplus(w . x + z)."""
    hidden = torch.randn(1, 7, 8, dtype=torch.float64)
    cable, logits = drawn_gates("cable", hidden)
    b = [[sum(-math.log(1 + math.exp(x)) for x in head[: n + 1]) for n in range(7)] for head in logits[0].tolist()]
    found = cable.key_bias(cable.gates(hidden))[0]
    expected = torch.tensor(b, dtype=torch.float64)
    torch.testing.assert_close(found - found[:, -1:], expected[:, -1:] - expected, rtol=0, atol=1e-12)
    fox = build_position("fox", head_dim=4, num_heads=2).double()
    fox.load_state_dict({name: -value for name, value in cable.state_dict().items()})
    torch.testing.assert_close(fox.key_bias(fox.gates(hidden))[0], found, rtol=0, atol=1e-13)


def test_gates_that_depend_on_no_token_are_alibi():
    fox, slopes = build_position("fox", head_dim=4, num_heads=8).double(), alibi.slopes_of(8)
    fox.offset.data = torch.tensor([-math.log(math.expm1(slope)) for slope in slopes], dtype=torch.float64)
    query, key, value = torch.randn(3, 1, 8, 9, 4, dtype=torch.float64)
    expected = causal_attention(query, key, value, build_position("alibi", head_dim=4, num_heads=8))
    found = causal_attention(query, key, value, fox, gates=fox.gates(torch.randn(1, 9, 32).double()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["fox", "cable"])
def test_gates_begin_at_a_half_or_where_each_head_decays_by_e_in_its_time(name):
    """Lin et al., gates that do not depend on the token: T evenly spaced by log, z = -log(expm1(1 / T))."""

    def weight_after(tokens, **options):
        """What is left of the first key's weight."""
        position = build_position(name, head_dim=4, num_heads=4, **options)
        c = position.key_bias(position.gates(torch.randn(1, tokens + 1, 16)))[0]
        return (c[:, 0] - c[:, -1]).exp().tolist()

    assert weight_after(3) == pytest.approx([1 / 8] * 4, rel=1e-6)
    for head, time in enumerate([2, 8, 32, 128]):
        assert weight_after(time, gate_decay_time=128.0)[head] == pytest.approx(1 / math.e, rel=1e-5)


def test_a_decay_time_below_that_of_the_first_head_is_refused():
    for time in (-1.0, 1.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"^gate_decay_time={time}: must be 0, or >= 2 and finite$"):
            build_position("cable", head_dim=4, num_heads=2, gate_decay_time=time)


def test_far_from_the_first_token_the_bias_of_a_near_key_is_as_exact_as_close_to_it():
    fox = build_position("fox", head_dim=4, num_heads=2)  # f = 1/2, so token 100,000 lies at c = 69,315
    gates, (query, key, value) = torch.zeros(1, 2, 100_000), torch.randn(3, 1, 2, 9, 4)
    near = causal_attention(query, key, value, fox, gates=gates[..., :9])
    keys, values = (torch.cat((torch.zeros(1, 2, 99_991, 4), tensor), dim=2) for tensor in (key, value))
    far = causal_attention(query[:, :, -1:], keys, values, fox, gates=gates)  # the other keys have weight 2^-9 together
    weights = attention_weights(query[:, :, -1:], keys, fox, gates=gates)
    torch.testing.assert_close(far / weights[..., -9:].sum(-1, keepdim=True), near[:, :, -1:], rtol=0, atol=1e-6)


def test_gates_that_are_missing_or_do_not_fit_are_refused():
    fox, x = build_position("fox", head_dim=4, num_heads=2), torch.ones(1, 2, 5, 4)
    for attend in (causal_attention, reference_attention):
        with pytest.raises(ValueError, match="^gates are missing: accepted is causal_attention"):
            attend(x, x, x, fox)
        with pytest.raises(ValueError, match=r"^gates of shape \(1, 2, 4\): accepted is .* \(1, 2, 5\)$"):
            attend(x, x, x, fox, gates=torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="has 6 dimensions; accepted are num_heads x head_dim = 8$"):
        fox.gates(torch.ones(1, 5, 6))


@pytest.mark.parametrize("num_dims, num_heads", [(128, 4), (6, 12)])
def test_sandwich_is_the_product_of_sinusoidal_embeddings_but_for_a_constant(num_dims, num_heads):
    bias = build_position("sandwich", head_dim=16, num_heads=num_heads, sandwich_dims=num_dims).bias(30, like=FP64)
    rows = np.zeros((30, num_dims))  # Chi et al. (2023), the code in their appendix
    for m, i in np.ndindex(30, num_dims // 2):
        angle = m / 10000 ** (2 * i / num_dims)
        rows[m, i], rows[m, i + num_dims // 2] = math.sin(angle), math.cos(angle)
    for head in range(num_heads):
        compressed = (rows @ rows.T - num_dims / 2) / ((head + 1) * 8 / num_heads)
        for m in (0, 7, 29):
            np.testing.assert_allclose(bias[head, : m + 1].flip(0), compressed[m, : m + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [512.0, 20.0])
def test_xpos_is_a_rotation_that_decays_with_the_lag_alone(scale):
    query, key = torch.randn(2, 1, 1, 40, 16, dtype=torch.float64)
    position = build_position("xpos", head_dim=16, num_heads=1, xpos_scale=scale)
    turned_query, turned_key = (x[0, 0].numpy() for x in position.rotate(query, key))
    for m, n in ((0, 0), (39, 39), (39, 38), (39, 0), (21, 4)):
        expected = 0.0
        for i in range(8):  # Sun et al. (2023), Algorithm 1, with gamma = 0.4
            q, k = (complex(*x[0, 0, at, 2 * i : 2 * i + 2].tolist()) for x, at in ((query, m), (key, n)))
            decay = ((2 * i / 16 + 0.4) / 1.4) ** ((m - n) / scale)
            expected += decay * (q * k.conjugate() * cmath.exp(1j * (m - n) * 10000 ** (-2 * i / 16))).real
        assert turned_query[m] @ turned_key[n] == pytest.approx(expected, abs=1e-12)


def test_xpos_beyond_what_a_type_holds_is_refused():
    position = build_position("xpos", head_dim=16, num_heads=1)
    assert position.rotate_key(torch.ones(1, 1, 1, 16), 32_000).isfinite().all()
    with pytest.raises(ValueError, match="^xpos_scale=512.0: at 37000 tokens .* beyond torch.float32; accepted is a"):
        position.rotate_key(torch.ones(1, 1, 1, 16), 36_999)
    assert position.rotate_key(torch.ones(1, 1, 1, 16).double(), 36_999).isfinite().all()
    assert position.rotate_key(torch.full((1, 1, 1, 16), 8.0).half(), 3_300).isfinite().all()
    with pytest.raises(ValueError, match="^xpos_scale=512.0: at 3501 tokens .* beyond torch.float16; accepted is a"):
        position.rotate_key(torch.ones(1, 1, 1, 16).half(), 3_500)


@pytest.mark.parametrize("head_dim", [16, 64, 7])
def test_trans_xl_is_the_sinusoid_of_the_lag(head_dim):
    position = build_position("trans-xl", head_dim=head_dim, num_heads=2)
    np.testing.assert_allclose(position.relative(50, like=FP64), sine_rows(50, head_dim), rtol=0, atol=1e-13)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rope_is_multiplication_by_a_complex_exponential(theta):
    query, key = torch.randn(2, 3, 4, 16, dtype=torch.float64), torch.randn(2, 3, 9, 16, dtype=torch.float64)
    position = build_position("rope", head_dim=16, num_heads=3, rope_theta=theta)
    rotated_query, rotated_key = position.rotate(query, key)
    last_four = np.concatenate([np.zeros((5, 16)), query[1, 2].numpy()])  # the queries are positions 5 to 8 of 9
    np.testing.assert_allclose(rotated_query[1, 2], turned(last_four, theta)[5:], rtol=0, atol=1e-13)
    np.testing.assert_allclose(rotated_key[1, 2], turned(key[1, 2].numpy(), theta), rtol=0, atol=1e-13)


def test_rope_turns_its_first_pair_of_position_1_by_one_radian_counterclockwise():
    x = torch.tensor([1.0, 0.0] * 8, dtype=torch.float64).expand(1, 1, 2, 16)
    rotated, _ = build_position("rope", head_dim=16, num_heads=1).rotate(x, x)
    assert rotated[0, 0, 0].tolist() == [1, 0] * 8
    np.testing.assert_allclose(rotated[0, 0, 1, :2], [math.cos(1), math.sin(1)], rtol=1e-15)


def rotate_half(x):
    return np.concatenate([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], axis=-1)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rope_of_halves_is_what_transformers_applies_to_llama(theta):
    """`LlamaRotaryEmbedding` and `apply_rotary_pos_emb` of modeling_llama.py, in NumPy."""
    x = torch.randn(2, 3, 9, 16, dtype=torch.float64)
    inv_freq = 1 / theta ** (np.arange(0, 16, 2) / 16)
    freqs = np.arange(9)[:, None] * inv_freq
    emb = np.concatenate([freqs, freqs], axis=-1)
    expected = x.numpy() * np.cos(emb) + rotate_half(x.numpy()) * np.sin(emb)
    position = build_position("rope", head_dim=16, num_heads=3, rope_theta=theta, rope_pairs="halves")
    for turned_one, last in zip(position.rotate(x[:, :, -4:], x), (4, 9)):  # the queries are positions 5 to 8
        np.testing.assert_allclose(turned_one, expected[:, :, -last:], rtol=0, atol=1e-13)


def test_rope_of_halves_multiplies_dimensions_i_and_i_plus_half_by_a_complex_exponential():
    x = torch.randn(1, 1, 9, 16, dtype=torch.float64)
    numbers = x[0, 0, :, :8].numpy() + 1j * x[0, 0, :, 8:].numpy()
    rotated = [
        [z * cmath.exp(1j * m * 10000 ** (-2 * i / 16)) for i, z in enumerate(row)] for m, row in enumerate(numbers)
    ]
    _, found = build_position("rope", head_dim=16, num_heads=1, rope_pairs="halves").rotate(x, x)
    np.testing.assert_allclose(found[0, 0], np.hstack([np.real(rotated), np.imag(rotated)]), rtol=0, atol=1e-13)


def test_rope_turns_adjacent_dimensions_by_default():
    x = torch.randn(1, 1, 9, 16)
    default, adjacent = (build_position("rope", head_dim=16, num_heads=1, **given) for given in ({}, ADJACENT))
    assert torch.equal(default.rotate_key(x, 0), adjacent.rotate_key(x, 0))


ADJACENT = {"rope_pairs": "adjacent"}


def equation_28(m, head_dim):
    """The matrix of Eq. 28: row pair i holds the rotation by m theta_i in every column pair up to i."""
    matrix = np.zeros((head_dim, head_dim))
    for i in range(head_dim // 2):
        angle = m * 10000 ** (-2 * i / head_dim)
        for j in range(i + 1):
            matrix[2 * i, 2 * j : 2 * j + 2] = math.cos(angle), -math.sin(angle)
            matrix[2 * i + 1, 2 * j : 2 * j + 2] = math.sin(angle), math.cos(angle)
    return matrix


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
@pytest.mark.parametrize("head_dim", [8, 64])
def test_rope_wavelet_is_the_matrix_of_equation_28(head_dim, pairs):
    query, key = (
        torch.randn(1, 1, 3, head_dim, dtype=torch.float64),
        torch.randn(1, 1, 40, head_dim, dtype=torch.float64),
    )
    position = build_position("rope-wavelet", head_dim=head_dim, num_heads=1, rope_pairs=pairs)
    for before, after in zip((query, key), position.rotate(query, key)):
        first = 40 - before.size(-2)
        if pairs == "halves":  # dimensions 0, d/2, 1, d/2 + 1 and so on stand beside one another in Eq. 28
            order = [i + half for i in range(head_dim // 2) for half in (0, head_dim // 2)]
            before, after = before[..., order], after[..., order]
        expected = [equation_28(m, head_dim) @ row.numpy() for m, row in enumerate(before[0, 0], start=first)]
        np.testing.assert_allclose(after[0, 0], expected, rtol=0, atol=1e-12)


def test_rpe_has_a_vector_for_each_lag_up_to_the_clip_and_the_last_one_from_there_on():
    position = build_position("rpe", head_dim=16, num_heads=2, rpe_clip=5)
    nn.init.normal_(position.embedding)
    rows = position.relative(20, like=torch.empty(0))
    assert position.embedding.shape == (6, 16)
    assert all(torch.equal(rows[t], position.embedding[min(t, 5)]) for t in range(20))


def relative_position_bucket(relative_position, num_buckets, max_distance):
    """The published function (mesh_tensorflow/transformer/transformer_layers.py) with bidirectional=False, in NumPy."""
    n = np.maximum(-relative_position, 0)
    max_exact = num_buckets // 2
    is_small = n < max_exact
    with np.errstate(divide="ignore", invalid="ignore"):
        val_if_large = max_exact + (
            np.log(n.astype(np.float32) / max_exact) / math.log(max_distance / max_exact) * (num_buckets - max_exact)
        ).astype(np.int32)
    val_if_large = np.minimum(val_if_large, num_buckets - 1)
    return np.where(is_small, n, val_if_large)


@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (8, 20), (64, 512)])
def test_t5_buckets_are_the_published_ones_at_every_lag(num_buckets, max_distance):
    options = {"t5_num_buckets": num_buckets, "t5_max_distance": max_distance}
    position = build_position("t5", head_dim=16, num_heads=2, **options)
    position.weight.data = torch.arange(2 * num_buckets).view(2, num_buckets).float()
    expected = relative_position_bucket(-np.arange(2001), num_buckets, max_distance)
    bias = position.bias(2001, like=torch.empty(0)).detach().numpy()
    np.testing.assert_array_equal(bias, [expected, expected + num_buckets])


def test_t5_of_32_buckets_has_the_lags_to_15_and_one_bucket_from_113_on():
    position = build_position("t5", head_dim=16, num_heads=1)
    position.weight.data = torch.arange(32.0)[None]
    bias = position.bias(200, like=torch.empty(0))[0].tolist()
    assert bias[:16] == list(range(16)) and bias[112] == 30 and set(bias[113:]) == {31}


@pytest.mark.parametrize("name", ["rpe", "t5", "transformer-xl"])
def test_what_is_learned_starts_as_nope_and_draws_no_random_number(name):
    state = torch.get_rng_state()
    position = build_position(name, head_dim=16, num_heads=2)
    assert torch.equal(torch.get_rng_state(), state)
    query, key, value = torch.randn(3, 1, 2, 9, 16)
    attended = causal_attention(query, key, value, position)
    torch.testing.assert_close(attended, causal_attention(query, key, value, Position(16, 2)))
    for _ in range(2):  # Transformer-XL's v moves once W_R has
        causal_attention(query, key, value, position).square().sum().backward()
        for parameter in position.parameters():
            parameter.data -= parameter.grad
    assert all(parameter.abs().max() > 0 for parameter in position.parameters())


def test_the_default_wavelets_of_width_128_are_equation_13():
    position = build_position("wavelet", head_dim=128, num_heads=8)
    expected = ricker_rows(40, [1, 2, 4, 8, 16, 32, 64, 128], range(16))
    np.testing.assert_allclose(position.relative(40, like=FP64), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "head_dim, options, scales, shifts",
    [
        (64, {}, [1, 2, 4, 8, 16, 32, 64, 128], range(8)),
        (16, {}, [1, 2, 4, 8, 16, 32, 64, 128], range(2)),
        (64, {"wavelet_scales": "2^0..2^3"}, [1, 2, 4, 8], range(16)),
        (128, {"wavelet_scales": "2^0..2^127"}, [math.ldexp(1, e) for e in range(128)], range(1)),
        (64, {"wavelet_shifts": "0..15"}, [1, 2, 4, 8], range(16)),
        (16, {"wavelet_shifts": "0,3"}, [1, 2, 4, 8, 16, 32, 64, 128], [0, 3]),
        (6, {"wavelet_scales": "1,5", "wavelet_shifts": "2,0,7"}, [1, 5], [2, 0, 7]),
        (16, {"wavelet": None, "wavelet_scales": None, "rope_theta": None}, [2**e for e in range(8)], range(2)),
    ],
)
def test_scales_and_shifts_left_out_fill_the_width_and_none_means_left_out(head_dim, options, scales, shifts):
    position = build_position("wavelet", head_dim=head_dim, num_heads=2, **options)
    np.testing.assert_allclose(position.relative(20, like=FP64), ricker_rows(20, scales, shifts), rtol=0, atol=1e-14)


# Learned wavelets

MOTHERS = {  # psi of x and the scale
    "ricker": lambda x, a: (1 - x**2) * math.exp(-(x**2) / 2),
    "gaussian": lambda x, a: math.exp(-(x**2)),
    "morlet": lambda x, a: math.exp(-(x**2)) * math.cos(a * x),
}
READINGS = {
    "past": lambda t, a, b: (t - b) / a,
    "future": lambda t, a, b: (t + b) / a,
    "scaled": lambda t, a, b: t / a - b,
}


def learned_wavelets(learn="both", dtype=torch.float64, **options):
    """The scales 2, 3 and 12 and the shifts 0 and 5, moved by the numbers of the second and third column."""
    given = {"wavelet_scales": "2,3,12", "wavelet_shifts": "0,5", **options}
    position = build_position("wavelet", head_dim=6, num_heads=2, wavelet_learn=learn, **given).to(dtype)
    for name, moved in (("scale_octaves", [0.5, -1.0, 0.25]), ("shift_tokens", [1.5, -0.75])):
        if getattr(position, name) is not None:
            getattr(position, name).data.copy_(torch.tensor(moved))
    return position


def slot_and_slopes(position, cotangent):
    """p(t), and the gradients of its product with the cotangent."""
    rows = position.relative(len(cotangent), FP64)
    return rows.detach(), torch.autograd.grad((rows * cotangent).sum(), [*position.parameters()])


@pytest.mark.parametrize("direction", READINGS)
@pytest.mark.parametrize("wavelet", MOTHERS)
def test_learned_wavelets_and_their_slopes_are_those_of_the_moved_scales_and_shifts(wavelet, direction):
    cotangent = torch.randn(40, 6, dtype=torch.float64)
    position = learned_wavelets(wavelet=wavelet, wavelet_shift_direction=direction)

    def basis(u, v):
        scales = [a * 2 ** (8 * math.tanh(octaves / 8)) for a, octaves in zip((2, 3, 12), u)]
        shifts = [b + tokens for b, tokens in zip((0, 5), v)]
        psi, x = MOTHERS[wavelet], READINGS[direction]
        return np.array([[psi(x(t, a, b), a) for b in shifts for a in scales] for t in range(40)])

    u, v = np.array([0.5, -1.0, 0.25]), np.array([1.5, -0.75])
    rows, slopes = slot_and_slopes(position, cotangent)
    np.testing.assert_allclose(rows, basis(u, v), rtol=0, atol=1e-12)
    step = 1e-5
    for found, at in zip(slopes, (0, 1)):
        for i in range(len(found)):
            ends = []
            for sign in (1, -1):
                moved = [u.copy(), v.copy()]
                moved[at][i] += sign * step
                ends.append((basis(*moved) * cotangent.numpy()).sum())
            assert found[i].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("direction", READINGS)
@pytest.mark.parametrize("wavelet", MOTHERS)
@pytest.mark.parametrize("learn", ["scales", "shifts", "both"])
def test_what_is_learned_of_wavelets_begins_at_the_fixed_ones_to_the_last_bit(learn, wavelet, direction):
    options = {"head_dim": 64, "num_heads": 2, "wavelet": wavelet, "wavelet_shift_direction": direction}
    state = torch.get_rng_state()
    learned = build_position("wavelet", wavelet_learn=learn, **options)
    assert torch.equal(torch.get_rng_state(), state)
    names = {"scales": ["scale_octaves"], "shifts": ["shift_tokens"], "both": ["scale_octaves", "shift_tokens"]}
    assert {name: len(of) for name, of in learned.named_parameters()} == dict.fromkeys(names[learn], 8)
    fixed = build_position("wavelet", **options)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        like = torch.empty(0, dtype=dtype)
        assert torch.equal(learned.relative(300, like), fixed.relative(300, like))


def test_a_replica_for_several_gpus_learns_its_wavelets():
    """As torch.nn.parallel.replicate makes one: its parameters are attributes, and it has no parameters()."""
    position = learned_wavelets()
    replica = position._replicate_for_data_parallel()
    for name, parameter in position.named_parameters():
        setattr(replica, name, parameter * 1)
    assert not [*replica.parameters()]
    _, rows = replica.factors(40, FP64)
    slopes = torch.autograd.grad(rows.square().sum(), [*position.parameters()])
    expected = torch.autograd.grad(position.relative(40, FP64).square().sum(), [*position.parameters()])
    torch.testing.assert_close(slopes, expected)


def test_nothing_learned_is_the_fixed_wavelets_and_their_tables():
    plain, none = (
        build_position("wavelet", head_dim=64, num_heads=2, **given) for given in ({}, {"wavelet_learn": "none"})
    )
    assert type(none) is type(plain) is position_class("wavelet") and not [*none.parameters()]
    assert none.relative(50, FP64).data_ptr() == plain.relative(50, FP64).data_ptr()
    assert none.factors(50, FP64)[1].data_ptr() == plain.factors(50, FP64)[1].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wavelet, direction", [("ricker", "past"), ("morlet", "scaled"), ("gaussian", "future")])
def test_however_far_learning_runs_scores_and_gradients_are_finite(wavelet, direction, dtype):
    position = learned_wavelets(wavelet=wavelet, wavelet_shift_direction=direction)
    ends = [-1e300, -1e30, -9.0, 0.0, 9.0, 1e30, 1e300]
    for u, v in ((u, v) for u in ends for v in ends):
        position.double()
        nn.init.constant_(position.scale_octaves, u)
        nn.init.constant_(position.shift_tokens, v)
        position.to(dtype)  # infinite in some
        for like in (FP64, torch.empty(0), torch.empty(0, dtype=torch.bfloat16)):
            rows = position.factors(200, like)[1]
            slopes = torch.autograd.grad(rows.sum(), [*position.parameters()])
            assert all(tensor.isfinite().all() for tensor in (rows, position.relative(200, like), *slopes))
    scales, shifts = position.scales_and_shifts(CPU)
    assert scales.tolist() == [2 * 2**8, 3 * 2**8, 12 * 2**8] and shifts.tolist() == [2**24, 2**24 + 5]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_lags", [20, 4000])
@pytest.mark.parametrize("moved", [True, False])  # unmoved, they are 0 at lags where their slopes are not
def test_learned_wavelets_end_where_they_and_their_slopes_are_negligible(moved, num_lags, dtype):
    position, eps = learned_wavelets(), torch.finfo(dtype).eps
    if not moved:
        position.reset_parameters()
    cotangent = torch.randn(num_lags, 6, dtype=torch.float64)
    exact, slopes = slot_and_slopes(position, cotangent)
    projection, rows = position.factors(num_lags, torch.empty(0, dtype=dtype))
    assert projection is None and (rows - exact[: len(rows)]).abs().max() <= eps
    length, bound = exact.norm(dim=1), eps / 100 * exact.norm(dim=1).max()
    if num_lags == 20:
        assert len(rows) == 20
    else:
        assert length[len(rows) :].max() <= 1.1 * bound and length[len(rows) - 8 : len(rows)].max() > 0.9 * bound
    found = torch.autograd.grad((rows.double() * cotangent[: len(rows)]).sum(), [*position.parameters()])
    for one, other in zip(found, slopes):
        assert (one - other).abs().max() <= 10 * eps * other.abs().max()


def test_without_gradients_learned_wavelets_are_the_fixed_ones_that_they_have_become():
    position = learned_wavelets()
    with torch.no_grad():
        projection, rows = position.factors(500, FP64)
        torch.testing.assert_close(rows @ projection.T, position.relative(len(rows), FP64), rtol=0, atol=1e-13)
        assert position.factors(400, FP64)[1].data_ptr() == rows.data_ptr()
        position.scale_octaves += 1
        projection, rows = position.factors(500, FP64)
        torch.testing.assert_close(rows @ projection.T, position.relative(len(rows), FP64), rtol=0, atol=1e-13)


# What is kept between calls


def test_asking_for_other_lengths_dtypes_and_options_in_between_changes_no_answer():
    waves = build_position("trans-xl", head_dim=16, num_heads=2)
    wavelets = {
        sign: build_position("wavelet", head_dim=16, num_heads=2, wavelet_shift_direction=direction)
        for sign, direction in ((1, "past"), (-1, "future"))
    }
    rotations = {theta: build_position("rope", head_dim=16, num_heads=1, rope_theta=theta) for theta in (1e4, 5e5)}
    scales = [2**e for e in range(8)]
    for dtype, atol in ((torch.float64, 1e-13), (torch.float32, 1e-6), (torch.float64, 1e-13)):
        like = torch.empty(0, dtype=dtype)
        for length in (5, 300, 5, 256, 257):
            np.testing.assert_allclose(waves.relative(length, like), sine_rows(length, 16), rtol=0, atol=atol)
            for sign, position in wavelets.items():
                expected = ricker_rows(length, scales, [0, sign])
                np.testing.assert_allclose(position.relative(length, like), expected, rtol=0, atol=atol)
            for theta, position in rotations.items():
                _, rotated = position.rotate(*torch.ones(2, 1, 1, length, 16, dtype=dtype))
                np.testing.assert_allclose(rotated[0, 0], turned(np.ones((length, 16)), theta), rtol=0, atol=3 * atol)


def test_what_transformer_xl_keeps_in_inference_follows_its_weights_and_is_not_kept_in_training():
    position = build_position("transformer-xl", head_dim=16, num_heads=2)
    nn.init.normal_(position.projection)
    with torch.no_grad():
        before = position.factors(9, like=FP64)[1]
        assert position.factors(12, like=FP64)[1].data_ptr() == before.data_ptr()
        position.projection.mul_(2)
        torch.testing.assert_close(position.factors(9, like=FP64)[1], 2 * before)
        position.projection = nn.Parameter(-position.projection)
        torch.testing.assert_close(position.factors(9, like=FP64)[1], -2 * before)
        assert position.factors(9, like=torch.empty(0))[1].dtype == torch.float32
    assert position.factors(9, like=FP64)[1].requires_grad


@pytest.mark.parametrize("way", ["its data", "another parameter for one call", "an average that is swapped in and out"])
def test_what_transformer_xl_keeps_is_not_that_of_weights_that_were_there_before(way):
    position = build_position("transformer-xl", head_dim=16, num_heads=2).eval()
    for parameter in position.parameters():
        nn.init.normal_(parameter)
    doubled = {"projection": 2 * position.projection.detach()}

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = position

        def forward(self):
            return self.position.factors(9, like=FP64)[1]

    rows = Rows()
    with torch.no_grad():
        before = rows()
        if way == "another parameter for one call":
            after = torch.func.functional_call(rows, {"position.projection": doubled["projection"]}, ())
        else:
            swapped = position.projection.data
            position.projection.data = doubled["projection"] if "average" in way else swapped.mul_(2)
            after = rows()
            position.projection.data = swapped / 2 if way == "its data" else swapped
        torch.testing.assert_close(after, 2 * before)
        torch.testing.assert_close(rows(), before)


@pytest.mark.parametrize("name", position_names())
def test_a_model_can_be_trained_after_it_was_evaluated_in_inference_mode(name):
    position, x = build_position(name, head_dim=24, num_heads=2), torch.randn(1, 2, 5, 24)
    with torch.inference_mode():
        gated(causal_attention)(x, x, x, position)
    query = x.clone().requires_grad_()
    gated(causal_attention)(query, x, x, position).sum().backward()
    assert query.grad.isfinite().all()


# The meta device


META = {name: (name, {}) for name in (*position_names(), "transformer-xl+alibi")}
META["learned slopes"] = ("alibi", {"alibi_slopes": "learned"})
META["open gates"] = ("fox", {"gate_decay_time": 128.0})
META["learned wavelets"] = ("wavelet", {"wavelet_learn": "both"})
for _wavelet in (*MOTHER_WAVELETS, "db4", "sym8", "coif2", "dmey", "bior6.8", "rbio1.1"):
    META[f"wavelet {_wavelet}"] = ("wavelet", {"wavelet": _wavelet})


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


def reset(module):
    """What FSDP and transformers do with what they have moved off the meta device, module by module."""
    if any(True for _ in module.parameters(recurse=False)):
        module.reset_parameters()


@pytest.mark.parametrize("on", [torch.device, default_device])
@pytest.mark.parametrize("variant", META)
def test_what_was_built_on_the_meta_device_is_bit_for_bit_what_is_built_on_the_cpu(variant, on):
    name, options = META[variant]
    plain = build_position(name, head_dim=24, num_heads=2, **options)
    with on("meta"):
        position = build_position(name, head_dim=24, num_heads=2, **options)
        assert all(parameter.is_meta for parameter in position.parameters())
    position = position.to_empty(device="cpu")
    for parameter in position.parameters():
        nn.init.constant_(parameter, math.nan)
    position.apply(reset)
    query, key, value = torch.randn(3, 2, 2, 20, 24)
    for _ in range(2):
        outputs = [gated(causal_attention)(query, key, value, one) for one in (position, plain)]
        assert torch.equal(*outputs) and outputs[0].isfinite().all()
        for parameter in plain.parameters():
            nn.init.normal_(parameter)
        position.load_state_dict(plain.state_dict())


CPU = torch.device("cpu")
TABLES = {
    "wavelets": lambda: wavelet_basis("db4", [1, 2], [0, 3], "past", 20),
    "sine waves": lambda: sine_waves(16, 20),
    "rotations": lambda: rope._rotations.__wrapped__(20, 16, 1e4, torch.float64, CPU),
    "biases": lambda: alibi._biases.__wrapped__(20, (1 / 2, 1 / 4), torch.float64, CPU),
    "buckets": lambda: lag_buckets.__wrapped__(20, 8, 16, CPU),
}


@pytest.mark.parametrize("on", [torch.device, default_device])
@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_computed_on_the_cpu_whatever_the_default_device(table, on):
    with on("meta"):
        found = TABLES[table]()
    assert found.device == CPU and torch.equal(found, TABLES[table]())


def test_a_representation_without_initial_values_for_what_it_learns_says_so_when_they_are_wanted():
    class Forgetful(Position):
        def __init__(self):
            super().__init__(16, 2)
            self.weight = nn.Parameter(torch.zeros(3))

    with pytest.raises(NotImplementedError, match=r"^Forgetful learns something, but has no reset_parameters\(\)$"):
        Forgetful().reset_parameters()
    Position(16, 2).reset_parameters()


# Errors name the parameter, what was given and what is accepted


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("rotary", {}, "^position_encoding='rotary' is unknown; accepted are alibi, .*nope, .*rope, .*wavelet"),
        ("wavelet", {"wavelet": "mexh"}, "^wavelet='mexh' is unknown; accepted are ricker, gaussian, morlet, haar"),
        (
            "wavelet",
            {"wavelet_shift_direction": "up"},
            "^wavelet_shift_direction='up' is unknown; accepted are past, future, scaled$",
        ),
        (
            "wavelet",
            {"wavelet_scales": "2^0..2^7", "wavelet_shifts": "0..7"},
            r"^wavelet_scales='2\^0..2\^7', wavelet_shifts='0..7': 8 scales x 8 shifts = 64 wavelets, but .* 128",
        ),
        ("wavelet", {"wavelet_scales": "1,2,3"}, "^wavelet_scales='1,2,3': 3 scales x 42 shifts = 126 wavelets"),
        ("wavelet", {"wavelet_shifts": "0..199"}, "^wavelet_shifts='0..199': 1 scales x 200 shifts = 200 wavelets"),
        ("wavelet", {"wavelet": "cmor"}, "^wavelet='cmor' is unknown; .*not its continuous or complex ones.*db4"),
        (
            "wavelet",
            {"wavelet": "db4", "wavelet_scales": "0.5*8"},
            r"^wavelet_scales='0.5\*8': 0.5 is not a level of the discrete wavelet db4; .*whole numbers from 1.*1..8",
        ),
        ("wavelet", {"wavelet": "db4", "wavelet_scales": "2^5*8"}, "'2.5.8': 32 is not a level"),
        ("wavelet", {"wavelet": "db4", "wavelet_scales": "0..7"}, "'0..7': 0 is not a level .*1..8 for example"),
        (
            "wavelet",
            {"wavelet": "db4", "wavelet_shifts": "0"},
            "'0': 16 scales x 1 .* 8 x 16 fit, .*scales='1..8' and .*'0..15'",
        ),
        ("wavelet", {"wavelet": "db4", "wavelet_shifts": "0.5*16"}, "'0.5.16': 0.5 is not a whole number, .*0..15"),
        ("rpe", {"rpe_clip": 0}, "^rpe_clip=0: must be >= 1"),
        ("t5", {"t5_num_buckets": 1}, "^t5_num_buckets=1: must be >= 2"),
        ("t5", {"t5_max_distance": 16}, "^t5_max_distance=16: must be > 16, half of the 32 buckets"),
        (
            "wavelet",
            {"wavelet_learn": "all"},
            "^wavelet_learn='all' is unknown; accepted are none, scales, shifts, both$",
        ),
        (
            "wavelet",
            {"wavelet_learn": "both", "wavelet": "haar"},
            "^wavelet_learn='both' needs gradients, and wavelet='haar' .* none; accepted are ricker, gaussian, morlet$",
        ),
        (
            "wavelet",
            {"wavelet_learn": "scales", "wavelet": "db4"},
            "^wavelet_learn='scales' needs .*wavelet='db4' is a",
        ),
        ("wavelet", {"wavelet_learn": "both", "wavelet_scales": "0.5^500*8"}, "'0.5.500.8': too extreme for double"),
        ("wavelet", {"wavelet_learn": "both", "wavelet_scales": "2^1020*8"}, "'2.1020.8': too extreme for double"),
        ("wavelet", {"wavelet_scales": "0..127"}, "^wavelet_scales='0..127': a scale must be > 0"),
        ("wavelet", {"wavelet_scales": "big"}, "^wavelet_scales='big'.*accepted are numbers"),
        ("wavelet", {"wavelet_shifts": "-1"}, "^wavelet_shifts='-1'.*accepted are numbers"),
        ("wavelet", {"wavelet_scales": "0.5^600*8"}, "^wavelet_scales='0.5.600.8': too extreme for double precision"),
        ("wavelet", {"wavelet_shifts": "2^600*16"}, "^wavelet_shifts='2.600.16': too extreme for double precision"),
        ("wavelet", {"wavelet_scales": "0.5^511*8"}, "'0.5.511.8': too extreme for double"),  # from the lag 2 on
        (
            "wavelet",
            {
                "wavelet": "morlet",
                "wavelet_scales": "2^600*8",
                "wavelet_shifts": "2^500*16",
                "wavelet_shift_direction": "scaled",
            },
            "'2.600.8', wavelet_shifts='2.500.16': too extreme for double",
        ),
        ("rope", {"rope_theta": 0.0}, "^rope_theta=0.0: must be > 0"),
        ("rope", {"rope_theta": -1.0}, "^rope_theta=-1.0: must be > 0"),
        ("rope", {"rope_theta": math.nan}, "^rope_theta=nan: must be > 0"),
        ("rope", {"rope_pairs": "odd"}, "^rope_pairs='odd' is unknown; accepted are adjacent, halves$"),
        (
            "alibi",
            {"rope_theta": 10000.0},
            "^rope_theta=10000.0 is given, but position_encoding='alibi' does not read it; it is read by .*rope",
        ),
        (
            "rope",
            {"wavelet_scales": "1"},
            "^wavelet_scales='1' is given, but position_encoding='rope' does not read it; it is read by .*wavelet",
        ),
        ("nope", {"nonsense": 1}, "^nonsense=1 is given, .*'nope' does not read it; accepted are none$"),
        ("rope", {"theta": 1}, "does not read it; accepted are rope_theta, rope_pairs$"),
        ("rope", {"rope_theta": "big"}, "^rope_theta='big': must be a number$"),
        ("wavelet", {"wavelet_scales": [1, 2]}, r"^wavelet_scales=\[1, 2\]: must be a text$"),
        ("t5", {"t5_num_buckets": 8.5}, "^t5_num_buckets=8.5: must be a whole number$"),
        ("alibi", {"num_heads": 0}, "^num_heads=0: must be a whole number > 0$"),
        ("wavelet", {"head_dim": "64"}, "^head_dim='64': must be a whole number > 0$"),
    ],
)
def test_bad_options_are_refused_by_name_and_value(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_position(name, **{"head_dim": 128, "num_heads": 8, **options})


@pytest.mark.parametrize("wavelet, scales", [("ricker", "2.0..2.7"), ("db4", "1..8")])
def test_a_head_that_the_default_scales_do_not_divide_is_told_them(wavelet, scales):
    with pytest.raises(ValueError, match=f"^wavelet_scales='{scales}' by default: 8 scales x 1 shifts = 8 wavelets"):
        build_position("wavelet", head_dim=12, num_heads=2, wavelet=wavelet)


def test_rope_refuses_an_odd_head_width():
    with pytest.raises(ValueError, match="^head_dim=15: must be even, because pairs of dimensions turn$"):
        build_position("rope", head_dim=15, num_heads=2)


def test_the_unknown_name_is_answered_with_every_accepted_one():
    with pytest.raises(ValueError, match="accepted are " + ", ".join(position_names()) + "$"):
        build_position("", head_dim=16, num_heads=2)


@pytest.mark.parametrize("name", position_names())
def test_options_that_are_none_are_as_if_not_given(name):
    build_position(name, head_dim=16, num_heads=2, **dict.fromkeys(position_options()))


# The registry


@pytest.fixture
def fresh_registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def test_options_say_type_default_help_and_readers():
    options = position_options()
    assert {"rope_theta", "wavelet", "wavelet_scales", "wavelet_shifts", "wavelet_shift_direction"} <= set(options)
    assert options["rope_theta"][:2] == (float, 10000.0) and "rope" in options["rope_theta"].readers
    assert options["wavelet"][:2] == (str, "ricker") and "wavelet" in options["wavelet"].readers
    assert options["wavelet_scales"].default is None
    assert all(option.help and option.readers for option in options.values())


def test_a_registered_representation_is_found_with_its_option(fresh_registry):
    @register_position("toy")
    class Toy(Position):
        def __init__(self, head_dim: int, num_heads: int, toy_size: Annotated[int, "how big a toy"] = 3):
            super().__init__(head_dim, num_heads)
            self.size = nn.Parameter(torch.full((num_heads,), float(toy_size)))

    assert "toy" in position_names()
    assert position_options()["toy_size"] == (int, 3, "how big a toy", ["toy"])
    assert build_position("toy", head_dim=16, num_heads=2).size.tolist() == [3, 3]
    assert build_position("toy", head_dim=16, num_heads=2, toy_size=5).size.tolist() == [5, 5]
    with pytest.raises(ValueError, match="^toy_size=5 is given, .*it is read by toy$"):
        build_position("nope", head_dim=16, num_heads=2, toy_size=5)


def test_a_name_is_registered_once(fresh_registry):
    with pytest.raises(ValueError, match="^position_encoding='nope' is registered twice"):
        register_position("nope")(Position)


def test_a_class_that_turns_queries_and_keys_in_one_method_is_told_the_two():
    with pytest.raises(
        TypeError, match=r"^Old overrides rotate\(query, key\); accepted are rotate_query.* and rotate_key"
    ):

        class Old(Position):
            def rotate(self, query, key):
                return query, key


@pytest.fixture
def with_packages(tmp_path):
    """with_packages(program, entry points by module, source by module): what Python prints, the packages installed."""

    def run(program, points, **sources):
        for module, source in sources.items():
            (tmp_path / f"{module}.py").write_text(source)
            about = tmp_path / f"{module}-1.0.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
            lines = "".join(f"{point}\n" for point in points[module])
            (about / "entry_points.txt").write_text(f"[wavepos_fairseq.positions]\n{lines}")
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=str(tmp_path),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    return run


WINDOW = """
import torch
from typing_extensions import Annotated
from wavepos_fairseq.positions import Position, register_position

class Window(Position):
    def __init__(self, head_dim, num_heads, window: Annotated[int, "tokens seen"] = 1):
        super().__init__(head_dim, num_heads)
        self.window = window
    def bias(self, num_lags, like):
        bias = like.new_zeros(self.num_heads, num_lags)
        bias[:, self.window :] = float("-inf")
        return bias

@register_position("itself")
class Itself(Window):
    pass
"""
ASK = """
from wavepos_fairseq.positions import build_position, position_names, position_options
print(*position_names())
print(position_options()["window"].readers)
print(build_position("window+rope", head_dim=4, num_heads=1, window=2).bias(3, torch.empty(0)).tolist())
for name in ("broken", "broken+alibi", "text", "absent"):
    try:
        build_position(name, head_dim=4, num_heads=1)
    except ValueError as error:
        print(error)
print(build_position("rope", head_dim=4, num_heads=1))
"""


def test_installed_packages_add_representations_and_broken_ones_only_miss_their_own(with_packages):
    points = {
        "windows": ["window = windows:Window", "itself = windows:Itself", "rope = windows:Window"],
        "broken": ["broken = broken:Broken", "text = windows:WINDOW", "absent = no_such_module:Absent"],
    }
    *warning, names, readers, bias, failed, combined, text, absent, rope = with_packages(
        "import windows, wavepos_fairseq.attention, torch" + ASK,
        points,
        windows=WINDOW,
        broken="import no_such_package",
    )
    assert set(names.split()) == {*position_names(), "window", "itself"}
    assert readers == "['itself', 'window']" and bias == "[[0.0, 0.0, -inf]]" and rope == "RotaryPosition()"
    why = (
        "broken:Broken of the installed package broken cannot be loaded: ModuleNotFoundError: No module named 'no_such"
    )
    assert failed.startswith(f"position_encoding='broken': {why}")
    assert combined.startswith(f"position_encoding='broken+alibi': {why}")
    assert text.startswith(
        "position_encoding='text': windows:WINDOW of the installed package broken cannot be loaded: A"
    )
    assert absent.endswith("cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'")
    taken = "position_encoding='rope' is registered twice; windows:Window of the installed package windows is left out"
    assert taken in warning[0]


def test_what_a_test_registered_is_gone():
    assert "toy" not in position_names() and "toy_size" not in position_options()


def test_a_new_representation_is_one_new_file(tmp_path, monkeypatch):
    ignored = shutil.ignore_patterns("models", "__pycache__")
    shutil.copytree(str(PACKAGE), str(tmp_path / "copied_package"), ignore=ignored)
    (tmp_path / "copied_package/positions/recency.py").write_text(
        "from typing_extensions import Annotated\n"
        "from . import Position, register_position\n"
        "@register_position('recency')\n"
        "class Recency(Position):\n"
        "    def __init__(self, head_dim: int, num_heads: int, reach: Annotated[int, 'tokens seen'] = 1):\n"
        "        super().__init__(head_dim, num_heads)\n"
        "        self.reach = reach\n"
        "    def bias(self, num_lags, like):\n"
        "        bias = like.new_zeros(self.num_heads, num_lags)\n"
        "        bias[:, self.reach :] = float('-inf')\n"
        "        return bias\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        positions = importlib.import_module("copied_package.positions")
        assert positions.position_names() == sorted(position_names() + ["recency"])
        assert positions.position_options()["reach"].readers == ["recency"]
        recency, x = positions.build_position("recency", head_dim=16, num_heads=2), torch.randn(1, 2, 6, 16)
        for attend in (causal_attention, reference_attention):
            torch.testing.assert_close(attend(x, x, x, recency), x)  # a token that sees itself only
    finally:
        for module in [module for module in sys.modules if module.split(".")[0] == "copied_package"]:
            del sys.modules[module]


WITHOUT_FAIRSEQ = """
import importlib, sys

class NoFairseq:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fairseq":
            raise ImportError("fairseq is not installed")

sys.meta_path.insert(0, NoFairseq())
try:
    import fairseq
except ImportError:
    pass
else:
    sys.exit("the blocker does not work")
for module in "attention positions wavelets data evaluation.probes lab.experiments lab.figures.trained".split():
    importlib.import_module("wavepos_fairseq." + module)
"""


def test_everything_but_the_models_imports_without_fairseq():
    command = [sys.executable, "-c", WITHOUT_FAIRSEQ]
    done = subprocess.run(command, cwd=str(PACKAGE.parent), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["alibi", "sandwich"])
def test_writing_to_a_slot_changes_no_other_module(name):
    one, other = (build_position(name, head_dim=16, num_heads=2) for _ in range(2))
    before = other.bias(9, like=FP64).clone()
    one.bias(9, like=FP64).zero_()
    assert torch.equal(other.bias(9, like=FP64), before)


@pytest.mark.parametrize("num_heads", [*range(1, 10), 22, 25, 64])
def test_every_whole_number_of_heads_is_a_share(num_heads):
    for biased in range(1, num_heads + 1):
        position = build_position("alibi", head_dim=2, num_heads=num_heads, alibi_share=biased / num_heads)
        assert sum(slope > 0 for slope in position.slopes) == biased
    with pytest.raises(ValueError, match="whole heads"):
        build_position("alibi", head_dim=2, num_heads=num_heads, alibi_share=0.5 / num_heads)


def test_a_class_derived_from_the_fixed_wavelets_learns_none_and_says_so():
    class Mine(WaveletPosition):
        pass

    assert type(Mine(16, 2)) is Mine
    with pytest.raises(ValueError, match="wavelet_learn='both': Mine learns nothing"):
        Mine(16, 2, wavelet_learn="both")


def test_xpos_is_finite_wherever_it_is_not_refused():
    position = build_position("xpos", head_dim=8, num_heads=1)
    accepted = 0
    for length in range(28000, 37000, 500):
        try:
            output = causal_attention(torch.randn(1, 1, 1, 8), *100 * torch.randn(2, 1, 1, length, 8), position)
        except ValueError:
            continue
        accepted += 1
        assert output.isfinite().all(), length
    assert accepted
