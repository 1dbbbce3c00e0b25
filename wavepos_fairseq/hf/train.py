"""Trains a Llama with any position representation by transformers' Trainer, on tokens that `tokens` wrote.

    python -m wavepos_fairseq.hf.train DATA --output_dir RUN --l-train 512 --shape '{"hidden_size": 256, ...}'
        --position-encoding wavelet --wavelet-scales 2^2..2^9 --max_steps 600 --learning_rate 1e-3
    accelerate launch --multi_gpu --num_processes 8 -m wavepos_fairseq.hf.train DATA ...

Options with an underscore are Trainer's, which `transformers.TrainingArguments` lists. Each sequence is the next
L_train tokens of the text, and they come in random order. The trained model is RUN/model, with its tokenizer. A
training that was stopped continues from the last complete checkpoint in RUN.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from ..common.child import end_with
from ..common.commands import parse_count
from ..common.errors import prefixing_errors
from ..positions import position_options
from .llama import WaveletLlamaConfig, WaveletLlamaForCausalLM
from .tokens import TOKENS

MODEL = "model"
"""The folder of a run that has the trained model."""


class Sequences(torch.utils.data.Dataset):
    """The next `length` tokens of a stream, and the next, each as a Trainer takes it."""

    def __init__(self, stream: "np.ndarray[Any, Any]", length: int):
        self.stream, self.length = stream, length

    def __len__(self) -> int:
        return len(self.stream) // self.length

    def __getitem__(self, index: int) -> Dict[str, Tensor]:
        tokens = self.stream[index * self.length : (index + 1) * self.length].astype(np.int64)
        return {"input_ids": torch.from_numpy(tokens), "labels": torch.from_numpy(tokens)}


def read_tokens(folder: Path) -> Tuple["np.ndarray[Any, Any]", Any]:
    """The stream of tokens (tokens,) in a folder, which is not read before it is used, and their tokenizer."""
    with prefixing_errors(str(folder)):
        stream = np.load(folder / TOKENS, mmap_mode="r")
        return stream, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def config_of(position: Mapping[str, Any], shape: Mapping[str, Any], l_train: int, types: int, eos: int) -> LlamaConfig:
    """The configuration of a model. RoPE without further options is a stock Llama's own. ValueError if nothing fits.

    position: ``name`` and the options of `positions.build_position`. shape: other entries of a `LlamaConfig`.
    """
    name, options = position["name"], {key: value for key, value in position.items() if key != "name"}
    common: Dict[str, Any] = {"vocab_size": types, "max_position_embeddings": l_train}
    common.update(bos_token_id=eos, eos_token_id=eos, pad_token_id=None)
    taken = sorted({*common, "position_encoding", "position_options"} & {*shape})
    if taken:
        raise ValueError(f"--shape: {taken[0]} cannot be given here")
    with prefixing_errors("--shape or position"):
        unknown = sorted({*shape} - {*LlamaConfig().to_dict()})
        if unknown:
            raise ValueError(f"{unknown[0]} is no option of a Llama")
        if name == "rope" and {*options} <= {"rope_theta"}:
            rope = {"rope_type": "default", "rope_theta": float(options.get("rope_theta", 10000.0))}
            return LlamaConfig(**common, **shape, rope_parameters=rope)
        return WaveletLlamaConfig(**common, **shape, position_encoding=name, position_options=options or None)


def model_of(config: LlamaConfig) -> LlamaForCausalLM:
    return WaveletLlamaForCausalLM(config) if isinstance(config, WaveletLlamaConfig) else LlamaForCausalLM(config)


def parser() -> Any:
    """The options: our own, and Trainer's."""
    options: Any = TrainingArguments
    parser: Any = HfArgumentParser(options, prog="python -m wavepos_fairseq.hf.train")
    parser.allow_abbrev = False
    parser.add_argument("data", metavar="DATA", help="folder with tokens and their tokenizer")
    parser.add_argument("--l-train", type=parse_count, required=True, help="tokens of a sequence")
    parser.add_argument("--shape", type=json.loads, default={}, help="entries of a LlamaConfig, as JSON")
    parser.add_argument("--position-encoding", default="wavelet", help="position representation (default: wavelet)")
    for name, option in position_options().items():
        kind = next((of for of in get_args(option.type) if of is not type(None)), option.type)  # of Optional[kind]
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=option.help.replace("%", "%%"))
    return parser


