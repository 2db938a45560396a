"""Money in and out: the payment-method port, and the journal of every effect outside.

Promises: an effect is stored before it is asked for and closed once by what really happened; what
arrives is credited once. Never: a guess about a lost answer, a credit made by a method itself.
"""

from farebox.payments.method import (
    AbstractPaymentMethod,
    PaymentCredentials,
    PaymentPlan,
    PaymentResult,
    PlannedChange,
    RefundPlan,
    RefundQuote,
    RefundRequest,
    RefundResult,
    Refusal,
    Reserve,
    Standing,
)
from farebox.payments.model import Rejected, Unresolved
from farebox.payments.registry import (
    PaymentMethods,
    get_payment_method,
    register_payment_method,
)

__all__ = [
    "AbstractPaymentMethod",
    "PaymentCredentials",
    "PaymentMethods",
    "PaymentPlan",
    "PaymentResult",
    "PlannedChange",
    "RefundPlan",
    "RefundQuote",
    "RefundRequest",
    "RefundResult",
    "Refusal",
    "Rejected",
    "Reserve",
    "Standing",
    "Unresolved",
    "get_payment_method",
    "register_payment_method",
]
