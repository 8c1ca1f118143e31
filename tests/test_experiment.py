"""The experiment file: what is written is what is read, and what is wrong is said in one line."""

import numpy as np
import pytest

from fedkd.errors import FedkdError
from fedkd.experiment import Experiment
from fedkd.strategies.fedd2s import FedD2S


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
    tables |= {"text", "dp", "release", "public", "canary", "distill", "server", "measure"}
    for name, field in fields(Experiment):
        assert field.description or name.rsplit(".", 1)[1] in tables, name
        assert not field.is_required(), name


def test_the_digest_tells_experiments_apart_and_not_where_they_run():
    base = Experiment.from_toml("")
    assert base.digest() != Experiment.from_toml("seed = 1").digest()
    assert base.digest() != Experiment.from_toml("", ["strategy.beta=1"]).digest()
    for elsewhere in ("name='x'", "data.data_dir='d'", "engine.name='flower'", "engine.workers=1"):
        assert base.digest() == Experiment.from_toml("", [elsewhere]).digest()


def test_keys_that_have_their_defaults_do_not_count_in_the_digest():
    """So that a key which a later version adds makes no other experiment of an old one."""
    given = Experiment.from_toml(Experiment().to_toml())
    assert given.digest() == Experiment().digest()

    class Later(Experiment):
        another: int = 3

    assert Later().digest() == Experiment().digest()
    assert Later(another=4).digest() != Later().digest()


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
        ("a=", r"a is not a known key"),
        ("a.b.c.d=1", r"a is not a known key"),
        ("a..b=1", r"--set 'a\.\.b=1' is not of the form key=value"),
        ("da ta=1", r"--set 'da ta=1' is not of the form key=value"),
        ('"da ta"=1', r"'da ta' is not a known key"),
        ("größe=1", r"--set 'größe=1' is not of the form key=value"),
        ("[data]\nalpha=1", r"is not of the form key=value"),
        ("rounds=3\nseed=5", r"rounds = '3\\nseed=5' is not allowed"),
        ("data=3", r"data = 3 is not allowed: input should be a table"),
        ("data={}", r"--set 'data=\{\}' sets nothing"),
        ("data=[{alpha = 1}]", r"data = \[\{'alpha': 1\}\] is not allowed: .*table"),
        ("data.test=3", r"data\.test = 3 is not allowed: .*table"),
        ("student.models=3", r"student\.models = 3 is not allowed: .*string, in quotes"),
        ("student.models={a = 1}", r"student\.models = \{'a': 1\} is not allowed: .*list"),
        # Types are taken as they stand.
        ("rounds=true", r"rounds = true is not allowed: .*integer"),
        ("rounds=3.0", r"rounds = 3\.0 is not allowed: .*integer, without a decimal point"),
        ("seed=1.0", r"seed = 1\.0 is not allowed: .*integer, without a decimal point"),
        ("data.alpha=true", r"data\.alpha = true is not allowed: .*number"),
        ("data.clients='10'", r"data\.clients = '10' is not allowed: .*integer, without quotes"),
        ("data.alpha='1e-1'", r"data\.alpha = '1e-1' is not allowed: .*number, without quotes"),
        ("data.download='false'", r"data\.download = 'false' is not allowed: .*without quotes"),
        ("data.download=1", r"data\.download = 1 is not allowed: .*true or false"),
        ("engine.remember=yes", r"engine\.remember = 'yes' is not allowed: .*true or false$"),
        ("rounds=[3]", r"rounds = \[3\] is not allowed: .*integer"),
        ("name=2024", r"name = 2024 is not allowed: .*string, in quotes"),
        ("canary.clients=[1, true]", r"canary\.clients = true is not allowed: .*integer"),
        ("seed=2020-01-01", r"seed = .*2020, 1, 1.* is not allowed"),
        ("data.alpha=07:32:00", r"data\.alpha = .* is not allowed"),
        # What nobody can mean.
        ("rounds=1_000_000_000_000", r"rounds = 1000000000000 is not allowed: .*1000000$"),
        ("rounds=-9223372036854775808", r"rounds = -9223372036854775808 is not allowed"),
        ("rounds=9223372036854775808", r"rounds = 9223372036854775808 is not allowed: .*64 bits"),
        ("data.clients=1_000_000_000", r"data\.clients = 1000000000 is not allowed"),
        ("data.text.context=1_000_000_000", r"data\.text\.context = 1000000000 is not allowed"),
        ("training.local_epochs=1e300", r"training\.local_epochs = 1e\+300 is not allowed"),
        ("training.batch_size=1e9", r"training\.batch_size = 1000000000\.0 is not allowed"),
        ("student.width=1e9", r"student\.width = 1000000000\.0 is not allowed"),
        ("engine.threads=100_000", r"engine\.threads = 100000 is not allowed"),
        ("engine.workers=100_000", r"engine\.workers = 100000 is not allowed"),
        ("engine.timeout=1e300", r"engine\.timeout = 1e\+300 is not allowed"),
        ("release.draws=100_000_000", r"release\.draws = 100000000 is not allowed"),
        ("canary.secrets=1_000_000_000", r"canary\.secrets = 1000000000 is not allowed"),
        ("canary.repeats=1_000_000_000", r"canary\.repeats = 1000000000 is not allowed"),
        ("canary.length=1_000_000_000", r"canary\.length = 1000000000 is not allowed"),
        ("canary.references=1_000_000_000", r"canary\.references = 1000000000 is not allowed"),
        ('data.data_dir="\\u0000"', r"data\.data_dir = '\\x00' is not allowed: .*null character"),
        ("data.data_dir='\udcff'", r"data\.data_dir = '\\udcff' is not allowed: .*Unicode"),
        ("name=" + "x" * 300, r"name = 'x+… is not allowed"),
        ("rounds=" + "1" * 5000, r"--set 'rounds=1+… is not allowed: .*64 bits"),
        ("rounds=0x" + "f" * 5000, r"rounds = \(int, too long to be shown\) is not allowed: .*64"),
        ("rounds=" + "[" * 50_000, r"is not allowed: tables and lists are more than 32 deep"),
        ("a." * 500 + "a=1", r"a\.a is not allowed: tables and lists are more than 32 deep"),
        ("a." * 50_000 + "a=1", r"--set 'a.* is not allowed: tables and lists are more than 32"),
    ],
)
def test_wrong_input_is_one_line_naming_key_value_and_what_is_allowed(override, line):
    with pytest.raises(FedkdError, match=line) as failure:
        Experiment.from_toml("", [override])
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 600


