"""The benchmarks measure what they say: the contestants compute the same attention, ratios and memory are right."""

import csv
import os
import shutil
import subprocess
import sys
import tarfile
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
    pytest.importorskip("torch.nn.attention.flex_attention", reason="PyTorch has no FlexAttention before 2.5")
    for position in (ricker, alibi, build_position("t5", head_dim=16, num_heads=8).double()):
        attend = attention.flex_attention_of(position, 70, like=inputs[0])
        torch.testing.assert_close(attend(*inputs), reference_attention(*inputs, position))


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
    shown = ("no position (SDPA)", "wavelet (Ricker)", "alibi", "wavelet+alibi", "wavelet, learned", "ALiBi as a mask")
    for name in (*shown, "Ricker, the definition"):
        assert sum(row["attention"] == name for row in rows) == 4 and f"| {name} |" in printed
    assert all(float(row["milliseconds"]) > 0 and float(row["ratio"]) > 0 for row in rows)


# The steps for a machine with a GPU, small and on the CPU


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def dry_run(tmp_path):
    """dry_run(step): what it printed; its files are in tmp_path."""

    def made(step):
        environment = {**os.environ, "OUT": str(tmp_path), "PYTHONWARNINGS": "ignore"}
        command = ["bash", str(BENCHMARKS / "gpu.sh"), step, sys.executable, "--dry-run"]
        done = subprocess.run(command, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-3000:]
        assert (tmp_path / f"gpu-{step}.log").read_text() == done.stdout
        return done.stdout

    return made


@pytest.fixture
def kernel():
    pytest.importorskip("triton", "3.3", reason="Triton 3.3 is not installed")


@pytest.mark.long
def test_the_step_that_checks_the_kernel_writes_its_errors_beside_those_of_pytorchs_attention(
    kernel, dry_run, tmp_path
):
    assert "8 passed" in dry_run("right")
    rows = rows_of(tmp_path / "kernel-errors-cpu.csv")
    assert {(row["dtype"], row["position"]) for row in rows} == {
        ("float32", "wavelet"),
        ("float32", "t5"),
        ("bfloat16", "wavelet"),
    }
    assert {row["tensor"] for row in rows if row["position"] == "t5"} > {"output", "d_query", "d_key", "d_value"}
    for row in rows:
        epsilon = torch.finfo(getattr(torch, row["dtype"])).eps
        for error in (row["error"], row["flash_error"] if row["flash_error"] else row["error"]):
            assert epsilon / 100 < float(error) < 10 * epsilon, row
    assert rows_of(tmp_path / "attention-quick-cpu.csv")


@pytest.mark.long
def test_the_step_that_times_the_kernel_has_every_rival_and_the_tiles_that_were_tried(kernel, dry_run, tmp_path):
    dry_run("fast")
    rows = rows_of(tmp_path / "kernel-speed-cpu.csv")
    timed = {(row["position"], row["mode"], row["attention"]) for row in rows if float(row["ratio"] or 0) > 0}
    rivals = {("nope", "PyTorch's choice"), *((name, way) for name in ("alibi", "t5", "wavelet") for way in WAYS)}
    assert {(name, mode, way) for name, way in rivals for mode in ("forward", "forward + backward")} <= timed
    assert {(name, "forward", "FlexAttention") for name, _ in rivals - {("nope", "PyTorch's choice")}} <= timed
    assert {row["note"][:39] for row in rows if row["attention"] == "FlexAttention"} == {
        "",
        "NotImplementedError: FlexAttention does",  # not support backward on a CPU
    }
    assert {row["tiles"] for row in rows if row["attention"] == "triton"} == {"32 8 1", "16 4 1"}


WAYS = ("triton", "mask", "blockwise")


@pytest.mark.long
@pytest.mark.parametrize("what", ["speed", "errors"])
def test_what_no_time_is_left_for_has_a_line_that_says_so(kernel, what, tmp_path):
    command = [sys.executable, str(BENCHMARKS / "kernel.py"), what, "--dry-run", "--seconds", "1"]
    command += ["--output", str(tmp_path / "kernel.csv")]
    subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert "no time is left" in rows_of(tmp_path / "kernel.csv")[-1]["note"]


@pytest.mark.long
def test_the_step_of_the_papers_size_reports_what_fairseq_logs(dry_run, tmp_path):
    pytest.importorskip("fairseq")
    dry_run("paper")
    (row,) = rows_of(tmp_path / "updates.csv")
    assert (row["row"], row["updates"], row["note"]) == ("ricker", "4", "")
    assert float(row["first_quartile"]) <= float(row["tokens_per_second"]) <= float(row["third_quartile"])


@pytest.mark.long
def test_the_step_of_table_1_makes_the_rows_and_packs_them_so_that_they_are_not_made_again(dry_run, tmp_path):
    pytest.importorskip("fairseq")
    assert "done" not in dry_run("table1").split("Table 1")[0]
    assert len(rows_of(tmp_path / "wikitext2-chars-gpu" / "table1.csv")) > 0
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(str(packed)) as files:
        results = {name for name in files.getnames() if name.endswith("result.json")}
        shutil.rmtree(str(tmp_path / "runs"))
        files.extractall(str(tmp_path))
    assert results == {f"runs/wikitext2-chars-gpu/{row}/result.json" for row in ("nope", "ricker")}
    assert {"[1/2] nope: done", "[2/2] ricker: done"} < set(dry_run("table1").splitlines())


@pytest.mark.long
def test_the_step_of_all_representations_has_them_all(dry_run, tmp_path):
    pytest.importorskip("fairseq")
    dry_run("rest")
    for file, column in (("attention-cpu.csv", "attention"), ("training-cpu.csv", "model")):
        assert {"alibi", "wavelet (Ricker)", "trans-xl"} <= {row[column] for row in rows_of(tmp_path / file)}
