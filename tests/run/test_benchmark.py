"""flawmap benchmark: runs that end as rows whatever becomes of their process, and tables held against hand counting."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError, UsageError
from flawmap.run import isolate
from flawmap.run.benchmark import How, Plan, benchmark, named, plan_of, read, shard_of
from flawmap.run.claim import claimed
from flawmap.run.facts import Facts
from flawmap.run.reproduce import Row
from flawmap.run.table import Job, Table
from flawmap.run.tables import comparison, latex, markdown

QUICK = {"size": 64, "keep": 0.05}


def _row(job: Job, **values: object) -> dict[str, object]:
    """A row as a run leaves it, of today's defaults."""
    usual = {"pictures": 10, "seconds_per_picture": 0.02, "fit_s": 3.0, "peak_mb": 500, "bundle_mb": 5.0}
    usual |= {"date": "2026-01-01", "commit": "abc", "machine": "m", "threshold": None, "config": {"seed": job.seed}}
    return {"key": job.key, **vars(job), "options": dict(job.options), **usual, **values}


def _facts(plan: Plan, values: dict[tuple[str, str, int], dict[str, object]], failed: dict[str, str]) -> Facts:
    """`values` by method, category and seed."""
    pairs = plan.jobs(["a/one", "a/two", "b/three"])
    rows = {}
    for row, job in pairs:
        if (found := values.get((row.name, job.data, job.seed))) is not None:
            rows[job.key] = _row(job, **found)
    broken = {job.key: _row(job, failed=failed[row.name]) for row, job in pairs if row.name in failed}
    return Facts(plan, pairs, rows, broken)


@pytest.fixture
def facts() -> Facts:
    plan = Plan(
        (named("patchcore"), named("padim"), Row("slow", "simplenet")),
        seeds=(0, 1),
        leave_out={"p_ap": ("two",)},
        limits={"slow": {"categories": ["one"], "seeds": [1]}},
        notes=("said below",),
    )
    rate = {"count": 1, "n": 4, "low": 0.0, "high": 0.8}
    values: dict[tuple[str, str, int], dict[str, object]] = {}
    for place, category in enumerate(("a/one", "a/two", "b/three")):
        for seed in (0, 1):
            more = {"threshold": 1.0, "calibrated_on": 9, "false_alarms": rate, "escapes": {**rate, "count": seed}}
            auroc = 0.9 + 0.02 * place + 0.01 * seed
            values["patchcore", category, seed] = {"i_auroc": auroc, "p_ap": 0.5 + 0.1 * place, **more}
            values["padim", category, seed] = {"i_auroc": 0.9, "p_ap": None if place == 2 else 0.4, **more}
    return _facts(plan, values, {"slow": "it broke_off & 100 %"})


