"""What the node has received and sent, held against what the books say of it."""

from __future__ import annotations

from collections.abc import Sequence

from farebox.ledger.batch import Staged
from farebox.payments.deposits import DEPOSIT, DEPOSIT_REQUEST, DepositState, request_key
from farebox.payments.model import OPERATION, OperationState
from farebox.rails.lightning.paying import OUTGOING, Outgoing
from tests.simulation.callers import Caller
from tests.simulation.depositors import Depositor
from tests.simulation.disk import Disk
from tests.simulation.lightning import ModelLnd

CUSTODY = "custody:lightning:main"
_SOURCE = "lightning"


class NodeChecker:
    """Looks at the books and at the node together."""

    #: What fees keep on an account, a part of it at the mint and a part on a node.
    too_little_msat = 4_000
    may_lack_cover = False

    def __init__(self, disk: Disk, node: ModelLnd) -> None:
        self._disk = disk
        self._node = node

    def after_commit(self, staged: Staged) -> list[str]:
        """Nothing is credited that was not received, nothing called paid or failed that is not."""
        faults = []
        for row in staged.records.get(DEPOSIT, ()):
            deposit = self._disk.rows[DEPOSIT.kind][row[1]].value
            if deposit.source == _SOURCE and deposit.state is DepositState.CREDITED:
                invoice = self._node.invoices.get(deposit.reference)
                if invoice is None or invoice.received_msat != deposit.amount_msat:
                    faults.append(f"{deposit} was credited, the node says {invoice}")
        for row in staged.records.get(OUTGOING, ()):
            faults += self._outgoing(row[1])
        return faults

    def _outgoing(self, payment_hash: str) -> list[str]:
        ours = self._disk.rows[OUTGOING.kind][payment_hash].value
        theirs = self._node.payments.get(payment_hash)
        status = "" if theirs is None else theirs.status
        if ours.state is Outgoing.PAID and status != "SUCCEEDED":
            return [f"payment {payment_hash} counts as paid, the node says {theirs}"]
        if ours.state is Outgoing.FAILED and status not in ("", "FAILED"):
            return [f"payment {payment_hash} counts as failed, the node says {theirs}"]
        return []

    def unfinished(self) -> list[str]:
        """What the node has received and the books have not, and what is not at its end."""
        requests = self._disk.rows[DEPOSIT_REQUEST.kind]
        found = [
            f"invoice {key} was paid and is not credited"
            for key, one in self._node.invoices.items()
            if one.state == "SETTLED"
            and request_key(_SOURCE, key) in requests
            and f"{_SOURCE}:{key}:0" not in self._disk.rows[DEPOSIT.kind]
        ]
        found += [f"invoice {k} is held" for k, v in self._node.invoices.items() if v.is_held]
        found += [
            f"deposit {key} is {row.value.state}"
            for key, row in self._disk.rows[DEPOSIT.kind].items()
            if row.value.state in (DepositState.DETECTED, DepositState.CONFIRMED)
        ]
        found += [
            f"payment {key} is open"
            for key, row in self._disk.rows[OUTGOING.kind].items()
            if row.value.state is Outgoing.OPEN
        ]
        return found

    def at_rest(self, callers: Sequence[Caller]) -> list[str]:
        """What came in less what went out is in custody; each payment is one operation's."""
        account = self._disk.accounts.get(CUSTODY)
        held = 0 if account is None else account.held
        node = self._node
        faults = []
        if held != node.received_msat - node.sent_msat:
            faults.append(
                f"{held} msat in custody on the node, which has received {node.received_msat} "
                f"and sent {node.sent_msat}"
            )
        faults += self._payments()
        for caller in callers:
            for key, asked in caller.asked.items() if isinstance(caller, Depositor) else ():
                found = [r.value for r in self._disk.rows[DEPOSIT_REQUEST.kind].values()]
                credited = [one.credited_msat for one in found if one.id == key]
                if credited != [asked.paid_msat]:
                    faults.append(f"{caller.name} paid {asked.paid_msat} into {key}: {credited}")
        return faults

    def _payments(self) -> list[str]:
        faults = []
        for key, one in self._node.payments.items():
            row = self._disk.rows[OUTGOING.kind].get(key)
            if one.times_paid > 1:
                faults.append(f"payment {key} was paid {one.times_paid} times")
            if one.status != "SUCCEEDED":
                continue
            operation = None
            if row is not None:
                operation = self._disk.rows[OPERATION.kind][row.value.operation_id].value
            if operation is None or operation.state is not OperationState.SUCCEEDED:
                faults.append(f"payment {key} was made for nobody: {operation}")
            elif operation.amount != one.amount_msat + one.fee_msat:
                faults.append(f"payment {key} of {one} is in the books as {operation.amount}")
        return faults
