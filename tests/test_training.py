"""Training: with either criterion, twice alike, interrupted and resumed, and from the shell through --user-dir."""

import json
import math

import pytest
import torch
from conftest import L_TRAIN, PLAIN, PLUGIN, TRAINING, command_line, run_module
from fairseq import trainer

from wavepos_fairseq import evaluation
from wavepos_fairseq.positions import position_names

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
    theirs = train(tmp_path / "theirs", {"--arch": "transformer_lm"})
    assert [float(ours[n]) for n in range(1, 21)] == pytest.approx([float(theirs[n]) for n in range(1, 21)], abs=5e-3)


@pytest.mark.parametrize("encoding", position_names())
def test_every_parameter_of_the_model_is_trained(build, encoding):
    model = build({"--position-encoding": encoding})
    tokens = torch.randint(4, 60, (2, L_TRAIN))
    evaluation.token_nll(model, tokens[:, :-1], tokens[:, 1:]).sum().backward()
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


@pytest.mark.parametrize("killed_at, saved_at", [(8, [6]), (14, [12]), (11, [10, 11])])  # as many has an epoch
def test_an_interrupted_training_ends_as_the_uninterrupted_one(train, tmp_path, monkeypatch, killed_at, saved_at):
    changes = {**DROPOUT, "--max-update": "20", "--save-interval-updates": "6"}
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
    assert min(resumed) - 1 in saved_at and max(resumed) == 20
    assert resumed == {update: loss for update, loss in whole.items() if update >= min(resumed)}
    assert_equal_parameters(parameters(tmp_path / "resumed"), parameters(tmp_path / "whole"))


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
        *(data_bin, "--task", "language_modeling", "--tokens-per-sample", L_TRAIN, *plugin),
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
    assert evaluation.main([*arguments, "--output", str(output)]) == 0
    (cell,) = json.loads(output.read_text())["cells"]
    loss = cell["nll"] / math.log(2)
    assert f"Loss (base 2): {loss:.4f}, Perplexity: {cell['perplexity']:.2f}" in evaluated.stdout
