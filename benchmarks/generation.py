"""Measures generation with a cache in tokens per second, beside fairseq's own transformer_lm of the same size.

    python benchmarks/generation.py [--quick] [--sizes wikitext2-cpu,512x512] [--device cuda --fp16]

Every model generates 1,000 tokens greedily, again and again; the models take turns after every 100. The table has the
first and the last 100 tokens. A ratio compares the tokens per second of one turn to those of fairseq's transformer_lm
with its sinusoidal positions.
"""

import logging
import warnings
from pathlib import Path

import torch
from measure import RESULTS, as_speed, by_turns, machine, ratios, report
from training import ARCHS, BASELINE, SIZES, Trainee

from wavepos_fairseq.common import commands

NEW_TOKENS, TURN = 1000, 100
TURNS = NEW_TOKENS // TURN
EOS = 2


class Writer:
    """A model and the text that it writes; the text starts anew after NEW_TOKENS."""

    def __init__(self, model):
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.restart()

    def restart(self):
        self.tokens, self.state = torch.full((1, 1), EOS, device=self.device), {}

    @torch.no_grad()
    def turn(self):
        if self.tokens.size(1) > NEW_TOKENS:
            self.restart()
        for _ in range(TURN):
            output = self.model(self.tokens, incremental_state=self.state)
            chosen = self.model.get_normalized_probs(output, log_probs=True).argmax(-1)
            self.tokens = torch.cat((self.tokens, chosen), dim=1)


def main():
    parser = commands.parser(__doc__)
    parser.add_argument("--sizes", default=",".join(SIZES), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="how often the 1,000 tokens are generated")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the first size, one round")
    parser.add_argument("--output", type=Path, help="CSV (default: results/benchmarks/generation-DEVICE.csv)")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # fairseq makes hydra warn
    rows = []
    for size in args.sizes.split(",")[: 1 if args.quick else None]:
        writers = {name: Writer(Trainee(arch, size, args.device, args.fp16).model) for name, arch in ARCHS.items()}
        runs = {name: writer.turn for name, writer in writers.items()}
        seconds = by_turns(runs, TURNS * (1 if args.quick else args.rounds), args.device)
        # `by_turns` leaves out the first turn, a warm-up.
        for part, start in (("first", TURNS - 1), ("last", TURNS - 2)):
            found = ratios({name: times[start::TURNS] for name, times in seconds.items()}, BASELINE)
            for name, row in found.items():
                rows.append({"size": size, "tokens": f"{part} {TURN}", "model": name, **as_speed(row, TURN)})
    title = f"Tokens per second of {NEW_TOKENS} generated; {machine(args.device)}"
    report(title, rows, args.output or RESULTS / f"generation-{args.device}.csv")


if __name__ == "__main__":
    main()
