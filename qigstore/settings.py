"""Where a setting comes from: arguments, then `QIGSTORE_*`, then `config.toml`, then defaults.

The file is `$QIGSTORE_CONFIG` or `<user config folder>/qigstore/config.toml`. Secrets are masked in
`repr`, messages and logs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from qigstore.errors import ConfigurationError
from qigstore.records import Location, location

__all__ = ["Settings", "load_settings"]


class Settings(BaseSettings):
    """Everything that can be set, with its default and unit (units last in each name)."""

    model_config = SettingsConfigDict(
        env_prefix="QIGSTORE_", env_parse_none_str="none", extra="forbid", frozen=True
    )

    dsn: SecretStr | None = Field(
        default=None, description="PostgreSQL DSN or libpq keywords; unset: the embedded server"
    )
    home: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("qigstore"),
        description="data folder: embedded server, spools, checkpoints",
    )
    mode: Literal["online", "offline", "off"] = Field(
        default="online",
        description="offline: no database is asked, rows wait in the spool for a later process; "
        "off: every call of a run is accepted and does nothing",
    )
    pg_bin: Path | None = Field(
        default=None, description="folder of PostgreSQL server binaries for the embedded server"
    )
    prepare_threshold: int | None = Field(
        default=5, ge=0, description="psycopg prepared statements; none behind a pooler"
    )
    connect_timeout_s: int = Field(default=5, ge=1, le=120)
    statement_timeout_s: float = Field(default=60.0, gt=0)
    pool_size: int = Field(default=4, ge=1, le=64)
    checkpoints: Path | str | None = Field(
        default=None,
        description="folder of checkpoints, or a URL that fsspec knows (s3://bucket/name, whose "
        "credentials come from where its package looks for them); unset: <home>/checkpoints",
    )
    spool_bytes_max: int = Field(default=1 << 30, ge=1 << 20)
    segment_bytes: int = Field(default=4 << 20, ge=1 << 16)
    flush_interval_s: float = Field(default=0.1, gt=0, le=60)
    batch_rows_max: int = Field(default=50_000, ge=1)
    close_timeout_s: float = Field(default=30.0, ge=0)
    abort_deadline_s: float = Field(default=20.0, gt=0)
    heartbeat_interval_s: float = Field(default=5.0, gt=0)
    heartbeat_limit_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    notify_command: str | None = Field(
        default=None, description="command told of events: JSON on stdin; no shell"
    )
    notify_url: SecretStr | None = Field(
        default=None, description="webhook that events are posted to, as JSON"
    )
    notify_severity: Literal["info", "warning", "critical"] = Field(default="critical")
    notify_timeout_s: float = Field(default=10.0, gt=0, le=300)
    rules: Path | None = Field(
        default=None, description="TOML file of rules for runs that declare none of their own"
    )
    settle_steps: int = Field(
        default=50, ge=0, description="a checkpoint is healthy when no critical event follows in it"
    )
    phi_floor: float | None = Field(
        default=None, description="least Φ of a healthy checkpoint; unset: any finite Φ"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _config_file())

    @field_validator("checkpoints")
    @classmethod
    def _located(cls, value: Path | str | None) -> Location | None:
        return None if value is None else location(value)

    @property
    def checkpoint_root(self) -> Location:
        """Folder of checkpoints, or their URL."""
        return location(self.checkpoints or self.home / "checkpoints")

    @property
    def spool_root(self) -> Path:
        """Folder of spools: below it a folder a store, below that a folder a writer.

        What was recorded with no database in reach lies in `offline` instead.
        """
        return self.home / "spool"

    @property
    def event_root(self) -> Path:
        """Folder of emergency logs (JSON): below it a folder a store, or `offline`."""
        return self.home / "events"

    @property
    def server_root(self) -> Path:
        """Folder of the embedded server."""
        return self.home / "postgres"


def _config_file() -> Path:
    named = os.environ.get("QIGSTORE_CONFIG")
    return Path(named) if named else platformdirs.user_config_path("qigstore") / "config.toml"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; `None` among the overrides means "not given".

    Raises:
        ConfigurationError: a value that cannot be used, with its name and what was expected.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise ConfigurationError(f"settings cannot be used: {problems}") from None
