import os
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from app.gallery.errors import InvalidInput
from app.gallery.policy import FixedDistance, WantedRates
from app.settings import Settings, unknown_settings
from model.quality import QualityLimits

# Every setting: what stands in the environment, and what is read.
VALUES: dict[str, tuple[str, object]] = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("9000", 9000),
    "data_dir": ("/srv/faces", Path("/srv/faces")),
    "database_url": ("postgresql://db/faces", "postgresql://db/faces"),
    "database_timeout": ("2.5", 2.5),
    "authentication": ("keys", "keys"),
    "key_pepper": ("p" * 32, SecretStr("p" * 32)),
    "audit_days": ("365", 365.0),
    "rate_limit": ("2.5", 2.5),
    "rate_burst": ("7", 7.0),
    "cors_origins": ("https://desk.example.org", "https://desk.example.org"),
    "docs": ("false", False),
    "tls_certificate": ("chain.pem", Path("chain.pem")),
    "tls_key": ("key.pem", Path("key.pem")),
    "trusted_proxies": ("10.0.0.0/8", "10.0.0.0/8"),
    "master_key": ("c2VjcmV0", SecretStr("c2VjcmV0")),
    "master_key_file": ("/run/secrets/master", Path("/run/secrets/master")),
    "vault_url": ("postgresql://db/vault", "postgresql://db/vault"),
    "runtime_dir": ("/run/faces", Path("/run/faces")),
    "sweep_interval": ("60", 60.0),
    "weights_dir": ("/srv/weights", Path("/srv/weights")),
    "detector": ("other", "other"),
    "extractor": ("mine", "mine"),
    "runtime": ("torch", "torch"),
    "threads": ("3", 3),
    "index": ("exact", "exact"),
    "index_half": ("true", True),
    "index_dir": ("/srv/index", Path("/srv/index")),
    "snapshot_interval": ("60", 60.0),
    "milvus_uri": ("http://milvus:19530/faces", "http://milvus:19530/faces"),
    "milvus_token": ("root:secret", SecretStr("root:secret")),
    "matching_rule": ("mean", "mean"),
    "threshold_policy": ("0.9", FixedDistance(0.9)),
    "max_image_bytes": ("1000", 1000),
    "max_image_pixels": ("2000", 2000),
    "max_request_bytes": ("3000", 3000),
    "max_images": ("4", 4),
    "max_upload_bytes": ("5000", 5000),
    "body_timeout": ("3", 3.0),
    "min_body_rate": ("100", 100),
    "request_timeout": ("4", 4.0),
    "header_timeout": ("2", 2.0),
    "max_header_bytes": ("2048", 2048),
    "max_connections": ("17", 17),
    "min_detection_score": ("0.5", 0.5),
    "min_face_size": ("24", 24.0),
    "min_sharpness": ("5", 5.0),
    "max_yaw": ("10", 10.0),
    "max_pitch": ("20", 20.0),
    "max_roll": ("30", 30.0),
    "processes": ("3", 3),
    "keep_crops": ("true", True),
    "workers": ("7", 7),
    "queue_timeout": ("0", 0.0),
    "shutdown_timeout": ("8", 8),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("FACEGALLERY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_every_setting_has_a_row_here() -> None:
    assert set(VALUES) == set(Settings.model_fields)


@pytest.mark.parametrize("name", list(VALUES))
def test_a_setting_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    written, expected = VALUES[name]
    assert getattr(Settings(), name) != expected
    if name.startswith("tls_"):  # one is nothing without the other
        monkeypatch.setenv("FACEGALLERY_TLS_CERTIFICATE", "chain.pem")
        monkeypatch.setenv("FACEGALLERY_TLS_KEY", "key.pem")
    monkeypatch.setenv(f"FACEGALLERY_{name.upper()}", written)
    assert getattr(Settings(), name) == expected


@pytest.mark.parametrize("name", list(VALUES))
def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    default = Settings()
    monkeypatch.setenv(f"FACEGALLERY_{name.upper()}", "")
    assert Settings() == default


@pytest.mark.parametrize("name", list(VALUES))
def test_a_setting_says_what_it_is(name: str) -> None:
    assert Settings.model_fields[name].description


def test_a_policy_is_read_in_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().threshold_policy is None
    monkeypatch.setenv("FACEGALLERY_THRESHOLD_POLICY", "1.06")
    assert Settings().threshold_policy == FixedDistance(1.06)
    monkeypatch.setenv("FACEGALLERY_THRESHOLD_POLICY", '{"fpir": 0.02, "fmr": 0.001}')
    assert Settings().threshold_policy == WantedRates(fpir=0.02, fmr=0.001)


@pytest.mark.parametrize("text", ["loose", "3", "nan", '{"fpir": 2}', "{}"])
def test_a_policy_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FACEGALLERY_THRESHOLD_POLICY", text)
    with pytest.raises(ValidationError, match="threshold_policy"):
        Settings()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "65536"),
        ("port", "http"),
        ("database_timeout", "0"),
        ("runtime", "onnx"),
        ("index", "ivf"),
        ("threads", "-1"),
        ("max_image_bytes", "0"),
        ("max_images", "101"),
        ("min_detection_score", "1.1"),
        ("max_yaw", "181"),
        ("sweep_interval", "-1"),
        ("workers", "-1"),
        ("log_level", "loud"),
        ("authentication", "none"),
        ("rate_burst", "0"),
        ("cors_origins", "*"),
        ("cors_origins", "https://desk.example.org, https://*.example.org"),
        ("cors_origins", "desk.example.org"),
        ("tls_key", "key.pem"),
        ("max_header_bytes", "10"),
        ("audit_days", "36501"),
        ("database_timeout", "1e9"),
        ("request_timeout", "86401"),
        ("sweep_interval", "1e300"),
        ("snapshot_interval", "31536001"),
        ("shutdown_timeout", "86401"),
    ],
)
def test_a_value_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"FACEGALLERY_{name.upper()}", text)
    with pytest.raises(ValidationError, match=f"(?i){name}"):
        Settings()


