import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import letters
from reinforce_helpers import (
    END,
    PAD,
    STEPS,
    TINY,
    VOCABULARY,
    Records,
    collected,
    flat,
    make_envs,
    make_model,
)
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from agents import GPT2, REINFORCE, GPT2Config, GPT2Policy
from agents.reinforce import Episodes

# ------------------------------------------------------------------- the estimator, by enumeration


def all_texts():
    """Every episode of the toy: words until <|endoftext|> or the limit."""
    for n in range(STEPS + 1):
        for words in itertools.product(range(END), repeat=n):
            yield [*words, END] if n < STEPS else list(words)


def episodes_of(texts, rewards):
    """A batch as `collect_episodes` makes it, in double precision."""
    places = torch.full((len(texts), STEPS), PAD)
    paid = torch.zeros(len(texts), STEPS, dtype=torch.float64)
    for row, (text, reward) in enumerate(zip(texts, rewards, strict=True)):
        places[row, : len(text)] = torch.tensor(text)
        paid[row, : len(text)] = torch.tensor(reward, dtype=torch.float64)
    return Episodes(places, places < PAD, paid, [{}] * len(texts))


def toy(**arguments):
    """A model of the toy in double precision, its episodes and their dense rewards.

    What a step pays depends on the text up to it, not on what comes after.
    """
    model = make_model(make_envs(arguments.pop("num_envs", 2)), **arguments)
    model.policy.double()
    model.reference.double()
    texts = list(all_texts())
    generator = np.random.default_rng(0)
    pays = {tuple(text[:n]): generator.normal() for text in texts for n in range(1, STEPS + 1)}
    rewards = [[pays[tuple(text[: n + 1])] for n in range(len(text))] for text in texts]
    return model, texts, rewards


def exact_gradient(model, texts, rewards, *, kl_coef=0.0, ent_coef=0.0, gamma=1.0):
    """That of -E[return] - c·E[Σ entropy], from the probabilities of all episodes.

    The penalised return is discounted step by step; the KL term's own gradient has mean zero.
    """
    policy = model.policy
    batch = episodes_of(texts, rewards)
    scores = policy.evaluate_texts(batch.texts, batch.mask)
    start = policy.evaluate_texts(batch.texts, batch.mask, gpt2=model.reference)
    log_ratio = (scores.log_prob - start.log_prob).detach()
    paid = batch.rewards - kl_coef * log_ratio
    p = scores.log_prob.sum(1).exp()
    torch.testing.assert_close(p.sum().item(), 1.0, atol=1e-12, rtol=0)
    # d/dθ E[Σ_t r_t] with γ = 1; with γ < 1 REINFORCE weights each step's return to go equally.
    if gamma == 1:
        objective = (p * paid.sum(1)).sum()
    else:
        to_go = torch.zeros_like(paid)
        running = torch.zeros_like(paid[:, 0])
        for t in reversed(range(STEPS)):
            running = paid[:, t] + gamma * running
            to_go[:, t] = running
        objective = (p.detach() * (to_go * scores.log_prob).sum(1)).sum()
    entropy = (p.detach() * scores.entropy.sum(1)).sum()
    return flat(
        torch.autograd.grad(
            -objective - ent_coef * entropy, list(policy.gpt2.parameters()), allow_unused=False
        )
    )


def estimate(model, texts, rewards, rows):
    """The gradient that `train` would step along for a batch of these episodes."""
    policy = model.policy
    batch = episodes_of([texts[i] for i in rows], [rewards[i] for i in rows])
    scores = model._evaluate_own_texts(batch.texts, batch.mask)
    with torch.no_grad():
        start = policy.evaluate_texts(batch.texts, batch.mask, gpt2=model.reference)
        returns, advantages = model.advantages(
            batch, scores.log_prob - start.log_prob, scores.values, scores.kl
        )
    terms = model.loss_terms(scores, start, returns, advantages, batch.mask, len(rows))
    terms.pop(
        "value_loss", None
    )  # trains the value head, and through it the body: not the objective
    loss = sum(term for term in terms.values())
    gradient = flat(torch.autograd.grad(loss, list(policy.gpt2.parameters())))
    p = scores.log_prob.detach().sum().exp().item()
    return p, gradient


