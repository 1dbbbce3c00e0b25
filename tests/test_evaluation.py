"""Evaluation: beside fairseq-eval-lm and scoring by hand, what it writes, and what it refuses."""

import argparse
import contextlib
import csv
import json
import math
import os
import shutil
import sys
from pathlib import Path

import fairseq_cli.eval_lm
import fairseq_cli.preprocess
import pytest
import torch
from conftest import L_TRAIN, PLAIN, ROOT, TINY, command_line, parse, preprocess, synthetic_text
from fairseq import options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.sequence_scorer import SequenceScorer

from wavepos_fairseq.common.commands import parse_lengths
from wavepos_fairseq.data import prepare
from wavepos_fairseq.evaluation.inferences import parse_inferences
from wavepos_fairseq.evaluation.perplexity import evaluate, evaluate_lines, pieces, stream_nll, windows
from wavepos_fairseq.evaluation.statistics import bootstrap_interval
from wavepos_fairseq.lab.evaluate import main
from wavepos_fairseq.plugin.checkpoint import FairseqScorer, load_checkpoint, token_nll
from wavepos_fairseq.plugin.streams import SPLITS, load_stream
from wavepos_fairseq.positions.temperature import TemperedPosition

WIKITEXT2 = Path(os.environ.get("WAVEPOS_WIKITEXT2") or ROOT.parent / "shared/data/wikitext-2")
SHORTER, LONGER = 20, 72  # than L_TRAIN = 32; neither divides the stream, and 72 = 32 + 32 + 8
ENCODINGS = ["nope", "rope", "alibi", "wavelet"]


@pytest.fixture(scope="module")
def load(trained, data_bin):
    """load(position encoding, changes): the evaluation's checkpoint and stream."""

    def loaded(encoding, changes=None):
        checkpoint = load_checkpoint(trained(encoding, changes), str(data_bin))
        return checkpoint, load_stream(str(data_bin), "valid", checkpoint.task.dictionary)

    return loaded


def inputs_of(stream, checkpoint):
    return torch.cat((torch.tensor([checkpoint.task.dictionary.eos()]), stream[:-1]))


@torch.no_grad()
def nll_by_fairseq(model, source, target):
    """Of one piece, from fairseq's log-probabilities over the whole vocabulary."""
    log_probs = model.get_normalized_probs(model(source[None]), log_probs=True)[0]
    return -log_probs.gather(1, target[:, None])[:, 0]


def fairseq_eval_lm(data, path, length, *more, **overrides):
    words = [str(data), "--path", str(path), "--gen-subset", "valid", "--sample-break-mode", "none", "--cpu"]
    words += ["--tokens-per-sample", str(length), "--max-tokens", "512", "--num-workers", "0", *more]
    words += ["--model-overrides", str({"max_target_positions": length, **overrides})]
    arguments = options.parse_args_and_arch(options.get_eval_lm_parser(), words)
    return fairseq_cli.eval_lm.main(convert_namespace_to_omegaconf(arguments))


# the two inferences


@pytest.mark.parametrize("length", [SHORTER, LONGER])
@pytest.mark.parametrize("encoding, changes", [*((name, {}) for name in ENCODINGS), ("wavelet", PLAIN)])
def test_full_is_what_fairseq_eval_lm_gives(load, trained, data_bin, encoding, changes, length):
    (cell,) = evaluate(*load(encoding, changes), [length], ["full"])
    theirs = fairseq_eval_lm(data_bin, trained(encoding, changes), length)
    assert cell["perplexity"] == pytest.approx(float(theirs["perplexity"]), rel=1e-5)
    assert cell["nll"] == pytest.approx(float(theirs["loss"]) * math.log(2), rel=1e-5)
    text = (data_bin / "valid.txt").read_text()
    assert cell["tokens"] == len(text.split()) + text.count("\n")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_non_overlapping_is_the_pieces_scored_one_by_one(load, encoding):
    checkpoint, stream = load(encoding)
    source = inputs_of(stream, checkpoint)
    scored = []
    for start in range(0, len(stream), LONGER):
        sequence_source, sequence_target = source[start : start + LONGER], stream[start : start + LONGER]
        for first in range(0, len(sequence_target), L_TRAIN):
            piece = slice(first, first + L_TRAIN)
            scored.append(nll_by_fairseq(checkpoint.model, sequence_source[piece], sequence_target[piece]))
    assert [len(nll) for nll in scored[:6]] == [32, 32, 8, 32, 32, 8]
    full, cell = evaluate(checkpoint, stream, [LONGER])
    assert (full["inference"], cell["inference"]) == ("full", "non-overlapping")
    assert cell["nll"] == pytest.approx(torch.cat(scored).double().mean().item(), rel=1e-6)
    assert cell["perplexity"] == math.exp(cell["nll"])
    assert full["nll"] != pytest.approx(cell["nll"], rel=1e-4)


