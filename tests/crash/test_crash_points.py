"""SIGKILL at every point of every scenario, and between a client and its answer.

One failing point again: FAREBOX_CRASH_POINT=commit-before-3 pytest tests/crash -k 'create]'.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.exploring import Explorer
from tests.crash.scenarios import SCENARIOS, Scenario
from tests.crash.world import Nursery, Outside


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_no_unit_is_lost_or_counted_twice_wherever_the_house_is_killed(
    scenario: Scenario, nursery: Nursery, around: Outside, tmp_path: Path
) -> None:
    explorer = Explorer(scenario, nursery, around, tmp_path)
    whole = await explorer.undisturbed()
    failing = {}
    for point in whole.points():
        faults = await explorer.faults_at(point, whole)
        if faults:
            failing[f"{point} ({whole.label(point)})"] = faults
    assert not failing, "\n".join(f"{point}: {faults}" for point, faults in failing.items())
