"""Iterative closest point, robust and Anderson-accelerated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, Integer, LogReal
from hasten.core.errors import InputError, MismatchError
from hasten.core.kinds.register import Clouds, Registration, move
from hasten.core.problem import Problem
from hasten.numerics.anderson import AndersonMixer
from hasten.numerics.rigid import plane_fit, rigid_exp, rigid_fit, rigid_log
from hasten.solve.base import Solver, solver
from hasten.solve.drive import SolveResult, solve, tensor


@dataclass
class Frame:
    """Coordinates in which both sets are centred and the target's and source's joint size is 1.

    Attributes:
        source, target: centres.
        scale: diagonal of the larger bounding box.
    """

    source: Tensor
    target: Tensor
    scale: float

    @classmethod
    def of(cls, problem: Registration) -> Frame:
        """The frame of a problem."""
        sizes = [float((p.max(0).values - p.min(0).values).norm()) for p in (problem.source, problem.target)]
        return cls(problem.source.mean(0), problem.target.mean(0), max(sizes))

    def inside(self, motion: Tensor) -> Tensor:
        """A motion of the problem's coordinates in the frame's."""
        result = motion.clone()
        result[:3, 3] = (motion[:3, 3] + motion[:3, :3] @ self.source - self.target) / self.scale
        return result

    def outside(self, motion: Tensor) -> Tensor:
        """Inverse of `inside`."""
        result = motion.clone()
        result[:3, 3] = self.scale * motion[:3, 3] + self.target - motion[:3, :3] @ self.source
        return result


@dataclass
class ICPState:
    """Where an ICP stands. Motions other than x and all lengths are in the frame's coordinates.

    Attributes:
        x: current motion, 4x4, in the problem's coordinates.
        frame: the coordinates.
        source: source points there.
        motion: current motion there.
        plain: the last motion before acceleration.
        energy: energy of the last accepted motion.
        index, distance: nearest target points under `motion`.
        nu: width of the robust loss; inf for least squares.
        nu_end: width at which the annealing ends.
        mixer: the acceleration, None without.
        finished: converged.
    """

    x: Tensor
    frame: Frame
    source: Tensor
    target: Tensor
    motion: Tensor
    plain: Tensor
    energy: float
    index: Tensor
    distance: Tensor
    nu: float
    nu_end: float
    mixer: AndersonMixer | None
    finished: bool = False


@dataclass(eq=False)
class _ICP(Solver[Registration, ICPState]):
    """The iteration shared by `FastICP` and `ICP`, and their scikit-learn front."""

    metric: str = "point"
    loss: str = "l2"
    anderson: int = 5
    max_iter: int = 100
    tol: float = 1e-5
    nu_begin: float = 3.0
    nu_end: float = 1.0 / (3.0 * math.sqrt(3.0))
    nu_decay: float = 0.5

    def __post_init__(self) -> None:
        check.one_of("metric", self.metric, ("point", "plane"))
        check.one_of("loss", self.loss, ("l2", "welsch"))
        check.integer("anderson", self.anderson, 0)
        check.integer("max_iter", self.max_iter, 1)
        check.nonnegative("tol", self.tol)
        check.positive("nu_begin", self.nu_begin)
        check.positive("nu_end", self.nu_end)
        check.real("nu_decay", self.nu_decay, 0.0, 1.0, open_low=True, open_high=True)

    def init(self, problem: Registration, generator: torch.Generator) -> ICPState:
        if self.metric == "plane" and problem.normals is None:
            raise MismatchError("metric='plane' needs target_normals")
        frame = Frame.of(problem)
        motion = frame.inside(problem.x0)
        nu, nu_end = math.inf, math.inf
        index, distance = self._query(problem, frame, motion)
        if self.loss == "welsch":
            nu_end = self.nu_end * problem.spacing() / frame.scale
            nu = max(self.nu_begin * float(distance.median()), nu_end)
        return ICPState(
            x=problem.x0,
            frame=frame,
            source=(problem.source - frame.source) / frame.scale,
            target=(problem.target - frame.target) / frame.scale,
            motion=motion,
            plain=motion,
            energy=math.inf,
            index=index,
            distance=distance,
            nu=nu,
            nu_end=nu_end,
            mixer=self._mixer(motion),
        )

    def step(self, problem: Registration, state: ICPState) -> ICPState:
        before, index, distance = state.motion, state.index, state.distance
        energy = self._energy(distance, state.nu)
        motion = before
        if state.mixer is not None and energy >= state.energy:
            motion = state.plain
            _replace(state.mixer, motion)
            index, distance = self._query(problem, state.frame, motion)
            energy = self._energy(distance, state.nu)
        plain = self._fit(problem, state, motion, index, distance)
        motion = self._accelerate(state.mixer, plain)
        index, distance = self._query(problem, state.frame, motion)
        after = replace(
            state,
            x=state.frame.outside(motion),
            motion=motion,
            plain=plain,
            energy=energy,
            index=index,
            distance=distance,
        )
        return self._anneal(after) if float((motion - before).norm()) < self.tol else after

    def done(self, state: ICPState) -> bool:
        return state.finished

    def _anneal(self, state: ICPState) -> ICPState:
        if state.nu == state.nu_end:
            return replace(state, finished=True)
        nu = max(self.nu_decay * state.nu, state.nu_end)
        return replace(state, nu=nu, energy=math.inf, mixer=self._mixer(state.motion))

    def _fit(self, problem: Registration, state: ICPState, motion: Tensor, index: Tensor, distance: Tensor) -> Tensor:
        weights = None if math.isinf(state.nu) else torch.exp(-distance.square() / (2.0 * state.nu**2))
        matched = state.target[index]
        if self.metric == "point":
            return rigid_fit(state.source, matched, weights)
        assert problem.normals is not None
        return plane_fit(move(motion, state.source), matched, problem.normals[index], weights) @ motion

    def _mixer(self, motion: Tensor) -> AndersonMixer | None:
        if self.anderson == 0:
            return None
        mixer = AndersonMixer(self.anderson)
        _replace(mixer, motion)
        return mixer

    @staticmethod
    def _accelerate(mixer: AndersonMixer | None, plain: Tensor) -> Tensor:
        if mixer is None:
            return plain
        twist = rigid_log(plain)
        if twist is None or not mixer.started:
            _replace(mixer, plain)
            return plain
        return rigid_exp(mixer.step(twist))

    @staticmethod
    def _query(problem: Registration, frame: Frame, motion: Tensor) -> tuple[Tensor, Tensor]:
        index, distance = problem.nearest(frame.outside(motion))
        return index, distance / frame.scale

    @staticmethod
    def _energy(distance: Tensor, nu: float) -> float:
        square = distance.square()
        return float(square.sum() if math.isinf(nu) else (1.0 - torch.exp(-square / (2.0 * nu**2))).sum())

    def fit(self, source: Any, target: Any, target_normals: Any = None, init: Any = None) -> _ICP:
        """Find the motion that lays `source` onto `target`.

        Args:
            source: (n, 3) points.
            target: (m, 3) points.
            target_normals: (m, 3) unit normals, for `metric="plane"`.
            init: 4x4 motion to start from; centre of mass onto centre of mass if not given.

        Returns:
            The estimator, with `transformation_` (4x4 array), `n_queries_` (nearest-neighbour queries of all
            points), `n_iter_`, `converged_` and `result_` (the full `SolveResult`).

        Raises:
            InputError: fewer than 3 points, collinear points, coordinates that are not finite.
        """
        normals = None if target_normals is None else _double("target_normals", target_normals)
        clouds = Clouds(_double("source", source), _double("target", target), normals=normals)
        begin = None if init is None else _double("init", init)
        instance = Registration(clouds, begin)
        problem = Problem("registration", Registration.kind, lambda seed: instance, every=self.max_iter)
        result: SolveResult = solve(problem, self, max_iter=self.max_iter)
        if result.status == -1:
            raise InputError(f"registration failed: {result.message}")
        self.transformation_ = result.x.numpy()
        self.n_queries_ = result.calls["query"]
        self.n_iter_ = result.nit
        self.converged_ = result.success
        self.result_ = result
        return self

    def transform(self, points: Any) -> np.ndarray:
        """(k, 3) points under the fitted motion, as an array."""
        if not hasattr(self, "transformation_"):
            raise InputError(f"{type(self).__name__}: call fit(source, target) before transform(points)")
        return move(torch.from_numpy(self.transformation_), _double("points", points)).numpy()

    def fit_transform(self, source: Any, target: Any, **options: Any) -> np.ndarray:
        """`fit`, then the source under the fitted motion."""
        return self.fit(source, target, **options).transform(source)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Hyper-parameters by name, as scikit-learn's `clone` wants them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def set_params(self, **params: Any) -> _ICP:
        """Change hyper-parameters in place."""
        for name, value in params.items():
            if name not in self.__dataclass_fields__:
                raise InputError(f"{type(self).__name__} has no parameter {name!r}; it has {sorted(self.get_params())}")
            setattr(self, name, value)
        self.__post_init__()
        return self


@solver(
    Card(
        name="fast-icp",
        family="solve",
        title="Fast and Robust Iterative Closest Point",
        authors="J. Zhang, Y. Yao, B. Deng",
        year=2021,
        arxiv="2007.07627",
        paper_id=6,
        summary="ICP as a fixed-point iteration on log-motions with Anderson acceleration, and Welsch's robust loss.",
        cost="one nearest-neighbour query of all points per step, two on a rejected step; O(16 m) for the mixing",
        when="Rigid alignment from a rough start, with outliers or partial overlap (loss='welsch').",
        kinds=("register",),
        search_space={"loss": Choice("l2", "welsch"), "anderson": Integer(1, 10), "nu_begin": LogReal(1.0, 10.0)},
        use='from hasten.solve import FastICP\n\nicp = FastICP(metric="point"{hyper}).fit(source, target)\n'
        "aligned = icp.transform(source)",
    )
)
@dataclass(eq=False)
class FastICP(_ICP):
    """Fast and robust ICP.

    With q_i the target point nearest to T x_i and r_i its distance, one step is

        w_i  = 1 (l2) or exp(-r_i^2/(2 nu^2)) (welsch)
        T'   = argmin_T sum w_i |T x_i - q_i|^2
        T    = exp(Anderson mix of log T')

    An accelerated motion that does not lower the energy (`sum r^2`, or `sum 1 - exp(-r^2/(2 nu^2))`) is replaced
    by its T'. nu starts at `nu_begin` times the median distance and is multiplied by `nu_decay` whenever the
    iteration has settled, until it reaches `nu_end` times the target's point spacing. Both sets are centred and
    divided by the bounding box's diagonal first; `tol` refers to these coordinates.

    Args:
        metric: `point`, or `plane` for distances along the target's normals.
        loss: `l2`, or `welsch` against outliers and partial overlap.
        anderson: steps that the acceleration remembers; 0 turns it off.
        max_iter: most steps of `fit`.
        tol: change of the motion (Frobenius norm) at which it has settled.
        nu_begin, nu_end, nu_decay: the annealing of the robust loss.
    """


@solver(
    Card(
        name="icp",
        family="solve",
        title="A Method for Registration of 3-D Shapes",
        authors="P. J. Besl, N. D. McKay",
        year=1992,
        summary="Matches every point to its nearest target point, fits the motion, and repeats.",
        cost="one nearest-neighbour query of all points per step",
        when="Clean, fully overlapping point sets with a good start.",
        kinds=("register",),
        use='from hasten.solve import ICP\n\nicp = ICP(metric="point"{hyper}).fit(source, target)',
    )
)
@dataclass(eq=False)
class ICP(_ICP):
    """Iterative closest point, without acceleration; see `FastICP` for the arguments."""

    anderson: int = 0


def _replace(mixer: AndersonMixer, motion: Tensor) -> None:
    """Make a motion the mixer's current point; at a rotation by pi, which has no unique logarithm, empty the mixer."""
    twist = rigid_log(motion)
    if twist is None:
        mixer.clear()
    else:
        mixer.replace(twist)


def _double(name: str, value: Any) -> Tensor:
    return tensor(name, value).to(torch.float64)
