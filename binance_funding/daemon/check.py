"""--check: whether this host gets Binance's funding rates, and if not, why. It prints a line for each step.

It uses the daemon's own parts, on connections of its own. It does not touch a daemon that runs meanwhile, and keeps a
pause that Binance asked that daemon for. It costs one connection to each address of the stream, until the first mark
prices have come, and a REST weight of 11 of the 2400 that an IP has in a minute.
"""

import errno
import functools
import itertools
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import requests

from ..clock import Deadline
from ..service import Threads
from ..settings import Settings, sources
from ..state_file import EMPTY, UnusableState, is_heartbeat_late, read, why_not, writer_pid, written_age_s
from .context import Context
from .market.book import Book
from .market.feed import Feed
from .market.freshness import FreshnessWatch
from .market.thresholds import LARGEST_WALL_OFFSET_S
from .output.restore import pause_s
from .source import rates
from .source.certificates import check_certificates
from .source.connection import Connection
from .source.faults import Cause, Kind
from .source.lookup import Lookup
from .source.rest_client import RestClient, RestError
from .source.rest_poller import PREMIUM_INDEX, TIME

# With the start and the end of the program it makes less than 20 s.
_LIMIT_S, _CLOSE_LIMIT_S, _STEP_S = 17.0, 1.0, 0.1
# The market comes in two messages.
_COLLECT_S = 1.0
# The state file has to fit where it is to be. This is more than today's market takes.
_ROOM_BYTES = 1 << 20
_OUR_SERVER, _SERVER_LIMIT_S, _SERVER_BYTES = b'"name":"binance-funding"', 2.0, 4096
_WAY = ("DNS", "proxy", "TCP", "TLS")
_STREAM_STEPS, _REST_STEPS = (*_WAY, "handshake", "mark prices"), (*_WAY, "REST")
_STEP_OF_KIND = {Kind.DNS: "DNS", Kind.PROXY: "proxy", Kind.TCP: "TCP", Kind.TLS: "TLS"}

_ADVICE = {
    "state file": "restart a daemon that hangs; else correct that, run this as the daemon's user, "
    "or set STATE_FILE to another place",
    "DNS": "see why `getent hosts {host}` fails (/etc/resolv.conf), or correct {setting}",
    "proxy": "start that proxy, correct {variable} (http://USER:PASSWORD@HOST:PORT), or unset the variable",
    "TCP": "let this host through every firewall on the way, name a proxy in https_proxy, or correct {setting}",
    "TLS": "compare `date -u` with the true time, look for a proxy on the way, whose CA belongs into SSL_CERT_FILE, "
    "or correct {setting}",
    "handshake": "wait if Binance asks for it; else look for a firewall or proxy on the way, or correct {setting}",
    "mark prices": "correct {setting}, whose default is known to bring them, or look for a filter on the way",
    "lag": "look for a slow link, or a host short of processor time (`uptime`). The daemon uses REST meanwhile",
    "REST": "wait if Binance asks for it; else look for a firewall, proxy or login page on the way, "
    "or correct {setting}",
    "clock": "compare `date -u` with the true time, and keep it right by NTP: `timedatectl set-ntp true`",
    "HTTP port": "see with `ss -ltnp` what listens there, and set API_HOST to an address of this host, "
    "and API_PORT to a free port above 1023",
}


