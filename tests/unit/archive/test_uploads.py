"""Content in parts of one size (archive/targets/s3upload.py)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.targets.s3upload import regrouped


async def each(parts):
    for part in parts:
        yield part


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(1, 25))
async def test_it_is_the_same_content_and_the_last_part_says_so(parts, size):
    told = [pair async for pair in regrouped(each(parts), size)]
    assert b"".join(part for part, _ in told) == b"".join(parts)
    assert [is_last for _, is_last in told] == [False] * (len(told) - 1) + [True]
    assert all(len(part) == size for part, _ in told[:-1])
    assert len(told[-1][0]) <= size
    assert told[-1][0] or len(told) == 1


async def test_no_more_is_read_than_is_needed():
    read = []

    async def parts():
        for number in range(10):
            read.append(number)
            yield b"x" * 10

    groups = regrouped(parts(), 15)
    assert await anext(groups) == (b"x" * 15, False)
    assert read == [0, 1]


@pytest.mark.parametrize("size", [1, 7])
async def test_nothing_is_one_empty_part(size):
    assert [pair async for pair in regrouped(each([b"", b""]), size)] == [(b"", True)]
