"""The payment methods at hand, asked in the order they were registered."""

from __future__ import annotations

from collections.abc import Iterator

from farebox.payments.method import AbstractPaymentMethod


class PaymentMethods:
    """A registry: the first method that can handle a credential gets it."""

    def __init__(self) -> None:
        self._methods: dict[str, AbstractPaymentMethod] = {}

    def register(self, method: AbstractPaymentMethod) -> None:
        """Add a method behind those already there. Raises ValueError when the name is taken."""
        if not method.payment_type:
            raise ValueError(f"{type(method).__name__} has no payment_type")
        if method.payment_type in self._methods:
            raise ValueError(f"a method named {method.payment_type} is registered already")
        self._methods[method.payment_type] = method

    def detect(self, credential: str) -> AbstractPaymentMethod | None:
        """The first method that can handle the credential."""
        return next((method for method in self if method.can_handle(credential)), None)

    def __contains__(self, payment_type: object) -> bool:
        return payment_type in self._methods

    def __getitem__(self, payment_type: str) -> AbstractPaymentMethod:
        return self._methods[payment_type]

    def __iter__(self) -> Iterator[AbstractPaymentMethod]:
        return iter(self._methods.values())

    def accepted(self) -> list[str]:
        """What a credential may be, in words, for errors."""
        return [method.credential_hint or method.payment_type for method in self]


#: Methods that plug-ins registered before the gateway starts; built-in ones come first.
_plugins = PaymentMethods()


def register_payment_method(method: AbstractPaymentMethod) -> None:
    """Add a custom method to every gateway that this process starts."""
    _plugins.register(method)


def get_payment_method(credential: str) -> AbstractPaymentMethod | None:
    """The first registered custom method that can handle the credential."""
    return _plugins.detect(credential)


def plugins() -> PaymentMethods:
    """The custom methods registered so far."""
    return _plugins
