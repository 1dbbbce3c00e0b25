"""The claims of wavepos_fairseq/wavelets.py: Eq. 11 to 15 in plain `math`, PyWavelets, and the grammar of options."""

import itertools
import math

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavepos_fairseq.wavelets import (
    DISCRETE_WAVELETS,
    MOTHER_WAVELETS,
    SHIFT_DIRECTIONS,
    discrete_wavelet,
    parse_numbers,
    wavelet_basis,
)

SCALES, SHIFTS = [1.0, 3.0, 8.0], [0.0, 1.0, 5.0, 2.5]


def haar(x):
    """Eq. 15, of the decoder's x = n - m <= 0."""
    return 1.0 if -1 / 2 <= x < 0 else -1.0 if -1 <= x < -1 / 2 else 0.0


# psi_{a,b} of the lag t = m - n with Eq. 14's t - b, one number at a time.
EQUATION_14 = {
    "ricker": lambda t, a, b: (1 - ((t - b) / a) ** 2) * math.exp(-(((t - b) / a) ** 2) / 2),
    "gaussian": lambda t, a, b: math.exp(-(((t - b) / a) ** 2)),
    "morlet": lambda t, a, b: math.exp(-(((t - b) / a) ** 2)) * math.cos(t - b),
    "haar": lambda t, a, b: haar((-t + b) / a),
}


def one_number(wavelet, t, a, b, direction="past"):
    """psi_{a,b} at the lag t, from a basis of this one wavelet."""
    return wavelet_basis(wavelet, [a], [b], direction, t + 1)[t, 0].item()


def mother(wavelet, x, scale=1.0):
    return MOTHER_WAVELETS[wavelet](torch.from_numpy(x), torch.tensor(scale, dtype=torch.float64)).numpy()


def test_every_mother_wavelet_is_checked_here():
    assert set(EQUATION_14) == set(MOTHER_WAVELETS)


CENTRES = {  # where a wavelet's centre lies in tokens, which is the b of Eq. 14
    "past": lambda a, b: b,
    "future": lambda a, b: -b,
    "scaled": lambda a, b: a * b,
}


