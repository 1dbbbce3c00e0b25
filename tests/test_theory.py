"""The statements of docs/theory.md, whose tables and figures are read from the page and computed anew.

Eq. 2, 7, 8, 21, 22 and appendix A.2 are spelled out here as the paper has them; the package gives what they are
compared with: its RoPE, its mother wavelets and its bases.
"""

import functools
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import pywt
import torch

from wavepos_fairseq.lab.configs import load_table
from wavepos_fairseq.positions import build_position
from wavepos_fairseq.wavelets import MOTHER_WAVELETS, parse_numbers

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "theory.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
ZERO_MEAN = float("e".join(re.search(r"below \$(\d) \\cdot 10\^\{(-\d)\}\$ passes for zero", TEXT).groups()))
FP64 = torch.empty(0, dtype=torch.float64)
POSITIONS = [0, 1, 6, 7, 355, 710, 1999]  # 6 and 7 lie to either side of one turn, 710 just past 113 turns
SETTINGS = {row.name: row.position for row in load_table("table3")[1]}
DISCRETE = {row.name for row in load_table("table4")[1]} - set(MOTHER_WAVELETS)
SETTINGS["db4"] = {"name": "wavelet", "wavelet": "db4"}
SETTINGS["trans-xl"] = {"name": "trans-xl"}


def table(section):
    """The table in the page's section of this number: the cells of each row."""
    text = PAGE.split(f"\n## {section}. ")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"test_theory\.py::(\w+)", PAGE)
    assert named and set(named) <= set(globals())


def test_the_tables_have_all_rows_of_table_3_and_4_and_all_scales_of_morlet():
    assert [row[0] for row in table(4)] == [f"`{name}`" for name in SETTINGS]
    text = " ".join(row[0] for row in table(3))
    assert set(re.findall(r"`([\w.]+)`", text)) == {row.name for row in load_table("table4")[1]}
    assert parse_numbers(",".join(re.findall(r"a = (\S+)", text)), "a") == [2.0**e for e in range(8)]


def f(t, k):
    """Appendix A.2: from 0 to 2 k pi on [0, 1), and again on [1, 2)."""
    return 2 * k * np.pi * np.where(t < 1, t, t - 1)


def psi(t, k):
    return np.select([(0 <= t) & (t < 1), (1 <= t) & (t < 2)], [np.cos(f(t, k)), -np.sin(f(t, k))], 0.0)


def psi_prime(t, k):
    return np.select([(0 <= t) & (t < 1), (1 <= t) & (t < 2)], [np.sin(f(t, k)), np.cos(f(t, k))], 0.0)


def transform(wavelet, k, delta):
    """Eq. 8: the row of the shift b_j = j - delta(j), j = 0, 2, ..., d - 2, has wavelet((i - b_j) / 1) in column i."""
    j = np.arange(0, 2 * len(delta), 2)
    return np.array([wavelet((i - (j - delta)) / 1, k) for i in range(2 * len(delta))]).T


def smallest_k(m):
    return next(k for k in itertools.count(1) if m < 2 * k * np.pi)


def angles(m, d):
    """m theta_i with i = ceil((j + 1) / 2), for j = 0, 2, ..., d - 2."""
    return np.array([m * 10000 ** (-2 * (math.ceil((j + 1) / 2) - 1) / d) for j in range(0, d, 2)])


