"""Maps of the space against sklearn and umap, cosines against loops, and every picture as a PNG that can be read."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.image import imread
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from made_runs import made
from unitsphere.cli import report
from unitsphere.errors import UsageError
from unitsphere.evaluation.geometry import Geometry, cosines, hardest
from unitsphere.evaluation.map import Map, clustered
from unitsphere.evaluation.score import score
from unitsphere.report import html, pictures, run_page, sweep_page
from unitsphere.runs import Run
from unitsphere.types import RetrievalSet

DIM = 16
LABELS = ["民法", "刑法", "行政法", "$x$ & <b>", "劳动争议"]


def embed(texts, role, max_length=None, prompt=None):
    """A vector near that of its first word, which is its group."""
    out = []
    for text in texts:
        centre = np.random.default_rng(len(text.split()[0])).normal(size=DIM)
        out.append(centre + 0.1 * np.random.default_rng(abs(hash(text)) % 2**32).normal(size=DIM))
    return np.array(out, dtype=np.float32)


def own(n=24):
    corpus = {f"d{i}": f"{'x' * (i % 3 + 1)} document {i}" for i in range(n)}
    queries = {f"q{i}": f"{'x' * (i % 3 + 1)} query {i}" for i in range(n)}
    return RetrievalSet("docs", corpus, queries, {f"q{i}": {f"d{i}": 1, f"d{(i + 1) % n}": 0} for i in range(n)})


@pytest.fixture
def labelled(tmp_path):
    rows = [{"text": f"{'x' * (i % 5 + 1)} text {i}", "label": LABELS[i % 5]} for i in range(60)]
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow), "pca"])
def test_a_map_keeps_groups_together(labelled, method):
    if method == "umap":
        pytest.importorskip("umap", reason="the extra `umap`")
    table = Map("test", path=str(labelled), method=method)(embed).items["map"]
    assert len(table) == 60 and set(table["group"]) == set(LABELS) and table.notna().all().all()
    points, groups = table[["x", "y"]].to_numpy(), table["group"].to_numpy()
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(60)
    assert (groups[distances.argmin(axis=1)] == groups).mean() > 0.95
    again = Map("test", path=str(labelled), method=method)(embed).items["map"]
    pd.testing.assert_frame_equal(table, again)


def test_pca_is_sklearns_on_unit_vectors():
    table = Map("test", own(), method="pca", colour="role")(embed).items["map"]
    assert table["group"].tolist() == ["query"] * 24 + ["document"] * 24 == table["role"].tolist()
    z = embed(table["text"], "query").astype(np.float64)
    expected = PCA(2).fit_transform(z / np.linalg.norm(z, axis=1, keepdims=True))
    np.testing.assert_allclose(np.abs(table[["x", "y"]]), np.abs(expected), atol=1e-5)


def test_clusters_are_found_and_named_by_the_text_in_their_middle():
    texts = pd.Series([f"{'x' * (i % 3 + 1)} text {i}" for i in range(30)])
    z = embed(texts, "document")
    names = clustered(z, texts, 3)
    assert adjusted_rand_score([len(t.split()[0]) for t in texts], names) == 1.0
    for name in set(names):
        members = z[[n == name for n in names]]
        nearest = np.linalg.norm(members - members.mean(axis=0), axis=1).argmin()
        assert texts[[n == name for n in names]].iloc[nearest] == name
    alike = pd.Series(["y" * 50 + f"  {i}" for i in range(30)])
    assert sorted(set(clustered(z, alike, 3))) == ["y" * 40, "y" * 40 + " (2)", "y" * 40 + " (3)"]
    assert set(Map("test", own(), clusters=3)(embed).items["map"].groupby("group").size()) == {16}


def test_a_map_is_no_score_and_does_nothing_on_dev(labelled):
    assert Map("dev", own())(embed).items == {} and Map("test", own(), samples=10)(embed).metrics == {}
    assert len(Map("test", own(), samples=10)(embed).items["map"]) == 10
    assert len(Map("test", path=str(labelled), samples=7)(embed).items["map"]) == 7
    both = score([Map("test", own()), Geometry("test", own())], embed)
    assert both.primary == "geometry/effective_rank" and Map("test", own()).held() == {}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"method": "som"}, "method=som: tsne, umap, pca"),
        ({"colour": "label"}, "colour=label: these texts have role, cluster"),
        ({"path": "nowhere"}, "no BEIR data set"),
        ({"own": own(2)}, "4 texts; a map needs 5"),
        ({"own": None}, "the data has no test queries"),
    ],
)
def test_a_wrong_map_is_named(options, said):
    with pytest.raises(UsageError, match=said):
        Map("test", **{"own": own()} | options)


def test_a_malformed_file_and_a_missing_package_are_named(tmp_path, monkeypatch):
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b"}\n')
    with pytest.raises(UsageError, match="row 2: column 'label' is missing or empty"):
        Map("test", path=str(tmp_path / "bad.jsonl"))
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UsageError, match=r"unitsphere\[umap\]"):
        Map("test", own(), method="umap")


def test_the_hardest_other_is_the_nearest_that_is_not_relevant():
    rng = np.random.default_rng(0)
    q, d = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 9, 4)))
    grades = [{f"d{i}": 1, f"d{i // 2}": 2, f"d{8 - i}": 0} for i in range(9)]
    found = hardest(q, d, grades, [f"d{i}" for i in range(9)])
    expected = [max(float(q[i] @ d[j]) for j in range(9) if j not in (i, i // 2)) for i in range(9)]
    np.testing.assert_allclose(found["cosine"], expected)
    assert set(found["kind"]) == {"hardest other"} and len(hardest(q[:1], d[:1], grades[:1], ["d0"])) == 0
    shared = [{f"d{i}": 1, f"d{(i + 1) % 9}": i % 2} for i in range(9)]  # the next one's document is an odd one's, too
    seen = cosines(q, d, shared, [f"d{i}" for i in range(9)])
    others = [float(q[i] @ d[(i + 1) % 9]) for i in range(0, 9, 2)]
    np.testing.assert_allclose(seen["cosine"][seen["kind"] == "other"], others)
    np.testing.assert_allclose(seen["cosine"][seen["kind"] == "positive"], (q * d).sum(axis=1))
    table = Geometry("test", own())(embed).items["geometry-cosines"]
    assert table["kind"].value_counts().to_dict() == {"positive": 24, "other": 24, "hardest other": 24}


@pytest.fixture
def run(tmp_path, labelled):
    """A run folder with everything that there are pictures of."""
    looks = [
        {
            "step": s,
            "metrics": {"docs/mrr@10": 0.5, "geometry/alignment": 0.4 - s / 100, "geometry/uniformity": -2 - s / 10},
        }
        for s in (0, 5, 10)
    ]
    chosen = {"selected": {"metric": "dev/docs/mrr@10", "value": 0.5}, "best_step": 5, "steps": 10}
    folder = made(tmp_path / "runs", looks=looks, **chosen)
    (folder / "metrics.csv").write_text("step,metric,value\n0,loss,1.0\n5,loss,0.5\n10,loss,nan\n0,alarm,nan\n")
    (folder / "overrides.yaml").write_text("[]\n")
    for stage in ("before", "test"):
        found = [Geometry("test", own())(embed), Map("test", path=str(labelled))(embed)]
        Run(folder).add_items(stage, {name: t for result in found for name, t in result.items.items()})
    return Run(folder)


def test_every_picture_is_a_png_and_on_the_page(run):
    text = report.of_run(run).read_text(encoding="utf-8")
    files = sorted(f.name for f in (run.folder / "pictures").iterdir())
    both = [f"{what}-{stage}.png" for what in ("cosines-pairs", "map") for stage in ("after", "before")]
    assert files == sorted([*both, "curves.png", "path.png"])
    for file in (run.folder / "pictures").iterdir():
        pixels = imread(file)
        assert pixels.shape[0] > 300 and pixels.shape[1] > 700 and pixels[..., :3].std() > 0.01
    for heading in ("Training", "Alignment and uniformity", "Cosines", "Map of the space"):
        assert f"<h2>{heading}" in text
    assert "民法 (12)" in text and "$x$ &amp; &lt;b&gt; (12)" in text and text == run_page.page(run)


def test_what_is_not_there_is_not_drawn(tmp_path):
    folder = made(tmp_path)
    for file in (folder / "scores" / "test").glob("sts-*"):
        file.unlink()
    assert pictures.pictures(Run(folder)) == {} and pictures.write(Run(folder)) == []
    assert not (folder / "pictures").exists()


def texts(axis):
    return [t.get_text() for t in axis.texts]


def test_the_path_has_its_ends_and_the_chosen_step(run):
    [axis] = pictures.path(run.info).axes
    assert texts(axis) == ["0", "5", "10"]
    line = axis.lines[0].get_xydata()
    np.testing.assert_allclose(line, [[-2, 0.4], [-2.5, 0.35], [-3, 0.3]])
    np.testing.assert_allclose(axis.collections[-1].get_offsets(), [[-2.5, 0.35]])
    close = [{"step": s, "metrics": dict.fromkeys(pictures.PATH, s / 1e4 + s // 9)} for s in range(10)]
    assert texts(pictures.path({"looks": close}).axes[0]) == ["0", "9"]  # labels do not cover each other
    assert pictures.path({"looks": close[:1]}) is None and pictures.path({}) is None


def test_histograms_say_means_and_the_area_under_the_curve():
    rng = np.random.default_rng(0)
    kinds = {"positive": pd.Series(rng.normal(0.6, 0.1, 50)), "other": pd.Series(rng.normal(0.4, 0.1, 70))}
    [axis] = pictures.histogram("pairs", kinds).axes
    auc = roc_auc_score([1] * 50 + [0] * 70, np.concatenate(list(kinds.values())))
    assert axis.get_title() == f"pairs\nAUC, positive against other {auc:.3f}"
    assert [t.get_text() for t in axis.get_legend().get_texts()] == [
        f"{k}, mean {v.mean():.2f}" for k, v in kinds.items()
    ]


def test_a_name_that_the_fonts_lack_is_a_number(run, monkeypatch):
    points = pd.DataFrame({"group": ["民法", "民法", "café"], "role": "document", "x": [0.0, 1, 2], "y": [0.0, 1, 0]})

    def legend():
        return [t.get_text() for t in pictures.scatter(points, "").legends[0].get_texts()]

    monkeypatch.setattr(pictures, "legible", lambda text: text.isascii() or "é" in text)
    assert legend() == ["1 (2)", "café (1)"]
    monkeypatch.setattr(pictures, "legible", lambda text: True)
    assert legend() == ["民法 (2)", "café (1)"]


def test_legible_is_what_the_fonts_have(monkeypatch):
    monkeypatch.setattr(html, "FONTS", ["DejaVu Sans"])
    html._characters.cache_clear()
    assert html.legible("naïve text\n") and not html.legible("民法")
    html._characters.cache_clear()
    monkeypatch.undo()
    wide = {*html.WIDE} & {*font_manager.get_font_names()}
    assert html.legible("民法") == bool(wide)


def test_more_groups_than_colours_are_others():
    points = pd.DataFrame({"group": [str(i) for i in range(14) for _ in range(20 - i)]})
    named, colours = pictures.grouped(points)
    assert list(colours) == [*map(str, range(10)), "others"] and len(set(colours.values())) == 11
    assert (named["group"] == "others").sum() == sum(20 - i for i in range(10, 14))


def test_a_sweep_shows_the_paths_of_its_runs(tmp_path):
    for seed in (1, 2, 3):
        looks = [{"step": s, "metrics": dict.fromkeys(pictures.PATH, s * seed)} for s in (0, 5)]
        made(tmp_path, seed=seed, looks=looks)
    made(tmp_path, loss="simcse")
    text = sweep_page.page(tmp_path, "done")
    assert "<h2>Alignment and uniformity on dev" in text and ">3 runs<" in text


def test_the_dev_metric_that_chooses_has_a_panel(run):
    figure = pictures.curves(run.folder / "metrics.csv", run.info)
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert titles == ["dev/docs/mrr@10", "loss"]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0, 5, 10]
    assert [a.get_title() for a in pictures.curves(run.folder / "metrics.csv", {}).axes if a.get_visible()] == ["loss"]


def test_an_evaluation_has_chosen_nothing(run):
    def titles():
        return {axis.get_title() for figure in pictures.pictures(run).values() for axis in figure.axes}

    assert any("chosen checkpoint" in title for title in titles())
    info = json.loads((run.folder / "run.json").read_text())
    del info["choices"]
    (run.folder / "run.json").write_text(json.dumps(info))
    assert not any("chosen checkpoint" in title for title in titles())
    assert any(title.startswith("pairs, on test") for title in titles())


def test_a_cosine_that_rounding_brings_over_one_is_drawn():
    over = pd.Series([1.0000001, 0.5], dtype=np.float64)
    drawn = pictures.histogram("cosines", {"positive": over, "other": pd.Series([0.1, -1.0000001])})
    heights = [patch.get_height() for patch in drawn.axes[0].patches]
    width = drawn.axes[0].patches[0].get_width()
    first, second = np.array(heights).reshape(2, -1) * width * 2
    assert first.sum() == pytest.approx(2) and second.sum() == pytest.approx(2) and first[-1] == pytest.approx(1)


def test_labelled_texts_are_embedded_as_the_probes_do(labelled):
    seen = set()

    def recorded(texts, role, max_length=None, prompt=None):
        seen.add((role, max_length))
        return embed(texts, role)

    Map("test", path=str(labelled), method="pca", max_length=7)(recorded)
    assert seen == {("query", 7)}
