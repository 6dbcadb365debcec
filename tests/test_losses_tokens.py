"""Losses that read tokens or teachers: masking, MLM, replaced-token detection, distillation."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertForMaskedLM

from making import CPU, batch_of_texts, encoded, model
from unitsphere import paths
from unitsphere.encoders.language_model import generator, with_head
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.losses.distil import Relational, Response
from unitsphere.losses.distil_features import Features
from unitsphere.losses.infonce import InfoNCE
from unitsphere.losses.margin_mse import MarginMSE
from unitsphere.losses.masking import Masking
from unitsphere.losses.mlm import MaskedLM, logits_at
from unitsphere.losses.projected import Projected
from unitsphere.losses.rtd import ReplacedTokenDetection
from unitsphere.losses.teacher import Teacher
from unitsphere.tracing import as_graph
from unitsphere.types import Tokens


def padded(rows=64, width=40, seed=0):
    """Random sentences of letters between [CLS] and [SEP], of several lengths."""
    encoder, generator_ = tiny(), np.random.default_rng(seed)
    words = ["".join(generator_.choice(list("abcdefgh"), 4)) for _ in range(30)]
    texts = [" ".join(generator_.choice(words, generator_.integers(2, width // 5))) for _ in range(rows)]
    from unitsphere.types import Text

    return encoder, encoder.pad([Text(ids) for ids in encoder.tokenize(texts)])


def test_masking_keeps_the_shares_and_spares_special_tokens():
    encoder, tokens = padded(rows=400)
    torch.manual_seed(0)
    out, chosen = Masking(encoder.tokenizer, ratio=0.3)(tokens)
    special = torch.isin(tokens.ids, torch.tensor(encoder.tokenizer.all_special_ids))
    assert not (chosen & special).any() and torch.equal(out.ids[~chosen], tokens.ids[~chosen])
    assert float(chosen.sum() / (~special).sum()) == pytest.approx(0.3, abs=0.02)
    masked = out.ids[chosen] == encoder.tokenizer.mask_token_id
    kept = out.ids[chosen] == tokens.ids[chosen]
    assert float(masked.float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float(kept.float().mean()) == pytest.approx(0.1, abs=0.02)


def test_whole_words_are_masked_whole():
    encoder, tokens = padded()
    torch.manual_seed(0)
    masking = Masking(encoder.tokenizer, ratio=0.4, whole_word=True)
    _, chosen = masking(tokens)
    pieces = encoder.tokenizer.convert_ids_to_tokens
    words = partial_words = 0
    for ids, mask in zip(tokens.ids.tolist(), chosen.tolist(), strict=True):
        word: list[bool] = []
        for piece, hit in [*zip(pieces(ids), mask, strict=True), ("[END]", False)]:
            if not piece.startswith("##"):
                words += bool(word)
                partial_words += len(set(word)) > 1
                word = []
            if piece not in encoder.tokenizer.all_special_tokens:
                word.append(hit)
    assert words > 200 and partial_words == 0
    assert 0.3 < float(chosen.sum() / (tokens.mask.sum() - 2 * len(tokens.mask))) < 0.5


def test_a_tokenizer_without_a_mask_token_asks_for_one():
    encoder = tiny()
    encoder.tokenizer.mask_token = None
    with pytest.raises(UsageError, match=r"loss\.mask_token"):
        Masking(encoder.tokenizer)
    assert Masking(encoder.tokenizer, mask_token="_").mask_id == encoder.tokenizer.get_vocab()["_"]


def mlm(embedder, **options):
    loss = MaskedLM(partial(with_head, causal=False), **options)
    loss.attach(embedder)
    return loss


@pytest.mark.parametrize("chunks", [1, 4])
def test_mlm_equals_transformers_own_loss(chunks):
    embedder = model(dropout=0.0)
    loss, batch = mlm(embedder, mask_ratio=0.4, random=0.0, keep=0.0), batch_of_texts()
    seen = []
    mask = loss.mask
    loss.mask = lambda tokens: seen.append((tokens, mask(tokens))) or seen[-1][1]
    out = loss(encoded(embedder, batch, loss, chunks))
    total, count = 0.0, 0
    for tokens, (replaced, chosen) in seen:
        labels = tokens.ids.masked_fill(~chosen, -100)
        theirs = loss.model(input_ids=replaced.ids, attention_mask=tokens.mask, labels=labels).loss
        total, count = total + theirs * chosen.sum(), count + int(chosen.sum())
    assert len(seen) == chunks and count > 20
    torch.testing.assert_close(out.total, total / count, atol=1e-5, rtol=1e-5)


def test_the_head_is_tied_shares_the_encoder_and_is_saved_with_it(tmp_path):
    embedder = model()
    loss = mlm(embedder)
    assert loss.model.base_model is embedder.encoder.model
    words = embedder.encoder.model.embeddings.word_embeddings.weight
    assert loss.model.get_output_embeddings().weight is words
    embedder.encoder.exported().save_pretrained(tmp_path)
    embedder.encoder.tokenizer.save_pretrained(tmp_path)
    again, _ = generator(str(tmp_path))
    assert isinstance(again, BertForMaskedLM)
    for name, value in loss.model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)


def test_a_generator_without_a_head_is_refused(tmp_path):
    encoder = tiny()
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="loss=mlm"):
        generator(str(tmp_path))
    with pytest.raises(UsageError, match="no masked language model"):
        generator(str(tmp_path / "nothing"))


def test_mlm_learns():
    torch.manual_seed(0)
    embedder = model(dropout=0.0)
    loss = mlm(embedder)
    optimizer = torch.optim.AdamW({*embedder.parameters(), *loss.parameters()}, lr=3e-3)
    history = []
    for _ in range(40):
        total = loss(encoded(embedder, batch_of_texts(), loss)).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total))
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:5])


def test_next_token_reads_the_state_before():
    embedder = model(dropout=0.0)
    loss = mlm(embedder, next_token=True, mask_ratio=0.4)
    encoder, tokens = padded(rows=4)
    torch.manual_seed(0)
    got = loss.rows(tokens)
    torch.manual_seed(0)
    replaced, chosen = loss.mask(tokens)
    logits = loss.model(input_ids=replaced.ids, attention_mask=tokens.mask).logits
    for row in range(4):
        at = [t for t in range(1, chosen.shape[1]) if chosen[row, t]]
        expected = sum(F.cross_entropy(logits[row, t - 1], tokens.ids[row, t]) for t in at)
        torch.testing.assert_close(got[row, 0], torch.as_tensor(expected), atol=1e-4, rtol=1e-4)
        assert int(got[row, 1]) == len(at)
    assert encoder.dim == 32


def test_logits_only_where_asked():
    embedder = model(dropout=0.0)
    loss, (_, tokens) = mlm(embedder), padded(rows=3)
    where = torch.rand(tokens.ids.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    whole = loss.model(input_ids=tokens.ids, attention_mask=tokens.mask).logits
    torch.testing.assert_close(logits_at(loss.model, tokens, where), whole[where], atol=1e-5, rtol=1e-5)


def rtd(embedder, **options):
    """With a generator of random weights."""
    torch.manual_seed(5)
    other = tiny(seed=5, dropout=0.1)
    head = with_head(other)
    loss = ReplacedTokenDetection(lambda: (head, other.tokenizer), **options)
    loss.attach(embedder)
    return loss.train()


def official(loss, tokens, z, edited):
    """The arithmetic of DiffCSE's cl_forward: [CLS] embedding overwritten, cross-entropy over every position."""
    bert = loss.discriminator
    embedded = bert.embeddings(input_ids=edited.ids)
    embedded = torch.cat([z[:, None], embedded[:, 1:]], dim=1)
    mask = (1.0 - tokens.mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    hidden = embedded
    for layer in bert.encoder.layer:
        out = layer(hidden, mask)
        hidden = out[0] if isinstance(out, tuple) else out
    labels = (edited.ids != tokens.ids).long()
    return F.cross_entropy(loss.head(hidden).view(-1, 2), labels.view(-1), reduction="none").view(labels.shape)


@pytest.mark.parametrize("count_padding", [True, False])
def test_rtd_equals_the_official_arithmetic(count_padding):
    embedder = model(dropout=0.0)
    loss = rtd(embedder, count_padding=count_padding)
    e = encoded(embedder, batch_of_texts(), loss)
    seen, edit = [], loss.edit
    loss.edit = lambda tokens: seen.append((tokens, edit(tokens))) or seen[-1][1]
    out = loss(e)
    ((tokens, edited),) = seen
    order = np.argsort([-len(t.ids) for t in list(e.batch.tokens["anchor"]) * 2], kind="stable")  # as in a pass
    each = official(loss, tokens, torch.cat(e.anchors)[order], edited)
    weight = torch.ones_like(each) if count_padding else tokens.mask.float()
    torch.testing.assert_close(out.total, (each * weight).sum() / weight.sum(), atol=1e-6, rtol=1e-6)


def test_rtd_gradient_reaches_the_encoder_through_the_vector_only_and_the_generator_not_at_all():
    embedder = model(dropout=0.0)
    loss = rtd(embedder)
    loss(encoded(embedder, batch_of_texts(), loss)).total.backward()
    assert all(p.grad is None for p in loss.generator.parameters())
    assert any(p.grad.abs().sum() > 0 for p in embedder.parameters() if p.grad is not None)
    shared = {id(p) for p in embedder.parameters()} & {id(p) for p in loss.discriminator.parameters()}
    assert not shared


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("sample", [True, False])
def test_rtd_edits_what_it_may(everywhere, sample):
    loss = rtd(model(), everywhere=everywhere, sample=sample, mask_ratio=0.3)
    _, tokens = padded()
    loss.mask, chosen = (lambda t, m=loss.mask: hits.append(m(t)) or hits[-1]), None
    hits = []
    edited = loss.edit(tokens)
    chosen, changed = hits[0][1], edited.ids != tokens.ids
    assert changed.any() and not changed[:, 0].any() and not (changed & (tokens.mask == 0)).any()
    assert (changed & ~chosen).any() == everywhere


def test_rtd_generator_dropout_is_a_switch():
    assert rtd(model()).generator.training
    assert not rtd(model(), generator_dropout=False).train().generator.training


def test_rtd_refuses_another_vocabulary():
    other = tiny()
    other.tokenizer.add_tokens(["extra"])
    loss = ReplacedTokenDetection(lambda: (with_head(other), other.tokenizer))
    with pytest.raises(UsageError, match="another vocabulary"):
        loss.attach(model())


def teacher_of(dim=32, seed=9):
    return lambda: model(dropout=0.0, seed=seed, dim=dim).eval()


def attached(loss, embedder):
    torch.manual_seed(1)
    loss.attach(embedder)
    return loss


@pytest.mark.parametrize("measure", ["mse", "cosine"])
@pytest.mark.parametrize("dim", [32, 64])
def test_response_equals_the_formula(measure, dim):
    embedder, batch = model(dropout=0.0), batch_of_texts()
    loss = attached(Response(teacher_of(dim), measure=measure), embedder)
    e, teacher = encoded(embedder, batch, loss), teacher_of(dim)()
    differences = []
    for column, z in (("anchor", e.anchors[0]), ("positive", e.positives), ("negative", e.negatives)):
        for text, s in zip(batch.texts[column], z, strict=True):
            t = torch.from_numpy(teacher.encode([text])[0])
            s = s if dim == 32 else loss.projection.weight @ s
            differences.append(((s - t) ** 2).mean() if measure == "mse" else 1 - F.cosine_similarity(s, t, dim=0))
    torch.testing.assert_close(loss(e).total, torch.stack(differences).mean(), atol=1e-6, rtol=1e-5)


def test_projections_of_16_bits_read_vectors_of_32():
    embedder, batch = model(dropout=0.0), batch_of_texts()
    for loss in (Response(teacher_of(64)), Projected(InfoNCE()), Projected(InfoNCE(), batchnorm=False)):
        attached(loss, embedder)
        e = encoded(embedder, batch, loss)
        whole = loss(e).total
        torch.testing.assert_close(loss.bfloat16()(e).total.float(), whole, rtol=0.1, atol=0.01)


def test_a_batch_without_a_negative_is_taught_by_its_other_columns():
    class Scorer:
        model, max_length = torch.nn.Linear(1, 1), 8

        def __call__(self, pairs):
            return np.zeros((len(pairs), 1), dtype=np.float32)

    embedder, batch = model(dropout=0.0), batch_of_texts(negatives=())
    for make in (lambda: Response(teacher_of(64)), lambda: Relational(teacher_of(64))):
        loss, without = attached(make(), embedder), attached(make(), embedder)
        without.optional = ("positive",)
        out = loss(encoded(embedder, batch, loss)).total
        torch.testing.assert_close(out, without(encoded(embedder, batch, without)).total)
    loss = attached(MarginMSE(Scorer, scale=10.0), embedder)
    total = loss(encoded(embedder, batch, loss)).total
    total.backward()  # of several ranks, each takes part
    assert float(total) == 0


def test_a_teacher_reads_the_rows_own_instructions():
    embedder, batch = model(dropout=0.0), batch_of_texts(negatives=())
    loss, teacher = attached(Response(teacher_of()), embedder), teacher_of()()
    own = ["find: ", None, "name: ", None, "find: ", ""]
    e = encoded(embedder, replace(batch, instructions={"anchor": own}), loss)
    read = [(given or "") + text for given, text in zip(own, batch.texts["anchor"], strict=True)]
    wanted = torch.from_numpy(teacher.encode([*read, *batch.texts["positive"]]))
    expected = (torch.cat([e.anchors[0], e.positives]) - wanted).square().mean()
    for given in (e, e):  # computed, and from disk
        torch.testing.assert_close(loss(given).total, expected, atol=1e-6, rtol=1e-5)
    plain = encoded(embedder, batch, loss)
    assert abs(float(loss(plain).total - expected)) > 1e-5  # another question


def test_parallel_response_teaches_both_sides_the_first_one():
    embedder, batch = model(dropout=0.0), batch_of_texts(negatives=())
    loss = attached(Response(teacher_of(), parallel=True), embedder)
    e, t = encoded(embedder, batch, loss), torch.from_numpy(teacher_of()().encode(batch.texts["anchor"]))
    expected = (((e.anchors[0] - t) ** 2).mean() + ((e.positives - t) ** 2).mean()) / 2
    torch.testing.assert_close(loss(e).total, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("columns", [("positive", "negative"), ("positive",), ()])
def test_relational_equals_the_formula(columns):
    embedder, batch = model(dropout=0.0), batch_of_texts(negatives=(0, 0, 4) if "negative" in columns else ())
    loss = attached(Relational(teacher_of(64), temperature=0.1, teacher_temperature=0.2), embedder)
    loss.optional = columns
    e, teacher = encoded(embedder, batch, loss), teacher_of(64)()
    student = {"anchor": e.anchors[0], "positive": e.positives, "negative": e.negatives}
    t = {c: torch.from_numpy(teacher.encode(texts)) for c, texts in batch.texts.items() if texts}
    candidates = list(columns) or ["anchor"]
    total = 0.0
    for i in range(6):
        p, q = [], []
        for column in candidates:
            for j in range(len(t[column])):
                if columns or i != j:
                    p.append(F.cosine_similarity(t["anchor"][i], t[column][j], dim=0) / 0.2)
                    q.append(F.cosine_similarity(student["anchor"][i], student[column][j], dim=0) / 0.1)
        p, q = torch.stack(p).softmax(0), torch.stack(q).softmax(0)
        total += (p * (p.log() - q.log())).sum()
    torch.testing.assert_close(loss(e).total, total / 6, atol=1e-5, rtol=1e-4)


def test_features_equal_the_formula():
    embedder, batch = model(dropout=0.0), batch_of_texts()
    loss = attached(Features(teacher_of(64), layers={1: 0, 2: 2}), embedder)
    teacher, total, count = teacher_of(64)().encoder, 0.0, 0
    for column in ("anchor", "positive", "negative"):
        for text in batch.tokens[column]:
            one = embedder.encoder.pad([text])
            made, wanted = embedder.encoder(one, layers=True).layers, teacher(one, layers=True).layers
            for t in range(len(text.ids)):
                for k, (low, high) in enumerate([(1, 0), (2, 2)]):
                    difference = loss.projections[k](made[low][0, t]) - wanted[high][0, t]
                    total += (difference**2).mean() / 2
                count += 1
    out = loss(encoded(embedder, batch, loss, chunks=3)).total
    torch.testing.assert_close(out, total / count, atol=1e-5, rtol=1e-4)


def test_features_need_layers_that_are_there_and_one_vocabulary():
    with pytest.raises(UsageError, match="student layers 0 to 2"):
        Features(teacher_of(), layers={3: 1}).attach(model())
    other = model()
    other.encoder.tokenizer.add_tokens(["extra"])
    with pytest.raises(UsageError, match="vocabulary"):
        Features(lambda: other).attach(model())


def test_margin_mse_equals_sentence_transformers():
    st = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason="a dev dependency")
    embedder, batch = model(dropout=0.0), batch_of_texts(negatives=range(6))
    e = encoded(embedder, batch, MarginMSE())
    theirs = st.MarginMSELoss(torch.nn.Identity())
    expected = theirs.compute_loss_from_embeddings([e.anchors[0], e.positives, e.negatives], batch.scores)
    torch.testing.assert_close(MarginMSE()(e).total, expected)


def test_margin_mse_asks_a_cross_encoder():
    class Scorer:
        model, max_length, calls = torch.nn.Linear(1, 1), 8, []

        def __call__(self, pairs):
            self.calls.append(pairs)
            return np.array([[len(a) - 2 * len(b)] for a, b in pairs], dtype=np.float32)

    embedder, batch = model(dropout=0.0), batch_of_texts(negatives=(0, 0, 4))
    loss = attached(MarginMSE(Scorer, scale=3.0), embedder)
    e, total = encoded(embedder, batch, loss), 0.0
    for m, owner in enumerate((0, 0, 4)):
        margin = 3 * (e.anchors[0][owner] @ e.positives[owner] - e.anchors[0][owner] @ e.negatives[m])
        a, p, n = batch.texts["anchor"][owner], batch.texts["positive"][owner], batch.texts["negative"][m]
        total += (margin - ((len(a) - 2 * len(p)) - (len(a) - 2 * len(n)))) ** 2
    torch.testing.assert_close(loss(e).total, total / 3, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match=r"loss\.scale=10"):
        MarginMSE(Scorer).attach(embedder)
    asked = len(Scorer.calls)
    loss(e)
    assert len(Scorer.calls) == asked  # the second time it answers from disk


def test_a_teacher_answers_once_and_in_order():
    calls = []

    def answer(questions):
        calls.append(list(questions))
        return np.array([[len(q), 1.0] for q in questions])

    first = Teacher(answer, 2, "lengths")
    got = first(["aa", "b", "aa", "日本"], CPU)
    assert got[:, 0].tolist() == [2, 1, 2, 2] and calls == [["aa", "b", "日本"]]
    again = Teacher(answer, 2, "lengths")(["b", "ccc"], CPU)
    assert again[:, 0].tolist() == [1, 3] and calls[1:] == [["ccc"]]
    assert Teacher(answer, 2, "other")(["b"], CPU)[0, 0] == 1 and calls[2:] == [["b"]]
    assert len(list((paths.cache() / "teachers").glob("*.sqlite"))) >= 2


@pytest.mark.parametrize("make", [lambda: Response(teacher_of()), lambda: Relational(teacher_of())])
def test_a_student_learns_its_teacher(make):
    embedder, batch = model(dropout=0.0), batch_of_texts()
    loss = attached(make(), embedder)
    optimizer = torch.optim.AdamW(embedder.parameters(), lr=3e-3)
    history = []
    for _ in range(20):
        total = loss(encoded(embedder, batch, loss)).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total))
    assert history[-1] < 0.5 * history[0]


