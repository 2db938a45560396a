"""`farebox bench`: how a running gateway bears a load, and whether its books do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from farebox.cli.bench.openloop import Arrivals, read_mix
from farebox.cli.bench.run import Money, Wanted, run
from farebox.cli.bench.target import Ask
from farebox.cli.options import DataOption, SettingsOption, read_settings
from farebox.cli.output import JsonOption, progress, show
from farebox.cli.verify import check_book, verdict_facts, verdict_text
from farebox.ledger.replay import Broken

_EXIT_WRONG = 1
_JSON = {"content-type": "application/json"}
_STREAM_BODY = (
    '{"model": "play-1", "max_tokens": 20, "stream": true, '
    '"messages": [{"role": "user", "content": "What is money?"}]}'
)
#: In the environment, because everybody on the machine can read a command line.
_KeyOption = Annotated[
    str, typer.Option(envvar="FAREBOX_BENCH_KEY", help="An account key (sk-…) with money on it.")
]
_TokenOption = Annotated[
    str, typer.Option(envvar="FAREBOX_BENCH_TOKEN", help="A token to make a key of instead.")
]


def bench(
    url: Annotated[str, typer.Argument(help="The gateway, such as http://127.0.0.1:8080.")],
    path: Annotated[str, typer.Option(help="What requests of key and ecash ask for.")],
    rate: Annotated[int, typer.Option(min=1, max=100_000, help="Requests a second.")] = 50,
    seconds: Annotated[int, typer.Option(min=1, max=86_400, help="For how long.")] = 10,
    mix: Annotated[str, typer.Option(help="Shares of key, stream and ecash.")] = "key=1",
    body: Annotated[str, typer.Option(help="A body to POST; without one it is a GET.")] = "",
    stream_path: Annotated[
        str, typer.Option(help="What requests of stream ask for.")
    ] = "/v1/chat/completions",
    stream_body: Annotated[str, typer.Option(help="What they POST.")] = _STREAM_BODY,
    key: _KeyOption = "",
    token: _TokenOption = "",
    tokens: Annotated[
        str, typer.Option(help="A file of tokens for ecash, one a line; - for standard input.")
    ] = "",
    play_mint: Annotated[
        str, typer.Option(help="The address of a mint of play money, to make key and tokens at.")
    ] = "",
    change: Annotated[
        Path | None, typer.Option(help="The file that change and made keys are added to.")
    ] = None,
    in_flight: Annotated[
        int, typer.Option(min=1, max=20_000, help="Requests running at the same time, at most.")
    ] = 512,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare and verify the server's book.")
    ] = True,
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drive a running gateway at a steady rate, measure it, and verify its book afterwards.

    It spends money. The comparison with the book holds while nobody else uses the gateway.
    """
    found = read_settings(settings, data) if verify else None
    wanted = Wanted(
        url=url,
        arrivals=Arrivals(rate, seconds, read_mix(mix)),
        in_flight_max=in_flight,
        plain=Ask("POST", path, _JSON, body.encode()) if body else Ask("GET", path),
        stream=Ask("POST", stream_path, _JSON, stream_body.encode()),
        money=Money(key, token, tokens, play_mint, change),
        book=found.data_dir if found else None,
    )
    # Not on uvloop, whose clock has whole milliseconds.
    report = asyncio.run(run(wanted, progress))
    facts, text, is_right = report.facts(), report.text(), report.charges.agree
    if found is not None:
        result = check_book(found)
        facts["verified"] = verdict_facts(result)
        text += f"\n\n{verdict_text(result)}"
        is_right = is_right and not isinstance(result, Broken)
    show(facts, text, as_json=as_json)
    if not is_right:
        raise typer.Exit(_EXIT_WRONG)
