"""``fedkd claims`` and the page of results, on a suite of a second a run."""

import re
from pathlib import Path
from typing import get_args

import pytest
from lines import SUITE

from fedkd import FedkdError, Run
from fedkd.simulations import answers, results_page, suite, verdicts
from fedkd.simulations.claim import Claim, Criterion, Rule, claims, read
from fedkd.simulations.results_sections import Picture, Section
from fedkd.simulations.suite import suites

ROOT = Path(__file__).parents[2]
CLAIM = """statement = "Fusion helps."
source = "nobody (arXiv 0)"
suite = "SUITE"
within = ["data", "data.alpha"]
seeds = 2
figure = "fedkd plot curves {folder}"
[compare]
axis = "method"
of = "knfu"
with = ["local"]
[[tests]]
value = "own_accuracy_mean"
rule = "not worse"
margin = 100
"""


@pytest.fixture(autouse=True)
def _no_data(monkeypatch):
    monkeypatch.delenv("FEDKD_DATA", raising=False)


@pytest.fixture
def claim(tmp_path):
    """A claim's file, and its suite's."""
    (tmp_path / "small.toml").write_text(SUITE)
    file = tmp_path / "helps.toml"
    file.write_text(CLAIM.replace("SUITE", str(tmp_path / "small.toml")))
    return str(file)


def test_claims_run_what_is_missing_and_say_where_data_is(claim, fedkd):
    code, out, err = fedkd("claims", claim, "--jobs", "1")
    assert code == 0
    assert "8 to run" in err
    said = [line for line in out.splitlines() if line.startswith("data = digits")]
    assert len(said) == 2
    both = r"supported +[+-]\d.* points +supported: [+-]\d.* points +2 +against local"
    assert all(re.search(both, line) for line in said)
    assert "data set 'mnist' is not at" in out
    # Others alone do not support a claim that is about mnist too.
    assert re.search(r"overall +undecided", out)
    assert "figure: fedkd plot curves runs/small-quick" in out
    code, out, err = fedkd("claims", claim, "--jobs", "1", "--format", "markdown")
    assert code == 0
    assert "to run" not in err
    assert "### helps" in out
    overall = r"^\| overall \| \*\*undecided\*\* \|  \| \*\*undecided\*\* \|"
    assert re.search(overall, out, re.MULTILINE)
    assert "differs between the stages" not in out


def test_a_claim_whose_verdicts_differ_between_stages_says_so(claim, fedkd, monkeypatch):
    assert fedkd("claims", claim, "--jobs", "1")[0] == 0
    Path(claim).write_text(Path(claim).read_text().replace("margin = 100", "margin = 0"))

    # After fusion KnFu is worse by far in every seed, after local training better by far.
    def turned(opened):
        runs = suite.frame(opened)
        local, low = runs["method"] == "local", 0.1 + 0.001 * runs["seed"]
        return runs.assign(
            own_accuracy_mean=low.where(~local, 0.9), own_accuracy_mean_local=low.where(local, 0.9)
        )

    monkeypatch.setattr(answers, "frame", turned)
    line = "The verdict differs between the stages of a round: overall not supported, and "
    for form in ("text", "markdown"):
        out = fedkd("claims", claim, "--no-run", "--format", form)[1]
        assert f"{line}undecided at the other stage; in 2 of 4 verdicts of cells." in out


def test_what_runs_warn_of_stands_under_the_claims_that_they_judge(claim, fedkd):
    assert fedkd("claims", claim, "--jobs", "1")[0] == 0
    for cell in suite.read(claim.replace("helps", "small")).cells:
        if cell.finished and cell.labels["method"] == "local":
            Run(cell.folder).warn("client 3 has no test samples")
    for form in ("text", "markdown"):
        out = fedkd("claims", claim, "--no-run", "--format", form)[1]
        assert "local (4 of 4 runs): client 3 has no test samples" in out


def test_a_claims_own_text_is_shown_as_it_is(claim, fedkd):
    text = Path(claim).read_text().replace("Fusion helps.", "\\u001b[31m a|b `x`")
    Path(claim).write_text(text.replace("curves {folder}", "curves {x} {folder}"))
    out = fedkd("claims", claim, "--no-run")[1]
    assert "\x1b" not in out
    assert "figure: fedkd plot curves {x} runs/small-quick" in out
    assert r"a\|b \`x\`" in fedkd("claims", claim, "--no-run", "--format", "markdown")[1]


def test_without_runs_nothing_is_decided(claim, fedkd):
    code, out, _ = fedkd("claims", claim, "--no-run")
    assert code == 0
    assert "no finished run" in out
    assert re.search(r"overall +not run", out)
    assert not Path("runs").exists()


