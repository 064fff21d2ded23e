"""Makes a training run ready, new or resumed: joins the processes, opens OUT, loads model, optimizer and data."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from upcycle.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter, open_adapter
from upcycle.checkpoint.digest import sha256_of
from upcycle.checkpoint.reader import CONFIG_FILE
from upcycle.errors import InputError
from upcycle.moe.auto import text_config
from upcycle.moe.device import find_device
from upcycle.moe.routing import scoring_of_router
from upcycle.requests import recorded
from upcycle.requests.train import Train
from upcycle.text.encode import Encoder
from upcycle.text.stream import BlockStream, held_out_blocks
from upcycle.train.batches import Batches, Cut, target_count
from upcycle.train.check import check_model
from upcycle.train.evaluate import Evaluation
from upcycle.train.model import GROUPS, Trainee, check_trained, load
from upcycle.train.objective import RouterObjective, coefficients_of
from upcycle.train.optimizer import Optimizer
from upcycle.train.parallel.world import World
from upcycle.train.saved.checkpoints import Run, open_run
from upcycle.train.saved.progress import Progress, read_state
from upcycle.train.step import Stepper
from upcycle.train.stops import stops_of

FREE = tuple(f"recipe.{name}" for name in ("max_steps", "save_every", "eval_data", "eval_every", "eval_sequences"))
"""Options that may change when a run is resumed; another --max-steps changes how the learning rate falls."""

TRACKER_LOGS = "logs"
PLOTS = "plots"  # where `upcycle plot` puts its pictures
BESIDE = ("metrics.jsonl", TRACKER_LOGS, PLOTS)


@dataclass
class Setup:
    """A training run that is ready for its first step."""

    request: Train
    world: World
    directory: Run | None  # None but on the main process
    trainee: Trainee
    optimizer: Optimizer
    stepper: Stepper
    stream: BlockStream
    evaluation: Evaluation | None
    progress: Progress

    @property
    def out(self) -> Path:
        """The run's directory."""
        return Path(self.request.out).expanduser()

    @property
    def cut(self) -> Cut:
        """How batches are cut into micro-batches and processes."""
        request, world = self.request, self.world
        return Cut(request.batch_size, request.grad_accum, world.size, world.rank)

    def batches(self) -> Batches:
        """Start the thread that reads the data ahead."""
        return Batches(self.stream, self.cut, pinned=self.world.device.type == "cuda")


@contextmanager
def set_up(source: Path, request: Train, base: Path | None = None) -> Iterator[Setup]:
    """Make a run ready, from the newest checkpoint where it is to be resumed, and hold its directory.

    `base` is the model of an adapter that is to be trained.
    Raises InputError for what cannot be used, StagingError when another process holds the directory.
    """
    check_trained(request, source, base)
    world = _world(request)
    with ExitStack() as stack:
        stack.callback(world.leave)
        directory = stack.enter_context(_open(source, request, world, base)) if world.is_main else None
        checkpoint = world.from_main(directory.newest() if directory and request.resume else None)
        trainee = load(source, request, world.device, checkpoint, base)
        _check_length(trainee, request)
        check_model(trainee)
        optimizer = _optimizer(trainee, request)
        progress = _progress(checkpoint, optimizer, request)
        encoder = Encoder(trainee.tokenizer, stops=stops_of(trainee.model), eos=request.eos, quiet=not world.is_main)
        stream = _stream(encoder, request)
        if progress.stream is not None:
            stream.restore(progress.stream)
        stream.look()
        evaluation = _evaluation(encoder, stream, request)
        if request.compile:
            trainee.model.compile()
        stepper = Stepper(world, trainee, optimizer, _objective(trainee, request))
        trainee.model.train()
        if request.tracker != "none":
            world.begin_tracking(
                {name: value for name, value in recorded(request).items() if isinstance(value, int | float | str)}
            )
        yield Setup(request, world, directory, trainee, optimizer, stepper, stream, evaluation, progress)


def _world(request: Train) -> World:
    """Join the other processes, after what is asked for was looked for."""
    device = find_device(request.device)
    if request.tracker != "none" and find_spec(request.tracker) is None:
        raise InputError(
            f"--tracker {request.tracker} needs a package that is not here", hint=f"pip install {request.tracker}"
        )
    logs = Path(request.out).expanduser() / TRACKER_LOGS
    return World(device, None if request.tracker == "none" else request.tracker, logs)


def _progress(checkpoint: Path | None, optimizer: Optimizer, request: Train) -> Progress:
    """Return how far the run is, and bring the optimizer there."""
    progress = read_state(checkpoint, optimizer) if checkpoint else Progress(0, 0, None)
    if progress.step > request.max_steps:
        raise InputError(
            "the run has made more steps than it is asked for", where=request.out, found=progress.step,
            expected=f"at most --max-steps {request.max_steps}",
        )  # fmt: skip
    return progress


