"""What holds for any text of the grammar and for any shape, looked for by Hypothesis."""

import math
import tracemalloc
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import causal_attention, reference_attention

from wavepos_fairseq import attention
from wavepos_fairseq.positions import build_position, position_class, position_names
from wavepos_fairseq.wavelets import parse_numbers

exhaustive = settings(deadline=None, derandomize=True, max_examples=200)
few = settings(deadline=None, derandomize=True, max_examples=60)

# The grammar of scales and shifts: a text and the Fractions that it spells, built side by side

whole = st.integers(0, 10**6)
decimal = st.builds("{}.{}".format, whole, st.from_regex(r"[0-9]{1,6}", fullmatch=True))
base = st.one_of(st.integers(0, 12).map(str), st.builds("{}.{}".format, st.integers(0, 3), st.integers(0, 99)))


@st.composite
def items(draw):
    form = draw(st.sampled_from(["number", "power", "range", "powers", "repetition"]))
    first, count, root = draw(whole), draw(st.integers(1, 30)), draw(base)
    if form == "number":
        text = draw(st.one_of(whole.map(str), decimal))
        return text, [Fraction(text)]
    if form == "range":
        return f"{first}..{first + count - 1}", [Fraction(first + step) for step in range(count)]
    exponent = draw(st.integers(0, 40))
    power = Fraction(root) ** exponent
    if form == "power":
        return f"{root}^{exponent}", [power]
    if form == "powers":
        return f"{root}^{exponent}..{root}^{exponent + count - 1}", [power * Fraction(root) ** n for n in range(count)]
    return f"{root}^{exponent}*{count}", [power] * count


@exhaustive
@given(st.lists(items(), min_size=1, max_size=5), st.sampled_from([",", ", ", " ,"]))
def test_numbers_are_those_of_the_text_spelled_out_in_fractions(spelled, comma):
    numbers = parse_numbers(comma.join(text for text, _ in spelled), "wavelet_scales")
    exact = [number for _, part in spelled for number in part]
    assert len(numbers) == len(exact)
    assert all(math.isclose(one, float(other), rel_tol=1e-14) for one, other in zip(numbers, exact))


@exhaustive
@given(st.lists(st.integers(0, 2**1000) | st.floats(0, 1e300).map(Fraction).map(lambda f: round(f, 6)), min_size=1))
def test_numbers_written_down_are_read_back(numbers):
    text = ",".join(str(n) if n == int(n) else f"{int(n)}.{int(n % 1 * 10**6):06}" for n in numbers)
    assert parse_numbers(text, "wavelet_shifts") == [float(n) for n in numbers]


@exhaustive
@given(st.text("0123456789^^**..,, -e\u0661\u00b2", max_size=24) | st.text(max_size=24))
def test_any_text_is_finite_numbers_or_refused_with_the_text_and_an_example(text):
    try:
        numbers = parse_numbers(text, "wavelet_scales")
    except ValueError as error:
        assert str(error).startswith(f"wavelet_scales={text!r}: ") and "ranges (0..15)" in str(error)
    else:
        assert 0 < len(numbers) <= 65536 and all(math.isfinite(number) and number >= 0 for number in numbers)


@pytest.mark.parametrize(
    "text",
    ["0..10^12", "0..1000000000000", "2^0*10^9", "2^0*999999999", "2^10000", "0^0..0^999999999", "2^0..2^999999999"]
    + ["1*65536," * 1000 + "1", "9" * 100000, "1." + "9" * 100000 + "^999999999", "1" * 308 + "..1" + "1" * 307 + "2"],
)
def test_a_text_that_asks_for_too_much_is_refused_in_little_memory(text):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="^wavelet_scales=.*accepted are numbers separated by commas"):
            parse_numbers(text, "wavelet_scales")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


# Shapes

TURNING = {name for name in position_names() if position_class(name).overrides("rotate_query", "rotate_key")}  # slot R
GATED = {name for name in position_names() if position_class(name).overrides("gates")}  # slot c


def positions(head_dim, num_heads):
    """A representation for such heads, what it learns drawn at random."""

    def build(name):
        reads_scales = "wavelet" in name.split("+")
        scales = {"wavelet_scales": f"2^0..2^{head_dim - 1}", "wavelet_shifts": "1"} if reads_scales else {}
        position = build_position(name, head_dim=head_dim, num_heads=num_heads, **scales).double()
        for parameter in position.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return position

    of_even_width = TURNING - {"transformer-xl"}
    alone = st.sampled_from([n for n in position_names() if head_dim % 2 == 0 or n not in of_even_width])
    parts = st.sets(alone, min_size=2, max_size=3).filter(fit_together).map(sorted)
    return (alone | parts.map("+".join)).map(build)


def fit_together(names):
    return len(names & TURNING) <= 1 and len(names & GATED) <= 1


@few
@given(st.data())
def test_attention_of_any_shape_is_the_definition(data):
    batch, num_heads, head_dim = (data.draw(st.integers(1, most)) for most in (3, 5, 40))
    num_key_heads = data.draw(st.sampled_from([n for n in range(1, num_heads + 1) if num_heads % n == 0]))
    num_keys = data.draw(st.integers(1, 150))
    num_queries = data.draw(st.integers(1, num_keys))
    position = data.draw(positions(head_dim, num_heads))
    torch.manual_seed(num_keys)
    query = torch.randn(batch, num_heads, num_queries, head_dim).double()
    key, value = torch.randn(2, batch, num_key_heads, num_keys, head_dim).double()
    several, runs = data.draw(st.integers(0, 4)), data.draw(st.booleans())
    segments = torch.randint(several, (batch, num_keys)) if several else None
    segments = segments.sort().values if several and runs else segments
    with torch.no_grad():
        fast, exact = (
            attend(query, key, value, position, segments=segments) for attend in (causal_attention, reference_attention)
        )
    torch.testing.assert_close(fast, exact, rtol=0, atol=1e-10)


shapes = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(7, 8))
unlike = st.tuples(shapes, shapes, shapes) | st.tuples(*3 * [st.lists(st.integers(1, 3), max_size=5).map(tuple)])


@exhaustive
@given(unlike)
def test_shapes_either_fit_or_are_refused_in_words(three):
    query, key, value = three
    position = build_position("alibi", head_dim=8, num_heads=2)
    fit = len(query) == len(key) == 4 and key == value and key[0] == query[0] and key[3] == query[3]
    fit = fit and query[1] % key[1] == 0 and query[2] <= key[2]
    for attend in (attention.causal_attention, attention.reference_attention):
        if fit and query[1] == 2 and query[3] == 8:
            assert attend(*map(torch.ones, three), position).shape == query
        else:
            with pytest.raises(ValueError, match="do not fit|queries are the last positions"):
                attend(*map(torch.ones, three), position)
