"""A small Llama on any text, with Hugging Face's Trainer: how far beyond its training length does it read?

    python examples/llama.py README.md [--representation wavelet] [--length 64] [--steps 200] [--folder FOLDER]

A byte-level BPE and the model are trained on the first nine tenths of the text, in pieces of --length tokens. What is
printed is the perplexity per token on the last tenth, in pieces of one, two and four times that length, and what the
model writes after its beginning. --folder keeps model and tokenizer for AutoModelForCausalLM.from_pretrained. Two
processes: accelerate launch --multi_gpu --num_processes 2 examples/llama.py README.md (without a GPU, too)
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from wavepos_fairseq.hf import WaveletLlamaConfig, WaveletLlamaForCausalLM


def learn_tokenizer(text, vocabulary):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings = {"initial_alphabet": alphabet, "special_tokens": ["</s>"], "show_progress": False}
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=vocabulary, **settings))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", padding_side="left")


def llama(representation, vocabulary, length):
    return WaveletLlamaForCausalLM(
        WaveletLlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=length,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
            position_encoding=representation,
        )
    )


def train(model, tokens, length, steps, batch, folder):
    """The Trainer that has trained the model on all pieces of `length` tokens, shuffled."""
    pieces = [{"input_ids": piece, "labels": piece} for piece in tokens.unfold(0, length, length)]
    settings = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(model, settings, train_dataset=pieces)
    trainer.train()
    return trainer


@torch.no_grad()
def perplexity(model, tokens, length):
    pieces = tokens.unfold(0, length + 1, length).to(model.device)  # a piece's last token is the next one's first
    losses = [
        F.cross_entropy(model(batch[:, :-1]).logits.flatten(0, 1).float(), batch[:, 1:].flatten()) * len(batch)
        for batch in pieces.split(16)
    ]
    return (sum(losses) / len(pieces)).exp().item()


def main():
    parser = argparse.ArgumentParser(description="Train a small Llama on a text, and read on beyond its length.")
    parser.add_argument("text", type=Path)
    parser.add_argument("--representation", default="wavelet", help="default: %(default)s")
    parser.add_argument("--length", type=int, default=64, help="of a piece in training (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of training (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pieces in a step and process (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=500, help="types of the BPE, >= 257 (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where model and tokenizer are kept (default: nowhere)")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    training, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    tokenizer = learn_tokenizer(training, args.vocabulary)
    training, held_out = (torch.tensor(tokenizer(part)["input_ids"]) for part in (training, held_out))
    if len(held_out) <= 4 * args.length:
        parser.error(f"{args.text}: the last tenth, {len(held_out)} tokens, is not longer than 4 x --length")
    torch.manual_seed(1)
    try:
        model = llama(args.representation, len(tokenizer), args.length)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        trainer = train(model, training, args.length, args.steps, args.batch, folder)
    if not trainer.is_world_process_zero():
        return
    model.eval()
    for length in (args.length, 2 * args.length, 4 * args.length):
        print(f"perplexity at {length:>5} tokens: {perplexity(model, held_out, length):8.2f}")
    prompt = held_out[None, : args.length // 2].to(model.device)
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=args.length)
    print(repr(tokenizer.decode(prompt[0])), "...", repr(tokenizer.decode(written[0, prompt.size(1) :])))
    if args.folder:
        model.save_pretrained(args.folder)
        tokenizer.save_pretrained(args.folder)


if __name__ == "__main__":
    main()
