"""Turns a grid of wavelets, scales, shifts and directions into the rows of a table."""

import contextlib
import hashlib
import itertools
import math
from dataclasses import replace
from typing import Any, Dict, List, Tuple

from .configs import Row, load_table, names

MOST_RUNS = 10_000  # per call: checked within seconds; starting fairseq that often alone takes a core most of a day

AXES = {
    "wavelet": "wavelet",
    "scales": "wavelet_scales",
    "shifts": "wavelet_shifts",
    "direction": "wavelet_shift_direction",
    "position": "name",
}
"""The axes of a grid, and what each varies of a row's position."""
EXAMPLES = {
    "wavelet": "ricker db4",
    "scales": "2^0..2^7 1,2,4,8",
    "shifts": "0..7",
    "direction": "past future scaled",
    "position": "wavelet wavelet+alibi",
}


def sweep_rows(grid: Dict[str, List[str]], head_dim: int) -> List[Row]:
    """A row for each combination of the grid's values. Its keys are those of AXES; other axes keep their default.

    Combinations that give the same wavelets are one row, and one that a table has is the table's run. Raises ValueError
    with all combinations that do not fit heads of this width.
    """
    refuse_too_many(" x ".join(f"{len(values)} {axis}" for axis, values in grid.items()), *map(len, grid.values()))
    combinations = list(itertools.product(*grid.values()))
    known = _rows_by_wavelets(head_dim)
    rows: Dict[Tuple, Row] = {}
    faulty = []
    for values in combinations:
        labels = dict(zip(grid, values))
        options = {AXES[axis]: value for axis, value in labels.items()}
        row = Row(_folder_of(labels), labels, {"name": "wavelet", **options})
        try:
            wavelets = _wavelets(row, head_dim)
        except ValueError as error:
            faulty.append(f"{' '.join(values)}: {_by_axes(str(error))}")
        else:
            rows.setdefault(wavelets, replace(known.get(wavelets, row), labels=labels))
    if faulty:
        raise ValueError("\n  ".join([f"{len(faulty)} of {len(combinations)} combinations do not fit", *faulty]))
    return list(rows.values())


def refuse_too_many(what: str, *counts: int) -> None:
    """Raises ValueError if the product of the counts exceeds MOST_RUNS."""
    if math.prod(counts) > MOST_RUNS:
        raise ValueError(f"{what} = {math.prod(counts):,}; accepted are at most {MOST_RUNS:,} runs in a call")


def _rows_by_wavelets(head_dim: int) -> Dict[Tuple, Row]:
    rows = {}
    for row in [row for table in names("tables") for row in load_table(table)[1]]:
        of_wavelets = "wavelet" in row.position["name"].split("+") and set(row.position) <= set(AXES.values())
        if of_wavelets and not (row.trained or row.train):
            with contextlib.suppress(ValueError):  # made for wider heads
                rows[_wavelets(row, head_dim)] = replace(row, evaluate={})
    return rows


def _wavelets(row: Row, head_dim: int) -> Tuple[Any, ...]:
    """Names, mother wavelet, scales, shifts and direction of a row. Raises ValueError if they do not fit the head."""
    from ..positions import build_position, position_parts  # here, because PyTorch takes a second to import
    from ..positions.wavelet import WaveletPosition

    options = {name: value for name, value in row.position.items() if name != "name"}
    position = build_position(row.position["name"], head_dim=head_dim, num_heads=1, **options)
    heads = [module.head for module in position.modules() if isinstance(module, WaveletPosition)]
    return (*position_parts(row.position["name"]), *heads)


def _by_axes(error: str) -> str:
    """The position's error, with the axes that the user gave in place of its options."""
    for axis, option in {**AXES, "position": "position_encoding"}.items():
        error = error.replace(f"{option}=", f"--{axis} ")
    return error


def _folder_of(labels: Dict[str, str]) -> str:
    """A run's name, made from the axes of its sweep: ``ricker_scales-2e0..2e7``."""
    parts = [value if axis == "wavelet" else f"{axis}-{value}" for axis, value in labels.items()]
    name = "_".join(parts).translate({ord("^"): "e", ord("*"): "x", ord(" "): None})
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
