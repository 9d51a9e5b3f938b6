"""The rules one by one: what a copy does about what another one says of a path."""

from __future__ import annotations

from msgspec.structs import replace

from amberblob.ballot import BALLOT_ZERO, Ballot
from amberblob.manifest import Record, Version
from amberblob.mutations import Installed
from amberblob.wire_repair import PathItem
from antientropy.mending import NOTHING, Verdict, elect, weigh
from tests.unit.antientropy.kit import SLOT, ballot, delete, expire, put, row

FIRST = put("p", None)
SECOND = put("p", FIRST)
THIRD = put("p", SECOND)
ONE, TWO, THREE = (row("p", number) for number in (1, 2, 3))


def item(
    number: Ballot | None, record: Record | None, *rows: Version, chosen: bool = True, more_below: int | None = None
) -> PathItem:
    return PathItem("p", number, record, chosen and record is not None, rows, (), more_below)


def undecided(number: Ballot, *rows: Version) -> PathItem:
    return item(number, None, *rows)


def test_what_is_newer_there_is_installed():
    verdict = weigh(SLOT, item(ballot(1), FIRST, ONE), item(ballot(2), SECOND, TWO, ONE), BALLOT_ZERO)
    assert verdict.install is not None
    assert (verdict.install.ballot, verdict.install.record, verdict.install.rows) == (ballot(2), SECOND, (TWO,))
    assert not verdict.install.replace and not verdict.suspect
    assert verdict.size_bytes == TWO.size


def test_an_unknown_path_is_installed_as_a_whole():
    verdict = weigh(SLOT, None, item(ballot(2), SECOND, TWO, ONE), BALLOT_ZERO)
    assert verdict.install is not None and verdict.install.rows == (TWO, ONE)


def test_what_is_older_there_gives_only_rows():
    mine = item(ballot(3), THIRD, THREE, TWO)
    verdict = weigh(SLOT, mine, item(ballot(2), SECOND, TWO, ONE), BALLOT_ZERO)
    assert verdict.install is not None
    assert (verdict.install.ballot, verdict.install.record, verdict.install.rows) == (None, None, (ONE,))
    assert weigh(SLOT, mine, item(ballot(2), SECOND, TWO), BALLOT_ZERO) == NOTHING


def test_the_same_at_another_ballot_is_the_same():
    assert weigh(SLOT, item(ballot(1), FIRST, ONE), item(ballot(9), FIRST, ONE), ballot(20)) == NOTHING


def test_a_record_that_is_only_known_to_be_chosen_there_is_marked_here():
    verdict = weigh(SLOT, undecided(ballot(2), ONE), item(ballot(2), SECOND, TWO, ONE), BALLOT_ZERO)
    assert verdict.install is not None and verdict.install.record == SECOND


def test_a_higher_undecided_record_here_is_settled_first():
    verdict = weigh(SLOT, undecided(ballot(3), ONE), item(ballot(2), SECOND, TWO, ONE), BALLOT_ZERO)
    assert verdict.unsettled and verdict.install == Installed(SLOT, "p", None, None, (TWO,))


def test_rows_of_a_path_that_is_being_written_are_taken_whatever_becomes_of_the_write():
    verdict = weigh(SLOT, None, undecided(ballot(3), TWO, ONE), BALLOT_ZERO)
    assert verdict.unsettled and verdict.install == Installed(SLOT, "p", None, None, (TWO, ONE))
    assert weigh(SLOT, item(ballot(2), SECOND, TWO, ONE), undecided(ballot(3), TWO, ONE), BALLOT_ZERO) == Verdict(
        unsettled=True
    )


def test_a_higher_undecided_record_there_is_settled_first():
    for mine in (None, item(ballot(1), FIRST, ONE), undecided(ballot(3)), undecided(ballot(2))):
        assert weigh(SLOT, mine, undecided(ballot(3), ONE), BALLOT_ZERO).unsettled
    assert weigh(SLOT, item(ballot(3), FIRST, ONE), undecided(ballot(3), ONE), BALLOT_ZERO) == NOTHING
    assert weigh(SLOT, item(ballot(4), FIRST, ONE), undecided(ballot(3), ONE), BALLOT_ZERO) == NOTHING


def test_a_record_at_or_below_the_own_floor_is_proposed_again():
    there = item(ballot(2), SECOND, TWO, ONE)
    for floor in (ballot(2), ballot(3)):
        verdict = weigh(SLOT, item(ballot(1), FIRST, ONE), there, floor)
        assert verdict.below_floor and verdict.install is None
    assert weigh(SLOT, None, there, ballot(1)).install is not None
    assert weigh(SLOT, item(ballot(3), THIRD, THREE, TWO, ONE), there, ballot(4)) == NOTHING


