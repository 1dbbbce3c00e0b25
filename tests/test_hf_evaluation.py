"""A model folder of transformers goes where a checkpoint goes: its perplexities are what the definitions say."""

import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="transformers is not installed (extra hf, Python 3.11)")
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from wavepos_fairseq.__main__ import main as wavepos  # noqa: E402
from wavepos_fairseq.evaluation.perplexity import Piece, evaluate, inputs_of, pieces, stream_nll  # noqa: E402
from wavepos_fairseq.hf import WaveletLlamaConfig, WaveletLlamaForCausalLM  # noqa: E402
from wavepos_fairseq.hf import evaluate as evaluation_of_folders  # noqa: E402
from wavepos_fairseq.hf import folder as folders  # noqa: E402
from wavepos_fairseq.hf.evaluate import read_text  # noqa: E402
from wavepos_fairseq.lab.evaluate import main  # noqa: E402

L_TRAIN, TYPES = 8, 300
TEXT = "Ein Café öffnet.\n\nthe cat sat  on the mat, and the dog ate the rat 🐀 in naïve haste\n" * 3
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SHAPE, "intermediate_size": 48, "max_position_embeddings": L_TRAIN, "initializer_range": 0.3}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "initializer_range": 0.3}
SCALED = {**LLAMA, "num_key_value_heads": 2}
MODELS = {
    "llama": ("Llama", LLAMA),
    "gpt-neox": ("GPTNeoX", LLAMA),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}),
    "gpt2": ("GPT2", GPT2),
    "gemma2": ("Gemma2", {**SCALED, "head_dim": 8, "final_logit_softcapping": 2.0}),
    "granite": ("Granite", {**SCALED, "logits_scaling": 3.0}),
    "encoder": ("Bert", {**SHAPE, "intermediate_size": 48, "initializer_range": 0.3}),
}
OURS = {"wavelet": "wavelet", "rpe": "rpe"}


@pytest.fixture(scope="module")
def tokenizer():
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings = {"initial_alphabet": alphabet, "special_tokens": ["<s>", "</s>"], "show_progress": False}
    learned.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=TYPES, **settings))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=learned, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """folder(kind): a saved model of that kind with its tokenizer."""
    made = {}

    def get(kind):
        if kind not in made:
            torch.manual_seed(0)
            common = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
            if kind in OURS:
                model = WaveletLlamaForCausalLM(WaveletLlamaConfig(**LLAMA, **common, position_encoding=OURS[kind]))
            else:
                name, shape = MODELS[kind]
                config = getattr(transformers, f"{name}Config")(**common, **shape)
                model = transformers.AutoModelForCausalLM.from_config(config)
            made[kind] = tmp_path_factory.mktemp(kind)
            model.save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return get


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def stream(text, tokenizer):
    return read_text(text, tokenizer).tokens


def opened(folder):
    return folders.scorer_of(folders.load_folder(folder)[0], L_TRAIN, bos=0)


def cells_of(folder, text, tmp_path, *words):
    output = tmp_path / "evaluation.json"
    words = ["--model", folder, "--text", text, "--l-train", L_TRAIN, "--output", output, "--cpu", *words]
    assert main([*map(str, words)]) == 0
    return json.loads(output.read_text(encoding="utf-8"))


# Numbers


