"""Limited concurrency, and pages of items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


async def gather_limited(do: Callable[[A], Awaitable[T]], items: Iterable[A], concurrency_max: int) -> list[T]:
    """The answers of ``do`` for each item, in order, ``concurrency_max`` at a time.

    Raises:
        Exception: the first that was raised, by order of ``items``; by then everything has come to its end.
    """
    slots = asyncio.Semaphore(concurrency_max)

    async def in_turn(item: A) -> T:
        async with slots:
            return await do(item)

    results = await asyncio.gather(*(in_turn(item) for item in items), return_exceptions=True)
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