@pytest.mark.parametrize("direction", SHIFT_DIRECTIONS)
@pytest.mark.parametrize("wavelet", EQUATION_14)
def test_basis_is_equation_14_at_each_lag_scale_and_shift(wavelet, direction):
    centres = [(a, CENTRES[direction](a, b)) for b in SHIFTS for a in SCALES]
    expected = [[EQUATION_14[wavelet](t, a, centre) for a, centre in centres] for t in range(60)]
    basis = wavelet_basis(wavelet, SCALES, SHIFTS, direction, 60)
    assert basis.dtype == torch.float64
    np.testing.assert_allclose(basis.numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("a", [1.0, 2.0, 128.0])
def test_ricker_is_1_at_its_centre_0_at_one_scale_and_minus_3_over_e_squared_at_two(a):
    assert one_number("ricker", 7, a, 7.0) == 1
    assert one_number("ricker", 128, a, 128 - a) == one_number("ricker", 128, a, 128 + a) == 0
    assert one_number("ricker", 256, a, 256 - 2 * a) == pytest.approx(-3 * math.exp(-2), abs=1e-15)


def test_the_amplitude_does_not_depend_on_the_scale():
    peaks = wavelet_basis("ricker", [2.0**e for e in range(8)], [0.0], "past", 1)
    assert peaks.tolist() == [[1.0] * 8]


@pytest.mark.parametrize("wavelet", ["ricker", "gaussian", "morlet"])
def test_past_puts_the_centre_b_tokens_into_the_past_and_future_out_of_sight(wavelet):
    past, future = (wavelet_basis(wavelet, [2.0], [6.0], direction, 40)[:, 0] for direction in ("past", "future"))
    assert past.argmax() == 6
    assert torch.equal(future[:20], past[12:32])  # both are even functions, read from 6 on


@pytest.mark.parametrize("wavelet", ["ricker", "gaussian"])
def test_scaled_puts_the_centre_a_b_tokens_into_the_past(wavelet):
    scales, shifts = [1.0, 2.0, 5.0, 16.0, 128.0], [0.0, 1.0, 2.0, 7.0]
    basis = wavelet_basis(wavelet, scales, shifts, "scaled", 1000)
    assert basis.abs().argmax(dim=0).tolist() == [a * b for b in shifts for a in scales]
    assert (basis.amax(dim=0) == 1).all()


@pytest.mark.parametrize("wavelet", MOTHER_WAVELETS)
def test_scaled_is_past_where_all_scales_are_1_and_all_are_the_same_where_no_wavelet_is_shifted(wavelet):
    past, scaled = (wavelet_basis(wavelet, [1.0] * 4, SHIFTS, direction, 40) for direction in ("past", "scaled"))
    assert torch.equal(past, scaled)
    past, future, scaled = (wavelet_basis(wavelet, SCALES, [0.0], direction, 40) for direction in SHIFT_DIRECTIONS)
    assert torch.equal(past, scaled) and torch.equal(past, future)


def test_scaled_haar_wavelets_are_those_of_pywavelets_discrete_transform():
    signal, levels = np.random.default_rng(0).normal(size=64), range(1, 6)
    _, *details = pywt.wavedec(signal, "haar", level=5)  # the details from level 5 to 1, a coefficient a shift
    for level, detail in zip(levels, details[::-1]):
        basis = wavelet_basis("haar", [2.0**level], range(len(detail)), "scaled", 65)[1:]  # Haar is 0 at the lag 0
        np.testing.assert_allclose(signal @ basis.numpy() / 2 ** (level / 2), detail, rtol=0, atol=1e-12)


def test_morlet_oscillates_once_in_2_pi_tokens_at_every_scale():
    for a in (4.0, 64.0):
        assert one_number("morlet", 10, a, 7.0) == pytest.approx(math.exp(-9 / a**2) * math.cos(3), abs=1e-15)


@pytest.mark.parametrize(
    "direction, a, b, expected",
    [
        ("past", 4.0, 0.0, [0, 1, 1, -1, -1, 0, 0]),
        ("past", 4.0, 1.0, [0, 0, 1, 1, -1, -1, 0]),
        ("future", 4.0, 0.0, [0, 1, 1, -1, -1, 0, 0]),
        ("future", 4.0, 1.0, [1, 1, -1, -1, 0, 0, 0]),
        ("past", 1.0, 0.0, [0, -1, 0, 0, 0, 0, 0]),
        ("past", 1.0, 2.0, [0, 0, 0, -1, 0, 0, 0]),
        ("future", 1.0, 1.0, [-1, 0, 0, 0, 0, 0, 0]),
        ("scaled", 4.0, 1.0, [0, 0, 0, 0, 0, 1, 1]),
        ("scaled", 2.0, 1.0, [0, 0, 0, 1, -1, 0, 0]),
        ("scaled", 2.0, 0.5, [0, 0, 1, -1, 0, 0, 0]),
        ("scaled", 1.0, 2.0, [0, 0, 0, -1, 0, 0, 0]),
        ("future", 1.0, 2.0, [0, 0, 0, 0, 0, 0, 0]),  # why Table 3's Haar with all scales 2^0 is nearly blind
    ],
)
def test_haar_over_the_lags_0_to_6_as_worked_out_by_hand(direction, a, b, expected):
    assert wavelet_basis("haar", [a], [b], direction, 7)[:, 0].tolist() == expected


def test_ricker_is_pywavelets_mexh_up_to_a_factor():
    psi, x = pywt.ContinuousWavelet("mexh").wavefun(length=513)
    np.testing.assert_allclose(mother("ricker", x), psi / psi[256], rtol=0, atol=1e-12)


def test_morlet_of_scale_5_sqrt_2_is_pywavelets_morl():
    psi, x = pywt.ContinuousWavelet("morl").wavefun(length=513)  # exp(-x^2 / 2) cos(5 x)
    np.testing.assert_allclose(mother("morlet", x / math.sqrt(2), 5 * math.sqrt(2)), psi, rtol=0, atol=1e-12)


def test_haar_is_pywavelets_haar_between_the_jumps():
    _, psi, x = pywt.Wavelet("haar").wavefun(level=5)
    between = np.abs(x[:, None] - [0, 0.5, 1]).min(axis=1) > 0
    np.testing.assert_array_equal(mother("haar", x[between]), psi[between].round(12))


def test_scales_run_fastest_and_every_pair_of_scale_and_shift_appears_once():
    basis = wavelet_basis("ricker", SCALES, SHIFTS, "past", 30)
    columns = [wavelet_basis("ricker", [a], [b], "past", 30)[:, 0] for b in SHIFTS for a in SCALES]
    assert torch.equal(basis, torch.stack(columns, dim=1))
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(columns, 2))


@pytest.mark.parametrize("wavelet", MOTHER_WAVELETS)
def test_scales_up_to_2_to_127_give_a_finite_basis(wavelet):
    basis = wavelet_basis(wavelet, [2.0**e for e in range(128)], [0.0], "past", 2512)
    assert basis.shape == (2512, 128) and basis.isfinite().all()


# PyWavelets' discrete wavelets


def psi_of(name, level):
    """The decomposition wavelet: wavefun gives phi, psi and x, or phi_d, psi_d, phi_r, psi_r and x."""
    return pywt.Wavelet(name).wavefun(level=level)[1]


def test_every_discrete_wavelet_of_pywavelets_is_there():
    assert {*DISCRETE_WAVELETS, "haar"} == set(pywt.wavelist(kind="discrete"))


