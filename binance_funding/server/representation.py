"""Answers with a large body: compressed or not, as the client accepts it, and with an ETag. Pure."""

import functools
import hashlib
import re
import zlib

from .http.message import Request, Response

Headers = tuple[tuple[str, str], ...]

# A higher level takes more time to compress than it saves on a local network.
_GZIP_LEVEL = 1
_GZIP_FORMAT = 16 + zlib.MAX_WBITS


class Body:
    """A large body. Its gzip form and its ETag are made when they are first needed, and then kept."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @functools.cached_property
    def _compressor(self) -> "tuple[zlib._Compress, bytes]":
        compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
        return compressor, compressor.compress(self.content)

    def compressed(self, more: bytes = b"") -> bytes:
        """Return the body in gzip format, with more behind it; only the new part is compressed now."""
        compressor, compressed = self._compressor
        rest = compressor.copy()
        return compressed + rest.compress(more) + rest.flush()

    @functools.cached_property
    def tag(self) -> str:
        """The ETag of this content, without its quotes."""
        return hashlib.blake2b(self.content, digest_size=12).hexdigest()


def accepts_gzip(request: Request) -> bool:
    """Tell whether the client reads gzip."""
    return accepts(request.headers.get("accept-encoding", ""), "gzip", "x-gzip", "*")


def conditional(request: Request, body: Body, headers: Headers, *, may_compress: bool = True) -> Response:
    """Answer with a large body as the client accepts it, or with 304 if the client has it."""
    is_zipped = may_compress and accepts_gzip(request)
    # Another encoding is another representation, so it has another strong tag.
    etag = f'"{body.tag}{"-gzip" if is_zipped else ""}"'
    headers += (("ETag", etag),)
    if _matches(request.headers.get("if-none-match", ""), etag):
        return Response(304, b"", tuple(header for header in headers if header[0] != "Content-Type"))
    if is_zipped:
        return Response(200, body.compressed(), (*headers, ("Content-Encoding", "gzip")))
    return Response(200, body.content, headers)


def accepts(header: str, *names: str) -> bool:
    """Tell whether the header allows the first of the names that it mentions. Source: RFC 9110, section 12.5."""
    weights: dict[str, float] = {}
    for item in header.lower().split(","):
        name, _, weight = item.partition(";")
        quality = re.fullmatch(r"\s*q=([01](?:\.[0-9]{0,3})?)\s*", weight)
        weights[name.strip()] = float(quality[1]) if quality else 1.0
    return next((weights[name] for name in names if name in weights), 0.0) > 0


def _matches(if_none_match: str, etag: str) -> bool:
    """Compare tags weakly, as a GET must. Source: RFC 9110, section 13.1.2."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]
