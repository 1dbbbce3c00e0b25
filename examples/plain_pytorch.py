"""A small GPT on the bytes of any text, without fairseq: how far beyond its training length does it read?

    python examples/plain_pytorch.py README.md [--representations wavelet,alibi,rope] [--length 64] [--steps 400]

For each representation a model is trained on the first nine tenths of the text, in pieces of --length bytes. What is
printed is its perplexity per byte on the last tenth, in pieces of one, two and four times that length.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from wavepos_fairseq.attention import causal_attention
from wavepos_fairseq.positions import build_position

NUM_BYTES = 256
WIDTH, HEADS, LAYERS = 128, 4, 2


class Attention(nn.Module):
    def __init__(self, representation):
        super().__init__()
        self.position = build_position(representation, head_dim=WIDTH // HEADS, num_heads=HEADS)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        heads = self.query_key_value(x).unflatten(-1, (3, HEADS, -1))  # (B, L, 3, H, d)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, H, L, d)
        attended = causal_attention(query, key, value, self.position, gates=self.position.gates(x))
        return self.output(attended.transpose(1, 2).flatten(2))  # (B, L, C)


class Block(nn.Module):
    def __init__(self, representation):
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH), Attention(representation))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.feed_forward(x)


def gpt(representation):
    """Bytes (B, L) to the logits of the next one, (B, L, 256). No position is added to the embeddings."""
    blocks = [Block(representation) for _ in range(LAYERS)]
    embedding = nn.Embedding(NUM_BYTES, WIDTH)
    nn.init.normal_(embedding.weight, std=WIDTH**-0.5)
    return nn.Sequential(embedding, *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, NUM_BYTES))


def loss_of(model, pieces):
    """Nats per byte of pieces (B, L + 1), each byte but a piece's first being predicted."""
    return F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


def train(model, text, length, steps, batch=16):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(steps):
        starts = torch.randint(len(text) - length, (batch, 1))
        loss = loss_of(model, text[starts + torch.arange(length + 1)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def perplexity(model, text, length):
    pieces = text.unfold(0, length + 1, length)  # a piece's last byte is the next one's first
    losses = [loss_of(model, batch) * len(batch) for batch in pieces.split(64)]
    return (sum(losses) / len(pieces)).exp().item()


def main():
    parser = argparse.ArgumentParser(description="Train small GPTs on a text, and read on beyond their length.")
    parser.add_argument("text", type=Path)
    parser.add_argument("--representations", default="wavelet,alibi,rope", help="default: %(default)s")
    parser.add_argument("--length", type=int, default=64, help="of a piece in training (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of training (default: %(default)s)")
    args = parser.parse_args()
    text = torch.tensor(list(args.text.read_bytes()))
    training, held_out = text.split(len(text) * 9 // 10 + 1)
    lengths = [args.length, 2 * args.length, 4 * args.length]
    if len(held_out) <= lengths[-1]:
        parser.error(f"{args.text}: the last tenth, {len(held_out)} bytes, is not longer than 4 x --length")
    print("perplexity".ljust(16), *(f"{length:>8}" for length in lengths), flush=True)
    for representation in args.representations.split(","):
        torch.manual_seed(1)
        model = gpt(representation)
        train(model, training, args.length, args.steps)
        numbers = (perplexity(model, held_out, length) for length in lengths)
        print(representation.ljust(16), *(f"{number:8.2f}" for number in numbers), flush=True)


if __name__ == "__main__":
    main()
