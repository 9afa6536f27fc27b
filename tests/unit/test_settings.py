"""Arguments win over the environment, the environment over the file; secrets stay secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from qigstore.errors import ConfigurationError
from qigstore.settings import load_settings


@pytest.fixture(autouse=True)
def config(home: Path) -> Path:
    return home / "config.toml"


def test_arguments_win_over_environment_over_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().settle_steps == 50
    config.write_text("settle_steps = 10\npool_size = 2\n")
    assert load_settings().settle_steps == 10
    monkeypatch.setenv("QIGSTORE_SETTLE_STEPS", "20")
    assert load_settings().settle_steps == 20
    assert load_settings(settle_steps=30).settle_steps == 30
    assert load_settings(settle_steps=None).settle_steps == 20
    assert load_settings().pool_size == 2


def test_a_pooler_is_named_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIGSTORE_PREPARE_THRESHOLD", "none")
    assert load_settings().prepare_threshold is None


@pytest.mark.parametrize("name", ["pool_size", "prepare_threshold", "flush_interval_s", "mode"])
def test_a_value_that_cannot_be_used_names_its_setting(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"QIGSTORE_{name.upper()}", "-7")
    with pytest.raises(ConfigurationError, match=name):
        load_settings()


def test_an_unknown_setting_is_refused(config: Path) -> None:
    config.write_text("spool_size = 1\n")
    with pytest.raises(ConfigurationError, match="spool_size"):
        load_settings()


def test_a_password_is_never_shown() -> None:
    settings = load_settings(dsn="postgresql://me:s3cret@host/db")
    assert "s3cret" not in repr(settings) + str(settings)
    with pytest.raises(ConfigurationError) as refused:
        load_settings(dsn="postgresql://me:s3cret@host/db", pool_size=-1)
    assert "s3cret" not in str(refused.value)


def test_folders_lie_below_home(home: Path) -> None:
    settings = load_settings(home=home / "data")
    assert settings.checkpoint_root == home / "data" / "checkpoints"
    assert load_settings(checkpoints=home / "c").checkpoint_root == home / "c"