@pytest.mark.parametrize("length", [SHORTER, L_TRAIN])
def test_up_to_l_train_the_two_inferences_are_one_number(load, length):
    checkpoint, stream = load("alibi")
    (alone,) = evaluate(checkpoint, stream, [length], ["non-overlapping"])
    full, cell = evaluate(checkpoint, stream, [length])
    assert full["perplexity"] == cell["perplexity"] == alone["perplexity"]
    assert (full["inference"], cell["inference"]) == ("full", "non-overlapping")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_pieces_do_not_see_each_other(load, encoding):
    checkpoint, stream = load(encoding)
    source = inputs_of(stream, checkpoint)
    cuts = pieces(len(stream), LONGER, L_TRAIN)
    start, _, stop = cuts[4]
    at = start + 10
    changed = source.clone()
    changed[at] = source[at] % 50 + 5
    before, after = (stream_nll(checkpoint, tokens, stream, cuts, 4096) for tokens in (source, changed))
    moved = before != after
    assert not moved[:at].any() and not moved[stop:].any()
    assert moved[at:stop].float().mean() > 0.9


def test_pieces_that_lengths_have_in_common_are_cells_of_each(load):
    checkpoint, stream = load("alibi")
    cells = evaluate(checkpoint, stream, [L_TRAIN, 2 * L_TRAIN], ["non-overlapping"])
    assert [cell["sequence_length"] for cell in cells] == [L_TRAIN, 2 * L_TRAIN]
    assert cells[0]["nll"] == pytest.approx(cells[1]["nll"], rel=1e-6)
    assert cells[0]["perplexity_low"] != cells[1]["perplexity_low"]  # drawn by sequences


# sliding windows


