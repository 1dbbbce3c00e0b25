"""LongBench's nine English tasks on made-up files: as LongBench's own code does, and what becomes of the scores."""

import importlib.util
import itertools
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from wavepos_fairseq.common.files import CONFIGS
from wavepos_fairseq.evaluation import longbench
from wavepos_fairseq.evaluation.longbench import RULER, TASKS
from wavepos_fairseq.lab import claims, results
from wavepos_fairseq.lab import longbench as command
from wavepos_fairseq.lab.figures import command as figures

ROOT = Path(__file__).resolve().parents[1]
MISSING = [
    name
    for name in ("transformers", "lm_eval", "jieba", "fuzzywuzzy", "rouge", "wonderwords")
    if importlib.util.find_spec(name) is None
]
CLAIMS = [claim for claim in claims.load_claims(CONFIGS / "claims.yaml") if claim.table == "longbench"]
needs_lm_eval = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)}: not installed (extra longbench)")
PASSAGE = "Passage 1:\nOne is a number.\n\nPassage 2:\nTwo is another."
INPUTS = {
    "triviaqa": "Passage:\nTwo comes after one.\nQuestion:\nWhat comes first?\nAnswer:",
    "samsum": "Dialogue: Ann: one?\nBob: two.\nSummary:",
}


def sample(task, number, **changes):
    """A made-up sample in LongBench's own format."""
    return {
        "input": INPUTS.get(task, "What comes first?"),
        "context": PASSAGE,
        "answers": ["one", "the One."],
        "length": 20 + number,
        "dataset": task,
        "language": "en",
        "all_classes": None,
        "_id": f"{task}{number}",
        **changes,
    }


