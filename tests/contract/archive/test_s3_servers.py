"""What S3 servers do that the target relies on, or has to live with. docs/archive-targets.md tells the differences."""

import pytest

from amberblob.clock import SystemClock
from amberblob.errors import ArchiveDenied, ArchiveUnavailable
from archive.targets.factory import open_target
from archive.traffic import Traffic
from tests.archive_parts import collect, parts_of
from tests.archive_servers import write_credentials
from tests.contract.archive.conftest import MIB, PART_BYTES, S3_KINDS

real = pytest.mark.skipif("ceph" not in S3_KINDS, reason="moto does not check this: make test-ceph")


@pytest.fixture
async def ceph_target(request, section):
    """Opens targets on radosgw."""
    opened = []

    def make(**changes):
        opened.append(open_target(section("ceph", **changes), Traffic(SystemClock())))
        return opened[-1]

    yield make
    for target in opened:
        await target.close()


@real
async def test_content_that_is_damaged_on_its_way_is_not_stored(ceph_target):
    target = ceph_target(tries=1)
    place = target.place("packs/p")
    with pytest.raises(ArchiveUnavailable, match="400 BadDigest"):
        await target.once(
            "put",
            "packs/p",
            lambda client: client.put_object(**place, Body=b"content", ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg=="),
        )
    assert await target.page("", "", 1) == []


@real
@pytest.mark.parametrize(
    ("keys", "text"), [(("nobody", "x"), "does not know the access key"), (("", "x"), "secret key is not the one")]
)
async def test_wrong_keys(ceph_target, ceph, tmp_path, keys, text):
    file = write_credentials(tmp_path / "keys", keys[0] or ceph.access_key, keys[1])
    target = ceph_target(credentials_file=file)
    for asking in (target.page("", "", 1), target.put("packs/p", parts_of(b"x")), collect(target.read("packs/p"))):
        with pytest.raises(ArchiveDenied, match=text):
            await asking
    with pytest.raises(ArchiveDenied):
        await target.head("packs/p")
    write_credentials(file, ceph.access_key, ceph.secret_key)
    await target.put("packs/p", parts_of(b"x"))
    assert (await target.head("packs/p")).size_bytes == 1


@real
async def test_no_bucket(ceph_target):
    target = ceph_target()
    target._bucket = "no-such-bucket"
    for asking in (target.page("", "", 1), target.head("packs/p"), target.probe()):
        with pytest.raises(ArchiveDenied, match="no bucket 'no-such-bucket'"):
            await asking


@real
async def test_many_objects(ceph_target):
    target = ceph_target()
    names = [f"packs/{number:04}" for number in range(250)]
    for name in names:
        await target.put(name, parts_of(b"x"))
    seen, after = [], ""
    while page := await target.page("packs/", after, 100):
        seen += [each.name for each in page]
        after = seen[-1]
    assert seen == names
    await target.delete(names)
    assert await target.page("", "", 1) == []


@real
async def test_uploads_that_were_left_are_swept(ceph_target, ceph):
    target = ceph_target()
    key = target.place("packs/left")["Key"]
    upload = ceph.client().create_multipart_upload(Bucket=ceph.bucket, Key=key)["UploadId"]
    ceph.client().upload_part(Bucket=ceph.bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x")
    assert await target.sweep(1_000_000) == 0
    assert await target.sweep(2**53) == 1
    assert await target.sweep(2**53) == 0


@pytest.mark.parametrize("kind", S3_KINDS)
async def test_the_etag_is_known_after_an_upload_in_parts(section, kind):
    """radosgw leaves it out of its answer."""
    target = open_target(section(kind), Traffic(SystemClock()))
    stored = await target.put("packs/large", parts_of(bytes(PART_BYTES + 1), MIB))
    assert stored.etag.endswith("-2")
    assert (await target.head("packs/large")).etag == stored.etag
    await target.close()
