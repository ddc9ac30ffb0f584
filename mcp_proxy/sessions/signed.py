"""Session ids that describe themselves: authenticated encryption of who owns the session. Pure.

    v1.<key id>.<base64url without padding (nonce | ciphertext | tag)>

Rules of this file:
1. What opens is exactly what was sealed, for the same route, with one text per session: base64 that
   leaves bits over, or that a lenient reader would accept, does not open.
2. A token holds no address, only the hash of a backend's id. It selects one of the backends that
   are configured on its route, or none.
3. The text comes from anybody: ``open`` never raises, and works on at most 512 bytes.

A key seals with random nonces of 96 bits: up to 2^32 sessions (500 days of 100 per second) the odds
of a repeated nonce stay below 2^-32 (NIST SP 800-38D section 8.3). Busier gateways change keys earlier.
"""

from __future__ import annotations

import hashlib
import os
import struct
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import GONE, SessionKey, SessionRecord

TOKEN_LIMIT: Final = 512
"""Bytes of a session id, as ``headers.is_session_id`` bounds them."""

BACKENDS_LIMIT: Final = 4096
"""Backends of a route that are remembered when they are gone, about 200 bytes each."""

_VERSION: Final = b"v1"
_KEY_BYTES: Final = 32
_KEY_ID_BYTES: Final = 4
"""Only a hint which key to try; keys that share it are all tried."""
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HASH_BYTES: Final = 8

_SALT: Final = b"mcp-proxy session id v1"
"""Fixed, because every replica must come to the same key: it separates this use of a secret from others."""
_COST: Final = 2**15
"""Of scrypt, with r=8: 32 MiB and some 100 ms per guess. A secret may be a passphrase, and every client
holds tokens on which guesses can be tried without asking us, so that guessing must cost. We pay
once per secret, at start."""

_PAYLOAD: Final = struct.Struct(f">I{_HASH_BYTES}sB")
"""Unix time of issue, hash of the backend's id, form and length of the principal. Then follow the principal
and the upstream session id."""
_PRINCIPAL_LIMIT: Final = 127
"""Bytes of a principal. The bit above the length says that it is text and not hex digits."""
_IS_TEXT: Final = 128

_ENCODED_LIMIT: Final = TOKEN_LIMIT - len(_VERSION) - 2 * _KEY_ID_BYTES - len("..")
_ROOM: Final = _ENCODED_LIMIT * 3 // 4 - _NONCE_BYTES - _TAG_BYTES - _PAYLOAD.size
"""Bytes for the principal and the upstream id together: 334."""


class Derived(NamedTuple):
    """What becomes of a secret."""

    key: bytes
    """32 bytes, for AES-256-GCM."""
    key_id: bytes
    """8 hex digits, public."""


def derive(secret: str) -> Derived:
    """Slow on purpose. The key id comes from the same derivation: it tells no more about the secret than
    a token does."""
    kdf = Scrypt(salt=_SALT, length=_KEY_BYTES + _KEY_ID_BYTES, n=_COST, r=8, p=1)
    output = kdf.derive(secret.encode())
    return Derived(output[:_KEY_BYTES], output[_KEY_BYTES:].hex().encode())


