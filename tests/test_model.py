"""The fairseq model: beside fairseq's own transformer_lm, in any batch, step by step, and its command line."""

import pytest
import torch
from conftest import L_TRAIN, PLAIN, PLUGIN, TINY, command_line, needs_fp16, parse, run_module
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from wavepos_fairseq import wavelets
from wavepos_fairseq.models.transformer_lm_wavelet import WaveletLanguageModel, in_flags
from wavepos_fairseq.plugin.checkpoint import load_checkpoint
from wavepos_fairseq.positions import Position, build_position, position_class, position_names, wavelet
from wavepos_fairseq.positions.rope_wavelet import RotaryWaveletPosition

NOTHING_LEARNED = [
    name
    for name in position_names()
    if not position_class(name).adds_to_embedding
    and not list(build_position(name, head_dim=16, num_heads=2).parameters())
]
EOS, PAD, FIRST_WORD = 2, 1, 4
# What turns a model of the plugin into fairseq's own that it is compared with.
FAIRSEQ = {"--arch": "transformer_lm", "--task": "language_modeling", "--position-encoding": None}
FAIRSEQ_NOPE = {**FAIRSEQ, "--no-token-positional-embeddings": True}


def random_tokens(*shape):
    return torch.randint(FIRST_WORD, 60, shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def log_probs(model, tokens, **kwargs):
    return model.get_normalized_probs(model(tokens, **kwargs), log_probs=True)


def spread(model):
    """The attention's weights made larger, so that positions weigh, and random where they start at zero.

    Less so where the representation itself makes the scores large, by its sums: there no weight would be left but one.
    """
    torch.manual_seed(7)
    sums = any(isinstance(module, RotaryWaveletPosition) for module in model.modules())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "self_attn" in name:
                parameter.add_((0.1 if sums else 0.3) * torch.randn_like(parameter))
    return model


# fairseq's own model


@pytest.mark.parametrize("softmax", ["adaptive", "plain"])
@pytest.mark.parametrize("encoding, own", [("sinusoidal", FAIRSEQ), ("nope", FAIRSEQ_NOPE)])
def test_a_checkpoint_of_transformer_lm_and_one_of_the_plugin_load_either_way(build, trained, encoding, own, softmax):
    changes = {} if softmax == "adaptive" else PLAIN
    theirs, ours = build({**changes, **own}), build({**changes, "--position-encoding": encoding})
    tokens = random_tokens(2, L_TRAIN)
    before = log_probs(ours, tokens)
    for checkpoint in trained(None, {**changes, **own}), trained(encoding, changes):
        state = torch.load(checkpoint, map_location="cpu", weights_only=False)["model"]
        theirs.load_state_dict(state, strict=True)
        ours.load_state_dict(state, strict=True)
        scores = log_probs(ours, tokens)
        torch.testing.assert_close(scores, log_probs(theirs, tokens), rtol=1e-5, atol=1e-5)
        assert (scores - before).abs().max() > 0.1


@pytest.mark.parametrize("encoding", NOTHING_LEARNED)
def test_parameters_are_those_of_transformer_lm_without_position_embeddings(build, encoding):
    theirs, ours = build(FAIRSEQ_NOPE), build({"--position-encoding": encoding})
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [(n, p.shape) for n, p in theirs.named_parameters()]
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("encoding", NOTHING_LEARNED)
def test_a_seed_gives_the_initial_weights_that_it_gives_transformer_lm(build, encoding):
    theirs, ours = build(FAIRSEQ_NOPE, seed=3).state_dict(), build({"--position-encoding": encoding}, seed=3)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    other = build({"--position-encoding": encoding}, seed=4).state_dict()
    assert not all(torch.equal(parameter, other[name]) for name, parameter in ours.named_parameters())


def test_all_layers_share_one_basis(build, monkeypatch):
    made = []
    spied = lambda *arguments: made.append(arguments) or wavelets.wavelet_basis(*arguments)  # noqa: E731
    monkeypatch.setattr(wavelet, "wavelet_basis", spied)
    model = build({"--decoder-layers": "4", "--wavelet": "coif2", "--wavelet-scales": "2,3,5,7"})
    model(random_tokens(1, L_TRAIN))
    assert len(made) == 1


# any batch


@pytest.mark.parametrize("changes", [{}, PLAIN], ids=["adaptive", "plain"])
@pytest.mark.parametrize("encoding", position_names())
def test_a_sequence_scores_the_same_in_any_batch(build, encoding, changes):
    model = spread(build({**changes, "--position-encoding": encoding}))
    tokens = random_tokens(7, 20)
    alone = log_probs(model, tokens[:1])
    for batch in 3, 7:
        torch.testing.assert_close(log_probs(model, tokens[:batch])[:1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoding", position_names())
def test_no_target_is_seen_before_it_is_predicted(build, encoding):
    model = spread(build({**PLAIN, "--position-encoding": encoding}))
    tokens = random_tokens(1, 40)
    changed = tokens.clone()
    changed[0, 25] = FIRST_WORD if tokens[0, 25] != FIRST_WORD else FIRST_WORD + 1
    difference = (log_probs(model, tokens) - log_probs(model, changed)).abs().amax(-1)[0]
    assert difference[:25].max() < 1e-6 < 1e-4 < difference[25:].min()


@pytest.mark.parametrize("encoding", position_names())
def test_padding_on_the_right_changes_no_score(build, encoding):
    model = spread(build({"--position-encoding": encoding}))
    tokens = random_tokens(2, 20)
    padded = tokens.clone()
    padded[1, 13:] = PAD
    scores = log_probs(model, padded)
    torch.testing.assert_close(scores[:1], log_probs(model, tokens[:1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[1:, :13], log_probs(model, tokens[1:, :13]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoding", position_names())
def test_padding_on_the_left_is_refused(build, encoding):
    tokens = random_tokens(2, 6)
    tokens[1, :2] = PAD
    with pytest.raises(ValueError, match="padding on the right only.* a literal <pad> in the text"):
        build({"--position-encoding": encoding})(tokens)


@needs_fp16
@pytest.mark.parametrize("encoding", position_names())
def test_half_precision_gives_nearly_the_scores_of_fp32(build, encoding):
    model = build({**PLAIN, "--position-encoding": encoding})
    for module in model.modules():
        if isinstance(module, Position):
            for parameter in module.parameters():  # they start at zero
                torch.nn.init.normal_(parameter, std=0.3)
    tokens = random_tokens(2, 2 * L_TRAIN)
    exact = log_probs(model, tokens)
    half = log_probs(model.half(), tokens)
    assert model(tokens)[0].dtype == torch.float16
    assert torch.isfinite(half).all()
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=1e-2)


@pytest.mark.parametrize("encoding", position_names())
def test_attention_dropout_is_applied_in_training_only(build, encoding):
    tokens = random_tokens(1, 20)
    model = build({**PLAIN, "--position-encoding": encoding, "--attention-dropout": "0.5"})
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    model.train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    without = build({**PLAIN, "--position-encoding": encoding}).train()
    assert torch.equal(without(tokens)[0], without(tokens)[0])


def test_adaptive_input_and_softmax_share_their_weights(build):
    model = build({"--position-encoding": "wavelet"})
    embeddings = [model.decoder.embed_tokens.weights_for_band(band)[0] for band in range(3)]
    softmax = model.decoder.adaptive_softmax
    tied = [softmax.head.word_proj.weight, *(tail[2].weight for tail in softmax.tail)]
    assert [w.data_ptr() for w in embeddings] == [w.data_ptr() for w in tied]


# step by step


def stepwise(model, tokens, state, start=0):
    steps = [log_probs(model, tokens[:, : i + 1], incremental_state=state) for i in range(start, tokens.size(1))]
    return torch.cat(steps, dim=1)


@pytest.mark.parametrize("encoding", position_names())
def test_tokens_fed_one_at_a_time_score_as_in_one_forward_to_four_times_the_training_length(build, encoding):
    model = spread(build({**PLAIN, "--position-encoding": encoding}))
    tokens = random_tokens(2, 4 * L_TRAIN)
    torch.testing.assert_close(stepwise(model, tokens, {}), log_probs(model, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoding", position_names())
def test_reordered_incremental_state_continues_the_reordered_sequences(build, encoding):
    model = spread(build({**PLAIN, "--position-encoding": encoding}))
    tokens, continuation = random_tokens(3, 12), random_tokens(3, 4).flip(0)
    state, order = {}, torch.tensor([2, 0, 0])
    stepwise(model, tokens, state)
    model.decoder.reorder_incremental_state_scripting(state, order)
    whole = torch.cat((tokens[order], continuation), dim=1)
    torch.testing.assert_close(stepwise(model, whole, state, 12), log_probs(model, whole)[:, 12:], rtol=1e-5, atol=1e-5)


def test_a_step_turns_its_own_keys_alone_however_many_are_kept(build):
    model, tokens, turned = spread(build({**PLAIN, "--position-encoding": "rope+wavelet"})), random_tokens(2, 9), []
    attention = model.decoder.layers[0].self_attn
    rotate_key = attention.position.rotate_key
    attention.position.rotate_key = lambda key, first: turned.append((first, key.size(2))) or rotate_key(key, first)
    attended = log_probs(model, tokens)
    assert turned == [(0, 9)]
    torch.testing.assert_close(stepwise(model, tokens, {}), attended, rtol=1e-5, atol=1e-5)
    assert turned[1:] == [(step, 1) for step in range(9)]


# architectures and options


def model_config(arch):
    return convert_namespace_to_omegaconf(parse("nowhere", "--arch", arch)).model


@pytest.mark.parametrize(
    "ours, theirs",
    [("transformer_lm_wavelet", "transformer_lm"), ("transformer_lm_wavelet_wiki103", "transformer_lm_wiki103")],
)
def test_an_architecture_has_the_values_of_fairseqs_own(ours, theirs):
    ours, theirs = model_config(ours), model_config(theirs)
    assert {key: ours[key] for key in theirs if key not in ("_name", "arch")} == {
        key: theirs[key] for key in theirs if key not in ("_name", "arch")
    }
    assert ours.position_encoding == "wavelet"


def test_wiki103_is_the_size_of_the_paper():
    config = model_config("transformer_lm_wavelet_wiki103")
    expected = {
        "decoder_layers": 16,
        "decoder_embed_dim": 1024,
        "decoder_attention_heads": 8,
        "decoder_ffn_embed_dim": 4096,
        "adaptive_input": True,
        "adaptive_input_cutoff": "20000,60000",
        "adaptive_softmax_cutoff": "20000,60000",
        "tie_adaptive_weights": True,
        "tie_adaptive_proj": True,
        "dropout": 0.3,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "adaptive_softmax_dropout": 0.2,
    }
    assert {key: config[key] for key in expected} == expected


def test_options_given_on_the_command_line_win_over_an_architecture():
    words = "--arch transformer_lm_wavelet_wiki103 --decoder-layers 3 --dropout 0.25 --position-encoding rope".split()
    args = parse("nowhere", *words)
    assert (args.decoder_layers, args.dropout, args.position_encoding) == (3, 0.25, "rope")


OPTIONS = """--position-encoding --rope-theta --rope-pairs --wavelet --wavelet-scales --wavelet-shifts
    --wavelet-shift-direction --wavelet-learn""".split()


@pytest.fixture(scope="module")
def described():
    """The help texts of the model's options: fairseq adds these to its parser once it has read --arch."""
    parser = options.get_training_parser()
    WaveletLanguageModel.add_args(parser)
    return {flag: action.help or "" for action in parser._actions for flag in action.option_strings}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_has_a_help_text(described, option):
    assert len(described[option].split()) > 3


def test_help_names_every_position_encoding(described):
    assert all(name in described["--position-encoding"] for name in position_names())


def test_help_gives_the_default_scales_and_shifts_of_the_paper(described):
    assert "2^0..2^7" in described["--wavelet-scales"]
    assert "0..15" in described["--wavelet-shifts"]


def test_a_training_learns_scales_and_shifts_and_its_checkpoint_has_them(trained, data_bin):
    changes = {**PLAIN, "--wavelet-learn": "both"}
    model = load_checkpoint(trained("wavelet", changes), str(data_bin)).model
    positions = [layer.self_attn.position for layer in model.decoder.layers]
    for position in positions:
        scales, shifts = position.scales_and_shifts(torch.device("cpu"))
        for numbers, given in zip((scales, shifts), position.head[1:3]):
            moved = (numbers / torch.tensor(given).double() - 1).abs()  # infinite of the shift 0
            assert numbers.shape == (len(given),) and moved.min() > 0
    assert not torch.equal(positions[0].scale_octaves, positions[1].scale_octaves)
    model, tokens = spread(model), random_tokens(2, 2 * L_TRAIN)
    with torch.no_grad():
        torch.testing.assert_close(stepwise(model, tokens, {}), log_probs(model, tokens), rtol=1e-5, atol=1e-5)


# Options that cannot be, each with what its message must name.
BAD_OPTIONS = {
    "--position-encoding nonsense": ["--position-encoding", "nonsense", *position_names()],
    "--wavelet nonsense": ["--wavelet", "nonsense", "ricker"],
    "--wavelet-scales 0,1": ["--wavelet-scales", "0,1"],
    "--wavelet-scales=-1": ["--wavelet-scales", "-1"],
    "--wavelet-shifts=1..": ["--wavelet-shifts", "1.."],
    "--wavelet-shift-direction sideways": ["--wavelet-shift-direction", "sideways", "past, future, scaled"],
    "--wavelet-learn all": ["--wavelet-learn 'all'", "none, scales, shifts, both"],
    "--wavelet-learn both --wavelet haar": ["--wavelet-learn 'both'", "--wavelet 'haar'", "ricker, gaussian, morlet"],
    "--wavelet-scales 1,2,4 --wavelet-shifts 0,1,2": ["--wavelet-shifts", "3 shifts", "3 scales", "9", "16"],
    "--position-encoding alibi --rope-theta 1e4": ["--rope-theta", "alibi"],
    "--position-encoding rope --rope-theta 0": ["--rope-theta", "0"],
    "--position-encoding rope --rope-pairs odd": ["--rope-pairs", "odd", "adjacent", "halves"],
}


@pytest.mark.parametrize("words", BAD_OPTIONS)
def test_a_bad_option_stops_while_the_command_line_is_parsed(words):
    with pytest.raises(SystemExit) as stopped:
        parse("nowhere", *command_line(TINY), *words.split())
    message = stopped.value.code  # as a string: Python prints it and exits with 1
    assert all(part in message for part in BAD_OPTIONS[words]), message


def test_a_bad_option_stops_fairseq_train_before_the_data_is_looked_for_and_the_save_folder_made(tmp_path):
    stopped = run_module(
        "fairseq_cli.train",
        *(tmp_path / "no-data", "--task", "language_modeling", "--user-dir", PLUGIN, "--save-dir", tmp_path / "saved"),
        *("--max-tokens", "64", "--cpu", *command_line(TINY), "--wavelet-scales", "1,2,4"),
        *("--wavelet-shifts", "0,1,2"),
        cwd=tmp_path,
    )
    assert stopped.returncode != 0
    assert stopped.stdout.splitlines()[-1].startswith("error: --wavelet-scales '1,2,4', --wavelet-shifts '0,1,2':")
    assert "Traceback" not in stopped.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "said, shown",
    [
        ("wavelet_scales='0..3': a scale must be > 0", "--wavelet-scales '0..3': a scale must be > 0"),
        (
            "wavelet='haar' is given, but position_encoding='rope' does not read it",
            "--wavelet 'haar' is given, but --position-encoding 'rope' does not read it",
        ),
        ("implementation='x' is unknown", "--attention-implementation 'x' is unknown"),
        ("head_dim=3: must be even", "head_dim=3: must be even"),
        ("--wavelet-scales '0': as it was", "--wavelet-scales '0': as it was"),
    ],
)
def test_errors_of_the_library_are_shown_in_fairseqs_options(said, shown):
    assert in_flags(said) == shown


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"--adaptive-input": None}, "--tie-adaptive-weights needs --adaptive-input"),
        (
            {"--adaptive-input-factor": "4"},
            "one --adaptive-input-factor and --adaptive-softmax-factor, not 4.0 and 2.0",
        ),
        ({"--decoder-input-dim": "16"}, "one --decoder-input-dim and --decoder-output-dim, not 16 and 32"),
    ],
)
def test_what_tied_weights_share_must_be_one(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build(changes)


MODELS = {  # the other ways in which fairseq builds a transformer_lm
    "characters": {
        **PLAIN,
        "--character-embeddings": True,
        "--character-filters": "[(1, 4), (2, 8)]",
        "--character-embedding-dim": "4",
        "--char-embedder-highway-layers": "1",
    },
    "quantisation noise": {"--quant-noise-pq": "0.1", "--quant-noise-pq-block-size": "8"},
    "checkpointed activations": {"--checkpoint-activations": True},
    "layers to keep": {"--decoder-layers": "3", "--decoder-layers-to-keep": "0,2"},
    "one embedding": {**PLAIN, "--share-decoder-input-output-embed": True},
    "narrow input": {**PLAIN, "--decoder-input-dim": "16"},
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_is_built_of_fairseqs_parameters_in_fairseqs_order(build, case):
    theirs = build({**MODELS[case], **FAIRSEQ_NOPE}, seed=5).state_dict()
    ours = build({**MODELS[case], "--position-encoding": "nope"}, seed=5)
    assert list(ours.state_dict()) == list(theirs)
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.named_parameters())
    torch.testing.assert_close(
        log_probs(ours, random_tokens(2, 20)),
        log_probs(build({**MODELS[case], **FAIRSEQ_NOPE}, seed=5), random_tokens(2, 20)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_learned_absolute_positions_are_refused_before_the_save_folder_is_made():
    with pytest.raises(SystemExit) as stopped:
        parse("nowhere", *command_line(TINY), "--position-encoding", "nope", "--decoder-learned-pos")
    assert "--decoder-learned-pos" in stopped.value.code


def test_xformers_which_knows_no_position_representation_is_refused():
    with pytest.raises(SystemExit) as stopped:
        parse("nowhere", *command_line(TINY), "--decoder-xformers-att-config", "{'name': 'scaled_dot_product'}")
    assert "--decoder-xformers-att-config" in stopped.value.code


def test_sinusoidal_without_token_positional_embeddings_is_refused():
    words = ["--position-encoding", "sinusoidal", "--no-token-positional-embeddings"]
    with pytest.raises(SystemExit) as stopped:
        parse("nowhere", *command_line(TINY), *words)
    assert "--no-token-positional-embeddings contradicts" in stopped.value.code


def test_only_the_sinusoidal_model_adds_positions_to_the_embeddings(build):
    for name in position_names():
        added = build({"--position-encoding": name}).decoder.embed_positions is not None
        assert added == position_class(name).adds_to_embedding == (name == "sinusoidal"), name


@pytest.mark.parametrize(
    "option, cutoffs, message",
    [
        ("input", "20,4000", "--adaptive-input-cutoff 20,4000: accepted are ascending numbers from 1 to 64, the types"),
        ("softmax", "40,20", "--adaptive-softmax-cutoff 40,20: accepted are ascending numbers from 1 to 64, the types"),
        ("softmax", "10,30", "one --adaptive-input-cutoff and --adaptive-softmax-cutoff, not 20,40 and 10,30"),
    ],
)
def test_cutoffs_that_the_vocabulary_has_not_are_refused_in_words(build, option, cutoffs, message):
    with pytest.raises(ValueError, match=message):
        build({f"--adaptive-{option}-cutoff": cutoffs})