@pytest.mark.parametrize("direction", SHIFT_DIRECTIONS)
@pytest.mark.parametrize("level", [1, 4, 8])
@pytest.mark.parametrize("name", ["db4", "sym8", "coif16", "dmey", "bior3.1", "rbio2.6"])
def test_a_discrete_wavelet_is_wavefuns_psi_once_per_token_and_zero_outside(name, level, direction):
    psi, shifts = psi_of(name, level), [0, 1, 15]
    num_lags = min(len(psi) + 20, 3000)
    starts = [CENTRES[direction](2**level, b) for b in shifts]  # in tokens: the level acts as the scale 2^level
    expected = [[psi[t - start] if 0 <= t - start < len(psi) else 0 for start in starts] for t in range(num_lags)]
    basis = wavelet_basis(name, [level], shifts, direction, num_lags)
    assert basis.dtype == torch.float64
    np.testing.assert_array_equal(basis.numpy(), expected)


def test_of_the_two_wavelets_of_a_biorthogonal_family_it_is_the_one_of_the_decomposition():
    _, psi_d, _, psi_r, _ = pywt.Wavelet("bior3.1").wavefun(level=4)
    samples = discrete_wavelet("bior3.1", 4).numpy()
    np.testing.assert_array_equal(samples, psi_d)
    assert np.abs(samples - psi_r).max() > 0.1


@pytest.mark.parametrize("name", ["db1", "rbio1.1", "bior1.1"])
@pytest.mark.parametrize("direction", SHIFT_DIRECTIONS)
def test_the_families_that_begin_with_haar_are_the_closed_form_at_scale_2_to_the_level(direction, name):
    levels, shifts = [1, 2, 5, 8], [0, 3]
    ours = wavelet_basis("haar", [2.0**level for level in levels], shifts, direction, 1100)
    theirs = wavelet_basis(name, levels, shifts, direction, 1100)
    sign = torch.sign(theirs[1, 0])
    np.testing.assert_allclose(sign * theirs, ours, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", DISCRETE_WAVELETS)
def test_every_discrete_wavelet_gives_a_finite_basis_that_is_not_zero(name):
    num_lags = len(discrete_wavelet(name, 8)) + 2
    basis = wavelet_basis(name, [1, 8], [0, 2], "past", num_lags)
    assert basis.isfinite().all() and (basis.abs().amax(dim=0) > 0.4).all()


def test_scales_run_fastest_in_a_basis_of_levels_too():
    basis = wavelet_basis("db4", [1, 2, 3], [0, 5], "past", 60)
    columns = [wavelet_basis("db4", [level], [b], "past", 60)[:, 0] for b in (0, 5) for level in (1, 2, 3)]
    assert torch.equal(basis, torch.stack(columns, dim=1))


# The grammar of wavelet_scales and wavelet_shifts


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("1,2,4", [1, 2, 4]),
        ("4, 1", [4, 1]),
        ("0.5,1.25", [0.5, 1.25]),
        ("0..15", list(range(16))),
        ("3..3", [3]),
        ("2^0..2^7", [1, 2, 4, 8, 16, 32, 64, 128]),
        ("3^1..3^3", [3, 9, 27]),
        ("2^0*8", [1] * 8),
        ("2^3*2,5", [8, 8, 5]),
        ("2^0..2^127", [math.ldexp(1, e) for e in range(128)]),
        ("7,0..2,2^1..2^3,4*2", [7, 0, 1, 2, 2, 4, 8, 4, 4]),
    ],
)
def test_numbers_mean_what_the_grammar_says(text, numbers):
    parsed = parse_numbers(text, "wavelet_scales")
    assert parsed == numbers and all(type(number) is float for number in parsed)


REFUSED = [
    *["", "a", "-1", "1..", "..1", "1,", "1,,2", "3..1", "2^0..3^4", "2^0..8", "1.5..3", "1..2.5", "0..3*2", "1*0"],
    *["1e3", "1 2", "2^-1", "0..99999999", "2^5000", "2^0..2^5000"],
    *["0.." + "9" * 20, "1*" + "9" * 20, "9" * 400],
]


@pytest.mark.parametrize("text", REFUSED)
def test_anything_else_is_refused_naming_the_parameter_and_what_is_accepted(text):
    with pytest.raises(ValueError, match="^wavelet_scales=.*accepted are numbers separated by commas") as error:
        parse_numbers(text, "wavelet_scales")
    assert repr(text) in str(error.value)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**53), min_size=1, max_size=40))
def test_a_comma_list_of_whole_numbers_parses_to_itself(numbers):
    assert parse_numbers(",".join(map(str, numbers)), "wavelet_shifts") == numbers


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**9), st.integers(0, 1000))
def test_a_range_from_a_to_b_has_b_minus_a_plus_1_members(first, steps):
    numbers = parse_numbers(f"{first}..{first + steps}", "wavelet_shifts")
    assert len(numbers) == steps + 1 and (numbers[0], numbers[-1]) == (first, first + steps)


def test_an_unknown_direction_is_refused_with_those_that_are_accepted():
    with pytest.raises(ValueError, match="^direction='x' is unknown; accepted are past, future, scaled$"):
        wavelet_basis("ricker", [1.0], [0.0], "x", 4)
