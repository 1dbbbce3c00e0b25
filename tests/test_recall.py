"""Key-value recall: the made-up corpus, the accuracy over the distance, recall.csv and its figure."""

import argparse
import collections
import hashlib
import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PLAIN, sound_result

from wavepos_fairseq import data
from wavepos_fairseq.data import recall as corpus
from wavepos_fairseq.evaluation.recall import distances, edges, recall
from wavepos_fairseq.evaluation.statistics import share_interval
from wavepos_fairseq.lab import results, runs
from wavepos_fairseq.lab.configs import find_row, load_preset
from wavepos_fairseq.lab.figures import command as figures
from wavepos_fairseq.lab.figures import trained as drawn
from wavepos_fairseq.plugin.checkpoint import FairseqScorer, open_checkpoint
from wavepos_fairseq.plugin.streams import tokens_of

# The corpus


@pytest.fixture(scope="module")
def first_pairs():
    return list(itertools.islice(corpus.pairs("valid"), 60_000))


@pytest.fixture(scope="module")
def asked(first_pairs):
    """How many pairs ago the key of each pair was last seen; None: longer than LONGEST ago, or never."""
    last, ago = {}, []
    for place, (key, _) in enumerate(first_pairs):
        back = place - last[key] if key in last else None
        ago.append(back if back and back <= corpus.LONGEST else None)
        last[key] = place
    return ago


def test_a_key_that_was_seen_up_to_the_longest_distance_ago_has_the_value_that_it_had(first_pairs, asked):
    for place, back in enumerate(asked):
        if back:
            assert first_pairs[place] == first_pairs[place - back]


def test_three_of_four_keys_are_asked_as_often_at_one_power_of_two_as_at_another(asked):
    scales = collections.Counter(int(back).bit_length() for back in asked if back)
    assert sorted(scales) == list(range(1, corpus.LONGEST.bit_length() + 1))
    expected = corpus.ASKED * len(asked) / len(scales)
    assert all(abs(count - expected) < 0.1 * expected for count in scales.values())
    assert max(back for back in asked if back) == corpus.LONGEST


def test_nothing_tells_the_value_of_a_new_key(first_pairs, asked):
    numbered = [(key, value.split("=")[1]) for key, value in first_pairs]
    assert all(value in corpus.VALUES[key] for key, value in first_pairs)
    new = [pair for pair, back in zip(numbered, asked) if not back]
    after = [(before[1], pair[1]) for before, pair, back in zip(numbered, numbered[1:], asked[1:]) if not back]
    for combined in (new, after):  # a key, or the value before, with the value
        seen = collections.Counter(combined)
        types = len({left for left, _ in combined}) * len({value for _, value in combined})
        expected = len(combined) / types
        chi_squared = sum((count - expected) ** 2 for count in seen.values()) + (types - len(seen)) * expected**2
        assert abs(chi_squared / expected - types) < 5 * (2 * types) ** 0.5  # its mean and standard deviation


def test_the_corpus_is_the_same_in_another_process_and_no_split_is_another(first_pairs):
    code = "from wavepos_fairseq.data.recall import pairs; of = pairs('valid'); print([next(of) for _ in range(999)])"
    output = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    assert output == f"{first_pairs[:999]}\n"
    assert list(itertools.islice(corpus.pairs("test"), 9)) != first_pairs[:9]


