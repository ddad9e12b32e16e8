"""Schedulers inside unmodified pipelines of diffusers, with small models made on the spot; configurations; refusals."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from hasten.core.errors import DivergedError, InputError
from hasten.diffusion import CFG, Denoiser, DiscreteVP, FlowMatching, sample, scheduler
from hasten.diffusion.schedulers import HastenScheduler

SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("dpm-solver-3", {}),
    ("dpmpp-2m", {"grid": "karras"}),
    ("deis", {"order": 2}),
    ("bdia", {}),
    ("accelerated-ddim", {}),
    ("ddim", {"eta": 1.0}),
]
by_name = pytest.mark.parametrize(("name", "hyper"), SAMPLERS, ids=[name for name, _ in SAMPLERS])


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


@by_name
def test_ddpm_pipeline(unet: Any, name: str, hyper: dict[str, Any]) -> None:
    pipe = diffusers.DDPMPipeline(unet, scheduler(name, diffusers.DDPMScheduler().config, **hyper))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    images = pipe(batch_size=2, num_inference_steps=9, generator=generator, output_type="np").images
    denoiser = Denoiser(lambda x, t: unet(x, t).sample, DiscreteVP.linear())
    generator.manual_seed(3)
    start = torch.randn(2, 1, 8, 8, generator=generator)
    ours = sample(denoiser, noise=start, sampler=name, nfe=9, generator=generator, **hyper)
    expected = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(torch.from_numpy(images), expected, atol=1e-5, rtol=1e-5)


@by_name
def test_dit_pipeline_under_guidance(name: str, hyper: dict[str, Any]) -> None:
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=4
    ).eval()
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()
    pipe = diffusers.DiTPipeline(transformer, vae, scheduler(name, **hyper))
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"num_inference_steps": 9, "guidance_scale": 4.0, "output_type": "np"}
    found = pipe([7, 400], generator=torch.Generator().manual_seed(3), **options).images

    def network(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return transformer(x, timestep=t, class_labels=cond).sample[:, :4]

    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    denoiser = Denoiser(network, DiscreteVP.linear(), null=1000).given(torch.tensor([7, 400]))
    if hyper.get("eta"):
        assert found.shape == (2, 4, 4, 3)
        return
    latents = sample(denoiser, noise=latents, sampler=name, nfe=18, guidance=CFG(4.0), **hyper)
    with torch.no_grad():
        images = (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float(images.std()) > 0.01
    torch.testing.assert_close(torch.from_numpy(found), images, atol=1e-5, rtol=1e-5)


def test_a_whole_pipeline_is_saved_and_loaded(unet: Any, tmp_path: Path) -> None:
    pipe = diffusers.DDPMPipeline(unet, scheduler("deis", order=2, grid="karras"))
    pipe.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    drawn = []
    for each in (pipe, again):
        each.set_progress_bar_config(disable=True)
        drawn.append(each(num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="np").images)
    assert type(again.scheduler) is type(pipe.scheduler)
    assert (drawn[0] == drawn[1]).all()


def test_step_may_begin_later_and_continue_from_changed_samples() -> None:
    """As image-to-image pipelines do: noise a sample at a later timestep and go on from there."""
    network = lambda x, t: 0.4 * x + 0.3 * torch.sin(2.0 * x)  # noqa: E731
    made = scheduler("dpmpp-2m", grid="uniform")
    made.set_timesteps(10)
    rest = made.timesteps[4:]
    start = x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in rest:
        x = made.step(network(x, t), t, x).prev_sample
    grid = [*map(float, rest), 0.0]
    expected = sample(Denoiser(network, DiscreteVP.linear()), noise=start, sampler="dpmpp-2m", grid=grid)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)

    one = scheduler("ddim")
    one.set_timesteps(timesteps=[900, 500, 100])
    assert one.timesteps.tolist() == [900.0, 500.0, 100.0]
    x, expected = start, start
    for t, cleaner in zip((900, 500, 100), (500, 100, 0)):
        x = 0.5 * one.step(network(x, t), t, x).prev_sample
        step = sample(Denoiser(network, DiscreteVP.linear()), noise=expected, sampler="ddim", grid=(t, cleaner))
        expected = 0.5 * step
    torch.testing.assert_close(x, expected)
    three = scheduler("dpm-solver-3")
    three.set_timesteps(9)
    three.set_begin_index(4)
    with pytest.raises(InputError, match="inside a step"):
        three.step(x, three.timesteps[4], x)


def test_noise_and_velocity_are_those_of_diffusers() -> None:
    theirs, ours = (
        diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        scheduler(beta_schedule="squaredcos_cap_v2"),
    )
    clean, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 400, 999])
    torch.testing.assert_close(ours.add_noise(clean, noise, t), theirs.add_noise(clean, noise, t), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        ours.get_velocity(clean, noise, t), theirs.get_velocity(clean, noise, t), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-7, rtol=1e-4)
    flow, theirs = scheduler(prediction_type="flow_prediction"), diffusers.FlowMatchEulerDiscreteScheduler()
    at = theirs.timesteps[[0, 400, 999]]
    torch.testing.assert_close(flow.scale_noise(clean, at, noise), theirs.scale_noise(clean, at, noise))


@pytest.mark.parametrize(
    ("config", "prediction", "schedule"),
    [
        (diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_end=0.012, beta_start=0.00085), "epsilon", None),
        (diffusers.DDPMScheduler(num_train_timesteps=100, prediction_type="sample"), "x0", DiscreteVP.linear(100)),
        (diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"), "v", DiscreteVP.linear()),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "velocity", FlowMatching(shift=3.0)),
        (
            diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0),
            "velocity",
            FlowMatching(shift=5.0),
        ),
    ],
    ids=["ddim", "ddpm", "dpmsolver", "flow", "unipc-flow"],
)
def test_configurations_of_diffusers(config: Any, prediction: str, schedule: Any) -> None:
    made = scheduler("deis-rho-rk", config.config, order=1)
    made.set_timesteps(6)
    assert made._run.prediction == prediction
    assert made._run.schedule == (schedule or DiscreteVP.scaled_linear())
    assert made.config.hyper == {"order": 1}
    back = diffusers.DDIMScheduler.from_config(made.config)
    assert back.config.num_train_timesteps == made.config.num_train_timesteps


def test_zero_terminal_signal_is_that_of_diffusers() -> None:
    theirs = diffusers.DPMSolverMultistepScheduler(rescale_betas_zero_snr=True)
    ours = scheduler(rescale_betas_zero_snr=True)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, atol=1e-5, rtol=1e-3)
    assert bool((ours.alphas_cumprod.diff() < 0).all())
    assert float(ours.alphas_cumprod[-1]) == pytest.approx(2.0**-24, rel=1e-3)


def test_flow_takes_the_sigmas_of_a_pipeline() -> None:
    made = scheduler("ddim", prediction_type="flow_prediction")
    made.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.5)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.5)
    torch.testing.assert_close(made.timesteps, theirs.timesteps)
    x, y = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    for t in made.timesteps:
        x = made.step(0.3 * x, t, x, return_dict=False)[0]
        y = theirs.step(0.3 * y, t, y, return_dict=False)[0]
    torch.testing.assert_close(x, y, atol=1e-3, rtol=1e-3)


def test_half_precision_samples_keep_their_type() -> None:
    made = scheduler("dpmpp-2m")
    made.set_timesteps(5)
    x = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    for t in made.timesteps:
        x = made.step(0.5 * x, t, x).prev_sample
        assert x.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("match", "act"),
    [
        ("unknown method", lambda: scheduler("dpm-solver-4")),
        ("saved", lambda: scheduler("dualfast", base=object())),
        ("order must be", lambda: scheduler("deis", order=9)),
        ("prediction_type", lambda: scheduler(prediction_type="eps")),
        ("beta_schedule", lambda: scheduler(beta_schedule="cosine")),
        ("set_timesteps before", lambda: scheduler().step(torch.ones(1, 1), 0, torch.ones(1, 1))),
        ("give num_inference_steps", lambda: scheduler().set_timesteps()),
        ("num_inference_steps", lambda: scheduler().set_timesteps(0)),
        ("decrease", lambda: scheduler().set_timesteps(timesteps=[10, 500])),
        ("EDM", lambda: scheduler("ddim", diffusers.EDMEulerScheduler().config)),
    ],
)
def test_refuses(match: str, act: Any) -> None:
    with pytest.raises(InputError, match=match):
        act()


def test_refuses_timesteps_and_outputs_out_of_turn() -> None:
    made = scheduler("ddim", grid="uniform")
    made.set_timesteps(4)
    x = torch.ones(2, 1, 2, 2)
    x = made.step(0.5 * x, made.timesteps[0], x).prev_sample
    with pytest.raises(InputError, match="out of turn"):
        made.step(0.5 * x, made.timesteps[2], x)
    with pytest.raises(InputError, match="shape"):
        made.step(x[:1], made.timesteps[1], x)
    with pytest.raises(DivergedError, match=r"step 2 of 4.*nan"):
        made.step(x * float("nan"), made.timesteps[1], x)
    made.set_timesteps(1)
    x = made.step(x, made.timesteps[0], x).prev_sample
    with pytest.raises(InputError, match="are done"):
        made.step(x, made.timesteps[0], x)


def test_absence_of_diffusers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "diffusers":
            raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")
        return plain(name, *rest, **options)

    monkeypatch.delitem(sys.modules, "hasten.diffusion._diffusers")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install diffusers"):
        scheduler("ddim")


def test_class_is_a_scheduler() -> None:
    made = scheduler()
    assert isinstance(made, diffusers.SchedulerMixin)
    assert isinstance(made, HastenScheduler)
    assert made.init_noise_sigma == 1.0
    assert made.order == 1
