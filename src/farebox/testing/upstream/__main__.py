"""The upstream in a process of its own: `python -m farebox.testing.upstream --port 9000`."""

from __future__ import annotations

import argparse

import uvicorn

from farebox.testing.upstream.app import PlayUpstream


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A model-like upstream without a model.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    uvicorn.run(
        PlayUpstream(), host=given.host, port=given.port, access_log=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