@pytest.mark.parametrize("kind", ["llama", "gpt-neox", "bloom", "gpt2", "wavelet", "gemma2"])
@torch.no_grad()
def test_at_one_window_it_is_the_mean_of_transformers_own_loss_over_the_same_windows(folder, stream, kind):
    scorer, stream = opened(folder(kind)), stream[: len(stream) // L_TRAIN * L_TRAIN]
    windows = torch.cat((torch.tensor([0]), stream)).unfold(0, L_TRAIN + 1, L_TRAIN)  # bos first
    (cell,) = evaluate(scorer, stream, [L_TRAIN], ["full"])
    assert cell["nll"] == pytest.approx(scorer.model(windows, labels=windows).loss.item(), rel=1e-5)


@torch.no_grad()
def by_hand(scorer, stream, length, inference, stride, cache):
    """The mean loss of the stream, each token predicted on its own from what its inference lets it see."""
    source, losses = inputs_of(stream, scorer.bos), []
    for at in range(len(stream)):
        start = {
            "full": at // length * length,
            "non-overlapping": at // length * length + at % length // L_TRAIN * L_TRAIN,
            "sliding": max(0, at // stride * stride + stride - length),
        }[inference]
        if (start, at) not in cache:
            logits = scorer.model(source[None, start : at + 1]).logits[0, -1]
            cache[start, at] = -logits.log_softmax(-1)[stream[at]].item()
        losses.append(cache[start, at])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("kind", ["gpt-neox", "bloom", "wavelet"])
def test_at_several_lengths_and_in_three_inferences_each_token_is_predicted_from_what_it_may_see(
    folder, tokenizer, tmp_path, kind
):
    few, cache = tmp_path / "few.txt", {}
    few.write_text(TEXT[:52], encoding="utf-8")
    scorer, stream = opened(folder(kind)), read_text(few, tokenizer).tokens
    words = ["--lengths", "4,8,20", "--inference", "full,non-overlapping,sliding", "--stride", 3, "--max-tokens", 40]
    cells = cells_of(folder(kind), few, tmp_path, *words)["cells"]
    assert len(cells) == 9
    for cell in cells:
        expected = by_hand(scorer, stream, cell["sequence_length"], cell["inference"], 3, cache)
        assert cell["nll"] == pytest.approx(expected, rel=1e-5), cell


def rolling_windows(tokens, bos, length):
    """lm-eval's get_rolling_token_windows with context_len 1: inputs and targets, the last window with full context."""
    first = min(length, len(tokens))
    yield [bos, *tokens[: first - 1]], tokens[:first]
    done = first
    while done < len(tokens):
        count = min(len(tokens) - done, length)
        end = done + count
        yield tokens[end - length - 1 : end - 1], tokens[end - count : end]
        done = end


@pytest.mark.parametrize("rest", [0, 3])
@torch.no_grad()
def test_it_is_lm_evals_rolling_perplexity_but_for_the_context_of_the_last_window(folder, stream, rest):
    scorer, stream = opened(folder("llama")), stream[: 5 * L_TRAIN + rest]
    total = 0.0
    for source, target in rolling_windows(stream.tolist(), scorer.bos, L_TRAIN):
        logits = scorer.model(torch.tensor([source])).logits[0, -len(target) :]
        total += F.cross_entropy(logits, torch.tensor(target), reduction="sum").item()
    cuts = pieces(len(stream), L_TRAIN, L_TRAIN)
    (cell,) = evaluate(scorer, stream, [L_TRAIN], ["full"])
    assert (cell["nll"] * len(stream) == pytest.approx(total, rel=1e-5)) == (rest == 0)
    cuts[-1] = Piece(len(stream) - L_TRAIN, cuts[-1].start, len(stream))
    ours = stream_nll(scorer, inputs_of(stream, scorer.bos), stream, cuts, 4096).double().sum()
    assert ours.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in [*MODELS, *OURS] if kind != "encoder"])
@torch.no_grad()
def test_logits_a_few_at_a_time_are_those_of_the_model(folder, stream, monkeypatch, kind):
    scorer, batch = opened(folder(kind)), stream[:40].view(2, 20)
    assert scorer.head_alone == (kind not in ("gemma2", "granite"))  # which cap and scale what their heads give
    expected = F.cross_entropy(scorer.model(batch).logits.transpose(1, 2), batch, reduction="none")
    monkeypatch.setattr(folders, "LOGITS_AT_A_TIME", 3 * TYPES)
    torch.testing.assert_close(scorer.score(batch, batch), expected, atol=1e-5, rtol=0)


