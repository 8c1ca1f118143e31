"""The experiment file: what is written is what is read, and what is wrong is said in one line."""

import pytest

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment


def test_every_experiment_reads_back_as_it_was_written():
    experiment = Experiment.from_toml(
        "rounds = 3\n[strategy]\nname = 'knfu'\nbeta = 0.5\n[data.transfer]\nsize = 7\n"
    )
    assert Experiment.from_toml(experiment.to_toml()) == experiment


def test_overrides_reach_any_key_with_toml_values():
    experiment = Experiment.from_toml(
        "rounds = 3",
        [
            "rounds=5",
            "strategy.beta=3",
            'student.models=["cnn2", "mlp"]',
            "data.transfer.size=9",
            "data.download=true",
        ],
    )
    assert experiment.rounds == 5
    assert experiment.strategy.options == {"beta": 3}
    assert experiment.student.models == ("cnn2", "mlp")
    assert experiment.data.transfer.size == 9
    assert experiment.data.download is True


def test_clients_take_turns_with_the_models():
    experiment = Experiment.from_toml("[student]\nmodels = ['cnn2', 'mlp']")
    assert [experiment.architecture(n) for n in range(4)] == ["cnn2", "mlp", "cnn2", "mlp"]


def test_every_field_is_documented():
    def fields(model):
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from fields(field.annotation)

    tables = {"data", "student", "training", "strategy", "engine", "test", "transfer"}
    tables |= {"text", "dp", "release", "public", "canary"}
    for name, field in fields(Experiment):
        assert field.description or name.rsplit(".", 1)[1] in tables, name
        assert not field.is_required(), name


def test_the_digest_tells_experiments_apart_and_not_where_they_run():
    base = Experiment.from_toml("")
    assert base.digest() != Experiment.from_toml("seed = 1").digest()
    assert base.digest() != Experiment.from_toml("", ["strategy.beta=1"]).digest()
    for elsewhere in ("name='x'", "data.data_dir='d'", "engine.name='flower'", "engine.workers=1"):
        assert base.digest() == Experiment.from_toml("", [elsewhere]).digest()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.alpa=1", r"data\.alpa is not a known key \(did you mean 'alpha'\?\)"),
        ("roundz=1", r"roundz is not a known key \(did you mean 'rounds'\?\)"),
        ("data.test.onw=1", r"data\.test\.onw is not a known key \(did you mean 'own'\?\)"),
        ("rounds=0", r"rounds = 0 is not allowed: .*greater than or equal to 1"),
        ("rounds=x", r"rounds = 'x' is not allowed: .*integer"),
        ("data.alpha=0", r"data\.alpha = 0 is not allowed: .*greater than 0"),
        ("data.alpha=-1.5", r"data\.alpha = -1\.5 is not allowed"),
        ("data.alpha=nan", r"data\.alpha = nan is not allowed"),
        ("training.lr=inf", r"training\.lr = inf is not allowed"),
        ("data.download=perhaps", r"data\.download = 'perhaps' is not allowed: .*boolean"),
        ("participation=1.5", r"participation = 1\.5 is not allowed"),
        ("student.models=[]", r"student\.models = \[\] is not allowed"),
        ("data.test.own=foo", r"data\.test\.own = 'foo' is not allowed: .*'split' or 'matched'"),
        ("name=a/b", r"name = 'a/b' is not allowed"),
        ("strategy=3", r"strategy = 3 is not allowed"),
        ("rounds.x=3", r"rounds"),
        ("beta", r"--set 'beta' is not of the form key=value"),
        ("=3", r"--set '=3' is not of the form key=value"),
    ],
)
def test_wrong_input_is_one_line_naming_key_value_and_what_is_allowed(override, line):
    with pytest.raises(FedkdError, match=line) as failure:
        Experiment.from_toml("", [override])
    assert "\n" not in str(failure.value)


def test_text_that_is_not_toml_is_one_line():
    with pytest.raises(FedkdError, match="not valid TOML"):
        Experiment.from_toml("rounds = = 3")
