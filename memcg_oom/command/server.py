"""The HTTP server of the exporter: /metrics, /healthz, and a page that says so.

prometheus_client has one too (start_http_server()), but it makes as many threads as there are clients, waits for ever
for one that hangs, and knows no /healthz. Its WSGI application does the negotiating here.
"""

from __future__ import annotations

import io
import math
import select
import socket
import socketserver
import ssl
import threading
import time
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

from prometheus_client import make_wsgi_app

from memcg_oom._version import __version__
from memcg_oom.lock import new_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from prometheus_client.registry import Collector

    from memcg_oom.command.health import Health

# How many are answered at once.
CONNECTIONS = 8
# Seconds for a client to ask, the handshake of TLS included, and again for it to take the answer.
PATIENCE = 10.0

# Those who were refused stay connected for so many seconds, and are at most so many: a connection that is closed with
# something unread in it is reset, and who is at the other end may lose the answer by that.
_LINGER = 1.0
_LINGERING = 16
# Bytes that are sent at once: a record of TLS, each of which would else have the time of all anew.
_CHUNK = 16384

_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 5\r\n\r\ntoo many connections\n"

_PAGE = f"""\
<!DOCTYPE html>
<html><head><title>memcg-oom {__version__}</title></head>
<body><h1>memcg-oom {__version__}</h1>
<p>OOM kills of memory cgroups: <a href="metrics">/metrics</a></p>
<p>Whether they are watched: <a href="healthz">/healthz</a></p></body></html>
"""


