"""The client side: a Flower ClientApp that reads an assignment, has it performed, and replies."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedkd.codec import Codec, decode
from fedkd.engine.worker import Worker
from fedkd.errors import FedkdError, blamed
from fedkd.work import Assignment, Reply

IDENTITY = "partition-id"


def client_app(worker_of: Callable[[Context], Worker]) -> ClientApp:
    """The ClientApp, for processes that forget their clients.

    Clients' students live in ``Context.state``, as Flower's runtime may send a client's next
    message to another process.

    Parameters
    ----------
    worker_of
        The worker of this process for the run that a context belongs to.
    """
    app = ClientApp()

    def work(message: Message, context: Context) -> Message:
        assignment: Assignment = decode(message.content)
        client = assignment.client
        try:
            with blamed("a client's process of engine.name = 'flower'"):
                worker = worker_of(context)
        except FedkdError as error:
            return Message(Codec().encode(Reply(client, error=str(error))), reply_to=message)
        worker.states.clear()
        if context.state:
            worker.states[client] = _state(context.state)
        (reply,) = worker.perform_all([assignment], lambda done: None)
        if not (reply.error or reply.failure):
            context.state = _records(worker.states[client])
        return Message(Codec().encode(reply), reply_to=message)

    def identify(message: Message, context: Context) -> Message:
        reply = Reply(int(context.node_config[IDENTITY]))
        return Message(Codec().encode(reply), reply_to=message)

    app.train()(work)
    app.evaluate()(work)
    app.query()(identify)
    return app


def _state(records: RecordDict) -> dict[str, dict]:
    return {name: record.to_torch_state_dict() for name, record in records.array_records.items()}


def _records(state: dict[str, dict]) -> RecordDict:
    return RecordDict({name: ArrayRecord(tensors) for name, tensors in state.items()})
