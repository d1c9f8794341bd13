from __future__ import annotations

import socket
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from farm import config
from farm.errors import UserError

ORDER = ("user file", "project file", "environment", "flag")


@pytest.fixture(autouse=True)
def folders(farm_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the user's own settings out."""
    user = tmp_path / "user"
    user.mkdir()
    monkeypatch.setattr(config.platformdirs, "user_config_path", lambda _name: user)


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    return tmp_path / "user" / "config.toml"


@pytest.fixture
def project_file() -> Path:
    return Path("specfarm.toml")


class TestDefaults:
    def test_depend_on_this_machine_alone(self, farm_home: Path) -> None:
        settings = config.load()

        assert settings.broker_url is None
        assert settings.models_folder is None
        assert make_url(settings.database_url).database == str(farm_home / "farm.db")
        assert settings.machine_name == socket.gethostname().split(".")[0]

    @pytest.mark.parametrize("name", ["with space", "100%41", "what?", "a#b"])
    def test_a_home_of_any_name_holds_the_database(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
    ) -> None:
        monkeypatch.setenv("FARM_HOME", str(tmp_path / name))

        database = make_url(config.load().database_url).database

        assert database == str(tmp_path / name / "farm.db")


class TestPrecedence:
    @pytest.mark.parametrize("winner", range(len(ORDER)), ids=ORDER)
    def test_the_nearest_word_wins(
        self, winner: int, user_file: Path, project_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flags: dict[str, str] = {}
        for place in range(winner + 1):
            url = f"redis://{place}"
            if place == 0:
                user_file.write_text(f'broker_url = "{url}"')
            elif place == 1:
                project_file.write_text(f'broker_url = "{url}"')
            elif place == 2:
                monkeypatch.setenv("FARM_BROKER_URL", url)
            else:
                flags["broker_url"] = url

        assert config.load(**flags).broker_url == f"redis://{winner}"

    def test_settings_of_several_places_add_up(
        self, user_file: Path, project_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user_file.write_text('models_folder = "/models"')
        project_file.write_text("job_timeout_s = 60")
        monkeypatch.setenv("FARM_MACHINE_NAME", "bench-1")

        settings = config.load(broker_url="redis://host")

        assert settings.models_folder == Path("/models")
        assert settings.job_timeout_s == 60.0
        assert settings.machine_name == "bench-1"
        assert settings.broker_url == "redis://host"

    def test_a_flag_that_was_not_given_does_not_count(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FARM_BROKER_URL", "redis://host")

        assert config.load(broker_url=None).broker_url == "redis://host"

    def test_an_empty_variable_does_not_count(
        self, project_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project_file.write_text('broker_url = "redis://host"')
        monkeypatch.setenv("FARM_BROKER_URL", "")

        assert config.load().broker_url == "redis://host"


class TestErrors:
    def refusal(self) -> str:
        with pytest.raises(UserError) as caught:
            config.load()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_an_unknown_key_is_named_with_its_file_and_the_known_ones(
        self, project_file: Path
    ) -> None:
        project_file.write_text('broker = "redis://host"')

        message = self.refusal()

        assert "specfarm.toml: unknown key 'broker'" in message
        assert "broker_url, database_url" in message

    @pytest.mark.parametrize(
        "content", [b"broker_url = ", b'broker_url = "\xff"'], ids=["not TOML", "not UTF-8"]
    )
    def test_a_file_that_can_not_be_read_is_named(self, user_file: Path, content: bytes) -> None:
        user_file.write_bytes(content)

        assert f"{user_file} can't be read" in self.refusal()

    def test_a_wrong_type_is_named_with_its_file(self, user_file: Path) -> None:
        user_file.write_text('job_timeout_s = "an hour"')

        message = self.refusal()

        assert str(user_file) in message
        assert "'job_timeout_s'" in message

    def test_a_wrong_type_is_named_with_its_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FARM_JOB_TIMEOUT_S", "an hour")

        message = self.refusal()

        assert "FARM_JOB_TIMEOUT_S" in message
        assert "'job_timeout_s'" in message

    @pytest.mark.parametrize("seconds", ["0", "-5", "nan"])
    def test_a_timeout_that_no_job_could_meet_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, seconds: str
    ) -> None:
        monkeypatch.setenv("FARM_JOB_TIMEOUT_S", seconds)

        assert "FARM_JOB_TIMEOUT_S" in self.refusal()
