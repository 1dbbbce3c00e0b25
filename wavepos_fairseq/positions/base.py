"""The one formula's slots, and the registry of what fills them.

    score[m, n] = ( R_m(q_m) . R_n(k_n)  +  q_m . p(t) ) / sqrt(d)  +  b_h(t),      t = m - n >= 0

A representation is a `Position` that overrides one slot or more; `attention` knows nothing else of it. It lives in a
file of its own in this folder, which is imported without being named anywhere. What its constructor takes beyond
`head_dim` and `num_heads` becomes an option of the fairseq model: write it as ``Annotated[type, "help"] = default``.
"""

import functools
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Type

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from typing_extensions import get_type_hints  # Python 3.8's typing drops what Annotated says


class Position(nn.Module):
    """All slots left empty; S is the number of keys, L <= S of queries, which are the last L positions.

    head_dim: width d of a head. num_heads: number H of heads.
    """

    adds_to_embedding = False
    """Whether the positions are added to the token embeddings, which is the model's work and no slot of attention."""

    def __init__(self, head_dim: int, num_heads: int):
        super().__init__()
        self.head_dim = head_dim
        self.num_heads = num_heads

    def rotate(self, query: Tensor, key: Tensor) -> Tuple[Tensor, Tensor]:
        """R: what enters the product of query (B, H, L, d) and key (B, H, S, d), in the same shapes."""
        return query, key

    def relative(self, num_lags: int, like: Tensor) -> Optional[Tensor]:
        """p: vectors for the lags 0 .. num_lags - 1: (num_lags, d), dtype and device as `like`.

        (H, num_lags, d) where the heads differ.
        """
        return None

    def relative_query(self, query: Tensor) -> Tensor:
        """What q_m is in its product with p: the query (B, H, L, d), with whatever is added to it there."""
        return query

    def factors(self, num_lags: int, like: Tensor) -> Optional[Tuple[Optional[Tensor], Tensor]]:
        """p as a product, q . p(t) = (q C) . V_t: C (d, r), or None for the identity, and V (T, r) or (H, T, r).

        T <= num_lags; at lags of T and more p is zero. What is the same at all lags may be left out of p: it adds the
        same to all of a query's scores, and softmax does not see it. All this holds to the rounding of `like`.
        """
        relative = self.relative(num_lags, like)
        return None if relative is None else (None, relative)

    def bias(self, num_lags: int, like: Tensor) -> Optional[Tensor]:
        """b: biases for the lags 0 .. num_lags - 1: (H, num_lags), dtype and device as `like`."""
        return None


class FixedRelativePosition(Position):
    """Slot p with nothing learned: a table that is computed in fp64 and rounded, once for all layers.

    table: a function, and arguments that it takes before num_lags; it gives fp64 (num_lags, d).
    """

    table: Tuple[Callable[..., Tensor], Tuple]

    def relative(self, num_lags: int, like: Tensor) -> Tensor:
        return cached_table(num_lags, *self.table, like.dtype, like.device)

    def factors(self, num_lags: int, like: Tensor) -> Tuple[Tensor, Tensor]:
        """C and V of the table's rank, to an error |p(t) - C V_t| <= eps max_t |p(t)| at every lag (see `low_rank`)."""
        return cached_factors(num_lags, *self.table, like.dtype, like.device)


class Option(NamedTuple):
    """An option of one representation or more, as read from a constructor."""

    type: type
    default: Any
    help: str
    readers: List[str]


_REGISTRY: Dict[str, Type[Position]] = {}


def register_position(name: str) -> Callable[[Type[Position]], Type[Position]]:
    """Class decorator: makes the class available as ``--position-encoding name``."""

    def register(cls: Type[Position]) -> Type[Position]:
        if name in _REGISTRY:
            raise ValueError(f"position encoding {name!r} is registered twice")
        _REGISTRY[name] = cls
        return cls

    return register


def position_names() -> List[str]:
    """The names of all representations."""
    return sorted(_REGISTRY)


def position_class(name: str) -> Type[Position]:
    """The class registered as `name`; ValueError where there is none."""
    if name not in _REGISTRY:
        raise ValueError(f"--position-encoding {name!r} is unknown; accepted are {', '.join(position_names())}")
    return _REGISTRY[name]


def position_options() -> Dict[str, Option]:
    """The options of all representations by name (``rope_theta``)."""
    options: Dict[str, Option] = {}
    for name in position_names():
        for option, declared in _constructor_options(_REGISTRY[name]).items():
            options.setdefault(option, declared).readers.append(name)
    return options


def _constructor_options(cls: Type[Position]) -> Dict[str, Option]:
    hints = get_type_hints(cls.__init__, include_extras=True)
    parameters = inspect.signature(cls.__init__).parameters
    return {
        name: Option(hint.__origin__, parameters[name].default, hint.__metadata__[0], [])
        for name, hint in hints.items()
        if hasattr(hint, "__metadata__")
    }


