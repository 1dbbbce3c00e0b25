"""README.md and docs/: what they say to type is accepted, what they show is so, the site builds and loads nothing."""

import argparse
import ast
import csv
import importlib
import itertools
import json
import math
import pkgutil
import re
import runpy
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Dict, List, NamedTuple

import pytest
import torch
import yaml
from conftest import L_TRAIN, PLUGIN, ROOT, run_module

pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra docs)")
import fairseq_cli.eval_lm  # noqa: E402
from fairseq import options, tasks  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from markdown_it import MarkdownIt  # noqa: E402

from wavepos_fairseq import __version__  # noqa: E402
from wavepos_fairseq.lab import experiments  # noqa: E402
from wavepos_fairseq.lab.configs import find_row, load_preset, load_table  # noqa: E402
from wavepos_fairseq.lab.runs import Run, fairseq_options  # noqa: E402
from wavepos_fairseq.positions import build_position, position_names, position_options  # noqa: E402
from wavepos_fairseq.wavelets import wavelet_basis  # noqa: E402

sys.path.insert(0, str(ROOT / "docs"))
import hooks  # noqa: E402

README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
PAGES = [README, CHANGELOG, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FORMULA, RESULTS = ROOT / "docs" / "formula.md", ROOT / "docs" / "results.md"
LONG, COMBINED, SHIFT, BEYOND = (
    ROOT / "docs" / f"{page}.md" for page in ("long-context", "combinations", "shift-direction", "beyond")
)
WALK, REPRODUCE = ROOT / "docs" / "representation.md", ROOT / "docs" / "reproduce.md"
SHELL = ("", "sh", "bash")  # an indented block says nothing
LANGUAGES = ("python", *SHELL, "math", "text")  # text is what is neither run nor parsed
COMMAND = re.compile(r"(scripts/\w+\.sh|python|fairseq-train|fairseq-interactive|wavepos|pip|nox)( |$)")


class Page(NamedTuple):
    """What a page has in it."""

    files: Dict[str, str]  # blocks with a title, by it
    python: List[str]  # the other blocks of Python
    commands: List[List[str]]  # words of commands, in indented blocks and within the text
    others: List[str]  # lines of the shell's blocks that are no commands
    languages: List[str]  # of the blocks without a title
    code: List[str]  # what stands in backticks within the text
    links: List[str]  # where its links and images lead
    anchors: List[str]  # of its headings, as GitHub makes them


def read(path):
    page, heading = Page({}, [], [], [], [], [], [], []), False
    for token in MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8")):
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
        if heading:
            page.anchors.append(re.sub(r"[^\w -]", "", token.content.lower()).replace(" ", "-"))
        heading = token.type == "heading_open"
        for child in token.children or []:
            page.links.extend(child.attrs[name] for name in ("href", "src") if name in child.attrs)
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


@by_page(PAGES)
def test_the_site_has_the_text_of_each_page_as_it_is_and_turns_links_only(path):
    text = path.read_text(encoding="utf-8")
    file = SimpleNamespace(abs_src_path=str(path), src_uri="page.md")
    shown = hooks.on_page_markdown(text, SimpleNamespace(file=file))
    assert hooks.LINK.sub("](", shown) == hooks.LINK.sub("](", text)


# Where links lead


@by_page(PAGES)
def test_links_to_files_and_headings_lead_there(path):
    for link in READ[path].links:
        if not re.match("https?://", link):
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), link
            assert not anchor or anchor in READ[target.resolve()].anchors, link


def test_the_readme_has_at_most_150_lines():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


# The numbers that the pages show


def tables_of(path, first):
    """The tables whose first cell is `first`: the header of each, and its other lines by their first cell."""
    for table in re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE):
        (name, *header), _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        if name == first:
            yield header, {line[0].strip("`"): line[1:] for line in lines}


def table_of(path, first):
    """The first of `tables_of`."""
    return next(tables_of(path, first))


