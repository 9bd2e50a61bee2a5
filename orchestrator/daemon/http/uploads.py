"""Files that clients send: kept under their own sha256, each user's apart, and called by the name they were sent with."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from starlette.exceptions import HTTPException

from jobs.errors import InputError, NotFound
from jobs.words.prompts import slug
from orchestrator.daemon.http.forms import SAFE
from orchestrator.daemon.http.tokens import Principal
from orchestrator.host.atomic import TEMPORARY_PREFIX, clear_output_errors
from orchestrator.run.given_mesh import WHOLE

__all__ = ["SUFFIXES", "UPLOAD_NAME", "Upload", "Uploads"]

SUFFIXES = (".csv", ".txt", ".jsonl", ".parquet", ".png", ".jpg", ".jpeg", ".webp", *WHOLE)
UPLOAD_NAME = "^[^/{safe}]*[^/.{safe}][.]({suffixes})$".format(
    safe=SAFE[3 : SAFE.rindex("]")],
    suffixes="|".join("".join(f"[{one}{one.upper()}]" if one.isalpha() else one for one in suffix[1:]) for suffix in SUFFIXES),
)
RESERVE_BYTES = 2 * 1024**3
"""Of the disk are left to the ledger and the running jobs."""
PART_BYTES = 1024**2
NAME_SUFFIX = ".name"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file that was sent. id: sha256 of its bytes."""

    id: str
    name: str
    num_bytes: int
    is_new: bool


class Uploads:
    """The uploads of a state folder.

    Args:
        root: STATE/uploads.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    async def take(self, who: Principal, name: str, parts: AsyncIterator[bytes]) -> Upload:
        """Write a body as it comes; after any error nothing is left.

        Raises:
            InputError: a name whose ending is not known. HTTPException: 413: more than the user may keep; 507: a full disk.
        """
        suffix = Path(name).suffix.lower()
        if len(name) > 300 or not re.fullmatch(UPLOAD_NAME, name):
            raise InputError(
                f"The name {name[:60]!r} is no plain one that ends in one of {', '.join(SUFFIXES)}; give one that is."
            )
        folder = self._folder(who.user)
        temporary = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        with clear_output_errors(folder, option="--state"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            left = self._room(who, folder)
            digest, num = hashlib.sha256(), 0
            try:
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    async for part in parts:
                        num += len(part)
                        if num > left:
                            raise HTTPException(413, f"{who.user} may keep {left:,} more bytes of uploads; delete some first.")
                        digest.update(part)
                        await asyncio.to_thread(_write, file, part)
                if not num:
                    raise InputError(f"The upload {name[:60]!r} is empty; send the file's bytes as the body.")
                return self._keep(temporary, folder / f"{digest.hexdigest()}{suffix}", name, num)
            finally:
                temporary.unlink(missing_ok=True)

    def find(self, who: Principal, id: str) -> Path:
        """The file of an upload of theirs. Raises NotFound."""
        for suffix in SUFFIXES:
            if (path := self._folder(who.user) / f"{id}{suffix}").is_file():
                return path
        raise NotFound(f"{who.user} has no upload {id}; send it to /v1/uploads first.")

    def delete(self, who: Principal, id: str) -> None:
        """Raises NotFound."""
        path = self.find(who, id)
        path.unlink()
        path.with_suffix(NAME_SUFFIX).unlink(missing_ok=True)

    @contextlib.contextmanager
    def called_by_name(self, who: Principal) -> Iterator[None]:
        """Errors inside name an upload of theirs as its user does, not by where it lies here."""
        try:
            yield
        except InputError as error:
            place = rf"(?:{re.escape(str(self._folder(who.user)))}/)?\b([0-9a-f]{{64}})\.\w+"
            sentence = re.sub(place, lambda found: self._name(self._folder(who.user) / found[0]), str(error))
            raise type(error)(sentence) from error

    def all(self, who: Principal) -> list[Upload]:
        """Theirs, by id."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._folder(who.user).iterdir()):
                if not path.name.startswith(TEMPORARY_PREFIX) and path.suffix != NAME_SUFFIX:
                    found.append(Upload(id=path.stem, name=self._name(path), num_bytes=path.stat().st_size, is_new=False))
        return found

    def _name(self, path: Path) -> str:
        """What it was called when it was sent last."""
        try:
            return path.with_suffix(NAME_SUFFIX).read_text("utf-8")
        except OSError:
            return path.name

    def _folder(self, user: str) -> Path:
        """Two users whose names look alike must not share one."""
        return self._root / f"{slug(user)}-{hashlib.sha256(user.encode()).hexdigest()[:12]}"

    def _room(self, who: Principal, folder: Path) -> int:
        free = max(0, shutil.disk_usage(folder).free - RESERVE_BYTES)
        if not free:
            raise HTTPException(507, "The orchestrator's disk is nearly full, so it takes no uploads now.")
        if who.max_bytes is None:
            return free
        return min(free, max(0, who.max_bytes - sum(upload.num_bytes for upload in self.all(who))))

    def _keep(self, temporary: Path, target: Path, name: str, num: int) -> Upload:
        is_new = not target.exists()
        target.with_suffix(NAME_SUFFIX).write_text(name, "utf-8")
        if is_new:
            os.replace(temporary, target)
        return Upload(id=target.stem, name=Path(name).name[:200], num_bytes=num, is_new=is_new)


def _write(file: BinaryIO, part: bytes) -> None:
    file.write(part)
