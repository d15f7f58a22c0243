"""--check: whether this host gets Binance's funding rates, and if not, why: a line for each step.

Made of the daemon's own parts, on connections of its own; a daemon that runs meanwhile is not touched, and a pause that
Binance asked it for is kept. It costs a connection to each address of the stream, until the first mark prices have
come, and a REST weight of 11 of the 2400 that an IP has in a minute.
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
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

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
from .source import rates, transport
from .source.connection import Connection
from .source.rest import PREMIUM_INDEX, TIME, RestClient, RestError

# With the start and the end of the program it makes less than 20 s.
_WITHIN_S, _CLOSE_WITHIN_S, _ROUND_S = 17.0, 1.0, 0.1
# The market comes in two messages.
_COLLECT_S = 1.0
# What has to fit where the state file is to be: more than today's market takes.
_ROOM_BYTES = 1 << 20
_OUR_SERVER, _ASK_WITHIN_S = b'"name":"binance-funding"', 2.0
_STREAM_STEPS, _REST_STEPS = (*transport.STEPS, "handshake", "mark prices"), (*transport.STEPS, "REST")

# What to do about a failure: of the first line whose step and whose part of the words fit; "" fits all.
_ADVICE = (
    ("state file", "no longer writes it", "its log says why; restart it"),
    ("state file", "", "mend that, run this as the daemon's user, or set STATE_FILE to another place"),
    ("", "asked for a pause", "wait: asking earlier lengthens a ban, and the daemon goes on by itself"),
    ("", "(HTTP 403)", "try another network or host: Binance's firewall blocks this IP"),
    ("", "(HTTP 418)", "stop what else on this IP calls Binance, and wait: asking earlier lengthens the ban"),
    ("", "(HTTP 429)", "let what else on this IP calls Binance do so less often; the daemon waits by itself"),
    ("", "(HTTP 451)", "run it on a host in a country that Binance serves"),
    ("", "(HTTP 5", "nothing to mend here: the fault is Binance's, and the daemon goes on trying"),
    ("", "(HTTP ", "correct the address in {way.setting}"),
    ("DNS", " proxy: ", "correct the name of the proxy in {way.proxy}, or unset the variable"),
    (
        "DNS",
        "",
        "see why `getent hosts {way.host}` fails (/etc/resolv.conf), set https_proxy, or correct {way.setting}",
    ),
    ("proxy", " 407 ", "name a user and a password that it accepts: {way.proxy}=http://USER:PASSWORD@HOST:PORT"),
    ("proxy", "", "start that proxy, correct {way.proxy}, or unset the variable where Binance is reached without"),
    ("TCP", "", "let this host through every firewall on the way, set https_proxy, or correct {way.setting}"),
    ("TLS", "has expired", "compare `date -u` with the true time; if that is right, what answers is not Binance"),
    ("TLS", "not valid for", "what answers is not Binance: look for a proxy on the way, or correct {way.setting}"),
    ("TLS", "certificate", "what answers is not Binance; if it is a proxy of your own, name its CA in SSL_CERT_FILE"),
    ("TLS", "", "what answers speaks no TLS: look for a firewall on the way, or correct {way.setting}"),
    ("handshake", "", "look for a firewall or proxy on the way that passes no WebSocket, or correct {way.setting}"),
    ("mark prices", "retired", "set BINANCE_WS_URLS={way.successor}"),
    ("mark prices", "", "correct {way.setting}, whose default is known to bring them, or look for a filter on the way"),
    ("lag", "", "look for a slow link, or a host short of processor time (`uptime`); REST stands in meanwhile"),
    ("REST", "in time", "look for a slow link or a firewall on the way"),
    ("REST", "", "what answers is not Binance: look for a proxy or login page on the way, or correct {way.setting}"),
    ("clock", "agrees with nothing", "try again, and compare `date -u` with the true time"),
    ("clock", "", "set it, and keep it right by NTP: `timedatectl set-ntp true`"),
    ("HTTP port", "in use", "see with `ss -ltnp` what listens there, and end it, or choose another API_PORT"),
    ("HTTP port", "", "set API_HOST to an address of this host, and API_PORT to 1024 or more"),
)


def check_host(settings: Settings) -> int:
    """Check this host and print the lines; return 0, or 1 where a step failed. Blocks for 20 s at most.

    Raises SettingsError, before anything is tried.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return _HostCheck(settings).run()
    except BrokenPipeError:  # whoever read the lines has left; what is still buffered must not fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