def csv_of(preset, table):
    """The lines of a wide CSV: (inference, labels ..., cells ...), a cell with its deviation where it has one."""
    with (ROOT / "results" / preset / f"{table}.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            yield {
                name: f"{row[name]} ± {row[f'{name} std']}" if row.get(f"{name} std") else row[name]
                for name in row
                if not name.endswith(" std")
            }


@pytest.mark.parametrize("table", ["table1", "table3", "shift-direction"])
def test_the_site_has_the_numbers_of_each_csv_on_the_page_of_its_table(site, table):
    html = (site / "results" / "wikitext2-chars-cpu" / f"{table}.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]+>|\(\d of \d seeds\)|\(\d\.\d{3}\)", " ", html).split())
    for row in csv_of("wikitext2-chars-cpu", table):
        assert " ".join(cell for name, cell in row.items() if name != "inference") in text


def by_method(preset, inference, table="table1"):
    """The cells of each method in a preset's table."""
    rows = [list(row.values()) for row in csv_of(preset, table)]
    return {name: cells for wanted, name, *cells in rows if wanted == inference}


def test_the_results_page_has_table_1_of_each_csv_and_the_sliding_windows():
    of_characters, sliding, of_words = (lines for _, lines in tables_of(RESULTS, "method"))
    for preset, shown in (("wikitext2-chars-cpu", of_characters), ("wikitext2-cpu", of_words)):
        in_pieces = by_method(preset, "non-overlapping")
        expected = {name: [*cells, in_pieces[name][-1]] for name, cells in by_method(preset, "full").items()}
        assert shown == expected, preset
    assert sliding == {name: cells[-4:] for name, cells in by_method("wikitext2-chars-cpu", "sliding").items()}


def test_the_page_on_long_context_has_table_2_and_the_share_of_answers():
    in_one_piece, sliding, seeds = (lines for _, lines in tables_of(LONG, "method"))
    for shown, table in ((in_one_piece, "table2"), (seeds, "table2-seeds")):
        in_pieces, full = (by_method("llama-cpu", inference, table) for inference in ("non-overlapping", "full"))
        assert shown == {name: [*cells, in_pieces[name][-1]] for name, cells in full.items()}
    assert sliding == by_method("llama-cpu", "sliding", "table2")
    with (ROOT / "results" / "recall-cpu" / "recall.csv").open(encoding="utf-8") as lines:
        found = {
            (line["row"], line["sequence_length"], line["start"]): line["accuracy"] for line in csv.DictReader(lines)
        }
    header, rows = table_of(LONG, "answers found")
    assert {*rows} == {row.labels["method"] for row in load_table("table1")[1]}
    for row in load_table("table1")[1]:
        shares = [100 * float(found[row.name, "640", column.split()[0]]) for column in header]
        assert rows[row.labels["method"]] == [f"{share:.1f}" for share in shares]


def combination_of(row):
    return row["first"] if row["second"] == "-" else f"{row['first']} + {row['second']}"