class Seal:
    """Seals with the first of ``secrets`` and opens with all of them, so that keys can be changed while
    sessions live. ``backends``: path of each route to the ids of the backends behind it. Construction
    takes some 100 ms per secret. Raises ValueError if there is no secret."""

    def __init__(
        self,
        secrets: Sequence[str],
        derive: Callable[[str], Derived] = derive,
    ) -> None:
        if not secrets:
            raise ValueError("sealing needs a secret")
        self._keys: dict[bytes, list[AESGCM]] = {}
        for secret in dict.fromkeys(secrets):
            key, key_id = derive(secret)
            self._keys.setdefault(key_id, []).append(AESGCM(key))
        self._key_id = next(iter(self._keys))
        self._key = self._keys[self._key_id][0]
        self._backends: dict[str, dict[bytes, str]] = {}

    def know(self, route: str, backends: Collection[str]) -> None:
        """These backends are behind ``route`` now. Those that were before stay known, up to a limit: what
        was sealed for them is not lost but leads to where they were."""
        known = self._backends.setdefault(route, {})
        for id in backends:
            known[_hash(id)] = known.pop(_hash(id), id)
        while len(known) > max(BACKENDS_LIMIT, len(backends)):
            del known[next(iter(known))]

    def seal(self, key: SessionKey, record: SessionRecord) -> SessionKey:
        """The name that clients get for a session which its backend calls ``key.session_id``. Of the
        record it keeps ``backend``, ``principal`` (hex digits take half their length) and ``created_s``.

        Raises StoreError if that needs more than TOKEN_LIMIT bytes, if the principal is longer than
        127 bytes, and for a backend that is not configured on the route, which could never be found."""
        backend = _hash(record.backend)
        if backend not in self._backends.get(key.route, ()):
            raise StoreError("the session belongs to a backend that is not configured on its route")
        form, principal = _pack(record.principal)
        room = _ROOM - len(principal)
        if len(key.session_id) > room:
            raise StoreError(
                f"the backend issued a session id of {len(key.session_id)} bytes; "
                f"to be sealed it may have at most {room}"
            )
        created_s = min(max(record.created_s, 0), 2**32 - 1)
        payload = _PAYLOAD.pack(created_s, backend, form) + principal + key.session_id
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._key.encrypt(nonce, payload, _context(self._key_id, key.route))
        return SessionKey(key.route, b".".join((_VERSION, self._key_id, _encode(sealed))))

    def open(self, key: SessionKey) -> SessionRecord | None:
        """The session that was sealed as ``key``, or None if none was: for anything that is not a token
        of ours, whole and unchanged, issued on this route, with a key that is still configured. Never raises.

        If its backend is not known here, ``backend`` begins with GONE: the session is genuine, its backend
        is lost, or nobody has told this process of it yet."""
        if len(key.session_id) > TOKEN_LIMIT:
            return None
        version, _, rest = key.session_id.partition(b".")
        key_id, _, encoded = rest.partition(b".")
        if version != _VERSION or key_id not in self._keys:
            return None
        try:
            payload = self._decrypt(key_id, _decode(encoded), _context(key_id, key.route))
            return None if payload is None else self._read(payload, key.route)
        except (ValueError, struct.error):
            return None

    def _decrypt(self, key_id: bytes, sealed: bytes, context: bytes) -> bytes | None:
        for key in self._keys[key_id]:
            try:
                return key.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
            except InvalidTag:
                continue
        return None

    def _read(self, payload: bytes, route: str) -> SessionRecord:
        created_s, backend, form = _PAYLOAD.unpack_from(payload)
        end = _PAYLOAD.size + form % _IS_TEXT
        id = self._backends.get(route, {}).get(backend) or GONE + backend.hex()
        principal = _unpack(form, payload[_PAYLOAD.size : end])
        return SessionRecord(id, principal, upstream_id=payload[end:], created_s=created_s)


def _context(key_id: bytes, route: str) -> bytes:
    """What a token is bound to beside its content. The key id has a fixed length, so no two contexts
    have the same text."""
    return _VERSION + key_id + route.encode()


def _hash(backend: str) -> bytes:
    return hashlib.blake2b(backend.encode(), digest_size=_HASH_BYTES).digest()


def _pack(principal: str) -> tuple[int, bytes]:
    """Form and bytes. Hashes, which are what policies give, are hex digits: half as long as bytes."""
    try:
        packed = bytes.fromhex(principal)
    except ValueError:
        packed = b""
    form = len(packed)
    if packed.hex() != principal:
        packed = principal.encode(errors="surrogatepass")
        form = len(packed) + _IS_TEXT
    if len(packed) > _PRINCIPAL_LIMIT:
        raise StoreError(f"the principal is longer than {_PRINCIPAL_LIMIT} bytes")
    return form, packed


def _unpack(form: int, packed: bytes) -> str:
    return packed.decode(errors="surrogatepass") if form & _IS_TEXT else packed.hex()


def _encode(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    """Raises ValueError for everything that ``_encode`` does not write: padding, another alphabet, other
    characters, spare bits that are not zero."""
    data = b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_")
    if _encode(data) != text:
        raise ValueError("not canonical")
    return data
