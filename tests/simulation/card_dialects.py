"""Stripe's and PayPal's dialects: their contract fakes, read in words of no provider."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import stripe

from farebox.clock import SystemClock, iso
from tests.contract.rail.fake_paypal import FakePaypal, cents_of
from tests.contract.rail.fake_stripe import FakeStripe, now_s
from tests.simulation.cards import Back, BackState, Dialect, Disputed, Taken
from tests.simulation.network import Ask, Headers

Document = dict[str, Any]

API_KEY: Final = "sk_test_simulated"
WEBHOOK_SECRET: Final = "whsec_simulated"
CLIENT_ID: Final = "client-of-the-model"
CLIENT_SECRET: Final = "secret-of-the-model"

_STATES: Final = {
    "pending": BackState.PENDING,
    "succeeded": BackState.DONE,
    "completed": BackState.DONE,
    "failed": BackState.FAILED,
}


def _never() -> bool:
    return False


def _told(provider: str, headers: Headers, event: Document) -> Ask:
    told = (*headers, (b"content-type", b"application/json"))
    return Ask("POST", f"/v1/webhooks/{provider}", told, json.dumps(event).encode())


class StripeDialect(FakeStripe):
    """An account at Stripe."""

    provider = "stripe"
    host = "stripe.sim"
    kinds: tuple[str, ...] = ("pm_good", "pm_good", "pm_poor", "pm_stolen", "pm_flaky", "pm_3ds")

    def __init__(self) -> None:
        super().__init__(api_key=API_KEY, webhook_secret=WEBHOOK_SECRET)
        self.hangs: Callable[[], bool] = _never
        self.declines: Callable[[], bool] = _never
        self.fails: Callable[[], bool] = _never

    def card(self, kind: str) -> str:
        """A card of some payer's, as the provider's script tells of it."""
        name = f"{kind}_{len(self.fates)}"
        self.fates[name] = self.fates[kind]
        return name

    def _fate(self, card: str) -> str:
        fate = super()._fate(card)
        if not fate and self.declines():
            return "insufficient_funds"
        return "processing" if not fate and self.hangs() else fate

    def _refund(self, given: Document) -> Document:
        refund = super()._refund(given)
        if self.hangs():
            refund["status"] = "pending"
        return refund

    def taken(self) -> list[Taken]:
        """All payments that were taken."""
        paid = [one for one in self.intents.values() if one["latest_charge"] is not None]
        return [
            Taken(
                one["id"],
                one["metadata"].get("farebox", ""),
                one["amount"],
                one["latest_charge"]["balance_transaction"]["fee"],
            )
            for one in paid
        ]

    def agreed(self) -> list[str]:
        """None: what a payer agrees to on Stripe's page is taken at once, or declined there."""
        return []

    def stuck(self) -> list[str]:
        """Charges that are looked into, or whose payer has to prove that it is them."""
        waits = ("processing", "requires_action")
        return [name for name, one in self.intents.items() if one["status"] in waits]

    def go_on(self, name: str) -> None:
        """It is taken, or comes to nothing."""
        if self.fails():
            self.fail(name)
        else:
            self.prove(name)

    def given_back(self) -> list[Back]:
        """All refunds."""
        return [
            Back(
                one["id"],
                one["payment_intent"],
                one["amount"],
                one["metadata"].get("farebox", ""),
                _STATES[one["status"]],
            )
            for one in self.refunds.values()
        ]

    def disputed(self) -> list[Disputed]:
        """All disputes."""
        found = []
        for one in self.disputes.values():
            moved = one["balance_transactions"]
            withdrawn, fees = (sum(each[what] for each in moved) for what in ("amount", "fee"))
            is_open = one["status"] == "needs_response"
            found.append(Disputed(one["id"], one["payment_intent"], -withdrawn, fees, is_open))
        return found

    def give(self, payment: str, cents: int) -> None:
        """The operator refunds in the dashboard."""
        self.give_back(payment, cents)

    def end_refund(self, back: Back, *, fails: bool) -> None:
        """One that hung is carried out, or its money comes back."""
        if fails:
            self.undo(back.name)
        else:
            self.refunds[back.name]["status"] = "succeeded"

    def take(self, payment: str, cents: int, fee: int) -> None:
        """A payer's bank takes money back."""
        self.dispute(payment, cents, fee)

    def end_dispute(self, dispute: Disputed, *, is_won: bool) -> None:
        """The bank gives it again, or not."""
        if is_won:
            self.win(dispute.name)
        else:
            self.disputes[dispute.name]["status"] = "lost"

    def webhook(self, event: Document) -> Ask:
        """An event, signed."""
        signature = stripe.WebhookSignature.generate_signature_header(
            json.dumps(event), self.webhook_secret, now_s()
        )
        return _told(self.provider, ((b"stripe-signature", signature.encode()),), event)

    def tire(self) -> None:
        """A key does not end."""


