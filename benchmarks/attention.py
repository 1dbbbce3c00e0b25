"""Compares the attention operator with each representation to PyTorch's causal attention without position (ratio 1).

    python benchmarks/attention.py [--quick] [--sizes 512x2,2512x1] [--device cuda --dtype bfloat16]

All contestants of a size take turns, round by round. Each round gives a ratio; the table has the median and quartiles.
The other contestants are the plain definition, the paper's second tip (appendix A.6) with torch.scatter, ALiBi as a
precomputed additive mask and, on a GPU, FlexAttention with the same bias.
"""

import itertools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import RESULTS, by_turns, machine, peak_bytes, ratios, report, write

from wavepos_fairseq.attention import causal_attention, reference_attention, score_mod
from wavepos_fairseq.common import commands
from wavepos_fairseq.positions import build_position, position_names

BASELINE = "no position (SDPA)"
SIZES = "128x32,256x4,512x2,1024x1,2512x1,5024x1,8192x1"
TIP_2, DEFINITION = "Ricker, tip 2 (scatter)", "Ricker, the definition"
LARGEST = 4 * 2**30  # bytes allowed for the definition's tensor (L, S, d), and for four of tip 2's (B, H, L, S)


def scatter_attention(query, key, value, position):
    """Appendix A.6, tip 2: q . p over all lags as one product, then torch.scatter to the keys, then softmax."""
    num_keys, lags = key.size(-2), torch.arange(key.size(-2), device=query.device)
    scores = query @ position.relative(num_keys, like=query).T  # (B, H, L, lags)
    index = (lags[:, None] - lags).expand_as(scores)  # the key at lag t of query m; negative: none
    mask = torch.full((*scores.shape[:-1], num_keys + 1), -math.inf, dtype=query.dtype, device=query.device)
    mask = mask.scatter(-1, index.where(index >= 0, num_keys), scores / math.sqrt(query.size(-1)))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[..., :num_keys])


def definition(query, key, value, position):
    """`reference_attention` of as many queries at a time as LARGEST allows, with the keys up to the last of them."""
    pieces = query.split(LARGEST // (key[0, 0].numel() * key.element_size()), dim=2)
    stops = itertools.accumulate(piece.size(2) for piece in pieces)
    attended = (
        reference_attention(piece, key[:, :, :stop], value[:, :, :stop], position) for piece, stop in zip(pieces, stops)
    )
    return torch.cat(tuple(attended), dim=2)


def masked_attention(query, key, value, mask):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def alibi_mask(position, num_keys, like):
    lag = torch.arange(num_keys, device=like.device)[:, None] - torch.arange(num_keys, device=like.device)
    bias = position.bias(num_keys, like=like)[:, lag.clamp(min=0)]
    return bias.masked_fill(lag < 0, -math.inf)[None]


def flex_attention_of(position, num_keys, like):
    """FlexAttention with the position; compiled on a GPU, and without a backward pass on a CPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()  # which compiles a function eight times at the most
    run = torch.compile(flex_attention) if like.is_cuda else flex_attention
    causal = create_block_mask(lambda b, h, m, n: m >= n, None, None, num_keys, num_keys, device=like.device)

    def attend(query, key, value):
        rotated_query, rotated_key = position.rotate(query, key)
        return run(rotated_query, rotated_key, value, score_mod=score_mod(position, query), block_mask=causal)

    return attend


def with_position(attend, position, **options):
    """attention(query, key, value) with the position, the keys in the place of the layer's input for its gates."""

    def attend_with_gates(query, key, value):
        gates = position.gates(key.transpose(1, 2).flatten(2))  # (B, H, S, d) -> (B, H, S)
        return attend(query, key, value, position, gates=gates, **options)

    return attend_with_gates


def contestants(length, args, like):
    """name -> attention(query, key, value)"""
    shape = {"head_dim": args.head_dim, "num_heads": args.heads}
    names = (*position_names(), "wavelet+alibi")
    positions = {name: build_position(name, **shape).to(like) for name in names}
    positions["wavelet, learned"] = build_position("wavelet", wavelet_learn="both", **shape).to(like)
    ricker = positions["wavelet"]
    attentions = {BASELINE: lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)}
    for name, position in positions.items():
        shown = "wavelet (Ricker)" if name == "wavelet" else name
        attentions[shown] = with_position(causal_attention, position)
    mask = alibi_mask(positions["alibi"], length, like)
    attentions["ALiBi as a mask"] = lambda q, k, v: masked_attention(q, k, v, mask)
    attentions[TIP_2] = lambda q, k, v: scatter_attention(q, k, v, ricker)
    attentions[DEFINITION] = lambda q, k, v: definition(q, k, v, ricker)
    if args.device == "cuda":
        attentions["Ricker, blockwise"] = with_position(causal_attention, ricker, implementation="blockwise")
        attentions["Ricker, FlexAttention"] = flex_attention_of(ricker, length, like)
    return attentions


def measure(length, batch, args):
    """The rows of one size: forward, and forward with backward."""
    like = torch.empty(0, dtype=getattr(torch, args.dtype), device=args.device)
    shape = (batch, args.heads, length, args.head_dim)
    query, key, value, gradient = torch.randn(4, *shape, dtype=like.dtype, device=like.device).unbind()
    attentions = contestants(length, args, like)
    if 4 * batch * args.heads * length * length * like.element_size() > LARGEST:
        del attentions[TIP_2]
    rows = []

    def forward(attend):
        with torch.no_grad():
            return attend(query, key, value)

    def both(attend):
        leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        attend(*leaves).backward(gradient)
        return leaves

    for mode, step in (("forward", forward), ("forward + backward", both)):
        if mode != "forward" and length * length * args.head_dim * like.element_size() > LARGEST:
            del attentions[DEFINITION]  # it keeps all its vectors for the backward pass
        runs = {name: (lambda step=step, attend=attend: step(attend)) for name, attend in attentions.items()}
        found = ratios(by_turns(runs, args.rounds, args.device), BASELINE)
        for name, run in runs.items():
            size = peak_bytes(run, args.device) / 2**20
            rows.append({"length": length, "batch": batch, "mode": mode, "attention": name, **found[name]})
            rows[-1]["peak_mib"] = round(size, 1)
    return rows


def main():
    parser = commands.parser(__doc__)
    parser.add_argument("--sizes", default=SIZES, help=f"LENGTHxBATCH, ... (default: {SIZES})")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--quick", action="store_true", help="sizes 128x32 and 512x2, three rounds")
    parser.add_argument("--output", type=Path, help="CSV (default: results/benchmarks/attention-DEVICE.csv)")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.rounds = "128x32,512x2", 3
    rows, output = [], args.output or RESULTS / f"attention-{args.device}.csv"
    for size in args.sizes.split(","):
        rows += measure(*map(int, size.split("x")), args)
        write(rows, output)  # should a later size fail
        print(f"{size} done", flush=True)
    title = f"{args.heads} heads of {args.head_dim}, {args.dtype}; {machine(args.device)}"
    report(title, rows, output)


if __name__ == "__main__":
    main()
