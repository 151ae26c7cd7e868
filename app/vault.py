"""The vault that the settings name."""

import structlog
from sqlalchemy import Engine, inspect

from app.gallery.errors import MasterKeyMissing
from app.gallery.sealing.key_users import note_use
from app.gallery.sealing.resealing import check_vault, has_sealed_subjects, seal_at_first_start
from app.gallery.sealing.vault import Vault, VaultStateRow, open_vault
from app.gallery.sql.database import database_errors, open_engine
from app.gallery.tables import TemplateRow
from app.settings import Settings

_TOGETHER = "the vault must not lie in the gallery's database, whose backups would hold the keys"
_log = structlog.get_logger()


def vault_of(settings: Settings, *, expected: bool) -> Vault:
    """The vault of the settings' database.

    Args:
        settings: where it is and where its master key is.
        expected: whether the database has sealed rows, so that an empty vault must be the wrong one.

    Raises:
        MasterKeyMissing: no master key, the wrong one, or the wrong vault.
        DatabaseUnavailable, StorageUnwritable: as named.
    """
    if settings.sqlalchemy_vault_url == settings.sqlalchemy_url:
        raise MasterKeyMissing(_TOGETHER)
    engine = open_engine(settings.sqlalchemy_vault_url, timeout=settings.database_timeout)
    _keep_apart(engine)
    vault = open_vault(
        engine,
        master_key=settings.master_key.get_secret_value() if settings.master_key else None,
        master_key_file=settings.master_key_path,
        expected=expected,
    )
    note_use(vault)
    return vault


def _keep_apart(engine: Engine) -> None:
    """Make no vault in a database of galleries, whatever address leads there.

    One that is there since an earlier version, which looked at the addresses alone, stays in use.

    Raises:
        MasterKeyMissing: it would be one.
    """
    with database_errors(), engine.connect() as connection:
        tables = set(inspect(connection).get_table_names())
    if TemplateRow.__tablename__ not in tables:
        return
    if VaultStateRow.__tablename__ not in tables:
        engine.dispose()
        raise MasterKeyMissing(f"{_TOGETHER}; FACEGALLERY_VAULT_URL leads there")
    _log.error("vault.beside_templates", meaning=_TOGETHER, advice="move the tables data_key and vault_state")


def vault_beside(settings: Settings, engine: Engine) -> Vault:
    """The vault of the settings' database, held against it; rows from before encryption are sealed.

    Args:
        settings: where the vault is and where its master key is.
        engine: of the database.

    Raises:
        MasterKeyMissing, KeyUnavailable: no master key or vault, or the wrong one.
        DatabaseUnavailable, StorageUnwritable: as named.
    """
    vault = vault_of(settings, expected=has_sealed_subjects(engine))
    check_vault(engine, vault)
    seal_at_first_start(engine, vault)
    return vault
