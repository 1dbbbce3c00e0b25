"""Shared by the tests: a tiny data-bin, fairseq's command line in this process, and a probe for large tensors."""

import contextlib
import copy
import functools
import json
import logging
import os
import random
import runpy
import shlex
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# Triton reads it on import and later; without a GPU test_triton.py needs the interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "wavepos_fairseq"
L_TRAIN = 32
TINY = {  # two layers of two heads of width 16; 64 types in three clusters, so that every cluster occurs
    "--arch": "transformer_lm_wavelet",
    "--decoder-layers": "2",
    "--decoder-attention-heads": "2",
    "--decoder-embed-dim": "32",
    "--decoder-input-dim": "32",
    "--decoder-output-dim": "32",
    "--decoder-ffn-embed-dim": "64",
    "--dropout": "0",
    "--adaptive-input": True,
    "--adaptive-input-cutoff": "20,40",
    "--adaptive-input-factor": "2",
    "--adaptive-softmax-cutoff": "20,40",
    "--adaptive-softmax-factor": "2",
    "--tie-adaptive-weights": True,
    "--tie-adaptive-proj": True,
}
# As a change to TINY: one embedding matrix and one softmax, for --criterion cross_entropy.
PLAIN = {name: None for name in TINY if "adaptive" in name}
PLAIN["--criterion"] = "cross_entropy"


PYTORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])
needs_fp16 = pytest.mark.skipif(PYTORCH < (2, 1), reason="PyTorch 2.0 has no fp16 products on CPUs")


def skip_where_plain_attention_is_old(position):
    """Skips the test if the operator is PyTorch's own attention (no p, no b) from before 2.2, which is not ours."""
    if PYTORCH < (2, 2) and position.relative(1, torch.empty(0)) is None and position.bias(1, torch.empty(0)) is None:
        pytest.skip("PyTorch's own attention forms all scores on CPUs before 2.2, and NaN of a masked key gets through")


def gates_of(position, query, key):
    """The gates (B, H, S) that a representation makes of the keys (B, K, S, d), shortened to the length 1, or None."""
    heads_of_key = query.size(1) // max(key.size(1), 1)  # shapes that do not fit are refused later
    keys = key[:, :, None].expand(-1, -1, heads_of_key, -1, -1).flatten(1, 2).transpose(1, 2).flatten(2)
    return position.gates(keys / keys.size(-1) ** 0.5)


def gated(attend):
    """causal_attention or reference_attention with `gates_of` its keys."""

    @functools.wraps(attend)
    def attend_with_gates(query, key, value, position, *args, **options):
        return attend(query, key, value, position, *args, gates=gates_of(position, query, key), **options)

    return attend_with_gates


HALVES = [pytest.param(torch.float16, marks=needs_fp16), torch.bfloat16]


LONGEST = [
    f"test_{name}.py"
    for name in ("runs", "experiments", "attention", "triton", "package", "data", "training", "parallel", "report")
]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))  # so that all workers end together


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest storage that any operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return result


def synthetic_text(lines, seed):
    """Sentences in which most words follow from the previous word; every fifth type ends with subword-nmt's @@."""
    rng = random.Random(seed)
    text = ""
    for _ in range(lines):
        word = rng.randrange(60)
        words = []
        for _ in range(rng.randrange(3, 14)):
            words.append(f"w{word}@@" if word % 5 == 0 else f"w{word}")
            word = (3 * word + 7) % 60 if rng.random() < 0.7 else rng.randrange(60)
        text += " ".join(words) + "\n"
    return text


def preprocess(folder, *words, **texts):
    """Runs fairseq-preprocess on the text files, given by split, into `folder`; words: its other options."""
    from fairseq import options
    from fairseq_cli import preprocess

    given = [word for split, path in texts.items() for word in (f"--{split}pref", str(path))]
    arguments = ["--only-source", "--destdir", str(folder), "--workers", "1", *words, *given]
    preprocess.main(options.get_preprocessing_parser().parse_args(arguments))
    return Path(folder)


@pytest.fixture(scope="session")
def data_bin(tmp_path_factory):
    """A data-bin folder with 300 lines for training and 60 for validation; the latter are also in valid.txt."""
    text = tmp_path_factory.mktemp("text")
    (text / "train.txt").write_text(synthetic_text(300, seed=1))
    (text / "valid.txt").write_text(synthetic_text(60, seed=2))
    folder = preprocess(text / "data-bin", train=text / "train.txt", valid=text / "valid.txt")
    (folder / "valid.txt").write_text((text / "valid.txt").read_text())
    return folder


def command_line(options):
    """Options by name, as words; None omits an option, True makes it a switch."""
    words = []
    for name, value in options.items():
        if value is not None:
            words += [name] if value is True else [name, str(value)]
    return words


def parse(data, *words):
    """fairseq-train's arguments, with the plugin's architectures and, unless the words name another, its task."""
    from fairseq import options

    import wavepos_fairseq.models  # noqa: F401

    arguments = [str(data), "--task", "language_modeling_wavepos", "--tokens-per-sample", str(L_TRAIN), *words]
    return options.parse_args_and_arch(options.get_training_parser(), arguments)


