"""Capture, edit and restart the residual stream of any PyTorch model.

Streams are ``(batch, tokens, d)``; "layer i" is the stream *after* block i. An integer
names ``model.blocks[i]`` (EpiBERT), a string any submodule (``"encoder.layer.3"``).
Plain forward hooks, because they work on every ``nn.Module`` and can be tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["capture", "edited", "evaluating", "restart"]

Layer = int | str
Edit = Callable[[torch.Tensor], torch.Tensor]


def capture(
    model: nn.Module,
    inputs: torch.Tensor | Sequence[Any] | Mapping[str, Any],
    layers: Iterable[Layer],
) -> dict[Layer, torch.Tensor]:
    """Run the model once and keep the streams after the given layers.

    The model runs in evaluation mode (its own mode is restored) and without gradients:
    dropout would make a captured stream irreproducible.

    Parameters
    ----------
    model : torch.nn.Module
        For integer layers it must hold its blocks in ``model.blocks``.
    inputs : tensor, sequence or mapping
        One tensor, positional arguments (EpiBERT: ``(sequence, atac,
        motif_activity)``) or keyword arguments (Hugging Face: the encoded batch).
    layers : iterable of int or str
        Block numbers, 0-based, or module names as in ``model.named_modules()``.

    Returns
    -------
    dict
        ``{layer: stream}`` in the order asked for, each of shape (batch, tokens, d), a
        copy that later in-place operations of the model cannot change.

    Raises
    ------
    ValueError
        If no layer is asked for, a layer does not exist, or its module ran not exactly
        once in this forward pass (unused, or shared between depths).

    Examples
    --------
    >>> streams = capture(nn.Sequential(nn.Identity()), torch.ones(1, 2, 3), ["0"])
    >>> streams["0"].shape
    torch.Size([1, 2, 3])
    """
    layers = list(layers)
    if not layers:
        raise ValueError("layers must name at least one layer; got none")
    modules = {layer: _module(model, layer) for layer in layers}
    seen: dict[Layer, list[torch.Tensor]] = {layer: [] for layer in layers}

    def keep(layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[layer].append(_stream(output, layer).detach().clone())

        return hook

    with ExitStack() as stack:
        for layer, module in modules.items():
            handle = module.register_forward_hook(keep(layer))
            stack.callback(handle.remove)
        _forward(model, inputs)
    for layer, streams in seen.items():
        _check_once(layer, len(streams))
    return {layer: streams[0] for layer, streams in seen.items()}


@contextmanager
def edited(model: nn.Module, edits: Mapping[Layer, Edit]) -> Iterator[nn.Module]:
    """Replace streams by functions of themselves while the context is open.

    Parameters
    ----------
    model : torch.nn.Module
        Model whose forward passes inside the context are edited.
    edits : mapping of layer to callable
        Each ``fn(stream) -> stream`` maps (batch, tokens, d) to the same shape and
        dtype. Where a module returns a tuple (attention weights beside the stream) its
        first entry is edited and the others pass through.

    Yields
    ------
    torch.nn.Module
        The same model; the edits are gone when the context closes, also after an error.

    Raises
    ------
    ValueError
        If a layer does not exist, or an edit changes the stream's shape or dtype.
    """
    with _counted_edits(model, edits):
        yield model


@contextmanager
def _counted_edits(
    model: nn.Module, edits: Mapping[Layer, Edit]
) -> Iterator[Counter[Layer]]:
    """Edit as `edited` does, and count how often each layer ran."""
    modules = {layer: _module(model, layer) for layer in edits}
    n_runs: Counter[Layer] = Counter()

    def apply(layer: Layer) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            n_runs[layer] += 1
            stream = _stream(output, layer)
            changed = edits[layer](stream)
            if changed.shape != stream.shape or changed.dtype != stream.dtype:
                raise ValueError(
                    f"the edit of layer {layer!r} must keep shape "
                    f"{tuple(stream.shape)} and {stream.dtype}; got "
                    f"{tuple(changed.shape)} and {changed.dtype}"
                )
            return changed if output is stream else type(output)([changed, *output[1:]])

        return hook

    with ExitStack() as stack:
        for layer, module in modules.items():
            handle = module.register_forward_hook(apply(layer))
            stack.callback(handle.remove)
        yield n_runs


@torch.no_grad()
def restart(
    model: nn.Module,
    x: torch.Tensor,
    layer: Layer,
    *,
    inputs: torch.Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
) -> Any:
    """Run the model from the stream after ``layer`` to its output.

    In EpiBERT nothing bypasses the residual stream, so ``restart(model,
    capture(model, run, [i])[i], i)`` is exactly the output of that run, and the
    sequence tower, three quarters of a forward pass, is not run again.

    Parameters
    ----------
    model : torch.nn.Module
        With ``run_blocks(x, start)`` and ``head(x)`` as EpiBERT has; any other model
        needs `inputs`.
    x : torch.Tensor, shape (batch, tokens, d)
        Stream to put after the layer.
    layer : int or str
        Layer whose stream is replaced.
    inputs : tensor, sequence or mapping, optional
        For a model that cannot start midway: it runs in full from these inputs and
        has its stream replaced at the layer. Same answer if nothing bypasses the
        stream, at the price of a full pass.

    Returns
    -------
    torch.Tensor
        Output of the model, or whatever the model returns.

    Raises
    ------
    ValueError
        If the layer does not exist, the model cannot start midway and `inputs` is
        missing, or the layer's module ran not exactly once in the full pass.
    """
    _module(model, layer)
    if inputs is not None:
        with _counted_edits(model, {layer: lambda _: x}) as n_runs:
            output = _forward(model, inputs)
        _check_once(layer, n_runs[layer])
        return output
    if isinstance(layer, str) or not hasattr(model, "run_blocks"):
        raise ValueError(
            f"{type(model).__name__} cannot start after layer {layer!r}: it needs an "
            "integer layer and run_blocks and head, or pass inputs for a full pass"
        )
    with evaluating(model):
        return model.head(model.run_blocks(x, start=layer + 1))


def _module(model: nn.Module, layer: Layer) -> nn.Module:
    """Find the module whose output is the stream after `layer`."""
    if isinstance(layer, str):
        names = dict(model.named_modules())
        if not layer or layer not in names:
            shown = ", ".join(list(names)[1:9])
            raise ValueError(
                f"layer {layer!r} is not a module of {type(model).__name__}; "
                f"its modules begin {shown}"
            )
        return names[layer]
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(
            f"layer {layer!r} needs {type(model).__name__}.blocks, a ModuleList; "
            "name the layer by a string instead"
        )
    if not 0 <= layer < len(blocks):
        raise ValueError(f"layer must lie in 0 … {len(blocks) - 1}; got {layer}")
    return blocks[layer]


def _check_once(layer: Layer, n_runs: int) -> None:
    """Refuse a layer that is unused, or shared between depths."""
    if n_runs != 1:
        raise ValueError(
            f"layer {layer!r} must run exactly once per forward pass; it ran {n_runs} "
            "times"
        )


def _stream(output: Any, layer: Layer) -> torch.Tensor:
    """Return the stream in a module's output: the tensor, or a tuple's first entry."""
    stream = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(stream, torch.Tensor) or stream.ndim != 3:
        found = (
            f"shape {tuple(stream.shape)}"
            if isinstance(stream, torch.Tensor)
            else type(stream).__name__
        )
        raise ValueError(
            f"layer {layer!r} must put out a stream (batch, tokens, d); got {found}"
        )
    return stream


@torch.no_grad()
def _forward(model: nn.Module, inputs: Any) -> Any:
    """Call the model on one tensor, on positional or on keyword arguments."""
    with evaluating(model):
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, torch.Tensor):
            return model(inputs)
        return model(*inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode and give every module its own mode back."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
