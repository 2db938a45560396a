"""Money out over Lightning: to an invoice, a Lightning address or an LNURL."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from farebox.ecash.codes import NutError
from farebox.ecash.mint import MeltQuote, MintInfo
from farebox.ledger.model import Kind, Open, Transfer, Unit
from farebox.money import BTC
from farebox.payments import Refusal
from farebox.payments.service import Pending, Refunded
from farebox.rails.cashu.records import ProofUse
from farebox.testing.asgi import Receive, Scope, Send, respond, serving
from farebox.testing.mint import (
    AnswersLate,
    DropAfter,
    DropBefore,
    ExecutesLate,
    Fail,
    Fault,
    Garbage,
    PlayLightning,
    PlayMint,
    Refuse,
    StaysPending,
)
from farebox.wire import bech32
from farebox.wire.cashu.model import BlindedMessage, Proof
from tests.integration.cashu_house import CUSTOMER, House, PowerCut, house_of, issue
from tests.slowness import LATE_S, impatient


def invoice(amount_sat: int) -> str:
    return PlayLightning().invoice(amount_sat * 1_000, os.urandom(32))


@dataclass
class Payee:
    """Somebody with a Lightning address; `answer` replaces what the callback would say."""

    url: str = ""
    min_msat: int = 1_000
    max_msat: int = 10**12
    asked_msat: list[int] = field(default_factory=list)
    answer: dict[str, object] | None = None
    short_by_msat: int = 0
    status: int = 200

    @property
    def address(self) -> str:
        return "bob@" + self.url.removeprefix("http://")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/.well-known/lnurlp/bob":
            document: dict[str, object] = {
                "tag": "payRequest",
                "callback": f"{self.url}/pay?to=bob",
                "minSendable": self.min_msat,
                "maxSendable": self.max_msat,
                "metadata": '[["text/plain","bob"]]',
            }
        else:
            amount_msat = int(parse_qs(scope["query_string"].decode())["amount"][0])
            self.asked_msat.append(amount_msat)
            request = PlayLightning().invoice(amount_msat - self.short_by_msat, os.urandom(32))
            document = self.answer or {"pr": request, "routes": []}
        await respond(send, self.status, json.dumps(document).encode())


@asynccontextmanager
async def paying_house(
    path: Path, mint: PlayMint, amount_sat: int = 200
) -> AsyncIterator[tuple[House, Payee]]:
    payee = Payee()
    async with serving(payee) as payee.url, house_of(path, mint, allow_private=True) as house:
        await house.receive(issue(mint, amount_sat))
        yield house, payee


@pytest.mark.parametrize("fee_ppk", [0, 100, 1_000])
async def test_an_invoice_is_paid_and_only_what_left_is_taken(tmp_path: Path, fee_ppk: int) -> None:
    mint = PlayMint(fee_ppk=fee_ppk)
    async with paying_house(tmp_path, mint) as (house, _):
        before = await house.balance_sat()
        request = invoice(50)

        refunded = await house.refund(100, "ref_1", destination=request)

        assert isinstance(refunded, Refunded)
        assert refunded.reply["recipient"] == request
        assert (refunded.reply["sats"], refunded.reply["msats"]) == ("50", "50000")
        taken = refunded.amount // 1_000
        assert 51 <= taken <= 51 + 8 * fee_ppk // 1_000 + 1  # the play mint keeps 1 sat
        assert await house.balance_sat() == before - taken
        assert mint.audit().outstanding["sat"] == await house.custody_sat(mint)
        await house.assert_whole(mint)


@pytest.mark.parametrize("fee_ppk", [0, 100, 1_000])
async def test_a_lightning_address_gets_all_but_the_fees(tmp_path: Path, fee_ppk: int) -> None:
    mint = PlayMint(fee_ppk=fee_ppk)
    async with paying_house(tmp_path, mint) as (house, payee):
        before = await house.balance_sat()

        refunded = await house.refund(before, "ref_1", destination=payee.address)

        assert isinstance(refunded, Refunded)
        assert refunded.reply["recipient"] == payee.address
        assert int(refunded.reply["sats"]) >= before - 2 - 9 * fee_ppk // 1_000 - 1
        assert refunded.amount <= before * 1_000
        assert len(payee.asked_msat) <= 3
        assert await house.balance_sat() == before - refunded.amount // 1_000
        await house.assert_whole(mint)


async def test_an_lnurl_is_paid_too(tmp_path: Path) -> None:
    mint = PlayMint()
    async with paying_house(tmp_path, mint) as (house, payee):
        url = f"{payee.url}/.well-known/lnurlp/bob".encode()
        lnurl = bech32.encode("lnurl", url, bech32.Checksum.BECH32).upper()

        assert isinstance(await house.refund(50, "ref_1", destination=lnurl), Refunded)


async def test_the_bounds_of_the_destination_are_kept(tmp_path: Path) -> None:
    mint = PlayMint()
    async with paying_house(tmp_path, mint) as (house, payee):
        payee.max_msat = 20_000
        capped = await house.refund(100, "ref_1", destination=payee.address)
        payee.min_msat, payee.max_msat = 100_000, 100_000
        too_small = await house.refund(50, "ref_2", destination=payee.address)

        assert isinstance(capped, Refunded)
        assert capped.reply["sats"] == "20"
        assert await house.balance_sat() == 200 - 21
        assert isinstance(too_small, Refusal)
        assert too_small.code == "amount_too_small"


async def test_an_invoice_for_another_amount_than_asked_is_not_paid(tmp_path: Path) -> None:
    mint = PlayMint()
    async with paying_house(tmp_path, mint) as (house, payee):
        payee.short_by_msat = -1_000

        refused = await house.refund(50, "ref_1", destination=payee.address)

        assert isinstance(refused, Refusal)
        assert "melt" not in mint.calls
        assert await house.balance_sat() == 200


async def test_destinations_that_fail_take_nothing(tmp_path: Path) -> None:
    mint = PlayMint()
    async with paying_house(tmp_path, mint) as (house, payee):
        codes = []
        for number, destination in enumerate(
            ["", "nobody", "bob@", "lnbc1qqqq", "lnurl1qqqq", "http://127.0.0.1/", invoice(500)]
        ):
            if destination:
                refused = await house.refund(50, f"bad_{number}", destination=destination)
                assert isinstance(refused, Refusal), destination
                codes.append(refused.code)
        for status, answer in ((200, {"status": "ERROR", "reason": "no"}), (500, {"pr": 1})):
            payee.status, payee.answer = status, dict(answer)
            assert isinstance(
                await house.refund(50, f"bad_{status}", destination=payee.address), Refusal
            )
        payee.status, payee.answer = 200, {"pr": "x" * 100_000}
        assert isinstance(await house.refund(50, "bad_long", destination=payee.address), Refusal)

        assert codes == ["destination_invalid"] * 5 + ["amount_too_small"]
        assert await house.balance_sat() == 200
        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254"])
async def test_private_addresses_are_not_connected_to(tmp_path: Path, host: str) -> None:
    mint, payee = PlayMint(), Payee()
    async with serving(payee) as payee.url, house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 100))
        port = payee.url.rpartition(":")[2]
        url = f"https://{host}:{port}/.well-known/lnurlp/bob".encode()
        lnurl = bech32.encode("lnurl", url, bech32.Checksum.BECH32)

        refused = await house.refund(50, "ref_1", destination=lnurl)

        assert isinstance(refused, Refusal)
        assert refused.code == "destination_unavailable"
        assert not payee.asked_msat


MELT_FAULTS: list[Fault] = [
    DropBefore(),
    DropAfter(),
    Fail(500),
    Garbage(),
    ExecutesLate(LATE_S),
    AnswersLate(LATE_S),
]


@pytest.mark.parametrize("fault", MELT_FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("fee_ppk", [0, 100])
async def test_a_lost_answer_to_a_payment_is_asked_about(
    tmp_path: Path, fault: Fault, fee_ppk: int
) -> None:
    mint = PlayMint(fee_ppk=fee_ppk)
    async with paying_house(tmp_path, mint) as (house, payee):
        before = await house.balance_sat()
        mint.faults.next("melt", fault)

        with impatient("/v1/melt/bolt11"):
            assert isinstance(await house.refund(60, "ref_1", destination=payee.address), Pending)
        assert await house.balance_sat() < before, "held until it is known"
        await house.recover()

        refunded = await house.refund(60, "ref_1", destination=payee.address)
        assert isinstance(refunded, Refunded)
        assert await house.balance_sat() == before - refunded.amount // 1_000
        assert mint.audit().outstanding["sat"] == await house.custody_sat(mint)
        await house.assert_whole(mint)


@pytest.mark.parametrize("code", [*sorted(NutError), 11000, 0])
async def test_no_error_code_loses_or_doubles_a_payment(tmp_path: Path, code: int) -> None:
    mint = PlayMint()
    async with paying_house(tmp_path, mint) as (house, payee):
        mint.faults.next("melt", Refuse(int(code)))

        await house.refund(60, "ref_1", destination=payee.address)
        await house.recover()

        ended = await house.refund(60, "ref_1", destination=payee.address)
        taken = ended.amount // 1_000 if isinstance(ended, Refunded) else 0
        assert isinstance(ended, Refunded | Refusal)
        assert await house.balance_sat() == 200 - taken
        assert mint.audit().outstanding["sat"] == await house.custody_sat(mint)
        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 0
        await house.assert_whole(mint)


async def test_what_another_payment_has_reserved_is_lacking_and_no_amount_too_small(
    tmp_path: Path,
) -> None:
    mint = PlayMint()
    async with paying_house(tmp_path, mint, 64) as (house, payee):  # one coin
        mint.faults.next("melt", StaysPending())
        assert isinstance(await house.refund(20, "ref_1", destination=invoice(10)), Pending)
        for destination in (payee.address, invoice(10)):
            told = await house.refund(20, "ref_2", destination=destination)
            assert isinstance(told, Refusal)
            assert told.code == "insufficient_funds", "it passes once the first is through"
        pending = [
            row.quote
            for row in mint._bank._books.melt_quotes.values()
            if row.state.value == "PENDING"
        ]
        mint.settle(pending[0], paid=True)
        await house.recover()
        assert isinstance(await house.refund(20, "ref_2", destination=payee.address), Refunded)
        await house.assert_whole(mint)


@pytest.mark.parametrize("paid", [True, False])
async def test_a_payment_that_hangs_holds_the_money_until_it_ends(
    tmp_path: Path, paid: bool
) -> None:
    mint = PlayMint()
    async with paying_house(tmp_path, mint) as (house, payee):
        mint.faults.next("melt", StaysPending())
        assert isinstance(await house.refund(60, "ref_1", destination=payee.address), Pending)
        await house.recover()
        assert isinstance(await house.refund(60, "ref_1", destination=payee.address), Pending)
        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] > 0

        quote = next(iter(mint._bank._books.melt_quotes.values()))
        for row in mint._bank._books.melt_quotes.values():
            quote = row if row.state.value == "PENDING" else quote
        mint.settle(quote.quote, paid=paid)
        await house.recover()

        # A payment that failed leaves quote and proofs as they were, so it is tried once more.
        assert isinstance(await house.refund(60, "ref_1", destination=payee.address), Refunded)
        await house.assert_whole(mint)


@pytest.mark.parametrize("cut", range(1, 5))
@pytest.mark.parametrize("side", ["cut_before", "cut_after"])
async def test_a_power_cut_at_any_commit_of_a_payment_loses_nothing(
    tmp_path: Path, cut: int, side: str
) -> None:
    mint = PlayMint()
    async with paying_house(tmp_path, mint) as (house, payee):
        setattr(house.store, side, cut)
        with suppress(PowerCut):
            await house.refund(60, "ref_1", destination=payee.address)
        await house.recover()

        refunded = await house.refund(60, "ref_1", destination=payee.address)

        assert isinstance(refunded, Refunded)
        assert await house.balance_sat() == 200 - refunded.amount // 1_000
        assert mint.audit().outstanding["sat"] == await house.custody_sat(mint)
        await house.assert_whole(mint)


async def test_the_operator_withdraws_over_lightning(tmp_path: Path) -> None:
    mint = PlayMint()
    async with paying_house(tmp_path, mint) as (house, payee):
        opened = Open("revenue", BTC.code, Kind.REVENUE)
        moved = Transfer(CUSTOMER, "revenue", 100_000, "charge")
        await house.store.commit(Unit("earn", (opened, moved)))

        withdrawn = await house.refund(100, "wd_1", account="revenue", destination=payee.address)

        assert isinstance(withdrawn, Refunded)
        assert await house.balance_sat() == 100
        await house.assert_whole(mint)


async def test_a_mint_that_gives_no_change_is_paid_to_the_unit_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without NUT-08 what the inputs are worth beyond the payment would be the mint's."""
    mint = PlayMint()
    async with paying_house(tmp_path, mint) as (house, _):
        port = house.method.mints.trusted()[0].mint
        info, melt = await port.info(), port.melt

        async def told() -> MintInfo:
            return MintInfo(info.name, info.version, info.nuts - {8})

        async def without_change(
            quote: str, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
        ) -> MeltQuote:
            return await melt(quote, inputs, [])

        monkeypatch.setattr(port, "info", told)
        monkeypatch.setattr(port, "melt", without_change)
        refused = await house.refund(100, "ref_1", destination=invoice(50))
        assert isinstance(refused, Refusal)
        assert refused.code == "mint_refused", "128, 64 and 8 sat do not make 52"
        assert await house.balance_sat() == 200

        await house.receive(issue(mint, 52))
        paid = await house.refund(100, "ref_2", destination=invoice(50))

        assert isinstance(paid, Refunded)
        assert paid.amount == 52_000, "the payer bears the whole reserve"
        await house.assert_whole(mint)
