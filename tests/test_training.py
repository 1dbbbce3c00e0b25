"""Training: with either criterion, twice alike, interrupted and resumed, and from the shell through --user-dir."""

import functools
import json
import math
import os

import fairseq
import pytest
import torch
from conftest import L_TRAIN, PLAIN, PLUGIN, TRAINING, command_line, preprocess, run_module, synthetic_text
from fairseq import trainer

from wavepos_fairseq.lab.evaluate import main
from wavepos_fairseq.plugin.checkpoint import token_nll
from wavepos_fairseq.positions import position_names

FAIRSEQ = {"--arch": "transformer_lm", "--task": "language_modeling"}
DROPOUT = {"--dropout": "0.2", "--attention-dropout": "0.2", "--position-encoding": "wavelet"}


def parameters(folder):
    state = torch.load(str(folder / "checkpoint_last.pt"), map_location="cpu", weights_only=False)["model"]
    return {name: value for name, value in state.items() if "_float_tensor" not in name}  # fairseq leaves it unset


def assert_equal_parameters(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("changes", [{}, PLAIN], ids=["adaptive_loss", "cross_entropy"])
def test_loss_falls_with_either_criterion(train, tmp_path, changes):
    losses = train(tmp_path, {**changes, "--position-encoding": "wavelet"})
    assert sorted(losses) == list(range(1, 21))
    assert float(losses[20]) < float(losses[1]) - 1


def test_the_sinusoidal_model_trains_as_transformer_lm(train, tmp_path):
    ours = train(tmp_path / "ours", {"--position-encoding": "sinusoidal"})
    theirs = train(tmp_path / "theirs", FAIRSEQ)
    assert [float(ours[n]) for n in range(1, 21)] == pytest.approx([float(theirs[n]) for n in range(1, 21)], abs=5e-3)


@pytest.mark.parametrize("encoding", position_names())
def test_every_parameter_of_the_model_is_trained(build, encoding):
    model = build({"--position-encoding": encoding})
    tokens = torch.randint(4, 60, (2, L_TRAIN))
    token_nll(model, tokens[:, :-1], tokens[:, 1:]).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_seed_trains_twice_alike_and_another_seed_does_not(train, tmp_path):
    changes = {**DROPOUT, "--max-update": "8"}
    losses = train(tmp_path / "one", changes)
    assert train(tmp_path / "two", changes) == losses
    assert_equal_parameters(parameters(tmp_path / "one"), parameters(tmp_path / "two"))
    assert train(tmp_path / "three", {**changes, "--seed": "2"}) != losses


def test_dropout_of_the_attention_takes_part_in_training(train, tmp_path):
    changes = {**DROPOUT, "--max-update": "2"}
    with_dropout = train(tmp_path / "with", changes)
    assert train(tmp_path / "without", {**changes, "--attention-dropout": "0"}) != with_dropout


@pytest.fixture(scope="module")
def shards(data_bin, tmp_path_factory):
    """A path, as fairseq takes it, of three data-bins with one dictionary, each shorter than the one before."""
    folder = tmp_path_factory.mktemp("shards")
    paths = [data_bin]
    for number, lines in enumerate((150, 100)):
        text = folder / f"{number}.txt"
        text.write_text(synthetic_text(lines, seed=10 + number))
        paths.append(preprocess(folder / str(number), "--srcdict", str(data_bin / "dict.txt"), train=text))
    return os.pathsep.join(map(str, paths))


EPOCHS = {  # what changes the batches of an epoch, and on how many shards
    "one data-bin": ({}, 1),
    "three shards": ({}, 3),
    "batches drawn anew": ({"--update-epoch-batch-itr": "True"}, 1),
    "seeds of the epochs": ({"--update-ordered-indices-seed": True}, 1),
    "both": ({"--update-epoch-batch-itr": "True", "--update-ordered-indices-seed": True}, 1),
    "unshuffled at first": ({"--curriculum": "2"}, 1),
}


def data_of(num_shards, data_bin, shards):
    return data_bin if num_shards == 1 else shards


def test_fairseqs_own_task_is_left_as_it_is_and_gives_the_same_model(train, tmp_path, data_bin):
    """The two draw the same batches, until one resumes in a later epoch, where fairseq 0.12.3 draws others."""
    changes = {**DROPOUT, "--max-update": "24"}
    losses = train(tmp_path / "ours", changes)
    assert train(tmp_path / "theirs", {**changes, "--task": "language_modeling"}) == losses
    assert_equal_parameters(parameters(tmp_path / "ours"), parameters(tmp_path / "theirs"))
    whole = train(tmp_path / "whole", {**changes, "--max-update": "30"})
    for name, task in (("ours", "language_modeling_wavepos"), ("theirs", "language_modeling")):
        resumed = train(tmp_path / name, {**changes, "--max-update": "30", "--task": task})
        assert min(resumed) == 25
        goes_on = name == "ours" or fairseq.__version__ == "0.12.2"
        assert (resumed == {update: whole[update] for update in resumed}) == goes_on


@pytest.mark.parametrize("case", EPOCHS)
def test_epochs_are_counted_and_their_batches_drawn_as_fairseqs_own_are(train, tmp_path, data_bin, shards, case):
    options, num_shards = EPOCHS[case]
    changes = {**options, "--max-update": None, "--max-epoch": "4", "--no-epoch-checkpoints": None}
    data = data_of(num_shards, data_bin, shards)
    ours = train(tmp_path / "ours", {**changes, "--position-encoding": "sinusoidal"}, data)
    theirs = train(tmp_path / "theirs", {**changes, **FAIRSEQ}, data)
    assert sorted(ours) == sorted(theirs)
    compared = sorted(ours)[: 20 if "--curriculum" in options else None]  # fairseq never shuffles after it
    assert [float(ours[n]) for n in compared] == pytest.approx([float(theirs[n]) for n in compared], abs=5e-3)
    assert all((tmp_path / "ours" / f"checkpoint{epoch}.pt").is_file() for epoch in (1, 2, 3, 4))


INTERRUPTED = [("one data-bin", *at) for at in ((14, [12]), (11, [10, 11]))]  # an epoch has 10 or 11 updates
INTERRUPTED += [(case, 25, [24]) for case in EPOCHS]


@pytest.mark.parametrize("case, killed_at, saved_at", INTERRUPTED)
def test_an_interrupted_training_ends_as_the_uninterrupted_one(
    train, tmp_path, monkeypatch, data_bin, shards, case, killed_at, saved_at
):
    options, num_shards = EPOCHS[case]
    train = functools.partial(train, data=data_of(num_shards, data_bin, shards))
    last = 30 if killed_at == 25 else 20
    changes = {**DROPOUT, **options, "--max-update": str(last), "--save-interval-updates": "6"}
    whole = train(tmp_path / "whole", changes)
    step = trainer.Trainer.train_step

    def step_until_killed(self, *args, **kwargs):
        if self.get_num_updates() == killed_at:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.Trainer, "train_step", step_until_killed)
        train(tmp_path / "resumed", changes)
    resumed = train(tmp_path / "resumed", changes)
    assert min(resumed) - 1 in saved_at and max(resumed) == last
    assert resumed == {update: loss for update, loss in whole.items() if update >= min(resumed)}
    assert_equal_parameters(parameters(tmp_path / "resumed"), parameters(tmp_path / "whole"))