NUMBERS = [name for name, field in Settings.model_fields.items() if field.annotation in {float, float | None}]


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e999"])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_endless_or_none(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"FACEGALLERY_{name.upper()}", text)
    with pytest.raises(ValidationError, match=name):
        Settings()


@pytest.mark.parametrize("name", sorted(set(VALUES) - {"tls_certificate", "tls_key"}))
def test_a_blank_value_is_refused_and_a_padded_one_is_trimmed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    written, expected = VALUES[name]
    monkeypatch.setenv(f"FACEGALLERY_{name.upper()}", f"  {written}\t")
    if not isinstance(expected, SecretStr):
        assert getattr(Settings(), name) == expected
    monkeypatch.setenv(f"FACEGALLERY_{name.upper()}", " ")
    with pytest.raises((ValidationError, InvalidInput)):
        Settings()


def test_a_secret_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEGALLERY_KEY_PEPPER", " pepper ")
    assert Settings().key_pepper == SecretStr(" pepper ")


def test_no_host_is_not_every_address() -> None:
    with pytest.raises(ValidationError, match="host"):
        Settings(host="", _env_file=None)


def test_a_file_is_read_and_the_environment_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("FACEGALLERY_PORT=9001\nFACEGALLERY_HOST=0.0.0.0\nOTHER=1\n")
    monkeypatch.setenv("FACEGALLERY_PORT", "9002")
    assert (Settings().host, Settings().port) == ("0.0.0.0", 9002)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("address", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite://"])
def test_a_database_in_memory_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="it names no file"):
        Settings(database_url=address)


def test_the_database_is_sqlite_in_the_data_folder_unless_named() -> None:
    assert Settings(data_dir=Path("/srv/faces")).sqlalchemy_url == "sqlite:////srv/faces/facegallery.db"
    assert Settings().sqlalchemy_url == "sqlite:///data/facegallery.db"
    assert Settings(database_url="postgresql://db/faces").sqlalchemy_url == "postgresql://db/faces"


def test_the_limits_of_quality_are_the_networks_own_unless_set() -> None:
    assert Settings().quality_limits == QualityLimits()
    chosen = Settings(
        min_detection_score=0.1, min_face_size=2, min_sharpness=3, max_yaw=4, max_pitch=5, max_roll=6
    ).quality_limits
    assert chosen == QualityLimits(min_score=0.1, min_face_size=2, min_sharpness=3, max_yaw=4, max_pitch=5, max_roll=6)


@pytest.mark.parametrize("name", ["database_url", "vault_url"])
@pytest.mark.parametrize("address", ["garbage", "postgresql://me:hidden@db:port/faces", "me:hidden@db"])
def test_an_address_that_is_none_is_refused_without_its_password(name: str, address: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(**{name: address}, _env_file=None)
    (flaw,) = refused.value.errors(include_input=False)
    assert (flaw["loc"], "is no SQLAlchemy address" in flaw["msg"], "hidden" in flaw["msg"]) == ((name,), True, False)


@pytest.mark.parametrize("proxies", ["*", "10.0.0.1/8", "proxy.example.org", "127.0.0.1, 10.0.0.0/33"])
def test_a_trusted_proxy_is_an_address_or_a_network(proxies: str) -> None:
    with pytest.raises(ValidationError, match="is no address or network of a proxy"):
        Settings(trusted_proxies=proxies, _env_file=None)


def test_what_looks_like_a_setting_and_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEGALLERY_THREADS", "1")
    monkeypatch.setenv("FACEGALLERY_FUZZ", "1")
    assert unknown_settings() == []
    monkeypatch.setenv("FACEGALLERY_PROCESS", "2")
    Path(".env").write_text("FACEGALLERY_HOSTS=::1\nOTHER=1\n")
    assert unknown_settings() == [
        "FACEGALLERY_HOSTS is no setting; the nearest is FACEGALLERY_HOST",
        "FACEGALLERY_PROCESS is no setting; the nearest is FACEGALLERY_PROCESSES",
    ]
    Path(".env").write_bytes(b"FACEGALLERY_HOST=caf\xe9\n")
    assert unknown_settings() == ["FACEGALLERY_PROCESS is no setting; the nearest is FACEGALLERY_PROCESSES"]
    with pytest.raises(InvalidInput, match=r"\.env cannot be read as text"):
        Settings()
