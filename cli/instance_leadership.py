"""`moorctl instance switchover, failover, pause, resume, promote, history`: who leads by a person's wish, who led and
why.

A time for a switchover is written as people say it: `+10m`, `02:30` (the next one on this machine's clock), or in
full. What was understood is said back. A forced failover is asked for in two steps: what it would lose is shown
first, and the hub refuses the order when anything has changed since.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import click

from cli import history_page, output, plan_page, progress
from cli.apply import wait_options
from cli.client import Client
from cli.instance import checked_name, name_argument
from cli.session import Seconds, Session, Verb, confirm_by_name, pass_session, tell
from core.clock import iso, moment
from core.errors import ConflictError, MoorageError, UserError

_CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")


# --- switchover -----------------------------------------------------------------------------------------------------


@click.command(cls=Verb)
@name_argument
@click.option("--to", "target", default="", metavar="MEMBER", help="Member to become primary (default: the best).")
@click.option("--at", "at", default="", metavar="TIME", help="When: +10m, 02:30, 2026-11-25T02:30Z (default: now).")
@click.option("--cancel", is_flag=True, help="Take the scheduled switchover back.")
@wait_options[0]
@wait_options[1]
@pass_session
def switchover(
    session: Session, /, *, name: str, target: str, at: str, cancel: bool, wait: bool, timeout: float
) -> None:
    """Move the primary in an orderly way: clients see a pause, no error.

    With --at it is laid down and the command returns. When its time comes and the instance is not healthy, or no hub
    was at work for 15 minutes, it is dropped, and an event says why. It may also be asked for while automatic failover
    is paused.
    """
    checked = checked_name(name)
    if cancel and (target or at):
        raise UserError("--cancel goes with neither --to nor --at", object="switchover")
    if cancel:
        _cancel(session, checked)
    elif at:
        _schedule(session, checked, target, at)
    else:
        _switch_now(session, checked, target, wait=wait, timeout=timeout)


def _switch_now(session: Session, name: str, target: str, *, wait: bool, timeout: float) -> None:
    async def work(client: Client) -> dict[str, Any]:
        before = (await client.get("Instance", name)).status
        term = _term(before)
        request_id = await client.switchover(name, target)
        done: dict[str, Any] = {
            "name": name,
            "request": request_id,
            "from": before.get("primary"),
            "to": target or None,
        }
        if wait:
            goal = progress.switched(name, request_id, before_term=term, target=target)
            pages = await progress.wait_for(client, [goal], timeout_s=timeout, clock=session.clock)
            done["to"] = (pages[name] or {}).get("primary")
            done["held_s"] = await _held_s(client, name, term)
        return done

    done = session.run(work)
    if not wait:
        tell(session, done, f"instance {name}: switchover asked for")
        return
    held = f"; clients were held for {done['held_s']:.2f} s" if done["held_s"] is not None else ""
    tell(session, done, f"instance {name}: {done['to']} is primary, {done['from']} was{held}")


async def _held_s(client: Client, name: str, term: int) -> float | None:
    """Seconds, or None when the history does not tell (an older agent, or a hub that does not answer just now)."""
    try:
        held = history_page.held_s(await client.history(name, limit=10), term)
    except MoorageError:
        return None
    return round(held, 3) if held is not None else None


def _schedule(session: Session, name: str, target: str, at: str) -> None:
    delay_s, wall_s = parse_time(at, session.clock.wall())
    if not delay_s and not wall_s:
        raise UserError("is now: leave --at out for that", object="--at")

    async def work(client: Client) -> float:
        return await client.schedule_switchover(
            name, target, at_ms=int(wall_s * 1000), delay_ms=max(1, int(delay_s * 1000)) if delay_s else 0
        )

    planned = session.run(work)
    away = output.duration(planned - session.clock.wall())
    page = {"name": name, "to": target or None, "at": iso(planned)}
    tell(
        session, page, f"instance {name}: switchover to {target or 'the best replica'} at {moment(planned)}, in {away}"
    )


def _cancel(session: Session, name: str) -> None:
    planned, target = session.run(lambda client: client.cancel_switchover(name))
    page = {"name": name, "cancelled": iso(planned), "to": target or None}
    tell(session, page, f"instance {name}: the switchover at {moment(planned)} is cancelled")


def parse_time(text: str, now: float) -> tuple[float, float]:
    """Seconds from now, or wall seconds: one of the two is 0. UserError tells how to write it."""
    wrong = UserError(
        f"{text!r} is not a time", object="--at", hint="Write +10m, +2h, 02:30, 2026-11-25T02:30 or 2026-11-25T02:30Z."
    )
    stripped = text.strip()
    if stripped.startswith("+"):
        try:
            return Seconds().convert(stripped[1:], None, None), 0.0
        except click.BadParameter as error:
            raise wrong from error
    local_now = datetime.fromtimestamp(now).astimezone()
    clock = _CLOCK.fullmatch(stripped)
    try:
        if clock is not None:
            then = local_now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
            return 0.0, (then if then > local_now else then + timedelta(days=1)).timestamp()
        # astimezone() takes a time without a zone for one on this machine's clock, and leaves another as it is.
        return 0.0, datetime.fromisoformat(stripped).astimezone().timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise wrong from error


# --- forced failover ------------------------------------------------------------------------------------------------


@click.command(cls=Verb)
@name_argument
@click.option("--to", "target", default="", metavar="MEMBER", help="Member to become primary (default: least loss).")
@click.option("--force", is_flag=True, help="Do it, whatever is lost.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@wait_options[0]
@wait_options[1]
@pass_session
def failover(
    session: Session, /, *, name: str, target: str, force: bool, yes: bool, wait: bool, timeout: float
) -> None:
    """Make a member primary although it may lack commits: the last resort when the primary does not come back.

    Failover needs no command: members elect a new primary by themselves as soon as they can prove that nothing
    acknowledged is lost. Without --force this tells what they wait for and what a forced failover would lose, and ends
    with 2. A primary that still runs is stopped first; there are never two.
    """
    checked = checked_name(name)
    plan = session.run(lambda client: client.plan_failover(checked, target))
    if session.output != "table" and not force:
        output.dump(plan, session.output)
    elif session.output == "table" or not yes:
        for line in plan_page.plan_lines(plan, output.width()):
            (output.note if force and session.output != "table" else output.say)(line)
    if plan.get("obstacle"):
        raise UserError(f"cannot be forced: {plan['obstacle']}", object=checked)
    if not force:
        raise UserError("not forced", object=checked, hint=f"To do it: moorctl instance failover {checked} --force")
    chosen = str(plan.get("target") or "")
    confirm_by_name(f"Make {chosen} the primary of {checked}, whatever is lost?", checked, yes=yes)

    async def work(client: Client) -> dict[str, Any]:
        term = int(plan.get("term") or 0)
        order = await client.failover(checked, chosen, after_term=term)
        if wait:
            goal = progress.forced(checked, order, target=chosen, after_term=term)
            await progress.wait_for(client, [goal], timeout_s=timeout, clock=session.clock)
        return {"name": checked, "order": order, "to": chosen, "after_term": term, "loss": plan.get("loss_text")}

    done = session.run(work)
    tell(session, done, f"instance {checked}: {chosen} {'is primary' if wait else 'was ordered to take over'}")


# --- pause ----------------------------------------------------------------------------------------------------------


@click.command(cls=Verb)
@name_argument
@click.option("--reason", default="", metavar="TEXT", help="For the history and whoever looks meanwhile.")
@pass_session
def pause(session: Session, name: str, reason: str) -> None:
    """Stop automatic failover, for maintenance; engines run on.

    A primary that ends is then started again where it is, and one that is lost is waited for. Switchover and
    failover --force still work: they are your wish.
    """
    checked = checked_name(name)

    async def work(client: Client) -> dict[str, Any]:
        await client.pause_failover(checked, reason)
        return (await client.get("Instance", checked)).status.get("ha") or {}

    ha = session.run(work)
    who, since, why = ha.get("paused_by"), history_page.when(ha.get("paused_at")), ha.get("pause_reason")
    line = f"instance {checked}: automatic failover is paused by {who} since {since}{f' ({why})' if why else ''}"
    page = {"name": checked, "paused": True, "paused_by": who, "paused_at": ha.get("paused_at"), "pause_reason": why}
    tell(session, page, line)
    if session.output == "table":
        output.note(f"end it with: moorctl instance resume {checked}")


@click.command(cls=Verb)
@name_argument
@pass_session
def resume(session: Session, name: str) -> None:
    """Let automatic failover go on after a pause."""
    checked = checked_name(name)
    session.run(lambda client: client.resume_failover(checked))
    tell(session, {"name": checked, "paused": False}, f"instance {checked}: automatic failover is on")


# --- promotion ------------------------------------------------------------------------------------------------------


@click.command(cls=Verb)
@name_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@wait_options[0]
@wait_options[1]
@pass_session
def promote(session: Session, name: str, yes: bool, wait: bool, timeout: float) -> None:
    """Make an ordinary instance of a standby instance: it follows its remote primary no longer and accepts writes.

    The remote primary is not stopped by this: see to it that nobody writes there any more. It cannot be taken back.
    """
    checked = checked_name(name)
    found = session.run(lambda client: client.get("Instance", checked))
    if not isinstance(found.status.get("standby"), dict):
        raise ConflictError("is no standby instance: it follows no remote primary", object=checked)
    for line in promotion_lines(checked, found.status["standby"]):
        output.note(line)
    confirm_by_name("This cannot be taken back.", checked, yes=yes)

    async def work(client: Client) -> int:
        generation = await client.promote(checked)
        if wait:
            goal = progress.running(checked, generation)
            await progress.wait_for(client, [goal], timeout_s=timeout, clock=session.clock)
        return generation

    generation = session.run(work)
    page = {"name": checked, "generation": generation, "promoted": wait}
    tell(session, page, f"instance {checked} {'is promoted: it accepts writes' if wait else 'is being promoted'}")


def promotion_lines(name: str, standby: dict[str, Any]) -> tuple[str, ...]:
    """What a person should know before."""
    whom = output.plain(", ".join(str(host) for host in standby.get("hosts") or []) or "its remote primary")
    lag = standby.get("lag_bytes")
    if not standby.get("streaming"):
        behind = "it does not stream, so nobody knows how much it lacks"
    elif lag is None:
        behind = "how far behind it is is not known at this moment"
    else:
        behind = f"by the last heartbeat it has yet to replay {output.size(lag)} of what it knows of"
    return (
        f"{name} follows {whom}; {behind}. Commits that have not come over are not in it.",
        f"{whom} is not stopped or fenced by Moorage: make sure that nobody writes there any more.",
    )


# --- history --------------------------------------------------------------------------------------------------------


@click.command(cls=Verb)
@name_argument
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=20, show_default=True, help="Newest ones at most.")
@pass_session
def history(session: Session, name: str, limit: int) -> None:
    """Changes of leadership in full, newest last: what was seen, by whom, which ballots, how long each step took, and
    whether anything may have been lost."""
    checked = checked_name(name)
    entries = session.run(lambda client: client.history(checked, limit))
    if session.output != "table":
        output.dump(entries, session.output)
    elif not entries:
        output.note(f"nobody has led {checked} yet")
    else:
        for line in history_page.history_lines(entries, output.width()):
            output.say(line)


def _term(page: dict[str, Any]) -> int:
    return int((page.get("ha") or {}).get("term") or 0)


COMMANDS: tuple[click.Command, ...] = (switchover, failover, pause, resume, promote, history)  # of the noun `instance`
