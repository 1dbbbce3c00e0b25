"""A run's processes: several train as one does with the same update; and they end with the one that started them."""

import json
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import L_TRAIN, PLUGIN, ROOT, TINY, TRAINING, command_line, run_module

DEMO = {
    **{name: None for name in TINY},
    "--arch": "transformer_lm_wavelet_tiny",
    "--position-encoding": "wavelet",
    "--dropout": "0",
    "--adaptive-input-cutoff": "20,40",
    "--adaptive-softmax-cutoff": "20,40",
}


def mean_and_last_loss(checkpoint):
    """Of all updates so far, in bits; unlike in the log, to the last digit."""
    meters = torch.load(str(checkpoint), map_location="cpu", weights_only=False)["extra_state"]["metrics"]
    loss = next(state for _, name, _, state in dict(meters)["train"] if name == "loss")
    return loss["sum"] / loss["count"], loss["val"]


@pytest.fixture(scope="module")
def two_processes(data_bin):
    """two_processes(save_dir, changes): trains the demo's model; gives the logged losses by update."""

    def run(save_dir, changes):
        done = run_module(
            *("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"),
            "wavepos_fairseq.plugin.parallel",
            *(data_bin, "--user-dir", PLUGIN, "--task", "language_modeling_wavepos", "--tokens-per-sample", L_TRAIN),
            *command_line({**TRAINING, **DEMO, "--save-dir": save_dir, **changes}),
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stdout
        logged = [json.loads(line) for line in re.findall(r"train_inner \| (\{.*\})", done.stdout)]
        return {int(line["num_updates"]): float(line["loss"]) for line in logged}

    return run


def test_two_processes_train_as_one_and_resume_where_they_stopped(train, two_processes, tmp_path):
    one = train(tmp_path / "one", {**DEMO, "--update-freq": "2"})
    whole = two_processes(tmp_path / "two", {"--save-interval-updates": "4"})
    assert whole == pytest.approx({update: float(loss) for update, loss in one.items()}, abs=1.1e-3)  # three digits
    expected = mean_and_last_loss(tmp_path / "one" / "checkpoint_last.pt")
    assert mean_and_last_loss(tmp_path / "two" / "checkpoint_last.pt") == pytest.approx(expected, abs=1e-4)

    # Within the first epoch: in later ones fairseq draws the batches of a resumed training anew, on one process too.
    resumed = two_processes(tmp_path / "resumed", {"--restore-file": tmp_path / "two" / "checkpoint_1_4.pt"})
    assert resumed == pytest.approx({update: loss for update, loss in whole.items() if update > 4}, abs=1.1e-3)


PARENT = """if True:
    import os, signal, subprocess, sys
    for number in (signal.SIGPIPE, signal.SIGHUP):  # which Python ignores, or nohup
        signal.signal(number, signal.SIG_DFL)
    subprocess.run([*sys.argv[1:], str(os.getpid()), "sleeper", "a b"])
"""
ON_ANOTHER_SYSTEM = "import runpy, sys; sys.platform = 'another'; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


@pytest.mark.parametrize("ending", [signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGKILL])
@pytest.mark.parametrize("start", [[], ["-c", ON_ANOTHER_SYSTEM]], ids=["here", "another system"])
def test_whatever_ends_a_process_ends_what_it_started(start, ending, tmp_path):
    sleeper = "import sys, time; print(__name__, *sys.argv[1:], flush=True); time.sleep(30); print('survived')"
    (tmp_path / "sleeper.py").write_text(sleeper)
    command = [sys.executable, "-c", PARENT, sys.executable, *start, str(PLUGIN / "common/child.py")]
    with subprocess.Popen(command, cwd=str(tmp_path), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "__main__ a b\n"
        parent.send_signal(ending)
        assert parent.stdout.read() == ""  # until nobody has it open
    assert parent.returncode == -ending


def test_a_process_whose_parent_has_ended_before_it_began_ends(tmp_path):
    (tmp_path / "sleeper.py").write_text("print('begun')")
    command = [sys.executable, str(PLUGIN / "common/child.py"), "1234567", "sleeper"]
    done = subprocess.run(command, cwd=str(tmp_path), stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
