"""The claims of wavepos_fairseq/attention/triton.py: on a GPU where there is one, else in the interpreter.

What fp16 and bf16 do on tensor cores, only a GPU shows: the interpreter computes bf16 in fp32.
"""

import functools
import importlib.util
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import LargestTensor, gated
from test_combined import PAIRS, THREE

from wavepos_fairseq.attention import causal_attention, reference_attention
from wavepos_fairseq.positions import build_position, position_names

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def patch_lang_tensor(tensor, scope, original=None):
    """Triton 3.6 takes int() of an array that holds one number, which NumPy 2.4 refuses."""
    original(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


with pytest.MonkeyPatch.context() as patch:  # read when Triton and the kernels are imported, which no other test does
    patch.setenv("TRITON_INTERPRET", "0" if DEVICE == "cuda" else "1")
    triton = pytest.importorskip("triton", "3.3", reason="Triton 3.3 is not installed")
    from wavepos_fairseq.attention import triton as kernel

    if DEVICE == "cpu":
        from triton.runtime import interpreter

        if not kernel._INTERPRETED or isinstance(triton.language.sum, triton.JITFunction):
            pytest.skip("Triton was imported before, without TRITON_INTERPRET=1", allow_module_level=True)
        if triton.__version__.startswith("3.6."):
            of = interpreter._patch_lang_tensor
            interpreter._patch_lang_tensor = functools.partial(patch_lang_tensor, original=of)
        kernel.triton_attention(*torch.ones(3, 1, 1, 16), None, None, None)  # the first launch imports more of Triton

triton_attention = kernel.triton_attention
NAMES = ("query", "key", "value", "projected_query", "basis", "bias", "key_bias")
BLOCK = kernel.block_sizes(64, 32, torch.float32)[0]  # 32


def formula(query, key, value, projected_query, basis, bias, key_bias, segments=None, dropout=1.0):
    """The module's formula, in whatever dtype; dropout (N, L, S) multiplies the weights."""
    (N, L, d), S = query.shape, key.size(1)
    key, value = (torch.stack([tensor[n * len(tensor) // N] for n in range(N)]) for tensor in (key, value))
    lag = torch.arange(S - L, S, device=query.device)[:, None] - torch.arange(S, device=query.device)  # (L, S)
    past = lag.clamp(min=0)
    score = torch.einsum("nid,njd->nij", query, key) / math.sqrt(d)
    if projected_query is not None:
        every_lag = F.pad(basis, (0, S - basis.size(2))).repeat(N // len(basis), 1, 1)  # (N, r, S)
        score = score + torch.einsum("nir,nrij->nij", projected_query, every_lag[:, :, past])
    if bias is not None:
        score = score + bias.repeat(N // len(bias), 1)[:, past]
    if key_bias is not None:
        score = score + key_bias[:, None]
    if segments is not None:
        of_head = segments.repeat_interleave(N // len(segments), dim=0)  # (N, S)
        score = score.masked_fill(of_head[:, S - L :, None] != of_head[:, None], -math.inf)
    return (score.masked_fill(lag < 0, -math.inf).softmax(-1) * dropout) @ value


def draw(L, S, d, r=0, T=None, G=1, biased=False, gated=False, N=2, H=2, M=None, dtype=torch.float32):
    """The tensors of NAMES, in numbers that dtype holds; query, key and value are not contiguous.

    The key_bias is fp64 and far from zero.
    """
    torch.manual_seed(L * S)
    tensors = [torch.randn(d, heads, rows).permute(1, 2, 0) for heads, rows in ((N, L), (M or N, S), (M or N, S))]
    tensors += [torch.randn(N, L, r) / 2, torch.randn(G, r, S if T is None else T) / 2] if r else [None, None]
    tensors.append(torch.randn(H, S) if biased else None)
    tensors = [None if tensor is None else tensor.to(DEVICE, dtype) for tensor in tensors]
    return [*tensors, 1e4 + torch.rand(N, S, dtype=torch.float64, device=DEVICE).cumsum(-1) if gated else None]


def value_and_gradients(attend, tensors, *arguments):
    """The output and the gradients of all tensors that are not None, in fp64 and by name."""
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in tensors]
    output = attend(*leaves, *arguments)
    torch.manual_seed(0)
    cotangent = torch.randn(output.shape).to(output)
    given = {name: leaf for name, leaf in zip(NAMES, leaves) if leaf is not None}
    gradients = torch.autograd.grad(output, list(given.values()), cotangent)
    return {"output": output.double(), **dict(zip(given, (gradient.double() for gradient in gradients)))}


def in_fp64(tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


def relative_errors(found, exact):
    """By name, of the largest magnitude, or of 1 if that is more: a weight near 1 has gradients that are near 0."""
    scale = {name: max(1.0, exact[name].abs().max().item()) for name in found}
    return {name: (found[name] - exact[name]).abs().max().item() / scale[name] for name in found}


def assert_is_the_formula(tensors, tolerance=1e-5, segments=None):
    found = value_and_gradients(triton_attention, tensors, segments)
    errors = relative_errors(found, value_and_gradients(formula, in_fp64(tensors), segments))
    assert max(errors.values()) <= tolerance, errors


SLOTS = {
    "none": {},
    "p": {"r": 25},
    "p of each head": {"r": 16, "G": 2},
    "b": {"biased": True},
    "p and b": {"r": 33, "biased": True},
    "p of each head and b": {"r": 16, "G": 2, "biased": True},
    "c": {"gated": True},
    "p, b and c": {"r": 20, "biased": True, "gated": True},
}


@pytest.mark.parametrize("N, L, S, d", [(4, 33, 33, 16), (2, 1, 70, 64), (2, 5, 40, 80)])
@pytest.mark.parametrize("slots", SLOTS)
def test_output_and_gradients_are_the_formulas(slots, N, L, S, d):
    assert_is_the_formula(draw(L, S, d, **SLOTS[slots], N=N))


def segments_of(S):
    """Of two sequences: packed, and in any order, with a segment 0, which is what rows beyond S have."""
    place = torch.arange(S, device=DEVICE)
    return torch.stack([(place + 7) // BLOCK, place * place % 3])


@pytest.mark.parametrize("L, S, M", [(33, 33, 4), (33, 33, 2), (5, 70, 1), (1, 70, 2)])
@pytest.mark.parametrize("slots", ["none", "p, b and c", "p of each head and b"])
def test_segments_are_kept_apart_and_keys_shared(slots, L, S, M):
    segments = segments_of(S)[: 1 if M == 1 else 2]
    H = 4 // len(segments)
    given = {**SLOTS[slots], "G": H if "each" in slots else 1}
    assert_is_the_formula(draw(L, S, 16, **given, N=4, H=H, M=M), segments=segments)


@pytest.mark.parametrize("S", [1, 2, 15, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1])
def test_a_sequence_may_end_anywhere_in_a_tile(S):
    assert_is_the_formula(draw(S, S, 16, r=20, biased=True))


@pytest.mark.parametrize("L, S", [(1, 1), (1, BLOCK), (1, BLOCK + 1), (2, 2 * BLOCK + 1), (BLOCK, 2 * BLOCK)])
def test_queries_may_be_the_last_of_the_keys(L, S):
    assert_is_the_formula(draw(L, S, 16, r=20, T=S - S // 3, biased=True))


@pytest.mark.parametrize("L, T", [(70, 1), (37, 17), (37, BLOCK - 1), (70, BLOCK), (37, BLOCK + 1), (37, 2 * BLOCK)])
def test_the_support_may_end_anywhere(L, T):
    assert_is_the_formula(draw(L, 70, 16, r=20, T=T))


@pytest.mark.parametrize("slots", SLOTS)
def test_a_broken_query_breaks_its_output_alone_and_a_broken_key_none_before_it(slots):
    tensors = draw(40, 40, 16, **SLOTS[slots])
    before = triton_attention(*tensors)
    for number, reached in enumerate((slice(17, 18), slice(17, None))):
        inputs = list(tensors)
        inputs[number] = tensors[number].clone()
        inputs[number][:, 17] = math.nan
        after = triton_attention(*inputs)
        assert after[:, reached].isnan().all()
        after[:, reached] = before[:, reached]
        torch.testing.assert_close(after, before)


def test_what_needs_no_gradient_gets_none():
    tensors = draw(40, 40, 16, r=20, biased=True, gated=True)
    query, *constants = tensors
    exact = value_and_gradients(formula, in_fp64(tensors))
    output = triton_attention(query.requires_grad_(), *constants)
    torch.manual_seed(0)
    output.backward(torch.randn(output.shape).to(output))
    assert all(tensor is None or tensor.grad is None for tensor in constants)
    assert relative_errors({"query": query.grad.double()}, {"query": exact["query"]})["query"] <= 1e-5


def plain_attention(query, key, value, scores_beside):
    lag = torch.arange(query.size(1), device=query.device)
    return F.scaled_dot_product_attention(query, key, value, scores_beside.masked_fill(lag > lag[:, None], -math.inf))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "L, d, slots", [(65, 64, "p"), (65, 64, "b"), (65, 64, "c"), (129, 128, "p of each head and b"), (65, 256, "p")]
)
def test_half_precision_errs_no_more_than_twice_as_plain_attention_does(L, d, slots, dtype):
    """... which is given the slots' scores, rounded, as a mask. These are the tiles of half precision: 64 a side."""
    tensors = draw(L, L, d, **SLOTS[slots], T=None, dtype=dtype)
    exact = value_and_gradients(formula, in_fp64(tensors))
    found = value_and_gradients(triton_attention, tensors)
    zero = torch.zeros_like(tensors[0]).double()
    identity = torch.eye(L, dtype=torch.float64, device=DEVICE).expand(2, L, L)
    beside = formula(zero, zero, identity, *in_fp64(tensors[3:])).clamp(min=1e-300).log().to(dtype)
    plain = relative_errors(
        value_and_gradients(lambda *qkv: plain_attention(*qkv[:3], beside), tensors[:3]), exact | {}
    )
    errors = relative_errors(found, exact)
    assert all(errors[name] <= 2 * max(plain.values()) for name in errors), (errors, plain)


# Dropout


@pytest.mark.parametrize("M, segments", [(4, None), (2, segments_of(70))])
def test_dropout_drops_a_weight_or_scales_it_and_the_gradients_are_of_the_same_weights(M, segments):
    L, S = 40, 70  # the values are the identity: the output is the weights
    tensors = draw(L, S, S, r=20, T=60, biased=True, N=4, M=M)
    weights = list(tensors)
    weights[2] = torch.eye(S, device=DEVICE).expand(M, S, S)
    whole, dropped = triton_attention(*weights, segments), triton_attention(*weights, segments, 0.3, 5)
    kept = dropped != 0
    torch.testing.assert_close(dropped, torch.where(kept, whole / 0.7, 0), rtol=1e-5, atol=1e-7)
    seen = torch.ones(L, S, dtype=torch.bool, device=DEVICE).tril(S - L).expand(4, -1, -1)
    if segments is not None:
        seen = seen & (segments[:, 30:, None] == segments[:, None]).repeat_interleave(2, dim=0)
    rate, draws = kept[seen].double().mean().item(), seen.sum().item()
    assert abs(rate - 0.7) < 5 * math.sqrt(0.3 * 0.7 / draws)
    assert not torch.equal(kept[0], kept[1])

    exact = value_and_gradients(lambda *given: formula(*given, segments, dropout=kept / 0.7), in_fp64(tensors))
    errors = relative_errors(value_and_gradients(triton_attention, tensors, segments, 0.3, 5), exact)
    assert max(errors.values()) <= 1e-5, errors


def test_dropout_keeps_the_mean():
    query, key, _, projected_query, basis, bias, _ = draw(16, 16, 16, r=16, biased=True)
    query, key, projected_query = (tensor.repeat(30, 1, 1) for tensor in (query, key, projected_query))
    value = torch.eye(16, device=DEVICE).expand_as(key)
    kept = triton_attention(query[:2], key[:2], value[:2], projected_query[:2], basis, bias)
    mean = (
        triton_attention(query, key, value, projected_query, basis, bias, None, None, 0.5).view(30, 2, 16, 16).mean(0)
    )
    # 30 draws of a weight w have a mean with a standard deviation of w / sqrt(30); 5 of them
    assert ((mean - kept).abs() <= kept * 5 / math.sqrt(30) + 1e-7).all()


def test_the_seed_decides_what_is_dropped():
    tensors = draw(40, 40, 16, r=16)
    one, again, other = (triton_attention(*tensors, None, 0.1, seed) for seed in (2**62 - 1, 2**62 - 1, 2**61))
    assert torch.equal(one, again) and not torch.equal(one, other)


# Biases that hide keys


@pytest.mark.parametrize("hidden, r", [(-math.inf, 0), (-math.inf, 20), (-1e9, 20)])
@pytest.mark.parametrize("lags", [slice(5, None), slice(1, 66), slice(33, 34)])
def test_a_bias_may_hide_keys(lags, hidden, r):
    tensors = draw(70, 70, 16, r=r, biased=True)
    tensors[5][:, lags] = hidden
    assert_is_the_formula(tensors)


def test_a_large_bias_overflows_nothing():
    tensors = draw(5, 40, 16, r=16, biased=True)
    tensors[5] += 200  # the same for all keys, so that no weight changes
    assert_is_the_formula(tensors, 1e-4)


# The project's own representations


@pytest.mark.parametrize("name", ["wavelet", "rpe", "alibi", "t5"])
@pytest.mark.parametrize("L, S", [(65, 65), (3, 100)])
def test_representations_are_the_definition(name, L, S):
    query, key, value = draw(L, S, 64, N=4)[:3]
    position = build_position(name, head_dim=64, num_heads=2).to(DEVICE)
    factors, bias = position.factors(S, like=query), position.bias(S, like=query)
    projected_query = basis = None
    if factors is not None:
        projection, rows = factors
        projected_query = (query if projection is None else query @ projection) / math.sqrt(64)
        basis = rows.T[None]
    by_head = [tensor.unflatten(0, (2, 2)).double() for tensor in (query, key, value)]
    expected = reference_attention(*by_head, position.double()).flatten(0, 1)
    found = triton_attention(query, key, value, projected_query, basis, bias).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# Memory


def test_no_tensor_is_larger_than_the_inputs():
    tensors = [tensor.requires_grad_() for tensor in draw(128, 128, 16, r=16, biased=True, gated=True)]
    with LargestTensor() as largest:
        triton_attention(*tensors).sum().backward()
    assert largest.nbytes == tensors[0].nbytes


# Where it cannot run


def test_why_unsupported_says_what_is_wrong(monkeypatch):
    assert kernel.why_unsupported(torch.ones(2, 3, 256, device=DEVICE)) is None
    assert "257 dimensions" in kernel.why_unsupported(torch.ones(2, 3, 257, device=DEVICE))
    assert "torch.float64" in kernel.why_unsupported(torch.ones(2, 3, 16, device=DEVICE, dtype=torch.float64))
    monkeypatch.setattr(kernel, "_INTERPRETED", False)
    assert "on the cpu" in kernel.why_unsupported(torch.ones(2, 3, 16))


def test_without_triton_the_module_imports_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("wavepos_fairseq.attention.without_triton", kernel.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.why_unsupported(torch.ones(2, 3, 16)) == "Triton 3.3 is not installed"


def test_a_triton_without_what_the_kernel_needs_counts_as_none(monkeypatch):
    monkeypatch.delattr(triton.language, "gather")
    spec = importlib.util.spec_from_file_location("wavepos_fairseq.attention.with_old_triton", kernel.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.why_unsupported(torch.ones(2, 3, 16)) == "Triton 3.3 is not installed"


def test_a_basis_that_is_zero_over_all_lags_in_view_adds_nothing():
    options = {"wavelet": "haar", "wavelet_scales": "1*8", "wavelet_shifts": "8..11"}
    position = build_position("wavelet", head_dim=32, num_heads=2, **options)
    inputs = torch.randn(3, 1, 2, 4, 32, device=DEVICE)
    plain = reference_attention(*inputs, build_position("nope", head_dim=32, num_heads=2))
    torch.testing.assert_close(causal_attention(*inputs, position, implementation="triton"), plain)


COMBINED = ["alibi+wavelet", "rope+rpe+t5", "rpe+transformer-xl+wavelet"]
OTHERS = [pytest.param(name, marks=pytest.mark.long) for name in PAIRS + THREE if name not in COMBINED]


@pytest.mark.parametrize("name", position_names() + COMBINED + ["wavelet learned"] + OTHERS)
def test_any_representation_runs_in_the_kernel_where_it_is_asked_for(name):
    name, _, learned = name.partition(" ")
    options = {"wavelet_learn": "both"} if learned else {}
    position = build_position(name, head_dim=16, num_heads=2, **options).to(DEVICE)
    torch.manual_seed(0)
    for parameter in position.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    query, key, value = torch.randn(3, 2, 2, 40, 16, device=DEVICE)
    for first, num_key_heads, segments in ((0, 1, segments_of(40)), (35, 2, None), (39, 2, None)):
        inputs = [
            (tensor / 4).requires_grad_()
            for tensor in (query[:, :, first:], *torch.stack((key, value))[:, :, :num_key_heads])
        ]
        ours = gated(causal_attention)(*inputs, position, implementation="triton", segments=segments)
        exact = gated(reference_attention)(*inputs, position, segments=segments)
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-5)
        inputs += position.parameters()
        for one, other in zip(*(torch.autograd.grad(out.square().sum(), inputs) for out in (ours, exact))):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
