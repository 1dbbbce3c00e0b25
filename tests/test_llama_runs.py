"""Table 2's side: corpora that stay text, their tokens, and a Llama that Trainer trains in runs like any other."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT

from wavepos_fairseq import data
from wavepos_fairseq.data import command as prepare
from wavepos_fairseq.data import python_source
from wavepos_fairseq.lab import configs, experiments, runs
from wavepos_fairseq.lab import evaluate as evaluation
from wavepos_fairseq.lab.llama_runs import run_of

pytest.importorskip("transformers", reason="transformers is not installed (extra hf, Python 3.11)")
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: E402

from wavepos_fairseq.hf import WaveletLlamaForCausalLM, tokens, train  # noqa: E402

CODE = 'def add(one, other):\n    """The sum."""\n    return one + other\n\n\n'
TYPES, L_TRAIN = 280, 16
PRESET = {
    "framework": "transformers",
    "corpus": "documents",
    "tokenizer": TYPES,
    "l_train": L_TRAIN,
    "lengths": [L_TRAIN, 2 * L_TRAIN],
    "gpus": 0,
    "tokens_per_update": 2 * L_TRAIN,
    "tokens_per_device": 2 * L_TRAIN,
    "shape": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "train": {"max_steps": 4, "learning_rate": 0.01, "save_steps": 2, "logging_steps": 1, "report_to": "none"},
    "evaluate": {"max-tokens": 256},
    "slurm": {"timeout_min": 10},
}
YARN = "{'rope_parameters': {'rope_type': 'yarn', 'factor': 2.0}}"
ROWS = {
    "rope": {"labels": {"method": "RoPE"}, "position": {"name": "rope", "rope_theta": 500000}},
    "haar": {"labels": {"method": "Haar"}, "position": {"name": "wavelet", "wavelet": "haar"}},
    "rope-yarn": {"labels": {"method": "YaRN"}, "trained": "rope", "evaluate": {"model-overrides": YARN}},
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A preset `t` and a table `t`, a folder of documents, and where everything goes."""
    made = tmp_path / "configs"
    for name, content in (("presets/t", PRESET), ("tables/t", {"title": "T", "rows": ROWS})):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / f"{name}.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(configs, "CONFIGS", made)
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    documents(tmp_path / "text")
    return tmp_path


def documents(folder, repeats=20):
    """Plain text for train, JSON lines for the others."""
    folder.mkdir()
    (folder / "train.txt").write_text(CODE * repeats, encoding="utf-8")
    for split, field in (("valid", "text"), ("test", "content")):
        lines = [json.dumps({field: f"{CODE}# {number}"}) + "\n" for number in range(3)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


class Ended:
    """A process that has ended."""

    def __init__(self, status):
        self.returncode = status

    def poll(self):
        return self.returncode


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs' processes are calls, whose modules and arguments are listed."""
    started = []

    def start(arguments, lock, threads, environment, output):
        module, *words = arguments
        started.append(module)
        main = {"wavepos_fairseq.hf.train": train.main, "wavepos_fairseq.evaluation": evaluation.main}[module]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", said := io.StringIO())
            status = main(words)
        output.write(said.getvalue().encode())
        output.flush()
        return Ended(status)

    monkeypatch.setattr(runs, "_start", start)
    return started


# Corpora that stay text


def test_documents_become_three_texts_which_tell_where_they_come_from(tmp_path):
    documents(tmp_path / "text")
    made = data.prepare("documents", tmp_path / "text", tmp_path / "data")
    assert (made / "train.txt").read_text(encoding="utf-8") == CODE * 20
    assert (
        (made / "valid.txt").read_text()
        == (made / "test.txt").read_text()
        == "".join(f"{CODE}# {n}\n" for n in range(3))
    )
    provenance = json.loads((made / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["bytes"]["train"] == len(CODE) * 20 and provenance["source"] == "text"
    assert data.prepare("documents", tmp_path / "text", tmp_path / "data") == made
    (tmp_path / "text" / "train.txt").write_text("other")
    with pytest.raises(data.DataError, match="was made from something else"):
        data.prepare("documents", tmp_path / "text", tmp_path / "data")


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("valid.jsonl", '{"text": "a"}\n{"text": \n', "valid.jsonl, line 2: not JSON"),
        ("valid.jsonl", '{"code": "a"}\n', "valid.jsonl, line 1: accepted is an object whose text or content is text"),
        ("valid.jsonl", '["text"]\n', "valid.jsonl, line 1: accepted is an object"),
        ("valid.jsonl", '{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}\n', "valid.jsonl, line 2: no text (surr"),
        ("valid.jsonl", "", "valid.jsonl is empty"),
        ("valid.jsonl", '{"text": ""}\n', "valid.jsonl is empty"),
        ("train.txt", " \n", "train.txt is empty"),
        ("train.txt", b"caf\xe9\n", "train.txt, line 1: not UTF-8"),
        ("valid.txt", "a", "valid.txt or valid.jsonl both of them there"),
        ("test.jsonl", None, "test.txt or test.jsonl missing; documents needs a folder with train, valid and test"),
    ],
)
def test_documents_that_cannot_be_read_are_one_line_and_leave_nothing(tmp_path, capsys, name, content, said):
    documents(tmp_path / "text")
    file = tmp_path / "text" / name
    file.unlink() if content is None else file.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["documents", "--from", str(tmp_path / "text"), "--dest", str(tmp_path / "data")]
    assert prepare.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "data" / "documents").exists()


