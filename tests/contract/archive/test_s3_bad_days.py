"""S3 when it is slow, throttles, breaks off, refuses, or was changed by somebody else: moto, seen through a proxy that does that."""

import asyncio
import datetime
import hashlib
import ssl
import time
from collections.abc import AsyncIterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from amberblob.clock import SystemClock
from amberblob.config import ArchiveSection
from amberblob.errors import (
    ArchiveDamaged,
    ArchiveDenied,
    ArchiveError,
    ArchiveMissing,
    ArchiveUnavailable,
    ConfigError,
)
from archive.targets.factory import open_target
from archive.targets.failures import Throttled
from archive.targets.s3 import S3Requests
from archive.targets.s3target import S3Target
from archive.traffic import Traffic
from tests.archive_parts import collect, names_of, parts_of
from tests.archive_proxy import Bad, status
from tests.archive_servers import SECRET_KEY, write_credentials
from tests.cluster.harness import free_ports
from tests.contract.archive.conftest import MIB, PART_BYTES

CONTENT = hashlib.shake_256(b"content").digest(1_000_000)
LARGE = hashlib.shake_256(b"large").digest(3 * PART_BYTES - 1000)


PATIENT_S = 30.0
"""A server here is never too slow, unless a test has it be so."""


class Naps:
    """A sleep that does not: it tells how long the pauses were."""

    def __init__(self):
        self.taken_s: list[float] = []

    async def __call__(self, seconds):
        self.taken_s.append(seconds)
        await asyncio.sleep(0)


class Half:
    """Chance without chance: names that differ, pauses of three quarters."""

    count = 0

    def token(self, size_bytes):
        Half.count += 1
        return Half.count.to_bytes(size_bytes, "big")

    def fraction(self):
        return 0.5


@pytest.fixture
def naps():
    return Naps()


@pytest.fixture
async def make(proxy, section, naps) -> AsyncIterator:
    """Opens a target through the proxy, with changes to its configuration."""
    opened = []

    def make(**changes):
        changes = {"endpoint": proxy.endpoint, "timeout_s": PATIENT_S, "tries": 4, **changes}
        told = section("moto", **changes)
        bucket, _, prefix = told.target.removeprefix("s3://").partition("/")
        traffic = Traffic(SystemClock(), sleep=naps)
        requests = S3Requests(told, traffic, chance=Half())
        target = S3Target(requests, bucket, prefix, sleep=naps)
        opened.append(target)
        return target

    yield make
    proxy.ended.set()
    for target in opened:
        await target.close()


def traffic_of(target):
    return target._requests.traffic


# -- what passes by itself


async def test_errors_that_pass_are_tried_again_with_growing_pauses(make, proxy, naps):
    target = make()
    for number, code in ((500, "InternalError"), (503, "ServiceUnavailable"), (502, "")):
        proxy.add("PUT", "*packs/p", status(number, code))
    stored = await target.put("packs/p", parts_of(CONTENT))
    assert stored.size_bytes == len(CONTENT)
    assert naps.taken_s == pytest.approx([0.075, 0.15, 0.3])
    assert traffic_of(target).retries == 3
    assert traffic_of(target).requests == {("put", "unavailable"): 3, ("put", "ok"): 1}
    assert await collect(target.read("packs/p")) == CONTENT


async def test_errors_that_stay_are_told_after_the_last_try(make, proxy):
    target = make()
    proxy.add("*", "*", status(500, "InternalError", "We encountered an internal error."), times=100)
    with pytest.raises(ArchiveUnavailable, match=r"HEAD s3://bucket.*500.*tried 4 times"):
        await target.head("packs/p")
    assert proxy.count("HEAD") == 4


async def test_throttling_slows_down(make, proxy, naps):
    target = make()
    proxy.add("GET", "*list-type=2*", status(503, "SlowDown", "Please reduce your request rate."), times=2)
    proxy.add("GET", "*list-type=2*", status(429, "TooManyRequests", Retry_After="7"))
    assert await target.page("", "", 10) == []
    assert naps.taken_s == pytest.approx([0.3, 0.6, 7 + 1.2])
    assert traffic_of(target).throttles == 3
    assert traffic_of(target).spacing_s > 0
    for _ in range(40):
        traffic_of(target).count("list", "ok")
    assert traffic_of(target).spacing_s == 0
    proxy.add("GET", "*list-type=2*", status(503, "SlowDown"), times=9)
    with pytest.raises(Throttled, match="throttles"):
        await target.page("", "", 10)