def position_of(args: argparse.Namespace) -> Dict[str, Any]:
    """The position of a row of configs/tables, of the options."""
    given = {name: getattr(args, name) for name in position_options()}
    return {"name": args.position_encoding, **{key: value for key, value in given.items() if value is not None}}


class Cost(NamedTuple):
    """What a training takes: parameters, and operations for each token of it."""

    parameters: int
    operations: float


def cost(config: LlamaConfig, l_train: int) -> Cost:
    """Counted, of a model that takes no memory.

    A token takes two operations for each weight of a product and, in each layer's attention, 2 L_train for each
    dimension, because it sees half of a sequence in two products. The backward pass takes twice the forward.
    """
    with torch.device("meta"):
        model = model_of(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    products = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    heads = config.num_attention_heads * (config.head_dim or 0)
    return Cost(parameters, 3 * 2 * (products + config.num_hidden_layers * l_train * heads))


def last_complete(folder: Path) -> Tuple[int, Optional[Path]]:
    """The steps of the last complete checkpoint in a run's folder, and its path; (0, None) without one.

    Trainer writes trainer_state.json last.
    """
    found: List[Tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        try:
            found.append((int(json.loads((path / "trainer_state.json").read_text())["global_step"]), path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found, default=(0, None))


def is_the_last_step(checkpoint: Path, training: TrainingArguments) -> bool:
    """Whether nothing is left to do after a complete checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    if training.max_steps > 0:
        return bool(state["global_step"] >= training.max_steps)
    return bool(state["global_step"] >= state["max_steps"] and state["num_train_epochs"] >= training.num_train_epochs)


class _Log(TrainerCallback):
    """Prints what Trainer logs as fairseq does, so that runs are followed alike: bits, and seconds of all attempts."""

    def on_train_begin(self, args, state, control, **unused):
        before = max((logged.get("wall", 0.0) for logged in state.log_history), default=0.0)
        self.started = time.monotonic() - before

    def on_log(self, args, state, control, logs=None, **unused):
        if logs and "loss" in logs and state.is_world_process_zero:
            wall = round(time.monotonic() - self.started, 3)
            state.log_history[-1]["wall"] = wall
            bits = f"{logs['loss'] / math.log(2):.4f}"
            line = {"epoch": logs["epoch"], "loss": bits, "num_updates": str(state.global_step), "wall": str(wall)}
            print(json.dumps({**line, "lr": logs["learning_rate"]}), flush=True)


def train(args: argparse.Namespace, training: TrainingArguments) -> None:
    """Trains, or continues, and writes the model. ValueError if it is there, or if data or options do not fit."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    data, folder = Path(args.data), Path(str(training.output_dir))
    if (folder / MODEL).exists():
        raise ValueError(
            f"{folder / MODEL} is there: the training is complete; remove it, or give another --output_dir"
        )
    stream, tokenizer = read_tokens(data)
    dataset = Sequences(stream, args.l_train)
    if not len(dataset):
        raise ValueError(f"{data} has {len(stream)} tokens, fewer than --l-train {args.l_train}")
    training.disable_tqdm = True
    training.ddp_find_unused_parameters = False  # there are none, and to look for them takes time
    set_seed(training.seed)
    model = model_of(config_of(position_of(args), args.shape, args.l_train, len(tokenizer), tokenizer.eos_token_id))
    last = last_complete(folder)[1]
    trained = last is not None and is_the_last_step(last, training)
    if trained:  # Trainer would take one step more
        model = type(model).from_pretrained(str(last), dtype="auto")
    trainer = Trainer(model, training, train_dataset=dataset, callbacks=[_Log()])
    trainer.remove_callback(PrinterCallback)
    if not trained:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    unfinished = folder / f"{MODEL}.partial"
    trainer.save_model(str(unfinished))
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(unfinished)
        (unfinished / "training_args.bin").unlink()  # a pickle, which nothing here reads
        os.replace(unfinished, folder / MODEL)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    if "TORCHELASTIC_RUN_ID" in os.environ:  # one of several processes, whose parent may be killed
        end_with(os.getppid())
    try:
        training, args = parser().parse_args_into_dataclasses(arguments, look_for_args_file=False)
        train(args, training)
    except (ValueError, OSError, ImportError) as error:  # the last where accelerate is missing
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
