"""A strict contract fake of Stripe, for what neither localstripe nor stripe-mock can do.

Checkout, idempotency keys, fees, disputes, refunds that are too large or made in the dashboard, the
list of events, and answers that are lost after the call was carried out. Written from Stripe's API
reference (https://docs.stripe.com/api); what stripe-mock checks of our requests it does not check.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
import stripe

from farebox.clock import SystemClock
from farebox.testing.asgi import Receive, Scope, Send, drop, read_body, respond

Document = dict[str, Any]

#: What becomes of a charge of each card: a decline code, "3ds", "processing", or "" for money.
CARDS = {
    "pm_good": "",
    "pm_other": "",
    "pm_poor": "insufficient_funds",
    "pm_stolen": "stolen_card",
    "pm_flaky": "processing_error",
    "pm_3ds": "3ds",
}


def now_s() -> int:
    """Unix seconds."""
    return SystemClock().now_ns() // 10**9


class Refused(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str, kind: str = "invalid_request_error") -> None:
        super().__init__(code)
        self.status = status
        self.error = {"type": kind, "code": code, "message": f"no: {code}"}


@dataclass
class FakeStripe:
    """One account. `lose` names calls ("post /v1/refunds") whose next answers are dropped."""

    api_key: str = field(default_factory=lambda: "sk_test_" + secrets.token_hex(16))
    webhook_secret: str = field(default_factory=lambda: "whsec_" + secrets.token_hex(16))
    url: str = ""
    hook: str = ""
    sessions: dict[str, Document] = field(default_factory=dict)
    intents: dict[str, Document] = field(default_factory=dict)
    refunds: dict[str, Document] = field(default_factory=dict)
    disputes: dict[str, Document] = field(default_factory=dict)
    fates: dict[str, str] = field(default_factory=lambda: dict(CARDS))
    attached: dict[str, str] = field(default_factory=dict)
    events: list[Document] = field(default_factory=list)
    answered: dict[str, tuple[Document, int, Document]] = field(default_factory=dict)
    lose: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    #: Calls whose next are refused: the account may not make them now.
    refuses: Counter[str] = field(default_factory=Counter)
    #: Calls whose next a proxy sends twice: the first is carried out, and what is told is the
    #: refusal of the second, which has come too fast.
    sent_twice: Counter[str] = field(default_factory=Counter)
    is_down: bool = False
    #: What the account settles: dollars as they are, else at 92 to 100.
    settles: str = "usd"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        method, path = scope["method"].lower(), scope["path"]
        raw = await read_body(receive, 1 << 20)
        given = nested(raw.decode() if method == "post" else scope["query_string"].decode())
        name = f"{method} {_pattern(path)}"
        self.calls[name] += 1
        if self.is_down:
            return await respond(send, 503, b"{}")
        if headers.get("authorization") != f"Bearer {self.api_key}":
            return await respond(send, 401, b'{"error": {"type": "invalid_request_error"}}')
        if self.refuses[name] > 0:
            self.refuses[name] -= 1
            return await respond(send, 403, b'{"error": {"type": "invalid_request_error"}}')
        status, told = self._once(method, path, given, headers.get("idempotency-key", ""))
        if self.sent_twice[name] > 0:
            self.sent_twice[name] -= 1
            return await respond(send, 429, b'{"error": {"code": "rate_limit"}}')
        if self.lose[name] > 0:
            self.lose[name] -= 1
            return await drop(send)
        return await respond(send, status, json.dumps(told).encode())

    def _once(self, method: str, path: str, given: Document, key: str) -> tuple[int, Document]:
        if key in self.answered:
            asked, status, told = self.answered[key]
            if asked != {"path": path, **given}:
                return 400, {"error": {"type": "idempotency_error"}}
            return status, told
        try:
            status, told = 200, self._act(method, path.removeprefix("/v1/").split("/"), given)
        except Refused as refused:
            status, told = refused.status, {"error": refused.error}
        if key:
            self.answered[key] = ({"path": path, **given}, status, json.loads(json.dumps(told)))
        return status, told

    def _act(self, method: str, path: list[str], given: Document) -> Document:
        match (method, path):
            case ("get", ["balance"]):
                return self._balance()
            case ("get", ["events"]):
                return self._events(given)
            case ("post", ["checkout", "sessions"]):
                return self._session(given)
            case ("get", ["checkout", "sessions", name]):
                return _found(self.sessions, name)
            case ("post", ["payment_intents"]):
                return self._intent(given)
            case ("get", ["payment_intents"]):
                mine = [
                    one for one in self.intents.values() if one["customer"] == given["customer"]
                ]
                return {"data": _behind(mine[::-1], given)}
            case ("get", ["payment_intents", name]):
                return self._with_charge(_found(self.intents, name))
            case ("post", ["payment_intents", name, "cancel"]):
                return self._cancelled(_found(self.intents, name))
            case ("post", ["refunds"]):
                return self._refund(given)
            case ("get", ["refunds"]):
                name = given["payment_intent"]
                mine = [one for one in self.refunds.values() if one["payment_intent"] == name]
                return {"data": _behind(mine[::-1], given)}
            case ("get", ["disputes"]):
                name = given["payment_intent"]
                mine = [one for one in self.disputes.values() if one["payment_intent"] == name]
                return {"data": mine}
            case ("post", ["customers"]):
                return {"id": _id("cus")}
            case ("post", ["payment_methods", name, "attach"]):
                if name not in self.fates:
                    raise Refused(404, "resource_missing")
                self.attached[name] = given["customer"]
                card = {"brand": "visa", "last4": "4242", "exp_month": 12, "exp_year": 2030}
                return {"id": name, "type": "card", "card": card}
            case ("post", ["payment_methods", name, "detach"]):
                if self.attached.pop(name, None) is None:
                    raise Refused(400, "payment_method_unexpected_state")
                return {"id": name, "type": "card"}
        raise Refused(404, "no_such_call")

    def _balance(self) -> Document:
        """What every payment, refund and dispute has left, part of it not yet available."""
        charges = [one["latest_charge"] for one in self.intents.values() if one["latest_charge"]]
        moved = [one["balance_transaction"] for one in charges]
        moved += [
            one for dispute in self.disputes.values() for one in dispute["balance_transactions"]
        ]
        left = sum(one["amount"] - one["fee"] for one in moved)
        left -= sum(one["amount"] for one in self.refunds.values() if one["status"] == "succeeded")
        parts = [
            {"amount": amount, "currency": self.settles} for amount in (left // 2, left - left // 2)
        ]
        return {"object": "balance", "available": parts[:1], "pending": parts[1:]}

    # ── payments ─────────────────────────────────────────────────────────────────────────────────

    def _session(self, given: Document) -> Document:
        items = given["line_items"].values()
        amount = sum(int(one["price_data"]["unit_amount"]) for one in items)
        currency = next(iter(items))["price_data"]["currency"]
        session: Document = {
            "id": _id("cs_test"),
            "object": "checkout.session",
            "status": "open",
            "amount_total": amount,
            "currency": currency,
            "expires_at": int(given["expires_at"]),
            "client_reference_id": given["client_reference_id"],
            "metadata": given["payment_intent_data"]["metadata"],
            "payment_intent": None,
        }
        session["url"] = f"https://checkout.stripe.test/c/pay/{session['id']}#fid"
        self.sessions[session["id"]] = session
        return session

    def _intent(self, given: Document) -> Document:
        if int(given["amount"]) <= 0:
            raise Refused(400, "amount_too_small")
        intent: Document = {
            "id": _id("pi"),
            "object": "payment_intent",
            "status": "requires_payment_method",
            "amount": int(given["amount"]),
            "currency": given["currency"],
            "created": now_s(),
            "customer": given.get("customer"),
            "metadata": given.get("metadata", {}),
            "latest_charge": None,
            "next_action": None,
            "last_payment_error": None,
        }
        intent["client_secret"] = f"{intent['id']}_secret_{secrets.token_hex(8)}"
        self.intents[intent["id"]] = intent
        if given.get("confirm") == "true":
            self._confirm(intent, given["payment_method"])
        return intent

    def _confirm(self, intent: Document, card: str) -> None:
        if self.attached.get(card) != intent["customer"]:
            raise Refused(400, "payment_method_customer_mismatch")
        fate = self._fate(card)
        if fate == "processing":
            intent["status"] = fate
        elif fate == "3ds":
            url = f"https://hooks.stripe.test/3ds/{intent['id']}"
            action = {"type": "redirect_to_url", "redirect_to_url": {"url": url}}
            intent |= {"status": "requires_action", "next_action": action}
        elif fate:
            intent["last_payment_error"] = {"decline_code": fate}
            refused = Refused(402, "card_declined", "card_error")
            refused.error["decline_code"] = fate
            raise refused
        else:
            self._succeed(intent)

    def _fate(self, card: str) -> str:
        return self.fates[card]

    def _succeed(self, intent: Document) -> None:
        charge = {
            "id": _id("ch"),
            "amount": intent["amount"],
            "captured": True,
            "created": now_s(),
            "amount_captured": intent["amount"],
            "amount_refunded": 0,
            "disputed": False,
            "balance_transaction": self._settled(intent),
        }
        intent |= {"status": "succeeded", "latest_charge": charge, "next_action": None}
        self._happened("payment_intent.succeeded", {"object": "payment_intent", "id": intent["id"]})

    def _settled(self, intent: Document) -> Document:
        amount, as_it_is = intent["amount"], self.settles == intent["currency"]
        amount = amount if as_it_is else amount * 92 // 100
        return {"amount": amount, "fee": fee_of(amount), "currency": self.settles}

    def _cancelled(self, intent: Document) -> Document:
        if intent["status"] in ("succeeded", "processing", "canceled"):
            raise Refused(400, "payment_intent_unexpected_state")
        intent |= {"status": "canceled", "next_action": None}
        return intent

    def _with_charge(self, intent: Document) -> Document:
        charge = intent["latest_charge"]
        if charge is not None:
            mine = [r for r in self.refunds.values() if r["payment_intent"] == intent["id"]]
            charge["amount_refunded"] = sum(
                one["amount"] for one in mine if one["status"] != "failed"
            )
        return intent

    def _refund(self, given: Document) -> Document:
        intent = self._with_charge(_found(self.intents, given["payment_intent"]))
        charge, amount = intent["latest_charge"], int(given["amount"])
        if charge is None or amount > charge["amount"] - charge["amount_refunded"]:
            raise Refused(400, "charge_already_refunded")
        mine = [one for one in self.disputes.values() if one["payment_intent"] == intent["id"]]
        if sum(moved["amount"] for one in mine for moved in one["balance_transactions"]) < 0:
            raise Refused(400, "charge_disputed")
        refund = {
            "id": _id("re"),
            "object": "refund",
            "payment_intent": intent["id"],
            "amount": amount,
            "status": "succeeded",
            "metadata": given.get("metadata", {}),
        }
        self.refunds[refund["id"]] = refund
        about = {"object": "charge", "id": charge["id"], "payment_intent": intent["id"]}
        self._happened("charge.refunded", about)
        return refund

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    def _happened(self, name: str, about: Document) -> None:
        event = {"id": _id("evt"), "object": "event", "type": name, "created": now_s()}
        self.events.append(event | {"data": {"object": about}})

    def _events(self, given: Document) -> Document:
        since = int(given.get("created", {}).get("gte", 0))
        oldest_first = sorted(self.events, key=lambda one: int(one["created"]))
        listed = [one for one in oldest_first[::-1] if one["created"] >= since]
        return {"data": _behind(listed, given)}

    async def tell(self, event: Document | None = None, *, secret: str = "") -> int:
        """Send an event, the newest, to the webhook; gives the status of the answer."""
        body = json.dumps(event or self.events[-1])
        header = stripe.WebhookSignature.generate_signature_header(
            body, secret or self.webhook_secret, now_s()
        )
        headers = {"Stripe-Signature": header, "Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.hook, data=body, headers=headers) as answer,
        ):
            await answer.read()
            return answer.status

    # ── what people do ───────────────────────────────────────────────────────────────────────────

    def pay(self, link: str) -> str:
        """A payer pays on a Checkout page; gives the payment's id."""
        session = self.sessions[link.rpartition("/")[2].partition("#")[0]]
        given = {
            "amount": session["amount_total"],
            "currency": session["currency"],
            "metadata": session["metadata"],
        }
        intent = self._intent(given)
        session |= {"status": "complete", "payment_intent": intent["id"]}
        self._succeed(intent)
        return str(intent["id"])

    def prove(self, intent_id: str) -> None:
        """A payer shows that it is them (3-D Secure)."""
        self._succeed(self.intents[intent_id])

    def fail(self, intent_id: str) -> None:
        """A payer does not show it, or what was looked into comes to nothing."""
        intent = self.intents[intent_id]
        error = {"code": "payment_intent_authentication_failure"}
        intent |= {"status": "requires_payment_method", "next_action": None}
        intent["last_payment_error"] = error
        about = {"object": "payment_intent", "id": intent_id}
        self._happened("payment_intent.payment_failed", about)

    def give_back(self, intent_id: str, amount: int) -> None:
        """The operator refunds in Stripe's dashboard, past us."""
        self._refund({"payment_intent": intent_id, "amount": str(amount)})

    def undo(self, refund_id: str) -> None:
        """The card is closed: the money comes back."""
        refund = self.refunds[refund_id]
        refund["status"] = "failed"
        about = {"object": "refund", "id": refund_id, "payment_intent": refund["payment_intent"]}
        self._happened("refund.failed", about)

    def dispute(self, intent_id: str, amount: int, fee: int) -> str:
        """A payer's bank takes money back."""
        moved = {"amount": -amount, "fee": fee, "currency": "usd"}
        dispute: Document = {
            "id": _id("dp"),
            "object": "dispute",
            "payment_intent": intent_id,
            "status": "needs_response",
            "balance_transactions": [moved],
        }
        self.disputes[dispute["id"]] = dispute
        self.intents[intent_id]["latest_charge"]["disputed"] = True
        self._happened("charge.dispute.funds_withdrawn", dispute)
        return str(dispute["id"])

    def win(self, dispute_id: str) -> None:
        """The bank gives the money again; the fee stays."""
        dispute = self.disputes[dispute_id]
        amount = -dispute["balance_transactions"][0]["amount"]
        dispute["balance_transactions"].append({"amount": amount, "fee": 0, "currency": "usd"})
        dispute["status"] = "won"
        self._happened("charge.dispute.funds_reinstated", dispute)


def fee_of(amount: int) -> int:
    """2.9 % and 30 cents."""
    return 30 + (amount * 29 + 500) // 1000


def nested(text: str) -> Document:
    """A form as Stripe takes it: `a[b][0]=c`; what is given twice is refused."""
    out: Document = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        steps = name.replace("]", "").split("[")
        at = out
        for step in steps[:-1]:
            at = at.setdefault(step, {})
        assert steps[-1] not in at, f"{name} is given twice"
        at[steps[-1]] = value
    return out


def _pattern(path: str) -> str:
    """The path without ids."""
    return "/".join(
        "*"
        if "_" in step
        and step[-4:].isalnum()
        and any(step.startswith(kind) for kind in ("pi_", "cs_", "pm_", "cus_"))
        else step
        for step in path.split("/")
    )


def _behind(newest_first: list[Document], given: Document) -> list[Document]:
    """A page of a list."""
    names = [one["id"] for one in newest_first]
    start = names.index(given["starting_after"]) + 1 if "starting_after" in given else 0
    return newest_first[start : start + int(given.get("limit", 10))]


def _found(among: dict[str, Document], name: str) -> Document:
    if name not in among:
        raise Refused(404, "resource_missing")
    return among[name]


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
