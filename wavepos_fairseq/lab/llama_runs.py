"""Runs of presets whose framework is transformers: a Llama that its Trainer trains (see `hf.train`).

They are runs like any other. The data are a folder of texts, with a folder of tokens in it; the checkpoint is the
folder RUN/model.
"""

import argparse
import json
from typing import Any, Dict, List, Set, Tuple

from ..common.commands import refusals_raise
from ..common.errors import prefixing_errors
from ..common.files import shown_path
from ..data import tokens_folder
from ..plugin.options import as_arguments, position_arguments
from . import evaluate
from .configs import Preset
from .runs import Run, batches, refuse_changed


class LlamaRun(Run):
    """A row, trained by Trainer."""

    def training_command(self) -> List[str]:
        """``python -m``, or accelerate for several processes, with `training_arguments`."""
        processes = self.gpus or self.processes
        launch = ["python"]
        if processes > 1:  # --multi_gpu: several processes, without GPUs, too; port 0: any that is free
            launch = ["accelerate", "launch", "--multi_gpu", "--num_processes", str(processes)]
            launch += ["--main_process_port", "0"]
        return [*launch, "-m", "wavepos_fairseq.hf.train", *self.training_arguments()]

    def training_arguments(self) -> List[str]:
        """The preset's options, then the row's."""
        at_a_time, steps = batches(self.preset, self.gpus, self.processes)
        return [
            shown_path(tokens_folder(self.data, self.preset.tokenizer)),
            *("--output_dir", shown_path(self.folder), "--l-train", str(self.preset.l_train)),
            *("--shape", json.dumps(dict(self.preset.shape))),
            *("--per_device_train_batch_size", str(at_a_time), "--gradient_accumulation_steps", str(steps)),
            *([] if self.gpus else ["--use_cpu"]),
            *as_arguments(self.trained_with()),
            *("--seed", str(self.seed)),
            *(position_arguments(self.row.position) if self.row.position else []),
            *self.row.arguments,
        ]

    def evaluated(self) -> List[str]:
        return ["--model", shown_path(self.checkpoint), "--text", shown_path(self.data / "valid.txt")]

    def is_trained(self) -> bool:
        """Whether the model is there. It is written last, and Trainer finds its own checkpoints."""
        return self.checkpoint.is_dir()

    @property
    def max_update(self) -> int:
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--max_steps", "--max-steps")
        return int(parser.parse_known_args(self.training_arguments())[0].max_steps)

    def refuse_options(self) -> None:
        self._config()

    def model_options(self) -> Set[str]:
        return {*self._config().to_dict()}

    def refuse_no_checkpoint(self) -> None:
        """As `refuse_options`, because a training always writes its model."""
        self._config()

    def refuse_data(self) -> None:
        """Raises ValueError if the texts are shorter than what is trained on or evaluated."""
        from ..hf.evaluate import read_text
        from ..hf.train import Sequences, read_tokens

        tokens = tokens_folder(self.data, self.preset.tokenizer)
        stream, tokenizer = read_tokens(tokens)
        if not len(Sequences(stream, self.preset.l_train)):
            raise ValueError(f"{shown_path(tokens)} has {len(stream)} tokens, fewer than l_train {self.preset.l_train}")
        args = evaluate.parse(self.evaluation_arguments())
        valid, needed = self.data / "valid.txt", (args.sequences or 1) * max(args.lengths)
        count = len(read_text(valid, tokenizer, num_tokens=needed).tokens)
        if count < needed:
            raise ValueError(f"{shown_path(valid)} has {count} tokens, fewer than are evaluated: {needed}")

    def head_dim(self) -> int:
        return self._config().head_dim

    def counted(self) -> List[str]:
        """Parameters, and what the training takes of memory and operations, as `hf.train.cost` has them."""
        from ..hf.train import cost

        told = cost(self._config(), self.preset.l_train)
        tokens = self.max_update * self.preset.tokens_per_update
        shards = f" over {self.gpus} GPUs" if self.gpus > 1 else ""
        return [
            f"# {told.parameters:,} parameters; weights, gradients and AdamW's moments in fp32: "
            f"{told.parameters * 16 / 2**30:.1f} GiB{shards}",
            f"# {tokens:,} tokens in training, {told.operations * tokens:.2e} operations",
        ]

    def _config(self) -> Any:
        """The model's configuration. ValueError if Trainer, the model or the run refuses an option."""
        from ..hf import train

        with refusals_raise():
            args = train.parser().parse_args(self.training_arguments())
        ours: Dict[str, Tuple[Any, Any]] = {
            "--output_dir": (args.output_dir, shown_path(self.folder)),
            "--l-train": (args.l_train, self.preset.l_train),
            "--seed": (args.seed, self.seed),
            "--max_steps": (args.max_steps, self.max_update),
        }
        refuse_changed(ours)
        if args.max_steps < 1:
            raise ValueError(f"--max_steps {args.max_steps}: accepted is a whole number > 0")
        types = self.preset.tokenizer if isinstance(self.preset.tokenizer, int) else 32000
        with prefixing_errors(f"preset {self.preset.name}"):
            return train.config_of(train.position_of(args), args.shape, self.preset.l_train, types, eos=0)


def run_of(preset: Preset, *args: Any, **kwargs: Any) -> Run:
    """A run of the preset's framework."""
    return (LlamaRun if preset.framework == "transformers" else Run)(preset, *args, **kwargs)
