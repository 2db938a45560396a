"""PayPal: orders, refunds, vaulted methods, disputes and webhooks by its REST API.

Promises: each call that moves money carries its `PayPal-Request-Id`; a lost answer is `Unknown`; a
webhook is believed once PayPal itself has said that it sent it, and only that something happened.
Never: a secret or an access token in an error, a log or a repr.
"""

from farebox.rails.paypal.config import PaypalConfig
from farebox.rails.paypal.connector import PaypalConnector
from farebox.rails.paypal.line import PaypalLine

__all__ = ["PaypalConfig", "PaypalConnector", "PaypalLine"]
