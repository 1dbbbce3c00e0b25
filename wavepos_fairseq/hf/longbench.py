"""Asks a model of transformers the questions of LongBench, as LongBench's own code does.

A prompt that is too long loses its middle. Answers are greedy, and no template of a chat is added. RULER's
niah_single_1 is lm-eval's own, unchanged.
"""

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch

from ..evaluation.longbench import RULER, Sample, most_tokens, prompt_of, score
from .folder import load_folder
from .hub import dataset_folder

LONGEST_ANSWER = 512
"""The tokens that the longest answers take, qmsum's."""
_HUB = "THUDM/LongBench"

Answered = Dict[str, Any]
"""A sample's _id, the model's answer, the true answers, and the score, 0 to 100."""


def download() -> Path:
    """LongBench's data.zip from the hub, which keeps it in its own cache. ValueError if the hub cannot be reached."""
    try:
        return dataset_folder(_HUB, "data.zip") / "data.zip"
    except ValueError as error:
        raise ValueError(f"{error}; give --data FOLDER with LongBench's files") from error


def load(folder: Path) -> Tuple[Any, Any]:
    """Model and tokenizer of a folder of transformers; on a GPU if there is one. ValueError where it is none."""
    model, tokenizer = load_folder(folder, "auto")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def without_the_middle(tokenizer: Any, prompt: str, max_length: int) -> str:
    """The prompt or, if it has more tokens, the text of the first and of the last max_length // 2 of them."""
    tokens = tokenizer(prompt).input_ids
    if len(tokens) <= max_length:
        return prompt
    half = max_length // 2
    return "".join(tokenizer.decode(part, skip_special_tokens=True) for part in (tokens[:half], tokens[-half:]))


def answer(model: Any, tokenizer: Any, task: str, prompt: str) -> str:
    """The model's greedy answer. That of samsum has a token at least, and ends with its line."""
    tokens = torch.tensor([tokenizer(prompt).input_ids], device=model.device)
    options: Dict[str, Any] = {}
    if task == "samsum":
        ends = [tokenizer.eos_token_id, *tokenizer.encode("\n", add_special_tokens=False)[-1:]]
        options = {"eos_token_id": [end for end in ends if end is not None], "min_new_tokens": 1}
    found = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=most_tokens(task),
        do_sample=False,
        num_beams=1,
        **options,
    )
    return tokenizer.decode(found[0, tokens.size(1) :], skip_special_tokens=True)


def answers(model: Any, tokenizer: Any, task: str, samples: List[Sample], max_length: int) -> List[Answered]:
    """The scored answers to a task's samples; prompts are cut to max_length tokens."""
    scored = []
    for sample in samples:
        prompt = without_the_middle(tokenizer, prompt_of(task, sample), max_length)
        said = answer(model, tokenizer, task, prompt)
        about = {"_id": sample["_id"], "answer": said, "answers": sample["answers"]}
        scored.append({**about, "score": score(task, said, sample["answers"])})
    return scored


def needles(model: Any, tokenizer: Any, folder: Path, max_length: int, limit: Optional[int]) -> List[Answered]:
    """The scored answers to RULER's niah_single_1, through lm-eval: its 500 samples or the first `limit` of them.

    folder: the tokenizer's. max_length: of the text with question and answer, in tokens.
    """
    from lm_eval import simple_evaluate, tasks
    from lm_eval.models.huggingface import HFLM

    about = {"tokenizer": str(folder), "max_seq_lengths": [max_length]}
    ruler = Path(tasks.__file__).parent / "ruler"
    manager = tasks.TaskManager(include_path=str(ruler), include_defaults=False, metadata=about)
    asked: Any = HFLM(pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=1)
    found: Any = simple_evaluate(
        asked, tasks=[RULER], limit=limit, bootstrap_iters=0, metadata=about, task_manager=manager
    )
    return [
        {
            "_id": str(sample["doc_id"]),
            "answer": sample["resps"][0][0],
            "answers": sample["doc"]["outputs"],
            "score": 100 * sample[str(max_length)],
        }
        for sample in found["samples"][RULER]
    ]
