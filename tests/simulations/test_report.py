"""The page of a suite: whole, alone, and fit to be looked at."""

import base64
import html
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace

import pytest
from lines import SUITE, forget_files

from fedkd import FedkdError, Run
from fedkd.caveats import LOCAL_TRAINING
from fedkd.simulations import cli, report, report_figures, suite
from fedkd.simulations.claim import Claim
from fedkd.simulations.report_figures import FIGURES

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--dump-dom"),
)
WIDTHS = (1280, 400)
HELPS = Claim.model_validate(
    {
        "name": "fusion-helps",
        "statement": "Fusion helps & <harms> nobody.",
        "source": "nobody's paper, abstract",
        "suite": "small",
        "compare": {"axis": "method", "of": "knfu", "with": ["local"]},
        "within": ["data.alpha"],
        "only": {"data": "digits"},
        "tests": [{"value": "own_accuracy_mean", "rule": "better"}],
        "figure": "fedkd plot alpha {folder}",
    }
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A suite whose cells have been run, but for those without data."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "small.toml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FEDKD_DATA", raising=False)
        found = suite.read(str(folder / "small.toml"), out=folder / "runs" / "small-quick")
    outcome = suite.run_suite(found, jobs=1)
    assert (len(outcome.ran), len(outcome.skipped), outcome.failed) == (8, 8, ())
    return found


@pytest.fixture(scope="module")
def page(done):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_figures, "DPI", 60)
        patch.setattr(report, "claims", lambda: {"fusion-helps": HELPS})
        return report.page(done)


@pytest.fixture
def copied(done, tmp_path):
    """The suite with folders of the test's own."""
    shutil.copytree(done.folder, tmp_path / "copy")
    cells = [
        replace(cell, folder=tmp_path / "copy" / cell.folder.relative_to(done.folder))
        for cell in done.cells
    ]
    return replace(done, folder=tmp_path / "copy", cells=tuple(cells))


@pytest.fixture
def _no_figures(monkeypatch):
    monkeypatch.setattr(report, "figures_of", lambda suite: {})


def words(page):
    """The text of a page."""
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def rows(page, caption):
    """The cells of the first table under ``caption``, by the first of each row."""
    start = page.index(f"<caption>{caption}")
    table = page[start : page.index("</table>", start)]
    found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in table.split("<tr>")[1:]]
    return {first: rest for first, *rest in found}


# --- what it says -------------------------------------------------------------------------------


def test_the_page_says_what_was_run(page):
    text = words(page)
    assert "Does <fusion> help, and does it show?" in text
    assert "16 cells 8 done 8 without data 2 seeds: 0, 1 quick scale" in text
    assert "data.alpha 0.1, 1 " in text
    assert "method knfu, local" in text
    assert re.search(r"8 cells not run: .*mnist", text)
    assert "samples_per_client = 60" in text
    assert "All 16 cells" in text


def test_tables_are_means_over_seeds(page, done):
    shown = rows(page, "own accuracy, fused")
    for method in ("knfu", "local"):
        for place, alpha in enumerate((0.1, 1.0)):
            values = [
                100 * Run(cell.folder).summary["own_accuracy_mean"]
                for cell in done.cells
                if (cell.labels["method"], cell.labels["data.alpha"]) == (method, alpha)
                and not cell.missing
            ]
            assert len(values) == 2
            assert shown[method][place].startswith(f"{sum(values) / 2:.1f} ±")


def test_the_best_of_a_column_is_in_bold(page, done):
    means = {
        method: sum(
            Run(cell.folder).summary["own_accuracy_mean"]
            for cell in done.cells
            if cell.labels["method"] == method
            and cell.labels["data.alpha"] == 0.1
            and not cell.missing
        )
        for method in ("knfu", "local")
    }
    best = max(means, key=means.__getitem__)
    assert means[best] > min(means.values())
    start = page.index("<caption>own accuracy, fused")
    assert re.search(rf'<td>{best}</td><td class="best">', page[start:])


def test_figures_that_fit_are_there_and_no_others(page):
    titles = re.findall(r'<figure><img src="data:image/png;base64,([^"]+)".*?alt="([^",]+)', page)
    assert {alt for _, alt in titles} == {
        FIGURES[name]
        for name in ("alpha", "curves", "pareto", "fairness", "calibration", "weights", "partition")
    }
    for picture, _ in titles:
        assert base64.b64decode(picture).startswith(b"\x89PNG")


def test_the_same_partition_is_shown_once(page):
    assert len(re.findall(f'alt="{FIGURES["partition"]}', page)) == 2  # one an alpha


def test_claims_on_the_suite_have_their_verdicts(page, done):
    text = words(page)
    assert "Fusion helps & <harms> nobody. nobody's paper, abstract. fusion-helps" in text
    for alpha in (0.1, 1):
        assert re.search(rf"data\.alpha = {alpha}, \S.*? undecided .*?2 of 5 seeds", text)
    assert "overall undecided" in text
    assert f"fedkd plot alpha {done.folder}" in text


