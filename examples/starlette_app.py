"""A Starlette app that sells an endpoint. See fastapi_app.py for how to run it."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from examples.house import open_farebox
from farebox.gateway import Paywall, price


async def welcome(request: Request) -> JSONResponse:
    """Free: it has no price."""
    return JSONResponse({"for sale": "/square/{number}"})


@price("10 sat")
def square(request: Request) -> JSONResponse:
    """10 sat a request; a plain function is run in a thread."""
    number = request.path_params["number"]
    return JSONResponse({"square": number * number})


app = Starlette(
    routes=[Route("/", welcome), Route("/square/{number:int}", square)],
    middleware=[Middleware(Paywall, farebox=open_farebox())],
)
