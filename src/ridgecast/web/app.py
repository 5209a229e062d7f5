"""The application: routes of the JSON interface and of the pages.

Every answer is a view of `report`; the pages ask the same interface as anyone else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import anyio
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, create_model
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .. import __version__
from ..errors import RidgecastError
from ..report.page import ASSETS, asset
from .answers import FORMATS, encode, table_bytes
from .desk import Desk, Settings
from .errors import Problems, problems_of, problems_of_fields
from .guard import LOCAL, MOST_BODY, Guard
from .names import choices
from .pages import page_html
from .sections import Page, Section, pages, sections
from .uploads import predicted, read_upload

__all__ = ["Settings", "create_app"]

Format = Literal["json", "csv", "parquet", "html"]


class Document(BaseModel):
    """A view in plain form: `answer` is what the command line prints with --json."""

    schema_version: int
    view: str
    title: str
    lead: str
    command: str
    python: str
    address: str
    footer: str
    pending: int = Field(description="What is still being worked out; ask again.")
    answer: Any
    blocks: list[dict[str, Any]] = Field(description="Facts, tables, figures and words for eyes.")


_REFUSED: dict[int | str, dict[str, Any]] = {
    code: {"model": Problems, "description": text}
    for code, text in (
        (403, "Asked from another site."), (413, "Too large."), (414, "Too long."),
        (421, "Another Host."),
        (422, "The question has no answer; `errors` says which field and what to do."),
    )
}  # fmt: skip


def create_app(settings: Settings | None = None) -> Any:
    """Return the ASGI application, guarded; it opens no connection of its own."""
    settings = settings or Settings()
    app = FastAPI(
        title="ridgecast", version=__version__, docs_url=None, redoc_url=None,
        openapi_url="/api/openapi.json",
        description="How long GPU work takes, what it draws and costs, before it runs. Errors "
        "name the field and the cure.",
    )  # fmt: skip
    desk = Desk(settings)
    for section in sections():
        _add_section(app, desk, section)
    _add_words(app)
    _add_tables(app, desk)
    for page in pages().values():
        _add_page(app, desk, page)
    _add_assets(app)
    _add_refusals(app)
    return Guard(app, LOCAL | set(settings.hosts))


def _add_section(app: FastAPI, desk: Desk, section: Section) -> None:
    """Add the route of a section: its question as query, its view as answer."""
    request_type = _request(section.question)

    async def answer(request: Any) -> Response:
        fields = section.question.model_fields
        question = section.question.model_validate({k: getattr(request, k) for k in fields})
        asked = (section, question, request.format, request.table)
        if section.instant:
            body = desk.answer(*asked)
        else:
            body = await anyio.to_thread.run_sync(desk.answer, *asked, limiter=desk.lane(section))
        headers = {"cache-control": "no-store"}
        if request.format != "json":
            name = "-".join(filter(None, ("ridgecast", section.name, request.table)))
            headers["content-disposition"] = f'attachment; filename="{name}.{request.format}"'
        return Response(body, media_type=FORMATS[request.format], headers=headers)

    answer.__annotations__["request"] = Annotated[request_type, Query()]
    app.add_api_route(
        section.endpoint, answer, methods=["GET"], response_model=None, name=section.name,
        summary=section.title, description=section.what, responses=_answers(),
    )  # fmt: skip


def _request(question: type[BaseModel]) -> type[BaseModel]:
    """Add to the question the form of its answer: a request of the interface."""
    fields: dict[str, Any] = {
        "format": (Format, Field("json", description="Form of the answer: the whole view as json "
                                 "or html (one page to send on), a table as csv or parquet.")),
        "table": (str, Field("", max_length=64, pattern="^[A-Za-z0-9_-]*$",
                            description="Name of a table of the view; by "
                             "default the whole view, or its first table.")),
    }  # fmt: skip
    return create_model(f"{question.__name__}Request", __base__=question, **fields)


def _answers() -> dict[int | str, dict[str, Any]]:
    content = {kind.partition(";")[0]: {} for name, kind in FORMATS.items() if name != "json"}
    ok = {"model": Document | list[dict[str, Any]], "content": content,
          "description": "The view, or rows of one of its tables."}  # fmt: skip
    return {200: ok, **_REFUSED}


def _json(value: Any, status: int = 200) -> Response:
    return Response(encode(value), status, media_type="application/json")


def _add_words(app: FastAPI) -> None:
    async def names() -> Response:
        return _json({k: list(v) for k, v in choices().items()})

    async def terms() -> Response:
        from ..report.glossary import glossary

        return _json(glossary())

    app.add_api_route("/api/names", names, methods=["GET"], response_model=None,
                      summary="Names that questions may use",
                      responses={200: {"model": dict[str, list[str]]}})  # fmt: skip
    app.add_api_route("/api/glossary", terms, methods=["GET"], response_model=None,
                      summary="Terms and their definitions",
                      responses={200: {"model": dict[str, str]}})  # fmt: skip


def _add_tables(app: FastAPI, desk: Desk) -> None:
    """Add the route of whole tables, sent as the body of a request."""
    kinds = ("text/csv", "application/json", "application/x-ndjson",
             "application/vnd.apache.parquet")  # fmt: skip
    schema = {"schema": {"type": "string", "format": "binary"}}

    async def predict(
        request: Request,
        level: Annotated[float, Query(ge=0.5, le=0.99)] = 0.9,
        format: Literal["json", "csv", "parquet"] = "json",
    ) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:  # the guard stopped a body that gave no length
            raise HTTPException(413, f"over {MOST_BODY} bytes") from None
        kind = request.headers.get("content-type", "")

        def make() -> bytes:
            table = read_upload(body, kind)
            return table_bytes(predicted(table, level=level, model=desk.settings.model), format)

        found = await anyio.to_thread.run_sync(make, limiter=desk.slow)
        return Response(found, media_type=FORMATS[format])

    predict.__annotations__["request"] = Request
    app.add_api_route(
        "/api/predict", predict, methods=["POST"], response_model=None,
        summary="Predict every row of a table", openapi_extra={"requestBody": {
            "required": True, "content": {k: schema for k in kinds}}},
        responses={200: {"model": list[dict[str, Any]], "content": {
            FORMATS["csv"].partition(";")[0]: {}, FORMATS["parquet"]: {}},
            "description": "The table with its predictions."}, **_REFUSED},
        description="Columns op, hardware, dtype and the operation's own fields. A row that cannot "
        "be predicted says why and stops no other.",
    )  # fmt: skip


def _add_page(app: FastAPI, desk: Desk, page: Page) -> None:
    """Add a page, server-rendered, with its first answer in it."""

    async def show(request: Request) -> Response:
        query = request.query_params.multi_items()
        lane = desk.slow if page.slow else desk.quick
        html, status = await anyio.to_thread.run_sync(page_html, page, query, desk, limiter=lane)
        return Response(html, status, media_type="text/html")

    show.__annotations__["request"] = Request
    app.add_api_route(f"/{page.name}", show, methods=["GET"], include_in_schema=False)


def _add_assets(app: FastAPI) -> None:
    async def home() -> Response:
        return Response(status_code=307, headers={"location": "/gemm"})

    app.add_api_route("/", home, methods=["GET"], include_in_schema=False)

    def add(name: str, kind: str) -> None:
        async def show() -> Response:
            headers = {"cache-control": "max-age=3600"}
            return Response(asset(name), media_type=kind, headers=headers)

        app.add_api_route(f"/assets/{name}", show, methods=["GET"], include_in_schema=False)

    for name, kind in ASSETS.items():
        add(name, kind)


def _add_refusals(app: FastAPI) -> None:
    """Every refusal is a document with the field and the cure."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, RidgecastError)
        return _json(problems_of(error, _fields_of(request)), 422)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _json(problems_of_fields(error.errors(), _fields_of(request)), 422)

    async def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        field, cure = "path", "GET /api/openapi.json lists what there is"
        if error.status_code == 413:
            field, cure = "body", "split the table, or use `ridgecast predict --table FILE`"
        told = f"{field}: {request.url.path}: {error.detail}"
        found = {"kind": "usage", "field": field, "message": told, "cure": cure}
        return Response(encode({"errors": [found]}), error.status_code,
                        media_type="application/json", headers=error.headers)  # fmt: skip

    app.add_exception_handler(RidgecastError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)


def _fields_of(request: Request) -> Sequence[str]:
    """Fields that the route of a request knows."""
    for section in sections():
        if section.endpoint == request.url.path:
            return [*section.question.model_fields, "format", "table"]
    return ("body", "hardware", "level", "format")
