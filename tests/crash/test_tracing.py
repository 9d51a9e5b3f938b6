"""Logs of strace: what of them is believed, and what of them nobody knows."""

from __future__ import annotations

from pathlib import Path

from tests.crash.powercut import Recording
from tests.crash.tracing import read_calls

BEGUN = '7  pwrite64(12</base/disk/1>, "\\x61\\x62", 2, 4096 <unfinished ...>\n'
ENDED = "7  <... pwrite64 resumed>)           = 2\n"
KILLED = "7  +++ killed by SIGKILL +++\n"


def test_a_call_that_others_interrupted_in_the_log():
    [call, other] = read_calls(f"{BEGUN}8  fsync(3</base>)  = 0\n{ENDED}{KILLED}")
    assert (call.name, call.result, call.begin, call.end, call.lost) == ("pwrite64", 2, 0, 2, False)
    assert (call.string(1), call.fd(), other.name, other.begin, other.end) == (b"ab", 12, "fsync", 1, 1)


def test_a_call_within_which_its_thread_was_killed():
    [call] = read_calls(BEGUN + KILLED)
    assert call.result is None and call.end > 1 and not call.lost


def test_a_thread_that_was_killed_while_strace_looked_at_it():
    """Lines of real logs: a machine with more to do than processors showed each in one of a hundred kills."""
    whole = '9  pwrite64(12</base/disk/1>, "\\x61\\x62", 2, 4096) = 2\n'
    lines = whole + '9  pwrite64(12</base/disk/1>, "\\x61\\x62", 2, 4098 <detached ...>\n'
    lines += '7  pwritev2(10</base/disk/2>, [{iov_base="\\x61", iov_len=1}], 1, 8, 0) = 4360\n'
    lines += "7  syscall_0x1108(0, 0x7f0d2c11acb8, 0x1000, 0xb000, 0, 0x7f0d2c160e48 <detached ...>\n"
    lines += BEGUN.replace("7  ", "6  ") + ENDED.replace("7  ", "6  ").replace(")           = 2", " <detached ...>")
    calls = list(read_calls(lines))
    assert [(call.tid, call.result, call.lost) for call in calls] == [
        (9, 2, False), (9, None, True), (7, 4360, False), (7, None, True), (6, None, True),
    ]  # fmt: skip


def test_what_strace_tells_after_the_kill_is_not_believed():
    """Lines of real logs: another thread's result, another's in place of the number of a call, and no number at all."""
    log = '5  pwrite64(12</base/disk/1>, "\\x61\\x62", 2, 4096 <unfinished ...>\n'
    log += '6  pwrite64(12</base/disk/1>, "\\x61\\x62", 2, 8192) = 2\n'
    log += "4  kill(4, SIGKILL <unfinished ...>\n"
    log += "7  <... pwritev2 resumed>)           = 72\n5  <... pwrite64 resumed>)           = 72\n"
    log += "8  ???( <unfinished ...>\n8  <... ??? resumed>) = ?\n9  ???() = ?\n6  fsync(12</base/disk/1>) = 0\n"
    log = '7  pwritev2(10</base/disk/2>, [{iov_base="\\x61", iov_len=1}], 1, 8, 0 <unfinished ...>\n' + log
    log += "4  <... kill resumed>)               = ?\n4  +++ killed by SIGKILL +++\n"
    calls = list(read_calls(log))
    assert [(call.tid, call.name, call.result, call.lost) for call in calls] == [
        (7, "pwritev2", None, False), (5, "pwrite64", None, False), (6, "pwrite64", 2, False),
        (8, "???", None, True), (9, "???", None, True), (6, "fsync", None, True),
    ]  # fmt: skip
    assert all(call.end > log.count("\n") for call in calls if call.result is None)


def test_a_signal_to_another_is_no_death():
    assert [call.result for call in read_calls("4  kill(9, 0) = 0\n4  fsync(3</base>) = 0\n")] == [0]


def test_what_was_lost_may_have_happened(tmp_path: Path):
    """It changes nothing in the model, which is then asked about only when the folder is as the model has it."""
    played = Recording(tmp_path)
    log = "7  syscall_0x1108(0, 0x7f0d2c11acb8, 0x1000 <detached ...>\n"
    log += "8  openat(AT_FDCWD</>, 0x7f0d2c11acb8, O_RDWR|O_CREAT, 0644 <detached ...>\n"
    played.play(read_calls(log), 3)
    assert played.in_flight == ["syscall_0x1108", "openat"] and not played.changes and not played.namings
    assert played.in_memory() == {}


def test_what_one_life_left_open_excuses_nothing_in_the_next(tmp_path: Path):
    played = Recording(tmp_path)
    played.play(read_calls("7  syscall_0x1108(0 <detached ...>\n"), 1)
    played.play(read_calls("8  fsync(3</base>) = 0\n"), 1)
    assert played.in_flight == []


def test_a_call_elsewhere_explains_nothing(tmp_path: Path):
    base = "".join(f"\\x{byte:02x}" for byte in bytes(tmp_path))
    played = Recording(tmp_path)
    log = '7  pwrite64(1<\\x2f\\x64>, "\\x61", 1, 0 <unfinished ...>\n8  fsync(3<\\x2f\\x64> <unfinished ...>\n'
    log += f'9  openat(AT_FDCWD<\\x2f>, "{base}\\x2f\\x64", O_RDWR|O_CREAT, 0644 <unfinished ...>\n'
    played.play(read_calls(log), 4)
    assert played.in_flight == ["openat"]
