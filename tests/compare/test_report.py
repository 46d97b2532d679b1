"""Tests of the HTML report in a real browser.

They test the controls of the page. They also test that the page shows names and samples as plain text, even if these contain
HTML with a script.
"""

import json
import math
import os
import pathlib
import shutil
import statistics

import pytest
from test_tables import PROTOCOL, make_run

from charlm import files
from charlm.compare import reading, report

SCRIPT = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
HOSTILE = SCRIPT + "\n\"quoted\" 'too' & `more` \u2028 ü \U0001d54f \\u003c"


def records_below(folder):
    return reading.read(reading.find([os.fspath(folder)]))[0]


def test_embedded_json_cannot_close_its_script_element():
    text = files.embedded({HOSTILE: [HOSTILE, "<!--", "]]>", "\ud800"]})
    assert json.loads(text) == {HOSTILE: [HOSTILE, "<!--", "]]>", "\ud800"]}
    assert not set("<>&\u2028\n") & set(text)


def test_the_page_contains_all_data_and_needs_no_network(tmp_path):
    make_run(tmp_path / "runs" / "one", samples=[(100, "first"), (200, "second")])
    file = report.write(os.fspath(tmp_path / "page.html"), records_below(tmp_path / "runs"))
    page = pathlib.Path(file).read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert "__DATA__" not in page
    assert "__SCRIPT__" not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [run["name"] for run in data["runs"]] == ["one"]
    assert data["runs"][0]["best"] == 1.5
    assert [sample["text"] for sample in data["runs"][0]["samples"]] == ["first", "second"]


def test_long_curves_get_fewer_points_and_keep_their_last_point(tmp_path):
    make_run(tmp_path / "long", nats=(2.0,) * 50, rows=100)
    curve = report.content(records_below(tmp_path))["runs"][0]["curves"]["train"]
    assert len(curve["step"]) <= report.MAX_POINTS
    assert curve["step"][-1] == 5000


SEEDS = ((2.0, 1.5), (2.2, 1.6), (2.1, 1.8))  # the validation losses of three runs that differ only in their seed


def make_seeds(folder):
    for seed, nats in enumerate(SEEDS):
        make_run(folder / f"seed{seed}", {"model.hidden": 64, "seed": seed}, nats=nats, samples=[(100, f"words {seed}")])
    make_run(folder / "alone", {"model.hidden": 32}, nats=(2.4, 1.9))


def test_runs_that_differ_only_in_their_seed_are_one_row_with_their_mean_and_standard_error(tmp_path):
    make_seeds(tmp_path / "runs")
    make_run(tmp_path / "runs" / "stopped", {"model.hidden": 64, "seed": 9}, nats=(9.0,), state="incomplete")
    data = report.content(records_below(tmp_path / "runs"))
    names = [[data["runs"][number]["name"] for number in group["runs"]] for group in data["groups"]]
    assert sorted(names) == [["alone"], ["seed0", "seed1", "seed2", "stopped"]]
    group = next(group for group in data["groups"] if len(group["runs"]) > 1)
    assert group["best"] == pytest.approx((1.5 + 1.6 + 1.8) / 3)  # a run that is not done is not averaged
    assert group["error"] == pytest.approx(statistics.stdev([1.5, 1.6, 1.8]) / 3**0.5)
    assert (group["n"], group["state"], group["config"]["model.hidden"]) == (3, "3 done, 1 incomplete", 64)
    curve = group["curves"]["validation"]
    assert curve["step"] == [100, 200]
    assert curve["nats"] == pytest.approx([2.1, 4.9 / 3], rel=1e-5)
    assert (curve["low"], curve["high"]) == ([2.0, 1.5], [2.2, 1.8])
    assert len(group["curves"]["train"]["low"]) == 20
    assert group["bits_per_byte"] is None


def test_a_row_of_several_seeds_has_bits_per_byte_if_one_of_its_runs_recorded_bytes(tmp_path):
    make_seeds(tmp_path)
    metrics = tmp_path / "seed1" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"chars": 1000,', '"chars": 1000, "bytes": 1600,'))
    data = report.content(records_below(tmp_path))
    group = next(group for group in data["groups"] if len(group["runs"]) > 1)
    assert group["bits_per_byte"] == pytest.approx((1.5 + 1.6 + 1.8) / 3 / math.log(2) * 1000 / 1600)
    assert [run["bits_per_byte"] is None for run in data["runs"] if run["name"] in ("seed1", "alone")] == [True, False]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed: install Debian's package chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[1360, 390], ids=["desktop", "phone"])
