"""Who calls: the owner by the state folder's token, everybody else by a named token with scopes.

Of a named token only the sha256 is kept, in STATE/tokens.json. A browser holds a cookie instead, which names the token it was
made with and is signed with a key of the owner's, so it survives a restart and ends with its token.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs import codec
from jobs.errors import InputError, NotFound
from jobs.ledger.records import check_name
from orchestrator.host.atomic import clear_output_errors, write_text
from orchestrator.host.state_folder import StateFolder
from orchestrator.host.user import user_name

__all__ = ["OWNER", "SCOPES", "SESSION_SECONDS", "Principal", "TokenBook"]

SCOPES = ("read", "submit", "operate", "admin")
"""Each holds those before it: look; make jobs and steer one's own; steer everybody's and set shares; end the orchestrator."""
OWNER = "owner"
"""The name of the state folder's own token."""
SESSION_SECONDS = 30 * 24 * 3600
BYTES_OF_ENTROPY = 32


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Whoever is behind a call.

    Args:
        name: of the token. user: whose jobs they are. scope: the largest of `SCOPES` that it has.
        is_owner: the state folder's token, which proves the right to read the orchestrator's files: may name paths.
        max_jobs: that may be queued or running at once. max_running: of those, at work at once. max_bytes: of uploads that are
            kept. None: no bound.
    """

    name: str
    user: str
    scope: str = "read"
    is_owner: bool = False
    max_jobs: int | None = None
    max_bytes: int | None = None
    max_running: int | None = None

    def may(self, scope: str) -> bool:
        """Whether its scope holds that one."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A line of the book; see `Principal`. sha256: of the token, hex. created_at: seconds since 1970."""

    name: str
    user: str
    scope: str
    sha256: str
    created_at: float
    max_jobs: int | None = None
    max_bytes: int | None = None
    max_running: int | None = None

    def __post_init__(self) -> None:
        check_name("token's name", self.name)
        check_name("user", self.user)
        if self.scope not in SCOPES:
            hint = codec.near_matches(self.scope, SCOPES)
            raise InputError(f"There is no scope {self.scope!r}{hint}; choose one of {', '.join(SCOPES)}.")
        if self.name == OWNER:
            raise InputError(f"The name {OWNER!r} is the state folder's own token's; choose another.")
        bounds = (("--max-jobs", self.max_jobs), ("--max-bytes", self.max_bytes), ("--max-running", self.max_running))
        for what, number in bounds:
            if number is not None and not 0 < number < 2**63:
                raise InputError(f"{what} is {number}; give a whole number above 0.")


@dataclass
class TokenBook:
    """The tokens of one state folder. Every look sees what another process has written since."""

    folder: StateFolder
    _seen: tuple[int, int] | None = None
    _entries: tuple[_Entry, ...] = field(default=())

    def who(self, token: str) -> Principal | None:
        """Whose token that is, or None."""
        given = token.encode("utf-8", "replace")
        if secrets.compare_digest(given, self.folder.token().encode()):
            return self._owner()
        digest = hashlib.sha256(given).hexdigest()
        found = [entry for entry in self._read() if secrets.compare_digest(entry.sha256, digest)]
        return _principal(found[0]) if found else None

    def session(self, who: Principal) -> str:
        """A cookie's value for it, good for thirty days or until the token ends."""
        until = int(time.time()) + SESSION_SECONDS
        return f"{until}.{who.name.encode().hex()}.{self._signature(who.name, until)}"

    def of_session(self, cookie: str) -> Principal | None:
        """Whose cookie that is, or None."""
        until, _, rest = cookie.partition(".")
        name_hex, _, signature = rest.partition(".")
        try:
            name = bytes.fromhex(name_hex).decode()
            is_over = len(until) > 12 or int(until) < time.time()
        except ValueError:
            return None
        expected = self._signature(name, int(until))
        if is_over or not expected or not secrets.compare_digest(signature.encode("utf-8", "replace"), expected.encode()):
            return None
        return self._owner() if name == OWNER else _principal(self._named(name))

    def _signature(self, name: str, until: int) -> str:
        """Empty where there is no such token."""
        digest = OWNER if name == OWNER else next((entry.sha256 for entry in self._read() if entry.name == name), "")
        text = f"session {until} {name} {digest}"
        return hmac.new(self.folder.token().encode(), text.encode(), "sha256").hexdigest() if digest else ""

    def max_running(self) -> dict[str, int]:
        """User -> jobs of theirs that may be at work at once: the least that a token of theirs says."""
        with contextlib.suppress(InputError):  # who calls is told; the queue goes on with what was read last
            self._read()
        found: dict[str, int] = {}
        for entry in self._entries:
            if entry.max_running is not None:
                found[entry.user] = min(entry.max_running, found.get(entry.user, entry.max_running))
        return found

    def all(self) -> list[dict[str, Any]]:
        """Every named token without its hash."""
        return [{key: value for key, value in asdict(entry).items() if key != "sha256"} for entry in self._read()]

    def create(self, name: str, *, scope: str, user: str | None = None, **bounds: int | None) -> str:
        """A new token; it is told this once. Raises InputError for a name that is taken, or what is not allowed."""
        token = secrets.token_urlsafe(BYTES_OF_ENTROPY)
        digest = hashlib.sha256(token.encode()).hexdigest()
        entry = _Entry(name=name, user=user or name, scope=scope, sha256=digest, created_at=time.time(), **bounds)
        with self._changing() as entries:
            if any(other.name == name for other in entries):
                raise InputError(f"There is a token {name!r} already; revoke it first, or choose another name.")
            self._write([*entries, entry])
        return token

    def revoke(self, name: str) -> None:
        """From the next call on it lets nobody in. Raises NotFound."""
        with self._changing() as entries:
            if not any(entry.name == name for entry in entries):
                hint = codec.near_matches(name, [entry.name for entry in entries])
                raise NotFound(f"There is no token {name!r}{hint}; 'dreamkiln token list' shows them.")
            self._write([entry for entry in entries if entry.name != name])

    def _owner(self) -> Principal:
        return Principal(name=OWNER, user=user_name(), scope=SCOPES[-1], is_owner=True)

    def _named(self, name: str) -> _Entry:
        return next(entry for entry in self._read() if entry.name == name)

    @property
    def _path(self) -> Any:
        return self.folder.path / "tokens.json"

    def _read(self) -> tuple[_Entry, ...]:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            self._seen, self._entries = None, ()
            return ()
        seen = (found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            try:
                plain = json.loads(self._path.read_text(encoding="utf-8"))["tokens"]
                entries = tuple(codec.from_plain(_Entry, entry, path="token") for entry in plain)
            except (ValueError, LookupError, TypeError) as error:
                raise InputError(f"The tokens in {self._path} cannot be read ({error}); mend the file or remove it.") from error
            self._entries, self._seen = entries, seen
        return self._entries

    @contextmanager
    def _changing(self) -> Iterator[tuple[_Entry, ...]]:
        """The entries while no other process changes them."""
        with clear_output_errors(self._path, option="--state"):
            StateFolder.touch_private(lock := self.folder.path / "tokens.lock")
            with lock.open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                self._seen = None
                yield self._read()

    def _write(self, entries: Sequence[_Entry]) -> None:
        write_text(self._path, json.dumps({"tokens": [asdict(entry) for entry in entries]}, indent=2) + "\n")
        self._path.chmod(0o600)


def _principal(entry: _Entry) -> Principal:
    return Principal(**{name: value for name, value in asdict(entry).items() if name not in ("sha256", "created_at")})
