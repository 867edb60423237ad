"""The conductor's access to its actors: they are started, awaited with a deadline, and restarted.

The conductor does not know where an actor lives. `program.py` gives it a system on Ray; tests and the
seedling give it one whose actors are plain objects of this process. Both answer calls the same way:

    reference = system.actor(ActorId("sampler", 0)).generate.remote(request)
    done = await system.wait(reference[0], 60, "sampler-0 to sample step 3")
"""

from collections.abc import Callable
from typing import Any, Protocol

from actors.handles import ActorId
from runtime.errors import PippinError


class ActorDied(PippinError):
    """Says that an actor's process is gone. Its work can be done again."""


class ActorStuck(ActorDied):
    """Says that an actor has not answered within its deadline. It is killed and started again, but not
    often.
    """


class ActorSystem(Protocol):
    """Reaches the actors of one run."""

    def start(self, actor: ActorId) -> Any:
        """Begins to start (or restart) an actor. Returns its handle."""
        ...

    def actor(self, actor: ActorId) -> Any:
        """Returns the handle of a started actor: `actor(...).method.remote(...)`."""
        ...

    async def wait(self, reference: Any, timeout_s: float, what: str) -> Any:
        """Returns the value of a reference.

        Raises ActorDied if the actor died, ActorStuck if it did not answer in time ("waited 60 s for
        sampler-0 to sample step 3"), the actor's own error if that is a PippinError, else RunFailed.
        """
        ...

    def stop(self) -> None:
        """Ends all actors."""
        ...


class LocalActorSystem:
    """Holds actors as plain objects in this process. A call happens at once and its outcome is kept."""

    def __init__(self, make: Callable[[ActorId], Any]) -> None:
        self._make = make
        self._actors: dict[ActorId, Any] = {}

    def start(self, actor: ActorId) -> Any:
        """Constructs the object. Returns its handle."""
        if (old := self._actors.pop(actor, None)) is not None:
            old.close()
        self._actors[actor] = _LocalActor(self._make(actor))
        return self._actors[actor]

    def actor(self, actor: ActorId) -> Any:
        """Returns the handle of an actor."""
        return self._actors[actor]

    async def wait(self, reference: Any, timeout_s: float, what: str) -> Any:
        """Returns the outcome of a call that has happened already."""
        return reference.value()

    def stop(self) -> None:
        """Forgets the objects, closing what they hold."""
        for actor in self._actors.values():
            actor.close()
        self._actors.clear()


class _LocalActor:
    def __init__(self, target: Any) -> None:
        self.target = target

    def close(self) -> None:
        """Lets the object go, as the end of its process would."""
        if close := getattr(self.target, "close", None):
            close()

    def __getattr__(self, name: str) -> Any:
        return _LocalMethod(getattr(self.target, name))


class _LocalMethod:
    def __init__(self, method: Any) -> None:
        self._method = method

    def remote(self, *arguments: Any) -> Any:
        count = getattr(self._method, "__ray_num_returns__", None) or 1
        try:
            given = [a.value() if isinstance(a, _Outcome) else a for a in arguments]
            result = self._method(*given)
        except Exception as error:  # kept for the call that waits, as Ray does
            outcomes = [_Outcome(error=error) for _ in range(count)]
        else:
            results = result if count > 1 else (result,)
            outcomes = [_Outcome(result=one) for one in results]
        return outcomes if count > 1 else outcomes[0]


class _Outcome:
    def __init__(self, result: Any = None, error: Exception | None = None) -> None:
        self._result, self._error = result, error

    def value(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result
