"""Stretched wavelengths: the published formulas, transformers' numbers, and no change where nothing is stretched."""

import copy
import itertools
import math

import pytest
import torch
from conftest import L_TRAIN
from test_attention import ATTENTIONS, PYTORCH, TRACERS, Attending, build, draw
from test_model import random_tokens

from wavepos_fairseq.attention import causal_attention, reference_attention
from wavepos_fairseq.evaluation.perplexity import evaluate
from wavepos_fairseq.plugin.checkpoint import load_checkpoint
from wavepos_fairseq.plugin.streams import load_stream
from wavepos_fairseq.positions import build_position, position_names
from wavepos_fairseq.positions.interpolation import INTERPOLATIONS, interpolated, stretches
from wavepos_fairseq.positions.rope import RotaryPosition
from wavepos_fairseq.positions.temperature import TemperedPosition
from wavepos_fairseq.wavelets import discrete_wavelet

FP64 = torch.empty(0, dtype=torch.float64)
STRETCHED = [
    "rope",
    "rope-wavelet",
    "trans-xl",
    "wavelet",
    "wavelet+alibi",
    "trans-xl+wavelet",  # two fixed tables, which become one
    "db4",
    "haar scaled",
    "ricker learned",
    "rope+rpe",
    "xpos",
]


def ricker(x):
    return (1 - x**2) * math.exp(-(x**2) / 2)


def spelled_out(method, wavelength, longest, s, l_train, shortest=2 * math.pi):
    """The stretch of one of the waves shortest .. longest."""
    if method == "linear":
        return s
    if method == "ntk":
        return s ** (math.log(wavelength / shortest) / math.log(longest / shortest))
    begins = max(shortest, l_train / 32)
    ramp = math.log(wavelength / begins) / math.log(l_train / begins)
    ramp = min(max(ramp, 0), 1)
    return 1 / ((1 - ramp) + ramp / s)


@pytest.mark.parametrize("l_train", [128, 4096])
@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_each_scale_of_the_wavelets_is_stretched_around_lag_0(method, l_train):
    position = interpolated(build_position("wavelet", head_dim=16, num_heads=1), method, l_train)
    num_lags, s = 5 * l_train // 2, 2.5
    found = position.relative(num_lags, FP64)
    for e in range(8):
        stretch = spelled_out(method, 2 * math.pi * 2**e, 2 * math.pi * 2**7, s, l_train)
        for t in (0, 1, 7, 100, num_lags - 1):
            for b in range(2):
                assert found[t, 8 * b + e].item() == pytest.approx(ricker((t / stretch - b) / 2**e), abs=1e-12)


@pytest.mark.parametrize("direction, centre", [("future", lambda a, b: -b), ("scaled", lambda a, b: a * b)])
def test_a_shift_of_any_direction_is_stretched_with_its_scale(direction, centre):
    shape = {"head_dim": 16, "num_heads": 1, "wavelet_shift_direction": direction}
    found = interpolated(build_position("wavelet", **shape), "ntk", 64, 3.0).relative(100, FP64)
    for e in range(8):
        stretch = spelled_out("ntk", 2 * math.pi * 2**e, 2 * math.pi * 2**7, 3.0, 64)
        for t, b in itertools.product((0, 1, 7, 99), range(2)):
            expected = ricker((t / stretch - centre(2**e, b)) / 2**e)
            assert found[t, 8 * b + e].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_a_discrete_wavelet_is_stretched_by_the_tokens_of_its_level(method):
    found = interpolated(build_position("wavelet", head_dim=16, num_heads=1, wavelet="db4"), method, 64, 3.0)
    found = found.relative(100, FP64)
    for level in range(1, 9):
        stretch = spelled_out(method, 2 * math.pi * 2**level, 2 * math.pi * 2**8, 3.0, 64, shortest=4 * math.pi)
        samples = discrete_wavelet("db4", level).tolist()
        for t, b in itertools.product((0, 1, 7, 50, 98), range(2)):  # no multiples of 3, where a step begins
            step = math.floor(t / stretch - b)
            expected = samples[step] if 0 <= step < len(samples) else 0
            assert found[t, 8 * b + level - 1].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_the_waves_of_trans_xl_are_stretched(method):
    found = interpolated(build_position("trans-xl", head_dim=16, num_heads=1), method, 64).relative(256, FP64)
    longest = 2 * math.pi * 10000 ** (14 / 16)
    for i in range(8):
        wavelength = 2 * math.pi * 10000 ** (2 * i / 16)
        angle = 2 * math.pi * 200 / (wavelength * spelled_out(method, wavelength, longest, 4, 64))
        assert found[200, 2 * i : 2 * i + 2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-12)