def test_words_and_bytes_are_those_of_the_text_that_is_scored(folder, text, tokenizer, stream, tmp_path):
    words = ["--lengths", 8, "--inference", "full,sliding", "--stride", 4, "--sliding-tokens", 30]
    whole, part = cells_of(folder("llama"), text, tmp_path, *words)["cells"]
    assert (whole["tokens"], part["tokens"]) == (len(stream), 30)
    assert (whole["words"], whole["bytes"]) == (19 * 3, len(TEXT.encode()))
    covered = tokenizer.decode(stream[:30])
    assert TEXT.startswith(covered) and "\ufffd" not in covered
    assert (part["words"], part["bytes"]) == (len(covered.split()), len(covered.encode()))
    for cell in (whole, part):
        nats = cell["nll"] * cell["tokens"]
        assert cell["word_perplexity"] == pytest.approx(math.exp(nats / cell["words"]))
        assert cell["byte_perplexity"] == pytest.approx(2 ** cell["bits_per_byte"])
        assert cell["bits_per_byte"] == pytest.approx(nats / math.log(2) / cell["bytes"])


def test_of_a_long_text_so_much_is_read_that_the_first_sequences_are_those_of_the_whole(
    folder, text, tokenizer, stream, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluation_of_folders, "CHARACTERS_OF_A_TOKEN", 1)
    monkeypatch.setattr(evaluation_of_folders, "CUT", 8)
    read = read_text(text, tokenizer, num_tokens=24)
    assert 32 <= len(read.tokens) < len(stream) and torch.equal(read.tokens[:24], stream[:24])
    words = ["--lengths", "4,8", "--inference", "full", "--sequences", 3]
    cells = cells_of(folder("llama"), text, tmp_path, *words)["cells"]
    for length, cell in zip((4, 8), cells):
        (expected,) = evaluate(opened(folder("llama")), stream[: 3 * length], [length], ["full"])
        assert (cell["tokens"], cell["nll"]) == (3 * length, pytest.approx(expected["nll"]))
        assert cell["bytes"] == len(tokenizer.decode(stream[: 3 * length]).encode())
    words = ["--lengths", 60, "--inference", "sliding", "--stride", 2, "--sliding-tokens", 5]
    assert cells_of(folder("llama"), text, tmp_path, *words)["cells"][0]["tokens"] == 5


def test_a_text_of_one_long_word_has_no_perplexity_per_word(folder, tmp_path):
    (tmp_path / "text").write_text("Zürich" * 400, encoding="utf-8")
    (cell,) = cells_of(folder("llama"), tmp_path / "text", tmp_path, "--lengths", 8, "--inference", "full")["cells"]
    assert cell["word_perplexity"] is None and cell["byte_perplexity"] > 1


