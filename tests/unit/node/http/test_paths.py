"""Names and their percent-encoding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amberblob.errors import AmberError
from amberblob.paths import check_path, decode_path, encode_path

SEGMENT_CHARS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\\")


def legal(path: str) -> bool:
    try:
        check_path(path)
    except AmberError:
        return False
    return True


PATHS = st.one_of(
    st.text(SEGMENT_CHARS, min_size=1, max_size=64), st.text(st.sampled_from("a/.%2Fé +"), min_size=1, max_size=20)
).filter(legal)


@given(PATHS)
def test_every_legal_name_survives_its_encoding(path: str) -> None:
    encoded = encode_path(path)
    assert encoded.isascii()
    assert not set(encoded) & set(" ?#\\")
    assert "//" not in encoded and not encoded.startswith("/")
    assert decode_path(encoded) == path


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_whatever_is_sent_is_either_a_name_or_an_error(text: str) -> None:
    try:
        path = decode_path(text)
    except AmberError as error:
        assert error.code in ("bad-path", "path-too-long", "reserved-path")
    else:
        assert check_path(path) == path


@pytest.mark.parametrize(
    ("encoded", "path"),
    [
        ("a", "a"),
        ("a%2Fb", "a/b"),
        ("a%2fb", "a/b"),
        ("%2Fa", "/a"),
        ("/a//b/", "/a//b/"),
        ("a%20b", "a b"),
        ("a+b", "a+b"),
        ("%C3%A4", "ä"),
        ("ä", "ä"),
        ("%F0%9F%98%80", "😀"),
        ("...", "..."),
        (".a/..b/c..", ".a/..b/c.."),
        ("a%25", "a%"),
        ("a%252F", "a%2F"),
        ("a?b", "a?b"),
        ("%0A", "\n"),
        ("%7F", "\x7f"),
        (".amberx", ".amberx"),
        ("x/.amber/y", "x/.amber/y"),
        ("/.amber/y", "/.amber/y"),
        ("a" * 1024, "a" * 1024),
        ("%C3%A4" * 512, "ä" * 512),
    ],
)
def test_names(encoded: str, path: str) -> None:
    assert decode_path(encoded) == path


@pytest.mark.parametrize(
    ("encoded", "code"),
    [
        ("", "bad-path"),
        ("%", "bad-path"),
        ("%2", "bad-path"),
        ("%zz", "bad-path"),
        ("%2x", "bad-path"),
        ("% 20", "bad-path"),
        ("%u00e4", "bad-path"),
        ("%00", "bad-path"),
        ("a%00b", "bad-path"),
        ("%FF", "bad-path"),
        ("%C3", "bad-path"),
        ("%C0%AF", "bad-path"),
        ("%C0%AE%C0%AE", "bad-path"),
        ("%E0%80%AF", "bad-path"),
        ("%F0%80%80%AF", "bad-path"),
        ("%ED%A0%80", "bad-path"),
        ("%F4%90%80%80", "bad-path"),
        ("\udcff", "bad-path"),
        ("\\", "bad-path"),
        ("a%5Cb", "bad-path"),
        ("a%5cb", "bad-path"),
        (".", "bad-path"),
        ("..", "bad-path"),
        ("../a", "bad-path"),
        ("a/../b", "bad-path"),
        ("a/..", "bad-path"),
        ("a/./b", "bad-path"),
        ("%2e%2e", "bad-path"),
        ("%2E%2e%2Fa", "bad-path"),
        ("..%2fa", "bad-path"),
        ("a%2f..%2fb", "bad-path"),
        ("/..", "bad-path"),
        ("a" * 1025, "path-too-long"),
        ("ä" * 513, "path-too-long"),
        ("%61" * 1025, "path-too-long"),
        (".amber", "reserved-path"),
        (".amber/", "reserved-path"),
        (".amber/x", "reserved-path"),
        ("%2eamber/x", "reserved-path"),
        (".amber%2Fx", "reserved-path"),
    ],
)
def test_what_is_no_name(encoded: str, code: str) -> None:
    with pytest.raises(AmberError) as caught:
        decode_path(encoded)
    assert caught.value.code == code
    assert caught.value.status == (403 if code == "reserved-path" else 400)


@pytest.mark.parametrize("path", ["", "..", "a\0", "a\\b", ".amber/x", "ä" * 513, "\ud800"])
def test_the_client_learns_the_same_before_it_sends(path: str) -> None:
    with pytest.raises(AmberError):
        check_path(path)
