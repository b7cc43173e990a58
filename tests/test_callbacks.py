import pytest
from reinforce_helpers import make_model
from stable_baselines3.common.callbacks import BaseCallback

from agents.callbacks import ProgressBar, add_progress_bar


class Stop(BaseCallback):
    """Stops after the third step of the environment."""

    def _on_step(self):
        return self.n_calls < 3


def learn_with_bar(model, total_updates, total_timesteps=10**9, **arguments):
    callbacks = add_progress_bar(None, total_updates)
    (bar,) = callbacks.callbacks
    model.learn(total_timesteps, callbacks, total_updates=total_updates, **arguments)
    return bar.pbar


def test_the_bar_counts_updates():
    model = make_model()
    pbar = learn_with_bar(model, 3)
    assert (pbar.n, pbar.total) == (3, 3)
    pbar = learn_with_bar(model, 2, reset_num_timesteps=False)  # those of this call alone
    assert (pbar.n, pbar.total) == (2, 2)


def test_the_bar_counts_tokens():
    model = make_model()
    pbar = learn_with_bar(model, None, 30)
    assert pbar.n == model.num_timesteps >= 30
    assert pbar.total == 30
    before = model.num_timesteps
    pbar = learn_with_bar(model, None, 30, reset_num_timesteps=False)
    assert pbar.n == model.num_timesteps - before >= 30


def test_the_bar_counts_what_was_written_before_a_stop():
    model = make_model()
    callbacks = add_progress_bar(Stop(), None)
    model.learn(10**6, callbacks)
    assert callbacks.callbacks[-1].pbar.n == model.num_timesteps > 0
    assert model._n_updates == 0


@pytest.mark.parametrize("kind", ["none", "callback", "function", "list"])
def test_callbacks_in_every_form_are_called_before_the_bar(kind):
    calls = []

    class Counts(BaseCallback):
        def _on_step(self):
            calls.append(self.num_timesteps)
            return True

    def function(local_variables, _):
        calls.append(local_variables["tokens"])
        return True

    given = {
        "none": None,
        "callback": Counts(),
        "function": function,
        "list": [Counts(), function],
    }[kind]
    callbacks = add_progress_bar(given, 1)
    assert isinstance(callbacks.callbacks[-1], ProgressBar)
    assert len(callbacks.callbacks) == {"none": 1, "list": 3}.get(kind, 2)
    make_model().learn(10**6, callbacks, total_updates=1)
    assert bool(calls) == (kind != "none")


@pytest.mark.parametrize("total_updates", [None, 2])
def test_learn_shows_a_bar_only_when_asked(total_updates, capsys):
    make_model().learn(20, total_updates=total_updates)
    assert "%" not in "".join(capsys.readouterr())
    make_model().learn(20, progress_bar=True, total_updates=total_updates)
    assert "%" in "".join(capsys.readouterr())