@pytest.mark.usefixtures("_no_figures")
def test_a_claim_on_another_suite_is_not_there(done, monkeypatch):
    other = HELPS.model_copy(update={"suite": "large"})
    monkeypatch.setattr(report, "claims", lambda: {"other": other})
    assert "Fusion helps" not in report.page(done)


@pytest.mark.usefixtures("_no_figures")
def test_a_claim_that_cannot_be_judged_says_why(done, monkeypatch):
    wrong = HELPS.model_copy(update={"within": ("data.beta",)})
    monkeypatch.setattr(report, "claims", lambda: {"wrong": wrong})
    assert re.search(r"Not judged: .*'data\.beta'", words(report.page(done)))


@pytest.mark.usefixtures("_no_figures")
def test_environments_that_differ_are_named(copied):
    assert "more than one environment" not in words(report.page(copied))
    first = next(cell for cell in copied.cells if not cell.missing)
    file = first.folder / "environment.json"
    entries = json.loads(file.read_text())
    entries["packages"]["torch"] = "0.0.1"
    file.write_text(json.dumps(entries))
    text = words(report.page(copied))
    assert "more than one environment; they differ in torch." in text
    assert "0.0.1 (1 run)" in text
    assert "(7 runs)" in text


@pytest.mark.usefixtures("_no_figures")
def test_a_run_that_has_not_ended_is_counted_and_left_out(copied):
    for cell in copied.cells:
        if (cell.labels["method"], cell.labels["data.alpha"]) == ("knfu", 0.1):
            (cell.folder / "summary.json").unlink(missing_ok=True)
    page = report.page(copied)
    assert "6 done 2 begun 8 without data" in words(page)
    shown = rows(page, "own accuracy, fused")
    assert [float(alpha) for alpha in shown["method"]] == [0.1, 1.0]
    gone, there = shown["knfu"]
    assert (gone, "±" in there) == ("-", True)


@pytest.mark.usefixtures("_no_figures")
def test_what_runs_warn_of_stands_under_tables_and_claims_and_makes_none_the_best(
    copied, monkeypatch
):
    monkeypatch.setattr(report, "claims", lambda: {"fusion-helps": HELPS})
    for cell in copied.cells:
        if cell.finished and cell.labels["method"] == "knfu":
            (cell.folder / "warnings.jsonl").unlink(missing_ok=True)
            forget_files(cell.folder)
            Run(cell.folder).warn("it leaves <clients> to themselves", 2, LOCAL_TRAINING)
    page = report.page(copied)
    assert "it leaves <clients>" not in page
    text = words(page)
    assert "† knfu (4 of 4 runs): it leaves <clients> to themselves" in text
    assert "(does not count as best)" in text
    for row in re.findall(r"<tr><td>knfu</td>.*", page):
        assert 'class="best"' not in row
    claims = text[text.index("Fusion helps") : text.index("fedkd plot alpha")]
    assert "knfu (4 of 4 runs): it leaves <clients> to themselves" in claims


@pytest.mark.usefixtures("_no_figures")
def test_names_of_somebody_else_are_text_on_the_page(copied):
    about = "\x1b[31m<script>alert(1)</script>\x00\ud800"
    cells = tuple(
        replace(cell, labels={**cell.labels, "method": f"<i>{cell.labels['method']}\x1b"})
        for cell in copied.cells
    )
    axes = copied.axes | {"method": ("<i>knfu\x1b", "<i>local\x1b")}
    page = report.page(replace(copied, about=about, name='"><b>', axes=axes, cells=cells))
    page.encode("utf-8")
    assert not set("\x00\x1b") & set(page)
    assert "<script" not in page
    assert "<i>" not in page
    assert "<b>&" not in page


@pytest.mark.usefixtures("_no_figures")
def test_a_run_that_failed_is_named_with_its_reason_until_it_has_ended(tmp_path):
    (tmp_path / "few.toml").write_text(
        'experiment = "quickstart"\n[set]\nrounds = 1\n"student.models" = ["mlp"]\n'
        '[axes]\n"data.samples_per_client" = [60, 2000]\nseed = [0]\n'
    )
    few = suite.read("few.toml")
    outcome = suite.run_suite(few, jobs=1)
    text = words(report.page(few))
    assert "2 cells 1 done 1 failed" in text
    assert f"1 cell failed: {outcome.failed[0][1]}" in text
    shutil.copytree(outcome.ran[0].folder, outcome.failed[0][0].folder, dirs_exist_ok=True)
    assert "failed" not in words(report.page(few))


def test_a_suite_that_was_not_run_has_a_page_too(copied):
    shutil.rmtree(copied.folder)
    text = words(report.page(copied))
    assert "16 cells 8 not run 8 without data" in text
    assert "No run has begun." in text


