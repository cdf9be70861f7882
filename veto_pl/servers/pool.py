"""Several servers that do the same: they share the requests, and one does what another has not done."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from veto_pl.servers.endpoint import Endpoint, NoAnswerError, Reply, Request


def ask_somewhere(
    endpoints: Sequence[Endpoint], path: str, bodies: Sequence[Request], concurrency: int
) -> list[Reply | NoAnswerError]:
    """Return the reply to each request, in their order, or why no server has one.

    Args:
        endpoints: the servers; request i goes to server i first, counted around.
        path: behind the address.
        bodies: of the requests.
        concurrency: requests that are under way at a time at each server.

    Raises:
        ConfigurationError: a server refuses a request and would refuse it again, or the key is missing.
    """
    replies: dict[int, Reply | NoAnswerError] = {}
    waiting = list(range(len(bodies)))
    for turn in range(len(endpoints)):
        shares = [[i for i in waiting if (i + turn) % len(endpoints) == place] for place in range(len(endpoints))]
        with ThreadPoolExecutor(len(endpoints)) as pool:
            asked = [
                pool.submit(endpoint.ask_all, path, [bodies[i] for i in share], concurrency)
                for endpoint, share in zip(endpoints, shares, strict=True)
            ]
        for share, answered in zip(shares, asked, strict=True):
            replies |= dict(zip(share, answered.result(), strict=True))
        waiting = [i for i in waiting if isinstance(replies[i], NoAnswerError)]
    return [replies[i] for i in range(len(bodies))]
