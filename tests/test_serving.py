"""The HTTP service in process: answers against `encode`, OpenAI's forms, limits, and what is no use to compute."""

import asyncio
import base64
import json
import logging
import re
import threading

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import BertForSequenceClassification

from conftest import composed
from serving import Letters, answers, clients, held_up, queued, sample, until
from unitsphere import artefact
from unitsphere.cli import serve
from unitsphere.coded import Coded
from unitsphere.embedder import Embedder
from unitsphere.encoders.cross_encoder import CrossEncoder
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.pooling.mean import MeanPooling
from unitsphere.search.codes import Binary
from unitsphere.serving.app import ENDPOINTS, create_app
from unitsphere.serving.engine import Engine
from unitsphere.serving.gate import Door
from unitsphere.serving.settings import Limits, Process, Settings

PROMPTS = {"query": "query: ", "document": "", "code": "code: "}
TEXTS = [
    "",
    "sort a list",
    "日本語のテキスト",
    "naïve café 🎈",
    "a\0b",
    "\n\t ",
    "x" * 90,
    "sort a list",
    "‮right to left",
]


@pytest.fixture
def model() -> Embedder:
    encoder = tiny()
    return Embedder(encoder, MeanPooling(encoder.dim), prompts=PROMPTS).eval()


@pytest.fixture
def reranker(tmp_path) -> CrossEncoder:
    encoder = tiny(dropout=0.0)
    torch.manual_seed(3)
    encoder.model.config.num_labels = 1
    BertForSequenceClassification(encoder.model.config).save_pretrained(tmp_path / "reranker")
    encoder.tokenizer.save_pretrained(tmp_path / "reranker")
    return CrossEncoder(str(tmp_path / "reranker"))


@pytest.mark.parametrize("role", [None, "query", "document", "code", "symmetric"])
@pytest.mark.parametrize("settings", [Settings(), Settings(batch_tokens=8), Settings(cache_mib=0)], ids=str)
def test_embed_answers_as_encode_does(model, role, settings):
    expected = model.encode(TEXTS, role=role)
    body = {"texts": TEXTS} | ({"role": role} if role else {})
    first, again = answers(create_app(model, None, settings), ("/embed", body), ("/embed", body))
    np.testing.assert_allclose(first.json(), expected, atol=1e-6)
    assert first.json() == again.json()
    prompt = {**PROMPTS, "symmetric": PROMPTS["query"]}.get(role, "")
    tokens = sum(len(model.encoder.tokenizer(prompt + text)["input_ids"]) for text in TEXTS)
    assert int(first.headers["x-tokens"]) == int(again.headers["x-tokens"]) == tokens
    assert first.headers["x-truncated-texts"] == "0"


def test_the_names_of_text_embeddings_inference_fit(model):
    ours, theirs, one = answers(
        create_app(model),
        ("/embed", {"texts": ["a", "b"], "role": "query"}),
        (
            "/embed",
            {
                "inputs": ["a", "b"],
                "prompt_name": "query",
                "normalize": True,
                "truncate": True,
                "truncation_direction": "Right",
            },
        ),
        ("/embed", {"inputs": "a", "prompt": "query: "}),
    )
    assert ours.json() == theirs.json() and len(ours.json()) == 2
    np.testing.assert_allclose(one.json(), ours.json()[:1], atol=1e-6)


def test_the_server_has_a_role_of_its_own_and_requests_may_name_another(model):
    unnamed, named, none, both = answers(
        create_app(model, None, Settings(role="query")),
        ("/embed", {"texts": ["a"]}),
        ("/embed", {"texts": ["a"], "role": "code"}),
        ("/embed", {"texts": ["a"], "prompt": ""}),
        ("/embed", {"texts": ["a"], "role": "code", "prompt": "c "}),
    )
    for answer, prompt in ((unnamed, "query: "), (named, "code: "), (none, ""), (both, "c ")):
        np.testing.assert_allclose(answer.json(), model.encode([prompt + "a"]), atol=1e-6)