@pytest.mark.parametrize("baseline", ["none", "mean", "ema", "rloo", "value"])
@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"kl_coef": 0.3},
        {"ent_coef": 0.2},
        {"gamma": 0.9},
        {"kl_coef": 0.3, "kl_estimator": "exact", "ent_coef": 0.2},
        {"kl_coef": 0.3, "kl_estimator": "exact", "gamma": 0.9},
    ],
    ids=str,
)
def test_expected_estimate_is_the_exact_gradient(baseline, terms):
    """That of -E[return] - c·E[Σ entropy], where the bonus ignores its effect on later states.

    Every pair of episodes, weighted with its probability: no sampling, float error only.
    """
    model, texts, rewards = toy(baseline=baseline, **terms)
    terms = {name: value for name, value in terms.items() if name != "kl_estimator"}
    with torch.no_grad():
        model.policy.value_head.weight.normal_()  # any baseline of the state will do
    ema = torch.linspace(0.5, -1, STEPS, dtype=torch.float64)
    expected = torch.zeros_like(exact_gradient(model, texts, rewards))
    total = 0.0
    for rows in itertools.product(range(len(texts)), repeat=2):
        model._baseline.moving_average = ema.clone() if baseline == "ema" else None
        p, gradient = estimate(model, texts, rewards, rows)
        expected += p * gradient
        total += p
    assert total == pytest.approx(1, abs=1e-12)
    exact = exact_gradient(model, texts, rewards, **terms)
    assert exact.norm() > 1e-2
    torch.testing.assert_close(expected, exact, atol=1e-10, rtol=1e-8)


def test_baselines_lower_the_variance_of_the_toy():
    """What baselines are for; with a constant added to every reward the difference is plain."""
    spread = {}
    for baseline in ("none", "rloo"):
        model, texts, rewards = toy(baseline=baseline)
        rewards = [[r + 5 for r in row] for row in rewards]
        exact = exact_gradient(model, texts, rewards)
        spread[baseline] = sum(
            p * (g - exact).square().sum().item()
            for p, g in (
                estimate(model, texts, rewards, rows)
                for rows in itertools.product(range(len(texts)), repeat=2)
            )
        )
    assert spread["rloo"] < 0.5 * spread["none"]


def test_exact_kl_lowers_the_variance_of_the_toy():
    """Without rewards, where the KL's gradient is all there is."""
    spread = {}
    for estimator in ("k1", "exact"):
        model, texts, rewards = toy(kl_coef=1.0, kl_estimator=estimator)
        rewards = [[0.0 for _ in row] for row in rewards]
        exact = exact_gradient(model, texts, rewards, kl_coef=1.0)
        spread[estimator] = sum(
            p * (g - exact).square().sum().item()
            for p, g in (
                estimate(model, texts, rewards, rows)
                for rows in itertools.product(range(len(texts)), repeat=2)
            )
        )
    assert spread["exact"] < 0.5 * spread["k1"]


def test_k3_is_zero_mean_error_of_k1():
    """Both estimate the same divergence: E[k1] = E[k3] = KL, over all episodes."""
    model, texts, rewards = toy()
    batch = episodes_of(texts, rewards)
    with torch.no_grad():
        scores = model.policy.evaluate_texts(batch.texts, batch.mask)
        start = model.policy.evaluate_texts(batch.texts, batch.mask, gpt2=model.reference)
    ratio = scores.log_prob - start.log_prob
    p = scores.log_prob.sum(1).exp()
    k1 = (p * ratio.sum(1)).sum()
    k3 = (p * (torch.expm1(-ratio) + ratio).sum(1)).sum()
    assert k1 > 0.01
    torch.testing.assert_close(k1, k3)


# ----------------------------------------------------------------------------------------- the loss


def gradients(model, episodes):
    model.policy.optimizer.step = lambda: None
    model.train(episodes)
    return flat([p.grad for p in model.policy.gpt2.parameters()])


