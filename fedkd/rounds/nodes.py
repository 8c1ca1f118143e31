"""Which node of a federation is which client."""

from __future__ import annotations

import time

from flwr.serverapp import Grid

from fedkd.codec import Codec, decode
from fedkd.errors import FedkdError
from fedkd.work import Reply

NODES_COME_WITHIN = 20.0
"""Seconds to wait for as many nodes as there are clients."""


def identify(grid: Grid, clients: int, timeout: float) -> dict[int, int]:
    """Node id of every client, by asking the nodes which client each of them is.

    Parameters
    ----------
    clients
        How many there are; nodes have :data:`NODES_COME_WITHIN` seconds to appear.
    timeout
        Seconds that they may take to answer.

    Raises
    ------
    FedkdError
        There are not as many nodes as clients, or no node is one of the clients.
    """
    codec = Codec()
    # Nodes of Flower's runtime come to the grid one after another.
    deadline = time.monotonic() + NODES_COME_WITHIN
    while len(nodes := list(grid.get_node_ids())) < clients and time.monotonic() < deadline:
        time.sleep(0.05)
    if len(nodes) != clients:
        raise FedkdError(
            f"data.clients = {clients}, but the federation has {len(nodes)} nodes; "
            "make the two the same"
        )
    ask = [grid.create_message(codec.encode(Reply(-1)), "query", node, "0") for node in nodes]
    replies = list(grid.send_and_receive(ask, timeout=timeout))
    found = {
        decode(message.content).client: message.metadata.src_node_id
        for message in replies
        if message.has_content()
    }
    if missing := [client for client in range(clients) if client not in found]:
        raise FedkdError(f"no node of the federation is client {missing[0]} of {clients}")
    return found
