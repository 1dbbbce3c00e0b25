"""fairseq's generation, which is incremental, beside a beam search spelled out by whole forward passes."""

import copy
import math
import os

import pytest
import torch
from conftest import L_TRAIN, PLAIN, PLUGIN, TINY, command_line, parse, run_module
from fairseq import tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.models.transformer_lm import TransformerLanguageModel
from test_model import EOS, PAD, log_probs, random_tokens, spread
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from wavepos_fairseq.positions import position_class, position_names

MAX_LEN = L_TRAIN + 6
FURTHER = {"--max-target-positions": str(2 * L_TRAIN)}  # L_TRAIN otherwise, where fairseq ends what it generates
PROMPTS = [random_tokens(L_TRAIN + 1).tolist(), random_tokens(L_TRAIN + 4)[-3:].tolist()]


def beam_search(model, prompt, beam, max_len=MAX_LEN):
    """The finished hypotheses, best mean first, each with the log-probabilities of its tokens; no cache, no batch."""
    live, finished = [([EOS], [])], []
    for step in range(max_len + 1):
        scores = log_probs(model, torch.tensor([tokens for tokens, _ in live]))[:, -1].tolist()
        allowed = [token for token in range(len(scores[0])) if token != PAD]
        if step == max_len:
            allowed = [EOS]
        elif step < len(prompt):
            allowed = prompt[step : step + 1]
        longer = [(t + [new], s + [row[new]]) for (t, s), row in zip(live, scores) for new in allowed]
        longer.sort(key=lambda hypothesis: -sum(hypothesis[1]))
        finished += [(t, s) for t, s in longer[:beam] if t[-1] == EOS][: beam - len(finished)]
        if len(finished) == beam:
            break
        live = [(t, s) for t, s in longer[: 2 * beam] if t[-1] != EOS][:beam]
    return sorted(((t[1:], s) for t, s in finished), key=lambda hypothesis: -sum(hypothesis[1]) / len(hypothesis[1]))


def assert_same(generated, expected):
    assert [hypothesis["tokens"].tolist() for hypothesis in generated] == [tokens for tokens, _ in expected]
    for hypothesis, (_, scores) in zip(generated, expected):
        torch.testing.assert_close(hypothesis["positional_scores"], torch.tensor(scores), rtol=1e-4, atol=1e-4)
        assert math.isclose(hypothesis["score"], sum(scores) / len(scores), rel_tol=1e-4)


@pytest.fixture(scope="module")
def interface(build, data_bin):
    """interface(representation): an untrained model as `from_pretrained` gives it."""

    changes = {**PLAIN, **FURTHER}
    config = convert_namespace_to_omegaconf(parse(data_bin, *command_line({**TINY, **changes})))

    def wrapped(encoding):
        model = spread(build({**changes, "--position-encoding": encoding}))
        return GeneratorHubInterface(copy.deepcopy(config), tasks.setup_task(config.task), [model])

    return wrapped


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("encoding", position_names())
def test_a_batch_of_prompts_gets_the_tokens_and_scores_of_each_without_cache(interface, encoding, beam):
    language_model = interface(encoding)
    batch = language_model.generate([torch.tensor(prompt) for prompt in PROMPTS], beam=beam, max_len_b=MAX_LEN)
    for prompt, generated in zip(PROMPTS, batch):
        assert_same(generated, beam_search(language_model.models[0], prompt, beam))


class Dtypes(TorchDispatchMode):
    """Records the dtypes that operations give back."""

    def __init__(self):
        super().__init__()
        self.met = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.met |= {tensor.dtype for tensor in tree_flatten(result)[0] if isinstance(tensor, torch.Tensor)}
        return result


@pytest.mark.parametrize(
    "encoding", [name for name in position_names() if not position_class(name).overrides("key_bias")]
)
def test_between_two_powers_of_two_no_step_computes_a_table(build, encoding):
    """Tables, and what is factored of them, are made in fp64; so is slot c, at each step."""
    model, tokens, state = build({**PLAIN, "--position-encoding": encoding}), random_tokens(1, 60), {}
    for length in range(1, 34):
        log_probs(model, tokens[:, :length], incremental_state=state)
    with Dtypes() as dtypes:
        for length in range(34, 61):
            log_probs(model, tokens[:, :length], incremental_state=state)
    assert torch.float32 in dtypes.met and torch.float64 not in dtypes.met