def test_the_page_on_combinations_has_the_numbers_of_its_tables():
    pages = [*tables_of(COMBINED, "representation"), table_of(COMBINED, "on words, three seeds")]
    of = [("wikitext2-chars-cpu", "combinations"), ("wikitext2-chars-cpu", "combinations-seeds")]
    for (_, shown), (preset, table) in zip(pages, [*of, ("wikitext2-cpu", "combinations-seeds")]):
        cells = {"full": {}, "non-overlapping": {}, "sliding": {}}
        for row in csv_of(preset, table):
            cells[row["inference"]][combination_of(row)] = row
        full, in_pieces, sliding = cells.values()
        several = {name: row for name, row in full.items() if table == "combinations" or "±" in row["128"]}
        assert shown == {
            name: [row["128"], row["628"], in_pieces[name]["628"], sliding[name]["128"], sliding[name]["628"]]
            for name, row in several.items()
        }
    of_seed_1 = {}
    with (ROOT / "results" / "wikitext2-cpu" / "combinations-seeds.tidy.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["seed"] == "1":
                cell = row["inference"], row["sequence_length"]
                of_seed_1.setdefault(combination_of(row), {})[cell] = f"{float(row['perplexity']):.2f}"
    columns = [("full", "128"), ("full", "628"), ("non-overlapping", "628"), ("sliding", "128"), ("sliding", "628")]
    words = {name: [cells[column] for column in columns] for name, cells in of_seed_1.items()}
    assert table_of(COMBINED, "on words, seed 1")[1] == words
    variants = {"full": {}, "sliding": {}}
    for row in csv_of("wikitext2-chars-cpu", "combination-ablation"):
        variants[row["inference"]][row["variant"]] = [row["128"], row["628"]]
    for variant, of_page in table_of(COMBINED, "variant")[1].items():
        assert of_page == variants["full"][variant] + variants["sliding"][variant]
    with (ROOT / "results" / "wikitext2-chars-cpu" / "attention-combinations.csv").open(encoding="utf-8") as lines:
        beyond = {}
        for line in csv.DictReader(lines):
            beyond.setdefault(line["row"], []).append(float(line["beyond"]))
    shares = {row: f"{100 * sum(of) / len(of):.0f}%" for row, of in beyond.items()}
    alone = {"NoPE": "", "Trans-XL": "trans-xl", "Ricker": "ricker", "Gaussian": "gaussian", "Haar": "haar"}
    for name, of_page in table_of(COMBINED, "attention beyond L_train")[1].items():
        names = ["+".join(filter(None, (alone[name], added))) for added in ("", "alibi", "rpe", "rpe+alibi")]
        assert of_page == [shares[row or "nope"] for row in names]


def by_label(table, *labels, preset="wikitext2-chars-cpu"):
    """The cells of the table by inference and by what stands under the labels, joined, but for dashes."""
    found = {}
    for row in csv_of(preset, table):
        name = ", ".join(row[label] for label in labels if row[label] != "-")
        found.setdefault(row["inference"], {})[name] = row
    return found


def test_the_page_beyond_the_paper_has_the_numbers_of_its_tables():
    stretched = by_label("interpolation", "method", "interpolation")
    full, sliding = stretched["full"], stretched["sliding"]
    assert table_of(BEYOND, "without training")[1] == {
        name: [full[name][length] for length in ("128", "253", "378", "628")]
        + [sliding[name][length] for length in ("128", "253", "628")]
        for name in full
    }
    labels = "method", "interpolation", "fine-tuned"
    eight = by_label("interpolation-8x", *labels, preset="wikitext2-chars-cpu-8x")["full"]
    tuned = {name[: -len(", yes")]: row for name, row in eight.items() if name.endswith(", yes")}
    assert table_of(BEYOND, "to 8 × L_train")[1] == {
        name: [eight[f"{name}, no"][length] for length in ("128", "256", "512", "1024")]
        + [row[length] for length in ("128", "256", "512", "1024")]
        for name, row in tuned.items()
    }
    learned = by_label("learned", "wavelet", "learned")["full"]
    assert table_of(BEYOND, "learned")[1] == {
        name: [row[length] for length in ("32", "128", "253", "628")] for name, row in learned.items()
    }
    beyond = by_label("beyond", "method")
    full, in_pieces, sliding = beyond["full"], beyond["non-overlapping"], beyond["sliding"]
    assert table_of(BEYOND, "representation")[1] == {
        name: [full[name][length] for length in ("128", "253", "628")]
        + [in_pieces[name]["628"], sliding[name]["128"], sliding[name]["628"]]
        for name in full
    }
    seeds = by_label("beyond-seeds", "method")
    assert table_of(BEYOND, "three seeds")[1] == {
        name: [row[length] for row in (seeds["full"][name], seeds["sliding"][name]) for length in ("128", "628")]
        for name in seeds["full"]
    }


@pytest.mark.parametrize("kind, mean", [("scale", statistics.geometric_mean), ("shift", statistics.fmean)])
def test_the_page_beyond_the_paper_has_the_scales_and_shifts_that_were_learned(kind, mean):
    labels = {row.name: f"{row.labels['wavelet']}, {row.labels['learned']}" for row in load_table("learned")[1]}
    learned = {}
    with (ROOT / "results" / "wikitext2-chars-cpu" / "wavelets.csv").open(encoding="utf-8") as lines:
        for line in csv.DictReader(lines):
            if line["kind"] == kind:
                numbers = learned.setdefault(labels[line["row"]], {})
                numbers.setdefault(line["before"], []).append(float(line["after"]))
    header, of_page = table_of(BEYOND, f"{kind}s began at")
    assert of_page == {row: [f"{mean(after):.2f}" for after in numbers.values()] for row, numbers in learned.items()}
    for numbers in learned.values():
        assert [float(before) for before in numbers] == [float(cell) for cell in header]
        assert {len(after) for after in numbers.values()} == {4 * 3}  # layers and seeds


def test_beyond_l_train_only_rickers_largest_scale_has_values_out_of_the_range_of_those_before():
    of_preset = [2.0**e for e in range(8)], [0.0, 1.0, 2.0, 3.0]
    values = wavelet_basis("ricker", *of_preset, "past", num_lags=628).unflatten(1, (4, 8))  # (lags, shifts, scales)
    seen, unseen = values[:128], values[128:]
    out_of_range = (unseen < seen.amin(0)) | (unseen > seen.amax(0))
    assert out_of_range.any(0).tolist() == [[False] * 7 + [True]] * 4


def test_the_page_on_the_shift_has_the_numbers_of_its_table_and_of_the_papers():
    exponents = {"all scales 2^0": "0..0 (all scales 2^0)", "2^0 to 2^7": "0..7", "2^0 and 2^1": "0..1", "2^7": "7..7"}
    ours = {
        (row["wavelet"], row["scale_exponents"], row["direction"]): row
        for row in csv_of("wikitext2-chars-cpu", "shift-direction")
    }
    with (ROOT / "results" / "paper" / "table3.csv").open(encoding="utf-8") as lines:
        paper = {
            (row["wavelet"], row["scale_exponents"], row["sequence_length"]): row["perplexity"]
            for row in csv.DictReader(lines)
            if row["scale_exponents"] != "0..7" or row["num_shifts"] == "16"
        }

    def of(name):
        """A row's cells by reading, then the paper's by length."""
        wavelet, scales = name.split(", ")
        row = wavelet, exponents[scales]
        readings = [ours.get((*row, reading)) for reading in ("past", "future", "scaled")]
        return readings, {length: paper[(*row, length)] for length in ("512", "2512")}

    for length, papers_length in (("128", "512"), ("628", "2512")):
        _, shown = table_of(SHIFT, f"perplexity at {length}")
        assert len(shown) == 6
        for name, cells in shown.items():
            readings, papers = of(name)
            expected = [row[length] if row else "as past" for row in readings]
            assert cells == [*expected, papers[papers_length]], name

    def means(name, length, papers_length):
        readings, papers = of(name)
        cells = [(row or readings[0])[length] for row in readings]
        return [float(cell.split()[0]) for cell in [*cells, papers[papers_length]]]

    eight = means("Ricker, 2^0 to 2^7", "128", "512")
    for name, shown in table_of(SHIFT, "at L_train, over Ricker with eight scales")[1].items():
        ratios = [one / other for one, other in zip(means(name, "128", "512"), eight)]
        assert shown == [f"{100 * (ratio - 1):+.1f}%" for ratio in ratios], name
    for name, shown in table_of(SHIFT, "× at 5 × L_train")[1].items():
        ratios = [one / other for one, other in zip(means(name, "628", "2512"), means(name, "128", "512"))]
        assert shown == [f"{ratio:.2f}" for ratio in ratios], name


@pytest.mark.parametrize(
    "table, first, name, over",
    [
        ("table3", "wavelet, exponents of scales", "{wavelet}, {scale_exponents}", "{wavelet}, 0..7"),
        ("table4", "wavelet", "{wavelet}", "Ricker"),
    ],
)
def test_the_results_page_has_the_table_beside_the_papers(table, first, name, over):
    def of(folder, table, name, over):
        """By row: of whole sequences the means over the seeds, by length, and the row that it is compared with."""
        with (ROOT / "results" / folder / f"{table}{'.tidy' * (folder != 'paper')}.csv").open(
            encoding="utf-8"
        ) as lines:
            lines = [line for line in csv.DictReader(lines) if line["inference"] == "full" and line["perplexity"]]
        lines = [line for line in lines if table == "table3" or line.get("seed", "1") == "1"]  # Table 4 has one seed
        rows = {}
        for line in lines:
            cells = rows.setdefault(name.format(**line), {"over": over.format(**line), "": line.get("num_shifts")})
            cells.setdefault(line["sequence_length"], []).append(float(line["perplexity"]))
        return {
            row: {key: statistics.mean(of) if isinstance(of, list) else of for key, of in cells.items()}
            for row, cells in rows.items()
        }

    def ratios(folder, rows, row, l_train, longest):
        of, other = rows[row], rows[rows[row]["over"]]
        first = f"{100 * (of[l_train] / other[l_train] - 1):+.1f}%"
        if table == "table4":  # of what lies between NoPE and Ricker, in nats
            nope = of_table1[folder]["NoPE"][l_train]
            first = f"{100 * math.log(nope / of[l_train]) / math.log(nope / other[l_train]):.0f}%"
        return first, f"{of[longest] / of[l_train]:.2f}"

    folders = {"wikitext2-chars-cpu": ("128", "628"), "paper": ("512", "2512")}
    of_table1 = {folder: of(folder, "table1", "{method}", "{method}") for folder in folders}
    rows = {folder: of(folder, table, name, over) for folder in folders}
    ours = rows["wikitext2-chars-cpu"]
    _, shown = table_of(RESULTS, first)
    assert shown.keys() == ours.keys()
    for row, cells in shown.items():
        of_both = zip(*(ratios(folder, rows[folder], row, *lengths) for folder, lengths in folders.items()))
        numbers = [f"{ours[row][length]:.2f}" for length in ("32", "128", "628")]
        assert cells == [*([ours[row][""]] if table == "table3" else []), *numbers, *itertools.chain(*of_both)], row


def test_the_longer_a_wavelet_the_less_it_says_of_the_nearest_tokens():
    text = " ".join(RESULTS.read_text(encoding="utf-8").split())
    shown, zero = re.search(r"columns in the nearest 16 tokens is (.*?) and less than 0.002 for (.*?)\.", text).groups()
    sizes = {name.lower(): float(size) for size, name in re.findall(r"([\d.]+) for (\w+)", shown)}
    nothing = dict.fromkeys(re.findall(r"\w+\d+|dmey", zero), 0.0)
    assert len(sizes) == 4 and len(nothing) == 5
    for name, size in {**sizes, **nothing}.items():
        position = build_position("wavelet", head_dim=128, num_heads=1, wavelet=name)
        nearest = position.relative(16, torch.empty(0, dtype=torch.float64)).square().mean().sqrt()
        assert abs(nearest - size) < (0.005 if size else 0.002), name


def test_the_results_page_has_the_growth_of_the_long_runs():
    with (ROOT / "results" / "wikitext2-chars-cpu-long" / "growth.csv").open(encoding="utf-8") as lines:
        measured = {(line["row"], line["updates"], line["sequence_length"]): line for line in csv.DictReader(lines)}
    rows = {row.labels["method"]: row.name for row in load_table("table1-six")[1]}
    header, ratios = table_of(RESULTS, "628 over 128, after updates")
    _, perplexities = table_of(RESULTS, "perplexity at 128, after updates")
    assert {rows[name] for name in ratios} == {row for row, *_ in measured} and ratios.keys() == perplexities.keys()
    for name, cells in ratios.items():
        for updates, ratio, perplexity in zip(header, cells, perplexities[name]):
            of = rows[name], updates.replace(",", "")
            expected = float(measured[(*of, "628")]["ratio"])
            assert ratio == (f"{expected:.2f}" if expected < 10 else f"{expected:,.0f}")
            assert perplexity == f"{float(measured[(*of, '128')]['perplexity']):.2f}"


def test_the_results_page_has_the_numbers_at_twice_the_length():
    full = by_method("wikitext2-cpu-256", "full")
    for name, (shown, longest, change) in table_of(RESULTS, "of L_train 256")[1].items():
        assert [shown, longest] == [full[name][1], full[name][-1]]
        assert float(change[:-1].replace("−", "-")) == pytest.approx(100 * (float(longest) / float(shown) - 1), abs=0.5)


def test_the_readme_judges_as_the_claims_do_and_its_numbers_are_those_of_the_table():
    results = ROOT / "results" / "wikitext2-chars-cpu"
    claims = json.loads((results / "claims.json").read_text(encoding="utf-8"))
    verdicts = {claim["statement"]: claim["verdict"] for claim in claims}
    tables = ("table1", "combinations-seeds")
    rows = [row for table in tables for row in csv_of("wikitext2-chars-cpu", table)]
    numbers = {cell.split(" ")[0] for row in rows for cell in row.values()}
    for statement, (shown, verdict) in table_of(README, "statement")[1].items():
        assert verdict == verdicts[statement]
        named = re.findall(r"\d+\.\d+", shown)
        assert named and set(named) <= numbers
    text = " ".join(README.read_text(encoding="utf-8").split())
    judged = sum(claim["verdict"] != "not judged" for claim in claims)
    assert f"judges {judged} of {len(claims)} statements" in text


def test_the_results_page_counts_the_verdicts():
    presets = "wikitext2-chars-cpu", "wikitext2-cpu", "wikitext2-cpu-256"
    for preset, of_page in zip(presets, table_of(RESULTS, "judged at")[1].values()):
        claims = (ROOT / "results" / preset / "claims.md").read_text(encoding="utf-8")
        for verdict, shown in zip(("holds", "within the spread", "does not hold", "not judged"), of_page):
            assert claims.count(f"| **{verdict}** |") == int(shown.split()[0]), (preset, verdict)


def test_the_architecture_shows_each_part_of_the_package_once():
    picture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    parts = [path.parent.name + "/" for path in PLUGIN.glob("*/__init__.py")] + ["wavelets.py"]
    assert all(picture.count(f" {part} ") == 1 for part in parts)


# The project's own files


def test_the_citation_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"authors", "cff-version", "message", "title"} <= set(citation) and citation["license"] == "MIT"
    paper = citation["preferred-citation"]
    assert {"authors", "title", "type"} <= set(paper)
    assert [author["family-names"] for author in paper["authors"]] == ["Oka", "Hasegawa", "Nishida", "Saito"]
    readme = " ".join(README.read_text(encoding="utf-8").split())
    assert ", ".join(f"{author['given-names']} {author['family-names']}" for author in paper["authors"]) in readme
    assert paper["title"] in readme


