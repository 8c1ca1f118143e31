"""What hosts of workers have in common, and the Grid that a strategy speaks to them through.

A host performs assignments somewhere: in this process, in others, in Ray actors. It is given all
of a phase at once, so that it can send every worker one piece of work.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flwr.app import DEFAULT_TTL, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from fedkd.codec import Codec, decode
from fedkd.work import Assignment, Reply

if TYPE_CHECKING:
    from fedkd.engine.clients import State

SERVER = -1
Answered = Callable[[], None]
"""Called whenever a client has done its work."""


class Host(ABC):
    """A place where clients' work is done; a context manager that leaves nothing running.

    ``plan`` says in a line what runs where; ``clients`` is their number.
    """

    plan: str
    clients: int

    @abstractmethod
    def perform(self, assignments: Sequence[Assignment], answered: Answered) -> list[Reply]:
        """Have the assignments performed: replies in their order.

        Raises
        ------
        FedkdError
            The work cannot be done, for a reason that a person can act on.
        """

    @property
    @abstractmethod
    def states(self) -> Mapping[int, State]:
        """What clients keep, of those that have worked: for a checkpoint."""

    @abstractmethod
    def restore(self, states: Mapping[int, State]) -> None:
        """Have clients keep ``states`` and nothing else: what :attr:`states` gave before."""

    @abstractmethod
    def close(self) -> None:
        """End everything that was started; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class HostGrid(Grid):
    """Flower's Grid over a host; node ids are client ids."""

    def __init__(self, host: Host, answered: Answered = lambda: None) -> None:
        self.host = host
        self._answered = answered
        self._pushed = 0
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """There is no Flower run behind this grid."""
        raise NotImplementedError("this engine has no Flower run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; see Flower's ``Grid``."""
        # Message's other constructors ask Flower's runtime for the run they are in: there is none.
        metadata = Metadata(
            run_id=0,
            message_id="",
            src_node_id=SERVER,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl or DEFAULT_TTL,
            message_type=message_type,
        )
        return Message(content=content, metadata=metadata)  # type: ignore[call-overload]

    def get_node_ids(self) -> Iterable[int]:
        """All clients."""
        return range(self.host.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have the messages answered; the ids are for :meth:`pull_messages`."""
        names = []
        for reply in self.send_and_receive(messages):
            self._pushed += 1
            names.append(str(self._pushed))
            self._replies[names[-1]] = reply
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to messages that were pushed."""
        return [self._replies.pop(name) for name in message_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Have every message answered, in order; ``timeout`` is not needed."""
        asked = list(messages)
        seen: dict[int, Any] = {}
        things = [decode(message.content, seen) for message in asked]
        work = [thing for thing in things if isinstance(thing, Assignment)]
        done = iter(self.host.perform(work, self._answered) if work else [])
        codec = Codec()
        answers = []
        for message, thing in zip(asked, things, strict=True):
            node = message.metadata.dst_node_id
            reply = next(done) if isinstance(thing, Assignment) else Reply(node)
            answers.append(Message(codec.encode(reply), reply_to=message))
        return answers
