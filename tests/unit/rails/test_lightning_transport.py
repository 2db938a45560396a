"""What is left behind when an answer of a node is not read to its end."""

from __future__ import annotations

import datetime
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from farebox.clock import SystemClock
from farebox.rails.lightning import Line
from farebox.rails.lightning.transport import open_node_session
from farebox.rails.web import Breaker

_BEGUN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello\n\r\n"


def certificate(folder: Path) -> Path:
    """A key and a certificate of this machine that nobody else has signed, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .sign(key, hashes.SHA256())
    )
    file = folder / "node.pem"
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(secret + made.public_bytes(pem))
    return file


def tells_for_ever(listener: socket.socket, file: Path) -> bytes:
    """A node that begins an answer over TLS and says no more; what then comes, as it comes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    taken, _ = listener.accept()
    raw = taken.dup()
    with raw, context.wrap_socket(taken, server_side=True) as line:
        line.recv(1 << 16)
        line.sendall(_BEGUN)
        try:
            return raw.recv(1)
        except ConnectionResetError:
            return b""


async def test_a_node_is_hung_up_on_without_a_farewell_that_it_may_never_return(
    tmp_path: Path,
) -> None:
    file = certificate(tmp_path)
    tls = ssl.create_default_context(cafile=str(file))
    tls.check_hostname = False
    with ThreadPoolExecutor(1) as pool, socket.create_server(("127.0.0.1", 0)) as listener:
        node = pool.submit(tells_for_ever, listener, file)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        async with open_node_session() as session:
            line = Line(url, {}, session, Breaker(SystemClock()), tls=tls)
            async with aclosing(line.lines("GET", "/v1/invoices/subscribe")) as told:
                assert await anext(told) == b"hello"
        assert node.result() == b""
