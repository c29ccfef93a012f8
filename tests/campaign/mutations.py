"""Files and values made wrong at random, each from a seed alone."""

import copy
import json
import random
import struct

VALUES = (
    None, True, -1, 0, 2**31, 2**63, 10**30, -0.5, 1e308, float("nan"), float("inf"), "", " ", "nan", "1e9", "x" * 5000,
    "\u202e\U0001f600", "../../../etc/passwd", "/etc/passwd", "{{ ''.__class__ }}", "\0", "a\nb", [], {}, [None], [[]],
    {"a": {"b": 1}}, [0] * 1000, "auto", "1/0", "!!python/object/apply:os.system [id]",
)  # fmt: skip
DEEP = 3000


def places(value, at=()):
    """The paths to all values inside of nested dicts and lists."""
    if at:
        yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in entries:
        yield from places(each, (*at, key))


def change_value(value, generator, count=1):
    """Nested dicts and lists with some values replaced, removed, renamed or put deep inside of lists."""
    value = copy.deepcopy(value)
    for _ in range(count):
        found = list(places(value))
        if not found:
            return value
        *way, last = generator.choice(found)
        parent = value
        for key in way:
            parent = parent[key]
        kind = generator.choice(["replace", "replace", "replace", "remove", "rename", "wrap", "copy"])
        if kind == "remove":
            del parent[last]
        elif kind == "rename" and isinstance(parent, dict):
            parent[generator.choice(["", "x", "__class__", str(last) + "s", str(last)[1:]])] = parent.pop(last)
        elif kind == "wrap":
            parent[last] = [parent[last]]
        elif kind == "copy":
            other = value
            for key in generator.choice(found):
                if not isinstance(other, (dict, list)) or (isinstance(other, list) and key >= len(other)):
                    break
                if isinstance(other, dict) and key not in other:
                    break
                other = other[key]
            parent[last] = copy.deepcopy(other)
        else:
            parent[last] = copy.deepcopy(generator.choice(VALUES))
    return value


def change_bytes(content, generator):
    """Bytes that are cut, flipped, doubled, put in or taken out."""
    content = bytearray(content)
    for _ in range(generator.choice([1, 1, 1, 2, 5, 20])):
        kind = generator.choice(["cut", "flip", "flip", "insert", "remove", "repeat", "zero", "text"])
        at = generator.randrange(len(content) + 1)
        size = generator.choice([1, 1, 2, 8, 64, 1000])
        if kind == "cut":
            del content[at:]
        elif kind == "flip" and at < len(content):
            content[at] ^= 1 << generator.randrange(8)
        elif kind == "insert":
            content[at:at] = generator.randbytes(size)
        elif kind == "remove":
            del content[at : at + size]
        elif kind == "repeat":
            content[at:at] = content[at : at + size] * generator.choice([1, 3, 100])
        elif kind == "zero":
            content[at : at + size] = bytes(len(content[at : at + size]))
        elif kind == "text":
            content[at:at] = generator.choice(
                [b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"[" * DEEP, b'"', b"\r", b"&a;", b"<!", b"\0", b"1e999"]
            )
    return bytes(content)


def change_json(content, generator):
    """JSON text with wrong values, or wrong as text."""
    kind = generator.choice(["value", "value", "value", "values", "bytes", "deep", "other", "number"])
    if kind == "bytes":
        return change_bytes(content, generator)
    if kind == "deep":
        return generator.choice([b"[" * 10**5 + b"]" * 10**5, b'{"a":' * 10**5 + b"1" + b"}" * 10**5])
    if kind == "other":
        return json.dumps(generator.choice(VALUES)).encode("utf-8", "surrogatepass")
    if kind == "number":
        return content.replace(b"1", b"1" * 5000, 1)
    return json.dumps(change_value(json.loads(content), generator, 1 if kind == "value" else 5)).encode()


def change_safetensors(content, generator):
    """A safetensors file with another header, or with wrong bytes."""
    if generator.random() < 0.3:
        return change_bytes(content, generator)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    kind = generator.choice(["value", "value", "length", "shape", "swap", "dtype", "cut", "drop", "name"])
    if kind == "length":
        wrong = generator.choice([0, 1, length - 1, length + 1, 2**32, 2**63, 2**64 - 1])
        return struct.pack("<Q", wrong) + content[8:]
    if kind == "cut":
        return content[: generator.randrange(len(content))]
    names = [name for name in header if name != "__metadata__"]
    chosen = header[generator.choice(names)]
    if kind == "shape":
        chosen["shape"] = generator.choice(
            [[], [0], [-1], [2**40, 2**40], chosen["shape"][::-1], [*chosen["shape"], 1]]
        )
    elif kind == "swap":
        other = header[generator.choice(names)]
        chosen["data_offsets"], other["data_offsets"] = other["data_offsets"], chosen["data_offsets"]
    elif kind == "dtype":
        chosen["dtype"] = generator.choice(["F64", "I8", "F8_E4M3", "BOOL", "X", "", 3])
    elif kind == "drop":
        del header[generator.choice(names)]
    elif kind == "name":
        header[generator.choice(["x", "", "model.layers.99.x", "../x"])] = header.pop(generator.choice(names))
    else:
        header = change_value(header, generator)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def generator_of(*parts):
    return random.Random(" ".join(map(str, parts)))
