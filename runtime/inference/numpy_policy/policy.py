"""A policy in numpy: the fused part is a graph, context and heads are small networks of numpy. Imports no torch.

It computes what `learners.model.policy` and its heads compute in `eval()`, from the same weights under the same names;
`tests/runtime/inference/numpy_policy/test_array_policy.py` compares both on every kind of policy. Sums use `einsum`, which is exact to the
last bit whatever the number of threads.

Shapes: B batch, H history, D state, C context, n choices of an actuator, A all continuous components, K quantiles or bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from learners.model.recorded_arrays import FeatureArrays
from learners.model.spec import LEAST_NOISE, PolicySpec
from runtime.inference.numpy_policy.history import Fuse
from runtime.inference.numpy_policy.input_statistics import normalised
from runtime.inference.numpy_policy.sampling import (
    EDGE,
    MAX_LOG_DENSITY,
    ArrayOutput,
    Exploration,
    Floats,
    Motion,
    draw_index,
    epsilon_greedy,
    softmax,
)

Mask = NDArray[np.bool_] | None
"""Which of the n choices are allowed; None allows all."""
NO_MASKS: Mapping[str, NDArray[np.bool_]] = MappingProxyType({})

LAYER_EPS, RENORM_EPS = np.float32(1e-5), np.float32(1e-3)
"""Of torch's LayerNorm, and of `learners.model.networks.BatchRenorm`."""
LOW_STD, HIGH_STD = -5.0, 2.0
"""Range of the actor's log standard deviation."""
CLIP = np.float32(2.0)
"""Of a bandit's features."""
BINS, LIMIT = 101, 5.0
"""Bins of a categorical critic, and the magnitude of the outermost ones, as in `learners.model.return_bins`."""
CENTRES = np.linspace(-LIMIT, LIMIT, BINS, dtype=np.float32)
ZERO = np.float32(0)
WIDTH, TEMPERATURE = 0.15, 0.02
"""How far above the mean a bandit judges a choice, in deviations, and the temperature of its softmax."""

Weights = Mapping[str, NDArray[Any]]
Layer = Literal["linear", "batch", "layer"]
"""A linear map, or batch or layer normalisation."""


class Network:
    """A trunk with a linear layer behind it, from the weights under a prefix.

    Args:
        weights: of the policy.
        trunk: prefix of the hidden layers.
        out: prefix of the last linear layer.
    """

    def __init__(self, weights: Weights, trunk: str, out: str) -> None:
        numbers = {name.removeprefix(trunk).split(".")[1] for name in weights if name.startswith(trunk + ".")}
        self._layers = [_group(weights, f"{trunk}.{number}") for number in sorted(numbers, key=int)]
        if any("bias" not in layer for layer in self._layers):
            self._layers = without_normalisation(self._layers)
        self._out = _group(weights, out)
        self._steps = self._prepared()

    def _prepared(self) -> list[tuple[Layer, tuple[NDArray[Any], ...], bool]]:
        """Return for each layer its kind, its arrays, and whether a ReLU follows: nothing is looked up at a tick."""
        steps: list[tuple[Layer, tuple[NDArray[Any], ...], bool]] = []
        for layer, following in zip(self._layers, [*self._layers[1:], None], strict=True):
            weight, bias = layer["weight"], layer["bias"]
            if "mean" in layer:
                steps.append(("batch", (layer["mean"], weight / np.sqrt(layer["var"] + RENORM_EPS), bias), False))
            elif weight.ndim == 2:
                is_cut = following is None or "mean" in following or following["weight"].ndim == 2
                steps.append(("linear", (weight, bias), is_cut))
            else:
                steps.append(("layer", (weight, bias), True))
        return steps

    def __call__(self, x_BI: Floats) -> Floats:
        """Return B,O."""
        for kind, arrays, is_cut in self._steps:
            if kind == "linear":
                weight_OI, bias_O = arrays
                x_BI = np.einsum("bi,oi->bo", x_BI, weight_OI) + bias_O
            elif kind == "batch":
                mean_I, scale_I, bias_I = arrays
                x_BI = (x_BI - mean_I) * scale_I + bias_I
            else:
                x_BI = layer_norm(x_BI, *arrays)
            if is_cut:
                x_BI = np.maximum(x_BI, ZERO)
        return linear(x_BI, self._out)