@dataclass
class _Way:
    """The way to one address of Binance, and how far it leads. A thread of its own writes it."""

    url: str
    setting: str
    steps: tuple[str, ...]
    pause_left_s: float
    """For how long Binance still asks not to be asked there."""
    done: dict[str, str] = field(default_factory=dict)
    """The steps that succeeded, with what is to be said of them."""
    failure: str = f"no answer within {_WITHIN_S:.0f} s"
    """Why the next one did not."""
    connection: Connection | None = None

    def __post_init__(self) -> None:
        parts, proxy = urlsplit(self.url), transport.proxy_for(self.url)
        self.host, self.target = parts.hostname, parts.netloc
        self.proxy, self.hop = (proxy.variable, transport.join(proxy.host, proxy.port)) if proxy else ("", self.target)
        is_retired = parts.path == "/stream" or parts.path.startswith("/ws")
        self.successor = parts._replace(path=f"/market{parts.path}").geturl() if is_retired else ""
        """What replaced it, where it is a retired address. Source: Binance's change log of 2026-03-06."""

    def connect(self, url: str, deadline: Deadline) -> socket.socket:
        """Connect as the daemon does, noting the steps."""
        return transport.connect(url, deadline, self.done.__setitem__)

    def fail(self, cause: str, wait_s: float = 0.0) -> None:
        """Note why the next step does not succeed, and for how long Binance asks to wait."""
        self.failure = f"{cause}, and asks for a pause of {wait_s:.0f} s" if wait_s else cause

    def failed_step(self) -> str:
        """Name the step that has not succeeded, "" where all have."""
        if self.pause_left_s:
            return self.steps[len(transport.STEPS)]
        return next((step for step in self.steps if step not in self.done), "")

    def words(self) -> str:
        """Say why it has not."""
        step, cause = self.failed_step(), self.failure
        if self.pause_left_s:
            cause = f"not asked, since Binance asked for a pause; {self.pause_left_s:.0f} s of it are left"
        for prefix in ("no connection: ", f"{step}: ", f"{step} refused: "):
            cause = cause.removeprefix(prefix)
        subject = self.hop if step in ("DNS", "proxy") else self.target if step in transport.STEPS else self.url
        return f"{subject}: {cause}"