def test_every_command_on_the_page_is_one_that_fedkd_knows(page, capsys):
    blocks = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    lines = [html.unescape(line) for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("fedkd ")]
    known = {"suite", "claims", "report", "table", "plot"}
    assert {command[1] for command in commands} == known
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            cli.main([*command[1:], "--help"])
        assert not ended.value.code, (command, capsys.readouterr().err)


@pytest.mark.usefixtures("_no_figures")
def test_commands_do_what_was_done(done, copied, monkeypatch):
    monkeypatch.setattr(report, "claims", lambda: {"fusion-helps": HELPS})

    def commands(suite):
        page = html.unescape(re.sub(r"</?pre>", "", report.page(suite)))
        return [line for line in page.splitlines() if line.startswith("fedkd ")]

    usual = commands(done)
    assert f"fedkd claims fusion-helps --scale quick --out {done.folder.parent}" in usual
    # Claims are judged by suites as they are shipped, where those lie.
    assert not [line for line in commands(copied) if "claims" in line]
    changed = replace(done, overrides=("rounds=2", "data.alpha=[1, 2]"))
    there = f"--set rounds=2 --set 'data.alpha=[1, 2]' --out {done.folder}"
    assert f"fedkd suite small.toml --scale quick {there}" in commands(changed)
    assert not [line for line in commands(changed) if "claims" in line]


# --- the file -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_figures")
def test_the_command_writes_the_page_and_prints_where(done, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "read", lambda *_, **__: done)
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", "small", "--out", "pages/small.html"])
    assert not ended.value.code
    assert capsys.readouterr().out == "pages/small.html\n"
    assert "Does &lt;fusion&gt; help" in (tmp_path / "pages" / "small.html").read_text()


@pytest.mark.usefixtures("_no_figures")
def test_a_page_that_cannot_be_written_is_one_line(done, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FedkdError, match=r"--out file/page\.html cannot be written"):
        report.write(done, (tmp_path / "file" / "page.html").relative_to(tmp_path))


def test_the_page_asks_for_nothing(page):
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)=["']?(?!["']?(?:data:|#))""", page)
    assert not re.findall(r"url\(|@import", page)


# --- in a browser -------------------------------------------------------------------------------


def look_at(page, folder):
    """What a browser makes of a page at each of ``WIDTHS``, everything unfolded; and its log.

    The page stands in frames, as a headless window is never narrower than 500 pixels.
    """
    frames = "".join(
        f'<iframe width="{width}" height="800" style="border: 0" srcdoc="{html.escape(page)}">'
        "</iframe>"
        for width in WIDTHS
    )
    script = """
    addEventListener("load", () => {
      const found = [...document.querySelectorAll("iframe")].map(frame => {
        const page = frame.contentDocument, root = page.documentElement;
        page.querySelectorAll("details").forEach(one => one.open = true);
        return {
          width: root.clientWidth,
          needed: root.scrollWidth,
          height: root.scrollHeight,
          images: [...page.images].map(image => image.naturalWidth),
          asked: frame.contentWindow.performance.getEntriesByType("resource")
            .map(entry => entry.name).filter(name => !name.startsWith("data:")),
        };
      });
      document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
    });
    """
    file = folder / "looked-at.html"
    file.write_text(f'<!doctype html><meta charset="utf-8">{frames}<script>{script}</script>')
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'browser'}", file.as_uri()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (found,) = re.findall(r"<pre>(.*?)</pre>", said.stdout)
    return json.loads(html.unescape(found)), [x for x in said.stderr.splitlines() if "CONSOLE" in x]


@pytest.mark.skipif(BROWSER is None, reason="Chromium")
def test_a_browser_shows_all_of_it_at_any_width_and_complains_of_nothing(page, tmp_path):
    looks, complaints = look_at(page, tmp_path)
    assert [look["width"] for look in looks] == list(WIDTHS)
    for look in looks:
        assert look["needed"] <= look["width"]
        assert look["height"] > 2000
        assert len(look["images"]) == page.count("<img")
        assert min(look["images"]) > 0
        assert look["asked"] == []
    assert complaints == []


@pytest.mark.skipif(BROWSER is None, reason="Chromium")
def test_what_is_wrong_with_a_page_would_be_seen(tmp_path):
    broken = (
        '<!doctype html><div style="width: 700px">wide</div><img src="data:image/png;base64,AA">'
        '<img src="http://127.0.0.1:9/a.png"><script>console.error("oh")</script>'
    )
    (wide, narrow), complaints = look_at(broken, tmp_path)
    assert wide["needed"] <= wide["width"]
    assert narrow["needed"] > narrow["width"]
    assert wide["images"] == [0, 0]
    assert wide["asked"] == ["http://127.0.0.1:9/a.png"]
    assert any("oh" in line for line in complaints)
