"""Buckets of somebody else, as an import reads them: keys of any kind, whole buckets, versions."""

import hashlib

import pytest

from amberblob.clock import SystemClock
from amberblob.errors import ArchiveDamaged, ArchiveDenied, ArchiveMissing, ArchiveUnavailable, ConfigError
from archive.targets.factory import Sources, open_source
from archive.targets.names import s3_url
from archive.traffic import Traffic
from tests.archive_parts import collect, names_of
from tests.archive_servers import ACCESS_KEY
from tests.contract.archive.conftest import S3_KINDS

KEYS = [
    "plain",
    "with space",
    "a/b/c",
    "a//b",
    "/begins-with-a-slash",
    "folder/",
    "../up",
    "ä/ö/ü.txt",
    "日本語",
    "🎉/party",
    "query?x=1&y=2#z",
    "percent%20%2F",
    "plus+plus",
    "tab\tand\x01control",
    "quotes\"'<>&",
    "x" * 1000,
    ".hidden",
]


@pytest.fixture(params=S3_KINDS)
def server(request, s3_server):
    return s3_server(request.param)


@pytest.fixture
def keys(server):
    """moto's HTTP server does not find its way with a line feed."""
    return KEYS if server.access_key == ACCESS_KEY else [*KEYS, "two\nlines"]


@pytest.fixture
async def filled(server, keys):
    """A bucket of these keys, its source, and the plain client."""
    client, bucket = server.client(), server.make_bucket()
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    source = open_source(s3_url(bucket, "photos/2026"), server.section(), Traffic(SystemClock()))
    yield source, client, bucket
    await source.close()


async def test_keys_of_any_kind_are_listed_and_read(filled, keys):
    source, _, bucket = filled
    assert source.url == f"s3://{bucket}"
    listed, after = [], ""
    while page := await source.page("", after, 5):
        listed += page
        after = page[-1].name
    assert names_of(listed) == sorted(keys, key=str.encode)
    for each in listed:
        content = each.name.encode()
        assert (each.size_bytes, each.etag) == (len(content), hashlib.md5(content).hexdigest())
        assert await collect(source.read(each.name, etag=each.etag)) == content
        known = await source.head(each.name)
        assert (known.size_bytes, known.etag) == (each.size_bytes, each.etag)
    assert names_of(await source.page("a/", "", 10)) == ["a//b", "a/b/c"]


async def test_what_was_changed_or_removed_since(filled):
    source, client, bucket = filled
    before = await source.head("plain")
    client.put_object(Bucket=bucket, Key="plain", Body=b"other")
    client.delete_object(Bucket=bucket, Key="a/b/c")
    with pytest.raises(ArchiveDamaged, match="overwritten"):
        await collect(source.read("plain", etag=before.etag))
    with pytest.raises(ArchiveMissing):
        await collect(source.read("a/b/c", etag=before.etag))
    with pytest.raises(ArchiveMissing):
        await source.head("")


async def test_versions_are_told(filled):
    source, client, bucket = filled
    assert (await source.head("plain")).version is None
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first = client.put_object(Bucket=bucket, Key="kept", Body=b"1")["VersionId"]
    second = client.put_object(Bucket=bucket, Key="kept", Body=b"22")["VersionId"]
    assert first != second
    assert (await source.head("kept")).version == second


async def test_sources_share_what_is_open(server):
    sources = Sources(server.section(), Traffic(SystemClock()))
    client, bucket = server.client(), server.make_bucket()
    client.put_object(Bucket=bucket, Key="a b/c?d", Body=b"here")
    source, key = sources.find(s3_url(bucket, "a b/c?d"))
    assert key == "a b/c?d"
    assert await collect(source.read(key)) == b"here"
    assert sources.find(s3_url(bucket, "else"))[0] is source
    assert sources.find(s3_url(server.bucket, ""))[0] is not source
    with pytest.raises(ConfigError, match="not an S3 URL"):
        sources.find("file:///etc/passwd")
    await sources.close()


async def test_a_source_that_is_away(server):
    source = open_source(
        "s3://anything", server.section(endpoint="http://127.0.0.1:9", tries=1), Traffic(SystemClock())
    )
    with pytest.raises(ArchiveUnavailable, match="not reached"):
        await source.page("", "", 1)
    await source.close()


async def test_a_bucket_that_is_not_there_is_told_by_its_url_and_nothing_of_the_archive_is_to_blame(server):
    source = open_source("s3://photoz/2026/", server.section(), Traffic(SystemClock()))
    try:
        with pytest.raises(ArchiveDenied, match="no bucket 'photoz'") as caught:
            await source.page("2026/", "", 10)
        assert "LIST s3://photoz/2026/" in caught.value.detail and "mend the source's URL" in caught.value.detail
        assert "target" not in caught.value.detail
    finally:
        await source.close()