@pytest.mark.parametrize("theta, l_train, factor", [(10000.0, 512, 4.0), (500000.0, 4096, 8.0), (10000.0, 128, 5.0)])
@pytest.mark.parametrize("method, theirs", [("linear", "linear"), ("ntk", "dynamic"), ("yarn", "yarn")])
def test_rope_has_the_frequencies_of_transformers(method, theirs, theta, l_train, factor):
    """Their dynamic NTK is bloc97's where its own factor is 1; truncate rounds YaRN's ramp to whole dimensions."""
    utils = pytest.importorskip("transformers.modeling_rope_utils", reason="transformers is not installed")
    from transformers import LlamaConfig

    of = {"rope_type": theirs, "rope_theta": theta, "factor": 1.0 if theirs == "dynamic" else factor, "truncate": False}
    config = LlamaConfig(
        hidden_size=128, num_attention_heads=1, max_position_embeddings=int(l_train), rope_parameters=of
    )
    config.rope_parameters["original_max_position_embeddings"] = l_train
    expected, scaling = utils.ROPE_INIT_FUNCTIONS[theirs](config, "cpu", seq_len=int(factor * l_train))
    rope = build_position("rope", head_dim=128, num_heads=1, rope_theta=theta)
    key = torch.tensor([1.0, 0.0]).repeat(64).expand(1, 1, 2, 128).double()  # turned to cos, sin at position 1
    turned = interpolated(rope, method, l_train, factor).rotate_key(key, 0)[0, 0, 1].view(64, 2)
    found = torch.atan2(turned[:, 1], turned[:, 0])
    torch.testing.assert_close(found.float(), expected.float(), rtol=2e-5, atol=0)
    if method == "yarn":  # theirs is on queries and on keys
        tempered = TemperedPosition(rope, l_train, factor).rotate_query(key, 0)
        assert (tempered / rope.rotate_query(key, 0)).nanmean().item() == pytest.approx(scaling**2)


