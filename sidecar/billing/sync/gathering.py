"""Several things at once, but not all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def all_of(work: Iterable[Coroutine[Any, Any, T]], at_once_max: int) -> list[T]:
    """The results, in order.

    Raises:
        Exception: the first that was raised, by order of ``work``; by then everything has come to its end.
    """
    slots = asyncio.Semaphore(at_once_max)

    async def in_turn(one: Coroutine[Any, Any, T]) -> T:
        async with slots:
            return await one

    results = await asyncio.gather(*(in_turn(one) for one in work), return_exceptions=True)
    done: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done


async def pages(items: AsyncIterator[T] | Iterable[T], size: int) -> AsyncIterator[Sequence[T]]:
    """The items, ``size`` at a time."""
    page: list[T] = []
    if isinstance(items, AsyncIterator):
        async for item in items:
            page.append(item)
            if len(page) == size:
                yield page
                page = []
    else:
        for item in items:
            page.append(item)
            if len(page) == size:
                yield page
                page = []
    if page:
        yield page
