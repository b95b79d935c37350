"""The page where a person sees what reading does: plain files, served as they are, under a strict policy."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from uptake.server.routing import Routes

_FOLDER = Path(__file__).parent
FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "lens.js": ("lens.js", "text/javascript; charset=utf-8"),
    "lens.css": ("lens.css", "text/css; charset=utf-8"),
}
# Nothing of another host, no script or style within the page, in nobody's frame; its icon is empty.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
}


def add_page(routes: Routes) -> None:
    """Serve the page at /lens."""
    pages = {name: (_FOLDER / file).read_bytes() for name, (file, _) in FILES.items()}

    def shown(name: str) -> Response:
        return Response(pages[name], media_type=FILES[name][1], headers=HEADERS)

    @routes.get("/lens")
    async def page(_: Request) -> Response:
        return shown("")

    @routes.get("/lens/lens.js")
    async def script(_: Request) -> Response:
        return shown("lens.js")

    @routes.get("/lens/lens.css")
    async def style(_: Request) -> Response:
        return shown("lens.css")
