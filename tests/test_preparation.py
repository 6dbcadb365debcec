"""Steps that clean, filter and augment training rows, on cases made by hand."""

import doctest
import json
import random

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from conftest import composed
from unitsphere import paths
from unitsphere.build import build
from unitsphere.cli.train import start
from unitsphere.data.preparation.crop import Crop
from unitsphere.data.preparation.duplicates import Duplicates
from unitsphere.data.preparation.html import Html
from unitsphere.data.preparation.language import Language
from unitsphere.data.preparation.length import Length
from unitsphere.data.preparation.pseudo_queries import PseudoQueries, summary
from unitsphere.data.preparation.shuffle import Shuffle
from unitsphere.data.preparation.span_deletion import SpanDeletion
from unitsphere.data.preparation.step import TextStep, prepare, told
from unitsphere.data.preparation.synonyms import Synonyms
from unitsphere.data.preparation.unicode import Unicode
from unitsphere.data.preparation.whitespace import Whitespace
from unitsphere.data.preparation.word_deletion import WordDeletion
from unitsphere.data.rows import Rows
from unitsphere.errors import UsageError
from unitsphere.formats import words as words_module
from unitsphere.formats.words import joined, words
from unitsphere.similar import Exact, Near, normalised
from unitsphere.training.run import train

TEXT = "one two three four five six seven eight nine ten"
ZH = "请问劳动合同到期以后公司不续签怎么办？"


class Upper(TextStep):
    """Drops what begins with x."""

    def text(self, text):
        return None if text.startswith("x") else text.upper()


def draw(seed=0):
    return np.random.default_rng(seed)


def one(step, rows, seed=1):
    """What a step makes, with its counts."""
    made, report = prepare(rows, {"step": step}, seed)
    return made, report[0]


def test_a_text_step_drops_rows_by_anchor_and_positive_and_negatives_alone():
    rows = Rows(
        anchor=["a", "xa", "c", "d", "E"],
        positive=["p", "p", "xp", "q", "E"],
        negative=[["n", "xn"], ["n"], ["n"], ["xn", "xm"], []],
        label=["1", "2", "3", "4", "5"],
    )
    made, report = one(Upper(), rows)
    assert made == Rows(["A", "D", "E"], ["P", "Q", "E"], [["N"], [], []], ["1", "4", "5"])
    assert report == {"step": "step", "rows": 5, "changed": 2, "dropped": 2, "added": 0, "left": 3}
    assert told(report) == "preparation.step: 5 rows read, 2 changed, 2 dropped, 0 added, 3 left"


