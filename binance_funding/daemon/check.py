"""--check finds out whether this host gets Binance's funding rates, and if not, why. It prints a line for each step.

It uses the daemon's own parts, on connections of its own. It does not disturb a running daemon, and it keeps a pause
that Binance asked that daemon for. It costs one connection to each address of the stream, until the first mark prices
have come, and a REST weight of 11 of the 2400 that an IP has in a minute.
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
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests

from ..clock import Clock, Deadline
from ..program import Threads
from ..settings import Settings, sources, warnings
from ..state_file import EMPTY, UnusableState, is_heartbeat_late, read, why_not, writer_pid, written_age_s
from .market.exchange_clock import ExchangeClock
from .market.thresholds import LARGEST_WALL_OFFSET_S, current_s
from .output.restore import pause_s
from .source import rates
from .source.connection import Connection
from .source.faults import Cause, Kind
from .source.libraries import check_certificates
from .source.rest_client import RestClient, RestError
from .source.rest_poller import PREMIUM_INDEX, TIME

# --check ends within 20 s. The start and the end of the program take part of this time.
_LIMIT_S, _CLOSE_LIMIT_S, _STEP_S = 17.0, 1.0, 0.1
# Each update of the market comes in two messages, so --check waits this long for the second one.
_COLLECT_S = 1.0
# The disk must have room for the state file. This is more than today's file needs.
_ROOM_BYTES = 1 << 20
_OUR_SERVER, _SERVER_LIMIT_S, _SERVER_BYTES = b'"name":"binance-funding"', 2.0, 4096
_STEP_OF_KIND = {Kind.DNS: "DNS", Kind.PROXY: "proxy", Kind.TCP: "TCP", Kind.TLS: "TLS"}
_STREAM, _REST = "BINANCE_WS_URLS", "BINANCE_REST_URL"

# Each step that can fail, in the order of the lines, and the advice for it.
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


class _Result(NamedTuple):
    """The result of one step, which is one line of the output."""

    step: str
    text: str
    advice: str = ""
    """What to do if the step failed, "" if it succeeded."""


def _result(step: str, text: str, *, is_failed: bool) -> _Result:
    return _Result(step, text, _ADVICE[step] if is_failed else "")


def check_host(settings: Settings) -> int:
    """Check this host and print the lines; return 0, or 1 if a step failed. Blocks for 20 s at most.

    Raises SettingsError, before anything is tried.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return _HostCheck(settings).run()
    except BrokenPipeError:  # The reader of the lines has left. Flushing the rest at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Endpoint:
    """One address of Binance, and the steps that succeeded on the way to it. A thread of its own writes it."""

    def __init__(self, url: str, setting: str, own_steps: tuple[str, ...], pause_left_s: float) -> None:
        self.url = url
        self.setting = setting
        self.own_steps = own_steps
        """The steps of the check that follow TLS."""
        self.is_paused = pause_left_s > 0
        self.source: Connection | RestClient | None = None
        """The part of the daemon that is used for the check; None before it begins."""
        self.successes: dict[str, str] = {}
        """The texts of its own steps that succeeded."""
        text = f"no answer within {_LIMIT_S:.0f} s"
        if self.is_paused:
            text = f"not asked, since Binance asked for a pause; {pause_left_s:.0f} s of it are left"
        self.cause = Cause(Kind.SILENT, text)
        """Why the step after the successes fails."""
        self._parts = parts = urlsplit(url)
        is_retired = parts.path == "/stream" or parts.path.startswith("/ws")
        self.successor = parts._replace(path=f"/market{parts.path}").geturl() if is_retired else ""
        """The address that replaced this one, if this one is retired. Source: Binance's change log of 2026-03-06."""

    def results(self) -> Iterator[_Result]:
        """Yield the results of all steps up to the first that failed or hangs."""
        lookup, failed, target = self.source.lookup if self.source else None, self._failed_step(), self._parts.netloc
        host, variable = self._parts.hostname or "", ""
        if lookup is not None:
            is_secure = self._parts.scheme in ("wss", "https")
            texts = {
                "DNS": f"{lookup.host} is {', '.join(lookup.addresses)}",
                "proxy": f"{lookup.variable or 'none'} is used for {host}",
                "TCP": f"{target} accepts connections",
                "TLS": f"{target} {'has a certificate that is trusted' if is_secure else 'is not asked for TLS'}",
            }
            texts |= self.successes
            yield from (_Result(*text) for text in itertools.takewhile(lambda text: text[0] != failed, texts.items()))
            host, variable = lookup.host, lookup.variable
        if failed:
            subject = self.url if failed in self.own_steps else target
            text = self.cause.detail if self.cause.kind in _STEP_OF_KIND else str(self.cause)
            pause = f", and asks for a pause of {self.cause.wait_s:.0f} s" if self.cause.wait_s else ""
            advice = _ADVICE[failed].format(setting=self.setting, host=host, variable=variable or "the proxy variable")
            yield _Result(failed, f"{subject}: {text}{pause}", advice)

    def _failed_step(self) -> str:
        """Name the step that failed or hangs, "" if all succeeded."""
        undone = next((step for step in self.own_steps if step not in self.successes), "")
        if not undone or self.successes or self.is_paused:
            return undone
        lookup = self.source.lookup if self.source else None
        return "DNS" if lookup and lookup.ended_s is None else _STEP_OF_KIND.get(self.cause.kind, undone)


