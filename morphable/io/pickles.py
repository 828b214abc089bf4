"""Pickles without unpickling: an interpreter of pickle's opcodes that knows arrays and runs nothing.

Python's `pickle` imports what a file names and calls it. Here a name in a file is only a name: the few that published
model files use are looked up in the tables below, where our own functions make arrays of them, and every other name is
an error. Nothing is imported, no attribute is read, no method of an object is called. Understood are

* protocols 0 to 5, among them those that Python 2 wrote, whose strings are read as Latin-1;
* NumPy's arrays, scalars and dtypes under the names that they had and have (numpy.core, numpy._core); Fortran order;
* SciPy's compressed sparse matrices, which become dense arrays;
* chumpy's `Ch` and its `Select`, `Reshape` and `transpose` (github.com/mattloper/chumpy, ch.py and reordering.py),
  which are evaluated; other chumpy expressions, and torch's tensors, stay `Unread`.

Time and memory are bounded by the file's size: at most `OPERATIONS` opcodes, and arrays of at most `allowance` bytes.
"""

import codecs
import io
import math
import pickletools
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from morphable.io.archive import npy_header
from morphable.io.contents import ModelFileError, allowance

OPERATIONS = 1_000_000  # a model has some hundreds; each makes at most one small object


class Unread(NamedTuple):
    """A value that the file has and that is not read: an expression of chumpy, a tensor of torch."""

    name: str


def read_pickle(path: str | Path) -> dict[str, Any]:
    """The dictionary in a `.pkl`, or in a `.npy` that holds one object; raises ModelFileError for all else.

    Values are arrays, numbers, strings, bytes, lists (sets, too), tuples, dictionaries of these, or `Unread`.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); expected a model's file.") from error
    if data.startswith(np.lib.format.MAGIC_PREFIX):
        data = _pickle_in_npy(data, path)
    values = unpickle(data, str(path))
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ModelFileError(
            f"{path}: got a pickled {type(values).__name__}, expected a dictionary of arrays. Is it a model file?"
        )
    return values


def _pickle_in_npy(data: bytes, path: Path) -> bytes:
    file = io.BytesIO(data)
    shape, _, dtype = npy_header(file, str(path))
    if not dtype.hasobject or shape != ():
        raise ModelFileError(
            f"{path}: an array of {dtype} of shape {shape}, expected a dictionary of arrays. Is it a model file?"
        )
    return data[file.tell() :]


def unpickle(data: bytes, what: str) -> Any:
    """The value that a pickle's bytes describe; `what` names them in errors."""
    machine = _Machine(data, what)
    try:
        return machine.run()
    except ModelFileError:
        raise
    except Exception as error:  # of the interpreter's own checks and of NumPy's: a damaged file, whatever its kind
        raise ModelFileError(f"{what}: not a readable pickle ({_short(error)}). Is the file complete?") from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


class _Name(NamedTuple):
    """A global of the file: nothing but its name."""

    module: str
    name: str


class _Unbuilt:
    """An object between its creation and its state (BUILD): a name, the arguments, and then its value."""

    def __init__(self, name: _Name, arguments: tuple):
        self.name, self.arguments, self.value = name, arguments, None


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_BUILTINS = ("__builtin__", "builtins")
_COPYREG = ("copy_reg", "copyreg")
_ARRAYS = {_Name("numpy", "ndarray"), _Name("numpy", "matrix"), _Name("numpy.matrixlib.defmatrix", "matrix")}
_OBJECT = {_Name(module, "object") for module in _BUILTINS}
_SPARSE = re.compile(r"scipy\.sparse(\.\w+)? (csc|csr)_(matrix|array)")
_DTYPE = re.compile(r"[<>=|]?([fiu][1248]|b1|\?|[SU][0-9]{1,6}|O8?)")