def check_host(settings: Settings) -> int:
    """Check this host and print the lines; return 0, or 1 if a step failed. Blocks for 20 s at most.

    Raises SettingsError, before anything is tried.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return _HostCheck(settings).run()
    except BrokenPipeError:  # the reader of the lines has left; flushing the rest at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class EndpointCheck:
    """How far the way to one address of Binance leads. A thread of its own writes it."""

    def __init__(self, url: str, setting: str, steps: tuple[str, ...], pause_left_s: float) -> None:
        parts = urlsplit(url)
        self.url = url
        self.setting = setting
        self.steps = steps
        self.pause_left_s = pause_left_s
        """For how long Binance still asks not to be asked there."""
        self.source: Connection | RestClient | None = None
        """The part of the daemon that tries the way, None until it begins."""
        self.results: dict[str, str] = {}
        """What is to be said of the steps after TLS that succeeded."""
        self.cause: Cause | None = None
        """Why the next step failed, None while that is not known."""
        is_retired = parts.path == "/stream" or parts.path.startswith("/ws")
        self.successor = parts._replace(path=f"/market{parts.path}").geturl() if is_retired else ""
        """The address that replaced it, if it is a retired one. Source: Binance's change log of 2026-03-06."""
        self._host, self._target, self._is_secure = parts.hostname or "", parts.netloc, parts.scheme in ("wss", "https")

    @property
    def _lookup(self) -> Lookup | None:
        return self.source.lookup if self.source else None

    def failed_step(self) -> str:
        """Name the step that failed or hangs, "" if all succeeded."""
        undone = next((step for step in self.steps[len(_WAY) :] if step not in self.results), "")
        if not undone or self.results or self.pause_left_s:
            return undone
        if self.cause is not None:
            return _STEP_OF_KIND.get(self.cause.kind, undone)
        return "DNS" if self._lookup and self._lookup.ended_s is None else undone

    def failure(self) -> str:
        """Say why that step failed."""
        subject = self._target if self.failed_step() in _WAY else self.url
        if self.pause_left_s:
            return f"{subject}: not asked, since Binance asked for a pause; {self.pause_left_s:.0f} s of it are left"
        if self.cause is None:
            return f"{subject}: no answer within {_LIMIT_S:.0f} s"
        words = self.cause.detail if self.cause.kind in _STEP_OF_KIND else str(self.cause)
        pause = f", and asks for a pause of {self.cause.wait_s:.0f} s" if self.cause.wait_s else ""
        return f"{subject}: {words}{pause}"

    def successes(self) -> dict[str, str]:
        """Say of each step before that one what is known, in their order."""
        lookup = self._lookup
        if lookup is None:
            return {}
        trusted = "has a certificate that is trusted" if self._is_secure else "is not asked for TLS"
        results = {
            "DNS": f"{lookup.host} is {', '.join(lookup.addresses)}",
            "proxy": f"{lookup.variable or 'none'} is used for {self._host}",
            "TCP": f"{self._target} accepts connections",
            "TLS": f"{self._target} {trusted}",
            **self.results,
        }
        return dict(itertools.takewhile(lambda result: result[0] != self.failed_step(), results.items()))

    def advice(self) -> str:
        """Say what to do about the step that failed."""
        lookup = self._lookup
        host, variable = (lookup.host, lookup.variable) if lookup else (self._host, "the proxy variable")
        return _ADVICE[self.failed_step()].format(setting=self.setting, host=host, variable=variable)


