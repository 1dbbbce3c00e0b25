"""Checks and times the Triton kernel beside PyTorch's flash attention without position.

    python benchmarks/kernel.py errors [--dry-run]    errors against fp64 of the output and of every gradient
    python benchmarks/kernel.py speed [--dry-run]     time over flash attention's, after a search of tiles

On one GPU, within --seconds: what does not fit is left out, and said. `--dry-run` is small, and on the CPU, where the
kernel needs Triton's interpreter (TRITON_INTERPRET=1).

In `speed` the two of a line take turns. A ratio is of one round; its median and quartiles are shown. "mask" is
PyTorch's attention with the position's score as its mask: for slot b the mask is ready beforehand and gets no gradient,
for slot p it is made with torch.scatter (A.6, tip 2).
"""

import contextlib
import copy
import functools
import multiprocessing
import sys
import time
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from attention import alibi_mask, flex_attention_of, masked_attention, scatter_attention, with_position
from measure import LEFT_OUT, RESULTS, by_turns, line_by_line, machine, ratios

from wavepos_fairseq.attention import causal_attention, reference_attention
from wavepos_fairseq.attention import triton as kernel
from wavepos_fairseq.common import commands
from wavepos_fairseq.common.errors import first_line
from wavepos_fairseq.positions import build_position, position_names

SHAPE = ("card", "dtype", "heads", "head_dim", "length")
ERRORS = (*SHAPE, "position", "tensor", "error", "largest_error", "flash_error", "flash_largest_error", "note")
SPEED = (*SHAPE, "batch", "position", "mode", "attention", "tiles", "milliseconds", "ratio", "ratio_first_quartile")
SPEED += ("ratio_third_quartile", "rounds", "note")
FLASH, AS_CHOSEN = "flash", "PyTorch's choice"
MODES = ("forward", "forward + backward")
LENGTHS = [4096, 512, 16384, 1024, 32768, 2048, 8192]  # the most telling first
ALIKE = {
    "alibi": ["t5"],
    "wavelet": ["trans-xl"],
}  # slots b and p: what tiles are searched with, and others
OTHERS = ("mask", "blockwise", "FlexAttention")
TILES = [(64, 4, 2), (64, 4, 1), (64, 8, 2), (32, 4, 2), (128, 8, 1), (64, 8, 1), (64, 4, 3), (32, 4, 3), (128, 8, 2)]
TILES += [(128, 4, 1)]  # queries and keys of a tile, warps, stages


def flash_attention(query, key, value):
    """PyTorch's flash attention without position; in fp32 and on a CPU, whatever PyTorch has instead."""
    backend = contextlib.nullcontext()
    if query.is_cuda and query.dtype != torch.float32:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backend = sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    with backend:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def draw(name, dtype, device, batch, heads, length, head_dim):
    """query, key, value, the output's gradient, and the position; what it learns is drawn, too."""
    torch.manual_seed(0)
    tensors = torch.randn(4, batch, heads, length, head_dim, device=device).to(dtype).unbind()
    position = build_position(name, head_dim=head_dim, num_heads=heads).to(device)
    for parameter in position.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return [*tensors, position.to(dtype)]


def described(error):
    """An error in one line, for a row's note."""
    return f"{type(error).__name__}: {first_line(error)}"[:200]


def attempt(function, task):
    """function(task), or the error in words: some errors of compilers do not travel between processes."""
    try:
        return function(task)
    except Exception as error:
        return described(error)


def side_by_side(function, tasks, device, ends):
    """(task, its result or an error in words), in order; on a GPU each task has a process, which may break it.

    Compiling a kernel takes seconds of one core, and a machine with a GPU has many. The main process finds what was
    compiled in Triton's cache.
    """
    workers, alone = (12, 1) if device == "cuda" else (1, None)
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=alone) as pool:
        results = [pool.apply_async(attempt, (function, task)) for task in tasks]
        for task, result in zip(tasks, results):
            try:
                yield task, result.get(max(0, ends - time.monotonic()))
            except multiprocessing.TimeoutError:
                yield task, LEFT_OUT


# Errors


def values_and_gradients(attend, query, key, value, gradient, learned=()):
    """In fp64 and by name; learned: named parameters."""
    leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    output = attend(*leaves)
    names = ("output", "d_query", "d_key", "d_value", *(f"d_{name}" for name, _ in learned))
    gradients = torch.autograd.grad(output, [*leaves, *(parameter for _, parameter in learned)], gradient)
    return {name: tensor.detach().double() for name, tensor in zip(names, (output, *gradients))}


def relative_errors(found, exact):
    """By name: the norm of the difference over the norm, and the largest difference over the largest magnitude."""
    differences = {name: found[name] - exact[name] for name in found}
    return {
        name: [
            f"{(difference.norm() / exact[name].norm()).item():.3e}",
            f"{(difference.abs().max() / exact[name].abs().max()).item():.3e}",
        ]
        for name, difference in differences.items()
    }