class _HostCheck:
    """One check of this host. For the main thread; what begins with `_try` has threads of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._context, self._threads = settings, Context(settings), Threads()
        self._clock, self._exchange_clock = self._context.clock, self._context.exchange_clock
        self._port = "the name in API_HOST is not resolved", True
        self._printed: set[str] = set()

    def run(self) -> int:
        """Take every step and print the lines in their order; return the exit status. Raises SettingsError."""
        deadline, settings = Deadline(_WITHIN_S), self._settings
        transport.check([*settings.binance_ws_urls, settings.binance_rest_url])
        given = [f"{name}={text} ({place})" for name, (place, text) in sources().items()]
        self._say("settings", ", ".join([*given, "all others at their defaults" if given else "all at their defaults"]))
        status, file_now_s = self._report_state_file()
        stream_pause_s, rest_pause_s = pause_s(status, file_now_s), pause_s(status["rest"], file_now_s)
        streams = [_Way(url, "BINANCE_WS_URLS", _STREAM_STEPS, stream_pause_s) for url in settings.binance_ws_urls]
        rest = _Way(settings.binance_rest_url, "BINANCE_REST_URL", _REST_STEPS, rest_pause_s)
        for way in (*streams, rest):
            if not way.pause_left_s:
                work = self._try_rest if way is rest else self._try_stream
                self._threads.start(way.setting, functools.partial(work, way))
        self._threads.start("port", self._try_port)
        self._threads.join(deadline.remaining_s())
        self._report([*streams, rest], _STREAM_STEPS)
        self._report_lag(streams)
        self._report([rest], ["REST"])
        self._report_clock(rest)
        self._say("HTTP port", *self._port)
        self._threads.join(_CLOSE_WITHIN_S)  # the connections say goodbye
        return self._threads.exit_status() or int(any(line.startswith("FAIL") for line in self._printed))

    def _say(self, step: str, words: str, failed: bool = False, way: _Way | None = None) -> None:
        """Print a line, once: addresses may share a host. What is quoted may be anything, and makes no second line."""
        advice = next(advice for of, part, advice in _ADVICE if of in ("", step) and part in words) if failed else ""
        text = f"FAIL {step}: {words}; {advice.format(way=way)}" if failed else f"ok   {step}: {words}"
        line = "".join(c if " " <= c <= "~" else "?" for c in text)
        if line not in self._printed:
            self._printed.add(line)
            print(line, flush=True)

    def _report(self, ways: Sequence[_Way], steps: Sequence[str]) -> None:
        has_prices = any("mark prices" in way.done for way in ways)
        for step, way in itertools.product(steps, ways):
            if step in way.done:
                self._say(step, way.done[step])
            elif step == way.failed_step():
                # Beside one that brings mark prices, a retired address is no fault.
                is_fault = not (has_prices and way.successor)
                self._say(step, way.words() if is_fault else f"{way.words()}; another one does", is_fault, way)

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

    def _report_lag(self, streams: Sequence[_Way]) -> None:
        lags_s = [way.connection.lag_s() or 0.0 for way in streams if way.connection and "mark prices" in way.done]
        if lags_s and self._exchange_clock.offset_s is not None:
            words = f"mark prices are {min(lags_s):.1f} s old by Binance's clock when they come"
            self._say("lag", words, min(lags_s) > self._context.current_s)

    def _report_clock(self, rest: _Way) -> None:
        offset_s = self._exchange_clock.wall_offset_s()
        if offset_s is not None:
            words = f"this host's clock is {abs(offset_s):.2f} s {'behind' if offset_s > 0 else 'ahead of'} Binance's"
            self._say("clock", words, abs(offset_s) > LARGEST_WALL_OFFSET_S)
        elif "REST" in rest.done:
            self._say("clock", "the time that Binance names came too late, or agrees with nothing else", True)

    def _try_stream(self, way: _Way) -> None:
        book, changed, silence_s = Book(self._context), threading.Event(), self._context.current_s
        feed = Feed(self._context, FreshnessWatch(self._context, book, str))
        connection = Connection(self._context, 1, way.url, feed.take, changed.set, connect=way.connect)
        way.connection = connection
        self._threads.start("connection", connection.run)
        while not changed.wait(_ROUND_S):
            if connection.opened_s is not None and self._clock.steady_s() > connection.opened_s + silence_s:
                break
        if connection.opened_s is not None:
            way.done["handshake"] = f"{way.url} opened after {connection.opened_s - connection.started_s:.2f} s"
            came = "only messages without a mark price came" if feed.messages else f"nothing came for {silence_s:g} s"
            retired = "; this address was retired on 2026-04-23: it opens, but brings nothing" if way.successor else ""
            way.fail(came + retired)
        if connection.first_data_s is not None:
            changed.clear()
            changed.wait(_COLLECT_S)
            after_s = connection.first_data_s - connection.started_s
            way.done["mark prices"] = f"{len(book.rates())} symbols, the first after {after_s:.2f} s, from {way.url}"
        elif connection.ending:
            way.fail(connection.ending.cause, connection.ending.wait_s)
        connection.close()

    def _try_rest(self, way: _Way) -> None:
        timeout_s = min(self._settings.rest_timeout_seconds, _WITHIN_S / 2)
        client = RestClient(way.url, timeout_s, self._clock, connect=way.connect)
        try:
            body, received_s = client.get(PREMIUM_INDEX), self._clock.steady_s()
            decoded = rates.decode_premium_index(body, received_s)
            self._exchange_clock.judge(decoded.median_event_time_ms, received_s)
            asked_s = self._clock.steady_s()
            server_time_s = rates.decode_server_time(client.get(TIME))
            self._exchange_clock.note_answer(server_time_s, asked_s, self._clock.steady_s())
            used = f"weight used by this IP in this minute: {client.used_weight or 'unknown'} of 2400"
            way.done["REST"] = f"{len(decoded.rates)} symbols from {way.url}; {used}"
        except RestError as error:
            way.fail(str(error), error.wait_s)
        except rates.MalformedMessage as fault:
            way.fail(str(fault))
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
            words, failed = f"cannot be had: {(error.strerror or str(error)).lower()}", True
            if error.errno == errno.EADDRINUSE and self._is_ours((host, port)):
                words, failed = "is answered by our own server already", False
        self._port = f"{transport.join(host, port)} {words}", failed

    def _is_ours(self, at: tuple[str, int]) -> bool:
        """Ask whoever listens there what it is, without any proxy."""
        url, within_s = f"http://{transport.join(*at)}", _ASK_WITHIN_S
        client = RestClient(url, within_s, self._clock, connect=lambda *_: socket.create_connection(at, within_s))
        try:
            return _OUR_SERVER in client.get("/")
        except RestError:  # it is somebody, but none of ours
            return False
        finally:
            client.close()
