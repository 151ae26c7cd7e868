"""The project's form of a network file: ONNX whose initialisers bear the names of the torch module's parameters.

Kernels and matrices are stored in half precision (or single, where the writer is told so) and cast to float32 in the
graph; vectors (biases, slopes, batch normalisation) are always single. Batch normalisation stays a node of its own, and
the batch is dynamic. So one file serves OpenVINO, any other ONNX runtime, and training.
"""

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from model.errors import ModelFileError
from model.networks import ARCHITECTURES, Shape

_OPSET = 17
_IR_VERSION = 8
_INPUT = "pixels"
_ARCHITECTURE = "architecture"


def write_network(module: nn.Module, path: Path, *, half: bool = True) -> None:
    """Write a torch module as a network file; the same module always gives the same bytes.

    Args:
        module: one of `model.networks.ARCHITECTURES`.
        path: file to write.
        half: store kernels and matrices as float16 instead of float32.
    """
    output_shapes = cast(Mapping[str, Shape], module.output_shapes)
    graph = _Graph(module, half=half)
    graph.trace(tuple(output_shapes))
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            type(module).__name__,
            [_tensor_info(_INPUT, cast(Shape, module.input_shape))],
            [_tensor_info(name, shape) for name, shape in output_shapes.items()],
            graph.initialisers,
        ),
        producer_name="facegallery",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    helper.set_model_props(proto, {_ARCHITECTURE: type(module).__name__})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def read_network(path: Path) -> nn.Module:
    """Read a network file as the torch module that it was written from, in evaluation mode, float32.

    Raises:
        ModelFileError: no network file of this project, or damaged.
    """
    try:
        proto = onnx.load(path)
        architecture = {item.key: item.value for item in proto.metadata_props}[_ARCHITECTURE]
        module = ARCHITECTURES[architecture]()
        module.load_state_dict(_state(proto))
    except Exception as error:  # protobuf, torch and onnx each have their own
        raise ModelFileError(
            f"{path} is not a network file of this project ({type(error).__name__}); restore it"
        ) from error
    return module.eval()


def _state(proto: onnx.ModelProto) -> Mapping[str, Tensor]:
    arrays = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    # Constants of the graph, such as shapes, have names that start with "/", which no parameter's does.
    return {
        name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items() if not name.startswith("/")
    }


def _tensor_info(name: str, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


class _Graph:
    """Nodes and initialisers of a module, collected in the order in which it runs."""

    def __init__(self, module: nn.Module, *, half: bool) -> None:
        self.module = module
        self.half = half
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self._values: dict[fx.Node, str] = {}

    def trace(self, output_names: tuple[str, ...]) -> None:
        traced = fx.symbolic_trace(self.module)
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = _INPUT
            elif node.op == "call_module":
                layer = traced.get_submodule(str(node.target))
                self._values[node] = _LAYERS[type(layer)](self, str(node.target), layer, self._values[node.args[0]])
            elif node.op == "output":
                results = node.args[0] if isinstance(node.args[0], tuple) else node.args
                for result, name in zip(results, output_names, strict=True):
                    self.add("Identity", name, [self._values[result]])
            else:
                self._values[node] = self._function(node)

    def add(self, kind: str, output: str, inputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"/{output}", **attributes))
        return output

    def constant(self, name: str, values: Any, dtype: type) -> str:
        self.initialisers.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), f"/{name}"))
        return f"/{name}"

    def parameter(self, name: str) -> str:
        """The float32 value of a parameter or buffer of the module."""
        array = self.module.state_dict()[name].detach().cpu().numpy().astype(np.float32)
        if not (self.half and array.ndim > 1):
            self.initialisers.append(numpy_helper.from_array(array, name))
            return name
        self.initialisers.append(numpy_helper.from_array(array.astype(np.float16), name))
        return self.add("Cast", f"/{name}/float32", [name], to=TensorProto.FLOAT)

    def _function(self, node: fx.Node) -> str:
        first = self._values[cast(fx.Node, node.args[0])]
        out = f"/{node.name}"
        if node.target is torch.sigmoid:
            return self.add("Sigmoid", out, [first])
        if node.target is torch.flatten and node.args[1:] == (2,):
            return self.add("Reshape", out, [first, self.constant(f"{node.name}/shape", [0, 0, -1], np.int64)])
        if node.target == "transpose" and node.args[1:] == (1, 2):
            return self.add("Transpose", out, [first], perm=[0, 2, 1])
        kinds: dict[Any, str] = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul"}
        second = node.args[1]
        other = (
            self._values[second]
            if isinstance(second, fx.Node)
            else self.constant(f"{node.name}/value", second, np.float32)
        )
        return self.add(kinds[node.target], out, [first, other])


def _convolution(graph: _Graph, name: str, layer: nn.Module, value: str) -> str:
    conv = cast(nn.Conv2d, layer)
    inputs = [value, graph.parameter(f"{name}.weight")] + (
        [] if conv.bias is None else [graph.parameter(f"{name}.bias")]
    )
    pads = [int(side) for side in conv.padding] * 2
    return graph.add(
        "Conv", f"/{name}", inputs, kernel_shape=conv.kernel_size, strides=conv.stride, pads=pads, group=conv.groups
    )


def _batch_norm(graph: _Graph, name: str, layer: nn.Module, value: str) -> str:
    parts = ("weight", "bias", "running_mean", "running_var")
    inputs = [value, *(graph.parameter(f"{name}.{part}") for part in parts)]
    return graph.add("BatchNormalization", f"/{name}", inputs, epsilon=cast(nn.BatchNorm2d, layer).eps)


def _prelu(graph: _Graph, name: str, _layer: nn.Module, value: str) -> str:
    axes = graph.constant(f"{name}/axes", [1, 2], np.int64)
    slope = graph.add("Unsqueeze", f"/{name}/slope", [graph.parameter(f"{name}.weight"), axes])
    return graph.add("PRelu", f"/{name}", [value, slope])


def _linear(graph: _Graph, name: str, _layer: nn.Module, value: str) -> str:
    inputs = [value, graph.parameter(f"{name}.weight"), graph.parameter(f"{name}.bias")]
    return graph.add("Gemm", f"/{name}", inputs, transB=1)


def _upsample(graph: _Graph, name: str, layer: nn.Module, value: str) -> str:
    factor = float(cast(float, cast(nn.Upsample, layer).scale_factor))
    scales = graph.constant(f"{name}/{len(graph.nodes)}/scales", [1, 1, factor, factor], np.float32)
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return graph.add("Resize", f"/{name}/{len(graph.nodes)}", [value, "", scales], **options)


def _max_pool(graph: _Graph, name: str, layer: nn.Module, value: str) -> str:
    side = cast(int, cast(nn.MaxPool2d, layer).kernel_size)
    return graph.add("MaxPool", f"/{name}/{len(graph.nodes)}", [value], kernel_shape=[side, side], strides=[side, side])


_LAYERS: dict[type[nn.Module], Callable[[_Graph, str, nn.Module, str], str]] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.PReLU: _prelu,
    nn.Linear: _linear,
    nn.Upsample: _upsample,
    nn.MaxPool2d: _max_pool,
    nn.ReLU: lambda graph, name, _layer, value: graph.add("Relu", f"/{name}", [value]),
    nn.Flatten: lambda graph, name, _layer, value: graph.add("Flatten", f"/{name}", [value], axis=1),
    nn.Identity: lambda _graph, _name, _layer, value: value,
    nn.Dropout: lambda _graph, _name, _layer, value: value,  # does nothing outside training
}
