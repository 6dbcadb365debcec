"""No text twice in a batch, languages in their shares, batches of one length; all exact when resumed and on ranks."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from unitsphere.data.batches import Batches
from unitsphere.data.mixture import Mixture
from unitsphere.data.rows import COLUMNS, Rows
from unitsphere.data.samplers import (
    ClassBalanced,
    LanguageBalanced,
    LengthGrouped,
    Mixed,
    NoDuplicates,
    Shuffled,
    TaskHomogeneous,
)  # fmt: skip
from unitsphere.data.samplers.length_grouped import lengths
from unitsphere.data.table import Table
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def repetitive(n, anchors, positives, negatives=0, seed=0):
    """n rows whose anchors, positives and (up to two a row) negatives are out of so many texts."""
    draw = np.random.default_rng(seed)

    def some(kind, of):
        return [f"{kind}{i}" for i in draw.integers(of, size=n)]

    each = [[f"p{i}" for i in draw.integers(negatives, size=draw.integers(3))] for _ in range(n)] if negatives else None
    return Rows(some("a", anchors), some("p", positives), each)


def clashes(rows, batch):
    """Pairs of rows of a batch that share a text, found slowly."""
    texts = [{rows.anchor[i], rows.positive[i], *(rows.negative[i] if rows.negative else ())} for i in batch]
    return [(i, j) for i in range(len(batch)) for j in range(i) if texts[i] & texts[j]]


def greedily(rows, size, seed=0):
    """How many batches there are when each takes the first rows left that fit it."""
    left, count = np.random.default_rng(seed).permutation(len(rows)).tolist(), 0
    while True:
        batch, taken = [], set()
        for i in left:
            texts = {rows.anchor[i], rows.positive[i]}
            if len(batch) < size and not texts & taken:
                batch.append(i)
                taken |= texts
        if len(batch) < size:
            return count
        left, count = [i for i in left if i not in {*batch}], count + 1


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        (repetitive(2000, 10**9, 10**9), 2000 % 32),
        (repetitive(2000, 1500, 2000), 2000 % 32),
        (repetitive(2000, 100, 300), 2000 % 32 + 32),
        (repetitive(2000, 10**9, 40), 2000 % 32 + 32 * 4),
        (repetitive(2000, 1000, 1000, negatives=3000), 2000 % 32 + 32),
    ],
    ids=["all different", "some", "many", "nearly too many", "with negatives"],
)
def test_no_text_is_in_two_rows_of_a_batch(rows, left):
    order = NoDuplicates()(rows, 32, generator())
    assert not [clash for batch in order.tolist() for clash in clashes(rows, batch)]
    assert len(set(order.ravel().tolist())) == order.size  # no row twice
    assert len(rows) - order.size <= left
    plain = Shuffled()(rows, 32, generator())
    assert ("a0" not in rows.anchor) or [c for batch in plain.tolist() for c in clashes(rows, batch)]


def test_few_rows_are_left_out_and_about_as_many_as_the_slow_way_leaves():
    for anchors, positives in ((100, 300), (50, 50), (10**9, 45)):
        rows = repetitive(1600, anchors, positives)
        assert len(NoDuplicates()(rows, 32, generator())) >= greedily(rows, 32) - 4


def test_the_rows_of_one_text_that_no_order_can_place_are_left_out():
    rows = Rows(["common"] * 300 + [f"a{i}" for i in range(700)], [f"p{i}" for i in range(1000)])
    order = NoDuplicates()(rows, 10, generator())
    assert len(order) == 700 // 9  # each batch has one of the 300 and 9 of the 700
    assert all(sum(i < 300 for i in batch) <= 1 for batch in order.tolist())


def test_a_row_may_repeat_itself():
    rows = Rows(["same"] + [f"a{i}" for i in range(7)], ["same"] + [f"p{i}" for i in range(7)])
    assert sorted(NoDuplicates()(rows, 8, generator()).ravel().tolist()) == list(range(8))
    assert not len(rows.repeated_texts[0])


def test_too_few_texts_for_a_batch():
    with pytest.raises(UsageError, match="no batch of 8 can be filled"):
        NoDuplicates()(Rows([f"a{i}" for i in range(40)], ["yes", "no"] * 20), 8, generator())


def test_epochs_differ_and_every_row_gets_its_turn():
    rows = repetitive(330, 100, 200)
    seen = {i for seed in range(8) for i in NoDuplicates()(rows, 32, generator(seed)).ravel().tolist()}
    assert seen == set(range(330))


@pytest.mark.parametrize(
    ("temperature", "weights", "expected"),
    [(1.0, {}, [0.7, 0.2, 0.1]), (1e9, {}, [1 / 3] * 3), (1e9, {"zh": 2.0, "de": 0.0}, [1 / 3, 2 / 3, 0.0])],
)
def test_languages_have_their_shares_in_each_batch(temperature, weights, expected):
    language = ["en"] * 7000 + ["zh"] * 2000 + ["de"] * 1000
    rows = Rows([f"t{i}" for i in range(10_000)], language=language)
    order = LanguageBalanced(temperature, weights)(rows, 50, generator())
    assert order.shape == (200, 50)
    counts = Counter(language[i] for i in order.ravel().tolist())
    for name, share in zip(("en", "zh", "de"), expected, strict=True):
        assert counts[name] / order.size == pytest.approx(share, abs=0.02)
    assert len({language[i] for i in order[0].tolist()}) == sum(share > 0 for share in expected)


def test_shares_are_those_of_the_formula():
    sizes, temperature = {"a": 900, "b": 90, "c": 10}, 2.0
    language = [name for name, n in sizes.items() for _ in range(n)]
    rows = Rows([f"t{i}" for i in range(1000)], language=language)
    order = np.concatenate([LanguageBalanced(temperature)(rows, 10, generator(seed)) for seed in range(40)])
    counts = Counter(language[i] for i in order.ravel().tolist())
    total = sum(n**0.5 for n in sizes.values())
    for name, n in sizes.items():
        assert counts[name] / order.size == pytest.approx(n**0.5 / total, abs=0.01)


def test_a_small_language_is_read_to_its_end_before_it_begins_again():
    rows = Rows([f"t{i}" for i in range(1000)], language=["en"] * 900 + ["zh"] * 100)
    flat = [i for i in LanguageBalanced(1e9)(rows, 10, generator()).ravel().tolist() if i >= 900]
    assert len(flat) > 400
    for at in range(0, len(flat) // 100 * 100, 100):
        assert len(set(flat[at : at + 100])) == 100


def test_a_language_may_be_a_column_or_the_source_of_a_mixture(tmp_path):
    sources = {}
    for name in ("de", "zh"):
        lines = [{"anchor": f"{name} {i}", "positive": f"p{i}", "lang": name + "-x"} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        sources[name] = str(tmp_path / f"{name}.jsonl")
    pair = {"anchor": "anchor", "positive": "positive"}
    told = {k: Table(v, pair | {"language": "lang"}, held_out=0) for k, v in sources.items()}
    rows = Mixture(told, pair | {"language": "language"}).splits.train
    assert set(rows.language) == {"de-x", "zh-x"} and rows.take([0, 25]).language == ["de-x", "zh-x"]
    assert LanguageBalanced(weights={"zh-x": 0.0})(rows, 4, generator()).max() < 20
    rows = Mixture({k: Table(v, pair, held_out=0) for k, v in sources.items()}, pair).splits.train
    assert rows.language is None
    assert LanguageBalanced(weights={"de": 0.0})(rows, 4, generator()).min() >= 20


@pytest.mark.parametrize(
    ("sampler", "rows", "text"),
    [
        (LanguageBalanced(), Rows(["a"] * 8), r"data.columns.language=…"),
        (LanguageBalanced(weights={"fr": 1}), Rows(["a"] * 8, language=["en"] * 8), "no language 'fr'; found: en"),
        (LanguageBalanced(weights={"en": 0}), Rows(["a"] * 8, language=["en"] * 8), "every language has weight 0"),
        (LanguageBalanced(9), Rows(["a"] * 40, language=["en"] * 39 + ["zh"]), "'zh' has 1 rows and would have 3"),
    ],
)
def test_a_sampler_says_what_it_lacks(sampler, rows, text):
    with pytest.raises(UsageError, match=text):
        sampler(rows, 8, generator())


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UsageError, match=r"temperature=0\.5"):
        LanguageBalanced(0.5)
    with pytest.raises(UsageError, match="0 or more"):
        LanguageBalanced(weights={"en": -1})
    with pytest.raises(UsageError, match="megabatch=0"):
        LengthGrouped(0)


def test_batches_of_similar_length():
    draw = np.random.default_rng(0)
    rows = Rows(*(["x" * int(n) for n in draw.integers(1, 500, size=3003)] for _ in range(2)))
    length = lengths(rows)
    assert length.tolist() == [len(a) + len(p) for a, p in zip(rows.anchor, rows.positive, strict=True)]
    order = LengthGrouped(megabatch=25)(rows, 20, generator())
    assert len(set(order.ravel().tolist())) == order.size == 3000

    def spread(batches):
        return np.ptp(length[batches], axis=1).mean()

    assert spread(order) < spread(Shuffled()(rows, 20, generator())) / 10
    means = length[order].mean(axis=1)
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.3  # short and long in no order
    assert spread(LengthGrouped(megabatch=1)(rows, 20, generator())) > spread(order) * 10


def test_the_length_of_a_row_counts_its_negatives():
    assert lengths(Rows(["a", "b"], ["pp", "p"], [["nnn", "n"], []])).tolist() == [7, 2]


SAMPLERS = [
    NoDuplicates(), LanguageBalanced(2.0), LengthGrouped(3), TaskHomogeneous(2.0), ClassBalanced(4), Mixed({"x": 0.25}),
]  # fmt: skip


def batches(folder, sampler):
    made = repetitive(90, 30, 40)
    rows = Rows(
        made.anchor, made.positive, label=["1", "2", "3"] * 30, language=["en", "en", "zh"] * 30, task=["x", "y", "y"] * 30
    )  # fmt: skip
    return Batches(rows, COLUMNS, sampler, tiny(), {}, 8, 16, 1, folder)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_a_run_that_was_cut_goes_on_with_the_same_batches(tmp_path, sampler):
    whole, cut, resumed = (batches(tmp_path, sampler) for _ in range(3))
    first, *further = ([b.row_ids.tolist() for b in whole] for _ in range(3))
    assert first != further[0]
    seen = [b.row_ids.tolist() for b in cut]
    seen += [b.row_ids.tolist() for _, b in zip(range(3), cut, strict=False)]
    resumed.load_state_dict(cut.state_dict())
    rest = [b.row_ids.tolist() for _ in range(2) for b in resumed]
    assert seen + rest == [*first, *further[0], *further[1]] and cut.state_dict() == {"epoch": 1, "position": 3}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_two_ranks_together_have_the_batch_of_one_process(tmp_path, sampler):
    whole, *parts = (batches(tmp_path, sampler) for _ in range(3))
    for rank, part in enumerate(parts):
        part.rank, part.world = rank, 2
    for full, *shares in zip(whole, *parts, strict=True):
        assert len(full.row_ids) == 8 and all(len(share.row_ids) == 4 for share in shares)
        assert full.row_ids.tolist() == torch.stack([s.row_ids for s in shares], dim=1).flatten().tolist()