class PaypalDialect(FakePaypal):
    """An account at PayPal. A payment is named `ORDER/CAPTURE`, as the house names it."""

    provider = "paypal"
    host = "paypal.sim"
    kinds: tuple[str, ...] = ("setup-good", "setup-good", "setup-poor", "setup-3ds")

    def __init__(self) -> None:
        super().__init__(client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
        self.url = f"http://{self.host}"
        self._declined: list[str] = []
        self._stored: set[str] = set()
        self._to_prove: list[str] = []
        self.hangs: Callable[[], bool] = _never
        self.declines: Callable[[], bool] = _never
        self.fails: Callable[[], bool] = _never

    def card(self, kind: str) -> str:
        """A wallet of some payer's, which has agreed to be charged."""
        name = f"{kind}-{len(self.setups)}"
        self.setups[name] = self.setups[kind]
        return name

    def _order(self, given: Document) -> Document:
        order = super()._order(given)
        if any("vault_id" in one for one in given["payment_source"].values()):
            self._stored.add(order["id"])
            if order["status"] == "PAYER_ACTION_REQUIRED":
                self._to_prove.append(order["id"])
        return order

    def _capture(self, order: Document) -> Document:
        order = super()._capture(order)
        if self.hangs():
            self.events[-1]["event_type"] = "PAYMENT.CAPTURE.PENDING"
            _payments(order)["captures"][0]["status"] = "PENDING"
        return order

    def _declines(self, order: Document) -> bool:
        if self.declines():
            self._declined.append(order["id"])
            return True
        return False

    def _refund(self, capture_id: str, given: Document) -> Document:
        refund = super()._refund(capture_id, given)
        if self.hangs():
            refund["status"] = "PENDING"
        return refund

    def _token(self) -> str:
        return self.access_token or super()._token()  # all houses are let in by the same

    def taken(self) -> list[Taken]:
        """All payments that were taken."""
        return [
            Taken(
                f"{order['id']}/{one['id']}",
                one["custom_id"],
                cents_of(one["amount"]),
                cents_of(one["seller_receivable_breakdown"]["paypal_fee"]),
            )
            for order in self.orders.values()
            for one in _payments(order)["captures"]
            if one["status"] not in ("PENDING", "DECLINED")
        ]

    def agreed(self) -> list[str]:
        """What is approved and was not captured, or not yet to its end."""
        stuck = self.stuck()
        return [
            str(one["purchase_units"][0]["custom_id"])
            for one in self.orders.values()
            if one["status"] == "APPROVED" or one["id"] in stuck
        ]

    def stuck(self) -> list[str]:
        """Orders whose payer was declined, or whose capture is looked into."""
        looked_into = [
            one["id"]
            for one in self.orders.values()
            if any(each["status"] == "PENDING" for each in _payments(one)["captures"])
        ]
        return [*self._declined, *self._to_prove, *looked_into]

    def go_on(self, name: str) -> None:
        """The payer approves once more, or proves that it is them, or the capture is through."""
        for waiting in (self._declined, self._to_prove):
            if name in waiting:
                waiting.remove(name)
                self.approve(f"?token={name}")
                return
        (capture,) = _payments(self.orders[name])["captures"]
        how = "DECLINED" if name in self._stored and self.fails() else "COMPLETED"
        capture["status"] = how
        told = how.replace("DECLINED", "DENIED")
        self._capture_happened(f"PAYMENT.CAPTURE.{told}", name, capture["id"])

    def given_back(self) -> list[Back]:
        """All refunds."""
        return [
            Back(
                one["id"],
                f"{order['id']}/{_payments(order)['captures'][0]['id']}",
                cents_of(one["amount"]),
                one["custom_id"],
                _STATES[one["status"].lower()],
            )
            for order in self.orders.values()
            for one in _payments(order)["refunds"]
        ]

    def disputed(self) -> list[Disputed]:
        """All disputes."""
        signs = {"DEBIT": 1, "CREDIT": -1}
        found = []
        for one in self.disputes.values():
            moved = {True: 0, False: 0}
            for each in one["money_movements"]:
                amount = signs[each["type"]] * cents_of(each["amount"])
                moved[each["reason"] == "CHARGEBACK_FEE"] += amount
            payment = f"{self.captures[one['capture']]}/{one['capture']}"
            is_open = one["status"] != "RESOLVED"
            found.append(Disputed(one["dispute_id"], payment, moved[False], moved[True], is_open))
        return found

    def pay(self, link: str) -> str:
        """A payer approves; the money is the house's to take."""
        return self.approve(link)

    def give(self, payment: str, cents: int) -> None:
        """The operator refunds on PayPal's site."""
        self.give_back(_order(payment), cents)

    def end_refund(self, back: Back, *, fails: bool) -> None:
        """One that hung is carried out, or its money comes back."""
        if fails:
            self.undo(_order(back.payment), back.name)
            return
        refunds = _payments(self.orders[_order(back.payment)])["refunds"]
        (refund,) = (one for one in refunds if one["id"] == back.name)
        refund["status"] = "COMPLETED"

    def take(self, payment: str, cents: int, fee: int) -> None:
        """A payer disputes."""
        self.dispute(_order(payment), cents, fee)

    def end_dispute(self, dispute: Disputed, *, is_won: bool) -> None:
        """PayPal decides."""
        if is_won:
            self.win(dispute.name)
        else:
            self.lose_dispute(dispute.name)

    def webhook(self, event: Document) -> Ask:
        """An event, with the fields that PayPal has the house ask it about."""
        fields = {
            "paypal-auth-algo": "SHA256withRSA",
            "paypal-cert-url": f"{self.url}/cert",
            "paypal-transmission-id": "1",
            "paypal-transmission-sig": "signed",
            "paypal-transmission-time": iso(SystemClock().now_ns()),
        }
        headers = tuple((name.encode(), value.encode()) for name, value in fields.items())
        return _told(self.provider, headers, event)

    def tire(self) -> None:
        """The access token has ended."""
        self.access_token = ""


DIALECTS: Final[dict[str, type[Dialect]]] = {"stripe": StripeDialect, "paypal": PaypalDialect}


def _payments(order: Document) -> Document:
    found: Document = order["purchase_units"][0]["payments"]
    return found


def _order(payment: str) -> str:
    return payment.partition("/")[0]