def _objective(trainee: Trainee, request: Train) -> RouterObjective:
    scoring = scoring_of_router(trainee.routers[0].module) if trainee.routers else "softmax"
    return RouterObjective(coefficients_of(request), request.balance_scope, scoring)


def _open(source: Path, request: Train, world: World, base: Path | None) -> Any:
    whole = recorded(request)
    batch = whole.pop("batch_size") * whole.pop("grad_accum") * world.size
    local = [path for one in (*request.data, *request.eval_data) if (path := Path(one).expanduser()).exists()]
    return open_run(
        Path(request.out).expanduser(),
        {"recipe": whole, "batch": batch, **_identities(source, base)},
        model=source,
        base=base,
        data=local,
        resume=request.resume,
        overwrite=request.overwrite,
        free=FREE,
        beside=BESIDE,
    )


def _identities(source: Path, base: Path | None) -> dict[str, Any]:
    """Identify the model, and the adapter, that is trained: a run is resumed only with the same."""
    if base is None:
        return {"model": _identity(source)}
    open_adapter(source)
    return {
        "model": _identity(base),
        "adapter": {name: sha256_of(source / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)},
    }


def _identity(source: Path) -> dict[str, Any]:
    """Identify a model by the hash of its config, and the size and first megabyte of each weight file."""
    if not (source / CONFIG_FILE).is_file():
        kind = "an adapter" if is_adapter(source) else "no model"
        raise InputError(
            f"is {kind}: it has no {CONFIG_FILE}", where=source,
            hint="train the model that it belongs to; without --lora-keep an adapter is merged into it",
        )  # fmt: skip
    identity: dict[str, Any] = {CONFIG_FILE: sha256_of(source / CONFIG_FILE)}
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb") as file:
            identity[path.name] = [path.stat().st_size, sha256_of(file.read(2**20))]
    return identity


def _check_length(trainee: Trainee, request: Train) -> None:
    longest = getattr(text_config(trainee.model), "max_position_embeddings", None)
    if longest is not None and request.seq_len > longest:
        raise InputError(
            "sequences are longer than the model's positions", where=request.model, found=request.seq_len,
            expected=f"at most {longest} (config.json: max_position_embeddings)", hint="set --seq-len",
        )  # fmt: skip


def _optimizer(trainee: Trainee, request: Train) -> Optimizer:
    return Optimizer(
        {name: group for name, group in trainee.groups.items() if group},
        lr=rates(request),
        weight_decay=request.weight_decay,
        betas=(request.beta1, request.beta2),
        eps=1e-8,
        kind=request.optimizer,
    )


def described(setup: Setup) -> str:
    """Return in words what is about to be trained, on how much at a time."""
    cut, request, trainee = setup.cut, setup.request, setup.trainee
    trained = sum(parameter.numel() for group in trainee.groups.values() for parameter in group.values())
    processes = f"{cut.processes} process{'es' * (cut.processes > 1)}"
    words = [
        f"{trained:,} parameters in {str(trainee.dtype).removeprefix('torch.')} on {setup.world.device.type}",
        f"{processes} x {cut.micro_batches} x {cut.sequences} sequences, {cut.batch * request.seq_len:,} tokens a step",
    ]
    if setup.evaluation:
        words.append(f"{target_count(setup.evaluation.blocks):,} tokens held out to measure on")
    return "; ".join(words)


def rates(request: Train) -> dict[str, float]:
    """Return the peak learning rate of each group of parameters."""
    own = {"router": request.router_lr, "experts": request.expert_lr}
    return {name: request.lr if (rate := own.get(name)) is None else rate for name in GROUPS}


def _stream(encoder: Encoder, request: Train) -> BlockStream:
    return BlockStream(
        request.data,
        encoder,
        seq_len=request.seq_len,
        seed=request.seed,
        weights=request.data_weight,
        shuffle=request.shuffle,
        held_out=request.eval_split,
        text_field=request.text_field,
    )


def _evaluation(encoder: Encoder, stream: BlockStream, request: Train) -> Evaluation | None:
    if not (request.eval_data or request.eval_split):
        return None
    blocks = held_out_blocks(
        request.eval_data or request.data,
        encoder,
        seq_len=request.seq_len,
        seed=request.seed,
        fraction=None if request.eval_data else request.eval_split,
        limit=request.eval_sequences,
        text_field=request.text_field,
        trained=stream,
    )
    return Evaluation(blocks, request.batch_size)
