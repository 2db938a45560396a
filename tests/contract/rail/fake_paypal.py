"""A contract fake of PayPal: no server of it can be had.

Stateful, written from PayPal's published OpenAPI (orders v2, payments v2, vault v3, disputes v1,
webhooks v1), strict about what it requires of a request, and never compared with PayPal itself.
"""

from __future__ import annotations

import base64
import json
import secrets
import string
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import aiohttp

from farebox.clock import SystemClock, iso
from farebox.testing.asgi import Receive, Scope, Send, drop, read_body, respond

Document = dict[str, Any]

#: What becomes of a charge of each vaulted method: an issue, "3ds", or "" for money.
VAULT = {"setup-good": "", "setup-poor": "INSTRUMENT_DECLINED", "setup-3ds": "3ds"}


class Refused(Exception):
    """An error answer."""

    def __init__(self, status: int, name: str, issue: str = "") -> None:
        super().__init__(name)
        self.status = status
        self.body = {"name": name, "details": [{"issue": issue}] if issue else []}


@dataclass
class FakePaypal:
    """One account. `lose` names calls ("post /v2/checkout/orders") whose answers are dropped."""

    client_id: str = "client-of-the-test"
    client_secret: str = field(default_factory=lambda: secrets.token_hex(20))
    webhook_id: str = "8PT597110X687430L"
    url: str = ""
    hook: str = ""
    access_token: str = ""
    orders: dict[str, Document] = field(default_factory=dict)
    captures: dict[str, str] = field(default_factory=dict)
    disputes: dict[str, Document] = field(default_factory=dict)
    setups: dict[str, str] = field(default_factory=lambda: dict(VAULT))
    vault: dict[str, str] = field(default_factory=dict)
    events: list[Document] = field(default_factory=list)
    answered: dict[str, tuple[str, int, Document]] = field(default_factory=dict)
    lose: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    #: Calls whose next are refused: the account may not make them now.
    refuses: Counter[str] = field(default_factory=Counter)
    #: How many of the next captures the payer's card declines.
    poor: int = 0
    #: Whether an order that was declined still counts as approved: PayPal's reference does not say.
    keeps_approval: bool = False
    #: Whether what is captured is looked into first, for days.
    reviews: bool = False
    #: A page "might have fewer items than the requested page_size".
    page_most: int = 300

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        method, path = scope["method"].lower(), scope["path"]
        raw = await read_body(receive, 1 << 20)
        steps = [step for step in path.split("/") if step]
        name = f"{method} /" + "/".join("*" if _is_id(step) else step for step in steps)
        self.calls[name] += 1
        if path == "/v1/oauth2/token":
            return await self._let_in(headers, raw, send)
        if headers.get("authorization") != f"Bearer {self.access_token}" or not self.access_token:
            return await respond(send, 401, b"{}")
        if self.refuses[name] > 0:
            self.refuses[name] -= 1
            return await respond(send, 403, b'{"name": "NOT_AUTHORIZED"}')
        query = dict(parse_qsl(scope["query_string"].decode()))
        key = headers.get("paypal-request-id", "")
        status, told = self._once(method, steps, raw, query, key)
        if self.lose[name] > 0:
            self.lose[name] -= 1
            return await drop(send)
        return await respond(send, status, b"" if status == 204 else json.dumps(told).encode())

    async def _let_in(self, headers: dict[str, str], raw: bytes, send: Send) -> None:
        wanted = base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode()
        if headers.get("authorization") != f"Basic {wanted}":
            return await respond(send, 401, b'{"error": "invalid_client"}')
        assert raw == b"grant_type=client_credentials"
        self.access_token = self._token()
        told = {"access_token": self.access_token, "token_type": "Bearer", "expires_in": 32_400}
        return await respond(send, 200, json.dumps(told).encode())

    def _token(self) -> str:
        return f"A21AA{secrets.token_hex(16)}"

    def _once(
        self, method: str, steps: list[str], raw: bytes, query: Document, key: str
    ) -> tuple[int, Document]:
        """A repeated request id of the same call is answered what the first was answered."""
        name = f"{'/'.join(steps)} {key}"
        if key and name in self.answered:
            asked, status, told = self.answered[name]
            if asked != raw.decode():
                return 422, {"name": "UNPROCESSABLE_ENTITY", "details": [{"issue": "DUPLICATE"}]}
            return status, told
        try:
            status, told = self._act(method, steps, json.loads(raw or b"{}"), query)
        except Refused as refused:
            status, told = refused.status, refused.body
        if key:
            self.answered[name] = (raw.decode(), status, json.loads(json.dumps(told)))
        return status, told

    def _act(
        self, method: str, steps: list[str], given: Document, query: Document
    ) -> tuple[int, Document]:
        match (method, steps[1:]):
            case ("post", ["checkout", "orders"]):
                return 201, self._order(given)
            case ("get", ["checkout", "orders", name]):
                return 200, _found(self.orders, name)
            case ("post", ["checkout", "orders", name, "capture"]):
                return 201, self._capture(_found(self.orders, name))
            case ("get", ["payments", "captures", name]):
                order = _found(self.captures, name)
                related = {"related_ids": {"order_id": order}}
                return 200, {"id": name, "supplementary_data": related}
            case ("post", ["payments", "captures", name, "refund"]):
                return 201, self._refund(name, given)
            case ("get", ["customer", "disputes"]):
                mine = [
                    {"dispute_id": name}
                    for name, one in self.disputes.items()
                    if query["disputed_transaction_id"] in _captures(one)
                ]
                return 200, {"items": mine}
            case ("get", ["customer", "disputes", name]):
                return 200, _found(self.disputes, name)
            case ("get", ["notifications", "webhooks-events"]):
                since, until = query.get("start_time", ""), query.get("end_time", "9")
                mine = [one for one in self.events if since <= one["create_time"] <= until]
                mine.sort(key=lambda one: str(one["create_time"]))
                most = min(int(query["page_size"]), self.page_most)
                return 200, {"events": mine[::-1][:most]}
            case ("post", ["notifications", "verify-webhook-signature"]):
                return 200, self._verify(given)
            case ("post", ["vault", "payment-tokens"]):
                return 201, self._keep(given)
            case ("delete", ["vault", "payment-tokens", name]):
                if self.vault.pop(name, None) is None:
                    raise Refused(404, "RESOURCE_NOT_FOUND")
                return 204, {}
        raise Refused(404, "RESOURCE_NOT_FOUND")

    # ── payments ─────────────────────────────────────────────────────────────────────────────────

    def _order(self, given: Document) -> Document:
        assert given["intent"] == "CAPTURE"
        (unit,) = given["purchase_units"]
        assert len(unit["custom_id"]) <= 127
        parts = unit["amount"].get("breakdown")
        if parts and sum(map(cents_of, parts.values())) != cents_of(unit["amount"]):
            raise Refused(422, "UNPROCESSABLE_ENTITY", "AMOUNT_MISMATCH")
        order: Document = {
            "id": _id(),
            "status": "PAYER_ACTION_REQUIRED",
            "intent": "CAPTURE",
            "purchase_units": [unit | {"payments": {"captures": [], "refunds": []}}],
        }
        link = f"https://www.paypal.test/checkoutnow?token={order['id']}"
        order["links"] = [{"rel": "payer-action", "href": link}]
        ((kind, source),) = given["payment_source"].items()
        vaulted = source.get("vault_id")
        if vaulted is not None:
            fate = self.vault.get(vaulted)
            if fate is None or kind != "paypal":
                raise Refused(422, "UNPROCESSABLE_ENTITY", "INVALID_VAULT_ID")
            if fate and fate != "3ds":
                raise Refused(422, "UNPROCESSABLE_ENTITY", fate)
        self.orders[order["id"]] = order
        if vaulted is not None and not self.vault[vaulted]:
            order["status"] = "APPROVED"
            self._capture(order)
        return order

    def _capture(self, order: Document) -> Document:
        if order["status"] == "COMPLETED":
            raise Refused(422, "UNPROCESSABLE_ENTITY", "ORDER_ALREADY_CAPTURED")
        if order["status"] != "APPROVED":
            raise Refused(422, "UNPROCESSABLE_ENTITY", "ORDER_NOT_APPROVED")
        if self._declines(order):
            if not self.keeps_approval:
                order["status"] = "PAYER_ACTION_REQUIRED"  # with another card, perhaps
            raise Refused(422, "UNPROCESSABLE_ENTITY", "INSTRUMENT_DECLINED")
        unit = order["purchase_units"][0]
        total = cents_of(unit["amount"])
        capture = {
            "id": _id(),
            "status": "PENDING" if self.reviews else "COMPLETED",
            "amount": {"currency_code": "USD", "value": unit["amount"]["value"]},
            "create_time": iso(SystemClock().now_ns()),
            "custom_id": unit["custom_id"],
            "seller_receivable_breakdown": {"paypal_fee": _usd(fee_of(total))},
        }
        unit["payments"]["captures"].append(capture)
        order["status"] = "COMPLETED"
        self.captures[str(capture["id"])] = order["id"]
        self._capture_happened("PAYMENT.CAPTURE.COMPLETED", order["id"], str(capture["id"]))
        return order

    def _declines(self, order: Document) -> bool:
        self.poor -= 1
        return self.poor >= 0

    def _capture_happened(self, name: str, order_id: str, capture_id: str) -> None:
        related = {"related_ids": {"order_id": order_id}}
        self.happened(name, {"id": capture_id, "supplementary_data": related})

    def _refund(self, capture_id: str, given: Document) -> Document:
        order = self.orders[_found(self.captures, capture_id)]
        payments = order["purchase_units"][0]["payments"]
        made = [one for one in payments["refunds"] if one["status"] != "FAILED"]
        gone = sum(cents_of(one["amount"]) for one in made)
        if cents_of(given["amount"]) > cents_of(payments["captures"][0]["amount"]) - gone:
            raise Refused(422, "UNPROCESSABLE_ENTITY", "REFUND_AMOUNT_EXCEEDED")
        if self._is_taken_back(capture_id):
            raise Refused(422, "UNPROCESSABLE_ENTITY", "TRANSACTION_DISPUTED")
        refund = {
            "id": _id(),
            "status": "COMPLETED",
            "amount": given["amount"],
            "custom_id": given.get("custom_id", ""),
        }
        payments["refunds"].append(refund)
        payments["captures"][0]["status"] = "PARTIALLY_REFUNDED"
        self._refund_happened("PAYMENT.CAPTURE.REFUNDED", refund["id"], capture_id)
        return refund

    def _is_taken_back(self, capture_id: str) -> bool:
        mine = [one for one in self.disputes.values() if capture_id in _captures(one)]
        return any(each["money_movements"][-1]["type"] == "DEBIT" for each in mine)

    def _refund_happened(self, name: str, refund_id: str, capture_id: str) -> None:
        up = f"{self.url}/v2/payments/captures/{capture_id}"
        self.happened(name, {"id": refund_id, "links": [{"rel": "up", "href": up}]})

    def _keep(self, given: Document) -> Document:
        source = given["payment_source"]["token"]
        assert source["type"] == "SETUP_TOKEN"
        if source["id"] not in self.setups:
            raise Refused(404, "RESOURCE_NOT_FOUND")
        name = secrets.token_hex(8)
        self.vault[name] = self.setups[source["id"]]
        wallet = {"email_address": "payer@example.com"}
        return {"id": name, "customer": {"id": "cust1"}, "payment_source": {"paypal": wallet}}

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    def happened(self, name: str, resource: Document) -> None:
        """Something is told from now on."""
        event = {
            "id": f"WH-{secrets.token_hex(8)}",
            "event_type": name,
            "create_time": iso(SystemClock().now_ns()),
            "resource": resource,
        }
        self.events.append(event)

    def _verify(self, given: Document) -> Document:
        wanted = {"auth_algo", "cert_url", "transmission_id", "transmission_sig"}
        assert wanted | {"transmission_time", "webhook_id", "webhook_event"} == set(given)
        is_ours = given["webhook_event"] in self.events and given["transmission_sig"] == "signed"
        is_ours = is_ours and given["webhook_id"] == self.webhook_id
        return {"verification_status": "SUCCESS" if is_ours else "FAILURE"}

    async def tell(self, event: Document | None = None, *, signature: str = "signed") -> int:
        """Send an event, the newest, to the webhook; gives the status of the answer."""
        headers = {
            "PAYPAL-AUTH-ALGO": "SHA256withRSA",
            "PAYPAL-CERT-URL": f"{self.url}/cert",
            "PAYPAL-TRANSMISSION-ID": "1",
            "PAYPAL-TRANSMISSION-SIG": signature,
            "PAYPAL-TRANSMISSION-TIME": iso(SystemClock().now_ns()),
        }
        body = json.dumps(event or self.events[-1])
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.hook, data=body, headers=headers) as answer,
        ):
            await answer.read()
            return answer.status

    # ── what people do ───────────────────────────────────────────────────────────────────────────

    def approve(self, link: str) -> str:
        """A payer agrees on PayPal's page; gives the order's id."""
        order = self.orders[link.rpartition("=")[2]]
        order["status"] = "APPROVED"
        self.happened("CHECKOUT.ORDER.APPROVED", {"id": order["id"]})
        return str(order["id"])

    def review(self, *, is_fine: bool) -> None:
        """What was looked into is taken, or not."""
        self.reviews = False
        for order in self.orders.values():
            for capture in order["purchase_units"][0]["payments"]["captures"]:
                if capture["status"] == "PENDING":
                    capture["status"] = "COMPLETED" if is_fine else "DECLINED"
                    name = "PAYMENT.CAPTURE.COMPLETED" if is_fine else "PAYMENT.CAPTURE.DENIED"
                    self._capture_happened(name, order["id"], capture["id"])

    def give_back(self, order_id: str, cents: int) -> None:
        """The operator refunds on PayPal's site, past us."""
        capture = self.orders[order_id]["purchase_units"][0]["payments"]["captures"][0]
        self._refund(capture["id"], {"amount": _usd(cents)})

    def undo(self, order_id: str, refund_id: str) -> None:
        """A refund that was pending is not carried out: the money comes back."""
        payments = self.orders[order_id]["purchase_units"][0]["payments"]
        (refund,) = (one for one in payments["refunds"] if one["id"] == refund_id)
        refund["status"] = "FAILED"
        self._refund_happened("PAYMENT.REFUND.FAILED", refund_id, payments["captures"][0]["id"])

    def dispute(self, order_id: str, cents: int, fee: int, *others: str) -> str:
        """A payer, or their bank, takes money back: of one payment, or of others in one go."""
        units = [self.orders[one]["purchase_units"][0] for one in (order_id, *others)]
        captures = [one["payments"]["captures"][0] for one in units]
        name = f"PP-{secrets.token_hex(6)}".upper()
        moved = [("DISPUTE_SETTLEMENT", cents), ("CHARGEBACK_FEE", fee)]
        self.disputes[name] = {
            "dispute_id": name,
            "status": "WAITING_FOR_SELLER_RESPONSE",
            "capture": captures[0]["id"],
            "disputed_transactions": [
                {"seller_transaction_id": one["id"], "gross_amount": one["amount"]}
                for one in captures
            ],
            "money_movements": [_moved("DEBIT", reason, amount) for reason, amount in moved],
        }
        self._disputed("CREATED", name)
        return name

    def _disputed(self, what: str, name: str) -> None:
        named = [{"seller_transaction_id": one} for one in _captures(self.disputes[name])]
        self.happened(f"CUSTOMER.DISPUTE.{what}", {"disputed_transactions": named})

    def win(self, name: str) -> None:
        """The money comes again; the fee stays."""
        moved = self.disputes[name]["money_movements"]
        moved.append(moved[0] | {"type": "CREDIT"})
        self.lose_dispute(name)

    def lose_dispute(self, name: str) -> None:
        """Nothing more is moved."""
        self.disputes[name]["status"] = "RESOLVED"
        self._disputed("RESOLVED", name)


def _captures(dispute: Document) -> list[str]:
    return [str(one["seller_transaction_id"]) for one in dispute["disputed_transactions"]]


def fee_of(cents: int) -> int:
    """3.49 % and 49 cents."""
    return 49 + (cents * 349 + 5000) // 10_000


def _moved(kind: str, reason: str, cents: int) -> Document:
    return {"affected_party": "SELLER", "type": kind, "reason": reason, "amount": _usd(cents)}


def _usd(cents: int) -> Document:
    return {"currency_code": "USD", "value": f"{cents // 100}.{cents % 100:02}"}


def cents_of(amount: Document) -> int:
    """An amount in dollars."""
    whole, _, rest = amount["value"].partition(".")
    assert len(rest) == 2, amount
    assert amount["currency_code"] == "USD"
    return int(whole) * 100 + int(rest)


def _found(among: dict[str, Any], name: str) -> Any:
    if name not in among:
        raise Refused(404, "RESOURCE_NOT_FOUND")
    return among[name]


def _is_id(step: str) -> bool:
    return len(step) >= 15 and step.isalnum()


def _id() -> str:
    return "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(17))
