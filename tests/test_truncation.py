"""A text that is cut is counted, said once, and noted with the run."""

import json
import warnings

import pytest

from conftest import composed
from unitsphere.cli.evaluate import evaluate
from unitsphere.cli.train import start
from unitsphere.data.tokens import tokenize
from unitsphere.encoders.tiny import tiny
from unitsphere.training.run import train


@pytest.mark.parametrize("limit", [None, 3, 5, 6, 7, 128])
def test_cut_texts_are_those_that_have_more_tokens_than_are_kept(limit):
    encoder = tiny()
    texts = ["", "a", "ab", "abc", "abcd", "abcde", "abcdef", "x" * 50 + " x" * 76, "x" * 50 + " x" * 77, "x " * 500]
    ids, cut = encoder.cut(texts, limit)
    whole = [encoder.tokenizer(text, verbose=False)["input_ids"] for text in texts]
    assert cut == sum(len(of_text) > (limit or 128) for of_text in whole)
    assert [len(a) for a in ids] == [min(len(b), limit or 128) for b in whole]
    assert all((a == b).all() for a, b in zip(ids, encoder.tokenize(texts, limit), strict=True))
    encoder.in_windows = True
    if limit is None:
        assert encoder.cut(texts) [1] == 0 and [a.tolist() for a in encoder.cut(texts)[0]] == whole  # fmt: skip


def test_encode_counts_by_role_and_length(embedder):
    with embedder.counting() as read:
        embedder.encode(["a " * 200, "a " * 200, "b"], "document")
        embedder.encode(["c " * 300], "document")
        embedder.encode(["abcdef", "abc"], "query", max_length=5)
    assert read == {("document", 128): (3, 2), ("query", 5): (2, 1)}
    with embedder.counting() as read:
        pass
    assert read == {}


def data(folder):
    """36 queries of which one is long, with documents of which every other one is."""
    rows = [{"anchor": f"question {i} " + "y" * 100 * (i == 0), "positive": f"answer {i} " + "x" * 100 * (i % 2)}
            for i in range(36)]  # fmt: skip
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_run_says_once_where_texts_were_cut_and_notes_it(tmp_path, on_disk):
    options = [f"data.on_disk={on_disk}", "data.batch_size=8", "trainer.max_steps=6", "data.eval_max_length=32"]
    config = composed(
        "encoder=tiny", "loss=infonce", "data=pairs", f"data.path={data(tmp_path)}", "data.max_length=40", "eval=retrieval",
        f"data.dev_path={data(tmp_path)}", f"data.test_path={data(tmp_path)}", f"outputs={tmp_path}/out", "leakage.action=report", *options,
    )  # fmt: skip
    run = start(config, [], {})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(run.config, run)
    said = sorted(str(w.message) for w in said if "were cut at" in str(w.message))
    counts = run.info["truncated"]
    for split in ("dev", "test"):
        assert counts[f"{split}, document, 32 tokens"] == {"texts": 36, "cut": 18}
        assert counts[f"{split}, query, 32 tokens"] == {"texts": 36, "cut": 1}
    of_training = counts["train, all columns, 40 tokens"]
    if on_disk:  # 6 batches of 8 pairs
        assert of_training["texts"] == 96 and 0 < of_training["cut"] < 60
    else:
        assert of_training == {"texts": 72, "cut": 19}
    assert len(said) == 5
    assert said[0].startswith("dev: 1 of 36 texts (query) were cut at 32 tokens. The evaluator's max_length")
    assert "texts (all columns) were cut at 40 tokens. data.max_length keeps more" in said[-1]


def test_the_token_cache_remembers_how_many_were_cut(tmp_path):
    for _ in range(2):
        assert tokenize(["abc", "abcdef", "abcdefg"], tiny(), 5, tmp_path).cut == 2
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_evaluate_says_it_and_windows_cut_nothing(tmp_path):
    base = ["encoder=tiny", "data=pairs", f"data.path={data(tmp_path)}", "eval=retrieval", "threads=1"]
    base += [f"data.test_path={data(tmp_path)}", "encoder.max_length=64"]
    with pytest.warns(UserWarning, match=r"test: 18 of 36 texts \(document\) were cut at 64 tokens"):
        run = evaluate(composed(*base, root="eval"), tmp_path / "out")
    assert run.info["truncated"]["test, document, 64 tokens"] == {"texts": 36, "cut": 18}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = evaluate(composed(*base, "window=uniform", root="eval"), tmp_path / "out")
    assert run.info["truncated"] == {} and run.info["embedder"]["windows"]["size"] == 64