def page(request, browser, tmp_path):
    """The report of six runs, opened in the browser.

    One run has a different protocol. The name, corpus path and sample of another run contain HTML with a script. After the
    test, this fixture checks that the script did not run, that the browser's console is empty, and that the page requested
    nothing from the network.
    """
    folder = tmp_path / "runs"
    for index, (hidden, rate) in enumerate([(32, 1e-2), (64, 1e-2), (32, 3e-2), (64, 3e-2)]):
        overrides = {"model.hidden": hidden, "optim.learning_rate": rate}
        samples = [(100, f"early words of {index}"), (200, f"late words of {index}")]
        make_run(folder / f"run{index}", overrides, nats=(2.0 + index / 10, 1.5 + index / 10), samples=samples)
    make_run(
        folder / HOSTILE.replace("/", "\u2215"),
        {"corpus.path": HOSTILE, "model.hidden": 128},
        nats=(2.5, 2.0),
        samples=[(100, HOSTILE)],
        state="failed",
    )
    parent = {"path": "/runs/parent", "step": 40, "digest": "0", "new_symbols": [], "dropped_symbols": []}
    (folder / "run1" / "parent.json").write_text(json.dumps(parent))
    make_run(folder / "other_protocol", protocol={**PROTOCOL, "state": "zero"})
    metrics = folder / "run0" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"chars": 1000,', '"chars": 1000, "bytes": 1250, "unknown": 7,'))
    file = report.write(os.fspath(tmp_path / "page.html"), records_below(folder))
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: messages.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
    page.on("dialog", lambda dialog: messages.append("a dialog"))
    page.goto(f"file://{file}")
    yield page
    assert messages == []
    assert page.evaluate("window.hacked") is None
    page.close()


def column(page, name) -> list[str]:
    """Returns the cell texts of one table column, from top to bottom."""
    index = page.eval_on_selector_all("#table th", f"cells => cells.findIndex((cell) => cell.dataset.column === {name!r})")
    return page.eval_on_selector_all(
        f"#table tbody td:nth-child({index + 1})", "cells => cells.map((cell) => cell.textContent)"
    )


def test_clicking_a_heading_sorts_the_table(page):
    perplexities = column(page, "perplexity")
    assert len(perplexities) == 5
    assert perplexities == sorted(perplexities, key=float)
    assert column(page, "nats")[0] == "1.5000"
    assert column(page, "parent") == ["", "parent step 40", "", "", ""]
    assert page.locator("#table td[title='/runs/parent step 40']").count() == 1
    page.click("#table th[data-column=perplexity] button")
    assert column(page, "perplexity") == perplexities[::-1]
    page.click("#table th[data-column='model.hidden'] button")
    assert column(page, "model.hidden") == ["32", "32", "64", "64", "128"]
    assert page.get_attribute("#table th[data-column='model.hidden']", "aria-sort") == "ascending"


def test_bits_per_byte_and_unknown_symbols_are_shown_for_runs_that_recorded_them(page):
    bits_per_byte = 1.5 / math.log(2) * 1000 / 1250
    assert column(page, "bits/byte") == [f"{bits_per_byte:.4f}", "", "", "", ""]
    assert column(page, "unknown") == ["7", "", "", "", ""]
    page.fill("#filter", "bits/byte<2")
    assert column(page, "run") == ["run0"]


def test_the_filter_selects_runs_by_condition_and_text(page):
    page.fill("#filter", "hidden=64 perplexity<5")
    assert column(page, "run") == ["run1"]
    page.fill("#filter", "RUN done")
    assert len(column(page, "run")) == 4
    page.fill("#filter", "<img")
    assert column(page, "state") == ["failed"]
    page.fill("#filter", "no run has this name")
    assert "No run matches the filter." in page.inner_text("#table")


def test_the_tooltip_shows_values_at_the_pointer_and_the_legend_hides_curves(page):
    assert page.locator("#chart path.curve").count() == 5
    box = page.locator("#chart").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 18, box["y"] + box["height"] / 2)
    tooltip = page.inner_text("#tooltip")
    assert "step 200" in tooltip
    assert "4.4817" in tooltip  # exp(1.5), the perplexity of run0
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 5)
    assert not page.is_visible("#tooltip")
    page.click("#legend button >> nth=0")
    assert page.locator("#chart path.curve").count() == 4
    assert page.get_attribute("#legend button >> nth=0", "aria-pressed") == "false"
    page.click("#table tbody .swatch >> nth=0")
    assert page.locator("#chart path.curve").count() == 5


