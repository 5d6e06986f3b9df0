"""Random networks: every seed is a small valid graph of some opset, in some exporter's or nobody's style.

The seed decides the opset, the rank of the data, the moves, how things are named, and which tensors are outputs.
"""

from __future__ import annotations

import moves_control
import moves_places
import moves_values
import numpy as np
import onnx
from moves_layers import LAYERS
from nets import FLOAT, MOVES, Net
from onnx import helper, numpy_helper

REGISTERED = (moves_control, moves_places, moves_values)
OPSETS = range(7, 27)
_IR = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}


def random_net(seed: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A checked model and feeds for it."""
    rng = np.random.default_rng(seed)
    opset = int(rng.choice(OPSETS))
    net = Net(seed=seed, opset=opset, rng=rng, awkward=bool(rng.random() < 0.3))
    batch = int(rng.choice([1, 2, 4]))
    tails = {2: (6,), 3: (4, 9), 4: (4, 8, 8), 5: (2, 4, 4, 4)}
    for _ in range(1 + int(rng.random() < 0.3)):
        rank = int(rng.choice([2, 3, 4, 4, 4, 5]))
        name = net.name()
        net.inputs[name] = net.shapes[name] = (batch, *tails[rank])
    names = list(MOVES)
    made = 0
    for _ in range(200):
        made += bool(MOVES[str(rng.choice(names))](net))
        if made >= 3 + seed % 8:
            break
    while not any(n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for n in net.nodes):
        LAYERS[int(rng.integers(len(LAYERS)))](net)
    return _finished(net, batch)


def _finished(net: Net, batch: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    read = {name for node in net.nodes for name in node.input}
    made = {name for node in net.nodes for name in node.output}
    leaves = [name for name in net.shapes if name in made and name not in read]
    inner = [name for name in net.shapes if name in made and name in read]
    outputs = leaves + [name for name in inner if net.rng.random() < 0.1]
    dynamic = net.rng.random() < 0.3 and not any(n.op_type in ("Reshape", "Loop", "If") for n in net.nodes)

    def info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        dims = ["N" if dynamic and i == 0 and d == batch else d for i, d in enumerate(shape)]
        return helper.make_tensor_value_info(name, FLOAT, dims)

    initializers = [numpy_helper.from_array(w, name) for name, w in net.weights.items()]
    inputs = [info(name, shape) for name, shape in net.inputs.items()]
    if net.opset < 9:  # IR 3: initializers are inputs as well
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in initializers]
    graph = helper.make_graph(
        net.nodes, f"net {net.seed}", inputs, [info(name, net.shapes[name]) for name in outputs], initializers
    )
    imports = [helper.make_opsetid("", net.opset)]
    if net.functions:
        imports.append(helper.make_opsetid("local", 1))
    model = helper.make_model(graph, opset_imports=imports, functions=net.functions)
    model.ir_version = max(_IR.get(net.opset, 13), 8 if net.functions else 3)
    model.metadata_props.add(key="author", value=f"seed {net.seed}")
    onnx.checker.check_model(model, full_check=True)
    feeds = {name: net.rng.standard_normal(shape).astype(np.float32) for name, shape in net.inputs.items()}
    return model, feeds
