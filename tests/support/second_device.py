"""A second device on a machine without one: `SecondDevice`, which pretends to be CUDA's.

Its tensors hold tensors of the CPU, so that kernels and numbers are the CPU's. Everything else is
as on a card: tensors of two devices don't mix, except where CUDA takes a number or an index of the
CPU; NumPy can't read them; a generator belongs to a device; operations without a kernel for CUDA
are missing; a stream must wait for the stream that computed a tensor; bytes are counted.

torch computes gradients for a device only if it knows the device's guard, and builds for the CPU
lack CUDA's. So the tensors belong to a type of device without a builtin backend, MAIA, which has
the autocast of a card. Python alone sees them as CUDA's. A build for CUDA asks the driver itself,
so there the tests skip.
"""

import ctypes
import re
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C import _acc
from torch._C._autograd import DeviceType
from torch.utils import swap_tensors
from torch.utils._device import _device_constructors

TYPE = "maia"
ATEN = torch.ops.aten
MEMORY = 2**30
"""Bytes of each pretended card."""

TRANSFERS = {ATEN.copy_, ATEN._to_copy}
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
NUMBERS = {ATEN.fill, ATEN.fill_, ATEN.masked_fill, ATEN.masked_fill_, *INDEXING}
"""Operations, other than elementwise ones, that take a number of the CPU."""
PRODUCTS = {ATEN.mm, ATEN.bmm, ATEN.addmm, ATEN.addmm_, ATEN.baddbmm, ATEN.mv, ATEN.addmv, ATEN.dot}
FACTORIES = ["arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm"]
"""Composite operations that make a tensor and give it its size later."""


class WrongDeviceError(RuntimeError):
    """A card would refuse the operation."""