@pytest.mark.parametrize("scaling", ["linear", "yarn", "dynamic"])
@torch.no_grad()
def test_a_scaled_rope_is_transformers_own_and_forgets_the_lengths_that_it_has_read(folder, text, stream, scaling):
    of = {"rope_parameters": {"rope_type": scaling, "factor": 4.0}}
    model = folders.load_folder(folder("llama"), overrides=of)[0]
    rope = {"rope_type": scaling, "factor": 4.0, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(**{**model.config.to_dict(), "rope_parameters": rope})
    scorer, batches = folders.scorer_of(model, L_TRAIN, bos=0), [stream[None, :length] for length in (40, 20, 12, 4)]
    plain = opened(folder("llama"))
    for batch in batches:
        fresh = transformers.LlamaForCausalLM(config).eval()
        fresh.load_state_dict(model.state_dict())
        expected = F.cross_entropy(fresh(batch).logits.transpose(1, 2), batch, reduction="none")
        torch.testing.assert_close(scorer.score(batch, batch), expected, atol=1e-5, rtol=0)
        short = scaling == "dynamic" and batch.size(1) <= L_TRAIN
        assert torch.allclose(plain.score(batch, batch), expected, atol=1e-4) == short


def test_half_precision_gives_nearly_the_same(folder, text, tmp_path):
    words = ["--lengths", 8, "--inference", "full"]
    (cell,), (half,) = (cells_of(folder("llama"), text, tmp_path, *words, *of)["cells"] for of in ([], ["--fp16"]))
    assert half["nll"] != cell["nll"] and half["nll"] == pytest.approx(cell["nll"], rel=0.02)


# The command


def test_both_commands_write_the_same_file_without_fairseq(folder, text, tmp_path, monkeypatch, capsys):
    for name in ("fairseq", "fairseq_cli"):
        monkeypatch.setitem(sys.modules, name, None)
    outputs = [tmp_path / "one.json", tmp_path / "other.json"]
    of = ["--model", str(folder("gpt2")), "--text", str(text), "--lengths", "4,8", "--cpu"]
    assert main([*of, "--output", str(outputs[0])]) == 0
    assert "length     8  perplexity" in capsys.readouterr().out
    assert wavepos(["evaluate", *of, f"--output={outputs[1]}"]) == 0
    one, other = (json.loads(path.read_text(encoding="utf-8")) for path in outputs)
    for result in (one, other):
        for cell in result["cells"]:
            del cell["seconds"], cell["tokens_per_second"]
    assert one == other and {cell["l_train"] for cell in one["cells"]} == {24}  # GPT-2's n_positions
    assert one["options"]["model_type"] == "gpt2" and one["versions"]["transformers"] == transformers.__version__


def test_without_transformers_it_says_which_extra_brings_it(folder, text, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--model", str(folder("llama")), "--text", str(text), "--lengths", "8"])
    assert stopped.value.code == 2
    said = 'error: this needs transformers: pip install "wavepos-fairseq[hf]", with Python 3.11 or newer\n'
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "words, said",
    [
        (["DATA", "--model", "M", "--text", "T", "--lengths", "8"], "argument DATA_BIN: not allowed with --model"),
        (["--path", "C", "--model", "M", "--text", "T", "--lengths", "8"], "argument --path: not allowed with --model"),
        (["--ema", "--model", "M", "--text", "T", "--lengths", "8"], "argument --ema: not allowed with --model"),
        (["DATA", "--path", "C", "--text", "T", "--lengths", "8"], "argument --text: needs --model FOLDER, "),
        (["DATA", "--path", "C", "--l-train", "8", "--lengths", "8"], "argument --l-train: needs --model FOLDER, "),
        (["--text", "T", "--lengths", "8"], "argument --text: needs --model FOLDER, a model of transformers"),
        (["--model", "M", "--lengths", "8"], "the following arguments are required: --text"),
        (["--lengths", "8"], "the following arguments are required: DATA_BIN, --path"),
        (["--model", "M", "--text", "T"], "one of the arguments --lengths is required"),
    ],
)
def test_arguments_that_do_not_belong_together_are_refused(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    one_line = capsys.readouterr().err
    assert one_line.startswith(f"python -m wavepos_fairseq.evaluation: error: {said}") and one_line.count("\n") == 1
    if "--model" in words:
        with pytest.raises(SystemExit):
            wavepos(["evaluate", *words])
        assert capsys.readouterr().err.startswith(f"wavepos evaluate: error: {said}")


# Bad input


@pytest.fixture
def copied(folder, tmp_path):
    """copied(kind, change): a copy of a saved model, changed."""

    def copy(kind, change):
        for file in folder(kind).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        change(tmp_path)
        return tmp_path

    return copy


def remove(name):
    return lambda folder: [path.unlink() for path in folder.glob(name)]


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lacking(part):
    def drop(folder):
        weights = load_file(folder / "model.safetensors")
        kept = {name: value for name, value in weights.items() if part not in name}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return drop


def encoded(name):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        config.update(position_encoding=name, position_options={})
        (folder / "config.json").write_text(json.dumps(config))

    return change


def without(*names):
    def drop(folder):
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            if (folder / file).is_file():
                said = json.loads((folder / file).read_text())
                (folder / file).write_text(json.dumps({key: value for key, value in said.items() if key not in names}))

    return drop


@pytest.mark.parametrize(
    "kind, change, said",
    [
        ("llama", remove("config.json"), "expected the folder of a transformers model; it has no config.json"),
        ("llama", remove("*.safetensors"), "it has no weights; accepted is a folder with model.safetensors"),
        (
            "llama",
            pickled,
            "its weights are a pickle (pytorch_model.bin), which may run code; accepted are safetensors",
        ),
        ("llama", remove("tokenizer*"), "it has no tokenizer that can be read"),
        ("llama", lacking("lm_head"), "its weights lack lm_head.weight, 1 parameters in all"),
        ("rpe", encoded("alibi"), "its weights have no place for model.layers.0.self_attn.position.embedding, "),
        ("llama", without("bos_token", "eos_token"), "its tokenizer has neither bos nor eos"),
        (
            "rpe",
            lacking("position"),
            "has no model.layers.0.self_attn.position.embedding, which position_encoding='rpe'",
        ),
        ("encoder", lambda folder: None, "predicts a token from those after it, too; accepted is a language model"),
    ],
)
def test_a_folder_that_lacks_something_is_one_line(copied, text, capsys, kind, change, said):
    folder = copied(kind, change)
    capsys.readouterr()  # what was said as it was made
    assert main(["--model", str(folder), "--text", str(text), "--lengths", "8", "--cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --model ") and said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "kind, content, words, said",
    [
        ("llama", TEXT, ["--lengths", "8,9000"], "--lengths 9000: --text "),
        (
            "gpt2",
            TEXT,
            ["--lengths", "30"],
            "--lengths 30: the model has learned 24 positions and takes no longer input",
        ),
        (
            "bloom",
            TEXT,
            ["--lengths", "8"],
            "--l-train must be given: the config of a bloom has no max_position_embeddings",
        ),
        ("llama", "", ["--lengths", "8"], "is empty"),
        ("llama", " \n ", ["--lengths", "8"], "is empty"),
        ("llama", b"caf\xe9 au lait", ["--lengths", "8"], "not UTF-8 at byte 3 (invalid continuation byte)"),
        ("llama", None, ["--lengths", "8"], "No such file or directory"),
        ("llama", TEXT, ["--lengths", "8", "--inference", "sliding"], "sliding needs --stride"),
        (
            "llama",
            TEXT,
            ["--lengths", "8", "--model-overrides", "{'rope_thetta': 1}"],
            "rope_thetta is no option of a llama",
        ),
        (
            "wavelet",
            TEXT,
            ["--lengths", "8", "--model-overrides", "{'position_encoding': 'wavlet'}"],
            "'wavlet' is unknown",
        ),
    ],
)
def test_a_text_or_a_length_that_cannot_be_is_one_line(folder, tmp_path, capsys, kind, content, words, said):
    if content is not None:
        (tmp_path / "t").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["--model", str(folder(kind)), "--text", str(tmp_path / "t"), "--cpu", *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and said in err and err.count("\n") == 1 and out == ""


def test_learned_positions_do_not_matter_where_no_piece_is_longer(folder, text, capsys):
    words = ["--model", str(folder("gpt2")), "--text", str(text), "--lengths", "24,60", "--cpu"]
    assert main([*words, "--inference", "non-overlapping"]) == 0


def test_a_tokenizer_with_more_types_than_the_model_is_refused(folder, tokenizer, text, tmp_path, capsys):
    config = transformers.LlamaConfig(**LLAMA, vocab_size=len(tokenizer) - 1)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert main(["--model", str(tmp_path), "--text", str(text), "--lengths", "8", "--cpu"]) == 2
    assert f"its tokenizer has {len(tokenizer)} types, its model {len(tokenizer) - 1}" in capsys.readouterr().err