def test_runs_that_fail_are_told_by_the_exit_code(claim, fedkd, monkeypatch):
    def broken(opened, jobs, observer):
        return suite.Outcome((), (), (), ((opened.cells[0], "out of memory"),))

    monkeypatch.setattr(answers, "run_suite", broken)
    code, out, err = fedkd("claims", claim)
    assert code == 1
    assert "out of memory" in err
    assert "overall" in out


def test_a_claim_that_does_not_fit_its_suite_says_so(claim, fedkd):
    text = Path(claim).read_text().replace('"data.alpha"]', '"data.alhpa"]')
    Path(claim).write_text(text)
    code, out, _ = fedkd("claims", claim, "--no-run")
    assert code == 0
    assert "not judged: claim helps: suite" in out


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("nothing",), "claim 'nothing' is not known"),
        (("--format", "html"), "--format 'html' is not allowed: text, markdown"),
        (("--scale", "huge"), "--scale 'huge' is not allowed"),
    ],
)
def test_wrong_input_is_one_line(words, wrong, fedkd):
    code, _, said = fedkd("claims", *words)
    assert code == 2
    assert said.startswith("fedkd: ")
    assert said.count("\n") == 1
    assert wrong in said


def test_claims_are_listed_with_their_statements(fedkd):
    _, out, _ = fedkd("list", "claims")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(claims())


# --- claims and suites that come with fedkd ---------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["quick", "full"])
@pytest.mark.parametrize("name", suites())
def test_every_claim_fits_its_suite_and_every_suite_its_place_on_the_page(name, scale):
    opened = suite.read(name, scale)
    for one in claims().values():
        if one.suite == name:
            check_fits(one, opened)
    shown = results_page.SECTIONS[name]
    used = {shown.rows, *filter(None, [shown.columns])}
    used |= {axis for picture in shown.pictures for axis in (*picture.each, *picture.only)}
    assert used <= set(opened.axes)


def check_fits(one, opened):
    labels = opened.axes[one.compare.axis]
    named = (one.compare.of, *one.compare.with_) if one.compare.with_ else ()
    assert set(named) <= set(labels), one
    for axis, wanted in one.only.items():
        if wanted not in ("first", "last"):
            wanted = wanted if isinstance(wanted, tuple) else (wanted,)
            assert set(wanted) & set(opened.axes[axis]), one
    # Every verdict is that nothing has run, and none that runs cannot be told apart.
    found = verdicts.judge_suite(one, opened)
    assert {verdict.verdict for verdict in found} == {"not run"}, one
    cells = [cell for cell in opened.cells if not cell.missing]
    assert cells, "some of it runs on the embedded data"
    seeds = {cell.labels["seed"] for cell in opened.cells}
    assert len(seeds) >= one.seeds, one


def test_a_claim_is_not_asked_where_its_suite_leaves_out_what_it_compares(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        """
        experiment = "quickstart"
        skip = [
            {"data.alpha" = 0.5, "strategy.name" = "knfu"},
            {"data.alpha" = 1.0, "strategy.name" = "local"},
        ]
        [axes]
        seed = [0, 1]
        "strategy.name" = ["knfu", "local"]
        "data.alpha" = [0.1, 0.5, 1.0]
        """
    )
    opened = suite.read(str(file), "quick")
    compare = {"axis": "strategy.name", "of": "knfu", "with": ["local"]}
    tests = [{"value": "own_accuracy_mean", "rule": "better"}]
    said = {"name": "mine", "statement": "s", "source": "t", "suite": "u", "seeds": 2}
    one = Claim.model_validate(
        {**said, "within": ["data.alpha"], "compare": compare, "tests": tests}
    )
    found = verdicts.judge_suite(one, opened)
    assert [verdict.where.get("data.alpha") for verdict in found] == [0.1, 1.0, None]
    absent = one.model_copy(update={"compare": one.compare.model_copy(update={"of": "fedavg"})})
    assert verdicts.judge_suite(absent, opened)[-1].verdict == "not run"


def test_every_claim_is_of_a_suite_that_comes_with_fedkd():
    assert {one.suite for one in claims().values()} <= {*suites()}


def test_the_page_shows_every_claim_and_suite_that_there_is():
    text = (ROOT / "docs" / "results.md").read_text()
    assert "do not edit" in text
    assert all(f"### {name}\n" in text for name in claims())
    assert all(f"## Suite {name}\n" in text for name in suites())
    for figure in re.findall(r"\]\((figures/[^)]+)\)", text):
        file = ROOT / "docs" / figure
        assert file.stat().st_size <= results_page.LARGEST