def test_linear_interpolation_by_a_whole_factor_reads_the_table_at_every_so_manieth_lag():
    for name in ("wavelet", "trans-xl"):
        position = build_position(name, head_dim=16, num_heads=1)
        stretched = interpolated(position, "linear", 10, 3.0).relative(60, FP64)
        torch.testing.assert_close(stretched[::3], position.relative(20, FP64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", INTERPOLATIONS)
@pytest.mark.parametrize("variant", STRETCHED)
def test_the_fast_path_is_the_definition_beyond_l_train_and_up_to_it_no_bit_changes(variant, method):
    position = build(variant, 16, 2)
    stretched = interpolated(position, method, l_train=24)
    query, key, value = draw(60, 60, 16)
    fast, exact = (attend(query, key, value, stretched) for attend in ATTENTIONS)
    torch.testing.assert_close(fast, exact, rtol=0, atol=1e-10)
    assert (exact - reference_attention(query, key, value, position)).abs().max() > 1e-4
    last = [attend(query[:, :, -3:], key, value, stretched) for attend in ATTENTIONS]
    for few in last:
        torch.testing.assert_close(few, exact[:, :, -3:], rtol=0, atol=1e-10)
    short = draw(24, 24, 16)
    given = interpolated(position, method, l_train=24, factor=1.0)
    for attend in ATTENTIONS:
        assert torch.equal(attend(*short, stretched), attend(*short, position))
        assert torch.equal(attend(query, key, value, given), attend(query, key, value, position))


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_learned_scales_are_stretched_by_what_they_are_now_and_learn_stretched(method):
    position = build_position(
        "wavelet", head_dim=6, num_heads=2, wavelet_learn="both", wavelet_scales="1,4,32"
    ).double()
    position.scale_octaves.data.copy_(torch.tensor([1.0, 0.0, 1.0]))
    stretched, inputs = interpolated(position, method, l_train=128, factor=4.0), draw(60, 60, 6)
    rows = stretched.relative(200, FP64)
    now = [2.0 ** (8 * math.tanh(1 / 8)), 4.0, 32 * 2 ** (8 * math.tanh(1 / 8))]
    waves = torch.tensor(now, dtype=torch.float64) * 2 * math.pi
    for i, (a, s) in enumerate(zip(now, stretches(waves, method, 4.0, 128).tolist())):
        for b in (0, 1):
            assert rows[7, 3 * b + i].item() == pytest.approx(ricker((7 / s - b) / a), abs=1e-12)
    learned = [*position.parameters()]
    found, exact = (torch.autograd.grad(attend(*inputs, stretched).square().sum(), learned) for attend in ATTENTIONS)
    for one, other in zip(found, exact):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_scales_that_are_all_the_same_are_all_stretched_unless_yarn_sees_them_turn_often(method):
    short = 1.0 if method == "yarn" else 4.0
    for wavelengths, stretch in (([6.0, 6.0], short), ([6.0], short), ([800.0, 800.0], 4.0), ([800.0], 4.0)):
        found = stretches(torch.tensor(wavelengths, dtype=torch.float64), method, 4.0, 128).tolist()
        assert found == [stretch] * len(wavelengths)


def test_xpos_decays_as_slowly_as_it_turns():
    position, vectors = (
        build_position("xpos", head_dim=8, num_heads=1),
        torch.randn(2, 1, 1, 20, 8, dtype=torch.float64),
    )
    sparse = torch.zeros(2, 1, 1, 80, 8, dtype=torch.float64)
    sparse[..., ::4, :] = vectors  # position 4 m, read at m
    query, key = interpolated(position, "linear", 16, 4.0).rotate(*sparse)
    expected = position.rotate(*vectors)
    for found, exact in zip((query, key), expected):
        torch.testing.assert_close(found[..., ::4, :], exact, rtol=1e-13, atol=1e-13)


def test_a_stretched_representation_of_ones_own_keeps_its_other_slots():
    class Biased(RotaryPosition):
        def bias(self, num_lags, like):
            return -torch.arange(num_lags).to(like).expand(self.num_heads, -1)

    biased, inputs = Biased(8, 2), draw(9, 9, 8)
    plain = build_position("rope+alibi", head_dim=8, num_heads=2)
    assert torch.equal(interpolated(biased, "linear", 4, 2.0).bias(5, FP64), biased.bias(5, FP64))
    assert torch.equal(interpolated(plain, "linear", 4, 2.0).bias(5, FP64), plain.bias(5, FP64))
    with_bias = reference_attention(*inputs, interpolated(biased, "linear", 4, 2.0))
    assert not torch.allclose(
        with_bias, reference_attention(*inputs, interpolated(RotaryPosition(8, 2), "linear", 4, 2.0))
    )


@pytest.mark.parametrize("name", position_names())
def test_what_has_no_wavelengths_is_refused_and_so_is_what_is_stretched_already(name):
    position = build_position(name, head_dim=16, num_heads=2)
    if position.overrides("stretched"):
        position = interpolated(position, "linear", 64)
    with pytest.raises(ValueError, match=r"^position_interpolation='ntk' stretches wavelengths, and this .* has none"):
        interpolated(position, "ntk", 128)


@pytest.mark.parametrize(
    "l_train, factor, message",
    [
        ("a", None, "^position_interpolation_from='a': must be a whole number > 0$"),
        (1.5, None, "^position_interpolation_from=1.5: must be a whole number > 0$"),
        (64, "2", "^position_interpolation_factor='2': must be > 0, from 1e-9 to 1e9$"),
        (64, math.nan, "^position_interpolation_factor=nan: must be > 0, from 1e-9 to 1e9$"),
        (64, 1e-160, "^position_interpolation_factor=1e-160: must be > 0, from 1e-9 to 1e9$"),
    ],
)
def test_lengths_and_factors_that_are_none_are_refused(l_train, factor, message):
    with pytest.raises(ValueError, match=message):
        interpolated(build_position("rope", head_dim=16, num_heads=2), "linear", l_train, factor)


@pytest.mark.parametrize("factor", [1e-9, 1e9])
@pytest.mark.parametrize("variant", [variant for variant in STRETCHED if variant != "xpos"])  # which has its own limit
def test_what_the_most_extreme_factors_give_is_finite(variant, factor):
    for method in INTERPOLATIONS:
        position = interpolated(build(variant, 16, 2), method, 24, factor)
        assert reference_attention(*draw(60, 60, 16), position).isfinite().all()


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"--position-interpolation": "pi"},
            "--position-interpolation 'pi' is unknown; accepted are none, linear, ntk",
        ),
        (
            {"--position-interpolation": "ntk", "--position-encoding": "alibi"},
            "--position-interpolation 'ntk' stretches",
        ),
        ({"--position-interpolation": "ntk", "--position-interpolation-factor": "0"}, "-factor 0.0: must be > 0"),
        ({"--position-interpolation": "ntk", "--position-interpolation-factor": "inf"}, "-factor inf: must be > 0"),
        ({"--position-interpolation-factor": "2"}, "--position-interpolation-factor needs --position-interpolation"),
        (
            {"--position-interpolation": "ntk", "--position-interpolation-from": "0"},
            "-from 0: must be a whole number > 0",
        ),
        ({"--position-interpolation-from": "64"}, "--position-interpolation-from needs --position-interpolation"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(build, changes, said):
    with pytest.raises((ValueError, SystemExit)) as stopped:
        build({"--position-encoding": "rope", **changes})
    assert said in str(stopped.value) and "\n" not in str(stopped.value)


@torch.no_grad()
def test_with_a_factor_tokens_fed_one_at_a_time_score_as_in_one_forward_and_without_it_turned_keys_are_refused(build):
    tokens = random_tokens(1, 2 * L_TRAIN)
    for encoding in ("rope", "wavelet", "wavelet+alibi+rope"):
        changes = {"--position-encoding": encoding, "--position-interpolation": "yarn"}
        model, state = build({**changes, "--position-interpolation-factor": "2"}), {}
        whole = model(tokens)[0]
        rows = [model(tokens[:, : n + 1], incremental_state=state)[0] for n in range(2 * L_TRAIN)]
        torch.testing.assert_close(torch.cat(rows, dim=1), whole, rtol=1e-4, atol=1e-4)
        model, state = build(changes), {}
        for n in range(L_TRAIN):
            model(tokens[:, : n + 1], incremental_state=state)
        if "rope" in encoding:
            with pytest.raises(ValueError, match="^position_interpolation_factor must be given where a cache keeps"):
                model(tokens[:, : L_TRAIN + 1], incremental_state=state)


@torch.no_grad()
def test_a_model_that_goes_on_at_a_greater_length_stretches_the_wavelengths_of_the_shorter_one(build):
    tokens, half = random_tokens(1, L_TRAIN), L_TRAIN // 2
    stretched = {"--position-interpolation": "yarn", "--position-interpolation-from": str(half)}
    model, by_hand = build({"--position-encoding": "rope", **stretched}), build({"--position-encoding": "rope"})
    for layer in by_hand.decoder.layers:
        attention = layer.self_attn
        attention.position = TemperedPosition(interpolated(attention.position, "yarn", half), half)
    assert torch.equal(model(tokens)[0], by_hand(tokens)[0])
    assert torch.equal(model(tokens[:, :half])[0], build({"--position-encoding": "rope"})(tokens[:, :half])[0])


def test_an_evaluation_interpolates_by_the_length_over_the_trainings(trained, data_bin):
    by_option = load_checkpoint(trained("rope"), str(data_bin), overrides={"position_interpolation": "yarn"})
    plain, by_hand = (load_checkpoint(trained("rope"), str(data_bin)) for _ in range(2))
    for layer in by_hand.model.decoder.layers:
        attention = layer.self_attn
        attention.position = TemperedPosition(interpolated(attention.position, "yarn", L_TRAIN), L_TRAIN)
    stream = load_stream(str(data_bin), "valid", plain.task.dictionary)
    nll = [
        [cell["nll"] for cell in evaluate(scorer, stream, [L_TRAIN, 2 * L_TRAIN], ["full"])]
        for scorer in (plain, by_option, by_hand)
    ]
    assert nll[1] == nll[2] and nll[0][0] == nll[1][0] and nll[0][1] != nll[1][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stretches_are_of_the_exact_scales(dtype):
    def stretched(method, scales):
        position = build_position("wavelet", head_dim=16, num_heads=2, wavelet_scales=scales, wavelet_shifts="0..7")
        return interpolated(position, method, 4096, 4.0)._at(4096).table[1][-1]

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert stretched("ntk", "2^0,2^200") == (1, 4)
        low, high = math.log(128), math.log(4096)
        ramp = (math.log(2 * math.pi * 301.7) - low) / (high - low)
        low = max(low, math.log(2 * math.pi * 100.3))
        ramp = (math.log(2 * math.pi * 301.7) - low) / (high - low)
        assert stretched("yarn", "100.3,301.7")[1] == pytest.approx(1 / (ramp / 4 + 1 - ramp), rel=1e-12)
    finally:
        torch.set_default_dtype(before)


# Recorded, or with no values


def of_a_length(length):
    return [tensor.float() for tensor in draw(length, length, 16)]


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("method", INTERPOLATIONS)
@pytest.mark.parametrize("variant", ["rope", "wavelet", "trans-xl+wavelet", "xpos"])
def test_traced_or_exported_with_a_factor_it_is_the_definition_at_other_lengths_too(variant, method, tracer):
    if PYTORCH < (2, 6) and tracer == "torch.export":
        pytest.skip("before PyTorch 2.6 torch.export follows Python's bytecode, which is not ours to test")
    position = interpolated(build(variant, 16, 2), method, 24, 2.0)
    traced = TRACERS[tracer](Attending(copy.deepcopy(position)), of_a_length(7))
    for length in (7,) if tracer == "make_fx" else (7, 30):  # make_fx records one shape
        exact = reference_attention(*(tensor.double() for tensor in of_a_length(length)), position)
        torch.testing.assert_close(traced(*of_a_length(length)).double(), exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "extend", [lambda rope: interpolated(rope, "ntk", 24), lambda rope: TemperedPosition(rope, 24)]
)
def test_a_factor_by_the_length_is_refused_where_the_length_stays_open(extend):
    position = extend(build_position("rope", head_dim=16, num_heads=2))
    with pytest.raises(ValueError, match="^position_interpolation_factor must be given where PyTorch traces"):
        TRACERS["torch.jit.trace"](Attending(position), of_a_length(7))


@pytest.mark.parametrize("variant", ["wavelet", "ricker learned"])
def test_on_the_meta_device_it_has_its_shape(variant):
    with torch.device("meta"):
        position, meta = build(variant, 16, 2), torch.empty(2, 2, 40, 16)
    for method in INTERPOLATIONS:
        output = causal_attention(meta, meta, meta, interpolated(position, method, 24))
        assert output.is_meta and output.shape == meta.shape