def test_the_changelog_has_this_version_and_its_newest_is_the_one_to_cite():
    versions = re.findall(r"^## \[([\d.]+)\]", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)
    assert __version__ in versions[:2]  # which may be in the making
    assert versions == sorted(versions, key=lambda version: [int(part) for part in version.split(".")], reverse=True)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == versions[0]


# What the pages say to type


@by_page(PAGES)
def test_every_block_is_run_or_says_that_it_is_not(path):
    assert set(READ[path].languages) <= set(LANGUAGES)
    assert READ[path].files.items() <= READ[WALK].files.items()
    assert not READ[path].others


@by_page([path for path in PAGES if READ[path].python and path != WALK])
def test_the_blocks_of_python_run_one_after_the_other(path):
    variables = {}
    for block in READ[path].python:
        exec(compile(block, str(path), "exec"), variables)


class Parsed(Exception):
    """The command line was accepted; nothing is to be done."""


def script_of(subcommand):
    """The script that is `wavepos SUBCOMMAND`."""
    return "scripts/prepare_data.sh" if subcommand == "prepare" else f"scripts/{subcommand}.sh"


def module_of(words):
    """The module that a script, a subcommand or `python -m` runs, and its arguments."""
    program, *arguments = words
    if program == "python":
        return arguments[1], arguments[2:]
    if program == "wavepos":
        return module_of([script_of(arguments[0]), *arguments[1:]])
    found = re.findall(r'-m (\S+)(?: (\w+))? [^\n]*"\$@"', (ROOT / program).read_text(encoding="utf-8"))
    assert found, f"{program} takes no arguments"
    module, command = found[-1]
    return module, [*filter(None, [command]), *arguments]


