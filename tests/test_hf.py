"""Llama with any position representation: what transformers does with a model gives what the formula says."""

import copy
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

pytest.importorskip("transformers", reason="transformers is not installed (extra hf, Python 3.11)")
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorWithFlattening,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    StaticCache,
    Trainer,
    TrainingArguments,
)

from wavepos_fairseq.attention import causal_attention  # noqa: E402
from wavepos_fairseq.hf import WaveletLlamaConfig, WaveletLlamaForCausalLM, WaveletLlamaModel  # noqa: E402
from wavepos_fairseq.positions import build_position, position_names  # noqa: E402

L_TRAIN = 16
TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": L_TRAIN,
    "initializer_range": 0.3,  # so that attention is far from uniform
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
ENCODINGS = [name for name in position_names() if name != "sinusoidal"] + ["alibi+wavelet", "rope+rpe+t5"]
LEARNED = ["cable", "fox", "kerple-log", "kerple-power", "rpe", "t5", "transformer-xl", "rope+rpe+t5"]
SOME = ["wavelet", "rope", "alibi", "transformer-xl"]


def built(encoding="wavelet", seed=0, options=None, **changes):
    """A tiny model in eval mode; what representations learn is random, too."""
    torch.manual_seed(seed)
    config = WaveletLlamaConfig(**{**TINY, **changes}, position_encoding=encoding, position_options=options)
    model = WaveletLlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".position." in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens(*shape, seed=1):
    return torch.randint(1, 61, shape, generator=torch.Generator().manual_seed(seed))


def close(one, other, atol=2e-5):
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


# The same logits in other ways


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@torch.no_grad()
def test_logits_with_a_cache_are_those_without_to_four_times_the_training_length(encoding, cache):
    model, text = built(encoding), tokens(2, 4 * L_TRAIN)
    kept = DynamicCache(config=model.config) if cache == "dynamic" else StaticCache(model.config, max_cache_len=80)
    logits = [model(part, None, None, kept).logits for part in text.split([L_TRAIN, 1, 1, 1, 13, 1, 30, 1], dim=1)]
    close(torch.cat(logits, 1), model(text, use_cache=False).logits, 2e-4 if "rope-wavelet" in encoding else 2e-5)


@pytest.mark.parametrize("encoding", ENCODINGS)
@torch.no_grad()
def test_a_left_padded_batch_is_its_prompts_one_by_one(encoding):
    model, text, lengths = built(encoding), tokens(3, 24), (24, 17, 5)
    mask = torch.tensor([[0] * (24 - length) + [1] * length for length in lengths])
    logits = model(text * mask, attention_mask=mask).logits
    assert logits.isfinite().all()
    for row, length in enumerate(lengths):
        close(logits[row, -length:], model(text[row : row + 1, -length:]).logits[0])


@pytest.mark.parametrize("encoding", ENCODINGS)
@torch.no_grad()
def test_packed_sequences_are_what_they_are_one_by_one(encoding):
    model, texts = built(encoding), [tokens(length, seed=length) for length in (9, 1, 20)]
    batch = DataCollatorWithFlattening()([{"input_ids": text.tolist()} for text in texts])
    packed = model(**batch)
    assert packed.past_key_values is None if hasattr(packed, "past_key_values") else packed.cache is None
    close(packed.logits[0], torch.cat([model(text[None]).logits[0] for text in texts]))