def test_a_student_of_itself_has_nothing_to_learn():
    embedder = model(dropout=0.0)
    same = copy.deepcopy(embedder)
    for loss in (Response(lambda: same), Relational(lambda: same), Features(lambda: same)):
        attached(loss, embedder)
        assert float(loss(encoded(embedder, batch_of_texts(), loss)).total) == pytest.approx(0.0, abs=1e-6)


def test_words_without_special_tokens_around_them_are_masked_too():
    encoder, _ = padded()
    ids = torch.tensor([encoder.tokenizer.convert_tokens_to_ids(list("abcd"))])
    tokens = Tokens(ids, torch.ones_like(ids), torch.zeros(1, dtype=torch.long))
    masking = Masking(encoder.tokenizer, ratio=0.5, whole_word=True)
    torch.manual_seed(0)
    share = sum(masking(tokens)[1].float().mean().item() for _ in range(200)) / 200
    assert share == pytest.approx(0.5, abs=0.06)


def test_a_compressed_teacher_answers_but_shows_no_layers(tmp_path):
    embedder, batch = model(), batch_of_texts()
    graph = as_graph(teacher_of()(), tmp_path)
    out, wanted = (
        loss(encoded(embedder, batch, loss)).total
        for loss in (attached(Response(teacher), embedder) for teacher in (lambda: graph, teacher_of()))
    )
    torch.testing.assert_close(out, wanted, atol=1e-6, rtol=1e-5)
    with pytest.raises(UsageError, match="a GraphModel shows no layers"):
        Features(lambda: graph).attach(embedder)


def test_a_teacher_with_other_settings_does_not_share_answers():
    embedder, batch = model(dropout=0.0), batch_of_texts()
    one, other = teacher_of()(), teacher_of()()
    other.encoder.model.config.is_causal = False
    files = [attached(Response(lambda t=t: t), embedder).teacher.file for t in (one, other)]
    assert files[0] != files[1] and batch.texts


def test_a_student_that_cannot_agree_with_its_teacher_is_refused():
    loose = model(dropout=0.0, normalize=False)
    with pytest.raises(UsageError, match=r"embedder\.normalize=true"):
        Response(teacher_of()).attach(loose)
    Response(teacher_of(64)).attach(loose)
    Response(teacher_of(), measure="cosine").attach(loose)
