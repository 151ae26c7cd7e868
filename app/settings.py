"""The service's settings, from environment variables `FACEGALLERY_*` or a file `.env`."""

import ipaddress
import re
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from app.gallery.errors import InvalidInput
from app.gallery.matching import DEFAULT_RULE, MatchingRule
from app.gallery.policy import ThresholdPolicy, parse_policy
from app.gallery.sql.database import sqlite_address
from model.quality import QualityLimits

_QUALITY = QualityLimits()
_SECRETS = {"key_pepper", "master_key", "milvus_token"}
# What nobody means, and clocks and databases do not count to.
_DAY, _YEAR = 86_400, 31_536_000
_NO_SETTINGS = {"test_data", "fuzz", "fuzz_calls", "publish"}  # of the tests, the Makefile and compose.yaml
_DATABASES = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg", "postgres")


class Settings(BaseSettings):
    """Every setting with its unit; `FACEGALLERY_` and the upper-case name make the environment variable.

    An empty variable is as good as none; blanks around a value are none of it, but of a secret.
    """

    model_config = SettingsConfigDict(
        env_prefix="FACEGALLERY_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,
    )

    host: str = Field("127.0.0.1", min_length=1, description="address that `facegallery serve` listens on")
    port: int = Field(8000, ge=0, le=65535, description="port that `facegallery serve` listens on; 0 takes a free one")
    data_dir: Path = Field(
        Path("data"),
        description="folder of the database, the vault, the keys and the snapshots, made where it is missing",
    )
    database_url: str = Field("", description="SQLAlchemy address of the database; empty: SQLite in `data_dir`")
    database_timeout: float = Field(
        10.0,
        gt=0,
        le=_DAY,
        description="seconds to wait for a connection or a lock, and on PostgreSQL for an answer once the request is "
        "out of time",
    )

    authentication: Literal["auto", "keys", "open"] = Field(
        "auto",
        description="whether calls need a key: `keys`; `open`, on a loopback address only; `auto`, open on a loopback "
        "address without trusted proxies, keys elsewhere",
    )
    key_pepper: SecretStr | None = Field(
        None,
        description="secret of at least 32 characters that keys are hashed and the audit log is sealed with; empty: "
        "the file `key-pepper` in `data_dir`, made on the first start",
    )
    audit_days: float | None = Field(
        None, ge=1, le=36_500, description="days after which the service removes entries of the audit log; empty: never"
    )
    rate_limit: float | None = Field(
        None,
        ge=0,
        description="calls a second of one key and of one address; 0: no limit; empty: 50 where calls need a key, "
        "else no limit",
    )
    rate_burst: float = Field(100.0, ge=1, description="calls that may come at once before `rate_limit` holds")
    cors_origins: str = Field(
        "", description="origins whose pages may call, parted by commas, such as `https://desk.example.org`"
    )
    docs: bool = Field(True, description="whether there are `/docs` and `/openapi.json`; with keys both need one")
    tls_certificate: Path | None = Field(None, description="PEM file of the certificate chain; empty: no TLS")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key")
    trusted_proxies: str = Field(
        "",
        description="addresses or networks, parted by commas, whose `X-Forwarded-For` and `X-Forwarded-Proto` are "
        "believed",
    )

    master_key: SecretStr | None = Field(
        None,
        description="master key that wraps the keys of subjects, 32 bytes as base64; several with a blank between "
        "them: the first wraps, all open; empty: those of `master_key_file`",
    )
    master_key_file: Path | None = Field(
        None,
        description="file with a master key on each line; empty: `master.key` in `data_dir`, made on the first start",
    )
    vault_url: str = Field(
        "", description="SQLAlchemy address of the vault of wrapped keys; empty: SQLite `vault.db` in `data_dir`"
    )
    runtime_dir: Path | None = Field(
        None,
        description="folder in memory for opened snapshots and the counts of several processes, for the owner alone, "
        "apart from `data_dir` and `index_dir`; empty: one in `/dev/shm`",
    )
    sweep_interval: float = Field(
        3600.0,
        ge=0,
        le=30 * _DAY,  # else the next one would be taken for a leap of the clock
        description="seconds between two sweeps that erase subjects past their retention; 0: never",
    )

    weights_dir: Path | None = Field(None, description="folder of networks; empty: those that come with the package")
    detector: str = Field("yunet", description="name of the detector, a folder in the weights")
    extractor: str = Field("sface", description="name of the extractor, a folder in the weights")
    runtime: Literal["openvino", "torch"] = Field("openvino", description="what the networks run in")
    threads: int = Field(0, ge=0, description="processor threads for a network; 0: all")
    index: Literal["auto", "flat", "compressed", "exact", "pgvector", "milvus"] = Field(
        "auto", description="kind of index that a gallery is searched with"
    )
    index_half: bool = Field(
        False,
        description="keep the index's embeddings in half precision; decisions stay exact, on embeddings read from SQL",
    )
    index_dir: Path | None = Field(None, description="folder of snapshots of the indexes; empty: `index` in `data_dir`")
    snapshot_interval: float = Field(
        300.0, ge=0, le=_YEAR, description="seconds between snapshots of an index that has changed; 0 keeps none"
    )
    milvus_uri: str = Field("", description="address of Milvus, `http://HOST:19530/DATABASE`, for the index `milvus`")
    milvus_token: SecretStr | None = Field(None, description="`USER:PASSWORD` or API key of Milvus, if it asks for one")

    matching_rule: MatchingRule = Field(
        DEFAULT_RULE,
        description="distance of a subject with several templates: `best`, the nearest template; `mean`, the mean of "
        "the templates; `both`, the mean of both cosines",
    )
    threshold_policy: Annotated[ThresholdPolicy | None, NoDecode] = Field(
        None, description='policy of galleries without their own: a distance or {"fpir": 0.01, "fmr": 0.0001}'
    )

    max_image_bytes: int = Field(20 * 2**20, gt=0, description="bytes of one photo")
    max_image_pixels: int = Field(50_000_000, gt=0, description="pixels of one photo")
    max_request_bytes: int = Field(100 * 2**20, gt=0, description="bytes of one request with all its photos")
    max_images: int = Field(20, gt=0, le=100, description="photos in one enrolment")

    max_upload_bytes: int = Field(
        512 * 2**20, gt=0, description="bytes of all bodies that the process holds at the same time"
    )
    body_timeout: float = Field(
        10.0, gt=0, le=_DAY, description="seconds that a body may be late, at `min_body_rate` from its first byte on"
    )
    min_body_rate: int = Field(20_000, gt=0, description="bytes a second that a body must come with")
    request_timeout: float = Field(
        60.0, gt=0, le=_DAY, description="seconds for the work on one request, looked at before every photo"
    )
    header_timeout: float = Field(10.0, gt=0, le=_DAY, description="seconds for the headers of one request to arrive")
    max_header_bytes: int = Field(32 * 2**10, ge=1024, description="bytes of the address and headers of one request")
    max_connections: int = Field(1000, ge=1, description="connections at the same time; further ones get 503")

    min_detection_score: float = Field(_QUALITY.min_score, ge=0, le=1, description="detector's score to enroll a face")
    min_face_size: float = Field(
        _QUALITY.min_face_size, ge=0, description="pixels of a face's shorter side to enroll it"
    )
    min_sharpness: float = Field(_QUALITY.min_sharpness, ge=0, description="sharpness to enroll a face")
    max_yaw: float = Field(_QUALITY.max_yaw, ge=0, le=180, description="degrees a face to enroll may turn sideways")
    max_pitch: float = Field(
        _QUALITY.max_pitch, ge=0, le=180, description="degrees a face to enroll may look up or down"
    )
    max_roll: float = Field(_QUALITY.max_roll, ge=0, le=180, description="degrees a face to enroll may tilt")

    processes: int = Field(1, ge=1, le=64, description="processes that `facegallery serve` answers with")
    keep_crops: bool = Field(
        False, description="keep the aligned crop of every face that is enrolled, for a later change of the extractor"
    )

    workers: int = Field(0, ge=0, description="photos worked on at the same time; 0: one for each processor")
    queue_timeout: float = Field(
        10.0, ge=0, le=_DAY, description="seconds a photo waits for a worker before the answer is busy"
    )
    shutdown_timeout: int = Field(30, ge=0, le=_DAY, description="seconds that running requests get at shutdown")
    log_format: Literal["console", "json"] = Field("console", description="form of the log on standard error")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except UnicodeDecodeError as error:
            raise InvalidInput(".env cannot be read as text in UTF-8", part=".env") from error

    @field_validator("*", mode="before")
    @classmethod
    def _strip(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        if value and not value.strip():
            raise ValueError("it is blank; leave it out for its default")
        return value if info.field_name in _SECRETS else value.strip()

    @field_validator(
        "data_dir",
        "index_dir",
        "runtime_dir",
        "weights_dir",
        "master_key_file",
        "tls_key",
        "tls_certificate",
        mode="before",
    )
    @classmethod
    def _check_path(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("~"):  # a folder of that name would be made
            raise ValueError("only a shell knows what `~` stands for; write the whole path, or `./~` for such a folder")
        return value

    @field_validator("threshold_policy", mode="before")
    @classmethod
    def _parse_policy(cls, value: object) -> object:
        try:
            return parse_policy(value) if isinstance(value, str) else value
        except InvalidInput as error:
            raise ValueError(str(error)) from error

    @field_validator("database_url", "vault_url")
    @classmethod
    def _check_address(cls, value: str) -> str:
        if value:
            try:
                url = make_url(value)
            except (ArgumentError, ValueError):  # whose words may hold the password
                raise ValueError(
                    "it is no SQLAlchemy address, such as postgresql://USER:PASSWORD@HOST/DATABASE"
                ) from None
            if url.drivername not in _DATABASES:
                raise ValueError(
                    f"{url.drivername} is not supported; the databases are sqlite:///FILE and postgresql://…"
                )
            if url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}:
                raise ValueError("it names no file, and what lies in memory is lost; write sqlite:///FILE")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str) -> str:
        for origin in split_list(value):
            if not re.fullmatch(r"https?://[^/\s*?#@]+", origin):
                raise ValueError(
                    f"{origin!r} is no origin; write a scheme and a host, such as https://desk.example.org"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str) -> str:
        for proxy in split_list(value):
            try:
                ipaddress.ip_network(proxy)  # `*` is none: then every caller could choose the address it comes from
            except ValueError as error:
                raise ValueError(f"{proxy!r} is no address or network of a proxy ({error})") from error
        return value

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("FACEGALLERY_TLS_CERTIFICATE and FACEGALLERY_TLS_KEY: TLS needs both")
        return self

    @property
    def sqlalchemy_url(self) -> str:
        """The database's address: `database_url`, or SQLite in `data_dir`."""
        return self.database_url or sqlite_address(self.data_dir / "facegallery.db")

    @property
    def snapshots_dir(self) -> Path:
        """Folder of the indexes' snapshots."""
        return self.index_dir or self.data_dir / "index"

    @property
    def sqlalchemy_vault_url(self) -> str:
        """The vault's address: `vault_url`, or SQLite in `data_dir`."""
        return self.vault_url or sqlite_address(self.data_dir / "vault.db")

    @property
    def master_key_path(self) -> Path:
        """The master key's file: `master_key_file`, or one in `data_dir`."""
        return self.master_key_file or self.data_dir / "master.key"

    @property
    def quality_limits(self) -> QualityLimits:
        """What a face must show to be enrolled."""
        return QualityLimits(
            min_score=self.min_detection_score,
            min_face_size=self.min_face_size,
            min_sharpness=self.min_sharpness,
            max_yaw=self.max_yaw,
            max_pitch=self.max_pitch,
            max_roll=self.max_roll,
        )


def unknown_settings() -> list[str]:
    """Sentences about variables, of the environment and of `.env`, that look like settings and are none."""
    prefix = Settings.model_config["env_prefix"].lower()
    given = {*EnvSettingsSource(Settings).env_vars}
    with suppress(UnicodeDecodeError):  # which whoever reads the settings is told
        given |= {*DotEnvSettingsSource(Settings).env_vars}
    names = sorted(name.removeprefix(prefix) for name in given if name.startswith(prefix))
    return [
        f"{prefix.upper()}{name.upper()} is no setting; the nearest is {prefix.upper()}{nearest.upper()}"
        for name in names
        if name not in Settings.model_fields and name not in _NO_SETTINGS
        for nearest in get_close_matches(name, Settings.model_fields, n=1, cutoff=0)
    ]


def split_list(text: str) -> list[str]:
    """The parts of a setting that commas part."""
    return [part.strip() for part in text.split(",") if part.strip()]