def errors_of(task):
    """The rows of one position in one dtype: (tensor, its two errors, flash attention's two errors)."""
    device, dtype, heads, head_dim, length, name = task
    *tensors, position = draw(name, getattr(torch, dtype), device, 1, heads, length, head_dim)
    exactly, in_fp64 = copy.deepcopy(position).double(), [tensor.double() for tensor in tensors]
    ours = with_position(causal_attention, position, implementation="triton")
    definition = with_position(reference_attention, exactly)
    errors = relative_errors(
        values_and_gradients(ours, *tensors, learned=list(position.named_parameters())),
        values_and_gradients(definition, *in_fp64, learned=list(exactly.named_parameters())),
    )
    nope = build_position("nope", head_dim=head_dim, num_heads=heads)
    plain = with_position(reference_attention, nope)
    beside = relative_errors(values_and_gradients(flash_attention, *tensors), values_and_gradients(plain, *in_fp64))
    return [(tensor, *of, *beside.get(tensor, ["", ""])) for tensor, of in errors.items()]


def write_errors(args):
    """Returns 1 if a position has no errors, because it failed."""
    if args.dry_run:
        tasks = [("cpu", "float32", 2, 16, 40, name) for name in ("wavelet", "t5")]
        tasks.append(("cpu", "bfloat16", 2, 16, 40, "wavelet"))
    else:
        tasks = [
            ("cuda", dtype, 4, head_dim, 500, name)
            for dtype in ("bfloat16", "float16", "float32")
            for head_dim in (128, 64)
            for name in position_names()
        ]
    failed = 0
    with line_by_line(args.output or RESULTS / f"kernel-errors-{args.device}.csv", ERRORS) as add:
        for task, found in side_by_side(errors_of, tasks, args.device, args.ends):
            _, dtype, heads, head_dim, length, name = task
            of = dict(card=args.card, dtype=dtype, heads=heads, head_dim=head_dim, length=length, position=name)
            if isinstance(found, str):
                failed += 1
                add(**of, note=found)
            else:
                for values in found:
                    add(**of, **dict(zip(ERRORS[len(SHAPE) + 1 :], values)))
    return int(failed > 0)


# Speed


def attention_of(implementation, position, length, like):
    """attention(query, key, value) with the position."""
    if implementation == AS_CHOSEN:
        return functools.partial(F.scaled_dot_product_attention, is_causal=True)
    if implementation == "FlexAttention":
        return flex_attention_of(position, length, like)
    if implementation != "mask":
        return with_position(causal_attention, position, implementation=implementation)
    if position.bias(1, like=like) is None:
        return functools.partial(scatter_attention, position=position)
    with torch.no_grad():
        return functools.partial(masked_attention, mask=alibi_mask(position, length, like))


def refuse_wrong_tiles(task):
    """Compiles the kernels with these tiles; raises ValueError if their numbers differ from the blockwise path's."""
    device, dtype, heads, head_dim, length, name, tiles = task
    *tensors, position = draw(name, getattr(torch, dtype), device, 1, heads, length, head_dim)
    ways = [with_position(causal_attention, position, implementation=of) for of in ("triton", "blockwise")]
    with mock.patch.object(kernel, "block_sizes", lambda *_: tiles):
        found = values_and_gradients(ways[0], *tensors)
    for tensor, (error, _) in relative_errors(found, values_and_gradients(ways[1], *tensors)).items():
        if not float(error) < (1e-4 if dtype == "float32" else 3e-2):
            raise ValueError(f"{tensor} is wrong by {error}")