def test_steps_are_applied_in_the_order_given_and_none_left_is_said():
    rows = Rows(["  Xa  b ", "c"])
    both = {"whitespace": Whitespace(), "length": Length(max_characters=4)}
    assert prepare(rows, both, 1)[0].anchor == ["Xa b", "c"]
    assert prepare(rows, dict(reversed(both.items())), 1)[0].anchor == ["c"]
    with pytest.raises(UsageError, match=r"preparation.length leaves none of 2 rows"):
        prepare(rows, {"length": Length(min_words=9)}, 1)
    assert prepare(rows, {}, 1) == (rows, [])


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        (Unicode(), "e\u0301 ﬁ Ａ", "é ﬁ Ａ"),
        (Unicode("NFKC"), "e\u0301 ﬁ Ａ ２０２４年", "é fi A 2024年"),
        (Unicode(fix=True), "schÃ¶n â€œgutâ€\x9d &amp; mehr", 'schön "gut" & mehr'),
        (Unicode(), "schÃ¶n &amp;", "schÃ¶n &amp;"),
        (Whitespace(), "\ufeff a\u00a0 b\t\n\u3000中\u200b文 ", "a b 中 文"),
        (Whitespace(), " \u200b\n", None),
        (Length(min_words=3), "a b", None),
        (Length(min_words=3), "劳动法", "劳动法"),
        (Length(max_words=3), "劳动合同", None),
        (Length(min_characters=2, max_characters=3), "abc", "abc"),
        (Length(min_characters=2, max_characters=3), "abcd", None),
        (Html(), "a < b and List<int> &copy; 2 &lt; 3", "a < b and List<int> © 2 < 3"),
        (Html(), "if (a<b && c>d) x<![y]z", "if (a<b && c>d) x<![y]z"),
        (Html(), "<p>One <b>bold</b>er line<br>two&nbsp;三</p><script>x < y</script><!-- no -->", "One bolder line two\xa0三"),
        (Html(), "<nav>Home</nav><h1>标题</h1><footer>© us</footer>", "标题"),
        (Html(boilerplate=False), "<nav>Home</nav><h1>标题</h1>", "Home  标题"),
        (Html(), "plain text, as it was", "plain text, as it was"),
        (Html(), "<script>only()</script>", None),
        (Html(), "How do I style a <select> element in CSS?", "How do I style a <select> element in CSS?"),
        (Html(), "<nav>Home<p>Real article text", "<nav>Home Real article text"),
        (Html(), "<form>a <nav>b</nav> c", "<form>a   c"),
        (Html(), "a <nav>b <form>c</nav>d", "a  d"),
        (Html(), "<style>b</style> What does <style> do, and <script> &amp; <p>?", "What does <style> do, and <script> &  ?"),
        (Language(["en"]), "The contract ends when both parties agree.", "The contract ends when both parties agree."),
        (Language(["en"]), "Der Vertrag endet, wenn beide Seiten zustimmen.", None),
        (Language(["en", "zh"]), "劳动合同期满，用人单位不再续签的，应当支付经济补偿。", "劳动合同期满，用人单位不再续签的，应当支付经济补偿。"),
        (Language(["en"]), "kurzer Text", "kurzer Text"),
    ],
)  # fmt: skip
def test_one_text(step, before, after):
    assert (step.text(before) or None) == after


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Unicode("NFD"), "NFC or NFKC"),
        (lambda: Length(), "has no bound"),
        (lambda: Length(min_words=3, max_words=2), "min_words=3 is above max_words=2"),
        (lambda: Language(["xx"]), r"\['xx'\]: codes out of"),
        (lambda: Language([]), "codes out of"),
        (lambda: Crop(rate=1.5), "Crop: rate=1.5"),
        (lambda: Crop(into="anchor"), "into=anchor"),
        (lambda: Synonyms(None), "synonyms.path is not set"),
        (lambda: Near(jaccard=0), "jaccard=0"),
        (lambda: PseudoQueries("nothing"), "title, summary, crop, module:function"),
        (lambda: PseudoQueries("no.such:thing"), "No module named 'no'"),
        (lambda: PseudoQueries(column="label"), "anchor or positive"),
    ],
)
def test_settings_that_do_not_fit(make, text):
    with pytest.raises(UsageError, match=text):
        make()


def test_exact_duplicates_join_their_negatives():
    rows = Rows(
        anchor=["Sort it!", "sort  IT", "sort it", "Ｓort it", "sort it"],
        positive=["P", "p.", "other", "p", "p"],
        negative=[["n", "N!"], ["m", "n"], ["z"], [], ["k"]],
        label=["1", "1", "1", "1", "2"],
    )
    made, report = one(Duplicates(Exact()), rows)
    assert made.anchor == ["Sort it!", "sort it", "sort it"] and made.positive == ["P", "other", "p"]
    assert made.negative == [["n", "m"], ["z"], ["k"]] and made.label == ["1", "1", "2"]
    assert report["dropped"] == 2 and report["changed"] == 1 and report["left"] == 3


