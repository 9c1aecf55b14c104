"""Secrets go, everything else stays."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speedkit.core.redact import Redactor, secret_variables

VALUE = 'p@ss/w0rd+"quoted" é'
KEYS = {
    "openai": "sk" + "-proj-Ab12Cd34Ef56Gh78Ij90Kl",
    "anthropic": "sk" + "-ant-api03-abcDEF123_456-ghiJKL789",
    "github": "ghp_" + "a1B2" * 9,
    "huggingface": "hf_" + "aBcDeFgH" * 4,
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "google": "AIza" + "Sy0_-" * 7,
    "groq": "gsk_" + "a1B2c3" * 8,
    "slack": "xoxb" + "-123456789012-abcdefABCDEF",
    "jwt": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
}


@pytest.mark.parametrize(
    "spelling",
    [
        VALUE,
        quote(VALUE, safe=""),
        quote(VALUE),
        quote_plus(VALUE),
        quote(VALUE, safe="").lower(),
        json.dumps(VALUE)[1:-1],
        json.dumps(VALUE, ensure_ascii=False)[1:-1],
        json.dumps(VALUE)[1:-1].replace("/", "\\/"),
    ],
)
def test_a_known_value_goes_in_every_spelling(spelling: str) -> None:
    redactor = Redactor({"DB_PASSWORD": VALUE})
    assert redactor.clean(f"<{spelling}>") == "<[secret DB_PASSWORD]>"
    assert redactor.clean(f"<{spelling}>".encode()) == b"<[secret DB_PASSWORD]>"


@given(
    before=st.binary(max_size=9),
    after=st.binary(max_size=9),
    secret=st.binary(min_size=12, max_size=40).map(bytes.hex),
)
def test_no_base64_text_holds_a_known_value(before: bytes, after: bytes, secret: str) -> None:
    redactor = Redactor({"KEY": secret})
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(before + secret.encode() + after).decode()
        assert "[secret KEY]" in redactor.clean(text)


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("form", ["{}", '"{}"', "key={}&x=1", "({})", "OPENAI_API_KEY={}\n"])
def test_well_known_keys_go_by_their_shape(name: str, form: str) -> None:
    redactor = Redactor()
    cleaned = redactor.clean(form.format(KEYS[name]))
    assert cleaned == form.format("[secret]")
    assert redactor.clean(form.format(KEYS[name]).encode()) == cleaned.encode()


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize(
    "before",
    [
        "\\n",
        "\\t",
        "\\x0a",
        "\\u0022",
        "%3D",
        "%22",
        "\x1b[m",
        "\x1b[1m",
        "\x1b[1;32m",
        "[38;5;208m",
    ],
)
def test_the_end_of_an_escape_does_not_hide_a_key(name: str, before: str) -> None:
    redactor = Redactor()
    text = before + KEYS[name] + '"'
    assert redactor.clean(text) == before + '[secret]"'
    assert redactor.clean(text.encode()) == (before + '[secret]"').encode()


def test_what_stands_in_headers_and_addresses_goes() -> None:
    clean = Redactor().clean
    assert clean("Authorization: Bearer abcDEF0123456789xyz") == "Authorization: [secret]"
    assert (
        clean("git clone https://me:hunter2@host/x.git") == "git clone https://[secret]@host/x.git"
    )
    assert clean("redis://:hunter2@host:6379/0") == "redis://[secret]@host:6379/0"


@pytest.mark.parametrize(
    "text",
    [
        hashlib.sha256(b"x").hexdigest(),
        hashlib.md5(b"x").hexdigest(),
        "c0ffee1234567890c0ffee1234567890c0ffee12",
        base64.b64encode(hashlib.sha512(b"x").digest()).decode(),
        "step:3200/3200 val_loss:3.2788 train_time:1234567ms step_avg:385.80ms",
        "https://example.org:8080/a@b https://host/path:with@colon",
        "pip install sk-learn-contrib-some-long-name ask-me-anything-about-12345678",
        "550e8400-e29b-41d4-a716-446655440000",
        "torch.compile(model, dynamic=False)  # bearer of bad news, said the standard Bearer",
        "tokens_per_second = total_tokens / elapsed; secret_sauce = key[:, :, None]",
        "sk-learn",
    ],
)
def test_results_and_code_survive(text: str) -> None:
    redactor = Redactor({"KEY": "a-real-secret-value"})
    assert redactor.clean(text) == text
    assert redactor.clean(text.encode()) == text.encode()


def test_variables_are_chosen_by_name_and_value() -> None:
    environ = {
        "OPENAI_API_KEY": "value-one",
        "AWS_SECRET_ACCESS_KEY": "value-two",
        "WANDB_API_KEY": "value-three",
        "my_password": "value-four",
        "CI_TOKEN": "value-five",
        "PATH": "/usr/bin",
        "PWD": "/home/me/project",
        "MAX_TOKENS": "32768",
        "TOKEN_COUNT": "1234567",
        "KEYBOARD": "us-international",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_TOKEN_PATH": "/home/me/.cache/token",
        "SSH_KEY_FILE": "id_ed25519",
        "USE_KEY": "disabled",
    }
    assert sorted(secret_variables(environ).values()) == [
        "value-five",
        "value-four",
        "value-one",
        "value-three",
        "value-two",
    ]
    redactor = Redactor.from_environment(environ, {"EXTRA": "value-six"})
    assert redactor.clean("value-one, value-six; false us-international") == (
        "[secret OPENAI_API_KEY], [secret EXTRA]; false us-international"
    )


def test_short_values_are_left_alone() -> None:
    assert Redactor({"A": "adam"}).clean("adam and AdamW") == "adam and AdamW"


def test_a_value_that_holds_another_goes_whole() -> None:
    redactor = Redactor({"SHORT": "12345678", "LONG": "12345678-abcdefgh"})
    assert redactor.clean("12345678-abcdefgh 12345678") == "[secret LONG] [secret SHORT]"


def test_lines_of_a_longer_secret_go_one_by_one() -> None:
    key = "-----BEGIN" + " KEY-----\nMIIEvQIBADANBgkqh\nkiG9w0BAQEFAASC\n-----END KEY-----\n"
    stream = [line.encode() + b"\n" for line in key.splitlines()]
    cleaned = b"".join(Redactor({"PEM": key}).lines(stream))
    assert b"MIIEv" not in cleaned
    assert b"kiG9w" not in cleaned
    assert cleaned.count(b"\n") == 4


def test_cleaning_twice_changes_nothing_more() -> None:
    redactor = Redactor({"API_KEY": "Bearer-token-123456"})
    text = "Bearer Bearer-token-123456 and Bearer abcdefgh12345678 " + " ".join(KEYS.values())
    once = redactor.clean(text)
    assert redactor.clean(once) == once


def test_json_values_are_cleaned_all_the_way_down() -> None:
    redactor = Redactor({"K": "a-real-secret"})
    value = {"a": ["x a-real-secret", 1, None, True], "a-real-secret": {"b": ("a-real-secret",)}}
    assert redactor.tree(value) == {
        "a": ["x [secret K]", 1, None, True],
        "[secret K]": {"b": ["[secret K]"]},
    }


def test_bytes_that_are_no_text_pass() -> None:
    raw = bytes(range(256)) * 3
    assert Redactor({"K": "a-real-secret"}).clean(raw) == raw


def test_its_own_description_holds_no_secret() -> None:
    assert "a-real-secret" not in repr(Redactor({"K": "a-real-secret"}))


def test_it_is_fast() -> None:
    redactor = Redactor({f"KEY_{i}": hashlib.sha256(bytes([i])).hexdigest() for i in range(10)})
    text = "step:100/3200 val_loss:3.2788 train_time:38580ms step_avg:385.80ms\n" * 15_000
    began = time.process_time()
    assert redactor.clean(text) == text
    assert time.process_time() - began < 2, "a megabyte"