@pytest.fixture(scope="session")
def build(data_bin):
    """build(changes to TINY, seed): an untrained model for evaluation, as of fairseq-train but without hydra."""
    from fairseq import tasks, utils

    built = {}

    def build_model(changes=None, seed=1):
        words = command_line({**TINY, **(changes or {})})
        key = (*words, seed)
        if key not in built:
            arguments = parse(data_bin, *words)
            utils.set_torch_seed(seed)
            built[key] = tasks.setup_task(arguments).build_model(arguments).eval()
        return copy.deepcopy(built[key])

    return build_model


TRAINING = {
    "--criterion": "adaptive_loss",
    "--ddp-backend": "legacy_ddp",
    "--cpu": True,
    "--sample-break-mode": "none",
    "--optimizer": "adam",
    "--lr": "0.01",
    "--lr-scheduler": "inverse_sqrt",
    "--warmup-updates": "4",
    "--clip-norm": "1.0",
    "--max-tokens": "256",
    "--max-update": "20",
    "--num-workers": "0",
    "--disable-validation": True,
    "--no-epoch-checkpoints": True,
    "--log-format": "json",
    "--log-interval": "1",
    "--seed": "1",
}


class _Losses(logging.Handler):
    def __init__(self):
        super().__init__(logging.INFO)
        self.by_update = {}

    def emit(self, record):
        if record.name == "train_inner":
            logged = json.loads(record.getMessage())
            self.by_update[int(logged["num_updates"])] = logged["loss"]


@pytest.fixture(scope="session")
def train(data_bin):
    """train(save_dir, changes to TINY and TRAINING, data): runs fairseq-train; returns the logged losses by update."""
    import fairseq_cli.train
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.logging import progress_bar

    configurations = {}  # hydra takes longer for one than the training takes

    def configuration(save_dir, data, *words):
        key = (data, *words)
        if key not in configurations:
            configurations[key] = convert_namespace_to_omegaconf(parse(data, *words))
        config = copy.deepcopy(configurations[key])
        config.checkpoint.save_dir = str(save_dir)
        return config

    def run(save_dir, changes=None, data=data_bin):
        words = command_line({**TINY, **TRAINING, **(changes or {})})
        losses = _Losses()
        progress_bar.logger.addHandler(losses)
        progress_bar.logger.setLevel(logging.INFO)
        try:
            fairseq_cli.train.main(configuration(save_dir, data, *words))
        finally:
            progress_bar.logger.removeHandler(losses)
        return losses.by_update

    return run


@pytest.fixture(scope="session")
def trained(train, tmp_path_factory):
    """trained(position encoding, changes): a checkpoint's path after 20 updates; each is trained once."""
    paths = {}

    def path(encoding, changes=None):
        key = (encoding, str(changes))
        if key not in paths:
            folder = tmp_path_factory.mktemp(encoding or "fairseq")
            train(folder, {"--position-encoding": encoding, **(changes or {})})
            paths[key] = folder / "checkpoint_last.pt"
        return str(paths[key])

    return path


def sound_result(run):
    """The content of a complete run's result.json; its numbers are made up."""
    cell = {"l_train": run.preset.l_train, "tokens": 100, "nll": 3.0, "perplexity": 20.1, "seconds": 0.5}
    return {
        "row": run.row.name,
        "seed": run.seed,
        "commit": "none",
        "training_command": shlex.join(run.training_command()),
        "evaluation_command": shlex.join(run.evaluation_command()),
        "training_seconds": 7.0,
        "threads": 1,
        "parameters": 1000,
        "device": "cpu",
        "versions": {},
        "cells": [
            {**cell, "inference": inference, "sequence_length": length}
            for length in run.preset.lengths
            for inference in ("full", "non-overlapping")
        ],
    }


class Forked:
    """What is needed of `subprocess.Popen`, for a module in a fork of this process, which has imported fairseq."""

    def __init__(self, arguments, output, cwd=ROOT):
        self.returncode, self.pid = None, os.fork()
        if self.pid:
            return
        status = 1  # from here on this is the child, which must not come back
        try:
            if output:
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
            logging.root.handlers.clear()  # they are pytest's, and fairseq adds its own only if there are none
            logging.getLogger("fairseq").setLevel(logging.NOTSET)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
            os.chdir(str(cwd))
            sys.argv = arguments
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def poll(self, options=os.WNOHANG):
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, options)
            if ended:
                self.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        return self.returncode

    def wait(self):
        return self.poll(options=0)


@pytest.fixture
def forked(monkeypatch):
    """Runs' processes are forks, which saves fairseq's start of some seconds; test_runs.py has real ones."""
    pytest.importorskip("fairseq_cli.train")
    from wavepos_fairseq import models  # noqa: F401  (--user-dir imports no package a second time)
    from wavepos_fairseq.lab import runs

    monkeypatch.setattr(runs, "_start", lambda arguments, lock, threads, environment, output: Forked(arguments, output))


def run_module(module, *words, cwd):
    """Runs `python -m module words` in `cwd`, where only --user-dir can find the plugin."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=str(cwd),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="session")
def slurm_cluster():
    """A Slurm cluster of one node, named by SLURM_CONF; skips the test if none can be started."""
    from slurm_cluster import cluster

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(cluster())
        except RuntimeError as reason:
            pytest.skip(f"no Slurm: {reason}")
        yield
