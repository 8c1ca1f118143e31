"""LG-FedAvg: Liang, Liu, Liu, Allen, Auerbach, Brent, Salakhutdinov & Morency, 2020 (2001.01523).

Local and global: the mirror of FedPer. The representation stays with the client and the head above
it is averaged, so that clients may have bodies of their own, below heads of the same shapes, which
``student.representation`` gives all::

    client n   w_n = (own body, global head h), trained together on private data;  h_n, sent
    server     h   = sum_n samples_n / samples * h_n
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from fedkd import students
from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.strategies.fedavg import AverageOptions, FedAvg
from fedkd.work import Fit, Load, Parameters, Share, Step


class LGFedAvg(FedAvg):
    """Averages the head; each client keeps the body below it (Liang et al. 2020).

    Departures: averaging starts from fresh students, where the authors' code starts from students
    that FedAvg has trained; a client is tested with its own body, where the paper has new clients
    use the ensemble of all. The paper's auxiliary losses on the representation are left out.
    """

    class Options(AverageOptions):
        """Keys of ``[strategy]``."""

        shared_blocks: int = Field(1, ge=1)
        """Number of last blocks that are averaged; 1 is the head alone, all of them is FedAvg."""

    one_architecture = False

    def setup(self) -> None:
        """The head that all clients start from, and the names of its blocks."""
        models = dict.fromkeys(self.experiment.student.models)
        self.parameters = alike({model: self.head_of(model) for model in models}, self.experiment)
        self.shared = tuple(dict.fromkeys(name.partition(".")[0] for name in self.parameters))

    def head_of(self, model: str) -> Parameters:
        """The parameters of the shared blocks of a fresh ``model``."""
        student, count = self.initial_student(model), self.options.shared_blocks
        blocks = students.blocks(student)
        if count > len(blocks):
            raise FedkdError(
                f"strategy.shared_blocks = {count} is not allowed: {model} has {len(blocks)} "
                f"blocks ({', '.join(blocks)})"
            )
        names = students.part_names(student, blocks[-count:] if count else blocks)
        return {name: student.state_dict()[name].contiguous() for name in names}

    def learn(self, round: int, client: int) -> Sequence[Step]:
        """Train the own body under the common head, and send back the head."""
        return [Load(self.parameters), Fit(), Share(self.shared)]


def alike(heads: Mapping[str, Parameters], experiment: Experiment) -> Parameters:
    """The first of ``heads``, which are by architecture and to be of the same shapes.

    Raises
    ------
    FedkdError
        They are not; the line says what each has.
    """
    first = next(iter(heads.values()))
    shapes = {name: w.shape for name, w in first.items()}
    if any({name: w.shape for name, w in head.items()} != shapes for head in heads.values()):
        given = "; ".join(
            f"{model} has {', '.join(f'{name} {tuple(w.shape)}' for name, w in head.items())}"
            for model, head in heads.items()
        )
        raise FedkdError(
            f"student.models = {[*heads]} is not allowed with strategy.name = "
            f"{experiment.strategy.name!r}: its clients have one head, and theirs differ: {given}; "
            "student.representation gives all a head of the same shapes, their last block"
        )
    return first