def main_of(module):
    """What `python -m MODULE` does, as a function of its arguments; SystemExit where its status is not 0."""
    if not (PLUGIN.parent.joinpath(*module.split(".")) / "__main__.py").is_file():
        return importlib.import_module(module).main

    def main(arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module, *arguments])
            try:
                runpy.run_module(module, run_name="__main__")
            except SystemExit as end:
                if end.code:
                    raise
        return 0

    return main


def as_user_dir():
    """Imports what --user-dir imports."""
    for folder in ("models", "tasks"):
        for module in pkgutil.iter_modules([str(PLUGIN / folder)]):
            importlib.import_module(f"wavepos_fairseq.{folder}.{module.name}")


def accept(words, monkeypatch):
    """Has a command's own parser, and what checks its arguments, read the words; SystemExit where they are refused.

    Nothing else is done: a module is stopped where it has read all, and one that goes on has no network or processes.
    """
    program, *arguments = words
    if program == "pip" and arguments[1:] == ["--no-deps", "."]:
        return
    if words[:2] == ["pip", "uninstall"]:
        assert words[2:] == ["torchaudio"]
    elif program == "pip":
        assert arguments.pop(0) == "install"
        pinned = re.findall("^[^=#]+(?===)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
        if arguments[0] == "-c":
            assert arguments[1] == "constraints.txt"
            arguments = arguments[2:]
        assert all(word in (*pinned, "-e") or re.fullmatch(r"\.(\[[\w,]+\])?", word) for word in arguments)
        setup = (ROOT / "setup.py").read_text(encoding="utf-8")
        extras = [extra for word in arguments for extra in re.findall(r"\w+", word) if word.startswith(".")]
        assert all(f'"{extra}": ' in setup for extra in extras)
    elif program == "nox":
        noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
        pythons = ast.literal_eval(re.search("^PYTHONS = (.*)", noxfile, re.MULTILINE).group(1))
        sessions = re.findall(r"@nox.session\(python=PYTHONS\)\ndef (\w+)", noxfile)
        of_one_python = re.findall(r'@nox.session\(python="[\d.]+"\)\n(?:@.*\n)*def (\w+)', noxfile)
        every = {f"{session}-{version}" for session in sessions for version in pythons}
        assert arguments[0] == "-s" and set(arguments[1:]) <= every.union(of_one_python)
    elif program == "scripts/test.sh" and arguments:
        assert arguments[::2] in (["-k"], ["-m"])
    elif program == "python" and arguments[0] != "-m":
        script = (ROOT / arguments[0]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in script for word in words if word.startswith("--"))
    elif program == "python" and len(arguments) == 2:
        module = PLUGIN.parent.joinpath(*arguments[1].split("."))
        assert (module / "__main__.py").is_file() or module.with_suffix(".py").is_file()
    elif not arguments:
        assert program in (*FAIRSEQ, "wavepos") or (ROOT / program).is_file()
    elif words[:-1] == ["wavepos"]:
        assert (ROOT / script_of(arguments[0])).is_file()
    elif program in FAIRSEQ:
        as_user_dir()
        options.parse_args_and_arch(FAIRSEQ[program](), arguments)
    else:
        module, arguments = module_of(words)
        assert module.split(".")[0] == PLUGIN.name, f"what reads the words of {module}?"
        main = main_of(module)
        for owner, name in ((socket, "create_connection"), (subprocess, "Popen")):
            monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail(f"{module} does more than to read its words"))
        if any(word.startswith("llama") for word in arguments):  # presets that transformers trains
            pytest.importorskip("transformers")
        if arguments[0] in ("train", "evaluate") and "--model" not in arguments:
            assert main(["train", *arguments[1:], "--dry-run"]) == 0  # evaluate takes the same, and leaves it unread
            return
        if arguments[0] in ("reproduce", "sweep", "status"):
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
    assert {"pip", "nox", "wavepos", *FAIRSEQ} < set(OF_EACH_PROGRAM)


