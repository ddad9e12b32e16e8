"""What every optimizer of this family shares: a rule is a short function, everything around it is here."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.errors import DivergedError, EngineError, InputError
from hasten.optim import backends, sharded
from hasten.optim.finite import first_nonfinite
from hasten.optim.layout import Batch, real, work_dtype
from hasten.optim.refusals import check_saved, refuse_torch_options
from hasten.optim.storage import ABSMAX, Blockwise

ON_NONFINITE = ("raise", "skip", "ignore")


class Options(TypedDict, total=False):
    """Arguments that every rule takes.

    Attributes:
        maximize: climb instead of descend.
        backend: `eager`, `compile` (one loop made by the compiler, on first use) or `auto` (eager at first, compiled
            once enough work was done to pay for it; rules that need whole matrices stay eager, which is faster).
        on_nonfinite: what an infinite or NaN gradient does: `raise` (the default) raises `NonFiniteGradientError`
            before anything is changed, `skip` leaves out the whole step and counts it, `ignore` goes on as PyTorch does
            and saves one pass over the gradients.
    """

    maximize: bool
    backend: str
    on_nonfinite: str


class NonFiniteGradientError(DivergedError):
    """A gradient holds infinite or NaN entries; nothing was changed."""


class RuleOptimizer(Optimizer):
    """A `torch.optim.Optimizer` made from a rule.

    A subclass names its state in `buffers`, gives the numbers of a step in `scalars` and the update in `update`:

        class SignSGD(RuleOptimizer):
            buffers = ("exp_avg",)

            def __init__(self, params, lr=1e-3, beta=0.9, weight_decay=0.0, **options: Unpack[Options]):
                super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay}, **options)

            def scalars(self, group, t):
                return {**self.decay(group), "lr": group["lr"], "weight": 1 - group["beta"]}

            @staticmethod
            def update(p, g, exp_avg, *, lr, weight):
                ema_(exp_avg, g, weight)
                axpy_(p, -lr, exp_avg.sign())

    The rule is told apart by `whole_tensor`. An elementwise rule (False) may be given any stretch of any tensors as
    one vector. A whole-tensor rule (True) is given stacks (B, ...) of tensors of one shape, and must treat the
    members of the stack separately: reduce over `range(1, p.ndim)`, multiply matrices batched.

    State is kept in float32 for float16 and bfloat16 parameters, and the arithmetic is done in that precision.

    Attributes:
        buffers: names of the state tensors per parameter, zero at first and shaped like the parameter; override
            `shapes` for other shapes or for state that depends on options, and `start` for other first values.
        whole_tensor: see above.
        takes_complex: whether the rule serves complex parameters, which it sees as pairs of reals (last axis).
        takes_sharded: whether it serves parameters that are spread over processes; unless said otherwise, if it
            overrides neither `together` nor `advance`.
        static: names of numbers from `scalars` that select code, so that a compiled step is made for each value.
        kept: names under which the rule keeps numbers of its own in a parameter group.
        takes: what `step` is given: "gradients" in place, a "closure" that computes them, or a closure that returns
            the "loss" and leaves differentiating to the rule.
        storage: how state is stored in 8 bits, see `QuantizedState`; None for 32 bits.
        skipped: steps left out under `on_nonfinite="skip"`.
    """

    buffers: ClassVar[tuple[str, ...]] = ()
    whole_tensor: ClassVar[bool] = False
    static: ClassVar[tuple[str, ...]] = ()
    takes_complex: ClassVar[bool] = True
    takes_sharded: ClassVar[bool] = False
    kept: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[str] = "gradients"

    def __init__(
        self,
        params: Any,
        defaults: Mapping[str, Any],
        *,
        maximize: bool = False,
        backend: str = "auto",
        on_nonfinite: str = "raise",
        **torch_options: Any,
    ) -> None:
        refuse_torch_options(type(self).__name__, torch_options)
        self.backend = check.one_of("backend", backend, backends.BACKENDS)
        self.on_nonfinite = check.one_of("on_nonfinite", on_nonfinite, ON_NONFINITE)
        self.skipped = 0
        self.storage: Blockwise | None = None
        self._layouts: dict[int, tuple[list[Tensor], list[Batch]]] = {}
        super().__init__(params, {**defaults, "maximize": maximize})

    # What a rule says of itself

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        """Keyword arguments of `update` for step `t` (from 1); `group` holds the options, learning rate as float.

        Numbers may change from step to step; None, bools and strings select code. Three names are served before
        `update`: `keep` multiplies the parameters, `l2` times the parameters is added to the gradient (`decay` makes
        these two), `maximize` turns the gradient round.
        """
        return {}

    @staticmethod
    def update(p: Tensor, g: Tensor, **state: Any) -> None:
        """Change the parameters `p` and the state in place; `g` is the gradient and must not be changed."""
        raise NotImplementedError

    def whole(self, group: Mapping[str, Any]) -> bool:
        """Whether the rule needs whole tensors under these options; `whole_tensor` unless overridden."""
        return self.whole_tensor

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        """State tensors of a parameter of this shape, and their shapes."""
        return dict.fromkeys(self.buffers, tuple(shape))

    def start(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        """Set state that does not start at zero; called once per parameter, before its first step."""

    def together(
        self, group: dict[str, Any], params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[Any], t: int
    ) -> Mapping[str, float | Tensor]:
        """Numbers for `update` that need the whole group at once, e.g. norms; called before every step.

        Args:
            group: the group; what a rule keeps here by name is saved with the optimizer.
            params, grads: all tensors of the group that take this step (as they are; complex ones as pairs).
            states: their state, in the same order.
            t: number of the step, from 1.
        """
        return {}

    def check_betas(self, betas: Sequence[float]) -> None:
        """Raise `InputError` unless `betas` are decay rates in [0, 1); for rules whose `betas` mean something else."""
        for index, beta in enumerate(betas):
            check.fraction(f"betas[{index}]", beta)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise `InputError` for options outside their range; called for every group that is added."""

    def check_saved(self, saved: Mapping[str, Any]) -> None:
        """Raise `InputError` if a state dict is not of this optimizer; called before anything of it is taken over."""
        check_saved(self, saved)

    def decay(self, group: Mapping[str, Any], *, coupled: bool = False) -> dict[str, float]:
        """Weight decay: decoupled `p <- p * (1 - lr * weight_decay)` before the update, or added to the gradient."""
        if not group["weight_decay"]:
            return {}
        if coupled:
            return {"l2": float(group["weight_decay"])}
        return {"keep": 1.0 - group["lr"] * group["weight_decay"]}

    # torch.optim.Optimizer

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own."""
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except InputError:
            self.param_groups.pop()
            raise

    def _check(self, group: dict[str, Any]) -> None:
        for index, param in enumerate(group["params"]):
            if not (param.is_floating_point() or param.is_complex()):
                raise InputError(f"{self._label(group, index)} is of type {param.dtype}; only real and complex train")
            if (
                sharded.is_sharded(param)
                and (
                    type(self).together is not RuleOptimizer.together or type(self).advance is not RuleOptimizer.advance
                )
                and not self.takes_sharded
            ):
                raise InputError(
                    f"{self._label(group, index)} is spread over processes; {type(self).__name__} needs norms of the "
                    "whole group, which it takes in one process only"
                )
            if param.is_complex() and not self.takes_complex:
                raise InputError(f"{self._label(group, index)} is complex; {type(self).__name__} takes real ones only")
            if param.layout != torch.strided:
                raise InputError(f"{self._label(group, index)} has layout {param.layout}; make it dense first")
        if "lr" in group and group["lr"] is not None:
            check.nonnegative("lr", group["lr"])
        if "weight_decay" in group:
            check.nonnegative("weight_decay", group["weight_decay"])
        if "eps" in group and not isinstance(group["eps"], tuple):
            check.nonnegative("eps", group["eps"])
        self.check_betas(group.get("betas", ()))
        self.check_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; `closure` computes the loss and the gradients anew, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(batch, self._gradients(batch)) for batch in self._batches()]
        if not self._finite(work):
            self.skipped += 1
            return loss
        self.advance(work)
        return loss

    def advance(self, work: Sequence[tuple[Batch, list[Tensor]]]) -> None:
        """Step on all groups, given their batches and finite gradients; override it for what needs all groups at once.

        Numbers settled here reach `scalars` through the groups, or through attributes of the optimizer.
        """
        for batch, grads in work:
            self._advance(batch, grads)

    def state_dict(self) -> dict[str, Any]:
        """State and options, as `torch.optim.Optimizer` has them; continues bit for bit after `load_state_dict`.

        State that is spread over processes comes as `DTensor`s, which `torch.distributed.checkpoint` can load into
        another number of processes.
        """
        found = super().state_dict()
        for place, param in self._spread(found):
            state = found["state"].get(place, {})
            found["state"][place] = {
                name: sharded.like(value, param) if isinstance(value, Tensor) and value.shape == part.shape else value
                for part in (sharded.local(param),)
                for name, value in state.items()
            }
        return found

    def _spread(self, saved: Mapping[str, Any]) -> Iterable[tuple[Any, Tensor]]:
        """Parameters that elementwise state is spread with, by their place in a state dict."""
        for theirs, group in zip(saved["param_groups"], self.param_groups):
            if not self.whole(self._options(group)):
                pairs = zip(theirs["params"], group["params"])
                yield from (pair for pair in pairs if sharded.is_sharded(pair[1]))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over state and options; the state keeps its own precision and shares no memory with `state_dict`.

        Raises:
            InputError: the state is of another optimizer or of another version of this one; nothing was changed.
        """
        seen: dict[str, Any] = {}

        def look(_: Optimizer, final: dict[str, Any]) -> None:
            self.check_saved(final)
            seen.update(final)

        handle = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        saved = [index for group in seen["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved, params):
            for name, value in seen["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    value = sharded.local(value)
                    dtype = work_dtype(param.dtype) if value.is_floating_point() else value.dtype
                    self.state[param][name] = value.detach().to(param.device, dtype, copy=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        vars(self).setdefault("storage", None)
        self._layouts = {}

    def __getstate__(self) -> dict[str, Any]:
        own = {"backend": self.backend, "on_nonfinite": self.on_nonfinite, "skipped": self.skipped}
        return {**super().__getstate__(), **own, "storage": self.storage}

    # How a step is made

    def _batches(self) -> Iterable[Batch]:
        for index, group in enumerate(self.param_groups):
            active = [param for param in group["params"] if param.grad is not None]
            if not active:
                continue
            known, batches = self._layouts.get(index, ((), ()))
            same = len(known) == len(active) and all(map(operator.is_, known, active))
            if not same or not all(batch.group is group and _intact(batch) for batch in batches):
                batches = self._lay_out(group, active)
                self._layouts[index] = (active, batches)
            yield from batches

    def _lay_out(self, group: dict[str, Any], active: list[Tensor]) -> list[Batch]:
        found: dict[Any, Batch] = {}
        options = self._options(group)
        for param in active:
            if param.numel() == 0:
                continue
            self._refuse(group, param)
            work = param
            if sharded.is_sharded(param):
                work = sharded.full(param) if self.whole(options) else sharded.local(param)
            state = self.state[param]
            if not state:
                state["step"] = 0
                seen = real(work)
                for name, shape in self.shapes(options, seen.shape).items():
                    dtype = work_dtype(param.dtype)
                    like = shape == tuple(seen.shape)
                    empty = torch.empty_like if like else seen.new_empty
                    state[name] = empty(seen if like else shape, dtype=dtype).zero_()  # type: ignore[arg-type]
                self.start(options, seen, state)
            names, coded = tuple(self.shapes(options, real(work).shape)), ()
            if self.storage is not None:
                if work is not param:
                    raise InputError(
                        f"state in 8 bits is kept in one process only; {type(self).__name__} has parameters that are "
                        "spread over processes"
                    )
                shapes = {name: state[name].shape for name in names}
                coded = self.storage.prepare(state, shapes, real(param), self.whole(options))
                names = (*names, *(name + ABSMAX for name in coded))
            key = (state["step"], param.dtype, param.device, names)
            block = self.storage.block if self.storage is not None and coded else 0
            batch = found.setdefault(key, Batch(group, names, [], [], coded=coded, block=block))
            batch.params.append(work)
            batch.owners.append(param)
            batch.states.append(state)
        for batch in found.values():
            batch.lay_out(self.whole(options))
        return list(found.values())

    def _gradients(self, batch: Batch) -> list[Tensor]:
        grads = [param.grad for param in batch.owners]
        if any(grad.layout is not torch.strided for grad in grads):  # type: ignore[union-attr]
            for param in batch.owners:
                self._refuse(batch.group, param)
        if batch.params[0] is not batch.owners[0]:
            whole = self.whole(self._options(batch.group))
            grads = [sharded.full(grad) if whole else sharded.local(grad) for grad in grads]  # type: ignore[arg-type]
        return grads  # type: ignore[return-value]

    def _refuse(self, group: dict[str, Any], param: Tensor) -> None:
        grad = param.grad
        if grad is not None and grad.layout != torch.strided:
            index = next(i for i, other in enumerate(group["params"]) if other is param)
            raise InputError(
                f"{type(self).__name__} does not take sparse gradients, and that of {self._label(group, index)} is "
                f"{grad.layout}; build the layer with sparse=False, or give it to torch.optim.SparseAdam"
            )

    @torch.no_grad()
    def finite_gradients(self) -> bool:
        """Whether the next step will be taken.

        Raises:
            NonFiniteGradientError: it would raise that.
        """
        return self.on_nonfinite == "ignore" or self._finite([(b, self._gradients(b)) for b in self._batches()])

    def _finite(self, work: Sequence[tuple[Batch, list[Tensor]]]) -> bool:
        if self.on_nonfinite == "ignore":
            return True
        found = first_nonfinite(work)
        if found is None or self.on_nonfinite == "skip":
            return found is None
        group, param = found
        index = next(i for i, other in enumerate(group["params"]) if other is param)
        raise NonFiniteGradientError(
            f"the gradient of {self._label(group, index)} has infinite or NaN entries; nothing was changed. Lower the "
            "learning rate, clip gradients, or choose on_nonfinite='skip'"
        )

    def _advance(self, batch: Batch, grads: list[Tensor]) -> None:
        options = self._options(batch.group)
        t = batch.t
        members = [real(param) for param in batch.params] if batch.params[0].is_complex() else batch.params
        values = {**self.scalars(options, t), "maximize": batch.group["maximize"]}
        if type(self).together is not RuleOptimizer.together:
            seen = [real(grad) for grad in grads] if members is not batch.params else grads
            values.update(self.together(batch.group, members, seen, batch.states, t))
        update, program, numbers, compiled = type(self).update, None, None, None
        if self._compiles(batch, t):
            varying, fixed = backends.split(values, self.static)
            numbers = backends.numbers(varying, batch.params[0])
            if batch.coded:
                assert self.storage is not None
                compiled = self.storage.compile(update, batch, varying, fixed, numbers)
            else:
                program = backends.program(update, batch.names, varying, fixed)
        spread = [pair for pair in zip(batch.owners, batch.params) if pair[0] is not pair[1]]
        whole = bool(spread) and self.whole(options)
        if whole:
            for owner, work in spread:
                work.copy_(sharded.full(owner))
        # All views first: between two loops over memory, Python itself runs on cold caches.
        views = [(tile, tile.gather((grad,))) for tile, grad in zip(batch.direct, grads)]
        packs = ((pack, pack.gather(grads[start:stop])) for pack, start, stop in batch.packs)
        for tile, (work, grad) in chain(views, packs):
            if batch.coded:
                assert self.storage is not None
                self.storage.run(batch, tile, work, grad, update, values, compiled)
            elif program is None or not program.run(tile, work, grad, numbers):  # type: ignore[arg-type]
                backends.run_eager(update, tile, work, grad, values)
            tile.scatter()
        if whole:
            for owner, work in spread:
                sharded.keep_own_part(owner, work)
        for state in batch.states:
            state["step"] = t

    def _compiles(self, batch: Batch, t: int) -> bool:
        # First steps often have code of their own, which is not worth compiling.
        if t == 1 or self.backend == "eager":
            return False
        # Reductions over both axes of a matrix are slower in the compiler's loops than in PyTorch's own.
        if self.backend == "auto" and (self.whole(batch.group) or t * batch.numel < backends.PAYS_AFTER):
            return False
        missing = backends.compiler_missing(batch.params[0].device.type)
        if missing and self.backend == "compile":
            raise EngineError(f"backend='compile' is not possible: {missing}")
        return not missing

    @staticmethod
    def _options(group: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value.item() if isinstance(value, Tensor) else value
            for name, value in group.items()
            if name != "params"
        }

    def _label(self, group: Mapping[str, Any], index: int) -> str:
        if "param_names" in group:
            return f"parameter {group['param_names'][index]!r}"
        place = next((i for i, other in enumerate(self.param_groups) if other is group), len(self.param_groups))
        return f"parameter {index} of group {place}, shaped {tuple(group['params'][index].shape)},"


def _intact(batch: Batch) -> bool:
    pairs = zip(batch.owners, batch.params)
    moved = any(
        sharded.local(owner).data_ptr() != work.data_ptr()
        for owner, work in pairs
        if owner is not work and owner.shape != work.shape
    )
    return not moved and batch.intact()
