"""Keeping owners within the quotas that the policy grants them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from tdx.errors import NoSpace
from tdx.model import Owner, UploadId, UploadSpec
from tdx.policy.rules import Grant
from tdx.store.port import Partial, Store, Upload


@dataclass(slots=True)
class _Account:
    """What is known of one owner."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    at_most: int | None = None
    """No less than is used, whatever :attr:`compared` will be; None before the store was asked. It
    is asked again only where this figure does not fit, for it looks at every file."""
    compared: dict[UploadId, int] = field(default_factory=dict[UploadId, int])
    """Uploads that will likely turn out to be a file that is there, and their lengths: they do
    not count before their first byte."""
    growing: dict[UploadId, int] = field(default_factory=dict[UploadId, int])
    """Uploads without a length that bytes come for, and how many have: more than are written."""


class Quotas:
    """Methods block, but those that say otherwise, and raise NoSpace naming the rule, the quota
    and what is used of it. Several threads at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._accounts: dict[Owner, _Account] = {}
        self._lock = threading.Lock()

    def check(self, spec: UploadSpec, grant: Grant, replaced: Iterable[Partial]) -> None:
        """Whether an upload like ``spec`` may take the place of these."""
        if grant.quota is not None:
            account = self._account(spec.owner)
            less = sum(_counted(partial) for partial in replaced if partial.upload not in account.compared)
            with account.lock:
                self._fit(account, spec.owner, grant, grant.quota, _wanted(spec), less)

    def create(self, spec: UploadSpec, grant: Grant, *, compares: bool) -> Upload:
        """A new upload of the store. ``compares``: a file is there that it may be identical to. So
        that pushing again what is there works with a full quota too, such uploads are made
        without asking, up to a quota's worth of them at a time; see :meth:`admit`."""
        if grant.quota is None:
            with self._lock:
                self._accounts.pop(spec.owner, None)
            return self._store.create(spec)
        account, length = self._account(spec.owner), spec.length or 0
        with account.lock:
            compares = compares and sum(account.compared.copy().values()) + length <= grant.quota
            if compares:
                upload = self._store.create(spec)
                account.compared[upload.id] = length
                return upload
            used = self._fit(account, spec.owner, grant, grant.quota, _wanted(spec))
            upload = self._store.create(spec)
            account.at_most = used + length
            return upload

    def admit(self, upload: Upload, grant: Grant) -> None:
        """Whether an upload that was made without asking, or by an earlier process, may take bytes."""
        if grant.quota is not None:
            owner = upload.spec.owner
            account = self._account(owner)
            with account.lock:
                length = account.compared.pop(upload.id, None)
                account.at_most = None
                try:
                    self._fit(account, owner, grant, grant.quota, 0)
                except NoSpace:
                    account.at_most = None
                    if length is not None:
                        account.compared[upload.id] = length
                    raise

    def take(self, upload: Upload, grant: Grant, size: int) -> None:
        """``size`` bytes of an upload whose length is unknown have come; below 0: were there before."""
        if grant.quota is not None:
            account = self._account(upload.spec.owner)
            with account.lock:
                if upload.id not in account.growing:
                    account.growing[upload.id] = upload.held.total()
                used = self._fit(account, upload.spec.owner, grant, grant.quota, size)
                account.at_most = used + size
                account.growing[upload.id] += size

    def reserve(self, owner: Owner, upload: UploadId, grant: Grant, size: int) -> None:
        """A file of so many bytes, which the store knows nothing of yet, is about to be published with
        this id; until :meth:`ended` it counts."""
        if grant.quota is not None:
            account = self._account(owner)
            with account.lock:
                used = self._fit(account, owner, grant, grant.quota, size)
                account.at_most = used + size
                account.growing[upload] = size

    def settle(self, upload: Upload) -> None:
        """No more bytes are on the way to an upload whose length is unknown. Does not block."""
        account = self._accounts.get(upload.spec.owner)
        if account is not None and upload.id in account.growing:
            account.growing[upload.id] = upload.held.total()

    def ended(self, owner: Owner, upload: UploadId) -> None:
        """This process has the upload no more. Does not block."""
        account = self._accounts.get(owner)
        if account is not None:
            account.compared.pop(upload, None)
            account.growing.pop(upload, None)

    def _account(self, owner: Owner) -> _Account:
        with self._lock:
            return self._accounts.setdefault(owner, _Account())

    def _fit(
        self, account: _Account, owner: Owner, grant: Grant, quota: int, size: int, less: int = 0
    ) -> int:
        """What is used at most; NoSpace where that with ``size`` bytes more, and ``less`` fewer, is more
        than ``quota``. Under the account's lock."""
        if account.at_most is None or account.at_most - less + size > quota:
            growing = account.growing.copy()
            apart = {*account.compared.copy(), *growing}
            account.at_most = self._store.used(owner, apart) + sum(growing.values())
        used = account.at_most - less
        if used + size > quota:
            raise NoSpace(
                f"rule `{grant.rule}` gives a quota of {quota} bytes: {used} are used, and {size} more "
                "do not fit; remove files of yours from the receiver, or ask its owner for more",
                rule=grant.rule,
                quota=quota,
                used=used,
            )
        return account.at_most


def _wanted(spec: UploadSpec) -> int:
    """A byte at least of what has no length yet: with nothing left, it need not begin."""
    return 1 if spec.length is None else spec.length


def _counted(partial: Partial) -> int:
    return partial.staged_bytes if partial.spec.length is None else partial.spec.length