def test_many_clients_at_once_get_their_own_vectors():
    model = Letters(PROMPTS)
    app = create_app(model, None, Settings(batch_tokens=512))

    async def body():
        async with clients(app) as client:

            async def ask(i):
                texts = [f"{'abcdefghij'[i % 10] * (1 + (i * k) % 17)} {i % 7}" for k in range(1 + i % 5)]
                role = ("query", "document", "code")[i % 3]
                answer = await client.post("/embed", json={"texts": texts, "role": role})
                np.testing.assert_allclose(answer.json(), [model.vector(PROMPTS[role] + t) for t in texts], atol=1e-6)

            await asyncio.gather(*(ask(i) for i in range(300)))

    asyncio.run(body())
    assert 10 < len(model.calls) < 300 and len(model.threads) == 1


def test_ten_thousand_texts():
    texts = [f"text {i}" for i in range(10_000)]
    refused, empty = answers(create_app(Letters()), ("/embed", {"texts": texts}), ("/embed", {"texts": []}))
    assert refused.status_code == 413 and "limits.texts" in refused.json()["error"]["message"]
    assert empty.json() == []
    (answer,) = answers(
        create_app(Letters(), None, Settings(limits=Limits(texts=10_000))), ("/embed", {"texts": texts})
    )
    np.testing.assert_allclose(answer.json(), [Letters.vector(text) for text in texts], atol=1e-6)


def test_vectors_are_kept_by_prompt_and_text():
    model = Letters(PROMPTS)
    app = create_app(model)

    async def body():
        async with clients(app) as client:
            model.calls.clear()
            for role in ("query", "document", "query", "document", "code"):
                answer = await client.post("/embed", json={"texts": ["sort", "tree", "sort"], "role": role})
                np.testing.assert_allclose(answer.json()[1], model.vector(PROMPTS[role] + "tree"), atol=1e-6)
            return (await client.get("/metrics")).text

    page = asyncio.run(body())
    assert [[prompt for prompt, _ in call] for call in model.calls] == [["query: "] * 2, [""] * 2, ["code: "] * 2]
    assert (sample(page, "cache_hits_total"), sample(page, "cache_misses_total")) == (4, 6)
    assert sample(page, "cache_bytes") > 6 * 26 * 4


def test_a_query_s_vector_is_not_a_document_s_where_the_model_tells_them_apart(model):
    coded = Coded(model).stored_as(Binary(32))
    model.prompts.clear()
    body = {"texts": ["sort a list"]}
    asked = [("/embed", body | {"role": role}) for role in ("query", "document", "query", "symmetric")]
    query, document, again, symmetric = (answer.json() for answer in answers(create_app(coded), *asked))
    np.testing.assert_allclose(query, model.encode(["sort a list"]), atol=1e-6)
    np.testing.assert_allclose(document, coded.encode(["sort a list"], "document"), atol=1e-6)
    assert query == again != document == symmetric


def test_openai_answers_have_openai_s_form(model):
    ask = {"input": ["a", "sort"], "model": "m", "user": "u"}
    floats, coded, short, one = answers(
        create_app(model, None, Settings(name="m")),
        ("/v1/embeddings", ask | {"encoding_format": "float"}),
        ("/v1/embeddings", ask | {"encoding_format": "base64"}),
        ("/v1/embeddings", ask | {"dimensions": 8, "role": "query"}),
        ("/v1/embeddings", {"input": "a", "model": "m"}),
    )
    vectors = model.encode(["a", "sort"])
    got = floats.json()
    assert list(got) == ["object", "data", "model", "usage"]
    assert (
        got["usage"] == {"prompt_tokens": 3 + 6, "total_tokens": 9} and got["object"] == "list" and got["model"] == "m"
    )
    assert [list(row) for row in got["data"]] == [["object", "index", "embedding"]] * 2
    assert [(row["object"], row["index"]) for row in got["data"]] == [("embedding", 0), ("embedding", 1)]
    np.testing.assert_allclose([row["embedding"] for row in got["data"]], vectors, atol=1e-6)
    decoded = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in coded.json()["data"]]
    np.testing.assert_array_equal(decoded, np.array([row["embedding"] for row in got["data"]], np.float32))
    cut = model.encode(["a", "sort"], role="query")[:, :8]
    expected = [row / np.sqrt((row**2).sum()) for row in cut]
    np.testing.assert_allclose([row["embedding"] for row in short.json()["data"]], expected, atol=1e-6)
    assert one.json()["data"] == got["data"][:1] and coded.json()["usage"] == got["usage"]


