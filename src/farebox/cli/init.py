"""`farebox init`: the first settings file and the root key."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from farebox.cli.output import JsonOption, show
from farebox.errors import InvalidSettings
from farebox.pricing.parse import parse_rules
from farebox.settings import create_root_key, load_settings, render_settings

_FILE_MODE = 0o600


def init(
    file: Annotated[
        Path, typer.Argument(help="Where to write the settings.", show_default=True)
    ] = Path("farebox.toml"),
    upstream: Annotated[
        list[str] | None, typer.Option(help="The service to sell; again for fail-over.")
    ] = None,
    mint: Annotated[
        list[str] | None, typer.Option(help="A mint to trust; again for another one.")
    ] = None,
    price: Annotated[
        str | None, typer.Option(help='What a request costs, such as "10 sat".')
    ] = None,
    listen: Annotated[str | None, typer.Option(help="host:port to listen on.")] = None,
    data: Annotated[Path | None, typer.Option(help="The directory for books and keys.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a settings file with everything explained, and make the root key."""
    chosen: dict[str, object] = {}
    if data is not None:
        chosen["data_dir"] = str(data.absolute())
    if listen is not None:
        chosen["gateway"] = {"listen": listen}
    if upstream:
        chosen["upstream"] = [{"urls": upstream}]
    if mint:
        chosen["mint"] = [{"url": url} for url in mint]
    if price is not None:
        chosen["price"] = [{"price": price}]
    settings = load_settings(None, {}, _rooted(chosen, file))
    parse_rules(settings.prices)
    with _new_file(file, render_settings(chosen)):
        root_key = create_root_key(settings.data_dir)
    facts = {"settings": str(file), "data_dir": str(settings.data_dir), "root_key": str(root_key)}
    show(
        facts,
        f"wrote {file}\nroot key in {root_key}: keep a copy, nothing can be recovered without it",
        as_json=as_json,
    )


def _rooted(chosen: dict[str, object], file: Path) -> dict[str, object]:
    """The choices with the data directory where the new file will have it."""
    return {"data_dir": str(file.absolute().parent / "farebox-data"), **chosen}


@contextmanager
def _new_file(path: Path, text: str) -> Iterator[None]:
    """A file that must not exist yet, under its name once the block has ended well.

    Nobody's settings are overwritten, and a block that fails leaves none behind: the next try
    would be told that they are there.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    exists = InvalidSettings(
        "(file)", f"{path}, which exists", "a new file: move the old one away, or name another"
    )
    if path.exists():
        raise exists
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        yield
        os.link(draft, path)  # not replace: somebody may have been quicker
    except FileExistsError:
        raise exists from None
    except OSError as error:
        found = f"{path} ({error.strerror})"
        raise InvalidSettings("(file)", found, "a file that we may write") from None
    finally:
        with suppress(OSError):
            draft.unlink()