class Speed:
    """Measures until args.ends, a line each; then what is left out has a line, too."""

    def __init__(self, add, args):
        self.add, self.args, self.measured = add, args, 0
        self.drawn = None, None  # for what, and the tensors with the position

    def measure(self, heads, head_dim, length, name, mode, attention, tiles=None):
        """The ratio to flash attention's time, infinity if there is none, and the kernel's tiles.

        attention: one of OTHERS, AS_CHOSEN or "triton". tiles: by default those of `kernel.block_sizes`.
        """
        args, batch, used = self.args, max(1, self.args.tokens // length), []
        row = {"card": args.card, "dtype": args.dtype, "heads": heads, "head_dim": head_dim, "length": length}
        row.update(batch=batch, position=name, mode=mode, attention=attention)
        default = kernel.block_sizes

        def block_sizes(*of):
            used.append(tiles or default(*of))
            return used[-1]

        try:
            if time.monotonic() > args.ends:
                raise TimeoutError(LEFT_OUT)
            with mock.patch.object(kernel, "block_sizes", block_sizes):
                row.update(self.compare(heads, head_dim, length, batch, name, mode, attention))
            self.measured += 1
        except Exception as error:  # of memory, or of a compiler
            row["note"] = described(error)
        if "note" in row and args.device == "cuda":
            self.drawn = None, None
            torch.cuda.empty_cache()
        tiles = used[-1] if used else tiles
        self.add(**row, tiles=" ".join(map(str, tiles or ())))
        return row.get("ratio", float("inf")), tiles

    def compare(self, heads, head_dim, length, batch, name, mode, attention):
        """The columns of one attention beside flash attention, by turns."""
        args, of = self.args, (name, getattr(torch, self.args.dtype), self.args.device, batch, heads, length, head_dim)
        if self.drawn[0] != of:
            self.drawn = None, None  # the last ones' memory is free before the next are drawn
            self.drawn = of, draw(*of)
        query, key, value, gradient, position = self.drawn[1]

        def step(attend):
            if mode == "forward":
                with torch.no_grad():
                    return attend(query, key, value)
            attend(*(tensor.detach().requires_grad_() for tensor in (query, key, value))).backward(gradient)

        attend = attention_of(attention, position, length, query)
        runs = {FLASH: functools.partial(step, flash_attention), attention: functools.partial(step, attend)}
        seconds = by_turns(runs, 1, args.device)  # after a round in which kernels are compiled
        rounds = max(args.least_rounds, min(25, int(0.4 / sum(one for (one,) in seconds.values()))))
        return ratios(by_turns(runs, rounds, args.device), FLASH)[attention]


def best_tiles(speed, shapes, length, candidates, args):
    """The kernel's fastest tiles that are right, by (heads, head_dim, position, mode)."""
    tasks = [
        (args.device, args.dtype, *shape, length, name, tiles)
        for tiles in candidates
        for shape in shapes
        for name in ALIKE
    ]
    ends = time.monotonic() + 0.4 * (args.ends - time.monotonic())
    checked = list(side_by_side(refuse_wrong_tiles, tasks, args.device, ends))  # nothing is timed beside other work
    found = {}
    for (_, _, heads, head_dim, _, name, tiles), wrong in sorted(checked, key=lambda of: of[0][2:6]):
        for mode in MODES if not wrong else ():
            ratio, _ = speed.measure(heads, head_dim, length, name, mode, "triton", tiles)
            found.setdefault((heads, head_dim, name, mode), []).append((ratio, tiles))
        if wrong:
            row = {"card": args.card, "dtype": args.dtype, "heads": heads, "head_dim": head_dim, "length": length}
            speed.add(**row, position=name, attention="triton", tiles=" ".join(map(str, tiles)), note=wrong)
    return {of: min(measured)[1] for of, measured in found.items() if min(measured)[0] < float("inf")}


def write_speed(args):
    """Returns 1 if nothing was measured."""
    if args.dry_run:
        shapes, lengths, candidates, alike = [(2, 16)], [32], [(32, 8, 1), (16, 4, 1)], {"alibi": ["t5"], "wavelet": []}
        args.tokens, args.dtype, args.least_rounds = 32, "float32", 1
    else:
        shapes, lengths, candidates, alike = [(8, 128), (32, 64)], LENGTHS, TILES, ALIKE
        args.tokens, args.dtype, args.least_rounds = 2**16, "bfloat16", 3
    with line_by_line(args.output or RESULTS / f"kernel-speed-{args.device}.csv", SPEED) as add:
        speed = Speed(add, args)
        best = best_tiles(speed, shapes, lengths[0], candidates, args)
        cells = [(*shape, length) for length in lengths for shape in shapes]
        for cell in cells:
            for mode in MODES:
                speed.measure(*cell, "nope", mode, AS_CHOSEN)
                for searched, others in alike.items():
                    for name in (searched, *others):
                        _, default = speed.measure(*cell, name, mode, "triton")
                        tiles = best.get((*cell[:2], searched, mode))
                        if tiles not in (None, default):
                            speed.measure(*cell, name, mode, "triton", tiles)
        for cell in cells:
            for searched, others in alike.items():
                for name in (searched, *others):
                    for attention in OTHERS:
                        for mode in MODES:
                            speed.measure(*cell, name, mode, attention)
        return int(not speed.measured)


def main():
    parser = commands.parser(__doc__)
    parser.add_argument("what", choices=("errors", "speed"))
    parser.add_argument("--seconds", type=commands.parse_count, default=400, help="for all (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="small, on the CPU")
    parser.add_argument("--output", type=Path, help="CSV (default: results/benchmarks/kernel-WHAT-DEVICE.csv)")
    args = parser.parse_args()
    args.device, args.ends = "cpu" if args.dry_run else "cuda", time.monotonic() + args.seconds
    if args.device == "cuda" and not torch.cuda.is_available():
        why = "PyTorch sees no GPU; accepted without one is --dry-run"
    else:
        why = kernel.why_unsupported(torch.empty(1, 1, 16, device=args.device))
    if why:
        print(f"error: {why}", file=sys.stderr)
        return 2
    args.card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(machine(args.device), flush=True)
    return {"errors": write_errors, "speed": write_speed}[args.what](args)


if __name__ == "__main__":
    sys.exit(main())
