"""README.md and docs/: the site builds without a warning and loads nothing, what the pages say to type is accepted."""

import argparse
import ast
import csv
import importlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
from html.parser import HTMLParser
from typing import Dict, List, NamedTuple

import pytest
from conftest import L_TRAIN, ROOT, run_module

pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra docs)")
import fairseq_cli.eval_lm  # noqa: E402
from fairseq import options, tasks  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from markdown_it import MarkdownIt  # noqa: E402

from wavepos_fairseq.__main__ import COMMANDS as COMMANDS_OF_WAVEPOS  # noqa: E402
from wavepos_fairseq.lab import experiments  # noqa: E402
from wavepos_fairseq.lab.configs import find_row, load_preset, load_table
from wavepos_fairseq.lab.runs import Run, fairseq_options
from wavepos_fairseq.positions import position_names, position_options  # noqa: E402
from wavepos_fairseq.positions.base import flag  # noqa: E402

sys.path.insert(0, str(ROOT / "docs"))
from hooks import expanded  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WALK, REPRODUCE = ROOT / "docs" / "representation.md", ROOT / "docs" / "reproduce.md"
SHELL = ("", "sh", "bash")  # an indented block says nothing
LANGUAGES = ("python", *SHELL, "math", "text")  # text is what is neither run nor parsed
COMMAND = re.compile(r"(scripts/\w+\.sh|wavepos|python|fairseq-train|fairseq-interactive|pip|nox)( |$)")


class Page(NamedTuple):
    """What a page has in it, what it embeds included."""

    files: Dict[str, str]  # blocks with a title, by it
    python: List[str]  # the other blocks of Python
    commands: List[List[str]]  # words of commands, in indented blocks and within the text
    others: List[str]  # lines of indented blocks that are no commands
    languages: List[str]  # of the blocks without a title
    code: List[str]  # what stands in backticks within the text


def read(path):
    source = path.relative_to(ROOT).as_posix()
    page = Page({}, [], [], [], [], [])
    for token in MarkdownIt().enable("table").parse(expanded(path.read_text(encoding="utf-8"), source, "index.md")):
        if token.type in ("fence", "code_block"):
            language, *attributes = shlex.split(token.info) or [""]
            titles = [word.split("=", 1)[1] for word in attributes if word.startswith("title=")]
            if titles:
                page.files[titles[0]] = token.content
                continue
            page.languages.append(language)
            if language == "python":
                page.python.append(token.content)
            elif language in SHELL:
                page.commands.extend(commands(token.content))
                page.others.extend(line for line in lines(token.content) if line and not COMMAND.match(line))
        for child in token.children or []:
            if child.type == "code_inline":
                page.code.append(child.content)
                page.commands.extend(commands(child.content))
    return page


def lines(text):
    return [re.sub(r"^echo [^|]*\| ", "", line) for line in text.replace("\\\n", " ").splitlines()]


def commands(text):
    return [shlex.split(line, comments=True) for line in lines(text) if COMMAND.match(line)]


READ = {path: read(path) for path in PAGES}


def by_page(pages):
    return pytest.mark.parametrize("path", pages, ids=lambda path: path.relative_to(ROOT).as_posix())


# The site


