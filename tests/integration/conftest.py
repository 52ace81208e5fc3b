"""One proxy for all tests of a file, as good as new for each of them. A file that needs another kind has its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.proxy import Proxy, Tls, lent_proxy, made_tls, proxy_process


@pytest.fixture(scope="module")
def tls() -> Iterator[Tls]:
    with made_tls() as made:
        yield made


@pytest.fixture(scope="module")
def process(tls: Tls) -> Iterator[Proxy]:
    with proxy_process(tls) as running:
        yield running


@pytest.fixture
async def proxy(process: Proxy) -> AsyncIterator[Proxy]:
    async with lent_proxy(process) as running:
        yield running