@pytest.mark.parametrize("search", [{}, {"cache_implementation": "static"}, {"num_beams": 3}])
@pytest.mark.parametrize("encoding", SOME)
def test_generation_from_a_left_padded_batch_is_that_from_each_prompt(encoding, search):
    model, text = built(encoding), tokens(2, 12)
    mask = torch.tensor([[0] * 5 + [1] * 7, [1] * 12])
    options = {"max_new_tokens": 20, "do_sample": False}
    written = model.generate(text * mask, attention_mask=mask, **options, **search)[:, 12:]
    alone = [
        model.generate(row[None], attention_mask=torch.ones_like(row)[None], **options, **search)[0, -20:]
        for row in (text[0, 5:], text[1])
    ]
    assert torch.equal(written, torch.stack(alone))


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("length", [128, 4096])
@torch.no_grad()
def test_a_stock_llama_is_rope_through_from_llama(theta, length):
    torch.manual_seed(0)
    stock = LlamaForCausalLM(LlamaConfig(**TINY, rope_parameters={"rope_type": "default", "rope_theta": theta})).eval()
    model, text = WaveletLlamaForCausalLM.from_llama(stock), tokens(1, length)
    assert model.config.position_options == {"rope_theta": theta, "rope_pairs": "halves"}
    assert model.state_dict().keys() == stock.state_dict().keys()
    logits = stock(text, use_cache=False).logits
    close(model(text, use_cache=False).logits, logits, 1e-3 if length > 128 else 2e-5)
    model.config.position_options["rope_pairs"] = "adjacent"
    assert (
        WaveletLlamaForCausalLM.from_llama(stock, "rope", model.config.position_options)(text).logits - logits
    ).abs().max() > 0.1


@pytest.mark.parametrize("encoding", ENCODINGS)
@torch.no_grad()
def test_an_attention_layer_is_fairseqs_with_the_same_weights(encoding):
    transformer_lm_wavelet = pytest.importorskip("wavepos_fairseq.models.transformer_lm_wavelet")
    model = built(encoding, num_key_value_heads=4)
    attention, seen = model.model.layers[0].self_attn, []
    attention.register_forward_hook(
        lambda _, __, given, output: seen.append((given["hidden_states"], output[0])), with_kwargs=True
    )
    model(tokens(2, 40))
    ((x, attended),) = seen
    other = transformer_lm_wavelet.PositionalSelfAttention(32, 4, attention.position, causal_attention, bias=False)
    for ours, theirs in (("q_proj", "q_proj"), ("k_proj", "k_proj"), ("v_proj", "v_proj"), ("o_proj", "out_proj")):
        getattr(other, theirs).weight.copy_(getattr(attention, ours).weight)
    close(other.eval()(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), attended, 1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
@torch.no_grad()
def test_two_heads_that_share_keys_are_two_with_the_same_keys(encoding):
    shared, text = built(encoding), tokens(2, 40)
    model = built(encoding, num_key_value_heads=4)
    weights = {
        name: value.view(2, 8, 32).repeat_interleave(2, 0).flatten(0, 1)
        if "k_proj" in name or "v_proj" in name
        else value
        for name, value in shared.state_dict().items()
    }
    model.load_state_dict(weights)
    close(model(text).logits, shared(text).logits)


# Training


def loss_and_gradients(model, **batch):
    model.zero_grad()
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    return loss, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("encoding", ["wavelet", "rope+rpe+t5"])
def test_gradient_checkpointing_changes_no_gradient(encoding, use_reentrant):
    model, text = built(encoding).train(), tokens(2, 24)
    expected = loss_and_gradients(model, input_ids=text)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.testing.assert_close(loss_and_gradients(model, input_ids=text), expected, atol=0, rtol=0)


@torch.no_grad()
def test_packing_is_seen_beside_a_mask_without_padding_and_arguments_may_have_no_names():
    model, text, restart = built("wavelet"), tokens(2, 24), torch.arange(24).remainder(9)[None]
    expected = model(text, position_ids=restart).logits
    close(model(text, attention_mask=torch.ones_like(text), position_ids=restart).logits, expected)
    close(model(text[:, 9:18]).logits, expected[:, 9:18])
    cache = DynamicCache()
    first = model.model(text[:, :9], None, None, cache).last_hidden_state
    close(first, model.model(text[:, :9]).last_hidden_state)
    assert cache.get_seq_length() == 9


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("encoding", ["rope", "fox"])
def test_a_compiled_model_with_a_cache_has_the_logits_of_the_model(encoding):
    model, text = built(encoding, num_hidden_layers=1), tokens(2, 12)
    close(torch.compile(model, backend="eager")(text).logits, model(text).logits)


@pytest.mark.long
def test_a_compiled_model_has_the_loss_and_the_gradients_of_the_model():
    model, text = built("rope+rpe+t5", num_hidden_layers=1).train(), tokens(2, 24)
    batches = {"input_ids": text}, {"input_ids": text, "position_ids": torch.arange(24).remainder(9)[None]}
    expected = [loss_and_gradients(model, **batch) for batch in batches]
    compiled = torch.compile(model, backend="eager")
    for batch, (loss, gradients) in zip(batches, expected):
        model.zero_grad()
        ours = compiled(**batch, labels=text).loss
        ours.backward()
        close(ours, loss)
        for parameter, gradient in zip(model.parameters(), gradients):
            close(parameter.grad, gradient, 1e-4)


@pytest.mark.parametrize("encoding", ENCODINGS)
@torch.no_grad()
def test_in_bf16_and_under_autocast_it_computes_the_same_and_keeps_the_cache_in_bf16(encoding):
    model, text = built(encoding, initializer_range=0.1), tokens(2, 24)
    expected = model(text).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(text)
    half = copy.deepcopy(model).bfloat16()(text)
    for given in (output, half):
        assert (given.logits.float() - expected).abs().max() < 0.1 * expected.abs().max()
        layer = (given.cache if "cache" in given else given.past_key_values).layers[0]
        assert layer.keys.dtype == layer.values.dtype == torch.bfloat16


def trainer(folder, model, texts, **options):
    given = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "seed": 3}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    return Trainer(model, TrainingArguments(str(folder), **given, **quiet, **options), train_dataset=texts)


