"""Drawing runs, and telling of them on a page."""

import base64
import math
import re
from pathlib import Path

import numpy as np
import pytest

from palaestra.runs import Run, RunError, learning_curve
from palaestra.runs.plots import interval, thousands
from palaestra.runs.queries import interquartile_mean
from palaestra.runs.report import report


def make(folder: Path, expression: str = "td3", env: str = "Pendulum-v1", points: int = 5) -> Run:
    run = Run.create(folder, {"expression": expression, "env": env, "seeds": [0, 1], "steps": points})
    for seed in (0, 1):
        evaluate(run, seed, {step * 1000: [step, step + seed, 2 * step] for step in range(points)})
    return run


def evaluate(run: Run, seed: int, values: dict[int, list[float]]) -> None:
    for step, some in values.items():
        clock = {"seed": seed, "env_steps": step, "updates": step // 2, "seconds": step / 2000}
        run.log({"kind": "train", **clock, "loss/critic": 1 / (1 + step)})
        run.log({"kind": "evaluation", **clock, "scores": {"episode_return": some}})


def test_thousands():
    assert [thousands(x) for x in (0, 250, 10_000, 1_500_000, -1250, 0.1)] == [
        "0",
        "250",
        "10k",
        "1.5M",
        "\N{MINUS SIGN}1.25k",
        "0.1",
    ]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_learning_curve_is_drawn(tmp_path, suffix):
    runs = [make(tmp_path / "a"), make(tmp_path / "b", "td3+snapshotrl")]
    path = learning_curve(runs, tmp_path / "plots" / f"curve.{suffix}")
    assert path.stat().st_size > 5_000
    if suffix == "png":
        from matplotlib.image import imread

        image = imread(path)
        assert image.shape[:2] == (840, 1400)
        assert image[..., :3].std() > 0.05, "blank"
        assert image[0, 0].tolist() == [1, 1, 1, 1]


def test_other_keys_and_clocks_are_drawn(tmp_path):
    run = make(tmp_path / "a")
    learning_curve([run], tmp_path / "loss.png", key="loss/critic")
    offline = Run.create(tmp_path / "offline", {"expression": "iql", "dataset": "mine"})
    offline.log({"kind": "train", "seed": 0, "env_steps": 0, "updates": 10, "loss/value": math.nan})
    offline.log({"kind": "train", "seed": 0, "env_steps": 0, "updates": 20, "loss/value": 1.0})
    learning_curve([offline, run], tmp_path / "offline.png", key="loss/value")


def test_nothing_to_draw_is_said(tmp_path):
    run = make(tmp_path / "a")
    with pytest.raises(RunError, match=r"there is no 'reward' to draw; the metrics have episode_return, loss/critic$"):
        learning_curve([run], tmp_path / "x.png", key="reward")
    with pytest.raises(RunError, match="there are no runs to draw"):
        learning_curve([], tmp_path / "x.png")
    with pytest.raises(RunError, match=r"x.bmp: '.bmp' is no format of a figure; use .png, .svg or .pdf"):
        learning_curve([run], tmp_path / "x.bmp")
    with pytest.raises(RunError, match="let it train until its first evaluation"):
        learning_curve([make(tmp_path / "b", points=0)], tmp_path / "x.png")
    assert not list(tmp_path.glob("x.*"))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    from matplotlib.figure import Figure

    saved: list[Figure] = []
    save = Figure.savefig

    def keep(figure, *arguments, **settings):
        saved.append(figure)
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def curves(axes) -> dict[str, tuple[list[float], list[float]]]:
    """The finite points of the lines of a panel, by style."""
    found = {}
    for line in axes.get_lines():
        points = [(x, y) for x, y in zip(*line.get_data(), strict=True) if not math.isnan(y)]
        found[line.get_linestyle()] = points
    return found


def test_a_panel_an_environment_and_a_colour_an_expression(tmp_path, figures):
    runs = [make(tmp_path / f"{e}{a}", a, e) for e in ("A-v0", "B-v0", "C-v0", "D-v0") for a in ("sac", "td3+n-step")]
    learning_curve(runs[1:], tmp_path / "x.svg")
    panels = figures[0].axes
    assert [axes.get_title() for axes in panels] == ["A-v0", "B-v0", "C-v0", "D-v0"]
    colours = [[line.get_color() for line in axes.get_lines()] for axes in panels]
    assert colours[1] == colours[2] == colours[3] != colours[0]
    assert colours[0] == [colours[1][1]], "td3+n-step is alone in the first panel, and has its own colour all the same"
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["td3+n-step (2 seeds)", "sac (2 seeds)"]
    shown = [(bool(axes.get_xlabel()), bool(axes.get_ylabel())) for axes in panels]
    assert shown == [(False, True), (False, False), (True, True), (True, False)]


def test_seeds_are_interpolated_and_never_held(tmp_path, figures):
    run = Run.create(tmp_path / "a", {"expression": "td3", "env": "A-v0"})
    evaluate(run, 0, {10: [0.0, 10.0], 20: [30.0, 20.0]})
    evaluate(run, 1, {10: [0.0, 10.0], 15: [100.0, 100.0], 30: [0.0, 0.0]})
    learning_curve([run], tmp_path / "x.png")
    found = curves(figures[0].axes[0])
    # At 15 seed 0 has 10 and 20 (its lower and its upper episode, half way), pooled with 100, 100: less one on either
    # side, (20 + 100) / 2. At 20 seed 1 has 100 * 2/3 twice, with 20, 30: (30 + 66.7) / 2. At 30 it is alone.
    whole = [(10, 5.0), (15, 60.0), (20, (30 + 200 / 3) / 2)]
    assert np.array(found["-"]) == pytest.approx(np.array(whole))
    assert np.array(found[":"]) == pytest.approx(np.array([*whole, (30, 0.0)])), "dotted where not all seeds are"


def test_a_seed_that_diverged_leaves_a_gap(tmp_path, figures):
    run = Run.create(tmp_path / "a", {"expression": "td3", "env": "A-v0"})
    evaluate(run, 0, {10: [1.0], 20: [math.nan], 30: [1.0]})
    evaluate(run, 1, {10: [3.0], 20: [3.0], 30: [3.0]})
    learning_curve([run], tmp_path / "x.png")
    assert curves(figures[0].axes[0])["-"] == [(10, 2.0), (30, 2.0)]


def test_the_interval_is_what_resampling_by_hand_gives():
    rng = np.random.default_rng(1)
    values, seed = rng.normal(size=30), np.repeat(np.arange(6), 5)
    means = [
        interquartile_mean(np.concatenate([np.tile(values[seed == s], times) for s, times in enumerate(drawn)]))
        for drawn in np.random.default_rng(2).multinomial(6, np.full(6, 1 / 6), size=200)
    ]
    expected = np.quantile(means, [0.05, 0.95])
    assert interval(values, seed, np.random.default_rng(2), level=0.9, resamples=200) == pytest.approx(tuple(expected))


def test_the_interval_at_its_limits():
    rng = np.random.default_rng(0)
    same, four = np.ones(8), np.arange(8) // 2
    assert interval(same, four, rng) == (1.0, 1.0)
    assert np.isnan(interval(same, np.zeros(8), rng)).all(), "one seed"
    assert np.isnan(interval(np.array([1.0, np.nan, 3.0, 4.0]), np.arange(4), rng)).all()
    assert np.isfinite(interval(np.array([1.0, 2.0, 3.0, np.inf] * 9), np.repeat(np.arange(9), 4), rng)).all()
    low, high = interval(np.array([0.0, 1.0]), np.arange(2), rng)
    assert (low, high) == (0.0, 1.0)  # each of both alone is a quarter of the resamples


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Ten seeds of ten normal values: 91% of 1,000 simulations, as its docstring says; here 300, two errors apart."""
    rng = np.random.default_rng(0)
    seed = np.repeat(np.arange(10), 10)
    held = 0
    for _ in range(300):
        values = (rng.normal(size=(10, 1)) + rng.normal(size=(10, 10))).ravel()
        low, high = interval(values, seed, rng, resamples=300)
        held += low <= 0.0 <= high
    assert held / 300 == pytest.approx(0.914, abs=2 * math.sqrt(0.914 * 0.086 / 300))


# ---------------------------------------------------------------------------------------------------------- reports


def told(runs: list[Run], path: Path) -> str:
    return report(runs, path).read_text(encoding="utf-8")


def test_a_report_tells_every_raw_score_and_what_differs(tmp_path):
    runs = [make(tmp_path / "a", "sac"), make(tmp_path / "b", "td3", points=3)]
    runs[1].update(
        status="failed", problem="it broke", settings=[{"slug": "td3", "lr": 0.1}, {"slug": "n-step", "n": 3}]
    )
    text = told(runs, tmp_path / "new" / "r.html")
    assert "<title>sac, td3 on Pendulum-v1</title>" in text
    for raw in ("4  4  8", "4  5  8", "2  2  4", "2  3  4"):
        assert f'<td class="raw">{raw}</td>' in text
    settings = text[text.index("Settings that differ") : text.index("Versions and machine")]
    rows = re.findall(r"<tr><td><code>(.*?)</code></td><td>(.*?)</td><td class=\"quiet\">(.*?)</td>", settings)
    assert rows == [
        ("expression", "sac", "a"), ("expression", "td3", "b"), ("steps", "5", "a"), ("steps", "3", "b"),
        ("lr", "0.1", "b"), ("n-step.n", "3", "b"),
    ]  # fmt: skip
    assert "b failed: it broke" in text
    (picture,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert base64.b64decode(picture).startswith(b"<?xml")
    versions = text[text.index("Versions and machine") :]
    assert (
        f'<code>torch</code></td><td>{runs[0].about["provenance"]["torch"]}</td><td class="quiet">all</td>' in versions
    )


def test_a_report_needs_nothing_but_itself_and_runs_nothing(tmp_path):
    run = make(tmp_path / "a", "<script>alert(1)</script>", 'A"><img src=x onerror=alert(1)>-v0')
    text = told([run], tmp_path / "r.html")
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;" in text
    assert [link[:6] for link in re.findall(r"<[^>]*\s(?:src|href)=([^ >]*)", text)] == ['"data:']
    assert """content="default-src 'none';""" in text


def test_reports_that_cannot_be_written(tmp_path):
    with pytest.raises(RunError, match="there are no runs to report"):
        report([], tmp_path / "r.html")
    run = make(tmp_path / "a")
    with pytest.raises(RunError, match=r"'.pdf' is no format of a page; use .html"):
        report([run], tmp_path / "r.pdf")
    empty = Run.create(tmp_path / "empty", {"expression": "td3", "env": "A-v0"})
    text = told([empty], tmp_path / "r.html")
    assert "there is no &#39;episode_return&#39; to draw" in text
    assert "No run was evaluated yet." in text
