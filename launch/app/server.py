"""The application's HTTP side: on this machine only, and for its own page."""

import asyncio
import functools
import io
import json
import math
import pathlib
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import scipy.io.wavfile
import uvicorn
from starlette import applications, concurrency, requests, responses, routing
from starlette.types import ASGIApp, Receive, Scope, Send

from datasets import files, limits
from launch import cli
from launch.app.session import Session

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
_STYLE = _TEMPLATES.parents[1] / "report" / "templates" / "report.css"
_PAGE = {
    "/": _TEMPLATES / "index.html",
    "/app.css": _TEMPLATES / "app.css",
    "/app.js": _TEMPLATES / "app.js",
    "/report.css": _STYLE,
}
# Bytes of a sound, and of what else is sent.
_MOST, _FEW = 2**27, 2**16
# Characters of an error that are shown.
_LONGEST = 400
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _Refused(Exception):
    """A request that is not answered; its arguments are status and reason."""


def _guarded(app: ASGIApp, port: int) -> ASGIApp:
    """Refuses what another site's page sends, and other names of this host.

    A page from elsewhere may make a browser ask 127.0.0.1, and give its own
    name that address (DNS rebinding): then Origin or Host is not ours.
    """
    hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}
    origins = {b"http://" + host for host in hosts}

    async def check(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            if (
                headers.get(b"host") not in hosts
                or headers.get(b"origin", next(iter(origins))) not in origins
            ):
                refusal = _failure("asked by another site: not answered", 403)
                await refusal(scope, receive, send)
                return
        await app(scope, receive, send)

    return check


def _failure(words: str, status: int = 400) -> responses.Response:
    words = limits.shorten(words, _LONGEST)
    return responses.JSONResponse({"error": words}, status, _HEADERS)


async def _body(request: requests.Request, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > most:
            raise _Refused(
                413,
                f"more than {most / 1e6:.0f} MB: cut out the one note that "
                "is to be matched",
            )
    return b"".join(parts)


def _number(asked: dict[str, Any], name: str, low: float, high: float) -> float:
    value = asked.get(name)
    if (
        not isinstance(value, int | float)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise ValueError(f"{name}: give a number from {low:g} to {high:g}")
    return value


def _words(asked: dict[str, Any], name: str) -> list[str]:
    value = asked.get(name, [])
    if not isinstance(value, list) or not all(
        isinstance(word, str) for word in value
    ):
        raise ValueError(f"{name}: give a list of names")
    return value


def _actions(
    session: Session,
) -> dict[str, Callable[[dict[str, Any]], None]]:
    """What the page may ask for, by address; each takes what it sent."""

    def seconds(asked: dict[str, Any]) -> float:
        return _number(asked, "seconds", 2, 3600)

    def again(asked: dict[str, Any]) -> None:
        session.again(
            round(_number(asked, "note", 0, 127)),
            _number(asked, "hold", 0.01, 60),
            _number(asked, "level", -60, 20),
            seconds(asked),
        )

    def go_on(asked: dict[str, Any]) -> None:
        locked = _words(asked, "locked")
        session.go_on(str(asked.get("candidate")), locked, seconds(asked))

    return {
        "/again": again,
        "/go-on": go_on,
        "/like": lambda asked: session.like(str(asked.get("candidate"))),
        "/stop": lambda asked: session.stop(),
        "/step": lambda asked: session.show(
            round(_number(asked, "number", 1, 1e9))
        ),
    }


def application(session: Session, port: int) -> ASGIApp:
    """The application: an ASGI app.

    Args:
      session: what it shows.
      port: where it is listening; requests for others are refused.
    """

    async def page(request: requests.Request) -> responses.Response:
        return responses.FileResponse(_PAGE[request.url.path], headers=_HEADERS)

    async def act(request: requests.Request) -> responses.Response:
        asked = limits.parse_json(await _body(request, _FEW))
        if not isinstance(asked, dict):
            raise ValueError("give a JSON object")
        action = _actions(session)[request.url.path]
        await concurrency.run_in_threadpool(action, asked)
        return responses.JSONResponse({}, headers=_HEADERS)

    async def add(request: requests.Request) -> responses.Response:
        name = request.query_params.get("name", "") or "sound"
        seconds = _number(
            {"seconds": float(request.query_params.get("seconds", "nan"))},
            "seconds",
            1,
            3600,
        )
        data = await _body(request, _MOST)

        def read() -> None:
            with tempfile.TemporaryDirectory(prefix="sound-") as folder:
                path = pathlib.Path(folder, files.filename(name))
                path.write_bytes(data)
                session.add(path, limits.shorten(name, 80), seconds)

        await concurrency.run_in_threadpool(read)
        return responses.JSONResponse({}, headers=_HEADERS)

    async def events(request: requests.Request) -> responses.Response:
        async def changes() -> AsyncIterator[str]:
            seen, quiet = -1, 0
            while True:
                if session.version != seen:
                    seen, quiet = session.version, 0
                    yield f"data: {json.dumps(session.describe())}\n\n"
                elif quiet > 100:
                    # So that a page that is gone is noticed.
                    quiet = 0
                    yield ": still here\n\n"
                quiet += 1
                await asyncio.sleep(0.1)

        return responses.StreamingResponse(
            changes(), media_type="text/event-stream", headers=_HEADERS
        )

    async def sound(request: requests.Request) -> responses.Response:
        audio, gain = session.sound(request.path_params["name"])
        rate = session.setup.settings.sample_rate
        file = io.BytesIO()
        if "loud" in request.query_params:
            # For ears; else floats, which keep what exceeds full scale.
            audio = np.int16(np.rint(32_767 * np.clip(gain * audio, -1, 1)))
        scipy.io.wavfile.write(file, rate, audio)
        return responses.Response(file.getvalue(), 200, _HEADERS, "audio/wav")

    async def picture(request: requests.Request) -> responses.Response:
        name = request.path_params["name"]
        drawn = await concurrency.run_in_threadpool(session.picture, name)
        return responses.Response(drawn, 200, _HEADERS, "image/png")

    async def preset(request: requests.Request) -> responses.Response:
        name, ending = (request.path_params[k] for k in ("name", "ending"))
        if name.isdecimal():
            read = functools.partial(session.bank, int(name), f".{ending}")
        else:
            read = functools.partial(session.file, name, f".{ending}")
        data = await concurrency.run_in_threadpool(read)
        return responses.Response(
            data, 200, _HEADERS, "application/octet-stream"
        )

    async def failed(
        request: requests.Request, error: Exception
    ) -> responses.Response:
        if isinstance(error, KeyError):
            return _failure("it is there no more", 404)
        if isinstance(error, _Refused):
            return _failure(error.args[1], error.args[0])
        return _failure(str(error))

    return _guarded(
        applications.Starlette(
            routes=[
                *(routing.Route(path, page) for path in _PAGE),
                *(
                    routing.Route(path, act, methods=["POST"])
                    for path in _actions(session)
                ),
                routing.Route("/sound", add, methods=["POST"]),
                routing.Route("/events", events),
                routing.Route("/sounds/{name}.wav", sound),
                routing.Route("/pictures/{name}.png", picture),
                routing.Route("/presets/{name}.{ending}", preset),
            ],
            exception_handlers=dict.fromkeys(
                (*cli.EXPECTED, KeyError, _Refused), failed
            ),
        ),
        port,
    )


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1.

    Args:
      port: its port; 0 for any that is free.

    Raises:
      ValueError: the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        # From here on a browser waits, and is not refused.
        listening.listen()
    except OSError as error:
        listening.close()
        raise ValueError(
            f"port {port} cannot be used ({error.strerror}): choose another "
            "one with --port"
        ) from None
    return listening


def server(session: Session, listening: socket.socket) -> uvicorn.Server:
    """What answers at a socket, by its `run([listening])`."""
    return uvicorn.Server(
        uvicorn.Config(
            application(session, listening.getsockname()[1]),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