async def test_a_stream_that_is_cut_goes_on_where_it_was(make, proxy):
    target = make()
    await target.put("packs/p", parts_of(CONTENT))
    proxy.add("GET", "*packs/p", Bad(cut_after=300_000))
    proxy.add("GET", "*packs/p", Bad(cut_after=200_001))
    assert await collect(target.read("packs/p", 1000)) == CONTENT[1000:]
    ranges = [headers.get("Range") for method, path, headers in proxy.requests if method == "GET" and "packs/p" in path]
    assert len(ranges) == 3
    assert ranges[0] == "bytes=1000-"
    starts = [int(each.removeprefix("bytes=").split("-")[0]) for each in ranges]
    assert starts[0] < starts[1] <= 301_000
    assert starts[1] < starts[2] <= 501_001
    assert traffic_of(target).received_bytes == len(CONTENT) - 1000
    assert traffic_of(target).requests["stream", "unavailable"] == 2


async def test_a_stream_that_always_breaks_at_once_ends(make, proxy):
    target = make()
    await target.put("packs/p", parts_of(CONTENT))
    rule = proxy.add("GET", "*packs/p", Bad(cut_after=0), times=100)
    with pytest.raises(ArchiveUnavailable, match=r"broke|too soon"):
        await collect(target.read("packs/p"))
    assert rule.met == 4


async def test_a_stream_that_stalls_times_out_and_goes_on(make, proxy):
    target = make()
    await target.put("packs/p", parts_of(CONTENT))
    hurried = make(timeout_s=0.5, tries=20, target=target.url)
    proxy.add("GET", "*packs/p", Bad(stall_after=400_000))
    began_s = time.monotonic()
    assert await collect(hurried.read("packs/p")) == CONTENT
    assert 0.5 <= time.monotonic() - began_s < PATIENT_S


async def test_the_first_piece_comes_before_the_rest(make, proxy):
    target = make(timeout_s=2 * PATIENT_S)
    await target.put("packs/p", parts_of(CONTENT))
    proxy.add("GET", "*packs/p", Bad(stall_after=140_000))
    reading = target.read("packs/p")
    first = await asyncio.wait_for(anext(reading), PATIENT_S)
    assert first == CONTENT[: len(first)]
    await reading.aclose()


async def test_a_stream_that_is_replaced_on_the_way_is_damage(make, proxy, moto):
    target = make()
    await target.put("packs/p", parts_of(CONTENT))
    proxy.add("GET", "*packs/p", Bad(cut_after=400_000))
    reading = target.read("packs/p")
    await anext(reading)
    moto.client().put_object(Bucket=moto.bucket, Key=target.place("packs/p")["Key"], Body=CONTENT[::-1])
    with pytest.raises(ArchiveDamaged, match="overwritten"):
        await collect(reading)


async def test_a_server_without_if_match_is_seen_through(make, proxy):
    target = make()
    stored = await target.put("packs/p", parts_of(CONTENT))
    proxy.add("GET", "*packs/p", Bad(headers={"ETag": '"another"'}))
    with pytest.raises(ArchiveDamaged, match="its ETag is another"):
        await collect(target.read("packs/p", etag=stored.etag))


async def test_a_server_without_ranges_is_seen_through(make, proxy):
    target = make()
    await target.put("packs/p", parts_of(CONTENT))
    proxy.add("GET", "*packs/p", Bad(headers={"Content-Range": f"bytes 0-9/{len(CONTENT)}"}))
    with pytest.raises(ArchiveError, match="does not answer a request for a range with that range"):
        await collect(target.read("packs/p", 10, 20))


# -- uploads


async def test_only_the_part_that_failed_is_sent_again(make, proxy):
    target = make()
    proxy.add("PUT", "*partNumber=2*", status(500, "InternalError"))
    proxy.add("PUT", "*partNumber=2*", Bad(lose=True))
    stored = await target.put("packs/large", parts_of(LARGE, MIB))
    assert stored.size_bytes == len(LARGE)
    assert [proxy.count("PUT", f"*partNumber={number}*") for number in (1, 2, 3)] == [1, 3, 1]
    assert await collect(target.read("packs/large")) == LARGE


async def test_a_part_that_always_fails_aborts_the_upload(make, proxy, moto):
    target = make(tries=2)
    proxy.add("PUT", "*partNumber=2*", status(500, "InternalError"), times=100)
    with pytest.raises(ArchiveUnavailable, match=r"PART s3.*tried 2 times"):
        await target.put("packs/large", parts_of(LARGE, MIB))
    assert proxy.count("DELETE", "*uploadId=*") == 1
    assert await target.page("", "", 10) == []
    assert "Uploads" not in moto.client().list_multipart_uploads(Bucket=moto.bucket)