# from_pretrained and the command line, with a trained model


def of(*encodings):
    return pytest.mark.parametrize("checkpoint", encodings, indirect=True)


@pytest.fixture(scope="module")
def checkpoint(request, trained):
    return trained(request.param)


def pretrained(checkpoint, data_bin, **overrides):
    folder, name = os.path.split(checkpoint)
    return TransformerLanguageModel.from_pretrained(folder, name, str(data_bin), user_dir=str(PLUGIN), **overrides)


@pytest.fixture(scope="module")
def language_model(checkpoint, data_bin):
    return pretrained(checkpoint, data_bin, max_target_positions=2 * L_TRAIN)


TEXTS = ["w22 w13 w46", "w1 w10@@ w37 w58 w1 w10@@", "w2 " * (L_TRAIN + 3)]


def searched(language_model, text, beam):
    """The best hypothesis after a text, and its mean log-probability."""
    prompt = language_model.encode(text)[:-1].tolist()  # without the line's end
    tokens, scores = beam_search(language_model.models[0], prompt, beam)[0]
    return language_model.decode(torch.tensor(tokens)), sum(scores) / len(scores)


@of("wavelet", "sinusoidal")
def test_sample_continues_texts_also_beyond_the_training_length(language_model):
    expected = [searched(language_model, text, beam=5)[0] for text in TEXTS]
    assert language_model.sample(TEXTS, beam=5, max_len_b=MAX_LEN) == expected


@of("wavelet")
def test_without_max_target_positions_fairseq_ends_at_the_training_length(checkpoint, data_bin):
    language_model = pretrained(checkpoint, data_bin)
    generated = language_model.generate([language_model.encode(TEXTS[0])], beam=1, max_len_b=MAX_LEN)
    assert len(generated[0][0]["tokens"]) <= L_TRAIN
    with pytest.raises(Exception, match=f"max_positions={L_TRAIN}"):
        language_model.sample(TEXTS[2:])


def hypotheses(printed):
    """The H lines by number: text, and mean log-probability, which fairseq prints in bits."""
    lines = [line.split("\t") for line in printed.splitlines() if line.startswith("H-")]
    return {int(number[2:]): (text, float(bits) * math.log(2)) for number, bits, text in lines}


def generate_words(checkpoint, data_bin):
    return (
        *(data_bin, "--task", "language_modeling", "--user-dir", PLUGIN, "--path", checkpoint, "--cpu", "--beam", "5"),
        *("--max-len-b", MAX_LEN, "--model-overrides", f"{{'max_target_positions': {2 * L_TRAIN}}}"),
    )


@of("wavelet")
def test_fairseq_interactive_prints_what_the_search_finds(checkpoint, data_bin, language_model, tmp_path):
    (tmp_path / "prompts").write_text("".join(text.strip() + "\n" for text in TEXTS))
    words = ("--input", "prompts", "--buffer-size", "3")
    done = run_module("fairseq_cli.interactive", *generate_words(checkpoint, data_bin), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for number, (text, score) in hypotheses(done.stdout).items():
        expected, expected_score = searched(language_model, TEXTS[number], beam=5)
        assert text == expected and math.isclose(score, expected_score, rel_tol=1e-4)
    assert len(hypotheses(done.stdout)) == len(TEXTS)


@of("sinusoidal")
def test_fairseq_generate_continues_the_first_words_of_every_line(checkpoint, data_bin, language_model, tmp_path):
    words = ("--gen-subset", "valid", "--sample-break-mode", "eos", "--prefix-size", "3", "--no-progress-bar")
    words += ("--required-batch-size-multiple", "1")  # by default 8, and fairseq drops what is left over
    done = run_module("fairseq_cli.generate", *generate_words(checkpoint, data_bin), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    found, lines = hypotheses(done.stdout), (data_bin / "valid.txt").read_text().splitlines()
    assert len(found) == len(lines)
    for number in (0, 17, 41):
        expected, score = searched(language_model, " ".join(lines[number].split()[:3]), beam=5)
        assert found[number][0] == expected and math.isclose(found[number][1], score, rel_tol=1e-4)
