"""The weight gradient of a convolution in Numba: windows as offsets into long vectors, many sums at a time."""

# mypy: disable-error-code="no-untyped-def,call-arg"
from __future__ import annotations

import numpy as np
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from qmath.kernels.compiled import compiled

LANES = 16  # lengths and addresses are multiples of this many values: the widest vectors
_FEATURES = get_host_cpu_features()
_REGISTERS = 16 if _FEATURES.get("avx") and not _FEATURES.get("avx512f") else 32  # for vectors
HEIGHT, WIDTH = _REGISTERS // 4, 3  # output channels by taps that are summed side by side: as many as registers hold
_FAST = {"reassoc", "contract", "nsz"}


@intrinsic
def _widest(typing_context):
    """Ask for the widest vectors of the processor: by default LLVM uses half of AVX-512's."""

    def generate(context, builder, signature, arguments):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # bypasses llvmlite's list of known ones
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _move(typing_context, target, start, source, first, count):
    """target[start : start + count] = source[first : first + count] of vectors that do not overlap.

    A loop would check that for every row.
    """

    def generate(context, builder, signature, arguments):
        target, start, source, first, count = arguments
        to, of = (
            builder.gep(context.make_array(kind)(context, builder, array).data, [index])
            for kind, array, index in ((signature.args[0], target, start), (signature.args[2], source, first))
        )
        size = context.get_abi_sizeof(context.get_value_type(signature.args[0].dtype))
        cgutils.raw_memcpy(builder, to, of, count, size)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), generate


