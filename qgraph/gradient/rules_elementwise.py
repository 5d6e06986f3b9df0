"""Gradients of elementwise operators and activations; g is dL/dy, x, a and b are inputs, y is the output."""

from __future__ import annotations

import math

import onnx_ir as ir

from qgraph.gradient.expression import Expr, constant, op
from qgraph.gradient.registry import Gradient, Node, rule

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def keep(mask: Expr, gradient: Expr) -> Expr:
    """`gradient` where `mask` holds, 0 elsewhere."""
    return op.Where(mask, gradient, _number(0.0, gradient))


def _number(value: float, like: Expr) -> Expr:
    return constant(value, like.dtype)


# ---- arithmetic ------------------------------------------------------------------------------------------------------


@rule("Add", "Sum", broadcasts=True)
def add(n: Node) -> Gradient:
    return [n.g for _ in n.inputs]


@rule("Sub", broadcasts=True)
def sub(n: Node) -> Gradient:
    return n.g, -n.g


@rule("Mul", broadcasts=True)
def mul(n: Node) -> Gradient:
    a, b = n.input(0), n.input(1)
    if n.ir.inputs[0] is n.ir.inputs[1]:
        return n.g * 2.0 * a, None
    return n.g * b, n.g * a


@rule("Div", broadcasts=True)
def div(n: Node) -> Gradient:  # d(a/b) = da/b - y db/b
    b = n.input(1)
    return n.g / b, -(n.g * n.y) / b


@rule("Mean", broadcasts=True)
def mean(n: Node) -> Gradient:
    return [n.g / float(len(n.inputs)) for _ in n.inputs]


@rule("Pow", broadcasts=True)
def power(n: Node) -> Gradient:  # dx: p x^(p-1); dp: y ln x, taken as 0 where x <= 0
    x, p = n.x, n.input(1)
    known = n.constant(1)
    if known is not None and known.size == 1 and known.item() in (1.0, 2.0, 3.0):
        degree = float(known.item())
        slope = {1.0: n.g, 2.0: n.g * (x * 2.0), 3.0: n.g * (x * x * 3.0)}[degree]
        return slope, None if p.dtype not in _FLOATS else _exponent(n)
    exponent = p if p.dtype == x.dtype else op.Cast(p, to=int(x.dtype))
    return n.g * exponent * op.Pow(x, exponent - 1.0), None if p.dtype not in _FLOATS else _exponent(n)


def _exponent(n: Node) -> Expr:
    positive = n.x > 0.0
    return keep(positive, n.g * n.y * op.Log(op.Where(positive, n.x, _number(1.0, n.x))))


@rule("Neg")
def neg(n: Node) -> Gradient:
    return -n.g


@rule("Abs")
def absolute(n: Node) -> Gradient:
    return n.g * op.Sign(n.x)


@rule("Reciprocal")
def reciprocal(n: Node) -> Gradient:
    return -n.g * (n.y * n.y)


@rule("Sqrt")
def sqrt(n: Node) -> Gradient:
    return n.g * 0.5 / n.y


@rule("Exp")
def exp(n: Node) -> Gradient:
    return n.g * n.y


@rule("Log")
def log(n: Node) -> Gradient:
    return n.g / n.x


@rule("Sin")
def sin(n: Node) -> Gradient:
    return n.g * op.Cos(n.x)


@rule("Cos")
def cos(n: Node) -> Gradient:
    return -n.g * op.Sin(n.x)


@rule("Erf")
def erf(n: Node) -> Gradient:  # 2/sqrt(pi) exp(-x^2)
    return n.g * (op.Exp(-(n.x * n.x)) * (2.0 / math.sqrt(math.pi)))


# ---- choices ---------------------------------------------------------------------------------------------------------


@rule("Max", "Min", broadcasts=True)
def extremum(n: Node) -> Gradient:  # to the first operand that attains it
    gradients, free = [], n.g
    for x in n.inputs:
        if x is None:
            raise n.error("an operand is missing")
        mine = op.Equal(x, n.y)
        gradients.append(keep(mine, free))
        free = op.Where(mine, _number(0.0, n.g), free)
    return gradients


@rule("Clip", broadcasts=True)
def clip(n: Node) -> Gradient:  # x: where it is inside, ends included; a bound: where it is active
    low = keep(n.x < n.input(1), n.g) if n.has(1) else None
    high = keep(n.x > n.input(2), n.g) if n.has(2) else None
    inside = op.Cast(op.Equal(n.x, n.y), to=int(n.g.dtype))
    return n.g * inside, low, high  # a product takes a tenth of the time of Where


@rule("Where", broadcasts=True)
def where(n: Node) -> Gradient:
    condition, zero = n.input(0), _number(0.0, n.g)
    return None, op.Where(condition, n.g, zero), op.Where(condition, zero, n.g)


@rule("Identity")
def identity(n: Node) -> Gradient:
    return n.g


@rule("Cast")
def cast(n: Node) -> Gradient:
    return op.Cast(n.g, to=int(n.x.dtype)) if n.x.dtype in _FLOATS else None


@rule("CastLike")
def cast_like(n: Node) -> Gradient:
    return (op.CastLike(n.g, n.x), None) if n.x.dtype in _FLOATS else None


