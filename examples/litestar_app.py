"""A Litestar app that sells an endpoint. See fastapi_app.py for how to run it.

Litestar's own middleware runs behind its router; the paywall stands in front of the whole app.
"""

from litestar import Litestar, get
from litestar.params import FromPath

from examples.house import open_farebox
from farebox.gateway import Paywall, price


@get("/")
async def welcome() -> dict[str, str]:
    """Free: it has no price."""
    return {"for sale": "/square/{number}"}


@get("/square/{number:int}")
@price("10 sat")
async def square(number: FromPath[int]) -> dict[str, int]:
    """10 sat a request."""
    return {"square": number * number}


app = Paywall(Litestar([welcome, square]), farebox=open_farebox())
