"""Kills a scenario at each of its points in turn, and proves each time that nothing was lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from tests.crash.points import Kind, Point, points, read_point
from tests.crash.scenarios import Facts, Scenario, drain
from tests.crash.world import MSAT, Lost, Nursery, Outside, Run, new_run

#: Set to one point, such as `commit-before-3`, to kill there only.
POINT = "FAREBOX_CRASH_POINT"
_LOOKS = 25
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """The same scenario when nobody dies."""

    passed: dict[Kind, list[str]]
    revenue_msat: int
    fees: int

    def points(self) -> Sequence[Point]:
        """Where to kill: everywhere, or where the environment says."""
        only = os.environ.get(POINT)
        if only:
            return [read_point(only)]
        return list(points({kind: len(labels) for kind, labels in self.passed.items()}))

    def label(self, point: Point) -> str:
        """What happens at a point."""
        labels = self.passed.get(point.kind, [])
        return labels[point.number - 1] if point.number <= len(labels) else "?"


class Lived(Protocol):
    """What is lived through by one house."""

    run: Run

    async def assert_right(self) -> None:
        """What must be so at the end."""
        ...


S = TypeVar("S", bound=Lived)


async def rehearse(
    one: S,
    prepare: Callable[[S], Awaitable[object]],
    act: Callable[[S], Awaitable[object]],
) -> dict[Kind, int]:
    """Live it through undisturbed; how many points of each kind it passes."""
    assert await one.run.start()
    await prepare(one)
    await one.run.arm(None)
    await act(one)
    passed = await one.run.passed()
    await one.assert_right()
    await one.run.kill()
    return {kind: len(labels) for kind, labels in passed.items()}


async def die_at(
    one: S,
    prepare: Callable[[S], Awaitable[object]],
    act: Callable[[S], Awaitable[object]],
    point: Point,
) -> bool:
    """Live it through with a death at the point; returns whether it came to that."""
    assert await one.run.start()
    await prepare(one)
    await one.run.arm(point)
    died = False
    try:
        await act(one)
        await one.assert_right()  # what goes on in the background may come to the point as well
    except Lost:
        died = True
        await one.run.died()
        assert await one.run.start()
        await act(one)
        await one.assert_right()
    await one.run.kill()
    return died


def left_behind(folder: Path) -> list[bytes]:
    """Every file of every house: logs, books, locks."""
    found = [one.read_bytes() for one in folder.rglob("*") if one.is_file()]
    assert any(found)
    return found


@dataclass(frozen=True, slots=True)
class Explorer:
    """A scenario, and what every run of it needs."""

    scenario: Scenario
    nursery: Nursery
    around: Outside
    folder: Path
    #: Points that did not come.
    missed: list[Point] = field(default_factory=list)

    async def undisturbed(self) -> Undisturbed:
        """Run to the end; asserts that all is well then."""
        run = await self._prepared()
        try:
            await run.arm(None)
            facts = await self.scenario.act(run)
            passed = await run.passed()
            await run.settle()
            await self._told_again(run, facts)
            seen = await run.look()
            assert not seen.faults, seen.faults
            assert seen.revenue_msat <= self.scenario.maximum_msat * (2 - self.scenario.is_named)
            return Undisturbed(passed, seen.revenue_msat, seen.fees)
        finally:
            await run.kill()

    async def faults_at(self, point: Point, whole: Undisturbed) -> list[str]:
        """Die at one point, restart, finish; what is wrong then.

        After an `after` the client is back at once, while the house recovers; after a `before` it
        is back later. What stands in the books is the same for one `after` and the next `before`.
        """
        run = await self._prepared()
        try:
            told = await self._strike(run, point)
            if run.pid:
                await run.arm(None)
            else:
                assert await run.start(), "died at the start"
            if not point.after:
                await run.settle()
            return await self._finish(run, told, whole)
        except (AssertionError, Lost, TimeoutError) as error:
            return [f"{type(error).__name__}: {error}"]
        finally:
            await run.kill()

    async def recovery(self, point: Point) -> dict[Kind, list[str]]:
        """What passes in a house that recovers from this death."""
        run = await self._prepared()
        try:
            await self._strike(run, point)
            await run.kill()
            assert await run.start(), "died at the start"
            await run.settle()
            return await run.passed()
        finally:
            await run.kill()

    async def faults_at_both(self, first: Point, second: Point, whole: Undisturbed) -> list[str]:
        """Die at one point, then again while recovering from it; what is wrong then."""
        run = await self._prepared()
        try:
            told = await self._strike(run, first)
            await run.kill()
            if await run.start(second):
                with suppress(Lost):
                    await run.settle()
                await run.kill()
            assert await run.start(), "died at the start"
            await run.settle()
            return await self._finish(run, told, whole)
        except (AssertionError, Lost, TimeoutError) as error:
            return [f"{type(error).__name__}: {error}"]
        finally:
            await run.kill()

    async def _prepared(self) -> Run:
        run = new_run(
            self.nursery,
            self.around,
            self.folder,
            self.scenario.fee_ppk,
            self.scenario.settings,
        )
        assert await run.start()
        await self.scenario.prepare(run)
        return run

    async def _strike(self, run: Run, point: Point) -> Facts | None:
        """Act until the house dies (or drops an answer); what the client was told, if it was."""
        await run.arm(point)
        told: Facts | None = None
        with suppress(Lost):
            told = await self.scenario.act(run)
        if point.drops:
            return told
        if told is not None and not await self._reaches(run, point):
            self.missed.append(point)  # the house lives, and all must be well all the same
            return told
        await run.died()
        return told

    async def _reaches(self, run: Run, point: Point) -> bool:
        """Whether the point comes: a stream may arrive in fewer pieces than the last time."""
        with suppress(Lost):
            for _ in range(_LOOKS):
                if len((await run.passed()).get(point.kind, ())) >= point.number:
                    return True
                await asyncio.sleep(_PAUSE_S)
            return False
        return True

    async def _told_again(self, run: Run, facts: Facts) -> None:
        if self.scenario.is_named:
            again = await self.scenario.act(run)
            assert again == facts, f"told {facts}, then {again}"

    async def _finish(self, run: Run, told: Facts | None, whole: Undisturbed) -> list[str]:
        facts = await self.scenario.act(run)
        if told is not None:
            assert told == facts, f"told {told} before, then {facts}"
        await run.settle()
        before = await run.look()
        await self._told_again(run, facts)
        await run.settle()
        seen = await run.look()
        faults = seen.faults
        if self.scenario.is_named and before != seen:
            faults.append(f"asking again has moved money: {before}, then {seen}")
        if seen.fees != whole.fees:
            faults.append(f"mints kept {seen.fees} sat, not {whole.fees}")
        faults += self._charge_faults(facts, seen.revenue_msat, whole)
        if not faults and not self.scenario.fee_ppk:
            await drain(run)
            faults = (await run.look()).faults
        return faults

    def _charge_faults(self, facts: Facts, revenue_msat: int, whole: Undisturbed) -> list[str]:
        """Charged is what was told; all of the price or nothing, in a stream what was metered."""
        told = facts.get("charged_msat", revenue_msat)
        if told != revenue_msat:
            return [f"told to be charged {told}, charged {revenue_msat}"]
        price = whole.revenue_msat
        fits = revenue_msat in (0, price)
        if not self.scenario.is_named:
            # An answer that was lost after it was settled is paid for, and so is the next one.
            fits = revenue_msat in (price, 2 * price)
        elif self.scenario.name.startswith("streamed"):
            fits = 0 <= revenue_msat <= price
        return [] if fits else [f"charged {revenue_msat} msat for {price // MSAT} sat"]
