"""Who may call, and what comes out of a compressed body."""

from __future__ import annotations

import hmac
import zlib
from pathlib import Path

from bnfold.errors import InputError
from bnfold.files import reason
from bnfold.serve.errors import UNAUTHORIZED, Refused, too_large, unsupported

_PIECE = 1 << 20


def read_token(path: str | None) -> bytes | None:
    """The bearer token in a file, or None where none is asked for; raises `InputError`."""
    if path is None:
        return None
    try:
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise InputError(f"{path}: the token can't be read: {reason(error)}") from error
    if len(token) < 16 or not token.isascii() or len(token.split()) != 1:
        raise InputError(f"{path}: a token is a word of at least 16 ASCII characters, as `openssl rand -hex 32` prints")
    return token


def authorize(token: bytes | None, header: bytes | str | None) -> None:
    """Raise `Refused` with 401 unless an Authorization header carries the token."""
    if token is None:
        return
    given = header.encode("latin-1", "replace") if isinstance(header, str) else header or b""
    scheme, _, value = given.partition(b" ")
    # The comparison takes as long for a token that is nearly right as for any other.
    if not hmac.compare_digest(value.strip(), token) or scheme.lower() != b"bearer":
        raise Refused("this needs the header `Authorization: Bearer TOKEN`", UNAUTHORIZED, "unauthorized")


def decompress(encoding: str, data: bytes | bytearray, limit: int) -> bytes | bytearray:
    """Undo a Content-Encoding (gzip or deflate); raises `Refused` as soon as more than `limit` bytes come out."""
    if encoding in ("", "identity"):
        return data
    if encoding not in ("gzip", "deflate"):
        raise unsupported(f"Content-Encoding {encoding!r:.40} is not supported; use gzip or deflate")
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32 if encoding == "gzip" else zlib.MAX_WBITS)
    out = bytearray()
    rest: bytes = bytes(data)
    try:
        while rest and not stream.eof:
            out += stream.decompress(rest, min(_PIECE, limit + 1 - len(out)))
            rest = stream.unconsumed_tail
            if len(out) > limit:
                raise too_large(f"the body is larger than {limit} bytes once it is decompressed")
    except zlib.error as error:
        raise Refused(f"the body is not {encoding}: {error}") from None
    if not stream.eof or stream.unused_data:
        raise Refused(f"the body is cut short, or not all of it is {encoding}")
    return out


def compress(encoding: str, data: bytes) -> bytes:
    """Apply a Content-Encoding that `accepted` chose; fast rather than small."""
    engine = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16 if encoding == "gzip" else zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush()


def accepted(header: str | None) -> str:
    """The encoding that a client asks for and we have, empty for none."""
    offers = [part.strip().partition(";") for part in (header or "").lower().split(",")]
    names = [name for name, _, weight in offers if weight.replace(" ", "") not in ("q=0", "q=0.0")]
    return next((name for name in names if name in ("gzip", "deflate")), "")