def test_expired_rows_stay_away():
    gone = expire(delete(FIRST))
    assert weigh(SLOT, item(ballot(3), gone), item(ballot(1), FIRST, ONE), BALLOT_ZERO) == NOTHING
    verdict = weigh(SLOT, item(ballot(1), FIRST, ONE), item(ballot(3), gone), BALLOT_ZERO)
    assert verdict.install is not None and verdict.install.rows == ()


def test_rows_without_a_register_are_rows():
    verdict = weigh(SLOT, None, item(None, None, ONE), BALLOT_ZERO)
    assert verdict.install is not None and verdict.install.record is None and verdict.install.rows == (ONE,)


def test_of_long_histories_only_what_both_tell_is_looked_at():
    mine = item(ballot(3), THIRD, THREE, more_below=3)
    assert weigh(SLOT, mine, item(ballot(3), THIRD, THREE, TWO, ONE), BALLOT_ZERO) == NOTHING
    theirs = item(ballot(3), THIRD, THREE, TWO, more_below=2)
    verdict = weigh(SLOT, item(ballot(3), THIRD, THREE), theirs, BALLOT_ZERO)
    assert verdict.install is not None and verdict.install.rows == (TWO,)


WRONG = replace(ONE, content_type="rotten")
WRONG_RECORD = replace(FIRST, changed_at_ms=7)


def test_what_no_age_explains_is_suspect_and_not_installed():
    verdict = weigh(SLOT, item(ballot(1), FIRST, ONE), item(ballot(1), FIRST, WRONG), BALLOT_ZERO)
    assert verdict.suspect and verdict.install is None
    verdict = weigh(SLOT, item(ballot(1), FIRST, ONE), item(ballot(1), WRONG_RECORD, ONE), BALLOT_ZERO)
    assert verdict.suspect and verdict.install is None
    verdict = weigh(SLOT, item(ballot(1), SECOND, TWO, ONE), item(ballot(2), FIRST, ONE), BALLOT_ZERO)
    assert verdict.suspect and verdict.install is None, "a later ballot never has an earlier revision"


def vote(mine: PathItem | None, *others: PathItem | None, voters: int, trusted: bool = True):
    told = {f"n{at + 1}": one for at, one in enumerate(others)}
    return elect(SLOT, "p", mine, told, voters, trusted=trusted)


def test_a_majority_of_all_voters_outvotes_the_own_content():
    good, bad = item(ballot(1), FIRST, ONE), item(ballot(1), FIRST, WRONG)
    election = vote(bad, good, good, voters=3)
    assert election.certain and election.install is not None
    assert election.install.rows == (ONE,) and election.install.record is None and election.install.replace
    assert vote(good, bad, good, voters=3) == vote(good, good, good, voters=3)
    assert vote(good, bad, good, voters=3).install is None


def test_a_tie_decides_nothing():
    good, bad = item(ballot(1), FIRST, ONE), item(ballot(1), FIRST, WRONG)
    assert vote(bad, good, voters=2) == vote(good, bad, voters=2)
    assert vote(bad, good, voters=2).install is None and not vote(bad, good, voters=2).certain
    assert not vote(bad, good, None, voters=3).certain, "who has none does not vote"


def test_who_did_not_answer_might_have_voted_the_other_way():
    good, bad = item(ballot(1), FIRST, ONE), item(ballot(1), FIRST, WRONG)
    assert not vote(bad, good, good, voters=5).certain
    assert vote(bad, good, good, None, None, voters=5).certain
    assert vote(bad, good, good, good, voters=5).certain


def test_a_record_is_outvoted_like_a_row():
    good, bad = item(ballot(1), FIRST, ONE), item(ballot(1), WRONG_RECORD, ONE)
    election = vote(bad, good, good, voters=3)
    assert election.install is not None and election.install.record == FIRST
    assert vote(good, bad, good, voters=3).install is None


def test_what_failed_its_check_has_no_vote():
    good, bad = item(ballot(1), FIRST, ONE), item(ballot(1), FIRST, WRONG)
    election = vote(bad, good, voters=2, trusted=False)
    assert election.certain and election.install is not None
    assert election.install.rows == (ONE,) and election.install.record == FIRST
    lost = vote(None, good, voters=2, trusted=False)
    assert lost.install is not None and (lost.install.ballot, lost.install.record) == (ballot(1), FIRST)


def test_an_expired_row_is_no_content():
    gone = expire(delete(FIRST))
    election = vote(item(ballot(3), gone), item(ballot(1), FIRST, ONE), voters=2, trusted=False)
    assert election.install is None or election.install.rows == ()