def test_axes_and_smoothing_change_the_curves(page):
    before = page.get_attribute("#chart path.curve >> nth=0", "d")
    for axis, label in (("chars", "characters trained on"), ("seconds", "wall time")):
        page.select_option("#axis", axis)
        assert label in page.text_content("#chart")
    page.select_option("#axis", "step")
    page.select_option("#split", "train")
    rough = page.get_attribute("#chart path.curve >> nth=0", "d")
    assert rough != before
    page.evaluate("const range = document.getElementById('smooth'); range.value = 0.9; range.dispatchEvent(new Event('input'))")
    assert page.get_attribute("#chart path.curve >> nth=0", "d") != rough
    page.get_by_label("logarithmic x axis").check()
    assert page.locator("#chart path.curve").count() == 5
    ticks = page.eval_on_selector_all("#chart text[text-anchor=middle]", "all => all.map((each) => each.textContent)")
    assert ticks[0] == "10"  # step 10 has the first training loss; a linear axis would begin at 0


def test_two_runs_side_by_side_show_samples_and_config_differences(page):
    page.select_option("#left", label="run0")
    page.select_option("#right", label="run3")
    assert page.inner_text("#left_sample") == "late words of 0"
    assert page.inner_text("#right_sample") == "late words of 3"
    page.select_option("#step", "100")
    assert page.inner_text("#left_sample") == "early words of 0"
    cells = page.eval_on_selector_all("#diff tbody td", "cells => cells.map((cell) => cell.textContent)")
    assert cells == ["model.hidden", "32", "64", "optim.learning_rate", "0.01", "0.03"]
    hostile = next(
        name
        for name in page.eval_on_selector_all("#right option", "all => all.map((each) => each.textContent)")
        if "img" in name
    )
    page.select_option("#right", label=hostile)
    assert page.text_content("#right_sample") == HOSTILE
    assert page.locator("main img").count() == 0


def test_runs_of_another_protocol_are_shown_separately(page):
    # A phone has no room for all columns, so this text may go on with the names of the columns that are left out.
    assert page.inner_text("#why").startswith("5 runs; the menu above has the runs evaluated under other protocols")
    assert "other_protocol" not in page.inner_text("#table")
    page.select_option("#protocol", "1")
    assert column(page, "run") == ["other_protocol"]


