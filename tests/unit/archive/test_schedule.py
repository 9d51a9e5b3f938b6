"""When scheduled jobs begin."""

from amberblob.config import ArchiveJobRule, Duration
from archive.schedule import CALM_MS, DAY_MS, SPREAD_MS_MAX, Schedule, key_of, within

HOUR = 3_600_000
MIDNIGHT = 1_800_000_000_000 // DAY_MS * DAY_MS


def rule(job: str = "run", every_s: float = 86_400, between: str = "") -> ArchiveJobRule:
    return ArchiveJobRule(job=job, every=Duration(every_s), between=between)  # type: ignore[arg-type]


def begins(schedule: Schedule, start: int, end: int, step: int = 60_000) -> list[tuple[str, int]]:
    """When each job begins, if the schedule is asked every minute."""
    found: list[tuple[str, int]] = []
    for now in range(start, end, step):
        for due in schedule.due(now):
            schedule.begun(due, now)
            found.append((due.job, now))
    return found


def test_it_begins_again_after_every():
    job = rule(every_s=3600)
    schedule = Schedule([job], {key_of(job): MIDNIGHT - HOUR // 2}, MIDNIGHT - DAY_MS, "n1")
    assert [at - MIDNIGHT for _, at in begins(schedule, MIDNIGHT, MIDNIGHT + 3 * HOUR)] == [
        HOUR // 2, HOUR * 3 // 2, HOUR * 5 // 2,
    ]  # fmt: skip
    assert schedule.next_ms(MIDNIGHT + 3 * HOUR) == MIDNIGHT + HOUR * 7 // 2
    assert schedule.began == {key_of(job): MIDNIGHT + HOUR * 5 // 2}
    assert Schedule([], {}, 0, "n1").next_ms(MIDNIGHT) is None


def test_a_daily_job_begins_when_its_hours_do_every_night():
    job = rule(between="22:00-04:00")
    schedule = Schedule(
        [job], {key_of(job): MIDNIGHT + HOUR}, MIDNIGHT - DAY_MS, "n1"
    )  # 01:00: in the hours from 22:00 on
    nights = [at for _, at in begins(schedule, MIDNIGHT + HOUR + 60_000, MIDNIGHT + 4 * DAY_MS, 7 * 60_000)]
    assert len(nights) == 4
    assert all((at - MIDNIGHT - 22 * HOUR) % DAY_MS < 7 * 60_000 for at in nights)


def test_hours():
    day, night = rule(between="01:00-05:30"), rule(between="22:00-04:00")
    inside = {
        at / HOUR: (within(day, MIDNIGHT + at), within(night, MIDNIGHT + at)) for at in range(0, DAY_MS, HOUR // 2)
    }
    assert {at for at, (by_day, _) in inside.items() if by_day} == {1 + half / 2 for half in range(9)}
    assert {at for at, (_, by_night) in inside.items() if by_night} == {22, 22.5, 23, 23.5} | {
        half / 2 for half in range(8)
    }
    assert within(rule(), MIDNIGHT)


def test_outside_of_its_hours_it_waits_for_them():
    job = rule(every_s=3600, between="01:00-02:00")
    schedule = Schedule([job], {}, MIDNIGHT - DAY_MS, "n1")
    assert begins(schedule, MIDNIGHT + 3 * HOUR, MIDNIGHT + DAY_MS) == []
    assert schedule.next_ms(MIDNIGHT + 3 * HOUR) == MIDNIGHT + DAY_MS + HOUR


def test_after_a_start_not_everything_begins_at_once():
    jobs = [rule("run"), rule("gc", 604_800), rule("export", 86_400)]
    began = {key_of(job): MIDNIGHT - 400 * DAY_MS for job in jobs}
    times = []
    for node in ("n1", "n2", "n3"):
        schedule = Schedule(jobs, began, MIDNIGHT, node)
        assert schedule.due(MIDNIGHT) == []
        found = begins(schedule, MIDNIGHT, MIDNIGHT + HOUR, 10_000)
        assert len(found) == 3
        times += [at for _, at in found]
    assert len(set(times)) > 6
    assert all(MIDNIGHT + CALM_MS <= at <= MIDNIGHT + CALM_MS + SPREAD_MS_MAX + 10_000 for at in times)
    assert all(
        at <= MIDNIGHT + CALM_MS + 360_000 + 10_000
        for _, at in begins(Schedule([rule(every_s=3600)], {}, MIDNIGHT, "n1"), MIDNIGHT, MIDNIGHT + HOUR, 10_000)
    )


def test_a_clock_that_was_ahead_delays_by_every_at_most():
    job = rule(every_s=3600)
    schedule = Schedule([job], {key_of(job): MIDNIGHT + 400 * DAY_MS}, MIDNIGHT + 400 * DAY_MS, "n1")
    found = begins(schedule, MIDNIGHT, MIDNIGHT + 2 * HOUR)
    assert [at - MIDNIGHT for _, at in found] == [HOUR]
    assert schedule.began[key_of(job)] == MIDNIGHT + HOUR


def test_a_clock_that_jumps_ahead_begins_each_job_once():
    job = rule(every_s=3600)
    schedule = Schedule([job], {key_of(job): MIDNIGHT}, MIDNIGHT - DAY_MS, "n1")
    later = MIDNIGHT + 30 * DAY_MS
    assert len(begins(schedule, later, later + HOUR // 2)) == 1