def test_the_documented_claim_is_one(tmp_path, capsys):
    text = (ROOT / "docs" / "claims.md").read_text()
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.toml").write_text(toml)
    one = read(tmp_path / "mine.toml")
    assert (one.name, one.tests[0].rule, one.vacuous.of) == ("mine", "better", "knfu")
    # Every key and rule that there is stands on the page.
    keys = {*Claim.model_fields, *Criterion.model_fields} - {"name"}
    assert all(re.search(rf"\b{key}\b", text) for key in keys)
    assert all(f"| `{rule}` |" in text for rule in get_args(Rule))
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "claims.md", "exec"), {})
    assert capsys.readouterr().out == "overall not run  \n"


# --- the page ---------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path, monkeypatch, claim):
    """The page of a small suite, and its figures, from runs in a folder with a name of its own."""
    shown = Section(
        "method",
        "data.alpha",
        ("own_accuracy_mean", "common_perplexity_mean"),
        (
            Picture("alpha"),
            Picture("weights", only={"method": "knfu", "data.alpha": 1}),
            Picture("exposure"),
        ),
    )
    one = read(Path(claim)).model_copy(update={"suite": "small"})
    monkeypatch.setattr(results_page, "SECTIONS", {"small": shown})
    monkeypatch.setattr(results_page, "claims", lambda: {"helps": one})
    monkeypatch.setattr(results_page, "suites", lambda: {"small": tmp_path / "small.toml"})
    monkeypatch.setattr(suite, "suites", lambda: {"small": tmp_path / "small.toml"})
    return tmp_path / "docs" / "results.md"


@pytest.mark.slow
def test_one_command_makes_the_page(page, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path / "private" / "data"))
    (page.parent / "figures").mkdir(parents=True)
    (page.parent / "figures" / "old.png").write_bytes(b"")
    words = ["--page", str(page), "--out", str(tmp_path / "elsewhere"), "--jobs", "1"]
    assert results_page.main(words) == 0
    text = page.read_text()
    # Verdicts, what they come to, a table with its command, figures with theirs, the machine.
    assert "- Undecided: [helps](#helps)." in text
    assert re.search(r"\| data = digits, data.alpha = 0.1, own accuracy, fused +\| +supp", text)
    assert "16 runs: 8 finished, 8 without data." in text
    assert "| processor" in text
    table = "fedkd table small --scale quick --value own_accuracy_mean --rows method"
    assert f"`{table} --columns data.alpha --where data=digits`" in text
    assert re.search(r"\| knfu +\|.*±", text)
    assert "perplexity" not in text
    assert "`fedkd plot alpha runs/small-quick`" in text
    assert "`fedkd plot weights runs/small-quick/alpha1-knfu-digits-*-*`" in text
    figures = sorted(file.name for file in (page.parent / "figures").iterdir())
    assert figures == ["small-alpha.png", "small-weights.png"]
    assert re.findall(r"\]\(figures/([^)]+)\)", text) == figures
    for name in figures:
        png = (page.parent / "figures" / name).read_bytes()
        assert 5_000 < len(png) <= results_page.LARGEST
    # What cannot be drawn is told, and stops nothing; this machine's folders are not on the page.
    assert "small: no figure exposure" in capsys.readouterr().err
    assert str(tmp_path) not in text
    assert "not at DATA" in text
    # The same runs make the same page.
    before = {file: file.read_bytes() for file in page.parent.rglob("*.*")}
    assert results_page.main([*words, "--no-run"]) == 0
    assert {file: file.read_bytes() for file in page.parent.rglob("*.*")} == before


def test_folders_are_told_from_words_with_the_same_letters(page, tmp_path, monkeypatch):
    assert results_page.main(["--page", str(page), "--out", "t", "--no-run"]) == 0
    before = page.read_text()
    assert "that" in before
    assert "runs/small-quick" in before
    assert results_page.main(["--page", str(page), "--no-run"]) == 0
    assert page.read_text() == before


def test_a_page_without_runs_says_so(page):
    assert results_page.main(["--page", str(page), "--no-run"]) == 0
    text = page.read_text()
    assert "No runs." in text
    assert "- Not run: [helps](#helps)." in text
    assert "16 runs: 8 not run, 8 without data." in text


def test_what_is_wrong_with_the_page_is_one_line(page, monkeypatch, capsys):
    def wrong(*words, **more):
        raise FedkdError("no suite")

    monkeypatch.setattr(results_page, "read", wrong)
    assert results_page.main(["--page", str(page)]) == 2
    assert capsys.readouterr().err == "fedkd: no suite\n"
    assert not page.exists()