def test_a_single_value_is_a_list_of_one():
    for tables in ({"models": "cnn3"}, {"models": ["cnn3"]}):
        assert Experiment.from_dict({"student": tables}).student.models == ("cnn3",)
    assert Experiment.from_toml("", ["student.models=cnn3"]).student.models == ("cnn3",)
    assert Experiment.from_toml("", ["canary.repeats=16"]).canary.repeats == (16,)


def test_a_table_that_is_set_leaves_its_other_keys():
    text = "[data]\nclients = 4\nalpha = 2.0\n[strategy]\nname = 'fedmd'\ntau = 3.0"
    experiment = Experiment.from_toml(text, ["data={alpha = 1}", "strategy={name = 'fedmd'}"])
    assert (experiment.data.clients, experiment.data.alpha) == (4, 1.0)
    assert experiment.strategy.options == {"tau": 3.0}
    other = Experiment.from_toml(text, ["strategy={name = 'knfu'}"])
    assert other.strategy.options == {}  # those of another method


@pytest.mark.parametrize("file", ["'mae_logits'", "{name = 'dkd', beta = 4.0}"])
@pytest.mark.parametrize("before", [[], ["strategy.objective={name = 'dkd', alpha = 2.0}"]])
def test_another_objective_leaves_nothing_of_the_one_before(file, before):
    text = f"[strategy]\nname = 'fedntd'\nobjective = {file}"
    set_last = [*before, "strategy.objective={name = 'forward_kl'}"]
    experiment = Experiment.from_toml(text, set_last)
    assert experiment.strategy.options == {"objective": {"name": "forward_kl"}}


def test_the_same_objective_keeps_its_other_options():
    text = "[strategy]\nname = 'fedntd'\nobjective = {name = 'dkd', beta = 4.0}"
    experiment = Experiment.from_toml(text, ["strategy.objective={name = 'dkd', alpha = 2.0}"])
    kept = {"name": "dkd", "beta": 4.0, "alpha": 2.0}
    assert experiment.strategy.options == {"objective": kept}


def test_the_last_of_two_overrides_of_a_key_counts():
    assert Experiment.from_toml("", ["rounds=3", "rounds=5"]).rounds == 5
    assert Experiment.from_toml("", ["data.alpha=3", "data={alpha = 5}"]).data.alpha == 5


def test_keys_may_be_quoted_and_numbers_written_as_shells_do():
    overrides = ['"data" . "alpha" = 3', "training.lr=.5", "training.local_epochs=2."]
    experiment = Experiment.from_toml("", overrides)
    assert experiment.data.alpha == 3.0
    assert (experiment.training.lr, experiment.training.local_epochs) == (0.5, 2.0)


def test_numbers_of_numpy_are_numbers():
    experiment = Experiment.from_dict({"seed": np.int64(3), "training": {"lr": np.float32(0.5)}})
    assert (experiment.seed, experiment.training.lr) == (3, 0.5)


def test_an_option_of_a_strategy_is_as_strict_and_names_every_alternative():
    def read(*overrides):
        experiment = Experiment.from_toml("[strategy]\nname = 'fedd2s'", overrides)
        return FedD2S.read_options(experiment)

    assert read("strategy.cuts=conv2").cuts == ("conv2",)
    for wrong in ("x", "true", "2.0", "0"):
        line = rf"strategy\.rounds_per_drop = '?{wrong}'? is not allowed: .* 'auto' or 'never'"
        with pytest.raises(FedkdError, match=line):
            read(f"strategy.rounds_per_drop={wrong}")


def test_text_that_is_not_toml_is_one_line():
    with pytest.raises(FedkdError, match="not valid TOML"):
        Experiment.from_toml("rounds = = 3")