def test_what_is_equal():
    assert normalised("Sort “the”\n\tARRAY…") == normalised("sort the array") == "sort the array"
    assert normalised("C++") != normalised("C#") != normalised("C")
    assert normalised("？！") == "？！" != normalised("…")
    assert normalised("劳动法，第一条。") == normalised("劳动法 第一条")
    for one, other in (("वह गया", "वह गयी"), ("ที่", "ทิ"), ("I love it 😀", "I love it 😡")):
        assert normalised(one) != normalised(other)
    assert normalised("वह गया।") == normalised("वह गया!")


def test_near_may_mean_equal():
    near = Near(jaccard=1.0)
    assert near.representatives(["a tree", "A tree!", "a tree."]) == dict.fromkeys(
        ["a tree", "A tree!", "a tree."], "a tree"
    )


def near_pairs(texts, near):
    """Every pair at or above the threshold, counted one by one."""
    sets = [near.shingles(t) for t in texts]
    return {
        (i, j)
        for j in range(len(texts))
        for i in range(j)
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= near.jaccard
    }


@pytest.mark.parametrize("near", [Near(0.7), Near(0.6, 2, "words"), Near(0.9, 3)])
def test_near_duplicates_against_all_pairs_counted(near):
    generator = random.Random(0)
    vocabulary = [f"word{i}" for i in range(60)]
    texts = []
    for _ in range(40):
        base = [generator.choice(vocabulary) for _ in range(30)]
        for changes in (0, 1, 2, 6):
            text = list(base)
            for at in generator.sample(range(30), changes):
                text[at] = generator.choice(vocabulary)
            texts.append(" ".join(text))
    texts = list(dict.fromkeys(texts))
    alike, first = near_pairs(texts, near), near.representatives(texts)
    number = {text: i for i, text in enumerate(texts)}
    found = {(number[to], number[of]) for of, to in first.items() if of != to}
    assert found <= alike and len(found) > 30
    kept = {number[text] for text in first if first[text] == text}
    missed = [pair for pair in alike if set(pair) <= kept]
    assert len(missed) <= 0.05 * len(alike)
    half = len(texts) // 2
    matches = near.matches(texts[:half], texts[half:])
    across = {(number[a], number[b]) for a, others in matches.items() for b in others}
    wanted = {(i, j) for i, j in alike if i < half <= j}
    assert across <= wanted and len(wanted - across) <= max(1, 0.05 * len(wanted))


def test_near_duplicates_keep_the_first_and_need_both_sides_alike():
    long = "the quick brown fox jumps over the lazy dog and runs away into the forest"
    rows = Rows(
        ["how does it end", "how does it end?", "where is it", "how does it end"],
        [long, long + " .", long + "!", "another text altogether, on another matter"],
    )
    made, report = one(Duplicates(Near(0.8)), rows)
    assert made.positive == [long, long + "!", rows.positive[3]] and report["dropped"] == 1
    zh = "劳动合同期满后用人单位不再续签的应当向劳动者支付经济补偿"
    assert Near(0.7, 2).representatives([zh, zh + "金", "完全不同的一句话"]) == {
        zh: zh, zh + "金": zh, "完全不同的一句话": "完全不同的一句话",
    }  # fmt: skip


def test_words_of_mixed_scripts():
    assert doctest.testmod(words_module) == (0, 3)
    assert words("用 Python 排序，fast!") == ["用", "Python", "排", "序", "，", "fast!"]
    assert joined(words("用Python排序 fast code")) == "用Python排序fast code"
    assert joined(words(TEXT)) == TEXT and words("") == []


@pytest.mark.parametrize("text", [TEXT, ZH])
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_what_augmentation_does_to_words(text, rate):
    before = words(text)
    n = len(before)
    low, high = int(rate * n), int(rate * n) + 1
    counts = []
    for seed in range(200):
        deleted = words(WordDeletion(rate).text(text, draw(seed)))
        assert low <= n - len(deleted) <= high
        rest = iter(before)
        assert all(word in rest for word in deleted)  # in order
        counts.append(n - len(deleted))
        span = words(SpanDeletion(rate).text(text, draw(seed)))
        gone = n - len(span)
        assert any(before[:i] + before[i + gone :] == span for i in range(n)) and low <= gone <= high
        crop = words(Crop(rate).text(text, draw(seed)))
        assert any(before[i : i + len(crop)] == crop for i in range(n)) and low <= n - len(crop) <= high
        moved = words(Shuffle(rate).text(text, draw(seed)))
        assert sorted(moved) == sorted(before)
        assert sum(a != b for a, b in zip(moved, before, strict=True)) <= max(2, high)
    assert np.mean(counts) == pytest.approx(rate * n, abs=0.15)