@pytest.mark.parametrize("length, stride", [(LONGER, 24), (SHORTER, 7)])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_sliding_is_fairseq_eval_lm_with_a_context_window(load, trained, data_bin, encoding, length, stride):
    (cell,) = evaluate(*load(encoding), [length], ["sliding"], stride=stride)
    theirs = fairseq_eval_lm(data_bin, trained(encoding), length, "--context-window", str(length - stride))
    assert cell["nll"] == pytest.approx(float(theirs["loss"]) * math.log(2), rel=1e-5)
    assert cell["tokens"] == len(load(encoding)[1])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_with_a_stride_of_the_length_sliding_is_full(load, encoding):
    full, sliding = evaluate(*load(encoding), [LONGER], ["full", "sliding"], stride=LONGER)
    assert sliding["inference"] == "sliding" and sliding["nll"] == full["nll"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_token_s_loss_depends_on_its_window_only(load, encoding):
    checkpoint, stream = load(encoding)
    source, cuts = inputs_of(stream, checkpoint), windows(len(stream), LONGER, 24)
    start, first, stop = cuts[5]
    assert (first - start, stop - first) == (48, 24)
    losses = []
    for at in (None, start - 1, start):  # nothing, the input before the window, the window's first input
        changed = source.clone()
        if at is not None:
            changed[at] = source[at] % 50 + 5
        losses.append(stream_nll(checkpoint, changed, stream, cuts, 4096)[first:stop])
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("num_tokens, length, stride", [(200, 72, 24), (7, 20, 3), (100, 32, 32), (50, 64, 1)])
def test_windows_end_at_multiples_of_the_stride_and_score_each_token_once(num_tokens, length, stride):
    cuts = windows(num_tokens, length, stride)
    assert [cut.stop for cut in cuts] == [min(n, num_tokens) for n in range(stride, num_tokens + stride, stride)]
    assert [token for cut in cuts for token in range(cut.first, cut.stop)] == list(range(num_tokens))
    assert all(cut.start == max(0, cut.first + stride - length) for cut in cuts)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "sliding needs --stride"),
        (["--stride", "0"], "'0' is not a whole number > 0"),
        (["--stride", "2.5"], "'2.5' is not a whole number > 0"),
        (["--stride", "21"], "--stride 21: accepted are 1 to 20, the shortest length"),
    ],
)
def test_a_stride_that_no_window_can_take_is_one_line(trained, data_bin, capsys, words, message):
    options = [str(data_bin), "--path", str(trained("nope")), "--lengths", "72,20", "--inference", "sliding", *words]
    with contextlib.suppress(SystemExit):
        assert main(options) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "options, message",
    [
        *(({"stride": stride}, f"--stride {stride}: accepted are 1 to 20") for stride in (0, -3, 2.5, True, 21)),
        ({"stride": 5, "sliding_tokens": -5}, "--sliding-tokens -5: accepted is a whole number > 0"),
        ({"stride": 5, "sequences": 0}, "--sequences 0: accepted is a whole number > 0"),
        ({"inferences": ["slidng"]}, "--inference slidng: accepted are full, non-overlapping, sliding"),
    ],
)
def test_what_no_evaluation_can_take_is_refused_in_python_too(load, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        evaluate(*load("nope"), [72, 20], **{"inferences": ["sliding"], **options})


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_result_does_not_depend_on_max_tokens(load, encoding):
    checkpoint, stream = load(encoding)
    one, some, many = (evaluate(checkpoint, stream, [LONGER], max_tokens=n) for n in (1, 100, 100000))
    for cells in zip(one, some, many):
        assert [c["nll"] for c in cells[1:]] == pytest.approx([cells[0]["nll"]] * 2, rel=1e-6)


@pytest.mark.parametrize("changes", [{}, PLAIN], ids=["adaptive", "plain"])
def test_token_nll_is_that_of_fairseqs_probabilities(load, changes):
    checkpoint, stream = load("wavelet", changes)
    assert (checkpoint.model.decoder.adaptive_softmax is None) == bool(changes)
    source, target = inputs_of(stream, checkpoint)[:120].view(3, 40), stream[:120].view(3, 40)
    with torch.no_grad():
        ours = token_nll(checkpoint.model, source, target)
    theirs = torch.stack([nll_by_fairseq(checkpoint.model, s, t) for s, t in zip(source, target)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert {0, 1, 2} == {int(band) for band in torch.bucketize(target, torch.tensor([20, 40]), right=True).unique()}


def test_of_several_folders_the_first_is_evaluated_as_by_fairseq_eval_lm(trained, data_bin, tmp_path):
    (tmp_path / "text").write_text("w1 w2\n" * 20)
    other = preprocess(tmp_path / "other", train=tmp_path / "text", valid=tmp_path / "text")
    both, output = f"{data_bin}:{other}", tmp_path / "result.json"
    assert run(both, trained("alibi"), "--lengths", SHORTER, "--inference", "full", "--output", output) == 0
    (cell,) = json.loads(output.read_text())["cells"]
    theirs = fairseq_eval_lm(both, trained("alibi"), SHORTER)
    assert cell["nll"] == pytest.approx(float(theirs["loss"]) * math.log(2), rel=1e-5)


@pytest.mark.parametrize("implementation", ["lazy", "cached", "raw"])
def test_each_implementation_of_a_data_bin_has_the_same_stream(data_bin, tmp_path, implementation):
    words = ["--only-source", "--destdir", str(tmp_path), "--workers", "1", "--srcdict", str(data_bin / "dict.txt")]
    words += ["--validpref", str(data_bin / "valid.txt"), "--dataset-impl", implementation]
    fairseq_cli.preprocess.main(options.get_preprocessing_parser().parse_args(words))
    for file in tmp_path.glob("valid.None-None*"):  # the languages of a corpus that has none
        file.rename(tmp_path / file.name.replace(".None-None", ""))
    dictionary = Dictionary.load(str(data_bin / "dict.txt"))
    assert torch.equal(*(load_stream(str(folder), "valid", dictionary) for folder in (tmp_path, data_bin)))


# each line on its own


@pytest.fixture
def scored_by_fairseq(data_bin):
    """scored_by_fairseq(checkpoint): the losses of each line, by its dataset of --sample-break-mode eos and scorer."""

    def score(checkpoint):
        task = checkpoint.task
        task.args.sample_break_mode = "eos"
        task.load_dataset("valid")
        dataset = task.dataset("valid")
        samples = [dataset.collater([dataset[index]]) for index in range(len(dataset))]
        scorer = SequenceScorer(task.target_dictionary)
        return [-scorer.generate([checkpoint.model], sample)[0][0]["positional_scores"] for sample in samples]

    return score


@pytest.mark.parametrize("name", ["lines.csv", "lines.jsonl"])
@pytest.mark.parametrize("encoding", ["wavelet", "t5"])
def test_a_line_on_its_own_has_the_loss_of_fairseqs_sample_break_mode_eos(
    trained, data_bin, scored_by_fairseq, tmp_path, encoding, name
):
    assert run(data_bin, trained(encoding), "--per-line", tmp_path / name, "--max-tokens", 64) == 0
    text = (tmp_path / name).read_text()
    ours = list(csv.DictReader(text.splitlines())) if name.endswith("csv") else list(map(json.loads, text.splitlines()))
    theirs = scored_by_fairseq(load_checkpoint(trained(encoding), str(data_bin)))
    assert len(ours) == len(theirs) == 60
    for number, (line, losses) in enumerate(zip(ours, theirs), start=1):
        assert list(line) == ["line", "tokens", "nll", "perplexity"]
        assert (int(line["line"]), int(line["tokens"])) == (number, len(losses))
        assert float(line["nll"]) == pytest.approx(losses.double().mean().item(), rel=1e-5)
        assert float(line["perplexity"]) == math.exp(float(line["nll"]))


def test_an_empty_line_is_its_end_alone(load):
    checkpoint, _ = load("nope")
    eos = torch.tensor([checkpoint.task.dictionary.eos()])
    lines = [torch.tensor([10, 11, 2]), eos, torch.tensor([10, 11, 2])]
    first, empty, again = evaluate_lines(checkpoint, lines)
    assert (empty["line"], empty["tokens"]) == (2, 1)
    assert empty["nll"] == pytest.approx(nll_by_fairseq(checkpoint.model, eos, eos).item(), rel=1e-6)
    assert again["nll"] == first["nll"]


# other options and weights than those of the training's end


def test_other_options_are_those_of_fairseq_eval_lms_model_overrides_and_recorded(trained, data_bin, tmp_path):
    words = ["--lengths", LONGER, "--inference", "full", "--output", tmp_path / "result.json"]
    assert (
        run(data_bin, trained("rope"), *words, "--model-overrides", "{'rope_theta': 200, 'max_target_positions': 99}")
        == 0
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model_overrides"] == {"rope_theta": 200, "max_target_positions": 99}
    assert result["options"]["rope_theta"] == 200
    theirs = fairseq_eval_lm(data_bin, trained("rope"), LONGER, rope_theta=200.0)
    assert result["cells"][0]["nll"] == pytest.approx(float(theirs["loss"]) * math.log(2), rel=1e-5)
    assert run(data_bin, trained("rope"), *words) == 0
    as_trained = json.loads((tmp_path / "result.json").read_text())
    assert as_trained["model_overrides"] == {} and "rope_theta" not in as_trained["options"]
    assert as_trained["cells"][0]["nll"] != result["cells"][0]["nll"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            "{'rope_thetta': 1}",
            "--model-overrides: rope_thetta is no option of a transformer_lm_wavelet; accepted are ",
        ),
        ("{'_name': 'transformer_lm'}", "--model-overrides: _name is no option of a transformer_lm_wavelet"),
        ("{'rope_theta': 'many'}", "--model-overrides: rope_theta: Value 'many'"),
        ("{'wavelet': 'haar'}", "--wavelet 'haar' is given, but --position-encoding 'rope' does not read it"),
        ("{'decoder_layers': 3}", "Missing key(s) in state_dict"),
        ("{'rope_theta': [1]}", "argument --model-overrides: \"{'rope_theta': [1]}\" is not a dict of options"),
        ("rope_theta=1", "argument --model-overrides: 'rope_theta=1' is not a dict of options"),
        ("{'rope_theta': __import__('os').getpid()}", "is not a dict of options"),
    ],
)
def test_options_that_a_model_has_not_or_cannot_have_are_refused(refuses, trained, data_bin, overrides, message):
    error = refuses(data_bin, trained("rope"), "--lengths", "20", f"--model-overrides={overrides}")
    assert message in error and ("error: --" in error or "argument --model-overrides" in error)


def test_averaged_weights_are_those_that_fairseq_has_kept(trained, data_bin, tmp_path):
    path = trained("rope", {**PLAIN, "--store-ema": True, "--ema-decay": "0.9"})  # fairseq averages no adaptive softmax

    def average(state):
        state["model"] = state["extra_state"]["ema"]

    averaged = edited(path, tmp_path / "averaged.pt", average)
    theirs = fairseq_eval_lm(data_bin, averaged, SHORTER)
    output = tmp_path / "result.json"
    for words in [], ["--ema"]:
        assert run(data_bin, path, "--lengths", SHORTER, "--inference", "full", "--output", output, *words) == 0
        result = json.loads(output.read_text())
        same = result["cells"][0]["nll"] == pytest.approx(float(theirs["loss"]) * math.log(2), rel=1e-5)
        assert (result["ema"], same) == (bool(words), bool(words))


def test_averaged_weights_that_are_not_there_are_refused(refuses, trained, data_bin):
    error = refuses(data_bin, trained("nope"), "--lengths", "20", "--ema")
    assert error.startswith("error: --ema: --path") and "has no averaged weights" in error


# cutting


def lengths_of(cuts):
    return [stop - start for start, _, stop in cuts]


def test_a_sequence_of_2512_is_cut_at_512_as_in_the_paper():
    assert lengths_of(pieces(2512, 2512, 512)) == [512, 512, 512, 512, 464]


def test_the_last_sequence_is_shorter_and_cut_alike():
    assert lengths_of(pieces(2 * 72 + 40, 72, 32)) == [32, 32, 8, 32, 32, 8, 32, 8]
    assert lengths_of(pieces(2 * 72 + 5, 72, 72)) == [72, 72, 5]
    assert pieces(3, 72, 32) == [(0, 0, 3)]


@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33, 71, 72, 73, 517])
@pytest.mark.parametrize("sequence_length, piece_length", [(72, 32), (32, 32), (20, 20), (1, 1)])
def test_every_target_lies_in_one_piece(num_tokens, sequence_length, piece_length):
    cuts = pieces(num_tokens, sequence_length, piece_length)
    assert [t for start, _, stop in cuts for t in range(start, stop)] == list(range(num_tokens))
    assert all(start // sequence_length == (stop - 1) // sequence_length for start, _, stop in cuts)
    assert max(lengths_of(cuts)) <= piece_length


@pytest.mark.skipif(not WIKITEXT2.is_dir(), reason="no WikiText-2: set WAVEPOS_WIKITEXT2 to its folder")
def test_wikitext_valid_has_217646_targets_at_any_length(tmp_path):
    folder = preprocess(tmp_path, train=WIKITEXT2 / "wiki.valid.tokens")
    stream = load_stream(str(folder), "train", Dictionary.load(str(folder / "dict.txt")))
    for length in 128, 253:
        for piece_length in length, min(length, 128):
            assert sum(lengths_of(pieces(len(stream), length, piece_length))) == 217646


# what is written


def run(data, path, *words):
    return main([str(data), "--path", str(path), "--cpu", *map(str, words)])


def test_json_holds_the_fields_of_the_design(trained, data_bin, tmp_path):
    output = tmp_path / "folder" / "result.json"
    assert run(data_bin, trained("rope"), "--lengths", "20,72", "--output", output) == 0
    result = json.loads(output.read_text())
    assert result["checkpoint"] == trained("rope")
    assert result["options"]["position_encoding"] == "rope"
    assert result["options"]["decoder_embed_dim"] == 32
    assert {"torch", "fairseq", "python", "wavepos_fairseq"} <= result["versions"].keys()
    assert result["versions"]["torch"] == torch.__version__
    assert "cpu" in result["device"]
    fields = "inference l_train sequence_length tokens nll perplexity seconds tokens_per_second".split()
    fields += ["perplexity_low", "perplexity_high", "stretch_nll", "stride"]
    order = [(cell["sequence_length"], cell["inference"]) for cell in result["cells"]]
    assert order == [(length, inference) for length in (20, 72) for inference in ("full", "non-overlapping")]
    for cell in result["cells"]:
        assert set(cell) == set(fields)
        assert cell["l_train"] == L_TRAIN
        assert cell["perplexity"] == math.exp(cell["nll"])
        assert cell["perplexity_low"] < cell["perplexity"] < cell["perplexity_high"]
        assert cell["seconds"] > 0
        assert cell["tokens_per_second"] == pytest.approx(cell["tokens"] / cell["seconds"])
    assert [path.name for path in output.parent.iterdir()] == ["result.json"]


def test_perplexities_that_nobody_reads_off_the_screen_are_written(trained, data_bin, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    assert run(data_bin, trained("nope"), "--lengths", "16", "--output", tmp_path / "o.json") == 0
    assert json.loads((tmp_path / "o.json").read_text())["cells"]


def test_subword_data_also_gets_the_perplexity_per_word(trained, data_bin, tmp_path):
    folder = tmp_path / "subword"
    shutil.copytree(str(data_bin), str(folder))
    (folder / "bpe.codes").write_text("#version: 0.2\n")
    output = tmp_path / "result.json"
    assert run(folder, trained("nope"), "--lengths", "72", "--output", output) == 0
    lines = (data_bin / "valid.txt").read_text().splitlines()
    words = sum(not unit.endswith("@@") for line in lines for unit in [*line.split(), "</s>"])
    for cell in json.loads(output.read_text())["cells"]:
        assert cell["words"] == words < cell["tokens"]
        assert cell["word_perplexity"] == pytest.approx(math.exp(cell["nll"] * cell["tokens"] / words), rel=1e-12)


def test_repeated_lengths_and_inferences_are_evaluated_once():
    assert parse_lengths("128,256,128") == [128, 256]
    assert parse_inferences("full,full") == ["full"]


# bad input


@pytest.fixture
def refuses(trained, data_bin, tmp_path, capsys):
    """refuses(data, path, words): evaluation ends with status 2 and writes no file; gives its one line of error."""

    def refused(data=data_bin, path=None, *words):
        output = tmp_path / "output" / "result.json"
        words = words or ("--lengths", "20")
        try:
            status = run(data, path or trained("nope"), *words, "--output", output)
        except SystemExit as stopped:
            status = stopped.code
        assert status == 2
        assert not output.parent.exists()
        (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        return error

    return refused


def test_a_missing_data_folder_is_refused(refuses, tmp_path):
    error = refuses(tmp_path / "nowhere")
    assert error.startswith("error: ") and str(tmp_path / "nowhere") in error


def test_a_missing_checkpoint_is_refused(refuses, data_bin, tmp_path):
    error = refuses(data_bin, tmp_path / "nothing.pt")
    assert error.startswith("error: --path") and "nothing.pt" in error


@pytest.mark.parametrize("content", ["text", "tensors", "empty"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(data_bin, tmp_path, capsys, content):
    path = tmp_path / "other.pt"
    if content == "tensors":
        torch.save({"weight": torch.zeros(3)}, str(path))
    else:
        path.write_text("no checkpoint" if content == "text" else "")
    assert run(data_bin, path, "--lengths", "20") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --path") and "other.pt is no fairseq checkpoint" in line


def test_an_output_that_cannot_be_written_is_one_line(trained, data_bin, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(data_bin, trained("nope"), "--lengths", "20", "--output", tmp_path / "file" / "result.json") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: [Errno ") and str(tmp_path / "file") in line


def edited(path, target, edit):
    state = torch.load(path, map_location="cpu", weights_only=False)
    edit(state)
    torch.save(state, str(target))
    return target


def test_a_checkpoint_of_either_task_is_evaluated(load):
    ours, theirs = (
        evaluate(*load("rope", {"--task": task}), [LONGER])[1]["nll"]
        for task in ("language_modeling_wavepos", "language_modeling")
    )
    assert ours == theirs


def test_a_checkpoint_of_another_task_is_refused(refuses, trained, data_bin, tmp_path):
    def translate(state):
        state["cfg"]["task"]["_name"] = "translation"

    error = refuses(data_bin, edited(trained("nope"), tmp_path / "translation.pt", translate))
    assert error.startswith("error: --path") and "translation" in error


def test_a_checkpoint_of_a_smaller_output_dictionary_is_refused(refuses, trained, data_bin, tmp_path):
    def change(state):
        state["cfg"]["task"]["output_dictionary_size"] = size

    for size in 0, 63:
        error = refuses(data_bin, edited(trained("nope"), tmp_path / "changed.pt", change))
        assert error.startswith("error: --path") and f"--output-dictionary-size {size}, which is not evaluated" in error
    size = 64  # which is all of it
    assert run(data_bin, edited(trained("nope"), tmp_path / "changed.pt", change), "--lengths", "20") == 0


@pytest.mark.parametrize("given", [None, "many", 0, -1, True, 1.5])
def test_a_checkpoint_without_an_l_train_is_refused(refuses, trained, data_bin, tmp_path, given):
    def change(state):
        state["cfg"]["task"]["tokens_per_sample"] = given

    error = refuses(data_bin, edited(trained("nope"), tmp_path / "changed.pt", change))
    assert error.startswith("error: --path") and f"tokens_per_sample is {given!r}" in error


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(model=None),
        lambda state: state.update(model=[1]),
        lambda state: state["cfg"].update(task=None),
        lambda state: state["cfg"]["task"].update(task=None),
        lambda state: state["cfg"]["model"].update(decoder_layers="many"),
        lambda state: state["cfg"]["model"].update(decoder_attention_heads=0),
    ],
    ids=["no model", "a list", "no task", "task", "layers", "heads"],
)
def test_a_checkpoint_of_which_fairseq_makes_no_model_is_one_line_with_its_name(
    refuses, trained, data_bin, tmp_path, change
):
    path = edited(trained("nope"), tmp_path / "changed.pt", change)
    assert refuses(data_bin, path).startswith(f"error: --path {path}")


@pytest.mark.parametrize("given", [None, 3])
def test_what_a_checkpoint_calls_its_data_is_not_needed(trained, data_bin, tmp_path, given):
    def change(state):
        state["cfg"]["task"]["data"] = given

    assert run(data_bin, edited(trained("nope"), tmp_path / "changed.pt", change), "--lengths", "20") == 0


@pytest.mark.parametrize(
    "name, edit",
    [
        ("valid.idx", lambda content: b""),
        ("valid.idx", lambda content: b"<html>This page has moved.</html>"),
        ("valid.bin", lambda content: content[:101]),
        ("valid.bin", lambda content: b"\xff" * len(content)),
        ("dict.txt", lambda content: content + content.splitlines(True)[0]),
        ("dict.txt", lambda content: content.replace(b"w1 ", b"caf\xe9 ")),
    ],
    ids=["no index", "a page", "cut off", "unknown tokens", "a type twice", "latin-1"],
)
def test_a_broken_data_bin_is_one_line_with_its_file(refuses, data_bin, tmp_path, name, edit):
    folder = tmp_path / "broken"
    shutil.copytree(str(data_bin), str(folder))
    (folder / name).write_bytes(edit((folder / name).read_bytes()))
    file = f"{folder}/dict.txt: " if name == "dict.txt" else f"--subset valid: {folder}/valid.bin with valid.idx: "
    assert refuses(folder).startswith(f"error: {file}")


@pytest.mark.parametrize("loss", [math.nan, math.inf, 710.0])
def test_a_perplexity_that_is_not_finite_is_refused_with_its_cell(refuses, monkeypatch, loss):
    monkeypatch.setattr(FairseqScorer, "score", lambda self, source, target: torch.full(target.shape, loss))
    assert refuses().startswith(f"error: full, length 20: the perplexity of a mean loss of {loss:g} nats is not finite")


def other_dictionary(data_bin, folder, edit):
    """A copy of the data-bin whose dictionary has other lines."""
    shutil.copytree(str(data_bin), str(folder))
    lines = (folder / "dict.txt").read_text().splitlines(True)
    (folder / "dict.txt").write_text("".join(edit(lines)))
    return folder


def test_a_dictionary_of_the_same_size_with_other_words_is_refused(refuses, data_bin, tmp_path):
    folder = other_dictionary(data_bin, tmp_path / "swapped", lambda lines: [lines[1], lines[0], *lines[2:]])
    error = refuses(folder)
    assert error.startswith("error: --path") and "dictionary" in error and str(folder) in error


def test_a_dictionary_of_another_size_is_refused_in_one_line_where_the_training_data_is_gone(
    trained, data_bin, tmp_path, capsys
):
    def forget(state):
        state["cfg"]["task"]["data"] = str(tmp_path / "gone")

    folder = other_dictionary(data_bin, tmp_path / "longer", lambda lines: [*lines, "another 1\n", "word 1\n"])
    path = edited(trained("nope"), tmp_path / "moved.pt", forget)
    assert run(folder, path, "--lengths", "20") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --path {path} does not fit") and "66 types" in error
    assert len(error.splitlines()) == 1


def test_a_checkpoint_is_evaluated_where_its_training_data_is_gone(trained, data_bin, tmp_path):
    def forget(state):
        state["cfg"]["task"]["data"] = str(tmp_path / "gone")

    assert run(data_bin, edited(trained("nope"), tmp_path / "moved.pt", forget), "--lengths", "20") == 0


def test_a_checkpoint_older_than_some_options_is_evaluated_with_their_defaults(trained, data_bin, tmp_path):
    def forget(state):
        for option in ("attention_implementation", "attention_recompute", "rope_theta", "t5_num_buckets", "rpe_clip"):
            del state["cfg"]["model"][option]

    stream = load_stream(str(data_bin), "valid", load_checkpoint(trained("rope"), str(data_bin)).task.dictionary)
    old, new = (
        evaluate(load_checkpoint(path, str(data_bin)), stream, [SHORTER], ["full"])[0]["nll"]
        for path in (str(edited(trained("rope"), tmp_path / "old.pt", forget)), trained("rope"))
    )
    assert old == new


def test_a_temperature_is_that_of_the_length_over_the_trainings(trained, data_bin):
    tempered = load_checkpoint(trained("alibi"), str(data_bin), overrides={"attention_temperature": "yarn"})
    by_hand = load_checkpoint(trained("alibi"), str(data_bin))
    stream = load_stream(str(data_bin), "valid", by_hand.task.dictionary)
    lengths = [L_TRAIN, 2 * L_TRAIN]
    plain, by_option = (evaluate(scorer, stream, lengths, ["full"]) for scorer in (by_hand, tempered))
    for layer in by_hand.model.decoder.layers:
        layer.self_attn.position = TemperedPosition(layer.self_attn.position, L_TRAIN)
    nll = [
        [cell["nll"] for cell in cells] for cells in (plain, by_option, evaluate(by_hand, stream, lengths, ["full"]))
    ]
    assert nll[1] == nll[2] and nll[0][0] == nll[1][0] and nll[0][1] != nll[1][1]


@pytest.mark.parametrize("lengths", ["0", "-5", "abc", "128,,256", "", "12.5", "20,0"])
def test_lengths_that_are_none_are_refused(refuses, data_bin, lengths):
    assert "--lengths" in refuses(data_bin, None, f"--lengths={lengths}")


@pytest.mark.parametrize("tokens", ["0", "-1", "many"])
def test_a_batch_without_tokens_is_refused(refuses, data_bin, tokens):
    assert "--max-tokens" in refuses(data_bin, None, "--lengths", "20", f"--max-tokens={tokens}")


def test_neither_lengths_nor_lines_are_refused(refuses, data_bin, tmp_path):
    assert "one of the arguments --lengths --per-line is required" in refuses(data_bin, None, "--inference", "full")
    assert "argument --output: needs --lengths" in refuses(data_bin, None, "--per-line", tmp_path / "lines.csv")
    assert not (tmp_path / "lines.csv").exists()


def test_options_that_are_lists_are_written_as_text(trained, data_bin, tmp_path):
    def change(state):
        state["cfg"]["model"].update(more=[1, {"a": "b"}])

    path, output = edited(trained("nope"), tmp_path / "changed.pt", change), tmp_path / "result.json"
    assert run(data_bin, path, "--lengths", "20", "--output", output) == 0
    assert json.loads(output.read_text())["options"]["more"] == "[1, {'a': 'b'}]"


@pytest.mark.parametrize("name", ["lines", "lines.json", ""])
def test_a_file_of_lines_that_is_neither_csv_nor_jsonl_is_refused(refuses, data_bin, name):
    assert "accepted are names that end in .csv or .jsonl" in refuses(data_bin, None, f"--per-line={name}")


def test_a_literal_pad_in_the_text_is_refused_with_what_it_is(refuses, data_bin, tmp_path):
    folder = tmp_path / "pad"
    shutil.copytree(str(data_bin), str(folder))
    for file in folder.glob("valid.*"):
        file.unlink()
    (folder / "valid").write_text("w1 w2 <pad> w3\nw1 <pad>\n")  # as --dataset-impl raw keeps it
    error = refuses(folder)
    assert (
        error.startswith(f"error: --subset valid: {folder}/valid.bin")
        and "2 words of the text are a literal <pad>" in error
    )


@pytest.mark.parametrize(
    "change, said",
    [
        ({"decoder_attention_heads": -1}, "head_dim=-32: must be a whole number > 0"),
        ({"adaptive_softmax_cutoff": "20,4000", "adaptive_input_cutoff": "20,4000"}, "accepted are ascending numbers"),
        ({"wavelet_scales": "none"}, "--wavelet-scales"),
    ],
    ids=["heads", "cutoffs", "scales"],
)
@pytest.mark.parametrize("kept", ["args", "cfg", "cfg of an architecture"])
def test_options_that_do_not_fit_together_are_one_line_with_the_checkpoint(
    refuses, trained, data_bin, tmp_path, kept, change, said
):
    def spoil(state):
        state["cfg"]["model"].update(change)
        if kept == "cfg of an architecture":  # of which fairseq exits, rather than raises
            state["cfg"]["model"]["_name"] = "transformer_lm_wavelet_tiny"
        elif kept == "args":
            args = vars(parse(data_bin, *command_line({**TINY, "--position-encoding": "wavelet"})))
            state.update(cfg=None, args=argparse.Namespace(**{**args, **change}))

    path = edited(trained("wavelet"), tmp_path / "spoiled.pt", spoil)
    error = refuses(data_bin, path)
    assert error.startswith(f"error: --path {path}") and said in error and "error:" not in error[len("error:") :]


def test_an_unknown_representation_is_refused_with_those_that_there_are(refuses, data_bin):
    error = refuses(data_bin, None, "--lengths", "20", "--position-encoding", "nonsense")
    assert error.startswith("error: --position-encoding 'nonsense' is unknown; accepted are alibi, ")


def test_an_unknown_inference_is_refused(refuses, data_bin):
    error = refuses(data_bin, None, "--lengths", "20", "--inference", "full,rolling")
    assert "--inference" in error and "full,non-overlapping,sliding" in error


def test_an_unknown_subset_is_refused(refuses, data_bin):
    error = refuses(data_bin, None, "--lengths", "20", "--subset", "nonsense")
    assert error.startswith("error: --subset nonsense")


def test_the_interval_is_that_of_the_mean_over_sequences_drawn_anew():
    torch.manual_seed(0)
    of_sequence = torch.randn(400, 1, dtype=torch.float64) / 3 + 5
    nll = (of_sequence + torch.randn(400, 50, dtype=torch.float64)).flatten()
    low, high = bootstrap_interval(nll, 50)
    means = nll.view(400, 50).mean(dim=1)  # as many tokens in each: the standard error is that of a mean
    error = means.std(unbiased=False) / 20
    expected = [math.exp(means.mean() + sign * 1.96 * error) for sign in (-1, 1)]
    assert (low, high) == pytest.approx(expected, rel=0.1 * error.item())
    assert bootstrap_interval(nll, 50) == (low, high)
    assert bootstrap_interval(nll, 1)[1] < high  # tokens alone vary less than their sequences do


@pytest.mark.parametrize("length", [99, 100, 101])
def test_of_one_sequence_there_is_no_interval(length):
    nll = torch.rand(100, dtype=torch.float64)
    low, high = bootstrap_interval(nll, length)
    assert low < high if length == 99 else (low, high) == (None, None)


def test_without_an_interval_the_json_has_null(trained, data_bin, tmp_path):
    assert run(data_bin, trained("nope"), "--lengths", "100000", "--output", tmp_path / "result.json") == 0
    for cell in json.loads((tmp_path / "result.json").read_text())["cells"]:
        assert cell["perplexity"] > 1 and cell["perplexity_low"] is cell["perplexity_high"] is None


def test_a_shorter_last_sequence_counts_by_its_tokens_in_the_interval():
    nll = torch.cat((torch.zeros(100), torch.full((1,), 7.0))).double()  # two sequences, the second of one token
    low, high = bootstrap_interval(nll, 100)
    assert low == 1 and high == pytest.approx(math.exp(7))  # the first drawn twice, the second drawn twice
    low, high = bootstrap_interval(nll.expand(50, -1).flatten(), 101)
    assert low == high == pytest.approx(math.exp(7 / 101))


# per word, where a token is less


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    """A data-bin of characters, and the lines of its validation text."""
    folder = tmp_path_factory.mktemp("characters")
    texts = {split: synthetic_text(30, seed=seed).replace("@@", "") for seed, split in enumerate(SPLITS, 5)}
    for split, text in texts.items():
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    return prepare("text-characters", folder, folder), texts["valid"].splitlines()


def test_characters_are_reported_in_bits_and_per_word(characters, train, tmp_path, capsys):
    data, lines = characters
    output, checkpoint = tmp_path / "out.json", tmp_path / "run" / "checkpoint_last.pt"
    cutoffs = {"--adaptive-input-cutoff": "5,10", "--adaptive-softmax-cutoff": "5,10"}
    train(checkpoint.parent, {"--position-encoding": "nope", **cutoffs}, data)
    words = [str(data), "--path", str(checkpoint), "--lengths", "20", "--inference", "full", "--output", str(output)]
    assert main(words) == 0
    (cell,) = json.loads(output.read_text())["cells"]
    num_words = sum(len(line.split()) + 1 for line in lines)  # a line's end is one
    num_characters = sum(len(line) + 1 for line in lines)
    assert (cell["words"], cell["tokens"]) == (num_words, num_characters)
    assert cell["bits_per_character"] == pytest.approx(cell["nll"] / math.log(2))
    assert cell["word_perplexity"] == pytest.approx(math.exp(cell["nll"] * num_characters / num_words))
    assert cell["word_perplexity_low"] < cell["word_perplexity"] < cell["word_perplexity_high"]
    low = math.log(cell["perplexity_low"]) * num_characters / num_words
    assert math.log(cell["word_perplexity_low"]) == pytest.approx(low)
    assert "per word" in capsys.readouterr().out
