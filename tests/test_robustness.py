"""Noises do what they say at the rate they say; the evaluator reports what they cost."""

import json
from functools import partial
from random import Random

import numpy as np
import pytest

from conftest import composed
from unitsphere.build import build
from unitsphere.data.preparation import synonyms as preparation
from unitsphere.errors import UsageError
from unitsphere.evaluation import noise
from unitsphere.evaluation.retrieval import Retrieval
from unitsphere.evaluation.robustness import Robustness
from unitsphere.evaluation.sts import STS
from unitsphere.types import RetrievalSet

ENGLISH = "The quick brown fox, however lazy, jumps over 12 dogs!"
CHINESE = "劳动者可以解除劳动合同，并要求支付经济补偿。"


def edits(a, b):
    """Damerau-Levenshtein distance (adjacent transpositions), the textbook table."""
    d = {(i, -1): i + 1 for i in range(-1, len(a))} | {(-1, j): j + 1 for j in range(-1, len(b))}
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (x != y))
            if i and j and x == b[j - 1] and a[i - 1] == y:
                d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return d[len(a) - 1, len(b) - 1]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_typos_come_at_their_rate(text):
    letters = sum(char.isalpha() for char in text)
    counts = [edits(text, noise.typos(text, Random(seed), 0.1)) for seed in range(300)]
    assert np.mean(counts) == pytest.approx(0.1 * letters, rel=0.15)
    assert noise.typos(text, Random(1), 0.0) == text
    assert noise.typos("a", Random(0), 1.0)  # never nothing


def test_keyboard_neighbours():
    assert set(noise.NEIGHBOURS["g"]) == set("fhtyvb") and set(noise.NEIGHBOURS["q"]) == set("wa")
    assert set(noise.NEIGHBOURS["p"]) == set("ol") and set(noise.NEIGHBOURS["m"]) == set("njk")


@pytest.mark.parametrize(
    ("text", "words"), [("one two three four five six seven eight", 8), ("劳动合同法规定的补偿", 10)]
)
def test_words_are_dropped_at_their_rate(text, words):
    left = [len(noise.WORD.findall(noise.dropped_words(text, Random(s), 0.25))) for s in range(400)]
    assert np.mean(left) == pytest.approx(0.75 * words, rel=0.05)
    assert len(noise.WORD.findall(noise.dropped_words(text, Random(0), 1.0))) == 1
    assert noise.dropped_words(text, Random(0), 0) == text


def test_swapping_keeps_words_and_what_stands_between():
    text = "alpha, beta gamma  delta: 合同"
    swapped = noise.swapped_words(text, Random(3), 1.0)
    assert swapped == "beta alpha, delta:  gamma 同合"  # punctuation belongs to its word
    assert sorted(noise.swapped_words(ENGLISH, Random(5), 0.5).split()) == sorted(ENGLISH.split())
    assert (
        sorted(noise.swapped_words(CHINESE, Random(5), 0.5)) == sorted(CHINESE)
        and noise.swapped_words(CHINESE, Random(5), 0.5) != CHINESE
    )


def test_casing_and_punctuation():
    cased = {to: noise.casing("The pH of H2O", Random(0), to) for to in ("lower", "upper", "title")}
    assert cased == {"lower": "the ph of h2o", "upper": "THE PH OF H2O", "title": "The Ph Of H2o"}
    assert noise.no_punctuation("Well, (yes): it's “so”.", Random(0)) == "Well yes it s so"
    assert noise.no_punctuation("合同，法。", Random(0)) == "合同 法" and noise.no_punctuation("?!", Random(0)) == "?!"


def test_synonyms_are_the_users(tmp_path):
    (tmp_path / "table.tsv").write_text("car\tautomobile\nbig car\tlorry\n合同\t契约\n")
    synonyms = noise.Synonyms(str(tmp_path / "table.tsv"), 1.0)
    assert synonyms("A Car, a big car, a scar; 解除合同", Random(0)) == "A automobile, a lorry, a scar; 解除契约"
    synonyms.rate = 0.0
    assert synonyms("a car", Random(0)) == "a car"


def test_the_last_letter_has_none_to_change_places_with():
    left = [len(noise.typos("1a", Random(seed), 1.0)) == 2 for seed in range(600)]
    assert np.mean(left) == pytest.approx(1 / 2, abs=0.06)  # replaced or left out


def test_one_table_of_synonyms_for_training_and_for_noise(tmp_path, words_set):
    results = []
    for word in ("pear", "plum"):
        table = tmp_path / "table.tsv"
        table.write_text(f"Apple\t{word}\t{word}\n")
        assert noise.Synonyms(str(table), 1.0).table == preparation.Synonyms(str(table)).table == {"apple": [word] * 2}
        results.append(Robustness("test", words_set, Retrieval, {"other": noise.Synonyms(str(table), 0.5)})(bag))
    one, two = (result.protocol["words_other"]["settings"] for result in results)
    assert one.startswith("Synonyms rate=0.5 table=") and one != two


