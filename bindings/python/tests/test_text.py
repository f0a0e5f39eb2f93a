from __future__ import annotations

import logging
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsv2

SAMPLING = dsv2.Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=42)
GREEDY = dsv2.Sampling(temperature=0)


def test_decoding_gives_back_any_bytes(model: dsv2.Model) -> None:
    tokenizer = model.tokenizer
    for text in ["", "Hello, world", "naïve ½ 漢字 🙂\n\n\t", "nul \0 in it", "<|begin|>"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    every_byte = bytes(range(256)) * 2
    assert tokenizer.decode_bytes(tokenizer.encode(every_byte)) == every_byte


def test_encoding_is_watched_and_cancelled(model: dsv2.Model) -> None:
    tokenizer, text, reports = model.tokenizer, "Once upon a time. " * 20000, []
    tokens = tokenizer.encode(text, bos=True, progress=lambda *report: reports.append(report))
    assert tokens == tokenizer.encode(text, bos=True)
    assert reports[-1] == (dsv2.Phase.ENCODE, len(text), len(text))
    assert len(reports) > 3

    def stop(_phase: dsv2.Phase, _done: int, _total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        tokenizer.encode(text, progress=stop)


def test_special_tokens_come_only_where_asked_for(model: dsv2.Model) -> None:
    tokenizer = model.tokenizer
    assert tokenizer.encode("x", bos=True) == [tokenizer.bos, *tokenizer.encode("x")]
    assert tokenizer.find("<|end|>") == tokenizer.eos == 1
    assert tokenizer.find("no such token") is None
    assert tokenizer.encode("<|end|>", special=True) == [1]
    assert 1 not in tokenizer.encode("<|end|>")
    assert tokenizer.decode([1]) == ""
    assert tokenizer.decode([1], special=True) == "<|end|>"
    assert tokenizer.token_bytes(1) == b"<|end|>"


def test_a_tokenizer_opens_without_a_model(model: dsv2.Model, model_path: Path) -> None:
    with dsv2.Tokenizer(model_path / "tokenizer.json") as tokenizer:
        assert tokenizer.info.vocab_size == model.tokenizer.info.vocab_size == 384
        assert tokenizer.encode("Once upon a time") == model.tokenizer.encode("Once upon a time")


def test_a_model_outlived_by_its_tokenizer_and_session_stays_usable(model_path: Path) -> None:
    with dsv2.Model(model_path) as model:
        tokenizer, session = model.tokenizer, model.session()
        expected = "".join(session.fork().generate("Once", sampling=GREEDY, max_tokens=5))
    assert model.closed
    assert tokenizer.decode(tokenizer.encode("still here")) == "still here"
    assert "".join(session.generate("Once", sampling=GREEDY, max_tokens=5)) == expected


def test_the_same_seed_gives_the_same_text(model: dsv2.Model) -> None:
    texts = ["".join(model.session().generate("Once upon a time", sampling=SAMPLING, max_tokens=30)) for _ in range(2)]
    other = dsv2.Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=43)
    assert texts[0] == texts[1]
    assert texts[0] != "".join(model.session().generate("Once upon a time", sampling=other, max_tokens=30))


def test_random_numbers_go_on_until_they_are_seeded(session: dsv2.Session) -> None:
    def draws(n: int) -> list[int]:
        return [session.sample() for _ in range(n)]

    session.feed([0, 5])
    session.set_sampling(dsv2.Sampling(seed=42))
    expected = draws(40)
    session.seed(42)
    drawn = draws(20)
    session.set_sampling(dsv2.Sampling(seed=42, logit_bias={1: -math.inf}))
    session.set_sampling(dsv2.Sampling(seed=42))
    assert drawn + draws(20) == expected
    fork = session.fork()
    fork.seed(43)
    assert draws(20) != [fork.sample() for _ in range(20)]


def test_the_text_is_that_of_the_tokens_whatever_the_pieces(model: dsv2.Model) -> None:
    text, tokens = model.session(), model.session()
    pieces = list(text.generate("Once", sampling=SAMPLING, max_tokens=100))
    ids = list(tokens.generate_tokens("Once", sampling=SAMPLING, max_tokens=100))
    assert text.tokens == tokens.tokens == [*model.tokenizer.encode("Once", bos=True), *ids]
    assert "".join(pieces) == model.tokenizer.decode(ids)


def test_a_loop_left_early_leaves_exactly_what_was_given(session: dsv2.Session) -> None:
    given = []
    endless = dsv2.Sampling(temperature=0.8, seed=42, logit_bias={1: -math.inf})
    for token in session.generate_tokens("Once", sampling=endless, max_tokens=100):
        given.append(token)
        if len(given) == 7:
            break
    assert session.tokens[-7:] == given
    whole = session.fork(0)
    whole.seed(42)
    assert list(whole.generate_tokens("Once", sampling=endless, max_tokens=10)) == given + list(
        session.generate_tokens(max_tokens=3)
    )


def test_generation_ends_at_the_end_of_sequence_token(session: dsv2.Session) -> None:
    eos = session.tokenizer.eos
    assert eos is not None
    only_eos = dsv2.Sampling(temperature=0, logit_bias={eos: 1e9})
    assert list(session.generate("Once", sampling=only_eos)) == []
    assert eos not in session.tokens


def test_logit_bias_forbids_a_token(session: dsv2.Session) -> None:
    session.feed(session.tokenizer.encode("Once", bos=True))
    best = session.top_tokens(2)
    session.set_sampling(dsv2.Sampling(temperature=0, logit_bias={best[0].token: -math.inf}))
    assert session.sample() == best[1].token


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content if m.content is string else m.content[0].text }}"
    "{% for call in m.tool_calls %}[{{ call.function.name }}{{ call.function.arguments | tojson }}]{% endfor %}{% endfor %}"
    "{% if tools %}({{ tools | length }}){% endif %}{% if add_generation_prompt %}<reply{{ mood }}>{% endif %}"
)


