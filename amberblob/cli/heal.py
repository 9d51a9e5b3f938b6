"""``amberblob cluster heal``: have the copies compared now, and watch them become equal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amberblob.cli.healing import Healed, HealWatch, InVain, Left, duration
from amberblob.cli.options import Endpoint, Json, wants_json, with_client
from amberblob.cli.output import CommandFailed, human_size, note, printable, say, say_json
from amberblob.cli.watching import Show, bar

if TYPE_CHECKING:
    from amberblob.client import AsyncClient

POLL_S = 1.0


def heal(
    wait: Annotated[bool, typer.Option("--wait", help="Until all copies agree and hold every byte.")] = False,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=0.0, help="With --wait: give up after so long.")
    ] = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Compare all copies with each other now, and mend what they lack. (The nodes do the same every ten minutes.)

    With --wait the exit status is 0 once every slot is whole: the digests of all its copies agree, and no byte is missing anywhere.
    A slot that is being written all the time counts when its copies were compared and lacked nothing. It is 1 when that
    cannot be reached (a node stays away, a chunk is lost), or not within --timeout.

    \b
    Examples:
      amberblob cluster heal --wait
      amberblob cluster heal --wait --timeout 600 --json
    """
    if timeout_s is not None and not wait:
        raise typer.BadParameter("it says how long to --wait; add that", param_hint="--timeout")
    as_json = wants_json(json_output)

    async def work(client: AsyncClient) -> tuple[Mapping[str, Any], Healed | InVain | None]:
        asked = await client.heal()
        if not wait:
            return asked, None
        with bar("healing", quiet=as_json) as show:
            return await _watch(client, str(asked["since"]), timeout_s, show)

    document, end = with_client(endpoint, work)
    if as_json:
        say_json(document)
    if isinstance(end, InVain):
        raise CommandFailed(printable(end.why), printable(end.hint))
    if as_json:
        return
    if isinstance(end, Healed):
        written = f"; {end.written} of them are being written, and lack nothing" if end.written else ""
        say(f"healed: all {end.slots} slots{written}")
        return
    say(f"comparing now: {printable(', '.join(map(str, document.get('nodes', ()))))}")
    if silent := document.get("silent_nodes"):
        note(f"could not be asked: {printable(', '.join(map(str, silent)))}")


async def _watch(
    client: AsyncClient, since: str, timeout_s: float | None, show: Show
) -> tuple[Mapping[str, Any], Healed | InVain]:
    """Look until the end; the last account of the copies, and what the end is."""
    watch, began_s = HealWatch(), time.monotonic()
    while True:
        document = await client.cluster(slots="unhealed", since=since)
        account = document.get("heal")
        account = account if isinstance(account, Mapping) else {}
        seen = watch.look(int(document.get("slot_count") or 0), account, time.monotonic() - began_s)
        if not isinstance(seen, Left):
            return account, seen
        if timeout_s is not None and time.monotonic() - began_s >= timeout_s:
            return account, InVain(
                f"not healed within {timeout_s:g} s: {seen.text}",
                "It goes on by itself. amberblob cluster status tells what is the matter.",
            )
        # Bytes where any are missing; what is only to be compared has no size.
        if seen.bytes_most:
            show(seen.text, seen.bytes_most - seen.bytes_left, seen.bytes_most)
        else:
            show(seen.text, seen.done, seen.slots)
        if seen.ask_again:
            await client.heal()
        await asyncio.sleep(POLL_S)


def bytes_left(heal: Mapping[str, Any]) -> str:
    """What is to be fetched, how fast, and how long that takes, as far as it is known."""
    left = int(heal.get("bytes_below_target") or 0)
    text = f"{human_size(left)} in {heal.get('versions_waiting') or 0} versions"
    if left and (rate := heal.get("rate_bytes_per_s")) is not None:
        text += f", {human_size(int(rate))}/s"
    if left and (seconds := heal.get("seconds_left")) is not None:
        text += f", about {duration(float(seconds))} left"
    if silent := heal.get("silent_nodes"):
        text += f"; what {', '.join(map(str, silent))} lacks is not known"
    return text