@compiled()
def contract(x, g, first_image, images, first_tile, tiles, group, height, layout, strides, offsets, scratch, out):
    """Add to out[o, c k] the sum over images n and positions t of g[n, o, t] x[n, c, strides t + offset of tap k].

    x is (N, C, H, W), g is (N, O, H', W'), both contiguous. The rows of `out` are output channels in tiles of `height`
    (1 or `HEIGHT`), every group padded to whole tiles; its columns are padded to a multiple of `WIDTH`. The images from
    first_image on and the tiles from first_tile on are processed. `layout` and `offsets` are those of
    `contraction._Layout`; `scratch` has room for both operands in it.
    """
    in_place, together, pieces, pitch, rows, span, lead = layout
    inner = x.shape[1] // group
    per_group = -(-(g.shape[1] // group) // height)
    first_group = first_tile // per_group
    groups = (first_tile + tiles - 1) // per_group - first_group + 1
    phases = strides[0] * strides[1]
    starts = np.empty(out.shape[1], np.int64)
    used = np.zeros(phases, np.bool_)
    for j in range(starts.size):
        c, k = divmod(min(j, inner * offsets.size - 1), offsets.size)
        starts[j] = c * phases * span + offsets[k]
        used[offsets[k] // span] = True
    width = rows * pitch if in_place else -(-together * rows * pitch // LANES) * LANES
    gradients, inputs = scratch, scratch
    if not in_place:
        first = (-scratch.ctypes.data // scratch.itemsize) % LANES  # where vectors can be loaded in one piece
        second = first + tiles * height * width
        gradients, inputs = scratch[first:second], scratch[second : second + groups * inner * phases * span]
        scratch[: second + inputs.size] = 0
    for image in range(first_image, first_image + images, together):
        count = min(together, first_image + images - image)
        if in_place:
            inputs = x[image].reshape(-1)[first_group * inner * span :]
            gradients = g[image].reshape(-1)[first_tile * height * width :]
        else:
            if count < together:
                gradients[:] = 0
            _lay_inputs(x[image : image + count], first_group * inner, inputs, pitch, rows, span, lead, strides, used)
            _lay_gradients(
                g[image : image + count], first_tile, per_group, height, group, gradients, width, pitch, rows
            )
        vectors = -(-(((count - 1) * rows + g.shape[2] - 1) * pitch + g.shape[3]) // LANES)
        for piece in range(pieces):
            begin = vectors * piece // pieces * LANES
            length = min(vectors * (piece + 1) // pieces * LANES, width) - begin
            for tile in range(tiles):
                base = ((first_tile + tile) // per_group - first_group) * inner * phases * span + begin
                here = gradients[tile * height * width + begin :]
                sums = out[(first_tile + tile) * height : (first_tile + tile + 1) * height]
                if height == 1:
                    _one_channel(here, length, inputs, base, starts, sums[0])
                else:
                    _channels(here, width, length, inputs, base, starts, sums)


@compiled()
def _lay_inputs(x, first_channel, inputs, pitch, rows, span, lead, strides, used):
    """Lay out x[n, c, h, w] in the row of (c, h mod strides, w mod strides); rows that no tap reads stay empty.

    Its place there is lead + (n rows + h // strides) pitch + w // strides.
    """
    down, across = strides
    values = x.reshape(-1)
    for n in range(x.shape[0]):
        for c in range(inputs.size // (down * across * span)):
            first = (n * x.shape[1] + first_channel + c) * x.shape[2]
            for above in range(down):
                for line in range((x.shape[2] - above + down - 1) // down):
                    for phase in range(across):
                        part = above * across + phase
                        if used[part]:
                            start = (c * down * across + part) * span + lead + (n * rows + line) * pitch
                            _copy(values, first + line * down + above, x.shape[3], phase, across, inputs, start)


@compiled()
def _lay_gradients(g, first_tile, per_group, height, group, gradients, width, pitch, rows):
    """Lay out the output gradients of every tile in rows of their own, with positions as in `_lay_inputs`."""
    outer = g.shape[1] // group
    values = g.reshape(-1)
    for n in range(g.shape[0]):
        for row in range(gradients.size // width):
            which, tile = divmod(first_tile + row // height, per_group)
            channel = tile * height + row % height
            if channel < outer:
                first = (n * g.shape[1] + which * outer + channel) * g.shape[2]
                for h in range(g.shape[2]):
                    start = row * width + (n * rows + h) * pitch
                    _move(gradients, start, values, (first + h) * g.shape[3], g.shape[3])


@compiled()
def _copy(source, row, width, first, step, target, start):
    """Copy every step-th value, from `first` on, of a row of `width` values."""
    if step == 1:
        _move(target, start, source, row * width, width)
    elif step == 2:  # in vectors
        line, taken = source[row * width + first : (row + 1) * width], target[start : start + (width - first + 1) // 2]
        for i in range(taken.size):
            taken[i] = line[2 * i]
    else:
        for i in range((width - first + step - 1) // step):
            target[start + i] = source[row * width + first + i * step]


@compiled()
def _channels(g, width, n, inputs, base, starts, out):
    for j in range(0, starts.size, WIDTH):
        a, b, c = starts[j] + base, starts[j + 1] + base, starts[j + 2] + base
        if HEIGHT == 8:
            eight_rows(g, width, n, inputs, a, b, c, out[:, j : j + WIDTH])
        else:
            four_rows(g, width, n, inputs, a, b, c, out[:, j : j + WIDTH])


@compiled()
def _one_channel(g, n, inputs, base, starts, out):
    for j in range(0, starts.size, WIDTH):
        a, b, c = starts[j] + base, starts[j + 1] + base, starts[j + 2] + base
        _one_row(g, n, inputs, a, b, c, out[j : j + WIDTH])


@compiled(fastmath=_FAST)
def eight_rows(g, width, n, inputs, a, b, c, out):
    """Add to out[i, j] the product of row i of g, `width` apart, and the j-th of three stretches of the inputs."""
    g0, g1, g2, g3 = g[:n], g[width : width + n], g[2 * width : 2 * width + n], g[3 * width : 3 * width + n]
    g4, g5, g6, g7 = (
        g[4 * width : 4 * width + n],
        g[5 * width : 5 * width + n],
        g[6 * width : 6 * width + n],
        g[7 * width : 7 * width + n],
    )
    x0, x1, x2 = inputs[a : a + n], inputs[b : b + n], inputs[c : c + n]
    _widest()
    p0 = p1 = p2 = q0 = q1 = q2 = r0 = r1 = r2 = s0 = s1 = s2 = out.dtype.type(0)
    t0 = t1 = t2 = u0 = u1 = u2 = v0 = v1 = v2 = w0 = w1 = w2 = out.dtype.type(0)
    for i in range(n):
        xa, xb, xc = x0[i], x1[i], x2[i]
        p0, p1, p2 = p0 + g0[i] * xa, p1 + g0[i] * xb, p2 + g0[i] * xc
        q0, q1, q2 = q0 + g1[i] * xa, q1 + g1[i] * xb, q2 + g1[i] * xc
        r0, r1, r2 = r0 + g2[i] * xa, r1 + g2[i] * xb, r2 + g2[i] * xc
        s0, s1, s2 = s0 + g3[i] * xa, s1 + g3[i] * xb, s2 + g3[i] * xc
        t0, t1, t2 = t0 + g4[i] * xa, t1 + g4[i] * xb, t2 + g4[i] * xc
        u0, u1, u2 = u0 + g5[i] * xa, u1 + g5[i] * xb, u2 + g5[i] * xc
        v0, v1, v2 = v0 + g6[i] * xa, v1 + g6[i] * xb, v2 + g6[i] * xc
        w0, w1, w2 = w0 + g7[i] * xa, w1 + g7[i] * xb, w2 + g7[i] * xc
    _add(out[0], p0, p1, p2)
    _add(out[1], q0, q1, q2)
    _add(out[2], r0, r1, r2)
    _add(out[3], s0, s1, s2)
    _add(out[4], t0, t1, t2)
    _add(out[5], u0, u1, u2)
    _add(out[6], v0, v1, v2)
    _add(out[7], w0, w1, w2)


@compiled(fastmath=_FAST)
def four_rows(g, width, n, inputs, a, b, c, out):
    """The same for four rows of g."""
    g0, g1, g2, g3 = g[:n], g[width : width + n], g[2 * width : 2 * width + n], g[3 * width : 3 * width + n]
    x0, x1, x2 = inputs[a : a + n], inputs[b : b + n], inputs[c : c + n]
    _widest()
    p0 = p1 = p2 = q0 = q1 = q2 = r0 = r1 = r2 = s0 = s1 = s2 = out.dtype.type(0)
    for i in range(n):
        xa, xb, xc = x0[i], x1[i], x2[i]
        p0, p1, p2 = p0 + g0[i] * xa, p1 + g0[i] * xb, p2 + g0[i] * xc
        q0, q1, q2 = q0 + g1[i] * xa, q1 + g1[i] * xb, q2 + g1[i] * xc
        r0, r1, r2 = r0 + g2[i] * xa, r1 + g2[i] * xb, r2 + g2[i] * xc
        s0, s1, s2 = s0 + g3[i] * xa, s1 + g3[i] * xb, s2 + g3[i] * xc
    _add(out[0], p0, p1, p2)
    _add(out[1], q0, q1, q2)
    _add(out[2], r0, r1, r2)
    _add(out[3], s0, s1, s2)


@compiled(fastmath=_FAST)
def _one_row(g, n, inputs, a, b, c, out):
    """The same for one row of g."""
    _widest()
    x0, x1, x2 = inputs[a : a + n], inputs[b : b + n], inputs[c : c + n]
    s0 = s1 = s2 = out.dtype.type(0)
    for i in range(n):
        s0, s1, s2 = s0 + g[i] * x0[i], s1 + g[i] * x1[i], s2 + g[i] * x2[i]
    _add(out, s0, s1, s2)


@compiled()
def _add(out, a, b, c):
    out[0] += a
    out[1] += b
    out[2] += c
