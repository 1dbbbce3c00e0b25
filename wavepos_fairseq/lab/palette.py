"""Each curve's colour, dash and marker, by its name, the same in every figure, page and plot.

The colours are Okabe and Ito's, without those that are invisible on white or on black. Curves also differ without
colour.
"""

from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Tuple, TypeVar

from .configs import load_table

COLOURS = ("#8C8C8C", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#0072B2")
DASHES = ((10, 3, 1, 3), (6, 2), (6, 2, 1, 2), (1.5, 1.5), (3, 1, 1, 1, 1, 1), (10, 3), ())  # lengths on, off, on ...
MARKERS = ("", "square", "triangle", "diamond")  # of the first seven curves, the next seven ...


Item = TypeVar("Item")


class Look(NamedTuple):
    """A curve's look; `marker` is a name from MARKERS."""

    colour: str
    dash: Tuple[float, ...]
    marker: str


def methods() -> Dict[str, str]:
    """Table 1's rows: names in figures by row name."""
    return {row.name: row.labels["method"] for row in load_table("table1")[1]}


def names_of_rows(rows: Iterable[str]) -> Dict[str, str]:
    """Names in figures by row name: Table 1's if all rows are there, otherwise those of the combinations first."""
    if methods().keys() >= set(rows):
        return methods()
    labels = {row.name: row.labels.values() for row in load_table("combinations")[1]}
    return {**methods(), **{row: " + ".join(label for label in of if label != "-") for row, of in labels.items()}}


def in_order(items: Iterable[Item], key: Callable[[Item], Tuple[Any, ...]]) -> List[Item]:
    """The items by their keys, which are a row's name and numbers: Table 1's rows first, then by the numbers."""
    places = {row: place for place, row in enumerate(methods())}
    return sorted(items, key=lambda item: (places.get(key(item)[0], len(places)), *key(item)))


def looks(names: Iterable[str]) -> Dict[str, Look]:
    """Each name's look. Up to 28 names differ in any two of colour, dash and marker."""
    return {
        name: Look(COLOURS[number % 7], DASHES[(number + number // 7) % 7], MARKERS[number // 7 % 4])
        for number, name in enumerate(dict.fromkeys(names))
    }


def looks_of_methods(others: Iterable[str] = ()) -> Dict[str, Look]:
    """The looks of Table 1's methods, which do not depend on the others."""
    return looks([*methods().values(), *others])
