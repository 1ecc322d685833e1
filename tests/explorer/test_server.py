"""Ports, and a server in a process of its own."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from whence.errors import BadArgument
from whence.explorer.server import HOST, listen


def test_a_port_that_is_taken_is_refused_with_a_remedy(session):
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BadArgument, match=f"Port {port} is taken"):
            listen(session, port)


def test_without_a_port_there_are_two_servers_at_once_on_loopback_only(session):
    first, second = listen(session), listen(session)
    with first.listening, second.listening:
        assert first.port != second.port
        assert first.token != second.token
        assert first.listening.getsockname()[0] == "127.0.0.1"


def test_the_command_prints_an_address_that_answers_and_ends_when_it_is_interrupted(made: Path):
    command = [sys.executable, "-m", "whence", "explore", str(made), "--no-browser", "--port", "0"]
    with subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(server.stdout.readline())
            assert lines[-1], server.stderr.read()
        address = json.loads("".join(lines))["address"]
        with urllib.request.urlopen(address, timeout=30) as response:
            assert response.status == 200
            assert "whence" in response.read().decode()
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