async def test_an_answer_that_was_lost_does_not_lose_the_object(make, proxy):
    target = make(tries=1)
    proxy.add("PUT", "*packs/small", Bad(lose=True))
    stored = await target.put("packs/small", parts_of(CONTENT))
    assert stored.etag == hashlib.md5(CONTENT).hexdigest()
    proxy.add("POST", "*packs/large?uploadId=*", Bad(lose=True))
    stored = await target.put("packs/large", parts_of(LARGE, MIB))
    assert stored.size_bytes == len(LARGE)
    assert await collect(target.read("packs/large", 0, 100)) == LARGE[:100]
    assert names_of(await target.page("", "", 10)) == ["packs/large", "packs/small"]


async def test_an_answer_that_was_lost_does_not_take_another_object_for_its_own(make, proxy, moto):
    target = make(tries=1)
    moto.client().put_object(Bucket=moto.bucket, Key=target.place("packs/small")["Key"], Body=b"another")
    proxy.add("PUT", "*packs/small", status(500, "InternalError"))
    with pytest.raises(ArchiveUnavailable):
        await target.put("packs/small", parts_of(CONTENT))
    assert await collect(target.read("packs/small")) == b"another"


async def test_parts_are_sent_at_once_and_memory_is_bounded(make, proxy):
    target = make(parallel=2)
    given = 0

    async def parts():
        nonlocal given
        for at in range(0, len(LARGE), MIB):
            given += 1
            yield LARGE[at : at + MIB]

    proxy.add("PUT", "*partNumber=1*", Bad(stall_after=0))
    proxy.add("PUT", "*partNumber=2*", Bad(stall_after=0))
    putting = asyncio.create_task(target.put("packs/large", parts()))
    while proxy.count("PUT", "*partNumber=*") < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert proxy.count("PUT", "*partNumber=*") == 2  # both at once, and the third waits
    assert given <= 15
    proxy.ended.set()  # the connections break, and are begun again
    assert (await putting).size_bytes == len(LARGE)


async def test_a_job_that_waits_does_not_hold_up_others(make):
    target = make(parallel=1)

    class Stands:
        async def request(self):
            await asyncio.Event().wait()

        async def bytes(self, count):
            pass

    waiting = asyncio.create_task(target.paced(Stands()).put("packs/job", parts_of(CONTENT)))
    await asyncio.sleep(0.01)
    await asyncio.wait_for(target.put("packs/client", parts_of(CONTENT)), PATIENT_S)
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_a_sweep_aborts_what_a_crash_left_and_only_that(make, moto):
    target = make()
    client, key = moto.client(), target.place("packs/left")["Key"]
    left = client.create_multipart_upload(Bucket=moto.bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=moto.bucket, Key=key, UploadId=left, PartNumber=1, Body=b"x")
    others = client.create_multipart_upload(Bucket=moto.bucket, Key="somebody/else")["UploadId"]
    assert await target.sweep(1_000_000) == 0
    assert await target.sweep(2**53) == 1
    assert await target.sweep(2**53) == 0
    uploads = client.list_multipart_uploads(Bucket=moto.bucket)["Uploads"]
    assert [each["UploadId"] for each in uploads] == [others]
    client.abort_multipart_upload(Bucket=moto.bucket, Key="somebody/else", UploadId=others)


async def test_content_is_sent_with_md5_and_no_checksum_that_old_servers_do_not_know(make, proxy):
    target = make()
    await target.put("packs/small", parts_of(CONTENT))
    await target.put("packs/large", parts_of(LARGE, MIB))
    await target.delete(["packs/small"])
    for method, path, headers in proxy.requests:
        told = {name.lower() for name in headers}
        assert not any(name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")) for name in told), (
            path
        )
        if method == "PUT" or path.endswith("?delete"):
            assert "content-md5" in told, path


# -- deleting


async def test_a_server_that_cannot_delete_many_is_asked_one_by_one(make, proxy):
    target = make()
    for name in ("packs/a", "packs/b"):
        await target.put(name, parts_of(b"x"))
    proxy.add("POST", "*?delete*", status(501, "NotImplemented"))
    await target.delete(["packs/a", "packs/b", "packs/never"])
    assert await target.page("", "", 10) == []
    await target.delete(["packs/a"])
    assert proxy.count("POST", "*?delete*") == 1


async def test_what_could_not_be_deleted_is_named(make, proxy):
    target = make()
    for name in ("packs/a", "packs/b", "packs/c"):
        await target.put(name, parts_of(b"x"))
    proxy.add("POST", "*?delete*", status(501, "NotImplemented"))
    proxy.add("DELETE", "*packs/b", status(403, "AccessDenied"), times=100)
    with pytest.raises(ArchiveDenied, match=r"1 of 3 objects were not deleted \(packs/b\).*AccessDenied"):
        await target.delete(["packs/a", "packs/b", "packs/c"])
    assert names_of(await target.page("", "", 10)) == ["packs/b"]


