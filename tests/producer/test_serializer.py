"""Arrays come back from the serializer as they were, and all other values as from kombu's JSON."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from batchery.producer.codec.serializer import CONTENT_TYPE, NAME, dumps, loads, summarise
from celery import Celery
from celery.utils.saferepr import saferepr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from kombu import serialization
from kombu.exceptions import DecodeError, EncodeError
from kombu.utils import json as kombu_json

from batchery import setup

NUMPY_DTYPES = "bool i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split()
TORCH_DTYPES = [torch.bool, torch.int8, torch.int64, torch.uint8, torch.uint16, torch.uint64]
TORCH_DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]

any_array = arrays.arrays(
    st.sampled_from(
        [np.dtype(f"{order}{kind}") if kind != "bool" else np.dtype(bool) for order in "<>" for kind in NUMPY_DTYPES]
    ),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


def same(one: Any, other: Any) -> bool:
    """Equal, of equal types, shapes and dtypes, with NaN equal to itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def without_torch(code: str) -> str:
    """The output of a process that never loads torch."""
    code = f"{code}\nimport sys; assert 'torch' not in sys.modules"
    return subprocess.run([sys.executable, "-c", code], check=True, text=True, stdout=subprocess.PIPE).stdout


# -- Arrays ------------------------------------------------------------------------------------------------------------


@given(array=any_array)
def test_numpy_arrays_come_back_in_native_byte_order(array: np.ndarray[Any, Any]) -> None:
    back = loads(dumps(array))
    assert same(back, np.asarray(array, array.dtype.newbyteorder("=")))
    assert back.flags.writeable
    assert back.flags.owndata
    assert back.flags.c_contiguous
    assert back.flags.aligned


@given(
    dtype=st.sampled_from(TORCH_DTYPES),
    shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    data=st.data(),
)
def test_torch_tensors_come_back_as_tensors(dtype: torch.dtype, shape: tuple[int, ...], data: st.DataObject) -> None:
    size = math.prod(shape) * dtype.itemsize
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    tensor = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if raw else torch.zeros(shape, dtype=dtype)
    assert same(loads(dumps(tensor)), tensor)


VIEWS: dict[str, Callable[[Any], Any]] = {
    "every other row": lambda array: array[::2],
    "transposed": lambda array: array.T,
    "a column": lambda array: array[:, 1],
    "one cell": lambda array: array[1, 1],
    "no rows": lambda array: array[:0],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_travel_without_the_rest_of_their_array(view: Callable[[Any], Any]) -> None:
    numbers = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    for array in (view(numbers), view(torch.from_numpy(numbers))):
        payload = dumps(np.asarray(array) if isinstance(array, np.generic) else array)
        assert len(payload) < 100 + 4 * math.prod(array.shape)
        assert loads(payload).shape == array.shape
        assert (np.asarray(loads(payload)) == np.asarray(array)).all()


def test_arrays_that_cannot_be_written_to_come_back_writable() -> None:
    array = np.ones(3)
    array.flags.writeable = False
    assert same(loads(dumps(np.broadcast_to(array, (2, 3)))), np.ones((2, 3)))
    with torch.inference_mode():
        tensor = torch.ones(3) * 2
    back = loads(dumps(tensor))
    back += 1
    assert back.tolist() == [3, 3, 3]


def test_tensors_with_gradients_conjugates_and_parameters_travel_as_their_values() -> None:
    assert same(loads(dumps(torch.nn.Parameter(torch.ones(2)))), torch.ones(2))
    assert same(loads(dumps(torch.ones(2, requires_grad=True) * 2)), torch.full((2,), 2.0))
    assert same(loads(dumps(torch.tensor([1 + 2j]).conj())), torch.tensor([1 - 2j]))
    assert same(loads(dumps(torch.tensor([1 + 2j]).conj().imag)), torch.tensor([-2.0]))


def test_arrays_may_stand_anywhere_and_in_any_number() -> None:
    value = {"ids": [np.arange(3), {"mask": torch.ones(2, dtype=torch.bool)}], "raw": b"\0\xff", "text": "a\0b", "n": 1}
    assert same(loads(dumps(value)), value)
    many = [np.full(n % 3, n) for n in range(200)]
    assert same(loads(dumps(many)), many)


@pytest.mark.parametrize(
    ("scalar", "back"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.float64(0.1), 0.1),
        (np.uint64(2**64 - 1), 2**64 - 1),
    ],
)
def test_numpy_scalars_become_python_numbers(scalar: Any, back: Any) -> None:
    assert same(loads(dumps([scalar])), [back])


