"""Secrets that come from outside: the environment, or files that only we can read."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from farebox.errors import InvalidSettings
from farebox.signer import ROOT_BYTES

_SECRET_FILE_MAX_BYTES = 64 * 1024
_SAFE_FILE = "a file of ours with permissions 0600 or 0400 (chmod 600)"
_ROOT_KEY = (
    "64 hexadecimal digits in FAREBOX_ROOT_KEY, or a file of them: `farebox init` makes one for a "
    "new book; a book that is there opens with its own alone, from your copy"
)


class Secret:
    """A text that shows itself only when asked with `reveal`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself; keep it out of logs and errors."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    __hash__ = None  # type: ignore[assignment]  # a hash would invite lookups by secret


def read_secret_file(path: Path, key: str) -> Secret:
    """Read a secret from a file that belongs to us and that nobody else may read.

    Raises InvalidSettings naming `key` when the file is missing, too open or too large. Owner and
    permissions are those of the opened file, so a swap between check and read gains nothing.
    """
    try:
        # O_NONBLOCK: a pipe put in its place must not hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidSettings(key, f"{path} ({error.strerror})", _SAFE_FILE) from None
    try:
        unsafe = _unsafe(os.fstat(descriptor))
        if unsafe:
            raise InvalidSettings(key, f"{path}{unsafe}", _SAFE_FILE)
        content = os.read(descriptor, _SECRET_FILE_MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > _SECRET_FILE_MAX_BYTES:
        raise InvalidSettings(key, f"{path}, too large", f"at most {_SECRET_FILE_MAX_BYTES} bytes")
    try:
        return Secret(content.decode().rstrip("\r\n"))
    except UnicodeDecodeError:
        raise InvalidSettings(key, f"{path}, not UTF-8 text", _SAFE_FILE) from None


def _unsafe(facts: os.stat_result) -> str:
    """What is wrong with a secret's file, to be said after its name; empty when nothing is."""
    if not stat.S_ISREG(facts.st_mode):
        return ", not a regular file"
    if facts.st_uid != os.geteuid():
        return ", which belongs to somebody else"
    if stat.S_IMODE(facts.st_mode) & ~0o600:
        return f" with permissions {stat.S_IMODE(facts.st_mode):04o}"
    return ""


def root_key_path(data_dir: Path) -> Path:
    """Where the root key lies unless the environment says otherwise."""
    return data_dir / "root.key"


def create_root_key(data_dir: Path) -> Path:
    """Put a new random root key into `<data_dir>/root.key` (0600), durably; return its path.

    A key that is already there stays: losing it means losing everything sealed with it.
    Raises InvalidSettings when the directory cannot be written.
    """
    path = root_key_path(data_dir)
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(path, secrets.token_hex(ROOT_BYTES) + "\n")
    except FileExistsError:
        return path
    except OSError as error:
        found = f"{data_dir} ({error.strerror})"
        raise InvalidSettings("data_dir", found, "a directory that we may write") from None
    return path


def read_root_key(data_dir: Path, environ: Mapping[str, str]) -> bytes:
    """The 32 bytes every other key is derived from, for `farebox.signer.Signer`.

    From FAREBOX_ROOT_KEY, else the file named by FAREBOX_ROOT_KEY_FILE, else
    `<data_dir>/root.key`. Raises InvalidSettings when there is none, or it is malformed.
    """
    if "FAREBOX_ROOT_KEY" in environ:
        text = environ["FAREBOX_ROOT_KEY"].strip()
    else:
        named = environ.get("FAREBOX_ROOT_KEY_FILE")
        path = Path(named) if named else root_key_path(data_dir)
        if named is None and not path.exists():
            raise InvalidSettings("root_key", f"nothing at {path}", _ROOT_KEY)
        text = read_secret_file(path, "root_key").reveal().strip()
    try:
        root = bytes.fromhex(text)
    except ValueError:
        root = b""
    if len(root) != ROOT_BYTES:
        raise InvalidSettings("root_key", f"{len(text)} characters (hidden)", _ROOT_KEY)
    return root


def _write_new(path: Path, text: str) -> None:
    """Write a file that must not exist yet, readable by us alone, and sync it and its directory.

    The key appears under its name only when it is whole: after a crash there is a key or none.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.link(draft, path)
    finally:
        os.unlink(draft)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
