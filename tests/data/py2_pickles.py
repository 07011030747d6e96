"""Writes pickles as Python 2 wrote those of CIFAR: texts are bytes, and arrays refer to an old name of numpy."""

import struct

import numpy as np


def dump(value):
    """Return the pickle of nested dicts, lists, whole numbers, bytes and 8-bit arrays."""
    return b"\x80\x02" + _encoded(value) + b"."


def _encoded(value):
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_encoded, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_encoded(each) for pair in value.items() for each in pair) + b"u"
    return _array(np.ascontiguousarray(value))


def _array(array):
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + b"K\x00\x85" + b"U\x01b"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * _encoded(-1) + b"K\x00tb"
    shape = b"(" + b"".join(map(_encoded, array.shape)) + b"t"
    return start + b"\x87R(K\x01" + shape + dtype + b"\x89" + _encoded(array.tobytes()) + b"tb"
