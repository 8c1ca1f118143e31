"""The inline engine: one worker in this process, behind Flower's Grid interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import DEFAULT_TTL, Context, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from fedkd.client import IDENTITY, client_app
from fedkd.engine.worker import Worker

SERVER = -1


class InlineGrid(Grid):
    """Hands every message to the ClientApp at once; node ids are client ids."""

    def __init__(self, worker: Worker, answered: Callable[[], None] = lambda: None) -> None:
        self.worker = worker
        self._answered = answered
        self._app = client_app(lambda _: worker, resident=True)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run in this process."""

    @property
    def run(self) -> Any:
        """There is no Flower run behind this grid."""
        raise NotImplementedError("the inline engine has no Flower run")

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
        return range(self.worker.data.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have the messages answered; the ids are for :meth:`pull_messages`."""
        names = []
        for message in messages:
            names.append(str(len(self._replies)))
            self._replies[names[-1]] = self._answer(message)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to messages that were pushed."""
        return [self._replies.pop(name) for name in message_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Have every message answered, in order; ``timeout`` is not needed."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(
            run_id=0, node_id=node, node_config={IDENTITY: node}, state=RecordDict(), run_config={}
        )
        reply = self._app(message, context)
        self._answered()
        return reply