def build_position(name: str, *, head_dim: int, num_heads: int, **options: Any) -> Position:
    """The representation `name` for heads of width `head_dim`; an option that is None is left at its default.

    Raises ValueError for an unknown name, for options that this representation does not read, and for bad values.
    """
    cls = position_class(name)
    given = {option: value for option, value in options.items() if value is not None}
    accepted = _constructor_options(cls)
    for option in given:
        if option not in accepted:
            known = position_options().get(option)
            readers = f"; it is read by {', '.join(known.readers)}" if known else ""
            raise ValueError(f"{flag(option)} is given, but --position-encoding {name} does not read it{readers}")
    return cls(head_dim, num_heads, **given)


def is_traced() -> bool:
    """Whether PyTorch records or only imagines what is computed, so that no tensor can be asked for its numbers.

    So it is under torch.jit.trace, torch.export, torch.onnx.export, make_fx and FakeTensorMode, not in torch.compile.
    """
    if compiler_says("is_dynamo_compiling"):
        return compiler_says("is_exporting")
    recording = (FakeTensorMode, ProxyTorchDispatchMode)
    return torch.jit.is_tracing() or any(isinstance(mode, recording) for mode in _get_current_dispatch_mode_stack())


def compiler_says(question: str) -> bool:
    """The answer of torch.compiler's function of that name; False where PyTorch, as before 2.2, does not have it."""
    return getattr(getattr(torch, "compiler", None), question, bool)()


def without_modes(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a thread of its own, which none of the caller's modes reaches.

    Tensors made there are plain ones, on the CPU unless they say otherwise, whatever default device, inference mode,
    dispatch mode or transform of torch.func is on here: what is kept between calls is made so.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result()


def cached_rows(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: function(num_rows, ...) keeps what it computed, for all layers and models and for growing sequences.

    It is asked for the next power of two rows and cut to those wanted. Traced, it is called as it is: nothing is kept,
    and the number of rows may be a symbol.
    """

    @functools.lru_cache(maxsize=16)
    def compute(num_rows: int, *arguments: Any) -> Tensor:
        return without_modes(function, num_rows, *arguments)

    @functools.wraps(function)
    def first_rows(num_rows: int, *arguments: Any) -> Tensor:
        if is_traced():
            return function(num_rows, *arguments)
        return compute(power_of_two(num_rows), *arguments)[:num_rows]

    return first_rows


def power_of_two(number: int) -> int:
    """The next one, or the number itself: lengths that tables are made for."""
    return 1 << (number - 1).bit_length()


@cached_rows
def cached_table(
    num_lags: int, table: Callable[..., Tensor], arguments: Tuple, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """table(*arguments, num_lags), rounded from fp64: (num_lags, d)."""
    return table(*arguments, num_lags).to(device, dtype)


def cached_factors(
    num_lags: int, table: Callable[..., Tensor], arguments: Tuple, dtype: torch.dtype, device: torch.device
) -> Tuple[Tensor, Tensor]:
    """`low_rank` of table(*arguments, num_lags), to the rounding of dtype: C (d, r) and V (T, r)."""
    projection, rows = _factors(power_of_two(num_lags), table, arguments, dtype, device)
    return projection, rows[:num_lags]


@functools.lru_cache(maxsize=16)
def _factors(
    num_lags: int, table: Callable[..., Tensor], arguments: Tuple, dtype: torch.dtype, device: torch.device
) -> Tuple[Tensor, Tensor]:
    def compute() -> Tuple[Tensor, Tensor]:
        projection, rows = low_rank(table(*arguments, num_lags), torch.finfo(dtype).eps)
        return projection.to(device, dtype), rows.to(device, dtype)

    return without_modes(compute)


def low_rank(table: Tensor, eps: float) -> Tuple[Tensor, Tensor]:
    """Columns C (d, r), and the rows V (T, r) as far as they reach, that are `table` to a relative eps.

    table: fp64 (num_lags, d). At every lag t the length of table_t - C V_t, or of table_t where t >= T, is at most eps
    times the longest row. A query's product with it errs then by no more than the rounding of the longest row does.
    r and T are the least numbers that will do, and up to 7 more: products with multiples of 8 are faster. Both are 0
    for a table of zeros.
    """
    length = table.norm(dim=1)
    bound = eps * length.max()
    far = (length > bound).nonzero().flatten()
    if not len(far):
        return table.new_zeros(table.size(1), 0), table.new_zeros(0, 0)
    reach = _eights(1 + int(far[-1]))
    left, values, right = torch.linalg.svd(table[:reach], full_matrices=False)
    left_out = (left * values).square().flip(1).cumsum(1).flip(1)  # [t, r]: what the columns from r on add at t
    rank = _eights(int((left_out.amax(0) > bound**2).sum()))
    root = values[:rank].sqrt()
    return right[:rank].T * root, left[:, :rank] * root


def _eights(number: int) -> int:
    return -(-number // 8) * 8


def flag(option: str) -> str:
    """``rope_theta`` as it is typed: ``--rope-theta``."""
    return "--" + option.replace("_", "-")
