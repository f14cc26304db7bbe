"""How the client asks for one object or a page, and makes and changes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from sidecar.billing.lago import parsing
from sidecar.billing.lago.answered_ids import check_updated, same
from sidecar.billing.lago.errors import LagoRejected, LagoUnavailable
from sidecar.billing.lago.json_fields import Fields
from sidecar.billing.lago.models import Page
from sidecar.billing.lago.transport import Query, Transport, segment

T = TypeVar("T")

PER_PAGE: Final = 100
"""Lago's own default."""


class ObjectRequests:
    """The requests of ``LagoClient``, by kind. Templates hold ``{id}`` where an id goes."""

    _transport: Transport | None = None

    @property
    def _open(self) -> Transport:
        if self._transport is None:
            raise LagoUnavailable("the client of Lago is closed", kind="network", unsent=True)
        return self._transport

    async def _get(self, template: str, parse: Callable[[Fields], T], *, of: str = "", query: Query = ()) -> T:
        return await self._open.request(f"GET {template}", template.replace("{id}", of), parse, query=query)

    async def _post(
        self, path: str, body: Mapping[str, Any], parse: Callable[[Fields], T], *, repeatable: bool = False
    ) -> T:
        return await self._open.request(f"POST {path}", path, parse, body=body, repeatable=repeatable)

    async def _put(self, template: str, of: str, body: Mapping[str, Any], parse: Callable[[Fields], T]) -> T:
        part = segment(of)
        if part is None:
            raise LagoRejected(f"PUT {template}: no path can hold this id", status=404)
        path = template.replace("{id}", part)

        def parse_updated(answer: Fields) -> T:
            check_updated(f"PUT {template}", path, body, answer.values)
            return parse(answer)

        return await self._open.request(f"PUT {template}", path, parse_updated, body=body)

    async def _find(
        self,
        template: str,
        of: str,
        name: str,
        parse: Callable[[Fields], T],
        query: Query = (),
        absent: tuple[str, ...] = (),
        id_of: Callable[[T], str] | None = None,
    ) -> T | None:
        """One object, whose id by ``id_of`` must be ``of``. Only Lago's own word for it means that there is none: a
        proxy may answer 404 too.
        """
        part = segment(of)
        if part is None:
            return None
        if id_of is not None:
            parse = same(f"GET {template}", parse, id_of, of)
        try:
            return await self._get(template, in_field(name, parse), of=part, query=query)
        except LagoRejected as error:
            if error.code in (absent or (f"{name}_not_found",)):
                return None
            raise

    async def _page(
        self,
        template: str,
        name: str,
        parse: Callable[[Fields], T],
        page: int,
        per_page: int = PER_PAGE,
        query: Query = (),
        of: str = "",
    ) -> Page[T]:
        assert page >= 1, "pages are counted from 1"
        paged = [*query, ("page", str(page)), ("per_page", str(per_page))]
        return await self._get(template, lambda answer: parsing.page_of(answer, name, parse, page), of=of, query=paged)


def in_field(name: str, parse: Callable[[Fields], T]) -> Callable[[Fields], T]:
    """``parse`` for what an answer holds under ``name``."""
    return lambda answer: parse(answer.row(name))