def test_one_word_is_deleted_and_one_is_left():
    for seed in range(50):
        assert len(words(WordDeletion(count=1).text(TEXT, draw(seed)))) == 9
        assert len(words(WordDeletion(rate=1.0).text(TEXT, draw(seed)))) == 1
    for step in (WordDeletion(1.0), SpanDeletion(1.0), Crop(1.0), Shuffle(1.0)):
        assert step.text("alone", draw()) == "alone" and step.text("", draw()) == ""


def test_where_the_altered_text_goes():
    rows = Rows([TEXT, ZH], label=["1", "2"])
    pairs, report = one(Crop(0.5, copies=3), rows)
    assert Crop().gives == ("positive",) and Crop(into=None).gives == ()
    assert pairs.anchor == [TEXT] * 3 + [ZH] * 3 and pairs.label == ["1"] * 3 + ["2"] * 3
    assert len(set(pairs.positive)) > 2 and all(p in TEXT + ZH for p in pairs.positive)
    assert report == {"step": "step", "rows": 2, "changed": 2, "dropped": 0, "added": 4, "left": 6}
    replaced, _ = one(WordDeletion(count=2, into=None), rows)
    assert replaced.positive is None and [len(words(t)) for t in replaced.anchor] == [8, len(words(ZH)) - 2]
    given = Rows(["a b"], ["c d"], [["n"]])
    harder, _ = one(Shuffle(1.0, column="positive", into="negative"), given)
    assert (
        harder.positive == ["c d"] and harder.negative[0][0] == "n" and sorted(harder.negative[0][1]) == sorted("c d")
    )
    with pytest.raises(UsageError, match="no positive column"):
        one(Crop(column="positive"), rows)


def test_equal_seeds_give_equal_rows():
    rows = Rows([TEXT] * 20)
    a, b, c = (one(WordDeletion(0.3), rows, seed)[0].positive for seed in (1, 1, 2))
    assert a == b != c and len(set(a)) > 5
    steps = {"crop": Crop(0.3), "shuffle": Shuffle(0.3, into=None)}
    alone = prepare(rows, {"shuffle": Shuffle(0.3, into=None)}, 1)[0].anchor
    assert prepare(rows, steps, 1)[0].anchor == alone  # a step's draws do not depend on its neighbours