class _HostCheck:
    """One check of this host. For the main thread; the methods that begin with `_try` have threads of their own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads = Threads()
        self._clock = Clock()
        self._exchange_clock = ExchangeClock(self._clock)
        self._port = _result("HTTP port", "the name in API_HOST is not resolved", is_failed=True)

    def run(self) -> int:
        """Take every step and print the lines in their order; return the exit status. Raises SettingsError."""
        deadline, settings = Deadline(_LIMIT_S), self._settings
        check_certificates()
        given = [f"{name}={text} ({place})" for name, (place, text) in sources().items()]
        at_defaults = "all others at their defaults" if given else "all at their defaults"
        status, file_now_s, state_file = self._check_state_file()
        first = [_Result("settings", ", ".join([*given, at_defaults, *warnings(settings)])), state_file]
        _print(first)
        stream_pause_s, rest_pause_s = pause_s(status, file_now_s), pause_s(status["rest"], file_now_s)
        urls = settings.binance_ws_urls
        streams = [_Endpoint(url, _STREAM, ("handshake", "mark prices"), stream_pause_s) for url in urls]
        rest = _Endpoint(settings.binance_rest_url, _REST, ("REST",), rest_pause_s)
        for endpoint in (*streams, rest):
            if not endpoint.is_paused:
                work = self._try_rest if endpoint is rest else self._try_stream
                self._threads.start(endpoint.setting, functools.partial(work, endpoint))
        self._threads.start("port", self._try_port)
        self._threads.join(deadline.remaining_s())
        results = [*_of_streams(streams), *self._lag(streams), *rest.results(), *self._wall_clock(rest), self._port]
        order = list(_ADVICE)
        _print(sorted(dict.fromkeys(results), key=lambda result: order.index(result.step)))
        self._threads.join(_CLOSE_LIMIT_S)  # Meanwhile the connections send their close frames.
        return self._threads.exit_status() or int(any(result.advice for result in [*first, *results]))

    def _check_state_file(self) -> tuple[dict[str, Any], float, _Result]:
        """Return `connection_status` of the file, the present by the clock of the file, and the result of the step."""
        path, is_failed = os.path.realpath(self._settings.state_file), False
        try:
            state, since = read(path), ""
        except UnusableState as error:
            state, since = EMPTY, str(error)
        age_s = written_age_s(state, self._clock.now(), self._clock.boot_id)
        try:
            if why := why_not(path):
                raise OSError(why)
            pid = writer_pid(path)
            text = f"{path} was written {age_s:.1f} s ago by the running daemon, pid {pid}"
            if pid is None:
                with tempfile.TemporaryFile(dir=os.path.dirname(path)) as file:
                    file.write(bytes(_ROOM_BYTES))
                text = f"{path} can be written, and no daemon writes it now"
            elif is_heartbeat_late(age_s, self._settings.heartbeat_seconds):
                since, is_failed = since or f"written {age_s:.0f} s ago", True
                text = f"the daemon with pid {pid} holds {path}, but no longer writes it ({since})"
        except OSError as error:
            text, is_failed = f"{path} cannot be written: {_words(error)}", True
        result = _result("state file", text, is_failed=is_failed)
        return state["connection_status"], state["updated_at"] + age_s, result

    def _lag(self, streams: list[_Endpoint]) -> Iterator[_Result]:
        sources = [endpoint.source for endpoint in streams if "mark prices" in endpoint.successes]
        lags_s = [source.lag_s() or 0.0 for source in sources if isinstance(source, Connection)]
        if lags_s and self._exchange_clock.offset_s is not None:
            text = f"mark prices are {min(lags_s):.1f} s old by Binance's clock when they come"
            yield _result("lag", text, is_failed=min(lags_s) > current_s(self._settings))

    def _wall_clock(self, rest: _Endpoint) -> Iterator[_Result]:
        offset_s = self._exchange_clock.wall_offset_s()
        if offset_s is not None:
            text = f"this host's clock is {abs(offset_s):.2f} s {'behind' if offset_s > 0 else 'ahead of'} Binance's"
            yield _result("clock", text, is_failed=abs(offset_s) > LARGEST_WALL_OFFSET_S)
        elif rest.successes:
            text = "the time that Binance names came too late, or agrees with nothing else"
            yield _result("clock", text, is_failed=True)

    def _try_stream(self, endpoint: _Endpoint) -> None:
        changed, silence_s, messages = threading.Event(), current_s(self._settings), 0
        symbols: set[str] = set()

        def take(payload: bytes) -> int:
            nonlocal messages
            messages += 1
            try:
                decoded = rates.decode_stream(payload, self._clock.steady_s())
            except rates.MalformedMessage:
                return 0
            symbols.update(rate.symbol for rate in decoded.rates)
            return decoded.median_event_time_ms

        clocks = self._clock, self._exchange_clock
        connection = Connection(self._settings, *clocks, 1, endpoint.url, take, changed.set)
        endpoint.source = connection
        self._threads.start("connection", connection.run)
        while not changed.wait(_STEP_S):
            if connection.opened_s is not None and self._clock.steady_s() > connection.opened_s + silence_s:
                break
        if connection.opened_s is not None:
            after_s = connection.opened_s - connection.started_s
            endpoint.successes["handshake"] = f"{endpoint.url} opened after {after_s:.2f} s"
            came = "only messages without a mark price came" if messages else f"nothing came for {silence_s:g} s"
            use = f"; this address was retired on 2026-04-23: use {endpoint.successor}" if endpoint.successor else ""
            endpoint.cause = Cause(Kind.SILENT, came + use)
        if connection.first_data_s is not None:
            changed.clear()
            changed.wait(_COLLECT_S)
            first_s = connection.first_data_s - connection.started_s
            text = f"{len(symbols)} symbols, the first after {first_s:.2f} s, from {endpoint.url}"
            endpoint.successes["mark prices"] = text
        elif connection.ending:
            endpoint.cause = connection.ending
        connection.close()

    def _try_rest(self, endpoint: _Endpoint) -> None:
        timeout_s = min(self._settings.rest_timeout_seconds, _LIMIT_S / 2)
        client = endpoint.source = RestClient(endpoint.url, timeout_s, self._clock)
        try:
            body, received_s = client.get(PREMIUM_INDEX), self._clock.steady_s()
            decoded = rates.decode_premium_index(body, received_s)
            self._exchange_clock.judge(decoded.median_event_time_ms, received_s)
            asked_s = self._clock.steady_s()
            server_time_s = rates.decode_server_time(client.get(TIME, timeout_s))
            self._exchange_clock.note_answer(server_time_s, asked_s, self._clock.steady_s())
            used = f"weight used by this IP in this minute: {client.used_weight or 'unknown'} of 2400"
            endpoint.successes["REST"] = f"{len(decoded.rates)} symbols from {endpoint.url}; {used}"
        except RestError as error:
            endpoint.cause = error.cause
        except rates.MalformedMessage as fault:
            endpoint.cause = Cause(Kind.MALFORMED, str(fault))
        client.close()

    def _try_port(self) -> None:
        host, port = self._settings.api_host, self._settings.api_port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        text, is_failed = "is free", False
        try:
            family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                # A socket that is bound without listening does not prevent the server from starting at this moment.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(place)
        except OSError as error:
            is_failed = error.errno != errno.EADDRINUSE or not _is_our_server(address)
            text = f"cannot be used: {_words(error)}" if is_failed else "is answered by our own server already"
        self._port = _result("HTTP port", f"{address} {text}", is_failed=is_failed)


def _of_streams(streams: list[_Endpoint]) -> Iterator[_Result]:
    """Yield the results of all addresses. A retired address is no fault if another one works."""
    has_prices = any("mark prices" in endpoint.successes for endpoint in streams)
    for endpoint in streams:
        for step, text, advice in endpoint.results():
            is_excused = advice and has_prices and endpoint.successor
            yield _Result(step, f"{text}; another one does") if is_excused else _Result(step, text, advice)


def _print(results: list[_Result]) -> None:
    """Print a line for each result. Text from outside is made printable."""
    for step, text, advice in results:
        line = f"FAIL {step}: {text}; {advice}" if advice else f"ok   {step}: {text}"
        print("".join(c if " " <= c <= "~" else "?" for c in line), flush=True)


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _is_our_server(address: str) -> bool:
    """Ask the program that listens on the port of the server what it is. No proxy is used."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            with session.get(f"http://{address}/", timeout=_SERVER_LIMIT_S, stream=True) as response:
                return _OUR_SERVER in next(response.iter_content(_SERVER_BYTES), b"")
        except requests.RequestException:  # another program
            return False