# -- whose fault it is


async def test_wrong_keys(make, proxy, tmp_path):
    target = make()
    proxy.add(
        "*", "*", status(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist."), times=9
    )
    with pytest.raises(ArchiveDenied, match=r"does not know the access key.*credentials_file") as raised:
        await target.page("", "", 10)
    assert SECRET_KEY not in str(raised.value)
    assert proxy.count("GET") == 1  # it does not help to try again


async def test_keys_that_were_changed_are_read_again(make, proxy, tmp_path):
    keys = write_credentials(tmp_path / "keys", "OLDKEY")
    target = make(credentials_file=keys)
    assert await target.page("", "", 10) == []
    proxy.add("*", "*", status(403, "InvalidAccessKeyId"), times=1)
    write_credentials(keys, "NEWKEY")
    assert await target.page("", "", 10) == []
    signed = [headers["Authorization"] for _, _, headers in proxy.requests]
    assert [("OLDKEY" in each, "NEWKEY" in each) for each in signed] == [(True, False), (True, False), (False, True)]
    assert traffic_of(target).retries == 0


async def test_temporary_keys_have_their_token_sent(make, proxy, tmp_path):
    target = make(credentials_file=write_credentials(tmp_path / "keys", token="the-session-token"))
    await target.page("", "", 10)
    assert proxy.requests[0][2]["X-Amz-Security-Token"] == "the-session-token"


async def test_no_keys_at_all(make, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-environment")
    target = make(credentials_file=tmp_path / "nothing")
    with pytest.raises(ArchiveDenied, match="credentials_file"):
        await target.page("", "", 10)
    (tmp_path / "other").write_text("[other]\naws_access_key_id=x\naws_secret_access_key=y\n")
    with pytest.raises(ArchiveDenied, match=r"no profile 'wrong'|no credentials"):
        await make(credentials_file=tmp_path / "other", profile="wrong").page("", "", 10)
    assert await make(credentials_file=tmp_path / "other", profile="other").page("", "", 10) == []


async def test_the_usual_chain(make, proxy, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OFTHEENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    await make(credentials_file=None).page("", "", 10)
    assert "OFTHEENVIRONMENT" in proxy.requests[0][2]["Authorization"]


async def test_a_clock_that_is_wrong(make, proxy):
    target = make()
    proxy.add("*", "*", status(403, "RequestTimeTooSkewed", "too large", Date="Sat, 21 Nov 2020 12:00:00 GMT"), times=9)
    with pytest.raises(ArchiveDenied, match=r"clock is \d+ s ahead of the target's.*NTP"):
        await target.page("", "", 10)


async def test_no_such_bucket_is_not_taken_for_missing_objects(make, proxy, section):
    target = make()
    await target.put("packs/p", parts_of(CONTENT))
    gone = S3Target(target._requests, "no-such-bucket-anywhere", "x")
    for asking in (
        gone.head("packs/p"),
        collect(gone.read("packs/p")),
        gone.page("", "", 1),
        gone.put("packs/q", parts_of(b"x")),
    ):
        with pytest.raises(ArchiveDenied, match="no bucket 'no-such-bucket-anywhere'"):
            await asking
    with pytest.raises(ArchiveMissing):
        await target.head("packs/q")


async def test_denied_says_which_rights(make, proxy):
    target = make()
    proxy.add("GET", "*packs/p", status(403, "AccessDenied", "Access Denied"), times=9)
    with pytest.raises(ArchiveDenied, match=r"s3:GetObject.*ListBucket"):
        await collect(target.read("packs/p"))
    proxy.add("HEAD", "*packs/p", status(403), times=9)
    with pytest.raises(ArchiveDenied, match="s3:GetObject"):
        await target.head("packs/p")


async def test_a_head_that_is_refused_without_words_is_explained_by_a_get(make, proxy):
    target = make()
    await target.put("packs/p", parts_of(CONTENT))
    proxy.add("HEAD", "*packs/p", status(403), times=1)
    proxy.add("GET", "*packs/p", status(400, "ExpiredToken", "The provided token has expired."), times=1)
    with pytest.raises(ArchiveDenied, match="have expired"):
        await target.head("packs/p")
    proxy.add("HEAD", "*packs/p", status(403), times=1)
    assert (await target.head("packs/p")).size_bytes == len(CONTENT)


async def test_connections_are_used_again(make, proxy):
    target = make()
    for number in range(10):
        await target.put(f"packs/{number}", parts_of(CONTENT))
        assert await collect(target.read(f"packs/{number}", 5, 900_000)) == CONTENT[5:900_000]
        assert await collect(target.read(f"packs/{number}")) == CONTENT
        await target.head(f"packs/{number}")
    await target.page("", "", 10)
    assert len(proxy.connections) == 1


async def test_a_server_that_cannot_list_uploads_has_none_to_sweep(make, proxy):
    target = make()
    proxy.add("GET", "*?uploads*", status(501, "NotImplemented"))
    assert await target.sweep(2**53) == 0


async def test_what_is_asked_of_a_closed_target(make):
    target = make()
    await target.close()
    with pytest.raises(ArchiveError, match="this node ends"):
        await target.head("packs/p")


async def test_another_region(make, proxy):
    target = make()
    proxy.add("GET", "*", status(301, "PermanentRedirect", "use another", x_amz_bucket_region="eu-west-7"), times=9)
    with pytest.raises(ArchiveDenied, match=r"in another region than 'us-east-1': set \[archive\] region to eu-west-7"):
        await target.page("", "", 10)


async def test_an_object_in_a_cold_class(make, proxy):
    target = make()
    proxy.add("GET", "*packs/p", status(403, "InvalidObjectState", "not valid for the object's storage class"))
    with pytest.raises(ArchiveDenied, match="cold storage class"):
        await collect(target.read("packs/p"))


async def test_nobody_listens(make):
    (port,) = free_ports(1)
    target = make(endpoint=f"http://127.0.0.1:{port}", tries=2)
    with pytest.raises(ArchiveUnavailable, match=rf"127.0.0.1:{port}.*not reached.*refused.*tried 2 times"):
        await target.page("", "", 10)


async def test_a_name_that_is_none(make):
    target = make(endpoint="http://no-such-host.invalid", tries=1)
    with pytest.raises(ArchiveUnavailable, match=r"no-such-host.invalid.*not reached"):
        await target.page("", "", 10)


async def test_tls_where_there_is_none(make, proxy):
    target = make(endpoint=proxy.endpoint.replace("http:", "https:"), tries=1)
    with pytest.raises(ArchiveDenied, match="TLS failed"):
        await target.page("", "", 10)


async def test_a_certificate_that_nobody_vouches_for(make, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_own_certificate(tmp_path))
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ArchiveDenied, match=r"TLS failed.*(?i:certificate).*AWS_CA_BUNDLE"):
            await make(endpoint=f"https://127.0.0.1:{port}").page("", "", 10)


def _own_certificate(folder):
    """A file with a key and its certificate, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    file = folder / "certificate.pem"
    file.write_bytes(
        key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(form)
    )
    return file


async def test_no_answer_within_the_time(make, proxy):
    target = make(tries=2)
    rule = proxy.add("HEAD", "*", Bad(stall_after=0, headers={}), times=9)
    await target.put("packs/p", parts_of(b"x"))
    proxy.heal()
    rule = proxy.add("PUT", "*", Bad(status=0, stall_after=0), times=9)
    await target.put("packs/q", parts_of(b"q"))  # an answer without a body comes whole
    assert rule.met == 1


async def test_a_probe_finds_a_server_that_gives_back_something_else(make, proxy):
    target = make()
    proxy.add("GET", "*probe/*", Bad(turn=3), times=9)
    with pytest.raises(ArchiveError):
        await target.probe()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"target": ""}, "wants s3://"),
        ({"target": "ftp://x/y"}, "wants s3://"),
        ({"target": "s3:///prefix"}, "not an S3 URL"),
        ({"target": "s3://user:topsecret@bucket/x"}, "not an S3 URL"),
        ({"target": "file://host/folder"}, "not the URL of a folder"),
        ({"target": "file:relative"}, "wants s3://"),
        ({"target": "s3://bucket/x", "endpoint": "localhost:9000"}, "endpoint wants"),
        ({"target": "s3://bucket/x", "endpoint": "http://me:topsecret@localhost"}, "endpoint wants"),
    ],
)
async def test_what_cannot_be_opened(changes, text):
    with pytest.raises(ConfigError, match=text) as raised:
        open_target(ArchiveSection(**changes), Traffic(SystemClock()))
    assert "topsecret" not in str(raised.value)


async def test_ways_to_name_the_bucket(make, proxy, moto):
    target = make(addressing="virtual", endpoint=proxy.endpoint.replace("127.0.0.1", "localhost"), tries=1)
    with pytest.raises(ArchiveError):  # nobody has that name here; that it was asked for is what counts
        await target.page("", "", 10)
