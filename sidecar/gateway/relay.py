"""What stands between a client's connection and one to the API: an exchange, or a tunnel after it.

Its methods, and those of the other base classes of the request path, raise NotImplementedError rather than be abstract
(`abc`): with abstract classes, compiled, a request cost 1,100 instructions more (2.4 %).

Both connections know no more of it than this class. So none of the modules of the request path imports one above it:

    relay ← upstream ← client ← context ← exchange ← connection ← gateway
"""

from __future__ import annotations


class Relay:
    """``deadline`` (the monotonic clock's seconds) ends it unless something happens before."""

    deadline = 0.0
    finished = False
    started = 0.0

    # from the client's connection

    def wants_data(self) -> bool:
        """Whether bytes of the client belong to this relay, and not to a request after it."""
        raise NotImplementedError

    def client_data(self, data: bytes) -> None:
        """Bytes of the client, while they are wanted."""
        raise NotImplementedError

    def client_eof(self) -> None:
        """The client will send nothing more."""
        raise NotImplementedError

    def client_gone(self) -> None:
        """The client's connection is lost."""
        raise NotImplementedError

    def client_pause(self) -> None:
        """The client takes its answer more slowly than the API gives it."""
        raise NotImplementedError

    def client_resume(self) -> None:
        """The client has taken what waited for it."""
        raise NotImplementedError

    def gives_way(self) -> bool:
        """Whether it may be ended for want of room: the API has heard nothing of it."""
        return False

    def give_way(self, reason: str) -> None:
        """Ends it, and with it the client's connection. Only if it `gives_way`."""
        raise NotImplementedError

    # from the connection to the API

    def upstream_data(self, data: bytes) -> None:
        """Bytes of the API."""
        raise NotImplementedError

    def upstream_eof(self) -> bool:
        """The API will send nothing more. True keeps its connection for what the client still has to say."""
        raise NotImplementedError

    def upstream_lost(self, exc: Exception | None) -> None:
        """The connection to the API is lost."""
        raise NotImplementedError

    def upstream_pause(self) -> None:
        """The API takes the request more slowly than the client gives it."""
        raise NotImplementedError

    def upstream_resume(self) -> None:
        """The API has taken what waited for it."""
        raise NotImplementedError

    # from the sweep

    def timed_out(self) -> None:
        """``deadline`` has passed."""
        raise NotImplementedError

    # from the gateway

    def given_up(self) -> None:
        """The gateway ends now, and a relay that goes on without its client with it. As if ``deadline`` had passed."""
        raise NotImplementedError

    def stopped(self) -> None:
        """The gateway ends now, and its connections with it."""
        raise NotImplementedError

    def sweep(self, now: float) -> None:
        """Ends what has taken too long; for a relay that goes on without its client."""
        if self.deadline < now:
            self.timed_out()
