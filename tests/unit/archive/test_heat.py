"""When blobs were last read here."""

from archive.heat import MINUTE_MS, Heat

HOUR = 60 * MINUTE_MS
NOW = 1_800_000_000_000 // HOUR * HOUR


def test_it_is_known_to_the_minute():
    heat = Heat(NOW)
    heat.read("a")
    heat.tick(NOW + 90_000)
    heat.read("b")
    assert heat.last_read_ms("a", 5) == NOW
    assert heat.last_read_ms("b", 5) == NOW + MINUTE_MS
    assert heat.last_read_ms("c", 5) == 5, "never read: since it was made"
    assert heat.last_read_ms("a", NOW + 7) == NOW + 7, "a version is not colder than it is old"


def test_it_is_bounded_and_forgets_what_was_not_read_for_longest():
    heat = Heat(NOW, limit=100)
    for number in range(1000):
        heat.tick(NOW + number * MINUTE_MS)
        heat.read("always")
        heat.read(f"b{number}")
        assert len(heat) <= 100
    assert heat.last_read_ms("always", 0) == NOW + 999 * MINUTE_MS
    assert heat.last_read_ms("b0", 0) == 0
    assert all(heat.last_read_ms(f"b{number}", 0) == NOW + number * MINUTE_MS for number in range(960, 1000))


def test_what_is_to_be_written_down_and_read_back():
    heat = Heat(NOW, limit=6)
    for minute, blob_id in enumerate("abcd"):
        heat.tick(NOW + minute * MINUTE_MS)
        heat.read(blob_id)
    heat.read("a")
    base = NOW // MINUTE_MS
    assert sorted(heat.since(base + 2)) == [("a", base + 3), ("c", base + 2), ("d", base + 3)]
    assert heat.minute == base + 3
    again = Heat(NOW + HOUR, limit=6)
    again.read("b")
    again.load([("b", base + 1), ("d", base + 3), ("c", base + 10_000), ("e", base)])
    assert again.last_read_ms("b", 0) == NOW + HOUR
    assert again.last_read_ms("d", 0) == NOW + 3 * MINUTE_MS
    assert again.last_read_ms("c", 0) == NOW + HOUR, "a clock that was ahead"
    assert again.last_read_ms("e", 0) == 0, "the elder half is full"


def test_a_clock_that_goes_back_does_not_keep_blobs_warm_for_years():
    heat = Heat(NOW + 365 * 24 * HOUR)
    heat.read("a")
    heat.tick(NOW)
    assert heat.last_read_ms("a", 0) == NOW
    heat.tick(NOW + HOUR)
    assert heat.last_read_ms("a", 0) == NOW
