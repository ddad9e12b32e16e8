"""The grids and options that our samplers and the schedulers of diffusers may choose from in the benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

GRIDS = ("uniform", "quadratic", "logsnr", "karras")
OURS: dict[str, list[dict[str, Any]]] = {
    "ddim": [{}],
    "dpm-solver-2": [{}],
    "dpm-solver-3": [{}, {"predict": "x0"}],
    "dpm-solver-fast": [{}],
    "dpm-solver-2m": [{}, {"order": 3}],
    "dpmpp-2m": [{}, {"order": 3}, {"lower_order_final": False}, {"order": 3, "lower_order_final": False}],
    "dpmpp-2s": [{}],
    "deis": [{"order": order} for order in (1, 2, 3)],
    "deis-rho-ab": [
        {"order": order, "variant": variant} for order in (1, 2, 3) for variant in ("rho_ab", "log_rho_ab")
    ],
    "deis-rho-rk": [{"order": order} for order in (1, 2, 3)],
    "bdia": [{}],
    "accelerated-ddim": [{}],
}
"""Samplers and the options that they may choose from, each with all grids."""

SPACINGS = [{"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}]
SIGMAS = [{f"use_{kind}": True} for kind in ("karras_sigmas", "exponential_sigmas", "beta_sigmas")]
LU = [{"use_lu_lambdas": True}]
ENDS = [{"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"}]


def options(*axes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of one choice from each axis."""
    for picked in itertools.product(*axes):
        yield {key: value for choice in picked for key, value in choice.items()}


def each(name: str, *values: Any) -> list[dict[str, Any]]:
    """An axis of options."""
    return [{name: value} for value in values]


THEIRS: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": list(options(each("set_alpha_to_one", True, False), SPACINGS[1:], [{"clip_sample": False}])),
    "EulerDiscreteScheduler": list(options(SPACINGS + SIGMAS, ENDS)),
    "HeunDiscreteScheduler": SPACINGS + SIGMAS,
    "DPMSolverMultistepScheduler": list(
        options(
            SPACINGS + SIGMAS + LU,
            ENDS,
            each("solver_order", 2, 3),
            each("algorithm_type", "dpmsolver++", "dpmsolver"),
            each("solver_type", "midpoint", "heun"),
        )
    ),
    "DPMSolverSinglestepScheduler": list(
        options(
            [{}, *SIGMAS], ENDS, each("solver_order", 2, 3), each("algorithm_type", "dpmsolver++", "dpmsolver"),
            each("lower_order_final", False, True),
        )
    ),
    "DEISMultistepScheduler": list(
        options(SPACINGS + SIGMAS, each("solver_order", 1, 2, 3), each("lower_order_final", False, True))
    ),
    "UniPCMultistepScheduler": list(
        options(
            SPACINGS + SIGMAS, ENDS, each("solver_order", 1, 2, 3), each("predict_x0", True, False),
            each("solver_type", "bh1", "bh2"),
        )
    ),
}  # fmt: skip
"""Schedulers for variance-preserving models and everything that they may choose from."""

SPACED = ("timestep_spacing", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
MULTISTEP = (
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip


def of_flow(name: str) -> list[dict[str, Any]]:
    """The options of a scheduler, with the grid of flows in place of its others."""
    found: list[dict[str, Any]] = []
    for choice in THEIRS[name]:
        kept = {key: value for key, value in choice.items() if key not in SPACED}
        made = {**kept, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        if made not in found:
            found.append(made)
    return found


FLOW: dict[str, list[dict[str, Any]]] = {
    "FlowMatchEulerDiscreteScheduler": [{}, *SIGMAS],
    "FlowMatchHeunDiscreteScheduler": [{}],
    **{name: of_flow(name) for name in MULTISTEP},
}
"""Schedulers for flow models."""
SHIFTS = (0.5, 1.0)
"""Shifts of the flow that all may choose from."""

EDMS: dict[str, list[dict[str, Any]]] = {
    "EDMEulerScheduler": list(options(each("sigma_schedule", "karras", "exponential"), ENDS)),
    "EDMDPMSolverMultistepScheduler": list(
        options(
            each("sigma_schedule", "karras", "exponential"), ENDS, each("solver_order", 2, 3),
            each("solver_type", "midpoint", "heun"), each("euler_at_final", False, True),
        )
    ),
}  # fmt: skip
