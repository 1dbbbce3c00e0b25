"""Checkpoints: read without running what they carry, and those of fairseq's transformer_lm and of the ALiBi release."""

import argparse
import ast
import copy
import functools
import glob
import http.server
import io
import json
import math
import os
import pickle
import re
import tarfile
import threading
import tracemalloc
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import L_TRAIN, TINY, command_line, parse
from fairseq import modules, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import transformer, transformer_lm
from fairseq.tasks import language_modeling
from omegaconf import DictConfig, OmegaConf, open_dict

from wavepos_fairseq.evaluation.inferences import PAPERS_INFERENCES
from wavepos_fairseq.evaluation.perplexity import evaluate, inputs_of, pieces, stream_nll
from wavepos_fairseq.lab import alibi_release, configs, runs
from wavepos_fairseq.lab.evaluate import main
from wavepos_fairseq.lab.figures import command as figures
from wavepos_fairseq.plugin import checkpoint as scorers
from wavepos_fairseq.plugin import unpickling
from wavepos_fairseq.plugin.checkpoint import load_checkpoint, open_checkpoint
from wavepos_fairseq.plugin.streams import load_stream

ZIP, OLD = True, False  # torch.save's format, and that of before PyTorch 1.6
NUM_HEADS = 4


class Calls:
    """Pickled as a call, whose result is given items."""

    def __init__(self, function, *arguments, items=()):
        self.call = (function, arguments, None, None, iter(items))

    def __reduce__(self):
        return self.call


def save(state, path, new_format=ZIP):
    torch.save(state, str(path), _use_new_zipfile_serialization=new_format)
    return path


def run(data, path, *words):
    return main([str(data), "--path", str(path), "--lengths", "20", "--cpu", *map(str, words)])


# What a checkpoint may hold


@pytest.fixture
def evil(trained, tmp_path):
    """evil(format): a trained checkpoint that makes the file `evil.marker` when it is unpickled."""
    marker = tmp_path / "marker"

    def make(new_format):
        state = torch.load(trained("alibi"), map_location="cpu", weights_only=False)
        state["extra_state"]["meter"] = Calls(os.system, f"touch {marker}")
        return save(state, tmp_path / "checkpoint_last.pt", new_format)

    make.marker = marker
    return make


def by_evaluation(path, data):
    assert run(data, path) == 2


def by_maps(path, data):
    open_checkpoint(path, data)


def by_runs(path, data):
    preset = configs.load_preset("demo")
    runs.Run(preset, configs.find_row("alibi"), data, path.parent, gpus=0, seed=1).resumed_at()


def by_alibi_release(path, data):
    assert alibi_release.main(["512", "--from", str(path), "--data", str(data), "--cpu"]) == 2


@pytest.mark.parametrize("new_format", [ZIP, OLD], ids=["zip", "old"])
@pytest.mark.parametrize("read", [by_evaluation, by_maps, by_runs, by_alibi_release])
def test_what_a_checkpoint_carries_is_named_and_not_run(evil, data_bin, capsys, read, new_format):
    path = evil(new_format)
    try:
        read(path, data_bin)
        error = capsys.readouterr().err
    except ValueError as raised:
        error = str(raised)
    assert f"{path.name} asks for posix.system" in error and "--trust-checkpoint" in error
    assert path.is_file() and not evil.marker.exists()


@pytest.mark.parametrize("new_format", [ZIP, OLD], ids=["zip", "old"])
def test_trusted_it_is_run_and_evaluated(evil, data_bin, new_format):
    assert run(data_bin, evil(new_format), "--trust-checkpoint") == 0
    assert evil.marker.exists()


def test_trusted_it_is_run_and_drawn(evil, data_bin, tmp_path):
    path = evil(ZIP)
    figure = f"attention-{path.parent.name}"
    words = [figure, "--path", str(path), "--data", str(data_bin), "--results", str(tmp_path)]
    assert figures.main(words) == 2 and not evil.marker.exists()
    assert figures.main([*words, "--trust-checkpoint"]) == 0 and evil.marker.exists()
    assert (tmp_path / path.parent.name / "figures" / f"{figure}.svg").is_file()