@pytest.mark.parametrize("call", [noise.typos, noise.dropped_words, noise.swapped_words])
def test_rates_are_shares(call):
    with pytest.raises(UsageError, match=r"a share in \[0, 1\]"):
        call("text", Random(0), 1.5)


def bag(texts, role, max_length=None, prompt=None):
    """Counts of characters: upper case is another character, order does not matter."""
    out = np.zeros((len(texts), 128), dtype=np.float32)
    for row, text in zip(out, texts, strict=True):
        for char in text:
            row[ord(char) % 128] += 1
    return out


@pytest.fixture
def words_set():
    words = ["apple", "banjo", "cider", "dwarf", "eagle", "fjord", "ghost", "hymn", "igloo", "jockey"]
    corpus = {f"d{i}": f"{w} {w[::-1]}" for i, w in enumerate(words)}
    queries = {f"q{i}": w for i, w in enumerate(words)}
    return RetrievalSet("words", corpus, queries, {f"q{i}": {f"d{i}": 1} for i in range(len(words))})


def test_losses_are_clean_minus_noisy(words_set):
    seen = []

    def recording(texts, role, max_length=None, prompt=None):
        seen.extend((role, text) for text in texts)
        return bag(texts, role)

    noises = {"upper": partial(noise.casing, to="upper"), "swapped": partial(noise.swapped_words, rate=1.0)}
    made = Robustness("test", words_set, Retrieval, noises, ["mrr@10"])
    result, clean = made(recording), Retrieval("test", words_set)(bag)
    mrr = clean.metrics["words/mrr@10"]
    upper = Retrieval("test", words_set)(
        lambda t, role, *_: bag([x.upper() if role == "query" else x for x in t], role)
    )
    assert result.metrics["words_upper/mrr@10"] == upper.metrics["words/mrr@10"] < mrr
    assert result.metrics["words_upper/mrr@10_loss"] == mrr - upper.metrics["words/mrr@10"]
    assert result.metrics["words_swapped/mrr@10_loss"] == 0  # one word cannot change places
    mean = (result.metrics["words_upper/mrr@10"] + mrr) / 2
    assert result.primary == "words_noisy/mrr@10" and result.metrics[result.primary] == pytest.approx(mean)
    assert ("query", "APPLE") in seen and not any(text.isupper() for role, text in seen if role == "document")
    assert result.protocol["words_upper"]["settings"] == "casing to=upper"
    assert result.items["words_upper"]["mrr@10"].mean() == pytest.approx(result.metrics["words_upper/mrr@10"])


def test_both_sentences_of_sts_are_noisy(tmp_path):
    rows = [{"sentence1": f"some words {i}", "sentence2": f"other words {i * i}", "score": i} for i in range(9)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks: dict = {"tests": {"mine": "pairs.jsonl"}, "dev": {"simcse": {}}, "hub": {}, "path": str(tmp_path)}
    seen: set[str] = set()

    def recording(texts, role, max_length=None, prompt=None):
        seen.update(texts)
        return bag(texts, role)

    Robustness("test", None, partial(STS, **tasks), {"upper": partial(noise.casing, to="upper")})(recording)
    assert {text.upper() for row in rows for text in (row["sentence1"], row["sentence2"])} <= seen


def test_every_model_reads_the_same_noise(words_set):
    texts = {"one": [], "two": []}
    for name, heard in texts.items():

        def recording(asked, role, max_length=None, prompt=None, heard=heard, name=name):
            heard.extend(asked)
            return bag(asked, role) + (name == "two")

        Robustness("test", words_set, Retrieval, {"typos": partial(noise.typos, rate=0.5)})(recording)
    assert texts["one"] == texts["two"]
    again = []
    Robustness("test", words_set, Retrieval, {"typos": partial(noise.typos, rate=0.5)}, seed=1)(
        lambda t, role, *_: again.extend(t) or bag(t, role)
    )
    assert again != texts["one"]


def test_the_option_builds_and_runs(tmp_path, words_set, embedder):
    for kind, texts in (("corpus", words_set.corpus), ("queries", words_set.queries)):
        (tmp_path / f"{kind}.jsonl").write_text(
            "".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in texts.items())
        )
    (tmp_path / "qrels").mkdir()
    lines = [f"{q}\t{d}\t1" for q, grades in words_set.qrels.items() for d in grades]
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    config = composed("eval=[retrieval,robustness]", f"eval.retrieval.path={tmp_path}", "model=x", root="eval").eval
    result = build(config.robustness, split="test", own=None)(embedder.embed)
    name = tmp_path.name
    assert {f"{name}_{noise}/mrr@10_loss" for noise in config.robustness.noises} < set(result.metrics)
    assert result.primary in result.metrics and "typos rate=0.1" in str(result.protocol)