class OnCard(Tensor):
    """A tensor of a pretended card, which holds a tensor of the CPU."""

    held: Tensor
    place: torch.device
    made: "tuple[Stream, int]"
    recorded: "set[Stream]"

    @staticmethod
    def __new__(cls, held: Tensor, place: torch.device) -> "OnCard":
        with torch.inference_mode(mode=False):  # a view of an ordinary tensor must be one too
            made: OnCard = Tensor._make_wrapper_subclass(
                cls,
                held.size(),
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=torch.device(TYPE, place.index),
            )
        made.held, made.place = held, place
        made.recorded = set()
        return made

    def __init__(self, held: Tensor, place: torch.device) -> None: ...

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return card().run(function, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    is_cuda = property(lambda self: True)

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.cpu().numpy()
        raise TypeError(f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu()")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_without_lists(index), value)

    def record_stream(self, stream: Any) -> None:
        self.recorded.add(stream)

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"{self.held!r} on {self.place}"


def _without_lists(index: Any) -> Any:
    """Return an index with tensors for lists, which torch would copy without dispatching that."""
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return torch.tensor(index) if isinstance(index, list) else index


# ---------------------------------------------------------------------------------------- streams


class Stream:
    """Work in order; `seen` has the last work of other streams that is done before the next one."""

    def __init__(self, device: Any = None) -> None:
        self.issued = 0
        self.seen: dict[Stream, int] = {}

    def record_event(self) -> "Event":
        event = Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        for stream, number in event.seen.items():
            self.seen[stream] = max(number, self.seen.get(stream, 0))

    def wait_stream(self, stream: "Stream") -> None:
        self.wait_event(stream.record_event())

    def synchronize(self) -> None:
        card().current.stream.wait_stream(self)


class Event:
    """The work of a stream so far."""

    seen: dict[Stream, int]

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or card().current.stream
        self.seen = {**stream.seen, stream: stream.issued}


class _Current(threading.local):
    def __init__(self, stream: Stream) -> None:
        self.stream = stream


# ------------------------------------------------------------------------------------------ device


class SecondDevice:
    """One or more pretended cards; `held` and `most` count their bytes."""

    def __init__(self, cards: int = 1) -> None:
        self.cards = cards
        self.capability = 9, 0
        self.default = Stream()
        self.current = _Current(self.default)
        self.streams = [self.default]
        self.held = self.most = 0
        self.ran: Counter[str] = Counter()
        self._bytes: Counter[int] = Counter()
        self._lock = threading.RLock()

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on the held tensors, if a card would run it."""
        if _is_composite(function):  # without gradients, torch gives such operations whole
            return function.decompose(*args, **kwargs)
        packet = function.overloadpacket
        here: list[OnCard] = []
        others: list[Tensor] = []
        args_inside = _inside(args, here, others)
        inside = {name: _inside(value, here, others) for name, value in kwargs.items()}
        place = here[0].place if here else self.place(None)
        if (given := inside.get("device")) is not None:
            away = given.type in ("cpu", "meta")
            inside["device"] = torch.device(given.type if away else "cpu")
            place = given if away else self.place(given)
        if packet is ATEN.copy_:
            place = args[0].device
        if packet not in TRANSFERS:
            _check_devices(function, args, here, others)
            _check_kernel(function, here)
        if place.type == "cuda":
            _check_generator(inside.get("generator"), place)
        inside.pop("pin_memory", None)
        for tensor in here:
            self._check_order(tensor)
        if packet is ATEN.histc:  # CUDA counts whole numbers too
            args_inside = (args_inside[0].float(), *args_inside[1:])
        made = function(*args_inside, **inside)
        with self._lock:
            self.ran[packet.__name__] += 1
            self.current.stream.issued += 1

        return self._outside(made, function, place, here)

    def _outside(self, made: Any, function: Any, place: torch.device, of: list[OnCard]) -> Any:
        if isinstance(made, list | tuple):
            return type(made)(self._outside(each, function, place, of) for each in made)
        if not isinstance(made, Tensor):
            return made
        for known in of:
            if known.held is made:
                assert known.shape == made.shape, f"{function} changes a shape in place"
                known.made = self.current.stream, self.current.stream.issued
                return known
        return self.tensor(made, place, of) if place.type == "cuda" else made

    def tensor(self, held: Tensor, place: torch.device, of: list[OnCard]) -> OnCard:
        """Return a tensor of a card, a view of one of those if it shares its memory."""
        assert held.device.type == "cpu", held.device
        made = OnCard(held, place)
        made.made = self.current.stream, self.current.stream.issued
        key, size = held.untyped_storage().data_ptr(), held.untyped_storage().nbytes()
        for tensor in of:
            if tensor.held.untyped_storage().data_ptr() == key:
                made.made, made.recorded = tensor.made, tensor.recorded
        with self._lock:
            self._bytes[key] += 1
            if self._bytes[key] == 1:
                self.held += size
                self.most = max(self.most, self.held)
        weakref.finalize(held, self._free, key, size)
        return made

    def _free(self, key: int, size: int) -> None:
        with self._lock:
            self._bytes[key] -= 1
            if not self._bytes[key]:
                self.held -= size

    def _check_order(self, tensor: OnCard) -> None:
        (stream, number), current = tensor.made, self.current.stream
        if stream is current:
            return
        if number > current.seen.get(stream, 0):
            raise WrongDeviceError("a stream reads a tensor that another stream still computes")
        if stream is not self.default and current not in tensor.recorded:
            raise WrongDeviceError("a stream uses another stream's tensor without record_stream")

    def place(self, device: Any) -> torch.device:
        """Return the card, with its number."""
        index = torch.device(device).index if device is not None else None
        if (index or 0) >= self.cards:
            raise WrongDeviceError(f"CUDA error: invalid device ordinal {index}")
        return torch.device("cuda", index or 0)

    def synchronize(self, device: Any = None) -> None:
        """Wait for all streams."""
        for stream in self.streams:
            self.current.stream.wait_stream(stream)

    def new_stream(self, device: Any = None) -> Stream:
        """Return another stream."""
        self.streams.append(Stream())
        return self.streams[-1]

    @contextmanager
    def within(self, stream: Stream | None) -> Iterator[None]:
        """Compute on a stream in this thread."""
        before = self.current.stream
        self.current.stream = stream or before
        try:
            yield
        finally:
            self.current.stream = before


_cards: list[SecondDevice] = []


def card() -> SecondDevice:
    """Return the pretended device that is installed now."""
    return _cards[-1]


@cache
def _is_composite(function: Any) -> bool:
    keys = torch._C.DispatchKey
    composite, own = map(
        function.has_kernel_for_dispatch_key, (keys.CompositeImplicitAutograd, keys.CPU)
    )
    return composite and not own


def _inside(value: Any, here: list[OnCard], others: list[Tensor]) -> Any:
    """Return the arguments of an operation with held tensors, and collect all its tensors."""
    if isinstance(value, OnCard):
        here.append(value)
        return value.held
    if isinstance(value, list | tuple):
        return type(value)(_inside(each, here, others) for each in value)
    if isinstance(value, Tensor):
        others.append(value)
    return value


def _check_devices(function: Any, args: Any, here: list[OnCard], others: list[Tensor]) -> None:
    packet = function.overloadpacket
    if packet in INDEXING and isinstance(args[0], OnCard):
        indices = {id(index) for index in args[1]}
        others = [other for other in others if id(other) not in indices]
    takes_numbers = packet in NUMBERS or torch.Tag.pointwise in function.tags
    arguments = zip(function._schema.arguments, args, strict=False)
    changed = {id(value) for argument, value in arguments if argument.is_write}
    for other in others if here else ():
        number = not other.dim() and other.device.type == "cpu" and id(other) not in changed
        if not (number and takes_numbers):
            raise WrongDeviceError(
                f"Expected all tensors to be on the same device, but got {here[0].place} and "
                f"{other.device} in {function}"
            )
    places = {tensor.place for tensor in here}
    if len(places) > 1:
        raise WrongDeviceError(f"Expected all tensors to be on the same device, got {places}")


def _check_generator(generator: Any, place: torch.device) -> None:
    if generator is not None and generator.device.type == "cpu":
        raise WrongDeviceError(f"Expected a '{place.type}' generator, but found 'cpu'")


def _check_kernel(function: Any, here: list[OnCard]) -> None:
    if _is_missing(function):
        raise WrongDeviceError(f"{function} isn't implemented for CUDA")
    if function.overloadpacket in PRODUCTS and any(
        not tensor.is_floating_point() and not tensor.is_complex() for tensor in here
    ):
        raise WrongDeviceError(f"'{function}' isn't implemented for whole numbers on CUDA")


@cache
def _is_missing(function: Any) -> bool:
    return function.name().removeprefix("aten::") in missing_on_cuda()


@cache
def missing_on_cuda() -> frozenset[str]:
    """Return the names of torch's operations with a kernel for the CPU but not for CUDA."""
    text = (files("torchgen") / "packaged/ATen/native/native_functions.yaml").read_text()
    keys, delegates = dict[str, set[str]](), dict[str, str]()
    for block in re.split(r"^- func: ", text, flags=re.MULTILINE)[1:]:
        name = block.partition("(")[0]
        results = re.findall(r"^    ([A-Z][A-Za-z0-9, ]*): ", block, flags=re.MULTILINE)
        keys[name] = {key.strip() for each in results for key in each.split(",")}
        if delegate := re.search(r"^  structured_delegate: (\S+)", block, flags=re.MULTILINE):
            delegates[name] = delegate[1]
    for name, whole in delegates.items():
        keys[name] |= keys[whole]
    return frozenset(
        name
        for name, its in keys.items()
        if "CPU" in its and "CUDA" not in its and not any(k.startswith("Composite") for k in its)
    )


# ---------------------------------------------------------------------------------------- installed


class _Guard(_acc.DeviceGuard):
    def type_(self) -> Any:
        return DeviceType.MAIA


GUARD = _Guard()
"""torch's guard of the type of device, which torch only points at."""


def _register_guard() -> None:
    """Give torch the guard, in a slot that only PrivateUse1's backend has a function for.

    Gradients find their devices once in a process, so this must come before the first gradient.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    slots = (ctypes.c_void_p * 21).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    _acc.register_python_privateuseone_device_guard(GUARD)
    private = DeviceType.PrivateUse1.value
    slots[DeviceType.MAIA.value], slots[private] = slots[private], None


if not torch.backends.cuda.is_built():
    _register_guard()


@contextmanager
def second_device(cards: int = 1) -> Iterator[SecondDevice]:
    """Pretend that there are CUDA devices; skip the test where torch is built for CUDA."""
    if torch.backends.cuda.is_built():
        pytest.skip("a pretended card needs torch built for the CPU")
    made = SecondDevice(cards)
    _device_constructors()  # torch lists its functions once: before they are replaced
    with ExitStack() as stack:
        _cards.append(made)
        stack.callback(_cards.remove, made)
        _register(made, stack)
        swapped = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in _cuda(made).items():
            patch.setattr(torch.cuda, name, value)
        _patch_tensors(patch, made)
        _patch_data(patch)
        _patch_autocast(patch)
        yield made


def _register(made: SecondDevice, stack: ExitStack) -> None:
    """Have torch call `made` for operations that make a tensor on the device."""
    aten, rest = (torch.library.Library(name, "IMPL") for name in ("aten", "_"))
    stack.callback(aten._destroy)
    stack.callback(rest._destroy)
    for key in ("CUDA", TYPE.upper()):
        rest.fallback(lambda function, *a, **k: made.run(function, a, k), key)
        for name in FACTORIES:
            packet, _, overload = name.partition(".")
            function = getattr(getattr(ATEN, packet), overload or "default")
            aten.impl(name, lambda *a, _function=function, **k: made.run(_function, a, k), key)


def _cuda(made: SecondDevice) -> dict[str, Any]:
    """Return functions of `torch.cuda` by their names."""
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: made.cards,
        "current_device": lambda: 0,
        "set_device": made.place,
        "get_device_name": lambda device=None: "a pretended card",
        "get_device_properties": lambda device=None: SimpleNamespace(
            total_memory=MEMORY, major=made.capability[0], minor=made.capability[1]
        ),
        "mem_get_info": lambda device=None: (MEMORY - made.held, MEMORY),
        "empty_cache": lambda: None,
        "synchronize": made.synchronize,
        "Stream": made.new_stream,
        "Event": Event,
        "stream": made.within,
        "current_stream": lambda device=None: made.current.stream,
    }


def _patch_tensors(patch: pytest.MonkeyPatch, made: SecondDevice) -> None:
    """Replace the functions of tensors that torch's C++ doesn't dispatch for this device."""
    to, empty, tensor = Tensor.to, torch.empty, torch.tensor

    def moved(self: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, non_blocking, form = torch._C._nn._parse_to(*args, **kwargs)
        device = device or self.device
        if device.type == "cuda":
            device = torch.device(TYPE, made.place(device).index)
        kwargs = {"non_blocking": non_blocking, "copy": copy}
        if form is not None:
            kwargs["memory_format"] = form
        return to(self, device, dtype or self.dtype, **kwargs)

    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        return empty(*args, **kwargs)

    def new(values: Any, *, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> Any:
        on_cpu = tensor(values, **kwargs)
        return (on_cpu if device is None else on_cpu.to(device)).requires_grad_(requires_grad)

    def array(values: Any, *, dtype: Any = None, device: Any = None, copy: Any = None) -> Any:
        if not isinstance(values, Tensor):
            return new(values, dtype=dtype, device=device)
        return values.to(device or values.device, dtype or values.dtype, copy=bool(copy))

    patch.setattr(torch, "asarray", array)
    patch.setattr(torch, "empty", unpinned)
    patch.setattr(torch, "tensor", new)
    patch.setattr(Tensor, "to", moved)
    patch.setattr(Tensor, "cuda", lambda self, device="cuda": self.to(device))
    patch.setattr(Tensor, "pin_memory", lambda self: self.clone())


def _patch_data(patch: pytest.MonkeyPatch) -> None:
    """Let a parameter get a tensor of another device."""
    data: Any = Tensor.data

    def put(self: Tensor, value: Tensor) -> None:
        if isinstance(value, OnCard) == isinstance(self, OnCard):
            data.__set__(self, value)
        else:
            swap_tensors(self, nn.Parameter(value.detach(), requires_grad=self.requires_grad))

    patch.setattr(nn.Parameter, "data", property(data.__get__, put), raising=False)


def _patch_autocast(patch: pytest.MonkeyPatch) -> None:
    """Let CUDA's autocast be the autocast of the tensors' type of device."""
    enabled: Callable[..., bool] = torch.is_autocast_enabled

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__(TYPE if device_type == "cuda" else device_type, *args, **kwargs)

    def is_enabled(kind: str = "cuda") -> bool:
        return enabled(TYPE if kind == "cuda" else kind)

    patch.setattr(torch, "autocast", Autocast)
    patch.setattr(torch, "is_autocast_enabled", is_enabled)
