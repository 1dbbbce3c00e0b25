"""Timing by turns, peak memory, and the benchmarks' output."""

import contextlib
import csv
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence

import torch

Row = Dict[str, Any]
RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
LEFT_OUT = "left out, because no time is left"


def by_turns(contestants: Dict[str, Callable[[], Any]], rounds: int, device: str) -> Dict[str, List[float]]:
    """Seconds of each contestant in each round; all take a turn per round, so that they see the same machine."""
    seconds: Dict[str, List[float]] = {name: [] for name in contestants}
    clock = _seconds_on_gpu if device == "cuda" else _seconds
    for number in range(rounds + 1):  # the first round warms up
        for name, run in contestants.items():
            taken = clock(run)
            if number:
                seconds[name].append(taken)
    return seconds


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _seconds_on_gpu(run: Callable[[], Any]) -> float:
    """The zeros before it empty the caches, and take the GPU so long that Python's launches are ahead of it."""
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(2**30, dtype=torch.int8, device="cuda").zero_()
    started.record()
    run()
    ended.record()
    torch.cuda.synchronize()
    return started.elapsed_time(ended) / 1000


def ratios(seconds: Dict[str, List[float]], baseline: str) -> Dict[str, Row]:
    """Each contestant's median time, and the median and quartiles of its ratio to the baseline in the same round."""
    rows = {}
    for name, times in seconds.items():
        ratio = [one / other for one, other in zip(times, seconds[baseline])]
        low, middle, high = statistics.quantiles(ratio, n=4) if len(ratio) > 1 else 3 * ratio
        rows[name] = {
            "milliseconds": round(1000 * statistics.median(times), 3),
            "ratio": round(middle, 3),
            "ratio_first_quartile": round(low, 3),
            "ratio_third_quartile": round(high, 3),
            "rounds": len(times),
        }
    return rows


def as_speed(row: Row, tokens: int) -> Row:
    """A row of `ratios` with tokens per second in place of the time of so many, and ratios of these."""
    return {
        "tokens_per_second": round(1000 * tokens / row["milliseconds"]),
        "ratio": round(1 / row["ratio"], 3),
        "ratio_first_quartile": round(1 / row["ratio_third_quartile"], 3),
        "ratio_third_quartile": round(1 / row["ratio_first_quartile"], 3),
        "rounds": row["rounds"],
    }


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """The peak memory of the tensors made during the run, its result included (bytes)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    del result
    taken = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=_started):
        if event.name() == "[memory]":
            taken += event.nbytes()
            most = max(most, taken)
    return most


def _started(event) -> float:
    return event.start_ns() if hasattr(event, "start_ns") else event.start_us()  # PyTorch 2.0


def machine(device: str) -> str:
    """The machine in words, for the heading of a table."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{platform.machine()} CPU, {torch.get_num_threads()} threads of {os.cpu_count()}"
    return f"{name}; {platform.system()}, Python {platform.python_version()}, PyTorch {torch.__version__}"


@contextlib.contextmanager
def line_by_line(output: Path, columns: Sequence[str]) -> Iterator[Callable[..., None]]:
    """add(**row) prints a row and writes it to the CSV at once, so that nothing is lost with what comes after it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()

        def add(**row: Any) -> None:
            writer.writerow(row)
            file.flush()
            print("  ".join(str(row[column]) for column in columns if row.get(column, "") != ""), flush=True)

        yield add


def report(title: str, rows: List[Row], output: Path) -> None:
    """Prints the rows as a Markdown table and writes them as CSV."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[column]) for column in columns] for row in rows)]
    print(f"\n{title}\n", *("| " + " | ".join(line) + " |" for line in lines), sep="\n", flush=True)
    write(rows, output)


def write(rows: List[Row], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
