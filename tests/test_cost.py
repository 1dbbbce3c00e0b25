"""docs/cost.md: its tables are counted here from the shapes of the real models, and the count is what they execute."""

import csv
import functools
import json
import math
import statistics
import sys
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import ROOT, parse
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import best_fitting_int_dtype
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.language_modeling import LanguageModelingTask

from wavepos_fairseq.attention.blockwise import _block_size
from wavepos_fairseq.data import WIKITEXT
from wavepos_fairseq.evaluation.perplexity import pieces, windows
from wavepos_fairseq.lab.configs import load_preset, load_table
from wavepos_fairseq.plugin.checkpoint import token_nll
from wavepos_fairseq.positions import build_position

FlopCounterMode = pytest.importorskip("torch.utils.flop_counter", reason="PyTorch 2.0 counts nothing").FlopCounterMode
sys.path.insert(0, str(ROOT / "benchmarks"))
import training  # noqa: E402

SHAPES = torch.device("meta")  # tensors with shapes and no memory
HALF, SINGLE = torch.float16, torch.float32
CORPUS = WIKITEXT["wikitext-103"]
TYPES = -(-(CORPUS.types + 2) // 8) * 8  # <s> and <pad> besides, filled up to a multiple of 8 (fairseq-preprocess)
PRESETS = [load_preset("wikitext103-512"), load_preset("wikitext103-1024")]
TABLES = {name: {row.name: row for row in load_table(name)[1]} for name in ("table1", "table3", "table4")}
RICKER = TABLES["table1"]["ricker"]
PEAKS = {"A100": 312e12, "H100": 989e12}  # operations a second: dense, bf16 and fp16 (NVIDIA's data sheets)
SHARES = (0.1, 0.3, 0.4)
AS_NOPE = ("sinusoidal", "rope-10k", "rope-500k", "alibi")


class Count(NamedTuple):
    """Operations of a forward pass for each token; a multiplication and its addition are two."""

    layers: float  # the products with the layers' weights
    attention: float  # q . k and the sum over values
    vocabulary: float  # adaptive input and softmax
    position: float  # q . p(t)

    @property
    def training(self):
        """Backward, each product makes two more; one whose other factor is not learned makes one."""
        return 3 * sum(self) - self.position


def count(model, position, length, dtype=HALF, shares=None, block=1):
    """Sequences of `length` tokens, in blocks of queries that see the same keys; shares: of the tokens, by cluster."""
    decoder = model.decoder
    attention, num_layers = decoder.layers[0].self_attn, len(decoder.layers)
    width = attention.embed_dim
    shares = zipf(decoder.embed_tokens.cutoff) if shares is None else shares
    sizes = [band[0].weight.shape for band in decoder.embed_tokens.embeddings]
    vocabulary = sum(share * dim * width for share, (_, dim) in zip(shares, sizes))
    vocabulary += width * (sizes[0][0] + len(sizes) - 1)
    vocabulary += sum(share * dim * (width + words) for share, (words, dim) in zip(shares[1:], sizes[1:]))
    factors, relative = position.factors(length, torch.empty(0, dtype=dtype)), 0
    if factors is not None:
        reach, rank = factors[1].shape
        relative = rank * (width + attention.num_heads * pairs(length, block, reach) / length)
    return Count(
        2 * sum(weight.numel() for weight in decoder.layers.parameters() if weight.dim() == 2),
        2 * num_layers * 2 * width * pairs(length, block) / length,
        2 * float(vocabulary),
        2 * num_layers * relative,
    )


def pairs(length, block=1, reach=None):
    """Pairs of a query and a key that is not in its future, of those that are nearer than `reach` where it is given."""
    stops = [min(start + block, length) for start in range(0, length, block)]
    near = [stop if reach is None else min(stop, reach + block - 1) for stop in stops]
    return sum((stop - start) * keys for start, stop, keys in zip([0, *stops], stops, near))


def zipf(cutoffs):
    """Each cluster's share of a text in which the n-th word is as frequent as 1 / n."""
    frequency = 1 / torch.arange(1, cutoffs[-1] + 1).double()
    return [part.sum() / frequency.sum() for part in frequency.split(np.diff([0, *cutoffs]).tolist())]


@functools.lru_cache(maxsize=None)
def without_weights(*words, types=TYPES):
    """A model as fairseq-train builds it, of shapes only."""
    dictionary = Dictionary()
    for number in range(types - len(dictionary)):
        dictionary.add_symbol(str(number))
    config = convert_namespace_to_omegaconf(parse("data", *words, "--position-encoding", "nope"))
    with SHAPES:
        return LanguageModelingTask(config.task, dictionary).build_model(config.model).eval()


def paper():
    return without_weights("--arch", PRESETS[0].train["arch"])


def position_of(row):
    return build_position(**row.position, head_dim=128, num_heads=8)


def operations_of_a_row(row, preset):
    return count(paper(), position_of(row), preset.l_train).training * tokens_of(preset)


def tokens_of(preset):
    return preset.train["max-update"] * preset.tokens_per_update


def executed(function):
    """The operations of all matrix products that `function` executes, and what it gives."""
    in_place = {torch.ops.aten.baddbmm_: lambda _, a, b, **__: 2 * math.prod(a) * b[-1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        result = function()
    return counter.get_total_flops(), result


def approximately(number):
    """What the code does besides: with a basis a column or two more for each block (`blockwise._slot_of_block`)."""
    return pytest.approx(number, rel=2e-3)


# the count


@pytest.mark.parametrize("encoding", ["nope", "alibi", "rope", "sinusoidal", "trans-xl", "wavelet"])
def test_the_count_is_of_the_products_that_training_executes(build, encoding):
    model, length = build({"--position-encoding": encoding}), 128
    tokens = torch.arange(4, 64).repeat(5)[: 2 * length].view(2, length)
    shares = [((tokens >= low) & (tokens < high)).double().mean() for low, high in ((0, 20), (20, 40), (40, 64))]
    counted = count(model, build_position(encoding, head_dim=16, num_heads=2), length, SINGLE, shares, block=64)
    forward, nll = executed(lambda: token_nll(model, tokens, tokens))
    backward, _ = executed(lambda: nll.sum().backward())
    assert forward == approximately(sum(counted) * tokens.numel())
    assert forward + backward == approximately(counted.training * tokens.numel())
    if not counted.position:
        assert forward + backward == round(counted.training * tokens.numel())


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_the_count_is_of_the_products_of_the_papers_layers(preset):
    position, length, layers = position_of(RICKER), preset.l_train, paper().decoder.layers
    counted = count(paper(), position, length, SINGLE, block=_block_size(length))._replace(vocabulary=0)
    layers[0].self_attn.position = position
    with SHAPES:
        forward, output = executed(lambda: layers[0](torch.empty(length, 1, 1024, requires_grad=True))[0])
        backward, _ = executed(lambda: output.sum().backward())
    assert len(layers) * forward == approximately(sum(counted) * length)
    assert len(layers) * (forward + backward) == approximately(counted.training * length)


def checkpoint_bytes(model):
    """fp32, the weights that input and softmax share written twice (fairseq's move_to_cpu), and NAG's momentum."""
    return 4 * (sum(w.numel() for w in model.state_dict().values()) + sum(p.numel() for p in model.parameters()))


def test_a_checkpoint_has_as_many_bytes_as_counted(train, build, tmp_path):
    on_cpu = {"--fp16": True, "--fp16-no-flatten-grads": True, "--optimizer": "nag", "--max-update": "1"}
    train(tmp_path, on_cpu)
    state = torch.load(str(tmp_path / "checkpoint_last.pt"), map_location="cpu", weights_only=False)
    momenta = [buffer for entry in state["last_optimizer_state"]["state"].values() for buffer in entry.values()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in [*state["model"].values(), *momenta]}
    assert sum(storage.nbytes() for storage in storages.values()) == pytest.approx(checkpoint_bytes(build()), rel=1e-4)


# the page


def markdown(*lines):
    header, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


HOURS = [f"{gpu} {share:.0%}" for gpu in PEAKS for share in SHARES]


def hours(*operations):
    """As HOURS; one number for each preset."""
    speeds = [share * peak for peak in PEAKS.values() for share in SHARES]
    return [" / ".join(f"{number / speed / 3600:,.0f}" for number in operations) for speed in speeds]


def a_token():
    counts = [count(paper(), position_of(RICKER), preset.l_train) for preset in PRESETS]
    lines = {
        "the layers' weights": [c.layers for c in counts],
        "q·k and the sum over values": [c.attention for c in counts],
        "adaptive input and softmax": [c.vocabulary for c in counts],
        "position term of Ricker": [c.position for c in counts],
        "forward": [sum(c) for c in counts],
        "forward and backward": [c.training for c in counts],
    }
    rows = [[name, *(f"{number / 1e6:,.1f}" for number in line)] for name, line in lines.items()]
    return markdown(["10⁶ operations a token", *(f"L_train {preset.l_train}" for preset in PRESETS)], *rows)


def a_row():
    shown = [(row.labels["method"], row, PRESETS) for name, row in TABLES["table1"].items() if name not in AS_NOPE]
    for table in "table3", "table4":
        dearest = max(TABLES[table].values(), key=lambda row: operations_of_a_row(row, PRESETS[0]))
        shown.append((f"dearest of {load_table(table)[0]}: `{dearest.name}`", dearest, PRESETS[:1]))
    lines = []
    for label, row, presets in shown:
        operations = [operations_of_a_row(row, preset) for preset in presets]
        factors = [position_of(row).factors(preset.l_train, torch.empty(0, dtype=HALF)) for preset in presets]
        sizes = [f"{f[1].size(1)}, {f[1].size(0)}" if f else "–" for f in factors]
        counted = " / ".join(f"{number / 1e19:.2f}" for number in operations)
        lines.append([label, " / ".join(dict.fromkeys(sizes)), counted, *hours(*operations)])
    return markdown(["", "r, T", "10¹⁹ operations", *HOURS], *lines)


def all_rows():
    made, lines = {}, []
    for table, preset in (
        ("table1", PRESETS[0]),
        ("table1", PRESETS[1]),
        ("table3", PRESETS[0]),
        ("table4", PRESETS[0]),
    ):
        runs = {(name, preset.name): operations_of_a_row(row, preset) for name, row in TABLES[table].items()}
        new = {run: operations for run, operations in runs.items() if run not in made}
        made.update(new)
        lines.append([f"{load_table(table)[0]}, {preset.name}", f"{len(runs)}", *_runs(new)])
    lines.append(["all", f"{sum(int(rows) for _, rows, *_ in lines)}", *_runs(made)])
    return markdown(["", "rows", "new runs", "10²⁰ operations", *HOURS, "disk, GB"], *lines)


def _runs(runs):
    operations = sum(runs.values())
    kept = 3 * len(runs) * checkpoint_bytes(paper())
    return [f"{len(runs)}", f"{operations / 1e20:.2f}", *hours(operations), f"{kept / 1e9:,.0f}"]


def disk():
    checkpoint = checkpoint_bytes(paper())
    tokens = np.dtype(best_fitting_int_dtype(TYPES)).itemsize * sum(CORPUS.tokens.values())
    lines = {
        f"a checkpoint ({sum(p.numel() for p in paper().parameters()):,} parameters)": checkpoint,
        "a run, three of them": 3 * checkpoint,
        "a run while it writes, four": 4 * checkpoint,
        "the data-bin of WikiText-103": tokens + 12 * CORPUS.train_lines,  # a line: its length and where it begins
    }
    return markdown(["", "GB"], *([name, f"{number / 1e9:.2f}"] for name, number in lines.items()))


def evaluation():
    position, tokens = position_of(RICKER), CORPUS.tokens["valid"]
    lines = []
    for preset in PRESETS:
        further = [length for length in preset.lengths if length > preset.l_train]
        cuts = [
            [pieces(tokens, length, length) for length in preset.lengths],  # full
            [pieces(tokens, length, preset.l_train) for length in further],  # non-overlapping
            [windows(tokens, length, preset.evaluate["stride"]) for length in preset.lengths],  # sliding
        ]
        lengths = [Counter(stop - start for cut in passes for start, _, stop in cut) for passes in cuts]
        operations = [
            sum(number * length * sum(count(paper(), position, length, SINGLE)) for length, number in found.items())
            for found in lengths
        ]
        epoch = -(-CORPUS.tokens["train"] // preset.tokens_per_update)  # updates, the last one smaller
        updates, interval = preset.train["max-update"], preset.train["save-interval-updates"]
        validations = len({*range(epoch, updates, epoch), *range(interval, updates + 1, interval)})
        validation = validations * tokens * sum(count(paper(), position, preset.l_train))
        share = (sum(operations) + validation) / operations_of_a_row(RICKER, preset)
        line = [f"{len(passes)} × {number / len(passes) / 1e15:.3f}" for passes, number in zip(cuts, operations)]
        line += [f"{sum(operations) / 1e13 / 60:.1f}", f"{validations} × {validation / validations / 1e15:.3f}"]
        lines.append([preset.name, *line, f"{share:.2%}"])
    header = [
        "10¹⁵ operations",
        "full",
        "non-overlapping",
        "sliding",
        "minutes at 10¹³ a second",
        "validation in training",
    ]
    return markdown([*header, "all, of a row's"], *lines)


def measured():
    with (ROOT / "results" / "benchmarks" / "training-cpu.csv").open(encoding="utf-8") as file:
        steps = [row for row in csv.DictReader(file) if (row["mode"], row["model"]) == ("step", "wavelet (Ricker)")]
    speeds = [(f"training step, {row['size']}", row["size"], int(row["tokens_per_second"])) for row in steps]
    small = load_preset("wikitext2-cpu")
    manifest = json.loads((ROOT / "results" / small.name / "table1.manifest.json").read_text(encoding="utf-8"))
    seconds = statistics.median(row["training_seconds"] for row in manifest["rows"].values())
    speeds.append((f"{small.name}'s Table 1, a core a row", small.name, tokens_of(small) / seconds))
    lines = []
    for label, size, tokens_per_second in speeds:
        options, length, _ = training.SIZES[size]
        words = ["--arch", "transformer_lm_wavelet", *options.split(), *training._ADAPTIVE.split()]
        model = without_weights(*words, types=training.VOCABULARY)
        attention = model.decoder.layers[0].self_attn
        position = build_position("wavelet", head_dim=attention.head_dim, num_heads=attention.num_heads)
        operations = count(model, position, length, SINGLE).training
        sustained = tokens_per_second * operations
        years = operations_of_a_row(RICKER, PRESETS[0]) / sustained / (365 * 24 * 3600)
        lines.append(
            [label, f"{tokens_per_second:,.0f}", f"{operations / 1e6:.1f}", f"{sustained / 1e9:.0f}", f"{years:.0f}"]
        )
    header = ["", "tokens a second", "10⁶ operations a token", "10⁹ operations a second"]
    return markdown([*header, "years for Ricker at L_train 512"], *lines)


@pytest.mark.parametrize("table", [a_token, a_row, all_rows, disk, evaluation, measured])
def test_the_page_has_what_is_counted(table):
    expected = table()
    assert expected in (ROOT / "docs" / "cost.md").read_text(encoding="utf-8"), f"it should have\n{expected}"