def test_the_page_is_not_wider_than_the_screen(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.fixture
def page_of_seeds(browser, tmp_path):
    make_seeds(tmp_path / "runs")
    file = report.write(os.fspath(tmp_path / "page.html"), records_below(tmp_path / "runs"))
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(f"file://{file}")
    yield page
    page.close()


def test_the_page_shows_means_over_seeds_and_a_switch_shows_single_runs(page_of_seeds):
    page = page_of_seeds
    assert column(page, "nats") == ["1.6333 ± 0.0882", "1.9000"]
    assert column(page, "perplexity") == ["5.1209 ± 0.4516", "6.6859"]
    assert column(page, "n") == ["3", "1"]
    assert column(page, "run") == ["seed0 and 2 more", "alone"]
    assert column(page, "seed") == []
    assert page.inner_text("#why") == "2 rows of 4 runs; runs that differ only in their seed are one row"
    assert (page.locator("#chart path.curve").count(), page.locator("#chart path.band").count()) == (2, 1)
    assert "± is the standard error over the seeds." in page.inner_text("#band_note")
    options = page.eval_on_selector_all("#left option", "all => all.map((each) => each.textContent)")
    assert options == ["seed0", "seed1", "seed2", "alone"]
    page.check("#single")
    assert column(page, "nats") == ["1.5000", "1.6000", "1.8000", "1.9000"]
    assert column(page, "seed") == ["0", "1", "2", "0"]
    assert (page.locator("#chart path.curve").count(), page.locator("#chart path.band").count()) == (4, 0)
    assert page.inner_text("#why") == "4 runs"
    assert not page.is_visible("#band_note")
    page.click("#table tbody .swatch >> nth=0")
    page.uncheck("#single")
    assert page.locator("#chart path.curve").count() == 2


def test_a_narrow_page_leaves_out_columns_and_names_them(page_of_seeds):
    page = page_of_seeds
    fits = "document.querySelector('.wide').scrollWidth <= document.querySelector('.wide').clientWidth"
    assert column(page, "bits")
    page.set_viewport_size({"width": 900, "height": 900})
    for _ in range(50):  # the page's security policy forbids wait_for_function, which evaluates a string
        if "left out" in (page.text_content("#why") or ""):
            break
        page.wait_for_timeout(100)
    assert column(page, "bits") == []
    assert "bits" in page.inner_text("#why").partition("too narrow: ")[2]
    assert len(column(page, "run")) == len(column(page, "state")) == 2
    assert page.evaluate(fits)


RATES = (0.0003, 0.00278255940220712)


@pytest.fixture(scope="module")
def wide_table(tmp_path_factory):
    """The page of runs with long names and five columns of keys. One run is pruned, and another run is extended."""
    folder = tmp_path_factory.mktemp("wide") / "sweep_with_a_long_name"
    number = 0
    for hidden in (32, 1024):
        for rate in RATES:
            for seed in range(2 if hidden == 32 else 1):
                overrides = {
                    "model.hidden": hidden,
                    "optim.learning_rate": rate,
                    "optim.weight_decay": rate / 3,
                    "batch.length": 32 if rate < 1e-3 else 64,
                    "corpus.path": f"/home/somebody/texts/with_a_long_name/{hidden}.txt",
                    "seed": seed,
                }
                name = ",".join(f"{key}={value}" for key, value in overrides.items()).replace("/", "_")
                state = "incomplete" if (hidden, rate) == (1024, RATES[0]) else "done"
                run = make_run(folder / name, overrides, nats=(2.0, 1.5 + number / 10), state=state, test=1.7)
                if state == "incomplete":
                    (folder / "sweep.json").write_text(json.dumps({"pruned": [name]}))
                number += 1
    config = json.loads((run / "config.json").read_text())
    entry = {"step": 100, "rows": 12, "before": {"train.epochs": 1.5}, "after": {"train.epochs": config["train"]["epochs"]}}
    (run / "extensions.json").write_text(json.dumps({"extensions": [{**entry, "resets_best": False}]}))
    return report.write(os.fspath(folder / "page.html"), records_below(folder))


@pytest.mark.parametrize("width", [1300, 1000, 700])
def test_a_table_with_many_keys_shows_state_and_run_and_cuts_no_number(browser, wide_table, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(f"file://{wide_table}")
    assert column(page, "state") == ["done", "done", "pruned", "done"]
    assert [name.startswith("model.hidden=") for name in column(page, "run")] == [True] * 4
    assert column(page, "model.hidden") == ["32", "32", "1024", "1024"]
    assert column(page, "optim.learning_rate") == ["0.0003", "0.002783"] * 2
    assert column(page, "optim.weight_decay") == ["0.0001", "0.0009275"] * 2
    assert column(page, "corpus.path") == ["32.txt", "32.txt", "1024.txt", "1024.txt"]
    right = page.locator("#table").locator("xpath=..").bounding_box()
    cut = page.eval_on_selector_all(
        "#table th, #table td:not(.text)",
        f"cells => cells.filter((cell) => cell.scrollWidth > cell.clientWidth || "
        f"cell.getBoundingClientRect().right > {right['x'] + right['width']}).map((cell) => cell.textContent)",
    )
    assert cut == []
    heights = page.eval_on_selector_all("#table tbody tr", "rows => rows.map((row) => row.offsetHeight)")
    assert max(heights) < 40  # a cell with two lines is higher
    titles = page.eval_on_selector_all("#table td", "cells => cells.map((cell) => cell.title)")
    assert "0.00278255940220712" in titles
    page.close()


def test_numbers_that_differ_in_late_digits_are_not_rounded_to_the_same_text(browser, tmp_path):
    for rate, steps in ((0.12345678, 0), (0.12345679, 50)):
        make_run(tmp_path / "runs" / str(rate), {"optim.learning_rate": rate, "train.steps": steps})
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(f"file://{report.write(os.fspath(tmp_path / 'page.html'), records_below(tmp_path / 'runs'))}")
    assert column(page, "optim.learning_rate") == ["0.12345678", "0.12345679"]
    assert column(page, "train.steps") == ["by epochs", "50"]  # as in the printed table
    page.close()


def test_the_page_shows_extensions_and_names_of_corpora(browser, wide_table):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(f"file://{wide_table}")
    protocol = "validation split, corpus 1024.txt and 32.txt (c0ffee00), state carried, 1,000 chars scored"
    assert page.inner_text("#protocol option") == protocol
    assert column(page, "extended") == ["", "", "", "at 100: epochs 1.5 → 3.0"]
    page.close()
