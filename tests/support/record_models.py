"""Record what PyTorch computes in float32 from the float16 weights of the trained models, on two held-out sequences.

    python tests/support/record_models.py corpus

The corpus is the folder of heldout.npy that the models were trained with. tests/bert/test_models.py compares numpy's
encoder with what this writes to tests/bert/recorded. Run anew when the models change, and only then.
"""

import argparse
from pathlib import Path

import cmm.bert
import numpy as np
import torch
from cmm.bert.trained import TRAINED
from cmm.torch import FFF, MaskedLanguageModel, data, training

RECORDED = Path(__file__).parent.parent / "bert/recorded"
_LENGTHS = (40, 24)


def main() -> None:
    """Record both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    sequences = np.load(parser.parse_args().corpus / "heldout.npy").astype(np.int64)
    for name in TRAINED:
        model = cmm.bert.trained(name)
        arch = {**model.config.arch, "embedding": {**model.config.arch["embedding"]}}
        arch["embedding"]["vocab_size"] = len(model.weights.word)
        network = MaskedLanguageModel(arch)
        network.load_state_dict(training.state_dict(model))
        network.eval()
        answers = {"torch": np.array([torch.__version__, "CPU"])}
        for number, length in enumerate(_LENGTHS):
            ids = torch.from_numpy(sequences[number : number + 1, :length])
            masked = data.hide(ids, number, len(model.weights.word), share=0.125)
            found = answer(network, masked)
            answers |= {f"{key}_{number}": value for key, value in found.items()}
        np.savez_compressed(RECORDED / f"{name}.npz", **answers)


def answer(network: MaskedLanguageModel, masked: data.Masked) -> dict[str, np.ndarray]:
    """Return ids, places and logits of one sequence, and how it went through the trees, by PyTorch's products."""
    entered: list[torch.Tensor] = []
    layers = [module for module in network.modules() if isinstance(module, FFF)]
    hooks = [layer.register_forward_pre_hook(lambda _, x: entered.append(x[0][0])) for layer in layers]
    with torch.no_grad():
        logits = network(masked.ids, places=masked.places)[0]
    for hook in hooks:
        hook.remove()
    found = {"ids": masked.ids[0].numpy().astype(np.uint16), "places": masked.places[0].numpy().astype(np.uint8)}
    found["logits"] = logits.numpy()
    if layers:
        walks = [walk(layer, x) for layer, x in zip(layers, entered, strict=True)]
        found["ffn_in"] = torch.stack(entered).numpy()
        found["path_nodes"], found["path_logits"] = (np.stack(part) for part in zip(*walks, strict=True))
    return found


def walk(layer: FFF, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and logits of the paths of tokens (T, d_in), (T, K, D+1) each, from a product of all neurons."""
    with torch.no_grad():
        z = torch.nn.functional.linear(x, layer.linear_in.weight, layer.linear_in.bias)
    z = z.reshape(len(x), layer.trees, layer.nodes)
    node = torch.zeros(len(x), layer.trees, 1, dtype=torch.int64)
    nodes, logits = [], []
    for _ in range(layer.depth + 1):
        nodes.append(node)
        logits.append(z.gather(2, node))
        node = 2 * node + 1 + (logits[-1] > 0)
    return torch.cat(nodes, 2).numpy().astype(np.uint8), torch.cat(logits, 2).numpy()


if __name__ == "__main__":
    main()