@pytest.mark.parametrize("baseline", ["none", "mean", "ema", "rloo", "value"])
@pytest.mark.parametrize("kl_estimator", ["k1", "k3", "exact"])
def test_micro_batches_give_the_same_gradient(baseline, kl_estimator):
    arguments = {
        "baseline": baseline,
        "kl_coef": 0.2,
        "kl_estimator": kl_estimator,
        "ent_coef": 0.1,
        "max_grad_norm": 1e9,
        "normalize_advantage": True,
    }
    results = []
    for size in (None, 3, 1):
        model = make_model(make_envs(8), micro_batch_size=size, **arguments)
        results.append(gradients(model, collected(model)))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(results[2], results[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kl_estimator", ["k1", "exact"])
def test_normalized_advantages_keep_the_weight_of_the_kl(kl_estimator):
    """A reward and a β of a tenth are the same task, and normalised they have the same gradient."""
    results = []
    for scale in (1.0, 0.1):
        model = make_model(
            make_envs(8),
            baseline="mean",
            kl_coef=0.5 * scale,
            kl_estimator=kl_estimator,
            normalize_advantage=True,
            max_grad_norm=1e9,
        )
        episodes = collected(model)
        episodes.rewards *= scale
        results.append(gradients(model, episodes))
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("baseline", ["none", "mean", "ema", "value"])
def test_row_order_changes_nothing(baseline):
    model = make_model(make_envs(8), baseline=baseline, max_grad_norm=1e9)
    batch = collected(model)
    order = torch.randperm(8)
    shuffled = Episodes(batch.texts[order], batch.mask[order], batch.rewards[order], batch.infos)
    expected = gradients(model, batch)
    model._baseline.moving_average = None
    torch.testing.assert_close(gradients(model, shuffled), expected, atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing():
    narrow = make_model(make_envs(4, max_tokens=5), max_grad_norm=1e9)
    wide = make_model(make_envs(4, max_tokens=9), max_grad_norm=1e9)
    wide.policy.load_state_dict(narrow.policy.state_dict())
    wide.reference.load_state_dict(narrow.reference.state_dict())
    batch = collected(narrow)
    collected(wide)  # sets the logger up
    pad = torch.nn.functional.pad
    padded = Episodes(
        pad(batch.texts, (0, 4), value=PAD),
        pad(batch.mask, (0, 4)),
        pad(batch.rewards, (0, 4)),
        batch.infos,
    )
    torch.testing.assert_close(
        gradients(wide, padded), gradients(narrow, batch), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kl_and_log_ratio_are_exactly_zero_before_the_first_update(micro_batch_size, precision):
    envs = make_envs(8)
    config = GPT2Config(vocab_size=3, **TINY)
    model = REINFORCE(
        GPT2Policy,
        envs,
        kl_coef=0.1,
        seed=0,
        precision=precision,
        micro_batch_size=micro_batch_size,
        policy_kwargs={"config": config},
    )
    records = []
    model.learn(1, callback=Records(records))
    assert records[0]["train/kl"] == 0.0
    assert records[0]["train/kl_k3"] == 0.0
    model.learn(1, callback=Records(records), reset_num_timesteps=False)
    assert records[1]["train/kl"] != 0.0


def test_sampled_tokens_are_the_trained_ones():
    """Texts, mask and rewards of a batch are what the environment saw and paid."""
    seen = []

    def judge(texts):
        seen.extend(texts)
        return letters(texts)

    model = make_model(make_envs(8, sentiment_model=judge, length_penalty=0))
    batch = collected(model)
    vocabulary = model.env.get_attr("vocabulary")[0]
    decoded = [vocabulary.decode(row.tolist()) for row in batch.texts]
    assert decoded == [info["text"] for info in batch.infos]
    assert sorted(seen) == sorted(text for text in decoded if text)
    assert batch.mask.tolist() == (batch.texts < PAD).tolist()
    torch.testing.assert_close(
        batch.rewards.sum(1).double(), torch.tensor([info["sentiment"] for info in batch.infos], dtype=torch.float64),
        atol=1e-6, rtol=0,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------- learn


def test_solves_a_task_with_a_known_solution():
    """The judge wants " good bad good" and counts the places that agree: nothing else is written."""

    def judge(texts):
        words = [text.split() for text in texts]
        return np.array([sum(map(str.__eq__, w, ["good", "bad", "good"])) / 3 for w in words])

    envs = make_envs(32, sentiment_model=judge, length_penalty=0)
    model = REINFORCE(
        GPT2Policy,
        envs,
        learning_rate=1e-2,
        ent_coef=0.02,
        seed=1,
        policy_kwargs={"config": GPT2Config(vocab_size=3, **TINY)},
    )
    before, _ = evaluate_policy(model, model.get_env(), 100, deterministic=False)
    model.learn(total_updates=60)
    after, _ = evaluate_policy(model, model.get_env(), 100, deterministic=False)
    assert before < 0.5
    assert after > 0.95


@pytest.mark.parametrize("kind", ["single", "vector", "vector_same_step", "sb3"])
def test_every_kind_of_env(kind):
    arguments = {"vocabulary": VOCABULARY, "sentiment_model": letters, "max_tokens": 4}
    envs = {
        "single": lambda: gym.make("TextSentiment-v0", **arguments),
        "vector": lambda: make_envs(4, **arguments),
        "vector_same_step": lambda: make_envs(4, autoreset_mode="SameStep", **arguments),
        "sb3": lambda: make_vec_env("TextSentiment-v0", 4, env_kwargs=arguments),
    }[kind]()
    model = REINFORCE(GPT2Policy, envs, seed=0)
    model.learn(60)
    assert model.num_timesteps >= 60
    assert model._n_updates >= 4
    mean, _ = evaluate_policy(model, gym.make("TextSentiment-v0", **arguments), 3)
    assert np.isfinite(mean)


def test_native_and_sb3_vectorization_train_alike():
    arguments = {"vocabulary": VOCABULARY, "sentiment_model": letters, "max_tokens": 4}
    weights = []
    for envs in (
        make_envs(4, **arguments),
        make_envs(4, autoreset_mode="SameStep", **arguments),
        make_vec_env("TextSentiment-v0", 4, env_kwargs=arguments),
    ):
        model = REINFORCE(GPT2Policy, envs, seed=3)
        model.learn(total_updates=3)
        weights.append(flat(model.policy.parameters()))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_callbacks_and_logs(tmp_path):
    model = make_model(
        make_envs(8), tensorboard_log=str(tmp_path / "tb"), kl_coef=0.1, ent_coef=0.01
    )
    eval_env = gym.make(
        "TextSentiment-v0", vocabulary=VOCABULARY, max_tokens=3, sentiment_model=letters
    )
    records = []
    callbacks = [
        CheckpointCallback(save_freq=3, save_path=str(tmp_path / "checkpoints")),
        EvalCallback(eval_env, eval_freq=4, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0, warn=False),
        Records(records),
    ]  # fmt: skip
    model.learn(60, callback=callbacks, progress_bar=True)
    assert list((tmp_path / "checkpoints").glob("*.zip"))
    assert (tmp_path / "best_model.zip").exists()
    assert list((tmp_path / "tb").glob("*/events*"))
    expected = {
        "rollout/ep_rew_mean", "rollout/ep_rew_std", "rollout/ep_len_mean", "rollout/sentiment",
        "rollout/length_penalty", "rollout/repetition_penalty", "rollout/length", "rollout/end_rate",
        "train/policy_gradient_loss", "train/entropy_loss", "train/loss", "train/entropy", "train/kl",
        "train/kl_k3", "train/grad_norm", "train/learning_rate", "train/baseline", "train/n_updates",
        "time/episodes", "time/fps", "time/rollout_fps", "time/update_fps", "time/total_timesteps",
    }  # fmt: skip
    assert expected <= records[0].keys()
    assert len(model.ep_info_buffer) == 8 * model._n_updates


def test_a_callback_can_stop_the_training():
    stop = StopTrainingOnRewardThreshold(-10)
    eval_env = gym.make(
        "TextSentiment-v0", vocabulary=VOCABULARY, max_tokens=3, sentiment_model=letters
    )
    model = make_model()
    model.learn(
        10**6,
        callback=EvalCallback(eval_env, callback_on_new_best=stop, eval_freq=5, n_eval_episodes=1, warn=False, verbose=0),
    )  # fmt: skip
    assert model.num_timesteps < 100


def test_request_stop_ends_after_the_update():
    class Stop(BaseCallback):
        def _on_step(self):
            self.model.request_stop()
            return True

    model = make_model()
    model.learn(10**6, callback=Stop())
    assert model._n_updates == 1


def test_learning_rate_schedules():
    def rates(**arguments):
        records = []
        make_model(learning_rate=1.0, **arguments).learn(callback=Records(records), total_updates=4)
        return [r["train/learning_rate"] for r in records]

    assert rates() == [1, 1, 1, 1]
    assert rates(lr_decay="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(lr_decay="cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-5)
    assert rates(warmup_updates=3) == pytest.approx([0.25, 0.5, 0.75, 1])


def test_every_run_of_a_model_warms_up():
    model = make_model(learning_rate=1.0, warmup_updates=3)
    for _ in range(2):
        records = []
        model.learn(callback=Records(records), total_updates=4)
        rates = [r["train/learning_rate"] for r in records]
        assert rates == pytest.approx([0.25, 0.5, 0.75, 1])


def test_a_decaying_rate_by_tokens_begins_whole_and_ends_above_zero():
    """A single update would otherwise have a rate of 0, and learn nothing."""
    records = []
    make_model(learning_rate=1.0, lr_decay="linear").learn(60, Records(records))
    rates = [r["train/learning_rate"] for r in records]
    assert rates[0] == 1
    assert 0 < rates[-1] < 1
    assert sorted(rates, reverse=True) == rates


# ------------------------------------------------------------------------------------------ prompts


def test_rows_of_a_group_get_the_same_prompt():
    prompts = ["good", "bad", "good bad", "bad bad"]
    model = make_model(make_envs(12, prompts=prompts), baseline="rloo", group_size=3)
    drawn = set()
    for _ in range(6):
        batch = collected(model)
        starts = [
            tuple(row[~mask & (row < PAD)].tolist())
            for row, mask in zip(batch.texts, batch.mask, strict=True)
        ]
        for group in range(4):
            assert len(set(starts[3 * group : 3 * group + 3])) == 1
        drawn |= set(starts)
    assert len(drawn) == 4


def test_prompts_are_not_trained_on():
    model = make_model(make_envs(4, prompts=["good bad"]), baseline="mean")
    batch = collected(model)
    assert not batch.mask[:, :2].any()
    assert (batch.texts[:, :2] == torch.tensor([0, 1])).all()
    assert batch.mask[:, 2].all()


# --------------------------------------------------------------------------------------- pretrained


def test_pretrained_weights_are_restricted_and_frozen_as_reference():
    torch.manual_seed(5)
    full = GPT2(GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=1))
    envs = make_envs()
    model = REINFORCE(GPT2Policy, envs, pretrained=full, learning_rate=1e-2, seed=0)
    ids = torch.tensor(envs.vocabulary.token_ids.tolist())
    assert torch.equal(model.policy.gpt2.wte.weight, full.wte.weight[ids])
    model.learn(20)
    assert torch.equal(model.reference.wte.weight, full.wte.weight[ids])
    assert not torch.equal(model.policy.gpt2.wte.weight, full.wte.weight[ids])
    assert list(model.policy.config.token_ids) == envs.vocabulary.token_ids.tolist()


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "median"}, "baseline='median' must be one of 'auto', 'none'"),
        ({"kl_estimator": "k2"}, "kl_estimator='k2'"),
        ({"lr_decay": "step"}, "lr_decay='step'"),
        ({"kl_coef": -1}, "kl_coef=-1"),
        ({"ent_coef": float("nan")}, "ent_coef=nan"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"micro_batch_size": 0}, "micro_batch_size=0"),
        ({"group_size": 3}, "group_size=3 must .* divide the 4 rows"),
        ({"group_size": 1}, "group_size=1 must be at least 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE(GPT2Policy, make_envs(), **arguments)


def test_a_single_row_has_no_others_to_compare_with():
    env = gym.make("TextSentiment-v0", sentiment_model=letters)
    with pytest.raises(ValueError, match="baseline='rloo' compares a row with others.*'ema'"):
        REINFORCE(GPT2Policy, env, baseline="rloo")


@pytest.mark.parametrize(
    ("name", "message"),
    [("Pendulum-v1", r"action space.*Discrete\(V\)"), ("CartPole-v1", "no attribute `vocabulary`")],
)
@pytest.mark.parametrize(
    "make", [gym.make, lambda name: gym.make_vec(name, num_envs=2, vectorization_mode="sync")]
)
def test_foreign_envs_are_refused(name, message, make):
    with pytest.raises(ValueError, match=message):
        REINFORCE(GPT2Policy, make(name))


def test_model_too_short_for_prompts_and_max_tokens():
    full = GPT2(GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="n_positions=16 but observations hold 20 tokens"):
        REINFORCE(GPT2Policy, make_envs(max_tokens=20), pretrained=full)


def test_vocabulary_of_another_env_is_refused():
    config = GPT2Config(vocab_size=3, token_ids=(1, 2, 50256), **TINY)
    with pytest.raises(ValueError, match="vocabulary"):
        REINFORCE(GPT2Policy, make_envs(), policy_kwargs={"config": config})


def test_fresh_weights_know_their_vocabulary():
    model = REINFORCE(GPT2Policy, make_envs(), seed=0)
    assert list(model.policy.config.token_ids) == model._token_ids()
    assert {text.strip() for text in model.generate_text(n=20)} & {"", "good", "bad", "good bad"}


def test_set_env_refuses_another_vocabulary_and_keeps_the_env():
    model = make_model()
    env = model.env
    with pytest.raises(ValueError, match="vocabulary of 3 tokens is not the environment's"):
        model.set_env(make_envs(vocabulary=[" film", " plot"]))
    assert model.env is env
    model.set_env(make_envs())
    assert model.env is not env


def test_dropout_is_refused():
    config = GPT2Config(vocab_size=3, dropout=0.1, **TINY)
    with pytest.raises(ValueError, match=r"dropout=0\.1.*set it to 0"):
        REINFORCE(GPT2Policy, make_envs(), policy_kwargs={"config": config})


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("baseline", ["rloo", "ema"])
def test_a_loss_that_is_not_finite_changes_nothing(bad, baseline):
    model = make_model(baseline=baseline)
    model.train(collected(model))
    batch = collected(model)
    batch.rewards[0, 0] = bad
    before, average = flat(model.policy.parameters()).clone(), model._baseline.moving_average
    with pytest.raises(FloatingPointError, match="update 2: the policy_gradient_loss is "):
        model.train(batch)
    assert torch.equal(flat(model.policy.parameters()), before)
    assert model._baseline.moving_average is average
    model.train(collected(model))


# --------------------------------------------------------------------------------------------- GPU


@pytest.mark.gpu
def test_gpu_update_is_the_cpus():
    weights = []
    for device in ("cpu", "cuda"):
        sgd = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
        model = make_model(
            device=device,
            precision="fp32",
            kl_coef=0.1,
            ent_coef=0.01,
            learning_rate=0.1,
            policy_kwargs={"config": GPT2Config(vocab_size=3, **TINY), **sgd},
        )
        texts = list(all_texts())[-4:]
        batch = episodes_of(texts, [[float(i + n) for n in range(STEPS)] for i in range(4)])
        model.learn(0)  # makes the logger
        model.train(
            Episodes(
                batch.texts.to(device),
                batch.mask.to(device),
                batch.rewards.float().to(device),
                batch.infos,
            )
        )
        weights.append(flat(p.detach().cpu() for p in model.policy.parameters()))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gpu_learns(precision, cuda_graphs):
    """To write nothing but "good"."""

    def goods(texts):
        return [text.split().count("good") / STEPS for text in texts]

    kwargs = {"config": GPT2Config(vocab_size=3, **TINY), "cuda_graphs": cuda_graphs}
    envs = make_envs(64, sentiment_model=goods, length_penalty=0)
    model = make_model(
        envs, device="cuda", precision=precision, learning_rate=1e-2, policy_kwargs=kwargs
    )
    model.learn(total_updates=60)
    assert collected(model).rewards.sum(1).mean() > 0.8