def test_synonyms(tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("happy\tglad\tjoyful\nof course\tnaturally\n高兴\t开心\n")
    step = Synonyms(str(table), rate=1.0)
    seen = {step.text("Happy, they came; “happy” of course", draw(seed)) for seed in range(40)}
    assert {text.split(",")[0] for text in seen} == {"Glad", "Joyful"}
    assert all(text.endswith(("“glad” naturally", "“joyful” naturally")) for text in seen)
    assert step.text("我很高兴见到你", draw()) == "我很开心见到你"
    assert step.text("nothing here to say", draw()) == "nothing here to say"
    once = Synonyms(str(table), count=1)
    assert {once.text("happy happy day", draw(s)).count("happy") for s in range(20)} == {1}
    marked = tmp_path / "marked.tsv"
    marked.write_text("c++\tcpp\n.net\tdotnet\nu.s.\tAmerica\nc\tC89\n")
    said = Synonyms(str(marked), rate=1.0)
    assert said.text("C++ on .net in the U.S. (c)", draw()) == "Cpp on dotnet in the America (C89)"
    lines = tmp_path / "table.jsonl"
    lines.write_text(json.dumps({"word": "Happy", "synonyms": ["glad", "joyful"]}) + "\n")
    assert Synonyms(str(lines)).table == {"happy": ["glad", "joyful"]}
    for bad, text in (("happy\n", "row 1: a word and its synonyms"), ("", "the table is empty")):
        table.write_text(bad)
        with pytest.raises(UsageError, match=text):
            Synonyms(str(table))


DOCUMENT = "Graphs have nodes. A graph has nodes and edges between nodes. Edges join two nodes."


def test_pseudo_queries_by_title_summary_and_crop():
    rows = Rows([DOCUMENT, "第一句话。第二句话！", "alone"])
    made, report = one(PseudoQueries(), rows)
    assert made.anchor == ["Graphs have nodes.", "第一句话。"]
    assert made.positive == ["A graph has nodes and edges between nodes. Edges join two nodes.", "第二句话！"]
    assert report["dropped"] == 1 and PseudoQueries.gives == ("positive",)
    whole, _ = one(PseudoQueries(remove=False), rows)
    assert whole.positive == list(rows.anchor) and whole.anchor[2] == "alone"
    central, _ = one(PseudoQueries("summary"), rows)
    assert central.anchor[0] == "A graph has nodes and edges between nodes." == slow_summary(DOCUMENT)
    long = " ".join(f"w{i}" for i in range(30))
    cropped, _ = one(PseudoQueries("crop", column="positive", remove=False), Rows(["x", "y"], [long, long]))
    assert cropped.anchor[0] == cropped.anchor[1] in long and len(cropped.anchor[0].split()) == 8
    assert cropped.positive == [long, long]


def test_a_cropped_query_leaves_its_document_whatever_white_space_it_has():
    lines = "\n\n".join(f"w{i}  v{i}" for i in range(15))
    zh = "请问劳动合同\n到期以后公司不续签，\n员工应该怎么办？"
    made, _ = one(PseudoQueries("crop"), Rows([lines, zh, "what (is) a.b"]))
    for query, rest, document in zip(
        made.anchor, made.positive, (lines, zh), strict=True
    ):  # of the third nothing is left
        assert len(words(query)) == 8 and len(words(rest)) == len(words(document)) - 8
        at = next(i for i in range(len(words(document))) if words(document)[i : i + 8] == words(query))
        assert words(rest) == words(document)[:at] + words(document)[at + 8 :]


def slow_summary(document):
    """tf-idf as scikit-learn defines it (smooth, l2), by hand."""
    parts = words_module.sentences(document)
    counter = CountVectorizer(analyzer=lambda s: words(normalised(s)))
    counts = counter.fit_transform(parts).toarray().astype(float)
    idf = np.log((1 + len(parts)) / (1 + (counts > 0).sum(axis=0))) + 1
    vectors = counts * idf
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return parts[int((vectors @ vectors.sum(axis=0)).argmax())]


def test_the_most_central_sentence():
    documents = [
        "a b c. c d e. e f a c. g h",
        "x. y y z. z z y x.",
        "one line",
        ZH + "公司不续签合同。劳动合同怎么办。",
    ]
    assert [summary(d) for d in documents] == [[slow_summary(d)] for d in documents]
    assert summary("") == []


def test_pseudo_queries_by_a_function_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "asking.py").write_text(
        "def ask(document):\n    return [f'what is {w}?' for w in document.split()[:2] if w != 'no']\n"
        "def wrong(document):\n    return 'a text'\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("asking:ask", "asking.ask"):
        made, report = one(PseudoQueries(name), Rows(["red car", "no", "blue"], label=["1", "2", "3"]))
        assert made.anchor == ["what is red?", "what is car?", "what is blue?"]
        assert made.positive == ["red car", "red car", "blue"] and made.label == ["1", "1", "3"]
        assert report == {"step": "step", "rows": 3, "changed": 2, "dropped": 1, "added": 1, "left": 3}
    with pytest.raises(UsageError, match="should return a list of texts; of 'red' it made 'a text'"):
        one(PseudoQueries("asking:wrong"), Rows(["red"]))
    for name, text in (("asking:nobody", "has no attribute 'nobody'"), ("asking:number", "is no function")):
        with pytest.raises(UsageError, match=text):
            PseudoQueries(name)


@pytest.fixture
def sentences(tmp_path):
    file = tmp_path / "sentences.txt"
    file.write_text("".join(f"the {i} of {i % 7} is <b>red</b> and not {i * 3}\n" for i in range(80)) + "short\n")
    return file


def line(sentences, tmp_path, *more):
    return [
        "encoder=tiny", "loss=infonce", "data=text", f"data.path={sentences}", "data.batch_size=16", "trainer.max_steps=6",
        "eval=none", "select=last", "trainer.accelerator=cpu", f"outputs={tmp_path}/out", *more,
    ]  # fmt: skip


def test_texts_alone_train_a_loss_of_pairs(sentences, tmp_path, capsys):
    """preparation=crop gives the positives that data=text does not have."""
    run = start(composed(*line(sentences, tmp_path, "preparation=[html,length,crop]")), [], {})
    train(run.config, run)
    info = run.info
    assert [r["step"] for r in info["preparation"]] == ["html", "length", "crop"]
    assert info["preparation"][0]["changed"] == 80 and info["preparation"][1]["dropped"] == 1
    assert info["data"]["train"]["rows"] == 81 and info["data"]["prepared"]["rows"] == 80
    assert "preparation.crop: 80 rows read" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no positive"):
        without = start(composed(*line(sentences, tmp_path)), [], {})
        train(without.config, without)


class Cut(Exception):
    pass


def test_a_resumed_run_prepares_the_same_rows(sentences, tmp_path, monkeypatch):
    """Cut after 4 of 6 steps and gone on with: the numbers of a run that was not cut."""
    options = line(sentences, tmp_path, "preparation=[html,word_deletion]", "preparation.word_deletion.rate=0.3")
    options += ["callbacks.selection.save_every=2", "trainer.log_every_n_steps=1"]
    whole = start(composed(*options), [], {})
    train(whole.config, whole)
    run = start(composed(*options), [], {})
    from unitsphere.training.module import EmbeddingModule

    step = EmbeddingModule.training_step

    def cut(self, *args):
        if self.global_step == 4:
            raise Cut
        return step(self, *args)

    monkeypatch.setattr(EmbeddingModule, "training_step", cut)
    with pytest.raises(Cut):
        train(run.config, run)
    monkeypatch.setattr(EmbeddingModule, "training_step", step)
    assert (run.folder / "checkpoints" / "last.ckpt").exists()
    train(run.config, run)
    assert run.info["status"] == "done"
    curves = [(r.folder / "metrics.csv").read_text().splitlines() for r in (whole, run)]
    loss = [sorted(text for text in of if "train/loss" in text) for of in curves]
    assert loss[0] == loss[1] and len(loss[0]) == 6
    assert run.info["data"] == whole.info["data"]


def test_every_option_of_the_group_has_its_step(tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("happy\tglad\n")
    given = {"synonyms": table, "mined": table}
    options = sorted(file.stem for file in (paths.conf() / "preparation").glob("*.yaml"))
    assert len(options) > 10 and set(given) < set(options)
    for option in options:
        more = [f"preparation.{option}.path={given[option]}"] if option in given else []
        node = composed(f"preparation={option}", *more).preparation
        assert list(node) == ([] if option == "none" else [option])
        assert all(set(build(step).gives) <= {"positive", "negative"} for step in node.values())
    several = composed("preparation=[html,unicode,whitespace,length,near_duplicates]").preparation
    assert list(several) == ["html", "unicode", "whitespace", "length", "near_duplicates"]
    assert composed().preparation == {}