class _Machine:
    """Pickle's stack machine over inert values."""

    def __init__(self, data: bytes, what: str):
        self.file, self.what = io.BytesIO(data), what
        self.allowed = self.budget = allowance(len(data))  # bytes that may be made, and that may still be
        self.stack: list = []
        self.marks: list[list] = []  # stacks below the marks
        self.memo: dict[int, Any] = {}

    def take(self, size: int) -> None:
        """Count bytes against the allowance before they are made."""
        if size > self.budget:
            raise ModelFileError(
                f"{self.what}: its arrays are larger than {self.allowed} bytes, the most that "
                "a file of this size may hold. Is the file damaged?"
            )
        self.budget -= size

    def run(self) -> Any:
        for _ in range(OPERATIONS):
            code = self.file.read(1)
            if not code:
                raise EOFError("it ends before its last opcode")
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise ValueError(f"no opcode {code!r}")
            if opcode.name == "STOP":
                return _settled(self.stack.pop())
            self.step(opcode.name, self.argument(opcode))
        raise ModelFileError(
            f"{self.what}: more than {OPERATIONS} opcodes, expected some hundreds. Is it a model file?"
        )

    def argument(self, opcode: pickletools.OpcodeInfo) -> Any:
        if opcode.arg is None:
            return None
        if opcode.name != "STRING":
            return opcode.arg.reader(self.file)  # pyright: ignore[reportCallIssue], missing in its stubs
        # pickletools reads Python 2's strings as ASCII only; arrays of protocol 0 have all bytes, escaped.
        line = self.file.readline()
        if len(line) < 3 or line[:1] not in b"'\"" or line[-2:-1] != line[:1]:
            raise ValueError("a string without its quotes")
        return codecs.escape_decode(line[1:-2])[0].decode("latin-1")  # pyright: ignore[reportAttributeAccessIssue]

    def step(self, name: str, argument: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        match name:
            case "PROTO" | "FRAME":
                pass
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                if not 0 <= argument < 2**32:
                    raise ValueError("a memo's number out of range")
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(_settled(self.memo[argument]))
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4":
                if argument.bit_length() > 128:
                    raise ValueError("a number of more than 128 bits")
                push(argument)
            case "FLOAT" | "BINFLOAT":
                push(argument)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING":
                push(argument)
            case "UNICODE" | "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                push(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                push(bytes(argument))
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "EMPTY_LIST" | "EMPTY_SET":  # a set's elements in a list: nothing is hashed that a file can choose
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_DICT":
                push({})
            case "MARK":
                self.marks.append(self.stack)
                self.stack = []
            case "POP":
                if self.stack:
                    pop()
                else:
                    self.since_mark()
            case "POP_MARK":
                self.since_mark()
            case "DUP":
                push(self.stack[-1])
            case "TUPLE" | "LIST" | "FROZENSET":
                items = self.since_mark()
                self.stack.append(tuple(items) if name == "TUPLE" else items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                if len(self.stack) < count:
                    raise IndexError("a stack that is too short")
                self.stack[-count:] = [tuple(map(_settled, self.stack[-count:]))]
            case "DICT":
                items = self.since_mark()
                self.stack.append({})
                self.set_items(items)
            case "APPEND":
                item = pop()
                self.top(list).append(_settled(item))
            case "APPENDS" | "ADDITEMS":
                items = self.since_mark()
                self.top(list).extend(items)
            case "SETITEM":
                value, key = pop(), pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.since_mark())
            case "GLOBAL":
                push(self.known(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = pop(), pop()
                push(self.known(module, attribute))
            case "REDUCE" | "NEWOBJ":
                arguments, function = pop(), pop()
                push(self.call(function, arguments))
            case "INST":
                instance = self.known(*argument.split(" ", 1))
                self.stack, arguments = self.marks.pop(), tuple(self.stack)
                self.stack.append(self.call(instance, arguments))
            case "OBJ":
                function, *arguments = self.since_mark()
                self.stack.append(self.call(function, tuple(arguments)))
            case "BUILD":
                state, instance = pop(), self.stack[-1]
                if not isinstance(instance, _Unbuilt) or instance.value is not None:
                    raise ModelFileError(f"{self.what}: gives a state to a {type(instance).__name__}; refused.")
                instance.value = self.built(instance, _settled(state))
                self.stack[-1] = instance.value
            case _:  # NEWOBJ_EX, EXT1 ..., PERSID, BINPERSID, NEXT_BUFFER, READONLY_BUFFER: no model file needs them
                raise ModelFileError(f"{self.what}: uses pickle's {name}; refused. It is not a file of plain arrays.")

    def since_mark(self) -> list:
        """What was pushed since the last mark, which is removed."""
        items, self.stack = [_settled(item) for item in self.stack], self.marks.pop()
        return items

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} should be")
        return self.stack[-1]

    def set_items(self, items: list) -> None:
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashes of strings are salted; of other keys a file could choose a million that collide.
            if not (isinstance(key, str | bytes) or (type(key) is int and abs(key) < 2**32)):
                raise TypeError(f"a key that is a {type(key).__name__}")
            target[key] = _settled(value)

    def known(self, module: Any, name: Any) -> _Name:
        """The name, if model files use it; this is where a file that would run something ends."""
        asked = _Name(module, name)
        if isinstance(module, str) and isinstance(name, str):
            if asked in _CALLS or asked in _ARRAYS | _OBJECT or _SPARSE.fullmatch(f"{module} {name}"):
                return asked
            if module == "chumpy" or module.startswith("chumpy."):
                return asked
        text = f"{module}.{name}"[:100]
        raise ModelFileError(
            f"{self.what}: asks to run {text!r}; refused. A model needs arrays only: get the file from its publishers."
        )

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name) or type(arguments) is not tuple:
            raise ModelFileError(f"{self.what}: calls a {type(function).__name__}; refused.")
        if function in _CALLS:
            return _CALLS[function](self, *map(_settled, arguments))
        if function in _ARRAYS | _OBJECT or arguments:
            raise ModelFileError(f"{self.what}: calls {'.'.join(function)!r} with {len(arguments)} arguments; refused.")
        return _Unbuilt(function, ())

    def built(self, instance: _Unbuilt, state: Any) -> Any:
        """The value of an instance that has got its state."""
        name = instance.name
        if name in _ARRAYS:
            shape, dtype, fortran, raw = state[-4:]
            return self.array(raw, dtype, shape, bool(fortran))
        if name == _Name("numpy", "dtype"):
            order = state[1]
            if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
                raise ValueError("a dtype with fields")
            return instance.arguments[0].newbyteorder(order)
        if type(state) is not dict:
            raise TypeError(f"a state that is a {type(state).__name__}")
        if name.module.split(".")[0] == "scipy":
            return self.dense(name.name[:3], state)
        return self.evaluated(name, state)

    def array(self, raw: Any, dtype: Any, shape: Any, fortran: bool) -> Any:
        """An array; of objects, the list of them, or, where it has no dimension, the object."""
        if isinstance(dtype, _Unbuilt):
            dtype = dtype.arguments[0]
        if not isinstance(dtype, np.dtype):
            raise TypeError("an array without dtype")
        count = _count(shape)
        if dtype.hasobject:
            if type(raw) is not list or len(raw) != count:
                raise ValueError("an array of objects without its objects")
            return raw if shape else raw[0]
        return _array_from(self.raw(raw), dtype, shape, fortran, self.budget)

    def raw(self, text: Any) -> bytes:
        """Bytes, which Python 2 called a string."""
        if isinstance(text, bytes):
            return text
        self.take(len(text))
        return text.encode("latin-1")

    def dense(self, order: str, state: dict) -> np.ndarray:
        """A compressed sparse matrix (csc or csr), its duplicate entries summed."""
        shape = state["_shape"] if "_shape" in state else state["shape"]
        values, minor, pointers = (_vector(state[name]) for name in ("data", "indices", "indptr"))
        count = _count(shape)
        rows, columns = shape
        lines, length = (columns, rows) if order == "csc" else (rows, columns)
        steps = np.diff(pointers.astype(np.int64))
        if len(pointers) != lines + 1 or pointers[0] != 0 or (steps < 0).any() or pointers[-1] != len(minor):
            raise ValueError("a sparse matrix whose pointers do not fit")
        if len(minor) != len(values) or (len(minor) and not 0 <= minor.min() <= minor.max() < length):
            raise ValueError("a sparse matrix whose indices do not fit")
        self.take(8 * count)
        dense = np.zeros((lines, length))
        np.add.at(dense, (np.repeat(np.arange(lines), steps), minor), values)
        return dense.T if order == "csc" else dense

    def evaluated(self, name: _Name, state: dict) -> Any:
        """The value of a chumpy expression (its `compute_r`), as far as it only rearranges an array."""
        if name.name == "Ch" and isinstance(state.get("x"), np.ndarray):
            return state["x"]
        source = state.get("a")
        if name.module != "chumpy.reordering" or not isinstance(source, np.ndarray):
            return Unread(".".join(name))
        if name.name == "Select":
            chosen = _indices(state["idxs"])
            self.take(source.nbytes + source.itemsize * len(chosen))
            picked = source.ravel()[chosen]
            return picked.reshape(state["preferred_shape"]) if "preferred_shape" in state else picked
        if name.name == "Reshape":
            self.take(source.nbytes)
            return source.reshape(state["newshape"])
        if name.name == "transpose":
            return source.transpose(state.get("axes"))
        return Unread(".".join(name))


def _settled(value: Any) -> Any:
    """The value of an object that got its state after it was put on the stack or into the memo."""
    return value.value if isinstance(value, _Unbuilt) and value.value is not None else value


def _count(shape: Any) -> int:
    if type(shape) is not tuple or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError("a shape that is none")
    return math.prod(shape)


def _array_from(raw: bytes, dtype: np.dtype, shape: tuple, fortran: bool, most: int) -> np.ndarray:
    """A view of bytes as an array; they must be as many as it needs."""
    if dtype.kind not in "fiubSU" or not dtype.itemsize:
        raise TypeError(f"an array of {dtype}")
    size = _count(shape) * dtype.itemsize
    if size != len(raw) or size > most:
        raise ValueError(f"{len(raw)} bytes for an array {shape} of {dtype}")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _vector(values: Any) -> np.ndarray:
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "fiu":
        raise TypeError("a sparse matrix without arrays")
    return values


def _indices(values: Any) -> np.ndarray:
    if type(values) is list and all(type(i) is int for i in values):
        return np.array(values, np.int64)
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iu":
        raise TypeError("a selection that is not by indices")
    return values


# What the names in model files do here: functions of the machine and of the file's arguments.


def _reconstruct(machine: _Machine, subtype: Any, shape: Any, typecode: Any) -> _Unbuilt:
    if subtype not in _ARRAYS:
        raise ModelFileError(f"{machine.what}: makes an array of a kind that is not NumPy's; refused.")
    return _Unbuilt(subtype, ())


def _reconstructor(machine: _Machine, subtype: Any, base: Any, state: Any) -> _Unbuilt:
    if base not in _OBJECT or state is not None or subtype in _OBJECT:
        raise ModelFileError(f"{machine.what}: makes an object from another one; refused.")
    return machine.call(subtype, ())


def _dtype(machine: _Machine, name: Any, *flags: Any) -> _Unbuilt:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise TypeError("an array of a dtype that holds no numbers")
    return _Unbuilt(_Name("numpy", "dtype"), (np.dtype(name.replace("O8", "O")),))


def _scalar(machine: _Machine, dtype: Any, raw: Any) -> Any:
    return machine.array(raw, dtype, (), False)[()]


def _frombuffer(machine: _Machine, raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
    return machine.array(raw, dtype, shape, order == "F")


def _encode(machine: _Machine, text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise ValueError("bytes in an encoding other than Latin-1")
    return machine.raw(text)


def _bytes(machine: _Machine, text: Any = b"", encoding: Any = "latin1") -> bytes:
    return text if isinstance(text, bytes) else _encode(machine, text, encoding)


def _set(machine: _Machine, items: Any = ()) -> Any:
    return items


def _ordered(machine: _Machine, items: Any = ()) -> dict:
    machine.take(64 * len(items))
    machine.stack.append({})
    machine.set_items([part for key, value in items for part in (key, value)])
    return machine.stack.pop()


def _tensor(machine: _Machine, *arguments: Any) -> Unread:
    return Unread("torch.Tensor")


_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_CALLS = {
    **{_Name(module, "_reconstruct"): _reconstruct for module in _NUMPY},
    **{_Name(module, "scalar"): _scalar for module in _NUMPY},
    **{_Name(module, "_frombuffer"): _frombuffer for module in _NUMERIC},
    _Name("numpy", "dtype"): _dtype,
    _Name("_codecs", "encode"): _encode,
    **{_Name(module, "_reconstructor"): _reconstructor for module in _COPYREG},
    **{_Name(module, name): _bytes for module in _BUILTINS for name in ("bytes", "bytearray")},
    **{_Name(module, name): _set for module in _BUILTINS for name in ("set", "frozenset")},
    _Name("collections", "OrderedDict"): _ordered,
    _Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Name("torch.storage", "_load_from_bytes"): _tensor,
}