@rule("Dropout")
def dropout(n: Node) -> Gradient:  # in inference it is the identity
    training = n.constant(2)
    if n.has(2) and (training is None or bool(training)):
        raise n.error("it is in training mode; export the model in evaluation mode")
    return n.g


@rule("Floor", "Ceil", "Sign")
def stepwise(n: Node) -> Gradient:
    return None


# ---- activations -----------------------------------------------------------------------------------------------------


@rule("Relu")
def relu(n: Node) -> Gradient:
    """g where y > 0; x serves as well if it is needed anyway, so that y can stay in the layout that Conv prefers."""
    judged = n.x if n.shared(0) else n.y
    if n.x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return keep(judged > 0.0, n.g)
    return n.g * op.HardSigmoid(judged, alpha=1e30, beta=0.0)  # 1 or 0 for |x| > 1e-30; twice as fast as Where


@rule("LeakyRelu")
def leaky_relu(n: Node) -> Gradient:
    return op.Where(n.x > 0.0, n.g, n.g * n.attribute("alpha", 0.01))


@rule("PRelu", broadcasts=True)
def prelu(n: Node) -> Gradient:
    x, slope = n.input(0), n.input(1)
    return op.Where(x > 0.0, n.g, n.g * slope), keep(x <= 0.0, n.g * x)


@rule("Elu")
def elu(n: Node) -> Gradient:  # alpha e^x = y + alpha below 0
    return op.Where(n.x > 0.0, n.g, n.g * (n.y + n.attribute("alpha", 1.0)))


@rule("Celu")
def celu(n: Node) -> Gradient:
    return op.Where(n.x > 0.0, n.g, n.g * (n.y / n.attribute("alpha", 1.0) + 1.0))


@rule("Selu")
def selu(n: Node) -> Gradient:
    alpha = n.attribute("alpha", 1.67326319217681884765625)
    gamma = n.attribute("gamma", 1.05070102214813232421875)
    return op.Where(n.x > 0.0, n.g * gamma, n.g * (n.y + alpha * gamma))


@rule("Sigmoid")
def sigmoid(n: Node) -> Gradient:
    return n.g * n.y * (1.0 - n.y)


def swish(n: Node) -> tuple[ir.Value, ir.Value] | None:
    """x and s where the node is x s with s = sigmoid(x)."""
    if n.op != "Mul" or n.ir.domain:
        return None
    for x, s in (n.ir.inputs, n.ir.inputs[::-1]):
        made = None if s is None else s.producer()
        if x is None or s is None or made is None or made.op_type != "Sigmoid" or made.domain:
            continue
        if made.inputs[0] is x:
            return x, s
    return None


def swish_gradient(n: Node, s: Expr) -> Expr:
    """dL/dx of y = x s by way of x and s, in four passes over tensors; the rules of Mul and Sigmoid take six."""
    return n.g * (s + n.y * (1.0 - s))


@rule("HardSigmoid")
def hard_sigmoid(n: Node) -> Gradient:
    return keep(op.And(n.y > 0.0, n.y < 1.0), n.g * n.attribute("alpha", 0.2))


@rule("HardSwish")
def hard_swish(n: Node) -> Gradient:  # x clip(x/6 + 1/2, 0, 1)
    inside = n.g * ((n.x * 2.0 + 3.0) / 6.0)
    return op.Where(n.x >= 3.0, n.g, keep(n.x > -3.0, inside))


@rule("Tanh")
def tanh(n: Node) -> Gradient:
    return n.g * (1.0 - n.y * n.y)


@rule("Softplus")
def softplus(n: Node) -> Gradient:
    return n.g * op.Sigmoid(n.x)


@rule("Softsign")
def softsign(n: Node) -> Gradient:  # y = x / (1 + |x|), dy/dx = (1 - |y|)^2
    slack = 1.0 - op.Abs(n.y)
    return n.g * (slack * slack)


@rule("Mish")
def mish(n: Node) -> Gradient:  # x t with t = tanh(softplus(x))
    t = op.Tanh(op.Softplus(n.x))
    return n.g * (t + n.x * op.Sigmoid(n.x) * (1.0 - t * t))


@rule("Gelu")
def gelu(n: Node) -> Gradient:
    x = n.x
    if n.attribute("approximate", "none") == "tanh":
        k = math.sqrt(2.0 / math.pi)
        t = op.Tanh((x + x * x * x * 0.044715) * k)
        inner = (x * x * (3 * 0.044715) + 1.0) * k
        return n.g * ((1.0 + t) * 0.5 + x * (1.0 - t * t) * inner * 0.5)
    cumulative = (op.Erf(x * math.sqrt(0.5)) + 1.0) * 0.5
    density = op.Exp(x * x * -0.5) * (1.0 / math.sqrt(2.0 * math.pi))
    return n.g * (cumulative + x * density)


@rule("Softmax")
def softmax(n: Node) -> Gradient:  # y (g - sum(g y))
    weighted = n.g * n.y
    return weighted - n.y * _along_axis(n, weighted)


@rule("LogSoftmax")
def log_softmax(n: Node) -> Gradient:  # g - softmax sum(g)
    return n.g - op.Exp(n.y) * _along_axis(n, n.g)


def _along_axis(n: Node, x: Expr) -> Expr:
    return op.ReduceSum(x, constant([n.attribute("axis", -1)]), keepdims=1)
