"""Who may see the pages: the sessions of those who know the password, and the limits for those who guess it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

IDLE_SECONDS = 12 * 3600.0
"""A session ends after this time without a key press or click."""
LONGEST_SECONDS = 7 * 86400.0
"""A session ends after this time, whether or not it is in use."""

FREE_GUESSES = 3
"""Number of wrong passwords in a row from one address that cost no wait."""
LONGEST_WAIT = 900.0
"""The wait doubles with each further wrong password, up to this many seconds."""
FORGET_SECONDS = 3600.0
"""Time after its last wait until the wrong passwords of an address are forgotten."""
BURST = 30
"""Number of wrong passwords from all addresses together that cost no wait."""
REFILL_SECONDS = 10.0
"""Time between further passwords from all addresses together."""
ADDRESSES = 10_000
"""Number of addresses that are remembered."""

logger = logging.getLogger(__name__)


class Sessions:
    """The sessions of one page. They are in memory, so that a restart with another password ends them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, _Session] = {}

    def start(self) -> str:
        """Start a session and return the token that proves it."""
        self._known = {name: session for name, session in self._known.items() if self._is_open(session)}
        token = secrets.token_urlsafe(32)
        self._known[_digest(token)] = _Session(self._clock(), self._clock())
        return token

    def is_open(self, token: str, *, active: bool) -> bool:
        """Return whether the session is open. `active`: the visitor just did something, so it is not idle."""
        session = self._known.get(_digest(token))
        if session is None or not self._is_open(session):
            return False
        if active:
            session.used = self._clock()
        return True

    def _is_open(self, session: _Session) -> bool:
        now = self._clock()
        return now - session.used < IDLE_SECONDS and now - session.started < LONGEST_SECONDS


@dataclass
class _Session:
    started: float
    used: float


class Login:
    """The password, and how fast it may be guessed."""

    def __init__(self, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._password = hashlib.sha256(password.encode()).digest()
        self._clock = clock
        self._guessers: dict[str, _Guesser] = {}
        self._left, self._refilled = float(BURST), clock()

    def check(self, given: str, address: str) -> float | None:
        """Return None if the password is right, and otherwise the seconds until the next one is looked at.

        A password that comes earlier is not compared with the right one at all.
        """
        now, place = self._clock(), _network(address)
        guesser = self._guesser(place)
        if (wait := self._wait(guesser, now)) > 0:
            return wait
        # Digests are of one length, and are compared in a time that does not depend on where they differ.
        if hmac.compare_digest(hashlib.sha256(given.encode(errors="replace")).digest(), self._password):
            guesser.wrong, guesser.trusted = 0, True
            return None
        guesser.wrong += 1
        self._left = max(self._left - 1, 0.0)
        more = guesser.wrong - FREE_GUESSES
        guesser.until = now + (min(2.0 ** min(more, 20), LONGEST_WAIT) if more > 0 else 0.0)
        wait = self._wait(guesser, now)
        logger.warning("wrong password from %s, %d in a row, next one in %.0f s", place, guesser.wrong, wait)
        return wait

    def _wait(self, guesser: _Guesser, now: float) -> float:
        """Return the seconds that this address still has to wait, for itself or because of all others."""
        self._left = min(float(BURST), self._left + (now - self._refilled) / REFILL_SECONDS)
        self._refilled = now
        overall = 0.0 if self._left >= 1 or guesser.trusted else (1 - self._left) * REFILL_SECONDS
        return max(guesser.until - now, overall, 0.0)

    def _guesser(self, place: str) -> _Guesser:
        now = self._clock()
        if len(self._guessers) >= ADDRESSES:
            recent = sorted(self._guessers.items(), key=lambda item: (item[1].trusted, item[1].until))[ADDRESSES // 2 :]
            self._guessers = dict(recent)
        guesser = self._guessers.setdefault(place, _Guesser())
        if now - guesser.until > FORGET_SECONDS:
            guesser.wrong = 0
        return guesser


@dataclass
class _Guesser:
    """An address: its wrong passwords in a row, until when it waits, and whether the right one ever came from it."""

    wrong: int = 0
    until: float = field(default=float("-inf"))
    trusted: bool = False


def _network(address: str) -> str:
    """Return the address, or the network of an IPv6 address, of which one machine has many."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]  # a proxy may pass on anything
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else found)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
