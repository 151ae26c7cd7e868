"""On what terms a subject is kept: consent, expiry, and a gallery's rules for both."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from app.gallery.errors import ConsentRequired, InvalidInput


@dataclass(frozen=True, slots=True)
class Consent:
    """What a person has agreed to: for what, when, until when, and where the proof lies."""

    purpose: str
    granted_at: datetime
    reference: str | None = None
    expires_at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """The consent as stored."""
        return {
            "purpose": self.purpose,
            "granted_at": self.granted_at.astimezone(UTC).isoformat(),
            "reference": self.reference,
            "expires_at": None if self.expires_at is None else self.expires_at.astimezone(UTC).isoformat(),
        }


class Terms(TypedDict, total=False):
    """What a call sets; a name that is left out stays as it is, None takes it away."""

    consent: Consent | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class PrivacyRules:
    """A gallery's rules: whether it requires consent, and days after which a subject is erased; None: never."""

    require_consent: bool = False
    keep_days: int | None = None  # since the first enrolment
    unseen_days: int | None = None  # since the last identification, or the first enrolment

    def to_json(self) -> dict[str, Any]:
        """The rules as stored."""
        return {
            "require_consent": self.require_consent,
            "keep_days": self.keep_days,
            "unseen_days": self.unseen_days,
        }


class RuleChanges(TypedDict, total=False):
    """Rules that a call sets; a name that is left out stays as it is."""

    require_consent: bool
    keep_days: int | None
    unseen_days: int | None


NO_RULES = PrivacyRules()
MAX_DAYS = 36_500
"""The most days of a rule: a hundred years."""


def rules_from_json(stored: Mapping[str, Any] | None) -> PrivacyRules:
    """The rules of a gallery's row; a gallery without any has the default ones."""
    return PrivacyRules(**stored) if stored else NO_RULES


def consent_from_json(stored: Mapping[str, Any] | None) -> Consent | None:
    """The consent of a subject's row."""
    if not stored:
        return None
    return Consent(
        purpose=stored["purpose"],
        granted_at=datetime.fromisoformat(stored["granted_at"]),
        reference=stored["reference"],
        expires_at=None if stored["expires_at"] is None else datetime.fromisoformat(stored["expires_at"]),
    )


def check_consent(rules: PrivacyRules, terms: Terms, stored: Consent | None, moment: datetime) -> None:
    """Refuse a subject without a good consent where the rules ask for one.

    Raises:
        ConsentRequired: there is none, or it has expired.
    """
    consent = terms.get("consent", stored)  # an explicit None takes it away
    if not rules.require_consent:
        return
    if consent is None:
        raise ConsentRequired("this gallery takes nobody without a consent; send `consent`", part="consent")
    if consent.expires_at is not None and consent.expires_at <= moment:
        raise ConsentRequired("the consent has expired; send a new one as `consent`", part="consent")


def check_terms(terms: Terms, moment: datetime) -> Terms:
    """The terms, if they make sense now.

    Raises:
        InvalidInput: an expiry that has passed, a consent that was not given yet or that ends before it begins.
    """
    consent = terms.get("consent")
    if consent is not None:
        if consent.granted_at > moment + timedelta(days=1):  # clocks differ, but not by days
            raise InvalidInput("the consent was granted in the future", part="consent.granted_at")
        if consent.expires_at is not None and consent.expires_at <= max(consent.granted_at, moment):
            raise InvalidInput("the consent has expired", part="consent.expires_at")
    expires_at = terms.get("expires_at")
    if expires_at is not None and expires_at <= moment:
        raise InvalidInput("that moment has passed; erase the subject instead", part="expires_at")
    return terms


def ends_earlier(terms: Terms, *, expires_at: datetime | None, consent: Consent | None) -> bool:
    """Whether terms give a subject an earlier end than its own and its consent's are, none being the latest of all."""
    before = _end(expires_at, consent)
    after = _end(terms.get("expires_at", expires_at), terms.get("consent", consent))
    return after is not None and (before is None or after < before)


def _end(expires_at: datetime | None, consent: Consent | None) -> datetime | None:
    moments = (expires_at, consent.expires_at if consent else None)
    return min((moment for moment in moments if moment is not None), default=None)


def expiry(
    rules: PrivacyRules,
    *,
    created_at: datetime,
    seen_at: datetime | None,
    expires_at: datetime | None,
    consent: Consent | None,
) -> datetime | None:
    """The moment from which a subject is erased: the earliest of its own, its consent's and the gallery's."""
    moments = [expires_at, consent.expires_at if consent else None]
    if rules.keep_days is not None:
        moments.append(_after(created_at, rules.keep_days))
    if rules.unseen_days is not None:
        moments.append(_after(max(created_at, seen_at or created_at), rules.unseen_days))
    return min((moment for moment in moments if moment is not None), default=None)


def _after(moment: datetime, days: int) -> datetime:
    try:
        return moment + timedelta(days=days)
    except OverflowError:  # an archive may say that somebody was enrolled in the year 9999
        return datetime.max.replace(tzinfo=UTC)
