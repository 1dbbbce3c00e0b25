"""The benchmarks measure what they say: the contestants compute the same attention, ratios and memory are right."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from wavepos_fairseq.attention import reference_attention
from wavepos_fairseq.positions import build_position

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """benchmark("attention"): the module benchmarks/attention.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def imported(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return imported


def test_the_contestants_compute_the_same_attention(benchmark, monkeypatch):
    attention = benchmark("attention")
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 8, 70, 16, dtype=torch.float64)
    ricker = build_position("wavelet", head_dim=16, num_heads=8)
    torch.testing.assert_close(attention.scatter_attention(*inputs, ricker), reference_attention(*inputs, ricker))
    monkeypatch.setattr(attention, "LARGEST", 30 * 70 * 16 * 8)  # 30 of the 70 queries
    torch.testing.assert_close(attention.definition(*inputs, ricker), reference_attention(*inputs, ricker))
    alibi = build_position("alibi", head_dim=16, num_heads=8)
    masked = attention.masked_attention(*inputs, attention.alibi_mask(alibi, 70, like=inputs[0]))
    torch.testing.assert_close(masked, reference_attention(*inputs, alibi))


def test_contestants_take_turns_and_ratios_are_of_one_round(benchmark):
    measure, turns = benchmark("measure"), []
    seconds = measure.by_turns({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 3, "cpu")
    assert turns == ["a", "b"] * 4 and all(len(times) == 3 for times in seconds.values())
    rows = measure.ratios({"a": [1.0, 10.0, 2.0], "b": [2.0, 30.0, 2.0]}, "a")
    assert rows["b"]["ratio"] == 2.0 and rows["b"]["milliseconds"] == 2000.0 and rows["a"]["ratio"] == 1.0


def test_peak_memory_counts_what_lives_at_one_time(benchmark):
    def two_at_a_time():
        for _ in range(5):
            one = torch.ones(2**18)
            one = one + 1
        return one

    mebibytes = benchmark("measure").peak_bytes(two_at_a_time, "cpu") / 2**20
    assert 2 <= mebibytes < 2.1


def test_the_benchmark_of_the_operator_writes_every_contestant_and_mode(benchmark, tmp_path, monkeypatch, capsys):
    attention = benchmark("attention")
    words = ["attention.py", "--sizes", "40x1,70x1", "--heads", "8", "--head-dim", "16"]
    monkeypatch.setattr(sys, "argv", [*words, "--rounds", "2", "--output", str(tmp_path / "new" / "a.csv")])
    attention.main()
    with (tmp_path / "new" / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    printed = capsys.readouterr().out
    assert {row["length"] for row in rows} == {"40", "70"}
    assert {row["mode"] for row in rows} == {"forward", "forward + backward"}
    shown = ("no position (SDPA)", "wavelet (Ricker)", "alibi", "wavelet+alibi", "ALiBi as a mask")
    for name in (*shown, "Ricker, the definition"):
        assert sum(row["attention"] == name for row in rows) == 4 and f"| {name} |" in printed
    assert all(float(row["milliseconds"]) > 0 and float(row["ratio"]) > 0 for row in rows)
