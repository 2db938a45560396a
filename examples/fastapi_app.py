"""A FastAPI app that sells two of its endpoints.

    FAREBOX_MINT__0__URL=https://mint.example.com uvicorn examples.fastapi_app:app

Settings come from farebox.toml and the environment, as for `farebox serve`; the root key from
FAREBOX_ROOT_KEY (64 hexadecimal digits) or from the data directory (`farebox init` makes one).
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from examples.house import open_farebox
from farebox.gateway import Paywall, price

app = FastAPI()
app.add_middleware(Paywall, farebox=open_farebox())


@app.get("/")
async def welcome() -> dict[str, str]:
    """Free: it has no price."""
    return {"for sale": "/square/{number}, /story"}


@app.get("/square/{number}")
@price("10 sat")
async def square(number: int) -> dict[str, int]:
    """10 sat a request. What FastAPI refuses (/square/abc) costs nothing."""
    return {"square": number * number}


@app.get("/story")
@price("2 sat + 5 msat / byte", max_bytes=1_000)
async def story(words: int = 5) -> StreamingResponse:
    """A stream, charged by what was read of it. 7 sat are held for it at first."""

    async def tell() -> AsyncIterator[str]:
        for number in range(words):
            yield f"word {number}\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(tell(), media_type="text/plain")