@pytest.mark.parametrize("data", [b"", b"text", b"\0\xff" * 100, bytearray(b"ab"), memoryview(b"abcd")[::2]])
def test_bytes_come_back_as_bytes(data: Any) -> None:
    assert same(loads(dumps([data, np.ones(1)])), [bytes(data), np.ones(1)])


REFUSED: dict[str, tuple[Any, str]] = {
    "text": (np.array(["a"]), "An array of <U1 cannot be sent: possible are bool,"),
    "times": (np.zeros(1, "M8[s]"), r"datetime64\[s\] cannot be sent"),
    "objects": (np.array([None]), "object cannot be sent"),
    "records": (np.zeros(1, [("a", int)]), "cannot be sent"),
    "a masked array": (np.ma.masked_array([1], [True]), "would lose its mask"),
    "a sparse tensor": (torch.eye(2).to_sparse(), r"call to_dense\(\)"),
    "a nested tensor": (torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged), "pad it"),
    "an 8-bit float": (torch.zeros(1, dtype=torch.float8_e4m3fn), "float8_e4m3fn cannot be sent"),
    "a tensor without data": (torch.empty(1, device="meta"), "no data"),
    "too many dimensions": (torch.zeros([1] * 33), "33 dimensions; at most 32"),
    "wide emptiness": (np.zeros((2**21, 0)), "may make 1048576 at most"),
    "a complex number": (1j, "complex is not JSON serializable"),
    "a long double": (np.longdouble(1), "longdouble is not JSON serializable"),
    "a set": ({1}, "set is not JSON serializable"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_cannot_be_sent_is_refused_at_the_caller(value: Any, message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        serialization.dumps([value], serializer=NAME)


# -- Everything else ---------------------------------------------------------------------------------------------------

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
rich = (
    plain
    | st.datetimes(timezones=st.none() | st.just(dt.UTC))
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False)
    | st.uuids()
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.text() | st.integers()
    return st.recursive(
        leaves,
        lambda values: st.lists(values) | st.dictionaries(keys, values) | st.tuples(values, values),
        max_leaves=12,
    )


@given(value=nested(rich))
def test_plain_values_come_back_as_from_kombus_json(value: Any) -> None:
    payload = dumps(value)
    assert b"\0" not in payload
    assert same(loads(payload), kombu_json.loads(kombu_json.dumps(value)))
    assert same(kombu_json.loads(payload), loads(payload))
    assert same(loads(kombu_json.dumps(value).encode()), loads(payload))


@given(value=nested(rich | any_array.map(lambda array: array.astype(array.dtype.newbyteorder("="))) | st.binary()))
def test_arrays_and_bytes_among_plain_values_change_nothing_else(value: Any) -> None:
    def as_json(value: Any) -> Any:
        """The value as kombu's JSON would return it if it had arrays."""
        if isinstance(value, np.ndarray | bytes):
            return value
        if isinstance(value, list | tuple):
            return [as_json(part) for part in value]
        if isinstance(value, dict):
            return {str(key): as_json(part) for key, part in value.items()}
        return kombu_json.loads(kombu_json.dumps(value))

    assert same(loads(dumps(value)), as_json(value))


@pytest.mark.parametrize("payload", [str, bytearray, memoryview])
def test_payloads_may_come_as_any_kind_of_bytes(payload: Any) -> None:
    data = dumps([np.zeros(1, np.uint8), "ü"])
    assert same(loads(data.decode() if payload is str else payload(data)), [np.zeros(1, np.uint8), "ü"])


class Registered:
    """A type that an app has registered with kombu."""


def test_types_that_an_app_registered_with_kombu_travel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kombu_json, "_encoders", dict(kombu_json._encoders))
    monkeypatch.setattr(kombu_json, "_decoders", dict(kombu_json._decoders))
    kombu_json.register_type(Registered, "registered", lambda value: "x", lambda text: Registered())
    one, two = loads(dumps([Registered(), np.ones(1)]))
    assert isinstance(one, Registered)
    assert same(two, np.ones(1))


# -- Where torch is not ------------------------------------------------------------------------------------------------


def test_without_torch_tensors_come_back_as_numpy_arrays_of_the_same_values() -> None:
    tensors = [torch.ones(2, dtype=torch.float16), torch.tensor([1.5, -0.0, 3e38], dtype=torch.bfloat16)]
    tensors += [torch.tensor(2.5, dtype=torch.bfloat16), torch.zeros(0, dtype=torch.bfloat16)]
    payload = dumps(tensors)
    printed = without_torch(
        "import json; from batchery.producer.codec.serializer import loads;"
        f"print(json.dumps([[str(a.dtype), a.shape, a.tolist()] for a in loads({payload!r})]))"
    )
    assert json.loads(printed) == [
        ["float32" if tensor.dtype is torch.bfloat16 else "float16", list(tensor.shape), tensor.tolist()]
        for tensor in tensors
    ]


def test_the_serializer_loads_no_torch() -> None:
    code = "import numpy as np; from batchery.producer.codec.serializer import dumps, loads"
    assert without_torch(f"{code}\nprint(loads(dumps(np.ones(2))))") == "[1. 1.]\n"


# -- At kombu ----------------------------------------------------------------------------------------------------------


def test_kombu_knows_the_serializer_by_name_and_takes_it_only_where_it_is_accepted() -> None:
    content_type, encoding, payload = serialization.dumps([np.ones(2)], serializer=NAME)
    assert (content_type, encoding) == (CONTENT_TYPE, "binary")
    assert same(serialization.loads(payload, content_type, encoding, accept={CONTENT_TYPE}), [np.ones(2)])
    with pytest.raises(serialization.ContentDisallowed):
        serialization.loads(payload, content_type, encoding, accept={"application/json"})


def test_a_broken_payload_is_a_decode_error_of_kombu() -> None:
    with pytest.raises(DecodeError, match="16 bytes are to follow, 15 are there"):
        serialization.loads(dumps(np.ones(2))[:-1], CONTENT_TYPE, "binary", accept={CONTENT_TYPE})


def test_setup_makes_an_app_accept_arrays_unless_it_chose_what_it_accepts(app: Celery) -> None:
    setup(app)
    setup(app)
    with Celery(broker="memory://", set_as_current=False) as chosen:
        chosen.conf.accept_content = ["json"]
        setup(chosen)
        assert chosen.conf.accept_content == ["json"]
    assert app.conf.accept_content == ["json", "batchery"]
    assert app.conf.task_serializer == app.conf.result_serializer == "json"


# -- In logs -----------------------------------------------------------------------------------------------------------


def test_a_summary_shows_arrays_by_dtype_and_shape_and_leaves_the_rest() -> None:
    call = (np.ones((2, 3)), {"ids": torch.ones(4, dtype=torch.bfloat16)}, "text", [1])
    shown = "(<float64 array of shape (2, 3)>, {'ids': <bfloat16 array of shape (4,)>}, 'text', [1])"
    assert saferepr(summarise(call)) == shown
    for value in ("text", [1, {"a": None}], (1, 2), uuid.UUID(int=1), decimal.Decimal(1)):
        assert summarise(value) is value