def write(folder, task, samples):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples)
    (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three samples of each of the nine tasks."""
    folder = tmp_path_factory.mktemp("data")
    for task in TASKS:
        write(folder, task, [sample(task, number) for number in range(3)])
    return folder


def refused(capsys, *words):
    """What the command says in its one line, after status 2."""
    try:
        assert command.main([str(word) for word in words]) == 2
    except SystemExit as stop:
        assert stop.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(("error: ", "wavepos longbench: error: ")) and not any(
        "Traceback" in line for line in said
    )
    return said[-1].partition("error: ")[2]


# The data


def test_statistics_are_those_of_the_file_beside_table_5s(data, capsys):
    assert command.main(["--data", str(data)]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[2:]] == [task.title for task in TASKS.values()]
    assert all(line[1:4] == ["21", TASKS[task].metric, "3"] for task, line in zip(TASKS, lines[2:]))
    paper = (ROOT.parent / "shared" / "paper" / "paper.txt").read_text() if (ROOT.parent / "shared").is_dir() else ""
    for line in lines[2:]:
        assert not paper or any(
            [line[0], line[4], line[2], line[5]] == words.replace(",", "").split() for words in paper.splitlines()
        ), line
    assert command.main(["--data", str(data), "--limit", "1", "--tasks", "qmsum,qasper"]) == 0
    assert [line.split()[1:8:2] for line in capsys.readouterr().out.splitlines()[2:]] == [
        ["QMSum", "20", "Rouge-L", "1"],
        ["Qasper", "20", "F1", "1"],
    ]


def test_the_archive_of_the_hub_has_the_samples_of_the_folder(data, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as packed:
        for path in data.iterdir():
            packed.write(path, f"data/{path.name}")
    for task, limit in itertools.product(("hotpotqa", "2wikimqa"), (None, 2)):
        samples = longbench.read_samples(tmp_path / "data.zip", task, limit)
        assert samples == longbench.read_samples(data, task, limit) == [sample(task, n) for n in range(limit or 3)]


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "there are no samples in it"),
        ("\n", "line 1: expected a JSON object, not an empty line"),
        ("[]\n", "line 1: expected a mapping with _id, "),
        ("{", "line 1: Expecting property name"),
        ("\x80", "line 1: Expecting value"),
        (b"\x80", "'utf-8' codec can't decode"),
        ([{"_id": None}], "line 1: _id must be text, not None"),
        ([{"dataset": "musique_e"}], "line 1: dataset must be musique, not musique_e"),
        ([{"answers": "one"}], "line 1: answers must be a list of one or more texts, not 'one'"),
        ([{"answers": []}], "line 1: answers must be a list of one or more texts, not []"),
        ([{"length": "long"}], "line 1: length must be a number of words >= 0, not 'long'"),
        ([{"all_classes": 1}], "line 1: all_classes must be a list, or null, not 1"),
        ([{}, {"_id": "musique0"}], "line 2: _id musique0 appears twice"),
    ],
)
def test_a_file_of_another_format_is_refused_with_its_line(tmp_path, capsys, content, said):
    path = tmp_path / "musique.jsonl"
    if isinstance(content, list):
        write(tmp_path, "musique", [sample("musique", number, **changes) for number, changes in enumerate(content)])
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refused(capsys, "--data", tmp_path, "--tasks", "musique").startswith(f"--data {path}: {said}")


@pytest.mark.parametrize("field", ["_id", "input", "context", "answers", "length", "dataset"])
def test_a_missing_field_is_named(tmp_path, capsys, field):
    line = sample("qasper", 0)
    del line[field]
    write(tmp_path, "qasper", [sample("qasper", 1), line])
    assert refused(capsys, "--data", tmp_path, "--tasks", "qasper").endswith(f"line 2: {field} is missing")


def test_data_that_are_not_there_are_refused(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as packed:
        packed.writestr("read.me", "")
    for place in (tmp_path, tmp_path / "none", tmp_path / "other.zip"):
        said = refused(capsys, "--data", place, "--tasks", "qasper")
        assert said.startswith(f"--data {place}/qasper.jsonl: there is no such file") and "data.zip" in said


# The questions


@needs_lm_eval
def test_prompts_are_longbenchs():
    """The ends of each prompt as LongBench publishes them, around the context."""
    passages = (
        "The following are given passages.\n",
        "\n\nAnswer the question based on the given passages. Only give me ",
    )
    question, only = "\n\nQuestion: What comes first?", "only give me the answer and do not output any other words."
    brief = "Do not provide any explanation."
    around = {
        "narrativeqa": (f"{brief}\n\nStory: ", f"{brief}{question}\n\nAnswer:"),
        "qasper": (f"{brief}\n\nArticle: ", f"{brief}{question}\n\nAnswer:"),
        "multifieldqa_en": ("Read the following text and answer briefly.\n\n", f"{only}{question}\nAnswer:"),
        **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), (passages[0], f"any other words.{question}\nAnswer:")),
        "triviaqa": ("The following are some examples.\n\n", f"\n\n{INPUTS['triviaqa']}"),
        "samsum": ("The following are some examples.\n\n", f"\n\n{INPUTS['samsum']}"),
        "qmsum": ("Transcript:\n", "in one or more sentences.\n\nQuery: What comes first?\nAnswer:"),
    }
    for task in TASKS:
        before, after = longbench.prompt_of(task, sample(task, 0)).split(PASSAGE)
        assert before.endswith(around[task][0]) and after.endswith(around[task][1]), task
        assert not before[0].isspace() and after.startswith("\n\n")
    assert longbench.prompt_of("hotpotqa", sample("hotpotqa", 0)).split(PASSAGE)[1].startswith(passages[1])
    assert longbench.prompt_of("samsum", sample("samsum", 0)) == (
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n"
        f"{PASSAGE}\n\nDialogue: Ann: one?\nBob: two.\nSummary:"
    )


@needs_lm_eval
def test_answers_have_as_many_tokens_as_longbenchs():
    tokens = {"narrativeqa": 128, "qasper": 128, "multifieldqa_en": 64, "samsum": 128, "qmsum": 512}
    assert {task: longbench.most_tokens(task) for task in TASKS} == {task: tokens.get(task, 32) for task in TASKS}


# The scores


def f1_again(answer, true):
    """LongBench's qa_f1_score, spelled anew: words without case, punctuation and articles, matched one to one."""
    ours, theirs = (
        [
            word
            for word in "".join(sign for sign in text.lower() if sign.isalnum() or sign.isspace()).split()
            if word not in ("a", "an", "the")
        ]
        for text in (answer, true)
    )
    left, same = list(theirs), 0
    for word in ours:
        if word in left:
            left.remove(word)
            same += 1
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0


def rouge_l_again(answer, true):
    """Rouge-L of the package that LongBench uses, spelled anew: unions of longest common subsequences, as sets."""
    ours, theirs = ([" ".join(part.split()).split(" ") for part in text.split(".") if part] for text in (answer, true))
    if not ours or not theirs:
        return 0.0
    common = set()
    for one, other in itertools.product(theirs, ours):
        longest = max(
            (
                some
                for count in range(len(one) + 1)
                for some in itertools.combinations(one, count)
                if within(some, other)
            ),
            key=len,
        )
        common |= set(longest)
    words = [len({word for sentence in text for word in sentence}) for text in (ours, theirs)]
    precision, recall = (len(common) / count for count in words)
    return 2 * precision * recall / (precision + recall + 1e-8)


def within(some, words):
    rest = iter(words)
    return all(word in rest for word in some)


@needs_lm_eval
@pytest.mark.parametrize(
    "task, answer, answers, by_hand",
    [
        ("hotpotqa", " One.", ["the one"], 100),
        ("hotpotqa", "one two", ["one"], 100 * 2 / 3),  # precision 1/2, recall 1
        ("qasper", "two one one", ["one one three"], 100 * 2 / 3),  # two of three words, both ways
        ("narrativeqa", "two", ["one", "two three"], 100 * 2 / 3),  # the better of two true answers
        ("musique", "", ["one"], 0),
        ("2wikimqa", "The", ["the"], 0),  # nothing is left of either
        ("multifieldqa_en", "three\none", ["one"], 100 * 2 / 3),  # all lines count
        ("triviaqa", "\n\none\nthree", ["one"], 100),  # the first line with something in it
        ("triviaqa", " \none", ["one"], 0),  # a blank is something
        ("qmsum", "ann asks bob", ["bob asks ann"], 100 / 3),  # one word of three in order
        ("qmsum", "ann asks. bob answers.", ["ann asks"], 100 * 2 / 3),  # precision 2/4, recall 1
        ("qmsum", "ann. bob asks", ["bob asks ann"], 100),  # of each sentence, what it has in order
        ("qmsum", "", ["one"], 0),
        ("samsum", "\nann asks bob\nbob answers", ["ann asks bob"], 100),
        ("samsum", "ann ann ann bob", ["ann bob"], 100),  # the package counts a word once
    ],
)
def test_scores_are_longbenchs_by_hand_and_by_a_second_spelling(task, answer, answers, by_hand):
    assert longbench.score(task, answer, answers) == pytest.approx(by_hand, abs=1e-5)
    if TASKS[task].examples:
        answer = answer.lstrip("\n").split("\n")[0]
    again = {"F1": f1_again, "Rouge-L": rouge_l_again}[TASKS[task].metric]
    assert 100 * max(again(answer, true) for true in answers) == pytest.approx(by_hand, abs=1e-5)


# Models


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    """script -> the folder of a model that writes it after a colon: one symbol a token, each followed by one other.

    Its layers add nothing to the embedding, which is one-hot, and the head has 1 where a symbol follows another.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from wavepos_fairseq.hf import WaveletLlamaForCausalLM

    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]  # a byte is a token
    symbols = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    symbols.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols.decoder = decoders.ByteLevel()
    symbols.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=symbols, bos_token="<s>", eos_token="</s>")

    def made(script, wavelet=True, second=None, size=264):
        folder = tmp_path_factory.mktemp("model")
        config = LlamaConfig(
            vocab_size=size,
            hidden_size=size,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=1,
        )
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.model.layers[0].self_attn.o_proj.weight.zero_()
            model.model.layers[0].mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.copy_(torch.eye(size))
            model.lm_head.weight.zero_()
            tokens = [*tokenizer.encode(":" + script, add_special_tokens=False), 1]
            assert len(set(tokens)) == len(tokens)
            for token, following in zip(tokens, tokens[1:]):
                model.lm_head.weight[following, token] = 1
            if second:
                model.lm_head.weight[tokenizer.encode(second, add_special_tokens=False)[0], tokens[0]] = 0.5
        if wavelet:
            model = WaveletLlamaForCausalLM.from_llama(model, "wavelet", {"wavelet_scales": "2^0..2^5"})
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    made.tokenizer = tokenizer
    return made


@needs_lm_eval
@pytest.mark.parametrize("wavelet", [True, False])
def test_a_model_that_writes_known_answers_has_the_scores_of_these(scripted, data, tmp_path, capsys, wavelet):
    """It writes "one", a line's end and "-x", half of which is right; of two tasks, the first line alone counts."""
    folder = scripted("one\n-x", wavelet)
    assert command.main(["--model", str(folder), "--data", str(data), "--results", str(tmp_path), "--limit", "2"]) == 0
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert list(scores.columns) == ["task", "metric", "score", "count", "words", "l_train", "max_length"]
    assert list(scores.task) == list(TASKS) and set(scores["count"]) == {2} and set(scores.words) == {20}
    assert (set(scores.l_train), set(scores.max_length)) == ({1024}, {512})
    expected = {task: 100 if task in ("triviaqa", "samsum") else 66.67 for task in TASKS}
    assert dict(zip(scores.task, scores.score)) == expected
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [float(line[5]) for line in printed[2:]] == list(expected.values())
    record = json.loads((tmp_path / "samsum.json").read_text())
    assert [answer["answer"] for answer in record["answers"]] == ["one\n", "one\n"]
    other = ["--model", str(tmp_path), "--data", str(data), "--results", str(tmp_path), "--limit", "2"]
    assert command.main(other) == 2
    said = capsys.readouterr().err
    assert "has narrativeqa of" in said and f"{folder.name}: each model needs its own\n" in said


@needs_lm_eval
def test_samsums_answer_has_a_token_and_ends_with_its_line_and_others_do_not(scripted):
    from wavepos_fairseq.hf import longbench as asked

    model, tokenizer = asked.load(scripted("\none -", second="e"))
    assert asked.answer(model, tokenizer, "qasper", "Answer:") == "\none -"
    assert asked.answer(model, tokenizer, "samsum", "Summary:") == "e -"
    model, tokenizer = asked.load(scripted("one\n-"))
    assert asked.answer(model, tokenizer, "qasper", "Answer:") == "one\n-"
    assert asked.answer(model, tokenizer, "samsum", "Summary:") == "one\n"


@needs_lm_eval
def test_a_long_prompt_loses_its_middle(scripted):
    """By hand, where a letter is a token and one more comes before the first."""
    from wavepos_fairseq.hf.longbench import without_the_middle

    cut = {length: without_the_middle(scripted.tokenizer, "abcdefghij", length) for length in (11, 10, 7, 6, 2)}
    assert cut == {11: "abcdefghij", 10: "abcdfghij", 7: "abhij", 6: "abhij", 2: "j"}


@needs_lm_eval
def test_the_prompt_that_is_asked_is_the_cut_one(scripted, monkeypatch):
    from wavepos_fairseq.hf import longbench as asked

    heard = []
    monkeypatch.setattr(asked, "answer", lambda model, tokenizer, task, prompt: heard.append(prompt) or "one")
    (answered,) = asked.answers(None, scripted.tokenizer, "samsum", [sample("samsum", 0)], 42)
    whole = longbench.prompt_of("samsum", sample("samsum", 0))
    assert heard == [whole[:20] + whole[-21:]]
    assert answered.pop("score") == pytest.approx(100)
    assert answered == {"_id": "samsum0", "answer": "one", "answers": ["one", "the One."]}


@needs_lm_eval
def test_rulers_needle_runs_without_a_network_and_is_scored_by_its_numbers(scripted, tmp_path, monkeypatch):
    import wonderwords

    few = {"nouns": ["tree", "ship"], "adjectives": ["green", "old"], "verbs": ["go"]}
    monkeypatch.setattr(
        wonderwords, "RandomWord", lambda: SimpleNamespace(_categories=few)
    )  # or lm-eval makes 6 million
    words = ["--model", str(scripted("one")), "--results", str(tmp_path), "--max-length", "1024"]
    assert command.main([*words, "--tasks", RULER, "--limit", "2"]) == 0
    (line,) = pd.read_csv(tmp_path / "scores.csv").itertuples()
    assert (line.task, line.metric, line.score, line.count, line.max_length) == (RULER, "match", 0, 2, 1024)
    answers = json.loads((tmp_path / f"{RULER}.json").read_text())["answers"]
    assert all(answer["answers"][0].isdigit() for answer in answers)


# Two models


def write_scores(folder, task, scores, **changes):
    """TASK.json with these scores."""
    answers = [{"_id": f"{number}", "answer": "", "answers": [""], "score": of} for number, of in enumerate(scores)]
    record = {"task": task, "metric": "F1", "l_train": 64, "max_length": 128, "words": 9, "answers": answers, **changes}
    folder.mkdir(exist_ok=True)
    (folder / f"{task}.json").write_text(json.dumps(record))


PAPERS_SIGNS = {**dict.fromkeys(TASKS, 1), "narrativeqa": 0, "qasper": -1, "musique": -1, "qmsum": -1}


@pytest.fixture()
def compared(tmp_path):
    """signs -> the results folder of two models whose answers differ by 2 points where a task's sign is not 0."""

    def made(signs):
        for task, sign in signs.items():
            write_scores(tmp_path / "wavelet", task, [50 + 2 * sign + spread for spread in (-1, 0, 1, 0)])
            write_scores(tmp_path / "rope", task, [50 + spread for spread in (-1, 0, 1, 0)])
        folders = [str(tmp_path / name) for name in ("wavelet", "rope")]
        assert command.main(["--compare", *folders, "--results", str(tmp_path / "results" / "made-up")]) == 0
        return tmp_path / "results" / "made-up"

    return made


def test_the_sheet_has_the_difference_of_the_scores(compared):
    sheet = results.read_sheet(compared(PAPERS_SIGNS), "longbench")
    assert list(sheet.task) == list(TASKS)
    for line in sheet.itertuples():
        sign = PAPERS_SIGNS[line.task]
        assert (line.score, line.over_score, line.l_train, line.sequence_length) == (50 + 2 * sign, 50, 64, 128)
        assert (line.difference, line.low, line.high, line.count) == (2 * sign, 2 * sign, 2 * sign, 4)


def test_the_interval_is_that_of_the_paired_difference(tmp_path):
    """The standard deviation of 64 differences of 0 or 4 is 2, that of their mean 1/4."""
    write_scores(tmp_path / "a", "qasper", [float(30 * (number % 3) + 4 * (number % 2)) for number in range(64)])
    write_scores(tmp_path / "b", "qasper", [float(30 * (number % 3)) for number in range(64)])
    (line,) = command.compare(tmp_path / "a", tmp_path / "b").itertuples()
    assert line.difference == pytest.approx(2)
    assert line.low == pytest.approx(2 - 1.96 / 4, abs=0.1) and line.high == pytest.approx(2 + 1.96 / 4, abs=0.1)


@pytest.mark.parametrize("turned, expected", [(1, "holds"), (-1, "does not hold")])
def test_the_papers_signs_hold_of_a_folder_that_has_them_and_not_of_its_opposite(compared, turned, expected):
    signs = {task: turned * sign if sign else (turned < 0) for task, sign in PAPERS_SIGNS.items()}
    judged = claims.judge_all(CLAIMS, compared(signs))
    assert {judgement["id"]: judgement["verdict"] for judgement in judged} == {
        f"longbench-{task.replace('_', '-')}": expected for task in TASKS
    }


def test_a_sign_within_the_spread_is_not_told(tmp_path):
    write_scores(tmp_path / "a", "qasper", [0.0, 90.0, 0.0, 80.0])
    write_scores(tmp_path / "b", "qasper", [80.0, 0.0, 80.0, 0.0])
    results.write_sheet(tmp_path, "longbench", command.compare(tmp_path / "a", tmp_path / "b"))
    (judged,) = claims.judge_all([next(of for of in CLAIMS if of.id == "longbench-qasper")], tmp_path)
    (number,) = judged["numbers"]
    assert judged["verdict"] == "within the spread" and number["low"] < 0 < number["high"]
    assert number["ratio"] == pytest.approx(42.5 - 40) and number["known_by"] == "text"


def test_the_figures_bars_are_the_differences(compared, capsys):
    pytest.importorskip("matplotlib")
    from wavepos_fairseq.lab.figures.trained import draw_longbench

    folder = compared(PAPERS_SIGNS)
    axes = draw_longbench(results.read_sheet(folder, "longbench")).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [2 * sign for sign in PAPERS_SIGNS.values()]
    assert [label.get_text() for label in axes.get_xticklabels()] == [task.title for task in TASKS.values()]
    words = ["--preset", folder.name, "--results", str(folder.parent), "longbench"]
    assert figures.main(words) == 0
    assert {path.name for path in (folder / "figures").iterdir()} == {"longbench.svg", "longbench.png"}
    results.sheet_file(folder, "longbench").unlink()
    assert figures.main(words) == 2
    assert capsys.readouterr().err.endswith("has no longbench.csv; run scripts/longbench.sh --compare first\n")


@pytest.mark.parametrize(
    "scores, changes, said",
    [
        ([1.0], {}, "the two folders have answers to different samples of qasper"),
        ([1.0, 2.0], {"max_length": 99}, "the max_length of qasper is 128 in one and 99 in the other"),
        ([1.0, 2.0], {"l_train": 99}, "the l_train of qasper is 64 in one and 99 in the other"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, scores, changes, said):
    write_scores(tmp_path / "a", "qasper", [1.0, 2.0])
    write_scores(tmp_path / "b", "qasper", scores, **changes)
    words = ["--compare", tmp_path / "a", tmp_path / "b", "--results", tmp_path / "out"]
    assert refused(capsys, *words) == f"--compare: {said}"
    assert not (tmp_path / "out").exists()


def test_folders_without_scores_of_one_task_are_refused(tmp_path, capsys):
    write_scores(tmp_path / "a", "qasper", [1.0])
    write_scores(tmp_path / "b", "musique", [1.0])
    (tmp_path / "c").mkdir()
    words = ["--results", tmp_path / "out", "--compare", tmp_path / "a"]
    assert refused(capsys, *words, tmp_path / "b").endswith("b have no task in common")
    said = refused(capsys, *words, tmp_path / "c")
    assert said.endswith("c has no answers of LongBench; run scripts/longbench.sh --model first")
    (tmp_path / "c" / "qasper.json").write_text("{")
    assert "qasper.json is not a JSON file" in refused(capsys, *words, tmp_path / "c")
    write_scores(tmp_path / "c", "qasper", ["good"])
    assert "qasper.json: answers must be a list of one or more answers with " in refused(capsys, *words, tmp_path / "c")
    assert not (tmp_path / "out").exists()


# Bad input


@pytest.mark.parametrize(
    "words, said",
    [
        (["--tasks", "trec"], "--tasks 'trec': accepted are narrativeqa, qasper, multifieldqa_en, "),
        (["--tasks", ""], "--tasks '': accepted are "),
        (["--tasks", RULER], f"--tasks {RULER} makes its own texts for a --model"),
        (["--max-length", "1"], "--max-length 1: accepted are whole numbers > 1"),
        (["--limit", "0"], "argument --limit: '0' is not a whole number > 0"),
        (["--model", "m"], "--model and --compare need --results, a folder, and it needs one of them"),
        (["--compare", "a", "b"], "--model and --compare need --results, a folder, and it needs one of them"),
        (["--results", "r"], "--model and --compare need --results, a folder, and it needs one of them"),
        (["--compare", "a", "b", "--results", "r", "--limit", "2"], "--compare reads answers; "),
        (["--model", "m", "--compare", "a", "b"], "argument --compare: not allowed with argument --model"),
    ],
)
def test_options_that_say_nothing_or_two_things_are_refused(capsys, words, said):
    assert refused(capsys, *words).startswith(said)


@needs_lm_eval
def test_a_folder_that_is_no_model_is_refused(data, tmp_path, capsys):
    words = ["--data", data, "--results", tmp_path / "out", "--tasks", "qasper"]
    for folder in (tmp_path / "none", tmp_path):
        said = refused(capsys, "--model", folder, *words)
        assert said == f"--model {folder}: expected the folder of a transformers model; it has no config.json"
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert refused(capsys, "--model", tmp_path, *words).startswith(f"--model {tmp_path}: ")
    (tmp_path / "config.json").write_text("{")
    assert refused(capsys, "--model", tmp_path, *words).startswith(f"--model {tmp_path}: ")
    assert not (tmp_path / "out").exists()


@needs_lm_eval
def test_a_prompt_without_room_is_refused(scripted, data, tmp_path, capsys):
    folder = scripted("one")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    said = refused(capsys, "--model", folder, "--data", data, "--results", tmp_path, "--tasks", "qasper")
    assert said.startswith("--max-length must be given: ") and said.endswith("512 - 512")


@needs_lm_eval
def test_without_the_hub_one_line_says_what_to_give(capsys, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    said = refused(capsys, "--tasks", "qasper")
    assert said.startswith("THUDM/LongBench cannot be had from the hub (")
    assert said.endswith("; give --data FOLDER with LongBench's files")


@pytest.mark.parametrize("name", ["transformers", "lm_eval", "rouge"])
def test_without_a_package_one_line_says_how_to_install_it(monkeypatch, data, tmp_path, capsys, name):
    monkeypatch.setattr(command.commands, "_is_missing", lambda module: module == name)
    said = refused(capsys, "--model", tmp_path, "--data", data, "--results", tmp_path / "out")
    assert said == f'this needs {name}: pip install "wavepos-fairseq[longbench]", with Python 3.11 or newer'
    assert not (tmp_path / "out").exists()