@pytest.fixture(scope="module")
def corpus_bin(tmp_path_factory):
    """The corpus recall, with fewer lines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "LINES", {"train": 2500, "valid": 40, "test": 1})
        return data.prepare("recall", dest=tmp_path_factory.mktemp("data"))


def test_a_line_of_the_data_bin_has_whole_pairs_and_the_dictionary_all_keys_and_values(corpus_bin):
    provenance = json.loads((corpus_bin / "provenance.json").read_text())
    assert provenance["lines"] == {"train": 2500, "valid": 40, "test": 1}
    assert provenance["tokens"]["train"] == 2500 * (2 * corpus.PAIRS + 1)
    first = [token for pair in itertools.islice(corpus.pairs("test"), corpus.PAIRS) for token in pair]
    text = " ".join(first) + "\n"
    assert provenance["sha256"]["test"] == hashlib.sha256(text.encode()).hexdigest()


def test_another_source_is_refused(tmp_path):
    with pytest.raises(data.DataError, match=r"--from \.: recall is always made up, from random numbers"):
        data.prepare("recall", ".", tmp_path)


# The accuracy over the distance

L_TRAIN = 16
KEYS, VALUES = torch.arange(10, 100), torch.arange(3, 10)
BOS = 2


@pytest.fixture(scope="module")
def stream():
    """Pairs of tokens whose keys come again at all distances, with a line end after each seventh pair."""
    generator = np.random.default_rng(0)
    value_of = {key: int(generator.integers(3, 10)) for key in KEYS.tolist()}
    tokens, recent = [], []
    for place in range(2000):
        back = int(2 ** generator.uniform(0, 5.5))
        key = recent[-back] if back <= len(recent) else int(generator.integers(10, 100))
        recent.append(key)
        tokens += [key, value_of[key], *([BOS] if place % 7 == 6 else [])]
    return torch.tensor(tokens)


class Memory:
    """A model that finds a key up to `span` tokens back, and else answers the first value."""

    l_train, bos, device = L_TRAIN, BOS, torch.device("cpu")

    def __init__(self, span):
        self.span = span

    def most_probable(self, source, among):
        assert among.tolist() == VALUES.tolist()
        answers = torch.full_like(source, among[0])
        for row, tokens in enumerate(source.tolist()):
            for place, token in enumerate(tokens):
                for back in range(2, min(self.span, place) + 1):
                    if tokens[place - back] == token >= KEYS[0]:
                        answers[row, place] = tokens[place - back + 1]
                        break
        return answers


def spelled_out(stream, span):
    """Right answers of Memory(span) and questions, by length and distance."""
    text, tally = [BOS, *stream.tolist()], collections.defaultdict(lambda: [0, 0])
    for length, first in ((L_TRAIN, 0), (5 * L_TRAIN, L_TRAIN)):
        for start in range(0, len(stream) - length + 1, length):
            for place in range(start + first, start + length):
                before = [at for at in range(start, place) if text[at] == text[place]]
                if text[place] >= KEYS[0] and before:
                    back = place - before[-1]
                    answer = text[before[-1] + 1] if back <= span else VALUES[0]
                    tally[length, back][0] += bool(text[place + 1] == answer)
                    tally[length, back][1] += 1
    return tally


@pytest.mark.parametrize("span", [10, 30, 100])
def test_a_model_with_a_memory_of_n_tokens_is_always_right_up_to_them_as_the_definition_spelled_out_is(stream, span):
    lines = recall(Memory(span), stream, KEYS, VALUES)
    tally, counted = spelled_out(stream, span), 0
    for line in lines:
        inside = [
            numbers
            for (length, back), numbers in tally.items()
            if length == line["sequence_length"] and line["start"] <= back < line["stop"]
        ]
        right, asked = map(sum, zip(*inside))
        assert (line["accuracy"], line["count"]) == (right / asked, asked)
        assert line["low"] < line["accuracy"] < line["high"] or line["accuracy"] in (0, 1)
        if line["stop"] <= span:
            assert line["accuracy"] == 1
        counted += asked
    assert counted == sum(asked for _, asked in tally.values())  # no distance is left out
    assert {line["sequence_length"] for line in lines} == {L_TRAIN, 5 * L_TRAIN}


def test_the_ranges_of_distances_meet_at_l_train_and_end_at_five_times_it():
    assert edges(128) == [2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640]
    assert edges(96)[-10:-7] == [64, 96, 144]


def test_the_distance_is_that_to_the_last_time(stream):
    ago = distances(stream, KEYS)
    for place, token in enumerate(stream[:500].tolist()):
        earlier = [at for at in range(place) if stream[at] == token]
        assert ago[place] == (place - earlier[-1] if earlier and token >= KEYS[0] else 0)


def test_a_text_shorter_than_one_sequence_is_refused(stream):
    with pytest.raises(ValueError, match="the text has 79 tokens, fewer than 5 x L_train = 80"):
        recall(Memory(1), stream[:79], KEYS, VALUES)


@pytest.mark.parametrize("part, count", [(0, 7), (7, 7), (1, 2), (33, 400)])
def test_the_interval_of_a_share_is_scipys_wilson_interval(part, count):
    from scipy.stats import binomtest

    expected = binomtest(part, count).proportion_ci(method="wilson")
    low, high = share_interval(part, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-7)
    assert low <= part / count <= high


# recall.csv and its figure

PRESET = load_preset("recall-cpu")
TRAINED = {"recall-cpu/alibi": "alibi", "recall-cpu/nope": "nope", "recall-cpu-seed2/nope": "nope"}


@pytest.fixture(scope="module")
def finished(train, corpus_bin, tmp_path_factory):
    """--runs with two finished rows, one of them with two seeds, and with an unfinished and a broken one."""
    folder = tmp_path_factory.mktemp("recall") / "runs"
    for run, encoding in TRAINED.items():
        shape = {**PLAIN, "--position-encoding": encoding, "--max-update": "2", "--seed": len(run)}
        train(folder / run, shape, corpus_bin)
        of = runs.Run(PRESET, find_row(encoding), corpus_bin, folder / run, 0, 1)
        (folder / run / "result.json").write_text(json.dumps(sound_result(of)))
    for row in ("haar", "morlet"):
        shutil.copytree(folder / "recall-cpu" / "nope", folder / "recall-cpu" / row)
    (folder / "recall-cpu/haar/result.json").unlink()
    (folder / "recall-cpu/morlet/result.json").write_text("{}")
    return folder


def draw(finished, corpus_bin, where, *names, preset="recall-cpu"):
    words = ["--preset", preset, "--runs", finished, "--data", corpus_bin, "--results", where, *names]
    return figures.main([str(word) for word in words])


def test_every_finished_row_and_seed_is_measured_once_with_table_1s_rows_first(finished, corpus_bin, tmp_path, capsys):
    assert draw(finished, corpus_bin, tmp_path, "recall") == 0
    lines = results.read_sheet(tmp_path / "recall-cpu", "recall")
    assert list(lines.columns) == results.RECALL
    measured = list(dict.fromkeys(lines[["row", "seed"]].itertuples(index=False, name=None)))
    assert measured == [("nope", 1), ("nope", 2), ("alibi", 1)]
    assert "recall-cpu/morlet is broken" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "recall-cpu" / "figures").iterdir()} == {"recall.svg", "recall.png"}

    scorer, stream = open_checkpoint(finished / "recall-cpu/alibi/checkpoint_last.pt", corpus_bin)
    values = itertools.chain(*corpus.VALUES.values())
    keys, values = (tokens_of(scorer.task.dictionary, symbols) for symbols in (corpus.KEYS, values))
    expected = recall(scorer, stream, keys, values)
    of_alibi = lines[lines.row == "alibi"].drop(columns=["row", "seed", "l_train"])
    assert of_alibi.to_dict("records") == expected

    path = tmp_path / "recall-cpu" / "recall.csv"
    whole = path.read_text()
    path.write_text("".join(line for line in whole.splitlines(keepends=True) if not line.startswith("nope,2,")))
    assert draw(finished, corpus_bin, tmp_path, "recall") == 0
    assert path.read_text() == whole
    said = capsys.readouterr().err
    assert "recall: 1 of 1, " in said and "recall-cpu-seed2/nope/checkpoint_last.pt" in said
    shutil.rmtree(tmp_path / "recall-cpu" / "figures")
    assert draw(tmp_path / "gone", corpus_bin, tmp_path) == 2  # unasked and from the sheet alone; others need the runs
    assert (tmp_path / "recall-cpu" / "figures" / "recall.svg").is_file()


def test_without_a_finished_run_one_line_says_what_makes_one(corpus_bin, tmp_path, capsys):
    assert draw(tmp_path / "gone", corpus_bin, tmp_path, "recall") == 2
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path}/gone/recall-cpu has no finished run; run scripts/reproduce.sh table1 first\n"
    assert not (tmp_path / "recall-cpu").exists()


def test_a_run_of_another_corpus_is_named(trained, data_bin, tmp_path, capsys):
    run = tmp_path / "runs" / "demo" / "alibi"
    run.mkdir(parents=True)
    shutil.copy(trained("alibi"), run / "checkpoint_last.pt")
    of = runs.Run(load_preset("demo"), find_row("alibi"), data_bin, run, 0, 1)
    (run / "result.json").write_text(json.dumps(sound_result(of)))
    assert draw(tmp_path / "runs", data_bin, tmp_path, "recall", preset="demo") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {run}/checkpoint_last.pt: not trained on the corpus recall: the dictionary has no k0"


@pytest.mark.parametrize("changes", [PLAIN, {}], ids=["one softmax", "adaptive softmax"])
def test_the_most_probable_token_is_that_with_the_lowest_loss(build, changes):
    scorer = FairseqScorer(build(changes), argparse.Namespace(), 8, {})
    source = torch.randint(4, 60, (3, 8), generator=torch.Generator().manual_seed(0))
    among = torch.tensor([5, 17, 30, 44, 55, 9])
    losses = torch.stack([scorer.score(source, torch.full_like(source, token)) for token in among.tolist()])
    best = scorer.most_probable(source, among)
    assert torch.equal(best, among[losses.argmin(0)])
    assert len(best.unique()) > 1


def test_the_figure_has_a_panel_for_each_length_and_a_curve_for_each_seed_at_the_middle_of_the_distances():
    lines = pd.DataFrame(
        [
            (row, seed, 8, length, start, stop, share / seed, 0.0, 1.0, 10)
            for row, share in (("alibi", 0.5), ("rope-10k", 0.25))
            for seed in (1, 2)
            for length, start, stop in ((8, 2, 4), (8, 4, 8), (40, 2, 4), (40, 4, 8), (40, 8, 12))
        ],
        columns=results.RECALL,
    )
    near, far = drawn.draw_recall(lines).axes
    for axes, middles in ((near, [6**0.5, 28**0.5]), (far, [6**0.5, 28**0.5, 88**0.5])):
        curves = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
        assert [line.get_label() for line in curves] == 2 * ["ALiBi"] + 2 * ["RoPE theta=10000"]
        assert [line.get_xdata() for line in curves] == 4 * [pytest.approx(middles)]
        assert [line.get_ydata()[0] for line in curves] == [0.5, 0.25, 0.25, 0.125]
    (l_train,) = [line for line in far.get_lines() if line.get_label().startswith("_")]
    assert set(l_train.get_xdata()) == {8}