class Loaded(HTMLParser):
    """What a browser fetches for a page by itself: all that has an address but links to follow."""

    def __init__(self, html):
        super().__init__()
        self.addresses = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag != "a":
            self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [str(ROOT / "scripts" / "docs.sh"), "--site-dir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert built.returncode == 0, built.stdout
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        addresses = Loaded(page.read_text(encoding="utf-8")).addresses
        assert addresses and not [address for address in addresses if re.match("(https?:)?//", address)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.parametrize("table", ["table1", "table3", "table4"])
def test_the_results_page_has_the_numbers_of_the_csv(site, table):
    text = " ".join(re.sub(r"<[^>]+>", " ", (site / "results.html").read_text(encoding="utf-8")).split())
    with (ROOT / "results" / "wikitext2-cpu" / f"{table}.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        shown = [name for name in row if name != "inference" and not name.endswith(" std")]
        cells = [f"{row[name]} ± {row[f'{name} std']}" if row.get(f"{name} std") else row[name] for name in shown]
        assert " ".join(cells) in text


# What the pages say to type


@by_page(PAGES)
def test_every_block_is_run_or_says_that_it_is_not(path):
    assert set(READ[path].languages) <= set(LANGUAGES)
    assert READ[path].files.items() <= READ[WALK].files.items()
    for line in READ[path].others:
        first = re.match(r"\w[\w/.]*|", line).group()
        assert line.startswith("score[m, n] = ") or (first and (ROOT / first).exists()), line


@by_page([path for path in PAGES if READ[path].python and path != WALK])
def test_the_blocks_of_python_run_one_after_the_other(path):
    variables = {}
    for block in READ[path].python:
        exec(compile(block, str(path), "exec"), variables)


class Parsed(Exception):
    """The command line was accepted; nothing is to be done."""


def module_of(words):
    """The module that `wavepos`, a script or `python -m` runs, and its arguments."""
    program, *arguments = words
    if program == "python":
        return arguments[1], arguments[2:]
    if program != "wavepos":
        found = re.search(r'-m (\S+)(?: (\w+))? (?:[^\n]* )?"\$@"', (ROOT / program).read_text(encoding="utf-8"))
        assert found, f"{program} takes no arguments"
        if found[1] != "wavepos_fairseq":
            return found[1], arguments
        arguments = [found[2], *arguments]
    name, *arguments = arguments
    module, first, _ = COMMANDS_OF_WAVEPOS[name]
    return f"wavepos_fairseq.{module}", [*first, *arguments]


def accept(words, monkeypatch):
    """Has a command's own parser, and what checks its arguments, read the words; SystemExit where they are refused.

    Nothing else is done: a module is stopped where it has read all, and one that goes on has no network or processes.
    """
    program, *arguments = words
    if program == "pip" and arguments[1:] == ["--no-deps", "."]:
        return
    if program == "pip":
        assert arguments[:3] == ["install", "-c", "constraints.txt"]
        pinned = re.findall("^[^=#]+(?===)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
        assert all(word in (*pinned, "-e") or re.fullmatch(r"\.(\[\w+\])?", word) for word in arguments[3:])
    elif program == "nox":
        noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
        pythons = ast.literal_eval(re.search("^PYTHONS = (.*)", noxfile, re.MULTILINE).group(1))
        sessions = re.findall(r"@nox.session\(python=PYTHONS\)\ndef (\w+)", noxfile)
        assert arguments[0] == "-s"
        assert set(arguments[1:]) <= {f"{session}-{version}" for session in sessions for version in pythons}
    elif program == "python" and arguments[0] != "-m":
        script = (ROOT / arguments[0]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in script for word in words if word.startswith("--"))
    elif not arguments:
        assert program in FAIRSEQ or (ROOT / program).is_file()
    elif program in FAIRSEQ:
        importlib.import_module("wavepos_fairseq.models")
        options.parse_args_and_arch(FAIRSEQ[program](), arguments)
    else:
        module, arguments = module_of(words)
        assert module.startswith("wavepos_fairseq."), f"what reads the words of {module}?"
        main = importlib.import_module(
            "wavepos_fairseq.plugin.evaluate" if module.endswith("evaluation") else module
        ).main
        for owner, name in ((socket, "create_connection"), (subprocess, "Popen")):
            monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail(f"{module} does more than to read its words"))
        if arguments[0] in ("train", "evaluate"):
            assert main(["train", *arguments[1:], "--dry-run"]) == 0  # evaluate takes the same, and leaves it unread
            return
        if module == "wavepos_fairseq.lab.experiments":
            for first in ("refusals", "print_status"):
                monkeypatch.setattr(experiments, first, lambda runs: _raise(Parsed()))
        else:
            parse = argparse.ArgumentParser.parse_args
            monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda *args: _raise(Parsed(parse(*args))))
        with pytest.raises(Parsed):
            main(arguments)


FAIRSEQ = {
    "fairseq-train": options.get_training_parser,
    "fairseq-interactive": options.get_interactive_generation_parser,
}


def _raise(error):
    raise error


COMMANDS = dict.fromkeys(shlex.join(words) for path in PAGES if path != WALK for words in READ[path].commands)
OF_EACH_PROGRAM = {command.split()[0]: command for command in COMMANDS if " " in command}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command, monkeypatch):
    accept(shlex.split(command), monkeypatch)


@pytest.mark.parametrize("command", OF_EACH_PROGRAM.values())
def test_a_wrong_option_is_noticed(command, monkeypatch):
    with pytest.raises((SystemExit, AssertionError)):
        accept([*shlex.split(command), "--no-such-option"], monkeypatch)


def test_commands_of_all_programs_are_found():
    assert {"pip", "nox", *FAIRSEQ} < set(OF_EACH_PROGRAM)


def test_the_walk_does_what_it_says(tmp_path):
    for folder in ("wavepos_fairseq", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    walk = READ[WALK]
    for name, content in walk.files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    done = ["import pytest", "from wavepos_fairseq.lab import experiments", "status = pytest.main(['-q', 'tests'])"]
    for words in walk.commands:
        module, arguments = module_of(words)
        if module == "wavepos_fairseq.lab.experiments":
            command, *rest = arguments
            arguments = ["status", *rest] if command == "reproduce" else arguments  # which trains nothing
            arguments += ["--dry-run"] if command in ("train", "evaluate") else []
            done.append(f"status = status or experiments.main({arguments})")
    script = "\n".join([*walk.python, *done, "raise SystemExit(status)"])
    (tmp_path / "walk.py").write_text(script, encoding="utf-8")
    walked = run_module("walk", cwd=tmp_path)
    assert walked.returncode == 0, walked.stdout
    for expected in (
        "1 passed",
        "fairseq-train",
        "--position-encoding window --window 32",
        "| window-64 | not started |",
    ):
        assert expected in " ".join(walked.stdout.split()), walked.stdout


# What the pages name


@pytest.fixture(scope="module")
def known_options():
    """All options that fairseq-train, fairseq-eval-lm and the modules behind the scripts have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", lambda parser, *_: _raise(Parsed(parser)))
        parsers = [experiments._parser(), options.get_eval_lm_parser()]
        for module in ("data.command", "plugin.evaluate", "lab.figures.command", "lab.claims", "lab.report"):
            with pytest.raises(Parsed) as found:
                importlib.import_module(f"wavepos_fairseq.{module}").main([])
            parsers.append(found.value.args[0])
    training = options.get_training_parser()
    importlib.import_module("wavepos_fairseq.models")
    chosen = "--task language_modeling --arch transformer_lm_wavelet --criterion adaptive_loss --lr-scheduler cosine"
    options.parse_args_and_arch(training, ["data", *chosen.split()])  # which adds theirs
    known = {"--no-deps", *training._option_string_actions}  # the first is pip's
    for parser in parsers:
        for command in [parser, *[sub for action in parser._actions for sub in _commands(action)]]:
            known.update(command._option_string_actions)
    return known


def _commands(action):
    return action.choices.values() if isinstance(action, argparse._SubParsersAction) else []


@by_page([path for path in PAGES if path != WALK])  # whose option is made there
def test_every_option_that_a_page_names_exists(path, known_options):
    named = {option for code in READ[path].code for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    assert named <= known_options


def table_of(path, first):
    """The cells of the table whose first one is `first`: its header, and its other lines by their first cell."""
    for table in re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE):
        (name, *header), _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        if name == first:
            return header, {line[0].strip("`"): line[1:] for line in lines}
    raise AssertionError(f"{path} has no table that begins with {first!r}")


def test_both_tables_of_representations_have_the_same_that_exist():
    readme = table_of(ROOT / "README.md", "`--position-encoding`")[1]
    assert sorted(readme) == sorted(table_of(ROOT / "docs/formula.md", "option")[1])
    assert set(readme) <= set(position_names())  # which may have grown by a file


def test_readme_has_the_options_of_each_representation():
    for name, (*_, named) in table_of(ROOT / "README.md", "`--position-encoding`")[1].items():
        read_by_it = [flag(option) for option, about in position_options().items() if name in about.readers]
        assert sorted(re.findall("`(.*?)`", named)) == sorted(read_by_it), name


def test_the_presets_are_as_the_page_says():
    presets, lines = table_of(REPRODUCE, "preset")
    for name, *said in zip(presets, *lines.values()):
        preset = load_preset(name)
        model = fairseq_options(Run(preset, find_row("nope"), ROOT, ROOT, preset.gpus, seed=1))
        layers, heads = model.decoder_layers, model.decoder_attention_heads
        assert said == [
            preset.corpus,
            str(preset.l_train),
            ", ".join(map(str, preset.lengths)),
            f"{layers} × {heads} × {model.decoder_embed_dim // heads}",
            f"{preset.tokens_per_update:,}",
            f"{preset.train['max-update']:,}",
            str(preset.gpus),
        ]


def test_the_tables_have_as_many_rows_as_the_page_says():
    for name, (said, _) in table_of(REPRODUCE, "table")[1].items():
        assert said == str(len(load_table(name)[1])), name


# What the README says of fairseq's own commands


def test_fairseq_eval_lm_beyond_l_train_without_overrides_evaluates_nothing_at_a_perplexity_of_1(
    trained, data_bin, caplog
):
    tokens = len((data_bin / "valid.txt").read_text().split()) + (data_bin / "valid.txt").read_text().count("\n")
    length = next(length for length in range(L_TRAIN + 1, tokens) if tokens % length > L_TRAIN)
    words = [str(data_bin), "--path", trained("rope"), "--sample-break-mode", "none", "--cpu", "--num-workers", "0"]
    words += ["--gen-subset", "valid", "--max-tokens", "512", "--tokens-per-sample", str(length)]
    caplog.set_level("INFO", "fairseq_cli.eval_lm")
    arguments = options.parse_args_and_arch(options.get_eval_lm_parser(), words)
    fairseq_cli.eval_lm.main(convert_namespace_to_omegaconf(arguments))
    assert "Evaluated 0 tokens" in caplog.text and "Perplexity: 1.00" in caplog.text


@pytest.mark.parametrize("given, multiple", [((), 8), (("--required-batch-size-multiple", "1"), 1)])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_fairseq_drops_the_last_batch_unless_it_is_a_multiple_of_8(data_bin, split, given, multiple):
    words = [str(data_bin), "--task", "language_modeling", "--arch", "transformer_lm", "--sample-break-mode", "none"]
    words += ["--tokens-per-sample", "32", "--max-tokens", "512", *given]
    arguments = options.parse_args_and_arch(options.get_training_parser(), words)
    assert arguments.required_batch_size_multiple == multiple
    task = tasks.setup_task(arguments)
    task.load_dataset(split)
    sequences = len(task.dataset(split))
    batches = task.get_batch_iterator(task.dataset(split), 512, required_batch_size_multiple=multiple).frozen_batches
    assert sequences % 8 and sum(map(len, batches)) == sequences - sequences % multiple  # of which 16 fit into a batch