class _HostCheck:
    """One check of this host. For the main thread; what begins with `_try` has threads of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = Context(settings)
        self._threads = Threads()
        self._clock = self._context.clock
        self._exchange_clock = self._context.exchange_clock
        self._port, self._has_port_failed = "the name in API_HOST is not resolved", True
        self._printed: set[str] = set()

    def run(self) -> int:
        """Take every step and print the lines in their order; return the exit status. Raises SettingsError."""
        deadline, settings = Deadline(_LIMIT_S), self._settings
        check_certificates()
        given = [f"{name}={text} ({place})" for name, (place, text) in sources().items()]
        self._say("settings", ", ".join([*given, "all others at their defaults" if given else "all at their defaults"]))
        status, file_now_s = self._report_state_file()
        stream_pause_s, rest_pause_s = pause_s(status, file_now_s), pause_s(status["rest"], file_now_s)
        urls = settings.binance_ws_urls
        streams = [EndpointCheck(url, "BINANCE_WS_URLS", _STREAM_STEPS, stream_pause_s) for url in urls]
        rest = EndpointCheck(settings.binance_rest_url, "BINANCE_REST_URL", _REST_STEPS, rest_pause_s)
        for endpoint in (*streams, rest):
            if not endpoint.pause_left_s:
                work = self._try_rest if endpoint is rest else self._try_stream
                self._threads.start(endpoint.setting, functools.partial(work, endpoint))
        self._threads.start("port", self._try_port)
        self._threads.join(deadline.remaining_s())
        self._report([*streams, rest], _STREAM_STEPS)
        self._report_lag(streams)
        self._report([rest], ["REST"])
        self._report_clock(rest)
        self._say("HTTP port", self._port, self._has_port_failed)
        self._threads.join(_CLOSE_LIMIT_S)  # the connections send their close frames
        return self._threads.exit_status() or int(any(line.startswith("FAIL") for line in self._printed))

    def _say(self, step: str, words: str, failed: bool = False, advice: str = "") -> None:
        """Print a line, once, since addresses may share a host. Text from outside is made printable."""
        text = f"FAIL {step}: {words}; {advice or _ADVICE[step]}" if failed else f"ok   {step}: {words}"
        line = "".join(c if " " <= c <= "~" else "?" for c in text)
        if line not in self._printed:
            self._printed.add(line)
            print(line, flush=True)

    def _report(self, endpoints: Sequence[EndpointCheck], steps: Sequence[str]) -> None:
        has_prices = any("mark prices" in endpoint.results for endpoint in endpoints)
        for step, endpoint in itertools.product(steps, endpoints):
            if step in (successes := endpoint.successes()):
                self._say(step, successes[step])
            elif step == endpoint.failed_step():
                # Beside an address that brings mark prices, a retired one is no fault.
                is_fault = not (has_prices and endpoint.successor)
                words = endpoint.failure() if is_fault else f"{endpoint.failure()}; another one does"
                self._say(step, words, is_fault, endpoint.advice())

    def _report_state_file(self) -> tuple[dict[str, Any], float]:
        """Return the file's `connection_status`, and the present by the clock of its times."""
        path, failed = os.path.realpath(self._settings.state_file), False
        try:
            state, fault = read(path), ""
        except UnusableState as error:
            state, fault = EMPTY, str(error)
        age_s = written_age_s(state, self._clock.now(), self._clock.boot_id)
        try:
            if why := why_not(path):
                raise OSError(why)
            pid = writer_pid(path)
            words = f"{path} was written {age_s:.1f} s ago by the running daemon, pid {pid}"
            if pid is None:
                with tempfile.TemporaryFile(dir=os.path.dirname(path)) as file:
                    file.write(bytes(_ROOM_BYTES))
                words = f"{path} can be written, and no daemon writes it now"
            elif is_heartbeat_late(age_s, self._settings.heartbeat_seconds):
                since = fault or f"written {age_s:.0f} s ago"
                words, failed = f"the daemon with pid {pid} holds {path}, but no longer writes it ({since})", True
        except OSError as error:
            words, failed = f"{path} cannot be written: {(error.strerror or str(error)).lower()}", True
        self._say("state file", words, failed)
        return state["connection_status"], state["updated_at"] + age_s

    def _report_lag(self, streams: Sequence[EndpointCheck]) -> None:
        sources = [endpoint.source for endpoint in streams if "mark prices" in endpoint.results]
        lags_s = [source.lag_s() or 0.0 for source in sources if isinstance(source, Connection)]
        if lags_s and self._exchange_clock.offset_s is not None:
            words = f"mark prices are {min(lags_s):.1f} s old by Binance's clock when they come"
            self._say("lag", words, min(lags_s) > self._context.current_s)

    def _report_clock(self, rest: EndpointCheck) -> None:
        offset_s = self._exchange_clock.wall_offset_s()
        if offset_s is not None:
            words = f"this host's clock is {abs(offset_s):.2f} s {'behind' if offset_s > 0 else 'ahead of'} Binance's"
            self._say("clock", words, abs(offset_s) > LARGEST_WALL_OFFSET_S)
        elif "REST" in rest.results:
            self._say("clock", "the time that Binance names came too late, or agrees with nothing else", True)

    def _try_stream(self, endpoint: EndpointCheck) -> None:
        book, changed, silence_s = Book(self._context), threading.Event(), self._context.current_s
        feed = Feed(self._context, FreshnessWatch(self._context, book, str))
        connection = Connection(self._context, 1, endpoint.url, feed.take, changed.set)
        endpoint.source = connection
        self._threads.start("connection", connection.run)
        while not changed.wait(_STEP_S):
            if connection.opened_s is not None and self._clock.steady_s() > connection.opened_s + silence_s:
                break
        if connection.opened_s is not None:
            after_s = connection.opened_s - connection.started_s
            endpoint.results["handshake"] = f"{endpoint.url} opened after {after_s:.2f} s"
            came = "only messages without a mark price came" if feed.messages else f"nothing came for {silence_s:g} s"
            retired = (
                f"; this address was retired on 2026-04-23: use {endpoint.successor}" if endpoint.successor else ""
            )
            endpoint.cause = Cause(Kind.SILENT, came + retired)
        if connection.first_data_s is not None:
            changed.clear()
            changed.wait(_COLLECT_S)
            first_s = connection.first_data_s - connection.started_s
            symbols = f"{len(book.rates())} symbols, the first after {first_s:.2f} s"
            endpoint.results["mark prices"] = f"{symbols}, from {endpoint.url}"
        elif connection.ending:
            endpoint.cause = connection.ending
        connection.close()

    def _try_rest(self, endpoint: EndpointCheck) -> None:
        timeout_s = min(self._settings.rest_timeout_seconds, _LIMIT_S / 2)
        client = endpoint.source = RestClient(endpoint.url, timeout_s, self._clock)
        try:
            body, received_s = client.get(PREMIUM_INDEX), self._clock.steady_s()
            decoded = rates.decode_premium_index(body, received_s)
            self._exchange_clock.judge(decoded.median_event_time_ms, received_s)
            asked_s = self._clock.steady_s()
            server_time_s = rates.decode_server_time(client.get(TIME))
            self._exchange_clock.note_answer(server_time_s, asked_s, self._clock.steady_s())
            used = f"weight used by this IP in this minute: {client.used_weight or 'unknown'} of 2400"
            endpoint.results["REST"] = f"{len(decoded.rates)} symbols from {endpoint.url}; {used}"
        except RestError as error:
            endpoint.cause = error.cause
        except rates.MalformedMessage as fault:
            endpoint.cause = Cause(Kind.MALFORMED, str(fault))
        client.close()

    def _try_port(self) -> None:
        host, port = self._settings.api_host, self._settings.api_port
        words, failed = "is free", False
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                # Bound without listening, it is not in the way of a server that starts at this moment.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address)
        except OSError as error:
            words, failed = f"cannot be used: {(error.strerror or str(error)).lower()}", True
            if error.errno == errno.EADDRINUSE and _is_our_server(_join(host, port)):
                words, failed = "is answered by our own server already", False
        self._port, self._has_port_failed = f"{_join(host, port)} {words}", failed


def _is_before(step: str, failed: str, steps: tuple[str, ...]) -> bool:
    return not failed or steps.index(step) < steps.index(failed)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_our_server(address: str) -> bool:
    """Ask the program that listens there what it is, without any proxy."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            with session.get(f"http://{address}/", timeout=_SERVER_LIMIT_S, stream=True) as response:
                return _OUR_SERVER in next(response.iter_content(_SERVER_BYTES), b"")
        except requests.RequestException:  # another program
            return False