@pytest.mark.parametrize("encoding", ["wavelet", "rpe"])
def test_a_trainer_that_was_stopped_and_resumed_has_the_weights_of_one_that_was_not(encoding, tmp_path):
    texts = [{"input_ids": text, "labels": text} for text in tokens(8, L_TRAIN)]
    whole = trainer(tmp_path, built(encoding), texts)
    whole.train()
    resumed = trainer(tmp_path, built(encoding, seed=5), texts)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters()):
        assert torch.equal(one, other), name
    start = dict(built(encoding).named_parameters())
    assert not any(torch.equal(one, start[name]) for name, one in whole.model.named_parameters())


# Weights and folders


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_seed_gives_the_weights_of_a_stock_llama_and_what_is_learned_begins_as_the_representation_says(encoding):
    torch.manual_seed(0)
    stock = LlamaForCausalLM(LlamaConfig(**TINY)).state_dict()
    torch.manual_seed(0)
    model = WaveletLlamaForCausalLM(WaveletLlamaConfig(**TINY, position_encoding=encoding))
    weights = model.state_dict()
    begins = build_position(encoding, head_dim=8, num_heads=4).state_dict()
    for name, value in weights.items():
        assert torch.equal(value, stock.pop(name) if name in stock else begins[name.partition(".position.")[2]]), name
    assert not stock and any(".position." in name for name in weights) == (encoding in LEARNED)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "encoding, options", [("wavelet", None), ("wavelet", {"wavelet_learn": "both"}), ("rope+rpe+t5", None)]
)
@torch.no_grad()
def test_a_model_is_saved_and_loaded_bit_for_bit(encoding, options, tied, tmp_path):
    model, text = built(encoding, options=options, tie_word_embeddings=tied), tokens(1, 40)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is WaveletLlamaForCausalLM and loaded.config == AutoConfig.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert torch.equal(loaded(text).logits, model(text).logits)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is WaveletLlamaModel
    assert torch.equal(base(text).last_hidden_state, model.model(text).last_hidden_state)


IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
import torch, transformers
if sys.version_info >= (3, 11):
    import fairseq.models
    import wavepos_fairseq.models.transformer_lm_wavelet