def test_a_plan_becomes_every_run_once_slow_methods_last():
    plan = Plan(
        (named("patchcore"), Row("slow", "simplenet")),
        seeds=(0, 1),
        shots=(2, 0),
        draws=3,
        limits={"slow": {"categories": ["one"], "seeds": [0]}},
    )
    jobs = [job for _, job in plan.jobs(["a/one", "a/two"])]
    # 2 categories x 2 seeds x (3 draws of 2 parts, 1 of all), and a quarter of that for the limited one.
    assert len(jobs) == 2 * 2 * 4 + 4
    assert len({job.key for job in jobs}) == len(jobs)
    assert {job.method for job in jobs[-4:]} == {"simplenet"}
    assert {(job.shots, job.draw) for job in jobs} == {(2, 0), (2, 1), (2, 2), (None, 0)}
    only = Plan((named("patchcore"),), shots=(4,), draw=2).jobs(["a"])
    assert [(job.shots, job.draw) for _, job in only] == [(4, 2)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"methods": ()}, "needs a method"),
        ({"methods": (named("patchcor"),)}, "patchcore"),
        ({"methods": (named("patchcore:tiny"),)}, "tiny"),
        ({"methods": (named("padim"), named("padim"))}, "two methods are called padim"),
        ({"protocol": "paper"}, "there are: plain"),
        ({"methods": (Row("a", "padim", {"size": 256}),), "protocol": "patchcore-crop"}, "224 px"),
        ({"leave_out": {"auc": ()}}, "no metric 'auc'"),
        ({"limits": {"fast": {}}}, "no method is called 'fast'"),
        ({"draws": 0}, "draws is at least 1"),
        ({"held_out": 1.0}, "held_out"),
        ({"seeds": 3}, "seeds is 3; give a list"),
        ({"seeds": ("0",)}, "seeds is '0'; give a whole number"),
        ({"seeds": (0.5,)}, "give a whole number"),
        ({"held_out": "0.2"}, "give a whole number or a number"),
        ({"notes": "hello"}, "give a list"),
        ({"limits": {"patchcore": {"seed": [0]}}}, "no 'seed'"),
        ({"limits": {"patchcore": {"categories": "one"}}}, "give a list"),
        ({"leave_out": {"p_ap": "one"}}, "give a list"),
        ({"protocol": 5}, "a name"),
        ({"protocol": {"name": "plain", "size": 64}}, "the name of other rules"),
        ({"protocol": {"size": "64"}}, "whole numbers"),
        ({"methods": (Row("a", "padim"), Row("b", "padim"))}, "the same run"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_runs(values: dict[str, object], words: str):
    with pytest.raises(UsageError, match=words):
        Plan(**{"methods": (named("patchcore"),), **values})  # type: ignore[arg-type]


def test_a_recipe_and_flags_say_the_same_and_never_both(tmp_path: Path):
    path = tmp_path / "plan.toml"
    path.write_text(
        'methods = ["patchcore", {name = "P", method = "pouta", options = {preset = "small"}}]\nseeds = [3]'
    )
    plan = read(path)
    assert [(row.name, row.method, dict(row.options)) for row in plan.methods] == [
        ("patchcore", "patchcore", {}),
        ("P", "pouta", {"preset": "small"}),
    ]
    flags = {"categories": [], "seeds": [0], "shots": [], "draws": 1, "draw": None, "held_out": 0.2, "looks": 0}
    flags |= {"protocol": "plain", "methods": None}
    assert plan_of(path, flags) == plan
    assert plan_of(None, {**flags, "methods": ["padim"], "seeds": [1, 2]}) == Plan((named("padim"),), seeds=(1, 2))
    for name, value in (("seeds", [1]), ("methods", ["padim"]), ("held_out", 0.0)):
        with pytest.raises(UsageError, match=f"leave out --{name.replace('_', '-')}"):
            plan_of(path, {**flags, name: value})
    path.write_text('methods = ["padim"]\nseed = 1')
    with pytest.raises(UsageError, match="unknown seed"):
        read(path)


def test_a_share_of_the_runs_is_told_by_two_numbers():
    assert shard_of("2/8") == (2, 8)
    for word in ("2", "a/b", "2/", "-1/3"):
        with pytest.raises(UsageError, match="give I/N"):
            shard_of(word)
    with pytest.raises(UsageError, match="I from 1 to N"):
        How(shard=(3, 2))


def test_cells_are_means_and_deviations_over_seeds_and_the_best_is_bold(facts: Facts):
    text = "\n".join(markdown(facts))
    mean, sd = statistics.mean([0.90, 0.91]), statistics.stdev([0.90, 0.91])
    assert f"| a/one | **{mean:.3f} ± {sd:.3f}** | 0.900 ± 0.000 | failed |" in text
    assert "| a/two | **0.925 ± 0.007** | 0.900 ± 0.000 | — |" in text  # no run of the slow one was planned there
    assert "| mean of 3 | **0.925** | 0.900 | — |" in text
    assert "- said below" in text


def test_means_leave_out_what_the_plan_says_and_what_no_method_can_tell(facts: Facts):
    assert facts.counted("i_auroc") == ["a/one", "a/two", "b/three"]
    assert facts.counted("p_ap") == ["a/one", "b/three"]
    assert facts.average("patchcore", "p_ap", None) == pytest.approx((0.5 + 0.7) / 2)
    assert facts.average("padim", "p_ap", None) is None  # b/three lacks it
    assert "Not in the means of P-AP: two." in "\n".join(markdown(facts))


def test_rates_of_verdicts_are_of_parts_and_say_where_the_threshold_came_from(facts: Facts):
    text = "\n".join(markdown(facts))
    # False alarms: 3 of 12 in either seed. Escapes: none of 12, then 3 of 12.
    expected = f"25.0% ± 0.0% | 12.5% ± {statistics.stdev([0, 0.25]):.1%} | 80.0% in the worst run"
    over = "3 categories, 12 good and 12 defective parts, 2 times"
    assert f"| patchcore | {expected} | {over} | good parts held out of fitting |" in text


def test_rates_are_pooled_only_over_seeds_that_have_all_categories(facts: Facts):
    """A seed that lacks a category would show another mixture of parts, not another seed."""
    lacking = next(job.key for row, job in facts.pairs if row.name == "patchcore" and job.seed == 1)
    fewer = Facts(facts.plan, facts.pairs, {k: r for k, r in facts.rows.items() if k != lacking}, facts.failed)
    line = next(line for line in "\n".join(markdown(fewer)).splitlines() if "defective parts" in line)
    assert line.startswith("| patchcore | 25.0% | 0.0% |")
    assert "12 defective parts, 1 times" in line


def test_a_figure_that_some_runs_lack_is_marked_and_never_best(facts: Facts):
    lacking = next(job.key for row, job in facts.pairs if row.name == "patchcore" and job.data == "b/three")
    rows = {k: {**r, "i_auroc": None} if k == lacking else r for k, r in facts.rows.items()}
    text = "\n".join(markdown(Facts(facts.plan, facts.pairs, rows, facts.failed)))
    assert "| b/three | 0.950 (1 of 2) | 0.900 ± 0.000 | — |" in text
    assert "(of the runs so far) | 0.900 | — |" in text


def test_figures_that_print_alike_are_alike():
    plan = Plan((named("patchcore"), named("padim"), named("simplenet")))
    values = {"patchcore": 0.9004999, "padim": 0.8995001, "simplenet": 0.8994}
    found = {(name, "a/one", 0): {"i_auroc": value} for name, value in values.items()}
    text = "\n".join(markdown(_facts(plan, found, {})))
    assert "| a/one | **0.900** | **0.900** | 0.899 |" in text


def test_latex_escapes_what_it_must(facts: Facts):
    text = "\n".join(latex(facts))
    assert "a/one & \\textbf{0.905 $\\pm$ 0.007} & 0.900 $\\pm$ 0.000 & failed \\\\" in text
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 2  # I-AUROC and P-AP
    assert "20\\% of the good parts" in text
    assert not re.search(r"(?<!\\)[%&_](?![^\n]*\\\\$)", text.replace("& ", ""))


def test_the_page_has_every_figure_and_asks_the_network_for_nothing(facts: Facts):
    from flawmap.report.comparison import page

    shown = comparison(facts)
    html = page(shown)
    assert [metric.key for metric in shown.metrics] == ["i_auroc", "p_ap"]
    assert "0.905 ± 0.007" in html
    assert "it broke_off &amp; 100 %" in html
    assert not re.search(r"(?:src|href)=\"(?!data:)", html)
    assert "default-src 'none'" in html
    # Points of a chart stand where their figures say: the faster one is left of the slower, the better one higher.
    assert {chart.key for chart in shown.charts} == {"i_auroc", "p_ap"}
    auroc = next(chart for chart in shown.charts if chart.key == "i_auroc")
    assert [(p.name, p.x) for p in auroc.points] == [("patchcore", 20.0), ("padim", 20.0)]
    assert auroc.points[0].y == pytest.approx(0.925)


def test_runs_that_break_are_rows_with_their_reason_and_the_rest_goes_on(world: Path, tmp_path: Path):
    """One run ends well, one raises, and nothing is repeated."""
    root = tmp_path / "data"
    shutil.copytree(world, root / "parts" / "square")
    bad = Row("bad", "padim", {"size": 64, "weights": str(tmp_path / "none.safetensors")})
    plan = Plan((Row("good", "patchcore", QUICK), bad), held_out=0.0)
    out = tmp_path / "out"
    found = benchmark(plan, root, out)
    assert (found["runs"], found["done"], found["failed"]) == (2, 1, 1)
    rows = {row["name"]: row for row in csv.DictReader((out / "benchmark.csv").read_text().splitlines())}
    assert "weights cannot be read" in rows["bad"]["failed"]
    assert float(rows["good"]["i_auroc"]) > 0.9
    assert rows["good"]["threshold_source"] == "none"
    assert int(rows["good"]["peak_mb"]) > 100

    begun = (out / "table.jsonl").read_text()
    again = benchmark(plan, root, out)
    assert (again["done"], again["failed"]) == (1, 1)
    assert (out / "table.jsonl").read_text() == begun  # what failed is not run again unless it is asked for
    with pytest.raises(DataError, match="none is called 'round'"):
        benchmark(Plan(plan.methods, categories=("round",)), root, out)

    # Neither other masks nor other pictures under the same name go into the same table.
    mask = next((root / "parts" / "square" / "ground_truth" / "square").glob("*.png"))
    before = mask.read_bytes()
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(mask)
    with pytest.raises(DataError, match="other labels or masks"):
        benchmark(plan, root, out, How(train=False))
    mask.write_bytes(before)
    with pytest.raises(DataError, match="no category is called 'squere'"):
        benchmark(Plan(plan.methods, leave_out={"p_ap": ("squere",)}), root, out, How(train=False))
    (root / "parts" / "square" / "train" / "good" / "000.png").unlink()
    with pytest.raises(DataError, match="other pictures"):
        benchmark(plan, root, out, How(train=False))


def test_a_process_that_is_killed_becomes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The child is a real process that is killed by the signal that Linux uses when memory runs out."""
    table, job = Table(tmp_path), Job("patchcore", "square", QUICK)
    real = subprocess.Popen

    def dies(words: list[str], **more: object) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], **more)  # type: ignore[call-overload]

    monkeypatch.setattr(isolate.subprocess, "Popen", dies)
    isolate.fill([job], table, tmp_path, 1, (), "cpu")
    assert "signal 9" in table.failed()[job.key]["failed"]
    assert table.rows() == {}

    # Another command on the same folder does not do it again; asked again, it gets its new reason.
    before = table.failures()
    table.fail(job, "by another command")
    assert isolate._over(job, table, before)
    isolate.fill([job], table, tmp_path, 1, (), "cpu")
    assert (table.failures()[job.key], "signal 9" in table.failed()[job.key]["failed"]) == (3, True)


def test_a_run_in_other_hands_is_waited_for(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch):
    root, job = tmp_path / "data", Job("patchcore", "parts/square", QUICK)
    shutil.copytree(world, root / "parts" / "square")
    table = Table(tmp_path / "out")
    words = [str(table.root), "", str(root), "cpu", json.dumps(vars(job))]
    with claimed(table.root / "claims" / job.key) as mine:
        assert mine
        # The lock is this process's own: a second open file of the same process is refused as another's would be.
        assert isolate.main(words) == isolate.ELSEWHERE
    assert isolate.main(words) == 0
    assert job.key in table.rows()


@pytest.mark.slow
def test_a_benchmark_that_is_killed_goes_on_where_it_was(world: Path, tmp_path: Path):
    """The whole process group dies by kill -9 in the middle; the second command does the rest, and nothing twice."""
    root, out = tmp_path / "data", tmp_path / "out"
    for name in ("square", "other"):
        shutil.copytree(world, root / "parts" / name)
    words = [sys.executable, "-m", "flawmap.cli", "benchmark", str(root), "--methods", "patchcore", "padim"]
    words += ["--out", str(out), "--protocol", "plain", "--seeds", "0", "1", "--held-out", "0"]
    process = subprocess.Popen(words, start_new_session=True)
    while not (out / "table.jsonl").exists() or len((out / "table.jsonl").read_text().splitlines()) < 3:
        time.sleep(0.2)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = (out / "table.jsonl").read_text()
    assert 3 <= len(before.splitlines()) < 8
    subprocess.run(words, check=True)
    after = [json.loads(line) for line in (out / "table.jsonl").read_text().splitlines()]
    assert (out / "table.jsonl").read_text().startswith(before)
    assert len({row["key"] for row in after}) == len(after) == 8


@pytest.mark.slow
def test_a_ray_cluster_gives_the_rows_of_this_machine(world: Path, tmp_path: Path):
    """A local cluster of two cores; a run that fails is a row there too."""
    root = tmp_path / "data"
    shutil.copytree(world, root / "parts" / "square")
    bad = Row("bad", "padim", {"size": 64, "weights": str(tmp_path / "none.safetensors")})
    plan = Plan((Row("good", "patchcore", QUICK), bad), seeds=(0, 1), held_out=0.0)
    found = benchmark(plan, root, tmp_path / "ray", How(engine="ray"))
    assert (found["done"], found["failed"]) == (2, 2)
    benchmark(plan, root, tmp_path / "here")
    there, here = (Table(tmp_path / name) for name in ("ray", "here"))
    for key, row in here.rows().items():
        assert there.rows()[key]["i_auroc"] == row["i_auroc"]
        assert there.rows()[key]["p_ap"] == pytest.approx(row["p_ap"], abs=1e-6)
    assert {row["failed"] for row in there.failed().values()} == {row["failed"] for row in here.failed().values()}
    job = plan.jobs(["parts/square"])[0][1]
    assert [s.name for s in there.scores(job) or []] == [s.name for s in here.scores(job) or []]


def test_weights_of_a_file_are_a_run_of_their_own_and_end(world: Path, tmp_path: Path):
    """A row counts for the file that it was made with, and for no other, nor for the embedded weights."""
    from safetensors.torch import save_file

    from flawmap.features.backbone import EMBEDDED, Backbone

    root = tmp_path / "data"
    shutil.copytree(world, root / "parts" / "square")
    state = Backbone(EMBEDDED, (1, 2, 3), 64).state_dict()
    file = tmp_path / "mine.safetensors"
    save_file({name.removeprefix("net."): 1.01 * value.contiguous() for name, value in state.items()}, file)
    job = Job("patchcore", "parts/square", {**QUICK, "weights": str(file)})
    table = Table(tmp_path / "out")
    words = [str(table.root), "", str(root), "cpu", json.dumps(vars(job))]
    assert isolate.main(words) == 0
    assert table.done(job)
    assert not table.done(Job("patchcore", "parts/square", QUICK))


def test_what_a_stopped_run_left_counts_for_the_same_pictures_only(tmp_path: Path, world: Path):
    from flawmap.images.folder import find
    from flawmap.run.table import _begin

    job, samples = Job("patchcore", "square", QUICK), find(world)
    out = tmp_path / "runs"
    _begin(out, job, samples)
    (out / "looks.json").write_text("{}")
    _begin(out, job, samples)
    assert (out / "looks.json").exists()
    _begin(out, job, samples[1:])
    assert not (out / "looks.json").exists()


def test_a_category_without_test_pictures_is_no_result(tmp_path: Path, world: Path):
    from flawmap.images.folder import find
    from flawmap.run.table import run

    samples = [s for s in find(world) if s.split == "train"]
    with pytest.raises(DataError, match="no test pictures"):
        run(Job("patchcore", "square", QUICK), samples, tmp_path, "cpu")