def test_the_model_is_listed_as_openai_s_are(model):
    async def body():
        async with clients(create_app(model, None, Settings(name="m"))) as client:
            return (await client.get("/v1/models")).json(), (await client.get("/health")).json()

    listed, health = asyncio.run(body())
    assert listed == {
        "object": "list",
        "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "unitsphere"}],
    }
    assert health == {
        "status": "ready", "model": "m", "dim": 32, "max_length": 128, "prompts": PROMPTS, "reranks_by": "cosine",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/embeddings", {"input": [1, 2], "model": "m"}, 400, "token ids"),
        ("/v1/embeddings", {"input": [[1, 2], [3]], "model": "m"}, 400, "send texts"),
        ("/v1/embeddings", {"input": "a", "model": "other"}, 404, "'m'"),
        ("/v1/embeddings", {"input": [], "model": "m"}, 400, "at least one"),
        ("/v1/embeddings", {"input": "a"}, 400, "model"),
        ("/v1/embeddings", {"input": "a", "model": "m", "dimensions": 33}, 400, "32"),
        ("/v1/embeddings", {"input": "a", "model": "m", "dimensions": 0}, 400, "dimensions"),
        ("/v1/embeddings", {"input": "a", "model": "m", "encoding_format": "int8"}, 400, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "model": "m", "role": "quary"}, 400, "query, document, symmetric, code"),
        ("/embed", {"texts": ["a"], "colour": "red"}, 400, "colour"),
        ("/embed", {"texts": ["a"], "truncation_direction": "Left"}, 400, "truncation_direction"),
        ("/embed", {"texts": ["a", None]}, 400, "texts.1"),
        ("/embed", {"texts": {"a": 1}}, 400, "texts"),
        ("/embed", {"role": "query"}, 400, "texts"),
        ("/embed", {"texts": ["a"], "normalize": False}, 400, "length one"),
        ("/embed", {"texts": ["a", "b" * 1001]}, 413, "text 1 has 1001 characters"),
        ("/embed", {"texts": ["a"], "prompt": "b" * 1000}, 413, "1 characters and its prompt 1000, and 1000 are"),
        ("/embed", {"texts": ["a"] * 21}, 413, "limits.texts"),
        ("/embed", {"texts": ["a", "b c " * 70], "truncate": False}, 413, "text 1 has more than the 128 tokens"),
        ("/rerank", {"query": "b" * 1001, "texts": ["a"]}, 413, "the query has 1001 characters"),
        ("/rerank", {"query": "b c " * 70, "texts": ["a"], "truncate": False}, 413, "the query has more than the 128"),
        ("/rerank", {"query": "b", "texts": ["a", "b" * 1001]}, 413, "text 1 has 1001 characters"),
        ("/rerank", {"query": "b", "texts": ["a"] * 21}, 413, "limits.texts"),
        ("/rerank", {"query": "b", "texts": ["a"], "top_n": 0}, 400, "top_n"),
        ("/rerank", {"texts": ["a"]}, 400, "query"),
        ("/nothing", {}, 404, "Not Found"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_form(model, path, body, status, said):
    settings = Settings(name="m", limits=Limits(texts=20, characters=1000))
    answer, fine = answers(create_app(model, None, settings), (path, body), ("/embed", {"texts": ["a"]}))
    error = answer.json()["error"]
    assert answer.status_code == status and said in error["message"]
    assert list(answer.json()) == ["error"] and list(error) == ["message", "type", "param", "code"]
    assert error["type"] == "invalid_request_error" and fine.status_code == 200


BODIES = [
    b"", b"{", b"nonsense", b"[]", b"null", b"3", b'"a"', b"\x00\x01\x02\xff" * 100, b'{"texts": ["\xff\xfe"]}',
    b'{"texts": ["\\ud800"]}', b'{"texts": ["a"], "prompt": "\\udfff"}', b"[" * 100_000, b'{"texts": ' + b"[" * 100_000,
    b'{"texts": ["a"], "dimensions": 1e999}', b'{"texts": [' + b"9" * 5000 + b"]}", b'{"texts": [NaN]}', b"\x1f\x8b\x08\x00", b'{"\\ud800": 1}',
    b"--x\r\nContent-Disposition: form-data; name=texts\r\n\r\na\r\n--x--",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data; boundary=x", "", None])
def test_no_body_makes_the_server_fail(model, kind):
    async def body():
        async with clients(create_app(model)) as client:
            for path in ("/embed", "/v1/embeddings", "/rerank"):
                for sent in BODIES:
                    head = {} if kind is None else {"Content-Type": kind}
                    answer = await client.post(path, content=sent, headers=head)
                    assert 400 <= answer.status_code < 500, (path, sent[:40], answer.text)
                    assert answer.json()["error"]["message"]
            assert (await client.post("/embed", json={"texts": ["a"]})).status_code == 200

    asyncio.run(body())


@pytest.mark.parametrize("told", [True, False])
def test_a_huge_body_is_refused_before_it_is_read(model, told):
    sent = []

    async def chunks():
        for _ in range(1000):
            sent.append(1000)
            yield b"x" * 1000

    async def body():
        async with clients(create_app(model, None, Settings(limits=Limits(body_bytes=5000)))) as client:
            head = {"Content-Type": "application/json"} | ({"Content-Length": "1000000"} if told else {})
            answer = await client.post("/embed", content=chunks(), headers=head)
            assert answer.status_code == 413 and "5000 bytes" in answer.json()["error"]["message"]
            assert sum(sent) == (0 if told else 6000)
            assert (await client.post("/embed", json={"texts": ["a"]})).status_code == 200

    asyncio.run(body())


@pytest.mark.parametrize("on_long", ["cut", "error"])
def test_texts_that_are_too_long_are_cut_and_counted_or_refused(model, on_long):
    texts = ["a " * 126, "a " * 127, "b", "c " * 300, "c " * 300]  # and two special tokens: 128 fit
    app = create_app(model, None, Settings(on_long=on_long))

    async def body():
        async with clients(app) as client:
            for _ in range(2):  # the second time out of the cache
                cut = await client.post("/embed", json={"texts": texts, "truncate": True})
                np.testing.assert_allclose(cut.json(), model.encode(texts), atol=1e-6)
                assert cut.headers["x-truncated-texts"] == "3" and cut.headers["x-tokens"] == str(4 * 128 + 3)
                refused = await client.post("/embed", json={"texts": texts, "truncate": False})
                assert refused.status_code == 413 and "text 1" in refused.json()["error"]["message"]
                as_set = await client.post("/v1/embeddings", json={"input": texts, "model": "model"})
                assert as_set.status_code == (200 if on_long == "cut" else 413)
            return (await client.get("/metrics")).text

    page = asyncio.run(body())
    assert sample(page, "truncated_texts_total", endpoint="/embed") == 6


def test_rerank_by_the_model_s_cosine(model):
    query, texts = "sort a list", ["tree", "sort the list", "", "sort a list", "tree"]
    all_of_it, best = answers(
        create_app(model),
        ("/rerank", {"query": query, "texts": texts}),
        ("/rerank", {"query": query, "texts": texts, "top_n": 2, "return_texts": True}),
    )
    q, d = model.encode([query], role="query")[0], model.encode(texts, role="document")
    cosines = [sum(float(a) * float(b) for a, b in zip(q, row, strict=True)) for row in d]
    order = sorted(range(5), key=lambda i: -cosines[i])
    got = all_of_it.json()
    assert [row["index"] for row in got] == order and order.index(0) < order.index(4)
    np.testing.assert_allclose([row["score"] for row in got], sorted(cosines)[::-1], atol=1e-6)
    assert [(row["index"], row["text"]) for row in best.json()] == [(i, texts[i]) for i in order[:2]]
    assert all_of_it.headers["x-scored-by"] == "cosine"


def test_rerank_by_a_cross_encoder(model, reranker):
    query, texts = "sort a list", ["tree", "sort the list", "", "y " * 500, "tree"]
    app = create_app(model, reranker, Settings(batch_tokens=64))
    raw, soft, none, refused = answers(
        app,
        ("/rerank", {"query": query, "texts": texts, "raw_scores": True}),
        ("/rerank", {"query": query, "texts": texts, "return_text": True}),
        ("/rerank", {"query": query, "texts": []}),
        ("/rerank", {"query": query, "texts": texts, "truncate": False}),
    )
    logits = reranker([(query, text) for text in texts])[:, 0]
    scores = {row["index"]: row["score"] for row in raw.json()}
    np.testing.assert_allclose([scores[i] for i in range(5)], logits, atol=1e-6)
    assert [row["index"] for row in raw.json()] == np.argsort(-logits, kind="stable").tolist()
    for row in soft.json():
        assert row["score"] == pytest.approx(1 / (1 + np.exp(-scores[row["index"]])), abs=1e-6)
        assert row["text"] == texts[row["index"]]
    whole = list(map(len, reranker.tokenizer([query] * 5, texts)["input_ids"]))
    assert raw.headers["x-tokens"] == str(sum(min(n, reranker.max_length) for n in whole))
    assert raw.headers["x-truncated-texts"] == "1" and raw.headers["x-scored-by"] == "cross-encoder"
    assert none.json() == [] and refused.status_code == 413 and "text 3" in refused.json()["error"]["message"]


@pytest.mark.parametrize("bad", ["a!", "a?"])
def test_a_model_that_fails_fails_one_request(bad, caplog):
    app = create_app(Letters())
    failed, fine = answers(
        app, ("/v1/embeddings", {"input": ["a", bad], "model": "model"}), ("/embed", {"texts": ["a"]})
    )
    assert failed.status_code == 500 and fine.status_code == 200
    error = failed.json()["error"]
    assert error["type"] == "server_error" and "letters only" not in error["message"]
    assert any(record.exc_info or "1 of a batch of 2" in record.getMessage() for record in caplog.records)


def test_a_text_without_a_vector_fails_its_own_request_and_none_beside_it():
    model = Letters()
    app = create_app(model)

    async def body():
        async with clients(app) as client:
            first = await held_up(model, client)
            texts = (["one"], ["a?", "two"], ["three"], ["four", "two"])
            asked = [asyncio.create_task(client.post("/embed", json={"texts": some})) for some in texts]
            await queued(client, sum(len(text) + 2 for some in texts for text in some))
            model.free.set()
            return await first, await asyncio.gather(*asked)

    _, found = asyncio.run(body())
    assert len(model.calls) == 2 and len(model.calls[1]) == 5  # all of them in one batch
    assert [answer.status_code for answer in found] == [200, 500, 200, 200]
    np.testing.assert_allclose(found[3].json(), [Letters.vector("four"), Letters.vector("two")], atol=1e-6)


def test_a_text_that_takes_long_to_count_keeps_nobody_waiting(monkeypatch):
    go, count = threading.Event(), Engine._count

    def slow(self, key):
        if not go.wait(20):
            raise TimeoutError("nobody else was answered")
        return count(self, key)

    monkeypatch.setattr(Engine, "_count", slow)

    async def body():
        async with clients(create_app(Letters())) as client:
            asked = asyncio.create_task(client.post("/embed", json={"texts": ["long"]}))
            await asyncio.sleep(0.05)
            health = await client.get("/health")
            assert health.status_code == 200 and not asked.done()
            go.set()
            assert (await asked).status_code == 200

    asyncio.run(body())


def test_a_rerank_that_is_refused_computes_nothing():
    model = Letters()

    async def body():
        async with clients(create_app(model, None, Settings(limits=Limits(texts=2)))) as client:
            model.calls.clear()
            refused = await client.post("/rerank", json={"query": "a", "texts": ["a", "b", "c"]})
            assert refused.status_code == 413 and not model.calls

    asyncio.run(body())


def test_a_full_queue_says_when_to_come_again():
    model = Letters()
    app = create_app(model, None, Settings(limits=Limits(queue_tokens=50)))

    async def body():
        async with clients(app) as client:
            first = await held_up(model, client)
            second = asyncio.create_task(client.post("/embed", json={"texts": ["b" * 60]}))
            await queued(client, 62)
            busy = await client.post("/v1/embeddings", json={"input": "c", "model": "model"})
            model.free.set()
            return busy, await first, await second, await client.post("/embed", json={"texts": ["c"]})

    busy, *others = asyncio.run(body())
    assert busy.status_code == 429 and int(busy.headers["retry-after"]) >= 1
    assert busy.json()["error"]["code"] == "queue_full"
    assert [other.status_code for other in others] == [200] * 3


def test_what_a_client_that_left_had_asked_for_is_not_computed():
    model = Letters()
    app = create_app(model)
    sent, heard = [], []

    async def receive():
        if not heard:
            heard.append(1)
            return {"type": "http.request", "body": b'{"texts": ["gone", "lost"]}', "more_body": False}
        await until(lambda: left)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    left = []
    head = [(b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": "/embed", "raw_path": b"/embed", "query_string": b"", "headers": head,
        "http_version": "1.1", "scheme": "http", "server": ("here", 80), "client": ("there", 1), "root_path": "",
    }  # fmt: skip

    async def body():
        async with clients(app) as client:
            first = await held_up(model, client)
            leaving = asyncio.create_task(app(scope, receive, send))
            await queued(client, 12)
            left.append(1)
            await leaving
            assert sample((await client.get("/metrics")).text, "queue_tokens") == 0
            model.free.set()
            assert (await first).status_code == 200
            await client.post("/embed", json={"texts": ["later"]})
            return (await client.get("/metrics")).text

    page = asyncio.run(body())
    assert [text for call in model.calls for _, text in call] == ["first", "later"]
    assert sample(page, "requests_total", status="499") == 1


def test_a_draining_server_answers_what_it_has_taken_and_takes_no_more():
    model, door = Letters(), Door()
    app = create_app(model, None, None, door)

    async def body():
        async with clients(app) as client:
            model.free.clear()
            model.calls.clear()
            taken = [asyncio.create_task(client.post("/embed", json={"texts": [f"text {i}"] * 3})) for i in range(20)]
            await until(lambda: model.calls and door.inside == 20)
            door.draining = True
            late, health = await client.post("/embed", json={"texts": ["late"]}), await client.get("/health")
            model.free.set()
            answered = await asyncio.gather(*taken)
            assert [one.status_code for one in answered] == [200] * 20 and door.inside == 0
            assert answered[-1].headers["connection"] == "close"
            return late, health

    late, health = asyncio.run(body())
    assert late.status_code == health.status_code == 503 and health.json()["status"] == "draining"
    assert late.headers["retry-after"] == "1" and late.json()["error"]["code"] == "draining"


@pytest.mark.parametrize("key", ["geheim-ключ-7f3a", "geheim-voilà"])  # whose last byte is a blank in Latin-1
def test_a_key_is_asked_for_and_told_to_nobody(key, caplog):
    settings = Settings(api_key=key)
    app = create_app(Letters(), None, settings)
    caplog.set_level(logging.DEBUG)

    async def body():
        async with clients(app) as client:

            async def ask(authorization, path="/embed"):
                head = {} if authorization is None else {"Authorization": authorization.encode()}
                return await client.post(path, json={"texts": ["a!"]}, headers=head)

            for wrong in (None, "", "Bearer", "Bearer ", f"Bearer {key}x", f"Bearer {key[:-1]}", f"Basic {key}", key):
                refused = await ask(wrong)
                assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer", wrong
                assert refused.json()["error"]["code"] == "invalid_api_key"
            assert (await ask(f"Bearer {key}")).status_code == (await ask(f"bearer {key}")).status_code == 500
            assert (await ask(None, "/nothing")).status_code == 401
            pages = [await client.get("/health"), await client.get("/metrics")]
            assert [page.status_code for page in pages] == [200, 200]
            return "".join(page.text for page in pages) + refused.text

    said = asyncio.run(body()) + caplog.text + repr(settings) + str(app.__dict__)
    assert key not in said and "geheim" not in said


def test_metrics_count_what_happened(model):
    async def body():
        async with clients(create_app(model, None, Settings(batch_tokens=12))) as client:
            await client.post("/embed", json={"texts": ["abc", "de", "abc"]})
            await client.post("/v1/embeddings", json={"input": "abc", "model": "model"})
            await client.post("/embed", json={})
            for i in range(3):
                await client.get(f"/secret{i}")
            return await client.get("/metrics")

    answer = asyncio.run(body())
    page = answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    assert sample(page, "requests_total", endpoint="/embed", status="200") == 1
    assert sample(page, "requests_total", endpoint="/embed", status="400") == 1
    assert sample(page, "requests_total", endpoint="other", status="404") == 3 and "secret" not in page
    assert sample(page, "request_seconds_count", endpoint="/embed") == 2
    assert sample(page, "texts_total") == 4 and sample(page, "tokens_total", endpoint="/embed") == 5 + 4 + 5
    assert sample(page, "batch_texts_count") == 1 and sample(page, "batch_texts_sum", model="embedder") == 2
    assert sample(page, "batch_tokens_sum") == 9 and sample(page, "batch_seconds_sum") > 0
    assert (sample(page, "cache_hits_total"), sample(page, "cache_misses_total")) == (1, 2)
    assert sample(page, "queue_tokens") == 0


def test_every_path_is_counted_by_its_name(model):
    app = create_app(model)
    assert set(app.openapi()["paths"]) == ENDPOINTS


def test_the_configuration_s_keys_are_the_settings():
    config = OmegaConf.to_container(composed("model=x", "threads=1", root="serve"))
    given = {"name": "model", "api_key": None}  # made of `name` and `api_key_env`
    assert serve.checked(Settings, {**config, **given}) == Settings() and serve.checked(Process, config) == Process()
    read = {field for kind in (Settings, Process) for field in kind.__dataclass_fields__}
    assert set(config) == read - {"api_key"} | {"model", "reranker", "cross_encoder", "api_key_env"}


def test_the_reranker_reads_as_many_tokens_as_it_is_told(reranker, tmp_path, monkeypatch):
    pooling, embedder = "unitsphere.pooling.mean.MeanPooling", "unitsphere.embedder.Embedder"
    artefact.save(artefact.assemble(tiny(), {"_target_": pooling}, {"_target_": embedder}), tmp_path / "tiny")

    def made(model, given, *rest):
        raise UsageError(f"reads {given.max_length}")

    monkeypatch.setattr("unitsphere.serving.app.create_app", made)
    line = [f"model={tmp_path / 'tiny'}", f"reranker={tmp_path / 'reranker'}", "cross_encoder.max_length=64"]
    with pytest.raises(UsageError, match="reads 64"):
        serve.job(composed(*line, "threads=1", root="serve"))


def test_a_key_out_of_a_file_ends_before_its_line_does(monkeypatch):
    monkeypatch.setenv("UNITSPHERE_KEY", " geheim\r\n")
    assert serve.api_key("UNITSPHERE_KEY") == "geheim"
    monkeypatch.setenv("UNITSPHERE_KEY", "\n")
    with pytest.raises(UsageError, match="UNITSPHERE_KEY"):
        serve.api_key("UNITSPHERE_KEY")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["on_long=crop"], "on_long=crop: Input should be 'cut' or 'error'"),
        (["batch_tokens=0"], "batch_tokens=0"),
        (["batch_tokens=many"], "batch_tokens=many"),
        (["wait_ms=-1"], "wait_ms=-1"),
        (["limits.texts=0"], "limits.texts=0"),
        (["limits.texts=null"], "limits.texts=None"),
        (["port=http"], "port=http"),
        (["port=70000"], "port=70000"),
        (["threads=0"], "threads=0"),
        (["cache_mib=inf"], "cache_mib=inf"),
        (["grace_seconds=-1"], "grace_seconds=-1"),
        (["api_key_env=UNITSPHERE_NO_KEY"], "UNITSPHERE_NO_KEY"),
        (["model=???"], "model must be given"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_a_server_cannot_be_told(overrides, said, monkeypatch):
    monkeypatch.delenv("UNITSPHERE_NO_KEY", raising=False)
    with pytest.raises(UsageError, match=re.escape(said)):
        serve.job(composed("model=/no/model", *overrides, root="serve"))


def test_a_role_that_the_model_has_no_prompt_for_ends_it_at_once(model):
    with pytest.raises(UsageError, match="role=quary: this model knows query, document, symmetric, code"):
        create_app(model, None, Settings(role="quary"))


def test_without_the_extra_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(UsageError, match=re.escape("uvicorn missing: pip install 'unitsphere[serve]'")):
        serve.job(composed("model=x", root="serve"))


def test_a_run_is_called_by_its_two_folders(tmp_path):
    run = tmp_path / "simcse-mean" / "s1_x"
    run.mkdir(parents=True)
    assert serve.called(str(run)) == "s1_x" and serve.called("BAAI/bge-small-en") == "BAAI/bge-small-en"
    (run / "run.json").write_text(json.dumps({}))
    assert serve.called(str(run)) == "simcse-mean/s1_x"


def test_a_refusal_names_the_field_that_the_client_sent(model):
    app = create_app(model, None, Settings(name="m", limits=Limits(texts=2, characters=10)))
    asked = (("/v1/embeddings", {"model": "m", "input": texts}) for texts in (["a" * 11], ["a"] * 3))
    for answer in answers(app, *asked):
        assert answer.status_code == 413 and answer.json()["error"]["param"] == "input"