@pytest.fixture
def templated(model_path: Path, tmp_path: Path) -> dsv2.Tokenizer:
    shutil.copytree(model_path, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return dsv2.Tokenizer(tmp_path)


def test_a_chat_prompt_is_what_the_template_writes(templated: dsv2.Tokenizer, model: dsv2.Model) -> None:
    user: dict[str, Any] = {"role": "user", "content": "Größe\ud83d"}
    add = {"function": {"name": "add", "arguments": {"a": 1}}}
    call: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [add]}
    parts: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "part"}]}

    def text(*messages: dict[str, Any], **more: Any) -> str:
        return templated.decode(templated.encode_chat(messages, **more))

    assert templated.chat_template == TEMPLATE
    assert model.tokenizer.chat_template is None
    assert templated.info.chat_form == "template"
    assert text(user) == "<user>Größe\ufffd<reply>"
    assert text({"role": "user", "content": None}) == "<user><reply>"
    assert text({"role": "user", "content": None}, call, user) == '<user><assistant>[add{"a": 1}]<user>Größe\ufffd<reply>'
    assert text(user, call, {"role": "tool", "content": "7"}) == '<user>Größe\ufffd<assistant>[add{"a": 1}]<tool>7<reply>'
    assert text(parts, tools=[{"type": "function"}] * 2, variables={"mood": "!"}) == "<user>part(2)<reply!>"
    assert text(user, {"role": "assistant", "content": "So"}, open=True) == "<user>Größe\ufffd<assistant>So"
    refused: list[tuple[list[dict[str, Any]], str]] = [
        ([{"role": "user"}], r"messages\[0\].content is missing"),
        ([{"content": "x"}], r"messages\[0\].role is missing"),
        ([{"role": "us\0er", "content": "x"}], r"messages\[0\].role contains a NUL"),
        ([{"role": "user", "content": {1, 2}}], "messages cannot be written as JSON"),
        ([], "no message"),
    ]
    for messages, words in refused:
        with pytest.raises(dsv2.ArgumentError, match=words):
            templated.encode_chat(messages)
    with pytest.raises(dsv2.ArgumentError, match="DSV2_CHAT_OPEN"):
        templated.encode_chat([user], open=True)


def test_any_token_that_ends_a_text_ends_generation(model_path: Path, tmp_path: Path) -> None:
    shutil.copytree(model_path, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [103, 7]}')
    with dsv2.Model(tmp_path) as model, model.session() as session:
        assert model.end_tokens == (model.info.eos_token_id, 103, 7)
        for token, expected in [(103, []), (7, []), (8, [8, 8])]:
            sampling = dsv2.Sampling(temperature=0, logit_bias={token: 1e9})
            assert list(session.generate_tokens([1], max_tokens=2, sampling=sampling)) == expected


def test_a_chat_goes_on_where_the_session_stands(session: dsv2.Session) -> None:
    tokenizer = session.tokenizer
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    list(session.chat("Hello", system="Be brief.", sampling=SAMPLING, max_tokens=5))
    prompt = tokenizer.encode_chat(messages)
    assert session.tokens[: len(prompt)] == prompt
    before = session.tokens
    list(session.chat("And then?", max_tokens=5))
    messages += [{"role": "assistant", "content": "?"}, {"role": "user", "content": "And then?"}]
    expected = [*before, tokenizer.eos, *tokenizer.encode_chat(messages, first=3)]
    assert session.tokens[: len(expected)] == expected
    with pytest.raises(ValueError, match="system"):
        session.chat("more", system="too late")


def test_top_tokens_are_those_of_the_logits(session: dsv2.Session) -> None:
    session.feed([0, 5, 9])
    logits = session.logits().astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    order = np.argsort(-logits, kind="stable")[:10]
    top = session.top_tokens(10)
    assert [item.token for item in top] == order.tolist()
    np.testing.assert_allclose([item.log_probability for item in top], log_probabilities[order], atol=1e-5)
    assert session.log_probability(int(order[3])) == pytest.approx(top[3].log_probability)
    assert len(session.top_tokens(384)) == 384


