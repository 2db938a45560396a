"""What a mint's refusal to answer a question may not cost."""

from __future__ import annotations

from pathlib import Path

from farebox.rails.cashu.records import ProofUse
from farebox.testing.mint import DropAfter, PlayMint, Refuse
from tests.integration.cashu_house import house_of
from tests.integration.test_cashu_upkeep import leftovers


async def test_a_question_that_a_mint_refuses_rejects_no_consolidation(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, consolidate_proofs=10) as house:
        await leftovers(house, mint)
        mint.faults.next("swap", DropAfter())
        assert (await house.upkeep.run()).consolidated == 0

        mint.faults.next("keysets", Refuse(12001))
        await house.recover()
        house.clock.advance(400)
        await house.operations.recover()

        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 0
        await house.assert_whole(mint)