@pytest.mark.long
def test_the_shell_trains_and_evaluates_through_user_dir(data_bin, tmp_path):
    plugin = ("--user-dir", PLUGIN)
    changes = {
        "--save-dir": tmp_path / "saved",
        "--max-update": "5",
        "--position-encoding": "wavelet",
        "--wavelet-scales": "2^0..2^3",
    }
    trained = run_module(
        "fairseq_cli.train",
        *(data_bin, "--task", "language_modeling_wavepos", "--tokens-per-sample", L_TRAIN, *plugin),
        *("--arch", "transformer_lm_wavelet_tiny", "--adaptive-input-cutoff", "20,40"),
        *("--adaptive-softmax-cutoff", "20,40", *command_line({**TRAINING, **changes})),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stdout
    length = 2 * L_TRAIN
    evaluated = run_module(
        "fairseq_cli.eval_lm",
        *(data_bin, *plugin, "--path", tmp_path / "saved/checkpoint_last.pt", "--gen-subset", "valid", "--cpu"),
        *("--sample-break-mode", "none", "--tokens-per-sample", length, "--max-tokens", "512"),
        *("--model-overrides", f"{{'max_target_positions': {length}}}"),
        cwd=tmp_path,
    )
    assert evaluated.returncode == 0, evaluated.stdout
    path, output = str(tmp_path / "saved/checkpoint_last.pt"), tmp_path / "result.json"
    arguments = [str(data_bin), "--path", path, "--lengths", str(length), "--inference", "full", "--cpu"]
    assert main([*arguments, "--output", str(output)]) == 0
    (cell,) = json.loads(output.read_text())["cells"]
    loss = cell["nll"] / math.log(2)
    assert f"Loss (base 2): {loss:.4f}, Perplexity: {cell['perplexity']:.2f}" in evaluated.stdout
