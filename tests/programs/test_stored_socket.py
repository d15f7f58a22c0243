"""The listening socket outlives the server's process: a service manager keeps it, played here by the tests."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.http_client import Client
from tests.support.programs import ROOT, free_port
from tests.support.waiting import PATIENCE_S

_TAKE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="listener")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the program that is named by its arguments, given a descriptor as man sd_listen_fds(3) has it."""


class Manager:
    """Keeps one socket for the server, as systemd does with FileDescriptorStoreMax=1."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._notified = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._notified.settimeout(PATIENCE_S)
        self._notified.bind(str(folder / "notify"))
        self._stack = stack
        self.kept: socket.socket | None = None

    @contextlib.contextmanager
    def server(self, port: int, host: str = "127.0.0.1") -> Iterator["subprocess.Popen[str]"]:
        """Start the server as the next process of its unit. It is ready when the block begins, killed when it ends."""
        environment = {"NOTIFY_SOCKET": str(self._folder / "notify"), "API_HOST": host, "API_PORT": str(port)}
        command, kept = [sys.executable, str(ROOT / "funding_api_server.py")], []
        if self.kept is not None:
            kept = [self.kept.fileno()]
            command = [sys.executable, "-c", _TAKE, str(kept[0]), *command]
        with subprocess.Popen(
            command,
            cwd=self._folder,
            env={**os.environ, **environment},
            pass_fds=kept,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                self._heed_until_ready()
                yield process
            finally:
                process.kill()

    def _heed_until_ready(self) -> None:
        state = ""
        while "READY=1" not in state:
            data, fds, _, _ = socket.recv_fds(self._notified, 4096, 1)
            state = data.decode()
            if state == "FDSTOREREMOVE=1\nFDNAME=listener" and self.kept is not None:
                self.kept.close()
                self.kept = None
            elif state == "FDSTORE=1\nFDNAME=listener":
                assert self.kept is None, "a socket too many"
                self.kept = self._stack.enter_context(socket.socket(fileno=fds[0]))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A service manager that keeps nothing yet."""
    with contextlib.ExitStack() as stack:
        yield Manager(tmp_path, stack)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_who_connects_between_two_processes_is_answered_by_the_second(manager: Manager, signum: signal.Signals) -> None:
    """However the first one ended."""
    port = free_port()
    with manager.server(port) as first:
        first.send_signal(signum)
        first.wait(PATIENCE_S)
    with Client(("127.0.0.1", port)) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with manager.server(port):
            assert client.reply().status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])
def test_the_same_socket_is_used_by_every_process(manager: Manager, host: str) -> None:
    """However its address is written, as long as the settings ask for it; systemd keeps no second one."""
    port = free_port()
    with manager.server(port, host):
        assert manager.kept is not None
        first = os.fstat(manager.kept.fileno()).st_ino
    for _ in range(2):
        with manager.server(port, host) as process:
            assert os.fstat(manager.kept.fileno()).st_ino == first
            assert f"socket:[{first}]" in {os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()}


def test_another_port_is_listened_on_from_the_next_start_and_the_one_before_is_free(manager: Manager) -> None:
    """It is free at once, even while the service manager has not closed its duplicate yet."""
    before, after = free_port(), free_port()
    with manager.server(before):
        assert manager.kept is not None
        duplicate = manager.kept.dup()
    with duplicate, manager.server(after), Client(("127.0.0.1", after)) as client:
        assert client.get().status == 200
        with pytest.raises(ConnectionRefusedError):
            Client(("127.0.0.1", before))
        socket.create_server(("127.0.0.1", before)).close()
    with manager.server(after), Client(("127.0.0.1", after)) as client:
        assert client.get().status == 200


def test_a_stored_socket_that_no_longer_listens_does_so_again(manager: Manager) -> None:
    """A process shuts it down when API_PORT was changed; that may be undone before another port was to be had."""
    port = free_port()
    with manager.server(port):
        assert manager.kept is not None
    manager.kept.shutdown(socket.SHUT_RDWR)
    with manager.server(port) as process:
        with Client(("127.0.0.1", port)) as client:
            assert client.get().status == 200
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    manager.kept.shutdown(socket.SHUT_RDWR)
    other = free_port()
    with manager.server(other), Client(("127.0.0.1", other)) as client:
        assert client.get().status == 200


def test_what_is_passed_and_does_not_listen_is_left_alone(manager: Manager) -> None:
    """Whoever starts the server may pass anything, be it a socket with the right address or no socket at all."""
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", port))
        manager.kept = datagrams.dup()
        with manager.server(port), Client(("127.0.0.1", port)) as client:
            assert client.get().status == 200


def test_another_host_is_listened_on_from_the_next_start(manager: Manager) -> None:
    """With the same port: neither socket is in the other one's way, so nothing has to be waited for."""
    port = free_port()
    for host in ("127.0.0.1", "0.0.0.0", "127.0.0.1"):
        with manager.server(port, host) as process:
            with Client(("127.0.0.1", port)) as client:
                assert client.get().status == 200
            assert manager.kept is not None
            assert manager.kept.getsockname() == (host, port)
            process.terminate()
            assert process.stderr is not None
            assert "cannot listen" not in process.stderr.read()


def test_what_was_passed_to_another_process_is_left_alone(manager: Manager) -> None:
    """A program started by the server's parent inherits the variables; LISTEN_PID says for whom they are."""
    port = free_port()
    environment = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1", "API_PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "funding_api_server.py")], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "listening" in process.stderr.readline()
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