def tls_context(certificate: str, key: str, client_ca: str | None) -> ssl.SSLContext:
    """How connections are secured.

    Args:
        certificate: a file with the server's certificate, and those between it and its authority.
        key: a file with its private key, without a passphrase.
        client_ca: a file with the authorities of which clients must have a certificate; None: anybody may connect.

    Raises:
        OSError: a file cannot be read.
        ValueError: it does not hold what it should; the message names it.
    """
    for path in filter(None, (certificate, key, client_ca)):
        with open(path, "rb"):  # or the error would not say which it is that cannot be read
            pass
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Is there one in it? Into a context that is thrown away: the server's own certificate is no authority to clients.
    _load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate)
    try:
        # Without a passphrase OpenSSL would ask for one, on the terminal.
        context.load_cert_chain(certificate, key, password=bytes)
    except ssl.SSLError:
        raise ValueError(
            f"{key}: not the private key, in PEM form and without a passphrase, of {certificate}"
        ) from None
    if client_ca is not None:
        _load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"{path}: no certificate in PEM form is in it") from None


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Answers in threads of its own from start() to close(); it listens from the beginning.

    Synchronization: start() and close() are for one thread.

    Args:
        host: an address, or a name that has one.
        port: 0: the kernel chooses one.
        registry: what /metrics tells.
        health: what /healthz tells.
        tls: None: connections are not secured.

    Raises:
        OSError: it cannot listen there.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    timeout = 0.0  # of handle_request(), which is called when there is one

    def __init__(
        self, host: str, port: int, registry: Collector, health: Health, tls: ssl.SSLContext | None = None
    ) -> None:
        self.metrics = make_wsgi_app(registry)
        self.health = health
        self._tls = tls
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        self._lock = new_lock()
        self._open: set[socket.socket] = set()
        self._refused: deque[tuple[float, socket.socket]] = deque()
        self._thread = threading.Thread(target=self._serve, name="server", daemon=True)
        self._bell, self._rope = socket.socketpair()
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
                0
            ]
            self.address_family = family
            super().__init__((str(address[0]), int(address[1])), BaseHTTPRequestHandler)
        except OSError as error:
            self._bell.close()
            self._rope.close()
            raise OSError(error.errno, error.strerror, spelled(host, port)) from None

    @property
    def url(self) -> str:
        """Where it is reached."""
        host, port = self.server_address[:2]
        return f"http{'s' if self._tls else ''}://{spelled(str(host), int(port))}"

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def close(self) -> None:
        """Breaks off what is under way, and ends."""
        if self._thread.is_alive():
            self._rope.send(b".")
            self._thread.join()
        self.server_close()
        self._bell.close()
        self._rope.close()
        self._let_go(math.inf)
        with self._lock:
            for connection in self._open:
                _break_off(connection)
        deadline = time.monotonic() + PATIENCE
        for _ in range(CONNECTIONS):  # each is free again when its thread has closed its connection
            self._slots.acquire(timeout=max(0.0, deadline - time.monotonic()))

    # -- in the thread that accepts

    def _serve(self) -> None:
        """Instead of serve_forever(), which looks twice a second whether it is to end."""
        poll = select.poll()
        poll.register(self, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        while True:
            left = self._refused[0][0] - time.monotonic() if self._refused else None
            ready = [fd for fd, _ in poll.poll(None if left is None else max(0, math.ceil(left * 1000)))]
            if self._bell.fileno() in ready:
                return
            if ready:
                self.handle_request()
            self._let_go(time.monotonic())

    def _let_go(self, moment: float) -> None:
        while self._refused and self._refused[0][0] <= moment:
            self._refused.popleft()[1].close()

    def get_request(self) -> tuple[Any, Any]:
        """The next connection."""
        try:
            return super().get_request()
        except OSError:
            # No descriptors left, as a rule: the connection stays where it is, and the loop would turn all the time.
            self.health.count("connection")
            time.sleep(0.1)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more."""
        if self._slots.acquire(blocking=False):
            return True
        self.health.count("busy")
        if len(self._refused) < _LINGERING:
            self._refuse(request)
        return False  # by which it is closed here, but not what was kept of it

    def _refuse(self, request: socket.socket) -> None:
        kept = request.dup()
        self._refused.append((time.monotonic() + _LINGER, kept))
        if self._tls is None:  # else there would have to be a handshake first, which takes what is lacking here
            kept.setblocking(False)
            with suppress(OSError):  # gone already
                kept.send(_BUSY)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts the connection's thread."""
        try:
            super().process_request(request, client_address)
        except BaseException:  # there are no more threads to be had
            self._slots.release()
            raise

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What was wrong with a connection is counted, not printed."""
        self.health.count("connection")

    # -- in the connection's thread

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, which is one request."""
        connection: socket.socket = request
        deadline = time.monotonic() + PATIENCE
        try:
            connection.settimeout(PATIENCE)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            with self._lock:
                self._open.add(connection)
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            _Handler(connection, client_address, self, deadline)
        except OSError:  # ssl.SSLError and TimeoutError among them
            self.health.count("connection")
        finally:
            with self._lock:
                self._open.discard(connection)
            self.shutdown_request(connection)
            self._slots.release()


class _Handler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0: a client that keeps its connection would keep one of a few."""

    server: Server

    def __init__(self, connection: socket.socket, client: Any, server: Server, deadline: float) -> None:
        self._deadline = deadline
        super().__init__(connection, client, server)

    def setup(self) -> None:
        """A request that comes byte by byte has no more time than another."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Patient(self.connection, self._deadline))

    def do_GET(self) -> None:
        """Answers."""
        path, _, query = self.path.partition("?")
        if path == "/metrics":
            self._metrics(query)
        elif path == "/healthz":
            trouble = self.server.health.trouble()
            self._answer(503 if trouble else 200, f"{trouble or 'ok'}\n".encode())
        elif path == "/":
            self._answer(200, _PAGE.encode(), "text/html; charset=utf-8")
        else:
            self._answer(404, b"there are /metrics and /healthz\n")

    do_HEAD = do_GET

    def _metrics(self, query: str) -> None:
        status = ""
        headers: list[tuple[str, str]] = []

        def start(line: str, fields: list[tuple[str, str]], *_: object) -> Callable[[bytes], object]:
            nonlocal status
            status = line
            headers.extend(fields)
            return self.wfile.write

        environment = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": query,
            "HTTP_ACCEPT": self.headers.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": self.headers.get("Accept-Encoding", ""),
        }
        try:
            body = b"".join(self.server.metrics(environment, start))
        except Exception as error:
            self.server.health.count("scrape")
            self._answer(500, f"{type(error).__name__}\n".encode())
            return
        self._send(int(status.split(maxsplit=1)[0]), body, headers)

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self._send(status, body, [("Content-Type", content_type)])

    def _send(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        deadline = time.monotonic() + PATIENCE
        self.connection.settimeout(PATIENCE)
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body), _CHUNK):
            self.connection.settimeout(max(0.001, deadline - time.monotonic()))
            self.wfile.write(body[start : start + _CHUNK])

    def version_string(self) -> str:
        """Who answers."""
        return f"memcg-oom/{__version__}"

    def log_error(self, format: str, *args: Any) -> None:
        """A request that did not come in time, or is none."""
        self.server.health.count("connection")

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""


class _Patient(io.RawIOBase):
    """What a client sends, until its time is over."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


def spelled(host: str, port: int) -> str:
    """An address as it is given to --listen."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _break_off(connection: socket.socket) -> None:
    with suppress(OSError):  # it was broken off at the other end
        # That of the base: an SSLSocket's own forgets its session, which its thread may be using.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
