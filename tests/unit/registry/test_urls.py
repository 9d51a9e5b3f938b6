"""URLs of registries that are servers, and that passwords stay where they belong."""

import pytest

from amberblob.config.values import without_password
from amberblob.errors import ConfigError
from registry.factory import open_registry
from registry.urls import server_url

FORM = "scheme://host"


def parsed(url: str, *options: str):
    return server_url(url, port=1234, form=FORM, options=options)


def test_all_parts():
    url = parsed("etcd://me:p%40ss%2f@one:1,two,[::1]:3/2?ca=/a%20b&cert=c", "ca", "cert")
    assert url.endpoints == (("one", 1), ("two", 1234), ("::1", 3))
    assert (url.user, url.password, url.path) == ("me", "p@ss/", "2")
    assert url.options == {"ca": "/a b", "cert": "c"}


def test_the_least():
    url = parsed("redis://host")
    assert (url.endpoints, url.user, url.password, url.path, url.options) == ((("host", 1234),), "", "", "", {})


def test_what_is_shown_has_no_password():
    url = parsed("redis://me:hunter2@host:1/0")
    assert url.where == "redis://host:1"
    assert "hunter2" not in repr(url)


@pytest.mark.parametrize(
    "url",
    [
        "etcd://",
        "etcd:///path",
        "etcd://hunter2@",
        "etcd://a:hunter2@host:port",
        "etcd://a:hunter2@host:0",
        "etcd://a:hunter2@host:70000",
        "etcd://a:hunter2@one,,two",
        "etcd://a:hunter2@one,",
        "etcd://a:hunter2@host?unknown=1",
        "etcd://a:hunter2@host?nothing",
        "etcd://a:hunter2@host?password_file=/nowhere",
        "etcd://a:hunter2@host#x",
        "etcd://a:hunter2@[::1",
    ],
)
def test_malformed(url: str):
    with pytest.raises(ConfigError) as caught:
        parsed(url, "ca")
    assert "hunter2" not in caught.value.detail


def test_a_password_from_a_file(tmp_path):
    file = tmp_path / "password"
    file.write_text("hunter2\nand more\n")
    assert parsed(f"redis://host?password_file={file}").password == "hunter2"
    with pytest.raises(ConfigError, match="cannot be read"):
        parsed("redis://host?password_file=/nowhere")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://one,two", "one server"),
        ("redis://one/x", "wants redis://"),
        ("redis://one?durability=none", "wants redis://"),
        ("redis://one?ca=/x", "write rediss://"),
        ("etcd://user@one", "user and password only together"),
        ("etcd://one/path", "wants etcd://"),
        ("etcd://one?cert=/x", "wants ca=FILE"),
        ("etcd://one?ca=/nowhere", "cannot be read"),
        ("reddis://:hunter2@one", "Did you mean redis"),
        ("redis:/hunter2@one", "no such kind"),
    ],
)
async def test_a_registry_that_cannot_be(url: str, words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        open_registry(url)
    assert "hunter2" not in caught.value.detail


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hunter2@host/0", "redis://***@host/0"),
        ("redis://:hun/t@er2@host/0", "redis://***@host/0"),
        ("embedded:///a/b", "embedded:///a/b"),
    ],
)
def test_without_password(url: str, shown: str):
    assert without_password(url) == shown