def _global(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _stack_global(module, name):
    return b"".join(pickle.SHORT_BINUNICODE + bytes([len(word)]) + word.encode() for word in (module, name)) + b"\x93"


@pytest.mark.parametrize(
    "module, name",
    [
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("functools", "partial"),
        ("operator", "attrgetter"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch._utils", "sys.modules"),
        ("argparse", "Namespace.__init__"),
        ("numpy.core.multiarray", "fromfile"),
        ("omegaconf", "OmegaConf"),
        ("fairseq.utils", "eval_str_list"),
    ],
)
@pytest.mark.parametrize("spell", [_global, _stack_global])
def test_nothing_is_named_but_what_checkpoints_are_made_of(spell, module, name):
    with pytest.raises(unpickling.Refused, match=f"{module}.{name}"):
        unpickling.Unpickler(io.BytesIO(pickle.PROTO + b"\4" + spell(module, name) + b".")).load()


@pytest.mark.parametrize("module, name", [("torch._utils", "_rebuild_tensor_v2"), ("argparse", "Namespace")])
def test_functions_and_classes_keep_their_attributes(module, name):
    setting = pickle.NONE + pickle.EMPTY_DICT + pickle.UNICODE + b"evil\n" + pickle.INT + b"1\n" + pickle.SETITEM
    stream = pickle.PROTO + b"\2" + _global(module, name) + setting + pickle.TUPLE2 + pickle.BUILD + b"."
    assert pickle.loads(stream).evil == 1  # what it does otherwise
    found = pickle.loads(pickle.PROTO + b"\2" + _global(module, name) + b".")
    del found.evil
    with pytest.raises(unpickling.Refused, match="attributes of a"):
        unpickling.Unpickler(io.BytesIO(stream)).load()
    assert not hasattr(found, "evil")


def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    with pytest.raises(unpickling.Refused, match="TorchScript"):
        unpickling.load(tmp_path / "script.pt")


def test_torchscript_that_the_directory_of_the_zip_does_not_show_is_refused(tmp_path, monkeypatch):
    """By the list of PyTorch's own reader, which torch.load goes by."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    monkeypatch.setattr(unpickling, "sound_records", lambda path: {"data.pkl": 1})
    with pytest.raises(unpickling.Refused, match="TorchScript"):
        unpickling.load(tmp_path / "script.pt")


def test_an_archive_of_nothing_is_refused(tmp_path):
    with zipfile.ZipFile(str(tmp_path / "empty.pt"), "w"):
        pass
    local = b"PK\3\4" + bytes(26)  # a record that the directory does not have
    (tmp_path / "empty.pt").write_bytes(local + (tmp_path / "empty.pt").read_bytes())
    assert refusal(tmp_path / "empty.pt")


def test_an_archive_of_pytorchs_first_format_changes_no_file(tmp_path):
    private = tmp_path / "private"
    private.write_text("")
    private.chmod(0o600)
    with tarfile.open(str(tmp_path / "first.pt"), "w") as archive:
        member = tarfile.TarInfo("storages")
        member.type, member.linkname, member.mode = tarfile.LNKTYPE, str(private), 0o777
        member.uid, member.gid = os.getuid(), os.getgid()
        archive.addfile(member)
    before = private.stat()
    with pytest.raises(Exception):  # noqa: B017  (whatever PyTorch makes of it)
        unpickling.load(tmp_path / "first.pt")
    after = private.stat()
    assert (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)


@pytest.mark.parametrize("items", [[(0, 7.0)], [(0, 7.0), (1, 7.0)]], ids=["SETITEM", "SETITEMS"])
@pytest.mark.parametrize("new_format", [ZIP, OLD], ids=["zip", "old"])
def test_a_tensor_is_not_written_to(tmp_path, new_format, items):
    rebuild, arguments = torch.zeros(2).__reduce_ex__(2)
    state = {"tensor": Calls(rebuild, *arguments, items=items)}
    with pytest.raises(unpickling.Refused, match="items of a Tensor"):
        unpickling.load(save(state, tmp_path / "state.pt", new_format))


def rewritten(path, change, target, **options):
    """The checkpoint with change(name, content) in the place of each of its records."""
    with zipfile.ZipFile(str(path)) as whole, zipfile.ZipFile(str(target), "w", **options) as changed:
        for name in whole.namelist():
            changed.writestr(name, change(name, whole.read(name)))
    return target


def of_pickle(opcodes, target):
    """A file of PyTorch's with these operations in the place of its own."""
    whole = save({"tensor": torch.ones(4)}, target.with_suffix(".whole"))
    pickled = pickle.PROTO + b"\2" + opcodes + pickle.STOP
    return rewritten(whole, lambda name, content: pickled if name.endswith("data.pkl") else content, target)


def refusal(path):
    """Why the checkpoint is refused, with no more than a hundred megabytes of Python's objects."""
    tracemalloc.start()
    with pytest.raises((pickle.UnpicklingError, unpickling.Refused)) as refused:
        unpickling.load(path)
    assert tracemalloc.get_traced_memory()[1] < 10**8
    tracemalloc.stop()
    return str(refused.value)


def test_a_tensor_of_more_than_the_file_holds_is_refused(tmp_path):
    whole = save({"tensor": torch.ones(4)}, tmp_path / "whole.pt")
    short = rewritten(
        whole, lambda name, content: content[: 8 if name.endswith("data/0") else None], tmp_path / "short.pt"
    )
    assert "data/0 is shorter" in refusal(short)


def test_a_storage_that_is_asked_for_twice_holds_no_more_the_second_time(tmp_path):
    """PyTorch keeps no storage of nothing, and reads it again, as large as it is said to be then."""
    whole = save({"one": torch.ones(0), "other": torch.ones(0)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(str(whole)) as archive:
        (pickled,) = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    storage = b"X\x01\0\0\0" + b"%d"  # their keys
    assert storage % 1 in pickled
    again = pickled.replace(storage % 1, storage % 0)
    end = again.rindex(b"K\0t")  # the number of numbers of the second one
    again = again[:end] + b"K\x40t" + again[end + 3 :]
    path = rewritten(
        whole, lambda name, content: again if name.endswith("data.pkl") else content, tmp_path / "again.pt"
    )
    assert "data/0 is shorter" in refusal(path)


def test_a_file_of_neither_format_is_not_tried_as_a_tar(tmp_path, monkeypatch):
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("it was"))
    state = {"tensor": torch.ones(3)}
    assert same(unpickling.load(save(state, tmp_path / "old.pt", OLD)), state)


# What it may take


@pytest.mark.parametrize("new_format", [ZIP, OLD], ids=["zip", "old"])
@pytest.mark.parametrize(
    "size, stride",
    [((2**33,), (1,)), ((2,), (2**33,)), ((2**33,), (0,)), ((2, 2), (4, 1)), ((4,), (-1,)), ((-1,), (1,))],
)
def test_a_tensor_of_more_than_its_storage_is_refused(tmp_path, new_format, size, stride):
    rebuild, (storage, offset, *_, grad, hooks) = torch.zeros(4).__reduce_ex__(2)
    path = save(
        {"tensor": Calls(rebuild, storage, offset, size, stride, grad, hooks)}, tmp_path / "state.pt", new_format
    )
    assert "a tensor of the size" in refusal(path)


def test_storages_of_more_than_the_old_formats_file_are_refused(tmp_path):
    small = save({"tensor": torch.zeros(4)}, tmp_path / "small.pt", OLD)
    large = small.read_bytes().replace(b"K\x04N", pickle.LONG1 + b"\5" + (2**33).to_bytes(5, "little") + b"N")
    assert large != small.read_bytes()
    (tmp_path / "large.pt").write_bytes(large)
    assert "has more numbers than are left in the file" in refusal(tmp_path / "large.pt")


def test_tensors_may_share_a_storage_be_empty_and_lie_in_any_order(tmp_path):
    storage = torch.arange(6.0)
    state = {
        "tied": storage,
        "part": storage[1:5:2],
        "turned": storage.view(2, 3).t(),
        "none": storage[:0],
        "one": storage.sum(),
    }
    for new_format in ZIP, OLD:
        assert same(unpickling.load(save(state, tmp_path / "state.pt", new_format)), state)


def test_a_compressed_file_is_refused(trained, tmp_path):
    path = rewritten(
        trained("nope"), lambda _, content: content, tmp_path / "small.pt", compression=zipfile.ZIP_DEFLATED
    )
    assert "it is compressed" in refusal(path)


@pytest.mark.parametrize(
    "calls, why",
    [
        (Calls(bytes, 2**30), "a call of bytes"),
        (Calls(list, [0] * 10), "a call of list"),
        (Calls(DictConfig, {"a": 1}), "a call of DictConfig"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_copy_or_make_more_than_there_is_is_not_called(tmp_path, calls, why):
    assert why in refusal(save(calls, tmp_path / "state.pt"))


def list_of_lists(depth):
    """2^depth lists in as many bytes as there are levels."""
    return functools.reduce(lambda inner, _: [inner, inner], range(depth), [])


@pytest.mark.parametrize("calls", [Calls(np.dtype, {0: list_of_lists(40)}), Calls(list, list_of_lists(40))])
def test_what_is_refused_is_not_spelled_out(tmp_path, calls):
    assert len(refusal(save(calls, tmp_path / "state.pt"))) < 500


NAMESPACE = _global("argparse", "Namespace")


@pytest.mark.parametrize(
    "opcodes, why",
    [
        (b"}" * 2**15, "more beside its tensors than options and names take"),
        (
            _global("_codecs", "encode") + b"q\0X\0\x10\0\0" + b"x" * 2**12 + b"N\x86q\1" + b"0h\0h\1R" * 9,
            "more beside",
        ),
        (
            NAMESPACE + b"q\0}q\1(" + b"".join(b"M%c\0N" % n for n in range(256)) + b"u" + b"0h\0)\x81h\1b" * 99,
            "more beside",
        ),
        (b"}" + b")" + b"\x85" * 5000 + b"Ns", "a tuple in the place of a key"),
        (_global("builtins", "set") + b"])" + b"\x85" * 5000 + b"a\x85R", "a tuple in the place of a key"),
        (b"\x8f", "is no operation of a checkpoint's pickle"),
        (b"\x96" + (2**40).to_bytes(8, "little"), "is no operation of a checkpoint's pickle"),
    ],
    ids=["too many", "copied text", "copied attributes", "tuples in a dict", "tuples in a set", "sets", "memory"],
)
def test_a_pickle_that_takes_more_than_options_do_is_refused(tmp_path, monkeypatch, opcodes, why):
    monkeypatch.setattr(unpickling, "FOR_OPTIONS", 2**14)  # as quick as it is small
    assert why in refusal(of_pickle(opcodes, tmp_path / "state.pt"))


def laughs(depth):
    level = [1, 2]
    for _ in range(depth):
        level = [level, level]
    return level


def tower(depth):
    level = ()
    for _ in range(depth):
        level = (level,)
    return level


@pytest.mark.parametrize("options", [laughs(60), tower(400), list(range(20_000)), {"a": [[[laughs(20)]]]}])
@pytest.mark.parametrize("kept", ["args", "cfg", "DictConfig"])
def test_more_options_than_fairseq_has_are_refused_before_they_are_counted_out(tmp_path, kept, options):
    held = {"model": {"option": options}}
    if kept == "args":
        held = argparse.Namespace(option=options)
    elif kept == "DictConfig":
        held = DictConfig({"option": 1})
        held.__dict__["_content"]["option"].__dict__["_val"] = options
    path = save({"args" if kept == "args" else "cfg": held}, tmp_path / "state.pt")
    assert "more options than fairseq" in refusal(path)


@pytest.mark.parametrize("text", ["${oc.env:SECRET}", "a ${oc.env:SECRET}", "${oc.decode:${oc.env:SECRET}}", "${.x}"])
@pytest.mark.parametrize("kept", ["args", "cfg", "DictConfig"])
def test_what_omegaconf_would_look_up_elsewhere_is_refused(
    trained, data_bin, tmp_path, monkeypatch, capsys, kept, text
):
    monkeypatch.setenv("SECRET", "hunter2")
    state = unpickling.load(trained("alibi"))
    if kept == "args":
        state.update(cfg=None, args=parse(data_bin, *command_line(TINY)))
        state["args"].decoder_input_dim = text
    else:
        state["cfg"]["model"]["activation_fn"] = text
        if kept == "DictConfig":
            state["cfg"] = OmegaConf.create(state["cfg"])
    assert run(data_bin, save(state, tmp_path / "state.pt"), "--output", tmp_path / "result.json") == 2
    said = capsys.readouterr()
    assert "asks for the interpolation " + text in said.err and "hunter2" not in said.err + said.out
    assert not (tmp_path / "result.json").exists()


def test_options_that_are_kept_as_a_namespace_and_are_not_the_models_do_not_matter(trained, data_bin, tmp_path):
    state = unpickling.load(trained("alibi"))
    state["cfg"]["optimizer"] = argparse.Namespace(_name="sgd", momentum=0.9)
    assert run(data_bin, save(state, tmp_path / "state.pt")) == 0


def test_options_that_refer_to_each_other_are_read_as_fairseq_wrote_them(trained, data_bin, tmp_path):
    state = unpickling.load(trained("alibi"))
    state["cfg"]["task"]["seed"] = "${common.seed}"
    state["cfg"] = OmegaConf.create(state["cfg"])
    assert run(data_bin, save(state, tmp_path / "state.pt")) == 0


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"decoder_layers": 10**7}, "a larger model than its weights fit"),
        ({"decoder_layers_to_keep": "0," * 10**5 + "1"}, "a larger model than"),
        ({"decoder_embed_dim": 2**30}, "1073741824 wide (decoder_embed_dim); its weights are not"),
        ({"decoder_ffn_embed_dim": 2**40}, "a larger model than"),
        ({"decoder_input_dim": 2**40, "decoder_output_dim": 2**40}, "a larger model than"),
        ({"position_encoding": "rpe", "rpe_clip": 2**40}, "a larger model than"),
        ({"position_encoding": "t5", "t5_num_buckets": 2**40, "t5_max_distance": 2**41}, "a larger model than"),
        ({"position_encoding": "sinusoidal", "max_target_positions": 2**30}, "a larger model than"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_model_larger_than_its_weights_is_not_built(trained, data_bin, tmp_path, capsys, changes, said):
    state = unpickling.load(trained("alibi"))
    state["cfg"]["model"].update({"no_token_positional_embeddings": False, **changes})
    path = save(state, tmp_path / "state.pt")
    assert run(data_bin, path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --path {path}: its options ") and said in error and error.count("\n") == 1


def test_weights_that_share_a_storage_do_not_make_a_larger_model():
    shared = torch.empty(2**11, 2**11)
    weights = {str(number): shared for number in range(20)}
    with scorers._MadeFor({name: weight.clone() for name, weight in weights.items()}, {"decoder_embed_dim": 2**11}):
        assert len([torch.empty(2**11, 2**11) for _ in weights]) == 20
    with pytest.raises(ValueError, match="a larger model than"), scorers._MadeFor(weights, {}):
        [torch.empty(2**11, 2**11) for _ in weights]


# Bytes that are not those that were written


def flipped(path, target, at):
    content = bytearray(open(str(path), "rb").read())
    content[at] ^= 0x10
    target.write_bytes(content)
    return target


def places(path):
    """A byte of the pickle, of some weights' records, and two of the directory, which no checksum covers."""
    with zipfile.ZipFile(str(path)) as archive:
        records = [record for record in archive.infolist() if record.file_size]
        size = os.path.getsize(str(path))
        large = [record.header_offset + 200 for record in records if record.file_size > 200]
        return [*large[::5], size - 1, size - 30]


@pytest.mark.parametrize("words", [[], ["--trust-checkpoint"]], ids=["", "trusted"])
def test_a_bit_that_has_changed_is_found_or_changes_nothing(trained, data_bin, tmp_path, capsys, words):
    path = trained("alibi")
    sound = unpickling.load(path)
    found = 0
    for at in places(path):
        broken = flipped(path, tmp_path / "broken.pt", at)
        try:
            assert same(unpickling.load(broken), sound)
        except (pickle.UnpicklingError, RuntimeError):  # the latter where PyTorch finds no zip
            found += 1
    assert found >= len(places(path)) - 2 > 10
    assert run(data_bin, flipped(path, tmp_path / "broken.pt", places(path)[3]), *words) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: --path {tmp_path}/broken.pt is no fairseq checkpoint: it is damaged")


@pytest.mark.parametrize("view, error", [(("1", 0, 4), unpickling.Refused), (None, pickle.UnpicklingError)])
def test_a_view_of_a_storage_is_not_asked_for(view, error):
    storage = pickle.dumps(("storage", "type", "0", "cpu", 4, view), 2)[:-1] + pickle.BINPERSID + pickle.STOP
    with pytest.raises(error, match="a view of a storage" if view else "persistent id"):  # Python's own finds none
        unpickling.Unpickler(io.BytesIO(storage)).load()


def same(one, other):
    if isinstance(one, torch.Tensor):
        numbers = one.detach().numpy(), other.detach().numpy()  # fairseq's _float_tensor is memory, so it may be NaN
        return one.dtype == other.dtype and np.array_equal(*numbers, equal_nan=True)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_checkpoint_of_fairseq_train_is_read_whole(trained):
    path = trained("t5")
    assert same(unpickling.load(path), torch.load(path, map_location="cpu", weights_only=False))


@pytest.mark.parametrize("new_format", [ZIP, OLD], ids=["zip", "old"])
def test_options_numbers_and_parameters_are_read_as_they_were(data_bin, tmp_path, new_format):
    args = parse(data_bin, *command_line(TINY))
    state = {
        "args": args,
        "cfg": convert_namespace_to_omegaconf(args),
        "float": np.float32(1.5),
        "int": np.int64(-3),
        "half": torch.nn.Parameter(torch.ones(2, dtype=torch.float16)),
    }
    read = unpickling.load(save(state, tmp_path / "state.pt", new_format))
    assert isinstance(read["args"], argparse.Namespace) and isinstance(read["cfg"], DictConfig)
    assert same({name: read[name] for name in state}, state) and read["float"].dtype == np.float32
    assert isinstance(read["half"], torch.nn.Parameter)


def test_a_numpy_scalar_of_objects_is_refused(tmp_path):
    state = Calls(np.float64(1).__reduce__()[0], np.dtype(object), b"12345678")
    with pytest.raises(ValueError, match="OBJECT"):
        unpickling.load(save(state, tmp_path / "state.pt"))


def test_fairseq_is_given_what_was_read_and_reads_nothing_itself(trained, data_bin, monkeypatch):
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *given, **options: read.append(options) or load(*given, **options))
    load_checkpoint(trained("alibi"), str(data_bin))
    (options,) = read
    assert options["pickle_module"].Unpickler.__bases__ == (unpickling.Unpickler,)


@pytest.mark.parametrize("option", scorers.RUN_BY_FAIRSEQ)
def test_options_that_fairseq_evaluates_are_numbers_and_no_code(trained, data_bin, tmp_path, option, capsys):
    state = unpickling.load(trained("alibi"))
    reached = {"character_embeddings": option == "character_filters", "tie_adaptive_weights": False}
    state["cfg"]["model"].update({**reached, option: f"__import__('os').system('touch {tmp_path}/marker')"})
    assert run(data_bin, save(state, tmp_path / "code.pt")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --path {tmp_path}/code.pt: {option}=") and "is not a literal" in error
    assert not (tmp_path / "marker").exists()


def test_fairseq_runs_no_other_option_of_the_model_as_python():
    """Calls of eval, and of what calls it, in the modules that build a transformer_lm of either kind."""
    sources = [transformer_lm.__file__, *glob.glob(os.path.dirname(transformer.__file__) + "/*.py")]
    sources += glob.glob(os.path.dirname(modules.__file__) + "/*.py") + [language_modeling.__file__]
    found = set()
    for source in sources:
        with open(source, encoding="utf-8") as file:
            for node in ast.walk(ast.parse(file.read())):
                if isinstance(node, ast.Call) and re.match("eval(_|$)", name_of(node.func)):
                    found.add(name_of(node.args[0]))
    attention = "xformers_att_config"  # which a layer gives to its attention
    assert found == {attention, *scorers.RUN_BY_FAIRSEQ} - {"decoder_" + attention}


def name_of(node):
    return getattr(node, "attr", getattr(node, "id", ""))


@pytest.mark.parametrize("architecture", ["fconv_lm", "lightconv_lm", "nonsense"])
def test_other_architectures_are_refused(trained, data_bin, tmp_path, architecture, capsys):
    state = unpickling.load(trained("alibi"))
    state["cfg"]["model"]["_name"] = architecture
    assert run(data_bin, save(state, tmp_path / "other.pt")) == 2
    assert f"is a {architecture}; evaluated are transformer_lm" in capsys.readouterr().err


# Checkpoints of fairseq's transformer_lm: the ALiBi release


@pytest.fixture(scope="module")
def release(data_bin):
    """release(options): args, config and untrained model of a small transformer_lm_wiki103 that heeds no sine waves."""

    @functools.lru_cache(maxsize=None)
    def build(**changes):
        changes = {"--" + name.replace("_", "-"): value for name, value in changes.items()}
        words = {**TINY, "--arch": "transformer_lm_wiki103", "--decoder-attention-heads": NUM_HEADS, **changes}
        args = parse(data_bin, *command_line({**words, "--criterion": "adaptive_loss", "--max-tokens": 256}))
        config = convert_namespace_to_omegaconf(args)
        built = copy.deepcopy(config)
        built.model.no_token_positional_embeddings = not args.decoder_learned_pos
        utils.set_torch_seed(1)
        model = tasks.setup_task(built.task).build_model(built.model).eval()
        torch.nn.init.normal_(model.decoder.layers[0].self_attn.q_proj.weight)  # attention that is not even
        return args, config, model

    return lambda **changes: copy.deepcopy(build(**changes))


def by_args(args, config, model):
    """A checkpoint as fairseq's trainer wrote it up to 2020."""
    without = args.decoder_learned_pos or args.no_token_positional_embeddings
    sine_waves = {} if without else {"decoder.embed_positions._float_tensor": torch.zeros(1)}
    return {
        "args": args,
        "model": {**model.state_dict(), **sine_waves},
        "optimizer_history": [
            {
                "criterion_name": "AdaptiveLoss",
                "optimizer_name": "FairseqNAG",
                "lr_scheduler_state": {"best": 4.5},
                "num_updates": 286000,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 206, "iterations_in_epoch": 0}, "val_loss": 4.5, "best": 4.5},
        "last_optimizer_state": {"state": {}, "param_groups": []},
    }


def by_parts(args, config, model, container=True, marked=True):
    """As it wrote it from 2021 on; the release's transformer_lm and task have an option max_tokens."""
    for part in (config.model, config.task) if marked else ():
        with open_dict(part):
            part.max_tokens = args.max_tokens
    written = OmegaConf.to_container(config, resolve=True) if container else config
    return {**by_args(args, config, model), "args": None, "cfg": written}


@torch.no_grad()
def nll_with_bias(model, source, target):
    """Of one sequence, by fairseq's own model with the bias of the ALiBi paper added to its causal mask."""
    length = len(source)
    slopes = torch.tensor([2 ** (-8 * head / NUM_HEADS) for head in range(1, NUM_HEADS + 1)])
    keys_minus_queries = (torch.arange(length)[None, :] - torch.arange(length)[:, None]).float()
    mask = slopes[:, None, None] * keys_minus_queries + torch.full((length, length), -math.inf).triu(1)
    model.decoder.buffered_future_mask = lambda _: mask
    log_probs = model.get_normalized_probs(model(source[None]), log_probs=True)[0]
    return -log_probs.gather(1, target[:, None])[:, 0]


@pytest.mark.parametrize(
    "made, given, new_format",
    [
        (by_args, "alibi", OLD),
        (by_args, "alibi", ZIP),
        (by_parts, None, ZIP),
        (functools.partial(by_parts, container=False), None, OLD),
    ],
    ids=["args-old", "args-zip", "cfg-dict", "cfg-DictConfig"],
)
def test_the_alibi_release_has_the_losses_of_fairseqs_model_with_the_papers_bias(
    release, data_bin, tmp_path, made, given, new_format
):
    *options, model = release()
    checkpoint = load_checkpoint(
        str(save(made(*options, model), tmp_path / "alibi.pt", new_format)), str(data_bin), given
    )
    assert checkpoint.l_train == L_TRAIN
    stream = load_stream(str(data_bin), "valid", checkpoint.task.dictionary)
    source = inputs_of(stream, checkpoint.bos)
    for length, piece in (20, 20), (L_TRAIN, L_TRAIN), (72, 72), (72, L_TRAIN):  # the last: non-overlapping
        cuts = pieces(len(stream), length, piece)
        theirs = torch.cat([nll_with_bias(model, source[start:stop], stream[start:stop]) for start, _, stop in cuts])
        for max_tokens in 1, 4096:
            ours = stream_nll(checkpoint, source, stream, cuts, max_tokens)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
        (cell,) = evaluate(checkpoint, stream, [length], ["full" if piece == length else "non-overlapping"])
        assert cell["nll"] == pytest.approx(theirs.double().mean().item(), rel=1e-6)


def nll_of(path, data_bin, encoding=None):
    checkpoint = load_checkpoint(str(path), str(data_bin), encoding)
    stream = load_stream(str(data_bin), "valid", checkpoint.task.dictionary)
    return evaluate(checkpoint, stream, [72], ["full"])[0]["nll"]


def test_options_by_parts_without_the_mark_of_the_release_are_believed(release, data_bin, tmp_path):
    args, config, model = release()
    old = save(by_args(args, config, model), tmp_path / "old.pt")
    alibi, sinusoidal, nope = (nll_of(old, data_bin, name) for name in ("alibi", "sinusoidal", "nope"))
    assert len({round(nll, 4) for nll in (alibi, sinusoidal, nope)}) == 3
    for without, expected in (False, sinusoidal), (True, nope):
        args.no_token_positional_embeddings = config.model.no_token_positional_embeddings = without
        path = save(by_parts(args, config, model, marked=False), tmp_path / "parts.pt")
        assert nll_of(path, data_bin) == pytest.approx(expected, rel=1e-6)
        assert nll_of(path, data_bin, "alibi") == alibi


@pytest.mark.parametrize("without", [False, True])
def test_where_it_cannot_be_told_the_option_is_asked_for(release, data_bin, tmp_path, capsys, without):
    args, config, model = release()
    args.no_token_positional_embeddings = without
    assert run(data_bin, save(by_args(args, config, model), tmp_path / "old.pt")) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: --path") and "--position-encoding" in error


@pytest.mark.parametrize("made", [by_args, functools.partial(by_parts, marked=False)], ids=["args", "cfg"])
def test_learned_positions_are_fairseqs_own(release, data_bin, tmp_path, capsys, made):
    path = save(made(*release(decoder_learned_pos=True)), tmp_path / "learned.pt")
    assert load_checkpoint(str(path), str(data_bin)).model.decoder.embed_positions.weight.shape[0] > L_TRAIN
    assert run(data_bin, path, "--position-encoding", "alibi") == 2
    assert "--decoder-learned-pos" in capsys.readouterr().err


def test_a_representation_with_other_parameters_is_refused(release, data_bin, tmp_path, capsys):
    path = save(by_args(*release()), tmp_path / "old.pt")
    assert run(data_bin, path, "--position-encoding", "t5") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: --path {path}") and "Missing key" in error


def test_a_checkpoint_that_knows_its_representation_is_given_no_other(trained, data_bin, capsys):
    assert run(data_bin, trained("rope"), "--position-encoding", "alibi") == 2
    assert "was trained with rope" in capsys.readouterr().err


# The script


@pytest.fixture
def served(tmp_path, monkeypatch):
    """served.url is a server on this machine, which gives the file `served.file` and drops its first connection."""
    server = SimpleNamespace(file=tmp_path / "served.pt", ranges=[])

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            content = server.file.read_bytes()
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:] if server.ranges else content[: len(content) // 2])
            server.ranges.append((self.path, start))

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(alibi_release, "ROOT", tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        monkeypatch.setattr(alibi_release, "MIRRORS", [f"http://127.0.0.1:{listening.server_port}/"])
        yield server
        listening.shutdown()


def test_the_release_is_downloaded_evaluated_and_printed_beside_both_papers(
    served, release, data_bin, tmp_path, capsys
):
    save(by_args(*release(tokens_per_sample=512)), served.file, OLD)
    words = ["512", "--data", str(data_bin), "--cpu"]
    assert alibi_release.main(words) == 0
    size = served.file.stat().st_size
    assert served.ranges == [("/alibi_wt103_L512.pt", 0), ("/alibi_wt103_L512.pt", size // 2)]
    assert (tmp_path / "data/.downloads/alibi_wt103_L512.pt").read_bytes() == served.file.read_bytes()
    out = capsys.readouterr().out
    assert f"{size:,} bytes, SHA-256" in out

    cells = json.loads((tmp_path / "runs/alibi-release/512.json").read_text())["cells"]
    table = alibi_release.beside_the_papers(cells, "valid")
    lengths = [128, 256, 512, 1012, 1024, 1512, 1536, 2048, 2512, 3072]
    assert table["sequence_length"].tolist() == [length for length in lengths for _ in PAPERS_INFERENCES]
    beside = {(line[0], line[2]): tuple(map(str, line[-2:])) for line in table.itertuples(index=False)}
    assert beside["full", 1012] == ("18.71", "18.73") and beside["full", 2512] == ("18.41", "18.41")  # as printed
    assert beside["full", 512] == beside["non-overlapping", 512] == ("19.69", "19.73")  # up to L_train they are one
    assert beside["non-overlapping", 1012] == ("19.64", "nan") and beside["full", 1024] == ("nan", "18.81")
    for cell, perplexity in zip(cells, table["perplexity"]):
        assert perplexity == cell["perplexity"] and f"{perplexity:.2f}" in out

    assert alibi_release.main(words) == 0 and len(served.ranges) == 2  # not downloaded again


@pytest.mark.parametrize("l_train, press", [(64, [28.46, 24.7, 22.88, 22.09, 21.73, 21.63, 21.59, 21.53]), (3072, [])])
def test_a_release_that_the_paper_has_not_is_printed_beside_press_et_al(
    served, release, data_bin, tmp_path, capsys, l_train, press
):
    save(by_args(*release(tokens_per_sample=l_train)), served.file)
    served.ranges.append(None)  # no dropped connection
    assert alibi_release.main([str(l_train), "--data", str(data_bin), "--cpu"]) == 0
    assert served.ranges[1:] == [(f"/alibi_wt103_L{l_train}.pt", 0)]
    cells = json.loads((tmp_path / f"runs/alibi-release/{l_train}.json").read_text())["cells"]
    table = alibi_release.beside_the_papers(cells, "valid").query("inference == 'full'")
    assert table["sequence_length"].tolist() == [length for length in alibi_release.RELEASED if length >= l_train]
    assert table["perplexity of Press et al."].dropna().tolist() == press
    assert table["perplexity of the paper"].isna().all() and "–" in capsys.readouterr().out


@pytest.mark.parametrize("subset, of_press, of_paper", [("valid", 18.3, 19.69), ("test", 19.01, None)])
def test_a_release_s_numbers_are_printed_beside_those_of_the_same_split_and_stride(subset, of_press, of_paper):
    """Table 7 of Press et al., and the paper's Table 1, which is of the validation set."""
    of = {"l_train": 512, "perplexity": 1.0}
    sliding = [{**of, "inference": "sliding", "sequence_length": 3072, "stride": stride} for stride in (512, 256)]
    cells = [*sliding, {**of, "inference": "full", "sequence_length": 512, "stride": None}]
    table = alibi_release.beside_the_papers(cells, subset)
    assert table["perplexity of Press et al."].astype(object).where(lambda numbers: numbers.notna(), None).tolist() == [
        *(of_press, None, 19.73 if of_paper else None)
    ]
    assert table["perplexity of the paper"].dropna().tolist() == [number for number in [of_paper] if number]


@pytest.mark.parametrize("l_train", [64, 128, 256, 512, 1024, 1536, 2048, 3072])
def test_each_release_is_evaluated_where_press_et_al_and_the_paper_did(l_train):
    press, paper = (pd.read_csv(alibi_release.PAPER / f"{name}.csv") for name in ("press2022", "table1"))
    there = {*press[(press.source == "Table 5") & (press.l_train == l_train)].sequence_length, l_train}
    there |= {*paper[(paper.method == "ALiBi") & (paper.l_train == l_train)].sequence_length}
    lengths = alibi_release.evaluated_lengths(l_train)
    assert there <= set(lengths) and lengths == sorted(set(lengths))


def test_a_length_that_was_not_released_is_refused_with_those_that_were(capsys):
    with pytest.raises(SystemExit, match="2"):
        alibi_release.main(["500"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: argument l_train: invalid choice: 500" in error
    assert re.findall(r"\d+", error.split("choose from")[1]) == "64 128 256 512 1024 1536 2048 3072".split()


@pytest.mark.parametrize(
    "words, error",
    [
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["--max-tokens", "x"], "argument --max-tokens: 'x' is not a whole number > 0"),
    ],
)
def test_a_wrong_option_of_the_evaluation_is_refused_before_anything_is_downloaded(monkeypatch, capsys, words, error):
    monkeypatch.setattr(alibi_release, "prepare", lambda *_, **__: pytest.fail("the corpus was prepared"))
    with pytest.raises(SystemExit, match="2"):
        alibi_release.main(["512", *words])
    assert capsys.readouterr().err == f"python -m wavepos_fairseq.lab.alibi_release: error: {error}\n"


def test_a_copy_that_is_not_there_is_refused(data_bin, tmp_path, capsys):
    assert alibi_release.main(["512", "--from", str(tmp_path / "none.pt"), "--data", str(data_bin)]) == 2
    assert "error: --from" in capsys.readouterr().err


def test_a_page_in_the_place_of_the_release_is_refused(served, data_bin, capsys):
    served.file.write_text("<html>This model has moved.</html>")
    assert alibi_release.main(["512", "--data", str(data_bin)]) == 2
    error = capsys.readouterr().err
    assert "is not a PyTorch file" in error and "--from takes a local copy" in error


def test_a_release_of_which_a_bit_has_changed_is_downloaded_again(served, release, data_bin, tmp_path, capsys):
    save(by_args(*release(tokens_per_sample=512)), served.file)
    served.ranges.append(None)  # no dropped connection
    there = tmp_path / "data/.downloads/alibi_wt103_L512.pt"
    there.parent.mkdir(parents=True)
    flipped(served.file, there, places(served.file)[0])
    assert alibi_release.main(["512", "--data", str(data_bin), "--cpu"]) == 0
    assert there.read_bytes() == served.file.read_bytes()
    assert (
        alibi_release.main(["512", "--data", str(data_bin), "--from", str(flipped(there, tmp_path / "b.pt", 999))]) == 2
    )
    assert "error: b.pt is not a PyTorch file, or not a whole one: it is damaged" in capsys.readouterr().err


def test_a_release_for_another_dictionary_is_refused_with_both_sizes(release, data_bin, tmp_path, capsys):
    state = by_args(*release())
    tail = "decoder.embed_tokens.embeddings.2.0.weight"
    state["model"][tail] = torch.cat((state["model"][tail], state["model"][tail][:5]))
    path = save(state, tmp_path / "other.pt")
    assert alibi_release.main(["512", "--from", str(path), "--data", str(data_bin), "--cpu"]) == 2
    error = capsys.readouterr().err
    assert f"does not fit {data_bin}/dict.txt with 64 types: the model has 69" in error