def without_normalisation(layers: list[dict[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
    """Return layers of linear maps alone: the input's normalisation and the one after each map become part of the map."""
    first, *rest = layers
    gain_I, shift_I = _affine(first)
    joined: list[dict[str, NDArray[Any]]] = []
    for map_, norm in zip(rest[::2], rest[1::2], strict=True):
        gain_O, shift_O = _affine(norm)
        weight_OI = map_["weight"]
        bias_O = gain_O * np.einsum("oi,i->o", weight_OI, shift_I) + shift_O
        joined.append({"weight": gain_O[:, None] * weight_OI * gain_I, "bias": bias_O})
        gain_I, shift_I = np.ones_like(gain_O), np.zeros_like(shift_O)
    return joined


def _affine(norm: Weights) -> tuple[Floats, Floats]:
    """Return gain and shift of batch normalisation with running statistics."""
    gain = (norm["weight"] / np.sqrt(norm["var"] + RENORM_EPS)).astype(np.float32)
    shift = (norm["bias"] - gain * norm["mean"]).astype(np.float32)
    return gain, shift


def expected_return(logits: Floats) -> Floats:
    """Return the mean of categorical distributions with logits ...,K."""
    power = np.exp(logits - logits.max(-1, keepdims=True))
    power /= power.sum(-1, keepdims=True)
    mean: Floats = np.einsum("...k,k->...", power, CENTRES)
    return mean


def linear(x_BI: Floats, layer: Weights) -> Floats:
    """Return B,O."""
    out_BO: Floats = np.einsum("bi,oi->bo", x_BI, layer["weight"]) + layer["bias"]
    return out_BO


def layer_norm(x_BI: Floats, weight_I: Floats, bias_I: Floats) -> Floats:
    """Normalise each row."""
    centred_BI = x_BI - mean_of(x_BI, -1)
    deviation_B1 = np.sqrt(mean_of(np.square(centred_BI), -1) + LAYER_EPS)
    out_BI: Floats = centred_BI / deviation_B1 * weight_I + bias_I
    return out_BI


def mean_of(x: Floats, axis: int) -> Floats:
    """Return the mean along an axis, which stays with length 1: exactly `x.mean`, in a third of its time."""
    mean: Floats = (np.add.reduce(x, axis=axis, keepdims=True) / np.float32(x.shape[axis])).astype(
        np.float32, copy=False
    )
    return mean


def _group(weights: Weights, prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix + "."): x for name, x in weights.items() if name.startswith(prefix + ".")}


class ArrayPosterior:
    """The posterior over the reward of every choice of every actuator, in float64 as the learner has it."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def __call__(self, context_BC: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation, B and all choices of all actuators."""
        w = self._weights
        x_BC = np.clip(context_BC, -CLIP, CLIP) * np.float32(context_BC.shape[-1] ** -0.5)
        phase_BF = np.einsum("bc,cf->bf", x_BC, w["frequency"]) + w["phase"]
        wave_BF = np.cos(phase_BF) * np.float32((2 / len(w["phase"])) ** 0.5)
        f_BF = np.concatenate((np.ones_like(x_BC[:, :1]), x_BC, wave_BF), axis=-1).astype(np.float64)
        projected_nBF = np.einsum("bf,nfg->nbg", f_BF, w["covariance"])
        mean_Bn = np.einsum("nbf,nf->bn", projected_nBF, w["moment"])
        variance_Bn = np.einsum("nbf,bf->bn", projected_nBF, f_BF)
        return mean_Bn.astype(np.float32), np.sqrt(np.maximum(variance_Bn, 0)).astype(np.float32)

    def probabilities(self, mean_n: Floats, std_n: Floats, mask_n: Mask = None) -> Floats:
        """Return the probability of each choice of one actuator: softmax of the upper confidence bounds over what is allowed."""
        span = float(self._weights["highest"] - self._weights["lowest"]) or 1.0
        bound_n = (mean_n.astype(np.float64) / span + WIDTH * std_n) / TEMPERATURE
        return softmax(bound_n if mask_n is None else np.where(mask_n, bound_n, -np.inf))


class ArrayPolicy:
    """One version of the policy.

    Args:
        spec: of the policy.
        weights: by their names in a checkpoint.
        fuse: runs the graph of the fused part; a policy without fusion needs none.
    """

    def __init__(self, spec: PolicySpec, weights: Weights, fuse: Fuse | None) -> None:
        self.spec, self.weights = spec, weights
        self.fuse: Fuse = fuse if fuse is not None else self._numbers
        self._recall, self._telemetry = _group(weights, "recall"), _group(weights, "telemetry.0")
        self._sizes = [len(a.choices) for a in spec.actions.choices]
        self._choice, self._posterior, self._actor = None, None, None
        self._critics: list[Network] = []
        scales = (weights.get(f"heads.{name}.scale") for name in ("choice", "continuous.critics"))
        self._choice_scale, self._critic_scale = (None if s is None else np.float32(s) for s in scales)
        if any(name.startswith("heads.choice.") for name in weights):
            self._choice = Network(weights, "heads.choice.trunk", "heads.choice.out")
        if any(name.startswith("heads.bandit.") for name in weights):
            self._posterior = ArrayPosterior(_group(weights, "heads.bandit"))
        if any(name.startswith("heads.continuous.") for name in weights):
            self._actor = Network(weights, "heads.continuous.actor.trunk", "heads.continuous.actor.out")
            members = _group(weights, "heads.continuous.critics.members")
            numbers = sorted({name.split(".")[0] for name in members}, key=int)
            self._critics = [Network(members, f"{number}.0", f"{number}.1") for number in numbers]
        self.motion = Motion(spec.actions.continuous)

    def _numbers(self, present_BS: NDArray[np.bool_], _ages_BS: Floats, tokens_B1W: Floats) -> NDArray[np.float32]:
        """Return the state of a policy without fusion: the normalised telemetry."""
        w = self._telemetry
        shown_B11 = present_BS[:, :1, None]
        normal_B1W = normalised(
            np.where(shown_B11, tokens_B1W, np.float32(0)), float(w["count"]), w["mean"], w["scatter"]
        )
        return np.where(shown_B11, normal_B1W, np.float32(0)).reshape(len(tokens_B1W), -1)

    def context(self, states_BHD: Floats) -> Floats:
        """Turn states of the last `history` ticks, oldest first, into a context B,C that starts with the newest state."""
        rows = len(states_BHD)
        if self.spec.plain:
            return np.ascontiguousarray(states_BHD[:, ::-1]).reshape(rows, -1)
        newest_BD = states_BHD[:, -1]
        if not self._recall:
            return newest_BD
        return np.concatenate((newest_BD, linear(states_BHD[:, :-1].reshape(rows, -1), self._recall)), axis=-1)

    def choice_scores(self, context_BC: Floats) -> list[Floats]:
        """Return the critic's value of each choice, B,n for each choice actuator."""
        if self._posterior is not None:
            return self._split(self._posterior(context_BC)[0])
        assert self._choice is not None
        out_BxK = self._choice(context_BC)
        parts_BxK = out_BxK.reshape(len(out_BxK), 1 + sum(self._sizes), -1)
        value_B1K = parts_BxK[:, :1]
        advantages = np.split(parts_BxK[:, 1:], np.cumsum(self._sizes)[:-1], axis=1)
        rows = [value_B1K + (a_BnK - mean_of(a_BnK, 1)) for a_BnK in advantages]
        if self._choice_scale is not None:
            return [self._choice_scale * expected_return(row_BnK) for row_BnK in rows]
        return [mean_of(row_BnK, -1)[..., 0] for row_BnK in rows]

    def actor(self, context_BC: Floats) -> tuple[Floats, Floats]:
        """Return mean and log standard deviation of the motion before squashing, B,A each."""
        assert self._actor is not None
        both_B2A = self._actor(context_BC)
        width = both_B2A.shape[-1] // 2
        mean_BA, raw_BA = both_B2A[:, :width], both_B2A[:, width:]
        log_std_BA = np.float32(LOW_STD) + np.float32(0.5 * (HIGH_STD - LOW_STD)) * (np.tanh(raw_BA) + np.float32(1))
        return mean_BA, log_std_BA

    @property
    def epsilon(self) -> float:
        """The share of random choices, which follows from how far training has come."""
        return self.spec.exploration.random_choices_at(float(self.weights["heads.choice.epsilon"]))

    @property
    def excursion_share(self) -> float:
        """The share of time in excursions."""
        if self._actor is None:
            return 0.0
        return float(self.weights["heads.continuous.epsilon"]) * self.spec.exploration.excursions

    def exploration_share(self) -> float | None:
        """Return how much the policy explores: the share of random choices, else the factor on its noise; None for a bandit."""
        if self._choice is not None:
            return self.epsilon
        if self._posterior is not None:
            return 0.0 if self.spec.exploration.none else None
        return self.spec.exploration.noise

    def contexts(self, windows: FeatureArrays) -> Floats:
        """Return the contexts R,C of windows [R, H], as `learners.model.shapley` needs them."""
        rows, history = windows.present.shape[:2]
        flat = [x.reshape(rows * history, *x.shape[2:]) for x in (windows.present, windows.ages)]
        tokens = [np.ascontiguousarray(windows.tokens[name]) for name in self.spec.names]
        states = self.fuse(*map(np.ascontiguousarray, flat), *(x.reshape(rows * history, *x.shape[2:]) for x in tokens))
        return self.context(states.reshape(rows, history, -1))

    def action_scores(self, context_RC: Floats, index: int) -> NDArray[Any]:
        """Return the critic's value R,n of each choice of the choice actuator with this number."""
        return self.choice_scores(context_RC)[index]

    def action_log_density(self, context_RC: Floats, name: str, value: tuple[float, ...]) -> NDArray[Any] | None:
        """Return the log density R of a continuous action before squashing; None without such an actuator."""
        start = 0
        for one in self.spec.actions.continuous:
            part = slice(start, start + len(one.low))
            if one.name == name:
                mean_RA, log_std_RA = (x[:, part] for x in self.actor(context_RC))
                low, high = np.array(one.low), np.array(one.high)
                raw_A = np.arctanh(np.clip((np.array(value) - (high + low) / 2) / ((high - low) / 2), -EDGE, EDGE))
                z_RA = (raw_A - mean_RA) / np.exp(log_std_RA)
                density_RA = -0.5 * np.square(z_RA) - log_std_RA - 0.5 * math.log(2 * math.pi)
                return np.asarray(density_RA.sum(-1))
            start = part.stop
        return None

    def act(
        self,
        states_BHD: Floats,
        chance: np.random.Generator,
        memory: Exploration,
        *,
        explore: bool | float,
        masks: Mapping[str, NDArray[np.bool_]] = NO_MASKS,
    ) -> ArrayOutput:
        """Draw an action for each actuator; the arguments are those of `learners.model.heads.Heads.act`, B = 1; masks are n."""
        context_BC, out = self.context(states_BHD), ArrayOutput()
        estimates: list[float] = []
        if self._sizes:
            estimates.append(self._choose(context_BC, chance, explore, masks, out))
        if self._actor is not None:
            mean_BA, log_std_BA = self.actor(context_BC)
            epsilon, factor = self.excursion_share, self.spec.exploration.noise
            if explore is True:
                log_std_BA = log_std_BA + np.float32(math.log(max(factor, LEAST_NOISE)))
                explore = not (epsilon == 0 and factor == 0)
            unit_A, log_density_a = self.motion.draw(mean_BA[0], log_std_BA[0], epsilon, explore, memory, chance)
            self.motion.fill(out, unit_A, log_density_a)
            x_BI = np.concatenate((context_BC, unit_A[None]), axis=-1)
            estimates.append(float(np.mean([self._judge(critic, x_BI) for critic in self._critics])))
        if estimates:
            out.value = np.array([np.mean(estimates)], np.float32)
        return out

    def _judge(self, critic: Network, x_BI: Floats) -> float:
        """Return the value of one motion, in units of the rewards."""
        if self._critic_scale is None:
            return float(critic(x_BI)[0, 0])
        return float(self._critic_scale * expected_return(critic(x_BI))[0])

    def taken(
        self,
        states_BHD: Floats,
        values: Mapping[str, NDArray[Any]],
        masks: Mapping[str, NDArray[np.bool_]] = NO_MASKS,
    ) -> dict[str, float]:
        """Return the probability, or density, of given actions of every actuator as the policy explores, B = 1."""
        context_BC, found = self.context(states_BHD), dict[str, float]()
        if self._sizes:
            for actuator, (_, probabilities_n) in zip(
                self.spec.actions.choices, self._preferences(context_BC, True, masks), strict=True
            ):
                found[actuator.name] = float(probabilities_n[int(values[actuator.name][0])])
        if self._actor is not None:
            mean_BA, log_std_BA = self.actor(context_BC)
            widened_A = log_std_BA[0] + np.float32(math.log(max(self.spec.exploration.noise, LEAST_NOISE)))
            value_A = np.concatenate([values[a.name][0] for a in self.spec.actions.continuous])
            unit_A = self.motion.from_units(value_A)
            log_a = self.motion.mixture(unit_A, mean_BA[0], widened_A, self.excursion_share)
            found |= {
                a.name: math.exp(min(x, MAX_LOG_DENSITY)) for a, x in zip(self.motion.actuators, log_a, strict=True)
            }
        return found

    def _choose(
        self,
        context_BC: Floats,
        chance: np.random.Generator,
        explore: bool | float,  # noqa: FBT001 - as in act
        masks: Mapping[str, NDArray[np.bool_]],
        out: ArrayOutput,
    ) -> float:
        """Fill in the choice actuators; return the value of the choices taken."""
        taken: list[float] = []
        for actuator, (scores_n, probabilities_n) in zip(
            self.spec.actions.choices, self._preferences(context_BC, explore, masks), strict=True
        ):
            index = draw_index(probabilities_n, chance)
            out.values[actuator.name] = np.array([index])
            out.scores[actuator.name], out.choices[actuator.name] = scores_n[None], probabilities_n[None]
            out.probabilities[actuator.name] = probabilities_n[index : index + 1]
            taken.append(float(scores_n[index]))
        return float(np.mean(taken))

    def _preferences(
        self,
        context_BC: Floats,
        explore: bool | float,  # noqa: FBT001 - as in act
        masks: Mapping[str, NDArray[np.bool_]],
    ) -> list[tuple[Floats, Floats]]:
        """Return scores and probabilities n of every choice actuator."""
        allowed = [masks.get(a.name) for a in self.spec.actions.choices]
        if self._posterior is None:
            epsilon = self.epsilon if explore is True else float(explore)
            scores = self.choice_scores(context_BC)
            return [(s_Bn[0], epsilon_greedy(s_Bn[0], epsilon, m)) for s_Bn, m in zip(scores, allowed, strict=True)]
        means, deviations = (self._split(x) for x in self._posterior(context_BC))
        pairs: list[tuple[Floats, Floats]] = []
        for mean_Bn, std_Bn, mask_n in zip(means, deviations, allowed, strict=True):
            mean_n = mean_Bn[0]
            if explore is False or (explore is True and self.spec.exploration.none):
                pairs.append((mean_n, epsilon_greedy(mean_n, 0.0, mask_n)))
                continue
            bound_n = self._posterior.probabilities(mean_n, std_Bn[0], mask_n)
            mix = np.float32(0.0 if explore is True else float(explore))
            pairs.append((mean_n, bound_n + mix * (epsilon_greedy(mean_n, 1.0, mask_n) - bound_n)))
        return pairs

    def _split(self, x_Bn: Floats) -> list[Floats]:
        return np.split(x_Bn, np.cumsum(self._sizes)[:-1], axis=1)