def test_the_readme_trains_and_evaluates_as_printed_but_for_the_corpus_and_two_updates(data_bin, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo").symlink_to(data_bin)  # of few words, so the cutoffs are others
    (tmp_path / "wavepos_fairseq").symlink_to(PLUGIN)
    few = ["--adaptive-input-cutoff", "20,40", "--adaptive-softmax-cutoff", "20,40", "--max-update", "2"]
    prepare, train, evaluate = next(
        words for words in zip(*(READ[README].commands[start:] for start in range(3))) if words[1][0] == "fairseq-train"
    )
    assert prepare == ["wavepos", "prepare", "demo"]
    for module, words in (("fairseq_cli.train", [*train[1:], *few]), (evaluate[2], evaluate[3:])):
        done = run_module(module, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
    cells = json.loads((tmp_path / "runs" / "mine" / "evaluation.json").read_text(encoding="utf-8"))["cells"]
    lengths = evaluate[evaluate.index("--lengths") + 1]
    assert ",".join(str(cell["sequence_length"]) for cell in cells if cell["inference"] == "full") == lengths


def test_the_walk_does_what_it_says(tmp_path):
    for folder in ("wavepos_fairseq", "configs"):
        shutil.copytree(str(ROOT / folder), str(tmp_path / folder), symlinks=True)  # configs are one
    walk = READ[WALK]
    for name, content in walk.files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    done = ["import pytest", "from wavepos_fairseq.__main__ import main", "status = pytest.main(['-q', 'tests'])"]
    for words in walk.commands:
        module, arguments = module_of(words)
        if module == PLUGIN.name:
            command, *rest = arguments
            arguments = ["status", *rest] if command == "reproduce" else arguments  # which trains nothing
            arguments += ["--dry-run"] if command in ("train", "evaluate") else []
            done.append(f"status = status or main({arguments})")
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
        lab = ("evaluate", "figures.command", "claims", "longbench", "report")
        for module in ("data.command", *(f"lab.{name}" for name in lab)):
            with pytest.raises(Parsed) as found:
                importlib.import_module(f"wavepos_fairseq.{module}").main([])
            parsers.append(found.value.args[0])
    training = options.get_training_parser()
    as_user_dir()
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


def test_the_formula_has_each_representation_with_its_options():
    shown = table_of(FORMULA, "`--position-encoding`")[1]
    assert set(shown) <= set(position_names())  # which may have grown by a file
    flags = {f"--{option}".replace("_", "-"): about.readers for option, about in position_options().items()}
    for name, (*_, named) in shown.items():
        read_by_it = [flag for flag, readers in flags.items() if name in readers]
        assert sorted(re.findall("`(.*?)`", named)) == sorted(read_by_it), name
    assert {name for readers in flags.values() for name in readers} <= set(shown)


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


# What docs/fairseq.md says of fairseq's own commands


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