def test_python_source_is_whole_files_of_the_library_without_tests_and_what_is_made_for_a_machine(
    tmp_path, monkeypatch
):
    kept = {f"mod{number}.py": f"x = {number}" for number in range(40)}
    left_out = ["test/a.py", "json/tests/b.py", "site-packages/c.py", "config-3.11-x/d.py", "_sysconfigdata__x.py"]
    left_out += ["pydoc_data/topics.py"]
    for name, text in {**kept, **dict.fromkeys(left_out, "no")}.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_text(text)
    (tmp_path / "lib" / "latin.py").write_bytes("# coding: latin-1\r\n# é\r\n".encode("latin-1"))
    (tmp_path / "lib" / "broken.py").write_bytes(b"# \xff\n")
    monkeypatch.setattr(python_source.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    with pytest.raises(data.DataError, match="gives only .* characters"):
        data.prepare("python-source", None, tmp_path)
    monkeypatch.setattr(python_source, "MIN_TRAIN_CHARACTERS", 10)
    made = data.prepare("python-source", None, tmp_path)
    read = {split: (made / f"{split}.txt").read_text(encoding="utf-8") for split in ("train", "valid", "test")}
    whole = "".join(read.values())
    assert sorted(whole.splitlines()) == sorted([*kept.values(), "# coding: latin-1", "# é"])
    assert all(read.values()) and len(read["train"]) > len(read["valid"]) + len(read["test"])


# Tokens


def test_a_text_in_parts_has_the_tokens_of_the_whole(tmp_path, monkeypatch):
    file = tmp_path / "text"
    text = (CODE + "x = 'é'\r\n\n\n\n  # indented\nimport os\nimport sys\n") * 9
    file.write_text(text, encoding="utf-8", newline="")
    monkeypatch.setattr(tokens, "CHARACTERS", 40)
    parts = [*tokens.parts_of(file)]
    assert "".join(parts) == text and len(parts) > 5
    made = tokens.learn_tokenizer(parts, TYPES)
    assert len(made) == TYPES and made.bos_token_id == made.eos_token_id == 0
    assert tokens.write_tokens(file, TYPES, tmp_path) == len(made(text)["input_ids"])
    stream = np.load(tmp_path / tokens.TOKENS)
    assert (
        stream.dtype == np.uint16
        and stream.tolist() == made(text)["input_ids"]
        and made.decode(stream.tolist()) == text
    )


def test_tokens_are_made_once_for_a_tokenizer_which_may_be_given(tmp_path):
    documents(tmp_path / "text")
    made = data.prepare("documents", tmp_path / "text", tmp_path)
    learned = data.prepare_tokens(made, TYPES)
    before = (learned / tokens.TOKENS).stat().st_mtime_ns
    assert data.prepare_tokens(made, TYPES) == learned == made / f"bpe-{TYPES}"
    assert (learned / tokens.TOKENS).stat().st_mtime_ns == before
    given = shutil.copytree(learned, tmp_path / "given")
    (again,) = {data.prepare_tokens(made, str(given)) for _ in range(2)}
    assert (
        again.name == "tokens-given" and (again / tokens.TOKENS).read_bytes() == (learned / tokens.TOKENS).read_bytes()
    )
    shutil.copytree(given, tmp_path / "other" / "given")
    for tokenizer, said in (
        (str(tmp_path / "other" / "given"), "was made by another tokenizer"),
        (12, "tokenizer 12: accepted are 257 types or more"),
        (99_999, "tokenizer 99999: the text gives no more than"),
        (str(tmp_path / "none"), "none cannot be read"),
    ):
        with pytest.raises(ValueError, match=said):
            data.prepare_tokens(made, tokenizer)
    assert not [path for path in made.iterdir() if path.name.startswith(".") or path.name.startswith("bpe-12")]


# Training


def test_rope_is_a_stock_llamas_own_and_the_others_are_ours():
    stock = train.config_of({"name": "rope", "rope_theta": 5e5}, PRESET["shape"], L_TRAIN, TYPES, eos=0)
    assert type(train.model_of(stock)) is LlamaForCausalLM
    assert stock.rope_parameters["rope_theta"] == 5e5 and stock.max_position_embeddings == L_TRAIN
    ours = train.config_of({"name": "rope", "rope_pairs": "adjacent"}, PRESET["shape"], L_TRAIN, TYPES, eos=0)
    assert type(train.model_of(ours)) is WaveletLlamaForCausalLM
    assert ours.position_options == {"rope_pairs": "adjacent"}
    for shape, said in (({"hidden": 3}, "hidden is no option"), ({"vocab_size": 3}, "vocab_size cannot be given")):
        with pytest.raises(ValueError, match=said):
            train.config_of({"name": "rope"}, shape, L_TRAIN, TYPES, eos=0)
    with pytest.raises(ValueError, match="head has 2 dimensions|wavelets"):
        train.config_of({"name": "wavelet"}, {**PRESET["shape"], "hidden_size": 8}, L_TRAIN, TYPES, eos=0)


def test_the_preset_of_the_paper_is_llama_2_7b():
    preset = configs.load_preset("llama2-7b")
    told = train.cost(train.config_of({"name": "rope"}, preset.shape, preset.l_train, 32000, eos=0), preset.l_train)
    assert told.parameters == 6_738_415_616  # as published
    products = 6_738_415_616 - 32000 * 4096 - 65 * 4096  # all but embeddings and norms
    assert told.operations == 6 * products + 6 * 32 * 4096 * 4096
    assert (preset.l_train, preset.lengths, preset.gpus) == (4096, [4096, 8192, 16384, 32768], 8)
    assert preset.train["max_steps"] == 30000 and preset.train["learning_rate"] == 3e-4


def test_table_2_has_the_papers_rows_and_names_its_own_additions():
    paper = pd.read_csv(ROOT / "results/paper/table2.csv")
    rows = configs.load_table("table2")[1]
    assert [row.labels["method"] for row in rows[:2]] == [*paper.method.unique()]
    assert rows[1].position["wavelet_scales"] == "2^2..2^9"
    for name in ("llama-cpu", "llama2-7b"):
        made = [run_of(configs.load_preset(name), row, ROOT, ROOT / row.name, gpus=0, seed=1) for row in rows]
        assert experiments.refusals(made) == {}
    assert {row.trained for row in rows} == {"", "rope-10k"}


@pytest.mark.parametrize("position", [["--position-encoding", "rpe"], ["--position-encoding", "rope"]])
def test_a_training_that_was_stopped_and_resumed_has_the_weights_of_one_that_was_not(tmp_path, capsys, position):
    documents(tmp_path / "text")
    made = data.prepare_tokens(data.prepare("documents", tmp_path / "text", tmp_path), TYPES)
    options = [word for name, value in PRESET["train"].items() for word in (f"--{name}", str(value))]
    options += [str(made), "--l-train", str(L_TRAIN), "--shape", json.dumps(PRESET["shape"]), "--use_cpu", *position]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train.main([*options, "--output_dir", str(whole)]) == 0
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    shutil.copytree(whole / "checkpoint-4", resumed / "checkpoint-4")
    (resumed / "checkpoint-4" / "trainer_state.json").write_text('{"global_st')  # killed while it was written
    said = capsys.readouterr().out.splitlines()
    assert [runs._logged(line)["num_updates"] for line in said if runs._logged(line)] == ["1", "2", "3", "4"]
    assert train.last_complete(resumed) == (2, resumed / "checkpoint-2")
    assert train.main([*options, "--output_dir", str(resumed)]) == 0
    logged = [runs._logged(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["num_updates"] for line in logged if line] == ["3", "4"]
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    start = load_file(whole / "checkpoint-2" / "model.safetensors")
    assert not torch.equal(one["lm_head.weight"], start["lm_head.weight"])
    shutil.rmtree(resumed / "model")  # killed between the last checkpoint and the model
    assert train.main([*options, "--output_dir", str(resumed)]) == 0
    assert not any(map(runs._logged, capsys.readouterr().out.splitlines()))
    again = load_file(resumed / "model" / "model.safetensors")
    assert one.keys() == again.keys() and all(torch.equal(one[name], again[name]) for name in one)
    assert (resumed / "model" / "tokenizer.json").is_file()
    assert train.main([*options, "--output_dir", str(resumed)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {resumed / 'model'} is there: the training is complete; ")


def reproduce(folders, *words):
    given = ["reproduce", "t", "--preset", "t", "--data", folders / "text", "--runs", folders / "runs"]
    return experiments.main([*map(str, given), "--results", str(folders / "results"), *words])


def test_a_table_is_reproduced_like_any_other_and_a_row_can_scale_the_rope_of_another(folders, in_this_process, capsys):
    assert reproduce(folders) == 0, capsys.readouterr()
    assert in_this_process == ["wavepos_fairseq.hf.train", "wavepos_fairseq.evaluation"] * 2 + [
        "wavepos_fairseq.evaluation"
    ]
    table = (
        pd.read_csv(folders / "results/t/t.tidy.csv").set_index(["method", "inference", "sequence_length"]).perplexity
    )
    assert len(table) == 12 and table.notna().all()
    rope, yarn = folders / "runs/t/rope", folders / "runs/t/rope-yarn"
    assert (
        type(AutoModelForCausalLM.from_pretrained(rope / "model")) is LlamaForCausalLM and not (yarn / "model").exists()
    )
    result = json.loads((rope / "result.json").read_text(encoding="utf-8"))
    assert (
        result["training_seconds"] >= 0
        and result["parameters"] == 280 * 32 * 2 + 2 * (4 * 32**2 + 3 * 32 * 48) + 5 * 32
    )
    assert (result["cells"][0]["words"], result["options"]["model_type"]) == (33, "llama")
    words = ["--model", rope / "model", "--text", folders / "data/documents/valid.txt", "--lengths", 32, "--cpu"]
    assert evaluation.main([*map(str, words), "--model-overrides", YARN, "--output", str(folders / "one.json")]) == 0
    scaled = json.loads((folders / "one.json").read_text(encoding="utf-8"))["cells"][0]
    assert table["YaRN", "full", 32] == pytest.approx(scaled["perplexity"]) != table["RoPE", "full", 32]
    done = len(in_this_process)
    assert reproduce(folders) == 0 and len(in_this_process) == done
    assert experiments.main(["status", "t", "--preset", "t", "--runs", str(folders / "runs")]) == 0
    assert capsys.readouterr().out.count("| done ") == 3


def test_a_row_that_does_not_fit_is_refused_before_anything_is_trained(folders, capsys):
    path = folders / "configs/tables/t.yaml"
    path.write_text(
        yaml.safe_dump({"title": "T", "rows": {"s": {"labels": {"m": "S"}, "position": {"name": "sinusoidal"}}}})
    )
    assert reproduce(folders) == 1
    assert "does not fit, preset t: --shape or position: position_encoding='sinusoidal'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["--learning_rate", "much"], "argument --learning_rate/--learning-rate: invalid float value: 'much'"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["--output_dir", "elsewhere"], "--output_dir elsewhere: this run has "),
        (["--max_steps", "0"], "--max_steps 0: accepted is a whole number > 0"),
        (["--position-encoding", "wavlet"], "'wavlet' is unknown"),
    ],
)
def test_options_that_the_run_cannot_have_are_one_line(folders, capsys, words, said):
    where = ["--data", str(folders / "text"), "--runs", str(folders / "runs")]
    assert experiments.main(["train", "t", *where, *words, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_a_dry_run_has_the_launch_line_and_counts(folders, capsys):
    where = ["--data", str(folders / "text"), "--runs", str(folders / "runs")]
    assert experiments.main(["train", "t", "rope", *where, "--dry-run"]) == 0
    command, parameters, operations = capsys.readouterr().out.splitlines()
    assert command.startswith("python -m wavepos_fairseq.hf.train ") and command.endswith("--rope-theta 500000")
    assert parameters.startswith("# 35,488 parameters; ") and operations.startswith("# 128 tokens in training, ")
    assert experiments.main(["train", "t", "rope", *where, "--gpus", "2", "--dry-run"]) == 0
    command = capsys.readouterr().out.splitlines()[0]
    assert command.startswith(
        "accelerate launch --multi_gpu --num_processes 2 --main_process_port 0 -m wavepos_fairseq.hf"
    )
    assert "--per_device_train_batch_size 1 --gradient_accumulation_steps 1" in command and "--use_cpu" not in command


@pytest.mark.parametrize(
    "change, said",
    [
        ({"framework": "jax"}, "framework must be transformers, or be left out for fairseq, not 'jax'"),
        ({"tokenizer": 0}, "tokenizer must be a number of types or a tokenizer's folder, not 0"),
        ({"shape": [32]}, "shape must be a mapping of a LlamaConfig's options"),
        ({"checkpoint": "checkpoint_last.pt"}, "checkpoint is unknown"),
        ({"train": {"max-update": 4}}, "train: max_steps is missing"),
    ],
)
def test_a_preset_of_another_form_is_refused(folders, change, said):
    (folders / "configs/presets/t.yaml").write_text(yaml.safe_dump({**PRESET, **change}))
    with pytest.raises(ValueError, match=said):
        configs.load_preset("t")


def test_texts_that_are_too_short_for_the_preset_are_refused_before_the_training(folders, capsys):
    (folders / "configs/presets/t.yaml").write_text(yaml.safe_dump({**PRESET, "lengths": [L_TRAIN, 4000]}))
    assert reproduce(folders) == 2
    assert "valid.txt has" in capsys.readouterr().err and not (folders / "runs/t/rope/model").exists()
