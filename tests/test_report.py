"""The page of lab/report.py, read back: every number against the CSVs, and what a browser makes of it."""

import base64
import html.parser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wavepos_fairseq.lab import report, tables
from wavepos_fairseq.lab import results as files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PRESET = "wikitext2-cpu"
TABLES = sorted(path.name.split(".")[0] for path in (RESULTS / PRESET).glob("*.tidy.csv"))
CELL = ["inference", "l_train", "sequence_length", "perplexity"]
LENGTHS = [32, 64, 128, 253, 378, 628]
PNG = base64.b64decode(b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")


class Page(html.parser.HTMLParser):
    """What is on a page: texts, what it refers to, the plots, and by table and inference the cells of each row."""

    def __init__(self, source):
        super().__init__()
        self.texts, self.titles, self.tags, self.references, self.plots, self.tables = [], [], [], [], {}, {}
        self.inside, self.rows = [], None
        self.feed(source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.inside.append(tag)
        self.references += [
            attributes[name] for name in ("src", "href", "srcset", "data", "action") if name in attributes
        ]
        self.titles += [attributes["title"]] if "title" in attributes else []
        if "data-figure" in attributes:
            self.plots[attributes["id"]] = json.loads(attributes["data-figure"])
        if tag == "table":
            self.rows = self.tables.setdefault((attributes.get("data-table"), attributes.get("data-inference")), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append({"title": attributes.get("title", ""), "text": "", "small": "", "b": ""})

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, text):
        if self.inside and self.inside[-1] not in ("script", "style"):
            self.texts.append(text)
            cell = next((tag for tag in reversed(self.inside) if tag in ("td", "th")), None)
            if cell and "p" not in self.inside:
                kind = self.inside[-1] if self.inside[-1] in ("small", "b") else "text"
                self.rows[-1][-1][kind] += text.strip()

    def body(self, table, inference):
        """The rows as their labels, then cells."""
        return self.tables[table, inference][1:]


def page_of(results, preset=PRESET):
    return Page(report.render(preset, results))


def means(path, l_train, of="mean"):
    """The rows of a tidy CSV as (inference, labels): over the lengths the mean (or std) of its seeds' perplexities."""
    csv = pd.read_csv(path)
    csv = csv[csv.l_train == l_train]
    keys = ["inference", *(name for name in csv if name not in (*CELL, "seed", "low", "high", "stride"))]
    return {
        tuple(map(str, key)): row.groupby("sequence_length").perplexity.agg(of)
        for key, row in csv.groupby(keys, sort=False)
    }


@pytest.fixture(scope="module")
def page():
    return page_of(RESULTS)


@pytest.fixture
def results(tmp_path):
    """A results folder to write to, which has the preset's own, as yet empty."""
    (tmp_path / PRESET).mkdir()
    return tmp_path


def write_table(results, table, rows, manifest=None, preset=PRESET):
    folder = results / preset
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / f"{table}.tidy.csv", index=False)
    if manifest is not None:
        (folder / f"{table}.manifest.json").write_text(json.dumps(manifest))


def cells(perplexity, lengths=LENGTHS, l_train=128, **columns):
    """A row's lines in both inferences; perplexity is a function of the length."""
    return [
        {**columns, "inference": inference, "l_train": l_train, "sequence_length": n, "perplexity": perplexity(n)}
        for inference in ("non-overlapping", "full")
        for n in lengths
    ]


def ricker(**columns):
    return cells(lambda length: 100 + length / 100, method="Wavelet Ricker", position="rel", **columns)


ABOUT = "--position-encoding wavelet --wavelet ricker; seed 3, commit 0123456789ab"


def run_of(**entries):
    command = "fairseq-train data --seed 3 --position-encoding wavelet --wavelet ricker"
    return {"commit": "0123456789abcdef", "seed": 3, "training_command": command, **entries}


# The numbers


def test_the_papers_tables_come_first_and_sweeps_last(results):
    for table in ("a-sweep", "combinations", "table1"):
        write_table(results, table, ricker())
    tables = [table for table, inference in page_of(results).tables if inference == "full"]
    assert tables == ["table1", "combinations", "a-sweep"]


@pytest.mark.parametrize("table", TABLES)
def test_tables_have_the_labels_and_all_numbers_of_the_csv_in_its_order(page, table):
    mean, std = (means(RESULTS / PRESET / f"{table}.tidy.csv", 128, of) for of in ("mean", "std"))
    for inference in inferences(table):
        found = [[cell["b"] + cell["text"] for cell in row] for row in page.body(table, inference)]
        expected = [
            [*labels, *(printed(*cell) for cell in zip(row, std[(of, *labels)]))]
            for (of, *labels), row in mean.items()
            if of == inference
        ]
        assert found == expected


def inferences(table):
    return pd.read_csv(RESULTS / PRESET / f"{table}.tidy.csv").inference.unique()


def printed(mean, std):
    if np.isnan(mean):
        return "–"
    return f"{mean:.2f}" if np.isnan(std) else f"{mean:.2f}± {std:.2f}"


def beside(page, table, labels):
    """The published numbers by inference and a row's first two labels, the paper's and those with a dagger."""
    small = {
        (inference, row[0]["text"], row[1]["text"]): [
            re.findall(r"\d+\.\d\d†?", cell["small"]) for cell in row[labels:]
        ]
        for inference in ("full", "non-overlapping")
        for row in page.body(table, inference)
    }
    return [
        {
            row: numbers
            for row, cells in small.items()
            for numbers in [["".join(one for one in cell if one.endswith("†") == dagger) for cell in cells]]
            if any(numbers)
        }
        for dagger in (False, True)
    ]


def test_paper_s_number_is_of_the_same_row_at_the_same_multiple_of_l_train(page):
    paper = means(RESULTS / "paper" / "table1.csv", 512)
    assert beside(page, "table1", 2)[0] == {key: [f"{number:.2f}" for number in row] for key, row in paper.items()}


def test_paper_s_number_stands_beside_half_of_its_shifts_in_heads_of_half_the_width_and_press_et_al_s_nowhere(results):
    labels = {"wavelet": "Ricker", "scale_exponents": "0..7", "num_shifts": 8}
    write_table(results, "table3", cells(lambda length: 100.0, **labels))
    paper = means(RESULTS / "paper" / "table3.csv", 512)["full", "Ricker", "0..7", "16"]
    page = page_of(results)
    published = {("full", "Ricker", "0..7"): [f"{number:.2f}" for number in paper]}
    assert beside(page, "table3", 3) == [published, {}]


def test_press_et_al_s_number_is_of_the_same_method_at_the_same_multiple_of_l_train(page):
    press = pd.read_csv(RESULTS / "paper/press2022.csv").query("source == 'Table 2'")
    by = {(cell.method, cell.sequence_length / 512): f"{cell.perplexity:.2f}†" for cell in press.itertuples()}
    expected = {}
    for name, *labels in (
        ("Sinusoidal", "Sinusoidal", "abs"),
        ("Rotary", "RoPE theta=10000", "abs"),
        ("ALiBi", "ALiBi", "rel"),
    ):
        numbers = [by.get((name, length / 128), "") for length in LENGTHS]
        assert [bool(number) for number in numbers] == [False, False, True, True, True, True]
        expected["full", (*labels,)] = numbers
        expected["non-overlapping", (*labels,)] = [number if n == 128 else "" for n, number in zip(LENGTHS, numbers)]
    assert beside(page, "table1", 2)[1] == {(inference, *labels): row for (inference, labels), row in expected.items()}
    assert page.text.count("† :") + page.text.count("†:") == 1


@pytest.mark.parametrize("preset, l_train", [("wikitext103-1024", 1024), ("wikitext2-cpu-256", 256)])
def test_paper_s_number_is_of_the_l_train_whose_multiples_the_lengths_are(results, preset, l_train):
    lengths = [length * l_train // 1024 for length in (1024, 1524, 3024, 5024)]
    write_table(results, "table1", ricker(lengths=lengths, l_train=l_train), preset=preset)
    row = page_of(results, preset).body("table1", "full")[0]
    assert [cell["small"] for cell in row[2:]] == ["18.26", "17.13", "17.14", "17.44"]  # Table 1, as printed


def test_a_seed_that_was_made_alone_has_a_page(results):
    write_table(results, "table1", ricker(seed=3), {"rows": {"ricker seed 3": run_of()}}, preset=f"{PRESET}-seed3")
    assert ABOUT in page_of(results, f"{PRESET}-seed3").text


def test_lowest_number_of_a_column_is_bold_and_no_other(results):
    rows = [
        row
        for method, step in (("a", 0), ("b", 0.1), ("c", -0.1))
        for row in cells(lambda n, s=step: 100 + s * (n - 200), method=method)
    ]
    write_table(results, "sweep", rows)
    found = [[bool(cell["b"]) for cell in row[1:]] for row in page_of(results).body("sweep", "full")]
    assert found == [6 * [False], [True, True, True, False, False, False], [False, False, False, True, True, True]]
    of_seeds = [*({**row, "seed": 1} for row in rows), *cells(lambda n: 1.0, method="a", seed=2)]
    write_table(results, "sweep", of_seeds)  # a seed that one row alone has decides nothing
    body = page_of(results).body("sweep", "full")
    assert [[bool(cell["b"]) for cell in row[1:]] for row in body] == found
    assert not any("nan" in str(cell["title"]) for row in body for cell in row)


def test_several_seeds_are_their_mean_and_standard_deviation_and_intervals_are_in_hover_and_row(results):
    values = {1: 171.5, 2: 174.25, 3: 172.0}
    rows = [
        line
        for seed, value in values.items()
        for line in cells(lambda n, v=value: v + n, method="Wavelet Ricker", position="rel", seed=seed)
    ]
    rows = [{**row, "low": row["perplexity"] - 1, "high": row["perplexity"] + 2} for row in rows]
    rows += [
        {**row, "seed": 1, "low": None, "high": None} for row in cells(lambda n: 900.0, method="NoPE", position="-")
    ]
    write_table(results, "table1", rows)
    page = page_of(results)
    several, one = page.body("table1", "full")
    mean, spread = np.mean(list(values.values())), np.std(list(values.values()), ddof=1)
    assert [cell["b"] + cell["text"] for cell in several[2:]] == [f"{mean + n:.2f}± {spread:.2f}" for n in LENGTHS]
    assert "seed 2: 206.25, 95% interval 205.25 to 208.25" in several[2]["title"]
    assert f"32: {several[2]['title']}" in page.text
    assert [(cell["text"], cell["title"]) for cell in one[2:]] == [("900.00", "")] * 6
    trace = next(trace for trace in page.plots["plot-ours"]["data"] if trace["name"] == "Wavelet Ricker")
    assert trace["error_y"]["visible"] and np.allclose(trace["error_y"]["array"], spread)


def test_plots_draw_the_csv_s_numbers_in_a_panel_an_inference_and_hide_a_method_in_both(page):
    for plot, path, l_train in (("ours", f"{PRESET}/table1.tidy.csv", 128), ("paper", "paper/table1.csv", 512)):
        panels = {"full": "y", "non-overlapping": "y2"}
        rows = means(RESULTS / path, l_train)
        expected = {(method, panels[inference]): row.to_dict() for (inference, method, _), row in rows.items()}
        traces = page.plots[f"plot-{plot}"]["data"]
        assert expected.keys() == {(trace["name"], trace["yaxis"]) for trace in traces}
        for trace in traces:
            assert dict(zip(trace["x"], trace["y"])) == pytest.approx(expected[trace["name"], trace["yaxis"]])
        assert all(trace["legendgroup"] == trace["name"] for trace in traces)
        shown = [trace["name"] for trace in traces if trace["showlegend"]]
        assert sorted(shown) == sorted({method for method, _ in expected})
    styles = [{t["name"]: t["line"] for t in page.plots[f"plot-{plot}"]["data"]} for plot in ("ours", "paper")]
    assert len({str(style) for style in styles[0].values()}) == len(styles[0])
    assert all(styles[0][name] == style for name, style in styles[1].items())


def test_loss_over_the_position_is_drawn_at_the_middle_of_each_bin(results):
    write_table(results, "table1", ricker(), {"rows": {"ricker": run_of()}})
    bins = [{"start": start, "stop": start + 16, "nll": 5 - start / 1000} for start in range(0, 624, 16)]
    rows = [{"row": "ricker", "l_train": 128, "sequence_length": 628, **one} for one in bins]
    pd.DataFrame(rows).to_csv(results / PRESET / "positions.csv", index=False)
    (trace,) = page_of(results).plots["plot-positions"]["data"]
    assert trace["name"] == "Wavelet Ricker"
    assert trace["x"] == [one["start"] + 8 for one in bins] and trace["y"] == [one["nll"] for one in bins]


# What is beside the numbers


def test_row_says_options_seed_and_commit_of_its_run_or_why_there_is_none(results):
    rows = [*ricker(), *cells(lambda n: None, method="Haar", position="rel")]
    write_table(results, "table1", rows, {"rows": {"ricker": run_of(), "haar": "does not fit, because"}})
    page = page_of(results)
    assert {"haar: does not fit, because", f"ricker: {ABOUT}"} <= set(page.titles)
    assert page.text.count(f"ricker : {ABOUT}") == page.text.count("haar : does not fit, because") == 2  # inferences
    assert [cell["text"] for cell in page.body("table1", "full")[1][2:]] == 6 * ["–"]


def test_page_says_preset_corpus_and_l_train_and_carries_the_manifest(results):
    run = run_of(versions={"torch": "2.13.0"}, training_seconds=277.0)
    write_table(results, "table1", ricker(), {"machine": {"cpus": 2}, "rows": {"ricker": run}})
    text = page_of(results).text
    assert f"preset {PRESET}" in text and "trained on wikitext-2 in sequences of L train = 128 tokens" in text
    for expected in ("cpus 2", f"commit {run['commit']}", run["training_command"], "torch 2.13.0", "277.00"):
        assert expected in text


def test_smaller_of_png_and_svg_is_embedded_of_what_the_page_does_not_plot(results):
    folder = results / PRESET / "figures"
    folder.mkdir()
    for name, svg in (("large", b"<svg>" + 100 * b" " + b"</svg>"), ("small", b"<svg/>"), ("perplexity", b"<svg/>")):
        (folder / f"{name}.svg").write_bytes(svg)
        (folder / f"{name}.png").write_bytes(PNG)
    images = [reference.split(",") for reference in page_of(results).references if reference.startswith("data:")]
    assert [kind for kind, _ in images] == ["data:image/png;base64", "data:image/svg+xml;base64"]
    assert [base64.b64decode(content) for _, content in images] == [PNG, b"<svg/>"]


CLAIMS = [
    {
        "id": "a",
        "statement": "NoPE breaks",
        "source": "Table 1",
        "verdict": "holds",
        "bounds": "at least 1",
        "numbers": [{"ratio": 1.23456}],
    },
    {"id": "b", "statement": "L_train", "source": "A.13", "verdict": "not judged", "reason": "no table3"},
]


def test_claims_have_verdict_source_and_numbers_or_reason(results):
    (results / PRESET / "claims.json").write_text(json.dumps(CLAIMS))
    text = page_of(results).text
    assert "holds: 1, not judged: 1." in text
    assert (
        "✓ holds NoPE breaks Table 1 claimed: at least 1 ratio 1.2346" in text
        and "– not judged L train A.13; no table3" in text
    )


def test_missing_parts_are_left_out_with_the_command_that_makes_them(results):
    page = page_of(results)
    for command in ("reproduce.sh table1", "reproduce.sh table4", "figures.sh", "claims.sh"):
        assert f"scripts/{command} --preset {PRESET}" in page.text
    assert not page.plots and not page.tables and not {"script", "img", "table"} & set(page.tags)
    anchors = [reference for reference in page.references if reference != "#made"]
    assert anchors == []
    write_table(results, "scales-1", cells(lambda n: float(n), wavelet="db4", scales="0..3"))
    page = page_of(results)
    assert [cell["text"] or cell["b"] for cell in page.body("scales-1", "full")[0]][:3] == ["db4", "0..3", "32.00"]
    assert "Sweep scales-1" in page.text and "#table-scales-1" in page.references


# Safe, alone, and the same every time

HOSTILE = "</script><script>alert(1)</script><img src=http://x.test/ onerror=alert(2)>\"'&amp;<b>"


def test_text_from_files_stays_text(results):
    rows = [{**row, "method": HOSTILE, "position": HOSTILE} for row in ricker()]
    run = run_of(commit=HOSTILE, training_command=f"fairseq-train --seed 3 {HOSTILE}", versions={HOSTILE: HOSTILE})
    write_table(results, "table1", rows, {"machine": {"system": HOSTILE}, "rows": {HOSTILE: run}})
    positions = [{"row": HOSTILE, "l_train": 128, "sequence_length": 628, "start": 0, "stop": 16, "nll": 5}]
    pd.DataFrame(positions).to_csv(results / PRESET / "positions.csv", index=False)
    claim = dict.fromkeys(("id", "statement", "source", "verdict", "reason"), HOSTILE)
    (results / PRESET / "claims.json").write_text(json.dumps([claim]))
    page = page_of(results)
    assert page.tags.count("script") == 2 and "img" not in page.tags
    row = page.body("table1", "full")[0]
    assert row[0]["text"] == row[1]["text"] == HOSTILE
    assert page.text.count(HOSTILE) >= 9
    for plot in ("plot-ours", "plot-positions"):  # plotly reads <b>, <a> and &amp; in names
        assert "<" not in page.plots[plot]["data"][0]["name"]


def test_nothing_is_loaded_from_a_network(page):
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    source = report.render(PRESET, RESULTS)
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'; img-src data: blob:;" in source


def test_script_writes_the_same_bytes_every_time(tmp_path):
    output = tmp_path / "page.html"
    command = [str(ROOT / "scripts" / "report.sh"), "--preset", PRESET, "--output", str(output)]
    subprocess.run(command, check=True, cwd=str(tmp_path), env={**os.environ, "PYTHONHASHSEED": "7"})
    assert output.read_text(encoding="utf-8") == report.render(PRESET, RESULTS)


def refused(capsys, results, preset=PRESET):
    assert report.main(["--preset", preset, "--results", str(results)]) == 2
    assert not (results / preset / "report.html").exists()
    return capsys.readouterr().err


def test_folders_and_files_that_are_not_sound_are_named(results, capsys):
    folder = results / PRESET
    assert f"{results / 'none' / PRESET} does not exist" in refused(capsys, results / "none")
    assert "preset 'other' is unknown; accepted are demo" in refused(capsys, results, "other")
    write_table(results, "table1", ricker(), {"rows": {"ricker": run_of(), "nope": run_of()}})
    assert "table1.manifest.json has 2 rows and table1.tidy.csv has 1" in refused(capsys, results)
    for seed in ({}, {"seed": 1}):
        write_table(results, "table1", 2 * ricker(**seed), {})
        assert "table1.tidy.csv has two numbers of Wavelet Ricker, rel, seed 1, at 32" in refused(capsys, results)
    write_table(results, "table1", ricker(), {})
    (folder / "table1.manifest.json").write_text("{")
    assert f"{folder / 'table1.manifest.json'} is not a JSON" in refused(capsys, results)
    write_table(results, "table1", [{"method": "NoPE", "perplexity": 1}])
    assert f"{folder / 'table1.tidy.csv'} has no column l_train, inference, sequence_length" in refused(capsys, results)


# In a browser

PROBE = """<iframe src="report.html" style="border: 0; width: 390px; height: 800px"></iframe><script>
const frame = document.querySelector("iframe");
onload = () => setTimeout(() => {
  const page = frame.contentDocument, root = page.scrollingElement;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const count = (part, what) => part.querySelectorAll(what).length;
  const lines = () => count(page, "#plot-ours .trace.scatter .js-line");
  const found = {
    page: [root.clientWidth, root.scrollWidth],
    plots: [...page.querySelectorAll(".plot")].map(plot => [plot.id, count(plot, ".trace.scatter")]),
    boxes: [...page.querySelectorAll("section[id^=table] .scroll")].filter(b => b.scrollWidth > b.clientWidth).length,
    ink: [getComputedStyle(page.body).color, getComputedStyle(page.querySelector(".plot .xtick text")).fill],
    before: lines(),
  };
  const toggle = page.querySelector("#plot-ours .legendtoggle");
  for (const kind of ["mousedown", "mouseup"]) toggle.dispatchEvent(new MouseEvent(kind, {bubbles: true}));
  setTimeout(() => {
    document.body.dataset.found = JSON.stringify({...found, after: lines()});
  }, 1500);
}, 500);
</script>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("scheme, ink", [(0, "rgb(236, 236, 238)"), (1, "rgb(29, 29, 31)")], ids=["dark", "light"])
def test_browser_draws_all_plots_without_an_error_or_sideways_scroll_on_a_phone(scheme, ink, tmp_path):
    folder = tmp_path / PRESET
    shutil.copytree(str(RESULTS / PRESET), str(folder))
    wide = {**CLAIMS[0], "numbers": [{f"column{number}": 1.5 for number in range(20)}]}
    (folder / "claims.json").write_text(json.dumps([wide, *CLAIMS]))
    positions = [{"row": "ricker", "l_train": 128, "sequence_length": 640, "start": 0, "stop": 16, "nll": 5}]
    pd.DataFrame(positions).to_csv(folder / "positions.csv", index=False)
    source = report.render(PRESET, tmp_path)
    (tmp_path / "report.html").write_text(source, encoding="utf-8")
    (tmp_path / "probe.html").write_text(PROBE)
    command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--allow-file-access-from-files", f"--blink-settings=preferredColorScheme={scheme}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", f"file://{tmp_path}/probe.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ":CONSOLE" not in done.stderr, done.stderr
    found = json.loads(html.unescape(done.stdout.split('data-found="')[1].split('"')[0]))
    assert found["page"] == [390, 390]
    assert found["plots"] == [[plot, len(figure["data"])] for plot, figure in Page(source).plots.items()]
    assert found["boxes"] == sum(len(inferences(table)) for table in TABLES)  # the tables scroll, each in its box
    assert found["ink"] == [ink, ink]
    assert found["after"] == found["before"] - 2  # the method is gone from both panels


@pytest.mark.parametrize("failed", [1, 2])
def test_a_seed_that_failed_hides_no_number_of_sliding_windows(tmp_path, failed):
    of = {"l_train": 128, "sequence_length": 128, "tokens": 9}
    cells = [{**of, "inference": "full", "perplexity": 10.0}]
    cells += [{**of, "inference": "sliding", "stride": 32, "perplexity": 9.0}]
    rows = [tables.RowResult({"method": "A"}, seed, "failed" if seed == failed else cells) for seed in (1, 2)]
    made = (tables.wide(rows, 128, [128]), tables.tidy(rows, 128, [128]))
    files.write_table(tmp_path, "x", *made, "", {}, None)
    table = report.make_table("x", "X", files.read_cells(tmp_path, "x"), None, {})
    assert [table.blocks[inference][("A",)][0].printed for inference in ("full", "sliding")] == ["10.00", "9.00"]
