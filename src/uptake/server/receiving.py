"""Bodies and forms as they come: counted, within a time, and no larger than allowed."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from uptake.server import bodies
from uptake.server.errors import ApiError, bad, of

BODY_SECONDS = 60.0
FORM_SECONDS = 600.0


async def received(request: Request, most: int) -> bytes:
    """Return the bytes of a body, counted as they come and within a minute. Raises ApiError."""
    with contextlib.suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > most:
            raise bodies.too_large(most)
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise bodies.too_large(most)
                parts.append(part)
    except TimeoutError:
        raise ApiError(
            408, f"the body took more than {BODY_SECONDS:.0f} seconds: send it faster", "slow_body"
        ) from None
    return b"".join(parts)


@contextlib.asynccontextmanager
async def received_form(request: Request, most: int) -> AsyncIterator[FormData]:
    """Yield a form of fields and one file, of at most so many bytes. Raises ApiError."""
    with contextlib.suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > most:
            raise bodies.too_large(most)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(415, "send multipart/form-data", "unsupported_media_type")
    size = 0

    async def counted() -> AsyncGenerator[bytes, None]:
        nonlocal size
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise bodies.too_large(most)
            yield part

    try:
        async with asyncio.timeout(FORM_SECONDS):
            form = await MultiPartParser(request.headers, counted(), max_files=1, max_fields=16).parse()
    except TimeoutError:
        raise ApiError(408, "the file took too long: send it faster", "slow_body") from None
    except OSError as error:  # a large file is set down while it comes
        raise of(error) from None
    except (MultiPartException, KeyError, ValueError):
        raise bad("the form cannot be read: send one file, with a purpose", "file") from None
    try:
        yield form
    finally:
        await form.close()
