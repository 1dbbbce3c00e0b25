"""Measures training and evaluation in tokens per second, beside fairseq's own transformer_lm of the same size.

    python benchmarks/training.py [--quick] [--sizes wikitext2-cpu,512x512] [--device cuda --fp16]

A step is what fairseq-train does for an update: forward with the adaptive loss, backward, clipping, Adam. The models
take turns on the same random tokens. A ratio compares the tokens per second of one round to those of fairseq's
transformer_lm with its sinusoidal positions.
"""

import logging
import warnings
from pathlib import Path

import torch
from measure import RESULTS, as_speed, by_turns, machine, ratios, report

from wavepos_fairseq.common import commands

commands.require_fairseq()  # before the imports that would end in a traceback
# ruff: noqa: E402

from fairseq import criterions, options, utils
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.language_modeling import LanguageModelingTask

import wavepos_fairseq.models  # noqa: F401  (registers the architectures)
from wavepos_fairseq.plugin.checkpoint import token_nll
from wavepos_fairseq.positions import position_names

BASELINE = "fairseq transformer_lm"
ARCHS = {BASELINE: "--arch transformer_lm"}
for _name in position_names():
    _shown = "wavelet (Ricker)" if _name == "wavelet" else _name
    ARCHS[_shown] = f"--arch transformer_lm_wavelet --position-encoding {_name}"
VOCABULARY = 33278  # WikiText-2's
_WIDTH = "--decoder-embed-dim {0} --decoder-input-dim {0} --decoder-output-dim {0}"
_SMALL = _WIDTH.format(128) + " --decoder-layers 2 --decoder-attention-heads 2 --decoder-ffn-embed-dim 512"
_LARGE = _WIDTH.format(512) + " --decoder-layers 4 --decoder-attention-heads 4 --decoder-ffn-embed-dim 2048"
_ADAPTIVE = "--adaptive-input --tie-adaptive-weights --tie-adaptive-proj"
_ADAPTIVE += " --adaptive-input-cutoff 2000,10000 --adaptive-input-factor 2"
_ADAPTIVE += " --adaptive-softmax-cutoff 2000,10000 --adaptive-softmax-factor 2"
SIZES = {  # options, tokens of a sequence, sequences of a batch
    "wikitext2-cpu": (_SMALL, 128, 8),
    "512x512": (_LARGE, 512, 2),
}


class Trainee:
    """A model, its criterion and its optimiser."""

    def __init__(self, arch, size, device, fp16):
        size_options, length, sequences = SIZES[size]
        dictionary = Dictionary()
        for number in range(VOCABULARY - len(dictionary)):
            dictionary.add_symbol(str(number), n=VOCABULARY - number)
        words = ["data", "--task", "language_modeling", "--tokens-per-sample", str(length), *arch.split()]
        words += [*size_options.split(), *_ADAPTIVE.split(), "--criterion", "adaptive_loss", "--dropout", "0"]
        words += ["--ddp-backend", "legacy_ddp", "--optimizer", "adam"]
        config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
        task = LanguageModelingTask(config.task, dictionary)
        utils.set_torch_seed(1)
        self.model = task.build_model(config.model).to(device, torch.float16 if fp16 else torch.float32)
        self.criterion = criterions.build_criterion(config.criterion, task)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        # Word frequencies like WikiText's: the n-th word in proportion to 1 / n.
        chosen = torch.multinomial(1 / torch.arange(1, VOCABULARY - 3).double(), sequences * (length + 1), True) + 4
        tokens = chosen.view(sequences, length + 1).to(device)
        self.sample = {
            "net_input": {"src_tokens": tokens[:, :-1].contiguous(), "src_lengths": torch.full((sequences,), length)},
            "target": tokens[:, 1:].contiguous(),
            "ntokens": sequences * length,
            "nsentences": sequences,
        }

    def step(self):
        self.model.train()
        self.optimizer.zero_grad()
        loss, size, _ = self.criterion(self.model, self.sample)
        (loss / size).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self):
        self.model.eval()
        token_nll(self.model, self.sample["net_input"]["src_tokens"], self.sample["target"])


def main():
    parser = commands.parser(__doc__)
    parser.add_argument("--sizes", default=",".join(SIZES), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the first size, three rounds")
    parser.add_argument("--output", type=Path, help="CSV (default: results/benchmarks/training-DEVICE.csv)")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # fairseq makes hydra warn
    rows = []
    for size in args.sizes.split(",")[: 1 if args.quick else None]:
        models = {name: Trainee(arch, size, args.device, args.fp16) for name, arch in ARCHS.items()}
        tokens = models[BASELINE].sample["ntokens"]
        for mode in ("step", "evaluate"):
            runs = {name: getattr(model, mode) for name, model in models.items()}
            found = ratios(by_turns(runs, 3 if args.quick else args.rounds, args.device), BASELINE)
            for name, row in found.items():
                rows.append({"size": size, "mode": mode, "model": name, **as_speed(row, tokens)})
    report(f"Tokens per second; {machine(args.device)}", rows, args.output or RESULTS / f"training-{args.device}.csv")


if __name__ == "__main__":
    main()