assert "wavepos_fairseq.hf" not in sys.modules
folder, again = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
print(type(model).__name__, model(torch.arange(40)[None]).logits.sum().item())
model.save_pretrained(again)
"""


@torch.no_grad()
@pytest.mark.long
def test_a_folder_loads_with_trust_remote_code_beside_fairseq_in_a_process_that_knows_no_such_model(tmp_path):
    model = built()
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / "model"), str(tmp_path / "again")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=str(ROOT), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, total = done.stdout.split()[-2:]
    assert name == "WaveletLlamaForCausalLM"
    assert float(total) == pytest.approx(model(torch.arange(40)[None]).logits.sum().item(), abs=1e-3)
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir()) and "wavepos_llama.py" in files


def test_an_other_representation_is_given_the_weights_of_a_stock_llama(tmp_path):
    stock = LlamaForCausalLM(LlamaConfig(**TINY)).bfloat16()
    model = WaveletLlamaForCausalLM.from_llama(stock, "rpe", {"rpe_clip": 3})
    assert model.dtype == torch.bfloat16 and model.model.layers[0].self_attn.position.embedding.shape == (4, 8)
    for name, value in stock.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


# Bad input


def refused(match):
    """One line that matches."""
    return pytest.raises(ValueError, match=rf"(?s)\A(?=[^\n]*\Z).*{match}")


@pytest.mark.parametrize(
    "given, said",
    [
        ({"position_encoding": "wavlet"}, "'wavlet' is unknown; accepted are alibi, "),
        ({"position_encoding": "rope+rope-wavelet"}, "accepted is one of them"),
        ({"position_encoding": "sinusoidal"}, "added to the embeddings, .* trans-xl for sine waves"),
        ({"position_encoding": "alibi+sinusoidal"}, "added to the embeddings"),
        ({"position_options": {"wavelet_scales": "2^0..2^2"}}, "but a head has 8 dimensions"),
        ({"position_options": {"rope_theta": 1e4}}, "does not read it; it is read by rope"),
        ({"position_options": {"theta": 1e4}}, "theta=10000.0 is given, but position_encoding='wavelet' does not"),
        ({"rope_theta": 5e5}, r"accepted are position_encoding='rope' and position_options=\{'rope_theta'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "are a stock Llama's"),
        ({"model_type": "llama"}, "accepted is 'wavelet_llama'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(given, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "model_type": "wavelet_llama", **given}))
    with refused(said):
        WaveletLlamaConfig.from_pretrained(tmp_path)


def test_another_attention_is_refused_in_one_line(tmp_path):
    model = built()
    model.save_pretrained(tmp_path)
    with refused("attn_implementation='eager' knows no position representation; accepted is 'wavepos'"):
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    with refused("attn_implementation='sdpa' knows no"):
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("model_class", [AutoModelForCausalLM, AutoModel])
@pytest.mark.parametrize("encoding", LEARNED)
def test_a_folder_without_the_parameters_of_a_position_is_refused_in_one_line(encoding, model_class, tmp_path):
    built(encoding).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = max(name for name in weights if ".position." in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with refused(
        f"has no .*layers.1.self_attn.position.*, which position_encoding='{encoding.replace('+', '.')}' learns"
    ):
        model_class.from_pretrained(tmp_path)


def test_a_folder_of_a_stock_llama_is_refused_in_one_line(tmp_path):
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(tmp_path)
    with refused("model_type='llama': accepted is 'wavelet_llama'; .*from_llama takes over"):
        WaveletLlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("kept", [None, "pytorch_model.bin"])
def test_a_folder_without_weights_and_one_with_a_pickle_are_refused_in_one_line(kept, tmp_path):
    model = built()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    if kept:
        torch.save(model.state_dict(), tmp_path / kept)
    with pytest.raises(OSError, match=r"\A[^\n]*model.safetensors[^\n]*\Z"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "config, said",
    [
        (
            LlamaConfig(**TINY, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            "rope_type='linear'",
        ),
        (MistralConfig(**TINY), "takes a LlamaForCausalLM, not a MistralForCausalLM"),
    ],
)
def test_from_llama_refuses_in_one_line_what_rope_cannot_be(config, said):
    with refused(said):
        WaveletLlamaForCausalLM.from_llama(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    "batch, said",
    [
        ({"attention_mask": torch.ones(2, 1, 8, 8)}, r"of shape \(2, 1, 8, 8\): accepted is \(batch, tokens\)"),
        ({"attention_mask": torch.ones(2, 1, 8, 8, dtype=torch.bool)}, r"of shape \(2, 1, 8, 8\)"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1]] * 2)}, "padding between tokens"),
        ({"attention_mask": torch.ones(2, 5)}, "has 5 tokens; accepted is one for all 8 of cache and input"),
        (
            {"position_ids": torch.arange(8).remainder(5)[None], "cache": DynamicCache()},
            "packed sequences have no cache",
        ),
    ],
)
def test_a_batch_that_attention_cannot_read_is_refused_in_one_line(batch, said):
    with refused(said):
        built()(tokens(2, 8), **batch)


@torch.no_grad()
def test_padding_on_both_sides_changes_nothing_but_nothing_is_generated_after_it():
    model, text, mask = built(), tokens(1, 12), torch.tensor([[0] * 3 + [1] * 7 + [0] * 2])
    close(model(text, attention_mask=mask).logits[:, 3:10], model(text[:, 3:10]).logits)
    with refused("padding between tokens"):
        model.generate(text, attention_mask=mask, max_new_tokens=3, do_sample=False)


def train_sharded(rank, rendezvous):
    """Trains each representation beside a copy whose weights two processes share."""
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    for encoding in ENCODINGS:
        whole = built(encoding).train()
        shards = copy.deepcopy(whole)
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
        for module in (*shards.model.layers, shards):
            torch.distributed.fsdp.fully_shard(module, mesh=mesh)
        local = sum(parameter.to_local().numel() for parameter in shards.parameters())
        assert local < 0.6 * sum(parameter.numel() for parameter in whole.parameters())
        text, losses = tokens(2, 24), []
        for model in (whole, shards):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(3):
                losses.append(model(text, labels=text).loss)
                losses[-1].backward()
                optimizer.step()
                optimizer.zero_grad()
        torch.testing.assert_close(losses[:3], losses[3:])
        assert losses[0] > losses[2] + 0.01
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_sharded_over_two_processes_it_learns_the_same(tmp_path):
    torch.multiprocessing.spawn(train_sharded, (str(tmp_path / "rendezvous"),), nprocs=2)


# The example


EXAMPLE = [str(ROOT / "examples" / "llama.py"), str(ROOT / "README.md"), "--steps", "8", "--length", "16"]
LAUNCH = ["launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]


def test_the_example_prints_what_it_learned_and_two_processes_learn_what_one_with_twice_the_batch_does(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", [*EXAMPLE, "--batch", "4", "--folder", str(tmp_path)])
    runpy.run_path(EXAMPLE[0], run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")]
    numbers = [line.split() for line in lines[:3]]
    assert [(first, length) for first, _, length, _, _ in numbers] == [("perplexity", str(n)) for n in (16, 32, 64)]
    assert all(100 < float(number) < 500 for *_, number in numbers) and len(lines) == 4  # uniform: 500
    command = [str(Path(sys.executable).with_name("accelerate")), *LAUNCH, *EXAMPLE, "--batch", "2"]
    launched = subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True)
    assert launched.returncode == 0, launched.stderr
    assert [line for line in launched.stdout.splitlines() if not line.startswith("{")] == lines
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer("Wavelets, ψ").input_ids) == "Wavelets, ψ"
    assert model.config.max_position_embeddings == 16 and model.config.vocab_size == len(tokenizer)


def test_packing_beside_padding_and_ids_that_leave_out_positions_are_refused():
    model, text = built("alibi"), tokens(1, 16)
    restarting = torch.tensor([[*range(6), *range(6), 0, 0, 0, 0]])
    mask = torch.tensor([12 * [1] + 4 * [0]])
    with pytest.raises(ValueError, match="packed sequences have no padding"):
        model(text, position_ids=restarting, attention_mask=mask)
    for ones in (None, torch.ones_like(text)):
        with pytest.raises(ValueError, match="leave out positions"):
            model(text, position_ids=torch.tensor([[*range(8), *range(100, 108)]]), attention_mask=ones)
    padded = mask.flip(1)  # on the left, with the ids that generate gives
    model(text, position_ids=(padded.cumsum(1) - 1).masked_fill(padded == 0, 1), attention_mask=padded)


@pytest.mark.parametrize("encoding", ["rope", "fox"])
def test_a_layers_attention_takes_its_input_without_a_name(encoding):
    model = built(encoding)
    attention, hidden = model.model.layers[0].self_attn, torch.randn(1, 4, model.config.hidden_size)
    turn = (torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    named = attention(hidden_states=hidden, position_embeddings=turn, attention_mask=None)[0]
    assert torch.equal(attention(hidden, turn, None)[0], named)