@functools.lru_cache(maxsize=None)
def random_queries(d):
    """q_m for the positions m = 0 .. 1999, and what the package's RoPE makes of them: both (2000, d)."""
    queries = torch.randn(1, 1, 2000, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
    rotated, _ = build_position("rope", head_dim=d, num_heads=1).rotate(queries, queries)
    return queries[0, 0].numpy(), rotated[0, 0].numpy()


@pytest.mark.parametrize("m", POSITIONS)
@pytest.mark.parametrize("d", [2, 8, 64, 128])
def test_equation_8_with_psi_is_rope_in_even_and_with_psi_prime_in_odd_dimensions(d, m):
    queries, rotated = random_queries(d)
    k = smallest_k(m)
    delta = angles(m, d) / (2 * k * np.pi)
    np.testing.assert_allclose(transform(psi, k, delta) @ queries[m], rotated[m, 0::2], rtol=0, atol=1e-9)
    np.testing.assert_allclose(transform(psi_prime, k, delta) @ queries[m], rotated[m, 1::2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("m", POSITIONS[1:])
def test_shifts_of_j_plus_delta_are_not_rope(m):
    queries, rotated = random_queries(64)
    other = transform(psi, smallest_k(m), -angles(m, 64) / (2 * smallest_k(m) * np.pi))
    assert np.abs(other @ queries[m] - rotated[m, 0::2]).max() > 0.1


def test_k_is_the_smallest_number_that_keeps_every_delta_below_1():
    for m in range(2512):
        k, angle = smallest_k(m), angles(m, 16)
        delta = angle / (2 * k * np.pi)
        assert 0 <= delta.min() and delta.max() < 1 and (np.diff(delta) <= 0).all()
        assert k == 1 or angle.max() / (2 * (k - 1) * np.pi) >= 1


@pytest.mark.parametrize("k", [1, 2, 400])
@pytest.mark.parametrize("wavelet", [psi, psi_prime])
def test_psi_and_psi_prime_have_zero_mean_and_energy_1(wavelet, k):
    step = 2.0**-13
    values = wavelet(np.arange(-1, 3, step) + step / 2, k)
    assert (values.sum() * step, (values**2).sum() * step) == pytest.approx((0, 1), abs=1e-12)


@pytest.mark.parametrize("m", POSITIONS)
def test_one_psi_serves_all_positions_with_the_angles_taken_modulo_2_pi(m):
    queries, rotated = random_queries(128)
    delta = angles(m, 128) / (2 * np.pi) % 1
    np.testing.assert_allclose(transform(psi, 1, delta) @ queries[m], rotated[m, 0::2], rtol=0, atol=1e-9)


def test_any_angles_are_reached_and_each_wavelet_is_read_at_two_points_only():
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 32)
    two_per_row = np.kron(np.diag(np.cos(angle)), [[1, 0]]) + np.kron(np.diag(-np.sin(angle)), [[0, 1]])
    np.testing.assert_allclose(transform(psi, 1, angle / (2 * np.pi)), two_per_row, rtol=0, atol=1e-12)


def haar_transform(size):
    """Eq. 22 from Eq. 2 and 21: scale 2, shifts 0, 2, ..., size - 2, for each of them psi's row and then phi's."""
    t = (np.arange(size) - np.arange(0, size, 2)[:, None]) / 2
    wavelet = np.select([(0 <= t) & (t < 1 / 2), (1 / 2 <= t) & (t < 1)], [1.0, -1.0], 0.0)
    scaling = np.where((0 <= t) & (t < 1), 1.0, 0.0)
    return np.stack((wavelet, scaling), axis=1).reshape(size, size) / np.sqrt(2)


@pytest.mark.parametrize("angle, sign", [(np.pi / 4, 1), (9 * np.pi / 4, 1), (5 * np.pi / 4, -1)])
@pytest.mark.parametrize("d, m", [(4, 1), (64, 7), (128, 1999)])
def test_a_pair_turned_by_pi_over_4_is_a_block_of_the_haar_transform_and_by_5_pi_over_4_its_negative(d, m, angle, sign):
    base = (m / angle) ** (d / (d - 2))  # the angle of the last pair is m base^(-(d - 2) / d)
    pair = torch.eye(d, dtype=torch.float64)[-2:, None, None].expand(2, 1, m + 1, d)
    rotated, _ = build_position("rope", head_dim=d, num_heads=1, rope_theta=base).rotate(pair, pair)
    block = rotated[:, 0, m, -2:].T.numpy()
    np.testing.assert_allclose(np.kron(np.eye(d // 2), sign * block), haar_transform(d), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 64, 512])
def test_the_rows_of_psi_are_cd_and_those_of_phi_ca_of_pywavelets(size):
    signal = np.random.default_rng(size).standard_normal(size)
    by_turns = np.stack(pywt.dwt(signal, "haar")[::-1], axis=1).ravel()  # cD and cA
    np.testing.assert_allclose(haar_transform(size) @ signal, by_turns, rtol=0, atol=1e-12)


def test_no_pair_at_a_whole_position_is_turned_by_exactly_pi_over_4():
    angle = np.array([angles(m, 128) for m in range(2512)])
    nearest = f"{np.abs((angle - np.pi / 4 + np.pi) % (2 * np.pi) - np.pi).min():.1e}".replace("e-0", "e-")
    assert f"positions up to {len(angle) - 1} the nearest is {nearest} rad away" in TEXT


def mean_energy_peak(wavelet, scale=1.0, level=12):
    """The integrals of psi and psi^2 by the midpoint rule, or over a discrete wavelet's samples; the largest |psi|."""
    x, unit = torch.arange(-16, 16, 2.0**-10, dtype=torch.float64) + 2.0**-11, 2**10
    if wavelet in MOTHER_WAVELETS:
        values = MOTHER_WAVELETS[wavelet](x, torch.tensor(scale, dtype=torch.float64)).numpy()
    else:
        values, unit = pywt.Wavelet(wavelet).wavefun(level=level)[1], 2**level
    return abs(values.sum()) / unit, (values**2).sum() / unit, np.abs(values).max()


@pytest.mark.parametrize("row", table(3), ids=lambda row: row[0].split("`")[1])
def test_energy_mean_and_peaks_are_those_of_the_table(row):
    scales = re.findall(r"a = (\S+)", row[0]) or ["1"]
    for member in itertools.product(re.findall(r"`([\w.]+)`", row[0]), parse_numbers(scales[0], "a")):
        (*_, first), (*_, last), (mean, energy, _), after = (mean_energy_peak(*member, n) for n in (1, 8, 12, 13))
        energy = "grows" if after[1] > 1.5 * energy else f"{energy:.2f}"
        verdict = "no" if energy == "grows" or mean >= ZERO_MEAN else "yes"
        assert row[1:] == [energy, f"{mean:.4f}", verdict, f"{first:.2f}", f"{last:.2f}"]


def test_means_and_energies_have_their_closed_forms():
    root, half = math.sqrt(math.pi), math.sqrt(math.pi / 2)
    means = {2.0**e: root * math.exp(-(4**e) / 4) for e in range(8)}
    closed = {("morlet", a): (mean, 1 / 2 * half * (1 + math.exp(-(a**2) / 2))) for a, mean in means.items()}
    for member, integrals in {("ricker",): (0, 3 / 4 * root), ("gaussian",): (root, half), **closed}.items():
        assert mean_energy_peak(*member)[:2] == pytest.approx(integrals, abs=1e-12)
    assert r"$\frac34\sqrt\pi$ (Ricker), $\sqrt{\pi/2}$ (Gaussian) and $\frac12\sqrt{\pi/2} (1 + e^{-a^2/2})$" in TEXT
    assert r"(Morlet of scale $a$), and the means 0, $\sqrt\pi$ and $\sqrt\pi e^{-a^2/4}$" in TEXT
    assert f"It is {means[8] * 1e7:.1f}e-7 at $a = 8$ and below fp64 rounding from $a = 16$ on" in TEXT
    assert means[16] < 2**-53 < means[8]


def test_the_energy_of_bior31_grows_2_17_fold_and_its_peak_twofold_from_level_to_level():
    before, after = (mean_energy_peak("bior3.1", level=level) for level in (12, 13))
    growth, last = (5 + 3 * math.sqrt(17)) / 8, mean_energy_peak("bior3.1", level=8)[2]
    assert (after[1] / before[1], after[2] / before[2]) == pytest.approx((growth, 2), rel=1e-3)
    assert rf"$(5 + 3\sqrt{{17}})/8 \approx {growth:.2f}$ and its peak by 2, up to {last:.0f} at level 8" in TEXT


def test_the_peak_of_bior22_grows_by_0_75_from_level_to_level_and_the_others_change_by_these_factors():
    peaks = {name: [mean_energy_peak(name, level=n)[2] for n in range(1, 9)] for name in DISCRETE - {"bior3.1"}}
    first, *_, last = bior22 = peaks.pop("bior2.2")
    np.testing.assert_allclose(np.diff(bior22), 0.75)
    assert f"its energy tends to {mean_energy_peak('bior2.2')[1]:.2f}, but its peak grows by exactly 0.75" in TEXT
    assert f"from level to level, from {first:.2f} at level 1 to {last:.2f} at level 8" in TEXT
    *named, rest = sorted(((max(peaks[name]) / min(peaks[name]), name) for name in peaks), reverse=True)[:6]
    assert ", ".join(f"`{name}` {x:.2f}" for x, name in named) + f", the rest at most {rest[0]:.2f}" in TEXT


@functools.lru_cache(maxsize=None)
def head(name):
    """The position of the row `name` of section 4 for a head of 128."""
    return build_position(**SETTINGS[name], head_dim=128, num_heads=8)


def basis(name):
    return head(name).relative(2512, like=FP64).numpy()


def ranks(matrix):
    """How many singular values are above 1e-3, 1e-5 and 1e-7 of the largest."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return [int((values > part * values[0]).sum()) for part in (1e-3, 1e-5, 1e-7)]


@pytest.mark.parametrize("name", SETTINGS)
def test_rank_and_support_are_those_of_the_table(name):
    (scales, shifts, *cells), *twice = [row[1:] for row in table(4) if row[0] == f"`{name}`"]
    last = (np.abs(basis(name)).max(axis=1) >= 1e-6).nonzero()[0].max()
    assert cells == [*map(str, ranks(basis(name))), "2511+" if last == 2511 else str(last)] and not twice
    if name != "trans-xl":
        assert head(name).head[1:3] == tuple(tuple(parse_numbers(c.split()[-1], "a, b")) for c in (scales, shifts))


def test_44_products_give_the_position_term_of_ricker_to_fp32_rounding():
    left, values, right = np.linalg.svd(basis("ricker").T, full_matrices=False)  # (d, d), (d,), (d, lags)
    queries = random_queries(128)[0][:10]
    through = (queries @ left[:, :44] * values[:44]) @ right[:44]
    assert "With $r = 44$ the error for the default Ricker is at most 1e-7 of the largest singular value" in TEXT
    error = np.abs(through - queries @ basis("ricker").T).max(axis=1)
    assert (error <= 1e-7 * values[0] * np.linalg.norm(queries, axis=1)).all() and error.max() > 0


def test_22_pairs_of_trans_xl_do_not_turn_once_and_have_rank_10():
    slow = (angles(2511, 128) < 2 * np.pi).sum()
    rank = ranks(basis("trans-xl")[:, -2 * slow :])[-1]
    assert f"{slow} of its 64 pairs" in TEXT and f"these {2 * slow} columns have rank {rank} at 1e-7" in TEXT
    higher = [row[0] for row in table(4) if (np.array(row[3:6], int) > ranks(basis("trans-xl"))).any()]
    assert f"a higher rank than any other row of this table but {' and '.join(higher)}," in TEXT


def test_the_bases_of_pywavelets_are_not_of_low_rank():
    heads = {name: build_position("wavelet", head_dim=128, num_heads=8, wavelet=name) for name in DISCRETE}
    counts = sorted((ranks(heads[name].relative(2512, like=FP64).numpy())[-1], name) for name in DISCRETE)
    assert "from {} (`{}`) to {} singular values above 1e-7".format(*counts[0], counts[-1][0]) in TEXT


@pytest.mark.parametrize("name", ["ricker-e0-127", "gaussian-e0-127"])
def test_columns_of_scale_2_39_and_more_are_1_and_cancel_in_the_softmax(name):
    columns = basis(name)
    assert ((columns == 1).all(axis=0) == (np.arange(128) >= 39)).all()
    assert (columns.astype(np.float32) == 1).all(axis=0)[25:].all()
    assert "of scale $2^{39}$ or more is 1 in fp64, of $2^{25}$ or more in fp32" in TEXT
    assert f"that is {128 - 39} and at least {128 - 25} of 128 dimensions" in TEXT
    queries, columns = torch.from_numpy(random_queries(128)[0][:10]), torch.from_numpy(columns)
    scores, without = (queries[:, :n] @ columns[:, :n].T for n in (128, 39))
    torch.testing.assert_close(scores.softmax(dim=-1), without.softmax(dim=-1), rtol=1e-9, atol=0)


# Section 5


def peak_of_the_spectrum(wavelet, scale):
    """The frequency, times the scale, at which the Fourier transform of psi(t / a) is largest."""
    times = torch.arange(-(2**17), 2**17, dtype=torch.float64) / 256
    wave = MOTHER_WAVELETS[wavelet](times, torch.tensor(scale, dtype=torch.float64)).numpy()
    return 2 * np.pi * np.abs(np.fft.rfft(wave)).argmax() * 256 / 2**18


def test_wavelengths_are_those_of_the_peaks_of_the_spectra_and_yarn_stretches_them_as_the_table_says():
    ricker, haar = (peak_of_the_spectrum(name, 1.0) for name in ("ricker", "haar"))
    assert ricker == pytest.approx(2**0.5, rel=0.01) and f"\\lambda = {2 * np.pi / 2**0.5:.2f}\\,a" in TEXT
    assert f"{haar:.2f} for Haar, $\\lambda = {2 * np.pi / haar:.2f}\\,a" in TEXT
    assert peak_of_the_spectrum("gaussian", 1.0) == 0
    assert peak_of_the_spectrum("morlet", 8.0) / 8 == pytest.approx(1, rel=0.01)  # cos(t)
    rows = [row[1:] for row in table(5) if len(row) == 9 and row[0] != "$\\lambda$"]
    for shown, peak in zip(rows, (1.0, 2**0.5, haar)):
        for exponent, stretch in enumerate(shown):
            wavelength = 2 * np.pi * 2**exponent / peak
            begin = max(128 / 32, 2 * np.pi / peak)
            ramp = min(max(np.log(wavelength / begin) / np.log(128 / begin), 0), 1)
            assert float(stretch) == pytest.approx(1 / (ramp / 5 + 1 - ramp), abs=0.006)
    assert len(rows) == 3