def test_tokens_may_come_as_any_sequence(model: dsv2.Model) -> None:
    ids = [0, 5, 9, 200]
    all_logits = []
    strided = np.array([0, 7, 5, 7, 9, 7, 200], np.int32)[::2]
    kinds: list[dsv2.TokenIds] = [ids, tuple(ids), np.array(ids, np.int32), np.array(ids, np.int64), strided]
    for tokens in kinds:
        with model.session(cache_type=dsv2.CacheType.F32) as session:
            session.feed(tokens)
            assert session.tokens == ids
            all_logits.append(session.logits().copy())
    with model.session(cache_type=dsv2.CacheType.F32) as session:  # quantised ones differ more with the form of attention
        for token in ids:
            session.feed(token)
        np.testing.assert_allclose(session.logits(), all_logits[0], atol=1e-3)
    for logits in all_logits[1:]:
        np.testing.assert_array_equal(logits, all_logits[0])


def test_a_step_gives_the_bits_of_feeds(model: dsv2.Model) -> None:
    texts = [[0, 5, 9], [0, 300], [0, 17, 18, 19, 20]]
    alone = [model.session() for _ in texts]
    together = [model.session() for _ in texts]
    for session, text in zip(alone, texts):
        session.feed(text)
    rows = model.step_logits(list(zip(together, texts)))
    for one, other, row, text in zip(alone, together, rows, texts):
        assert row.shape == (len(text), 384)
        np.testing.assert_array_equal(one.logits(), other.logits())
        np.testing.assert_array_equal(row[-1], other.logits())
    model.step([(session, [7]) for session in together])
    assert [len(session) for session in together] == [4, 3, 6]


def test_truncate_and_fork_share_a_past(session: dsv2.Session) -> None:
    session.feed([0, 5, 9, 200, 201])
    copy = session.fork(3)
    assert copy.tokens == [0, 5, 9]
    with pytest.raises(dsv2.StateError):
        copy.logits()
    session.truncate(2)
    session.feed(9)
    copy.truncate(2)
    copy.feed(9)
    np.testing.assert_array_equal(session.logits(), copy.logits())


def test_remarks_go_to_logging(model_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dsv2"), dsv2.Model(model_path):
        pass
    assert any(model_record.name == "dsv2" for model_record in caplog.records)


def test_what_opening_takes_is_said_before(model: dsv2.Model, model_path: Path) -> None:
    mapped = dsv2.bytes_needed(model_path)
    assert (mapped.bytes_copied, mapped.memory_left > 0) == (model.info.bytes_copied, True)
    assert mapped.bytes_copied + mapped.bytes_mapped >= model.info.weight_bytes
    read = dsv2.bytes_needed(model_path, loading=dsv2.Loading.READ)
    assert (read.bytes_copied, read.bytes_mapped) == (mapped.bytes_copied + mapped.bytes_mapped, 0)
    with pytest.raises(dsv2.FileError):
        dsv2.bytes_needed("absent")


def test_weights_that_are_read_give_the_logits_of_mapped_ones(model: dsv2.Model, model_path: Path) -> None:
    with dsv2.Model(model_path, loading=dsv2.Loading.READ, insist=True) as read:
        assert read.info.bytes_copied > model.info.bytes_copied
        with read.session() as session, model.session() as other:
            session.feed([1, 2, 3])
            other.feed([1, 2, 3])
            np.testing.assert_array_equal(session.logits(), other.logits())


def test_weights_that_cannot_be_locked_say_why(model_path: Path) -> None:
    code = """
import ctypes, os, resource, sys, dsv2
if os.getuid() == 0:  # who may lock whatever the limit
    os.setgid(65534)
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
try:
    dsv2.Model(sys.argv[1], lock=True)
except dsv2.OutOfMemoryError as failure:
    print(failure)
"""
    with tempfile.TemporaryDirectory() as folder:
        for file in model_path.iterdir():
            shutil.copyfile(file, Path(folder) / file.name)
        Path(folder).chmod(0o755)
        output = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert "RLIMIT_MEMLOCK" in output.stdout


def test_infos_have_the_published_names(model: dsv2.Model) -> None:
    info = model.info
    assert (info.architecture, info.vocab_size, info.kv_lora_rank, info.n_routed_experts) == ("deepseek_v2", 384, 64, 8)
    assert info.container == "safetensors"
    assert info.weight_type is dsv2.WeightType.BF16
    with model.session(cache_type=dsv2.CacheType.F16) as session:
        session.feed([0, 1, 2])
        assert model.memory.pages_in_use >= 1
        assert session.bytes_per_token == 4 * (64 + 16) * 2
