"""The TensorFlow and Flax classes: those of bertfast.compat, and those of transformers 4.37 in an environment of their own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.subjects.adapter import AbsentError, Adapter, Arrays
from benchmarks.suite.models import HEADS

_CLASSES = {
    "encoder": "FlaxBertModel",
    "pretraining": "FlaxBertForPreTraining",
    "lm": "FlaxBertForCausalLM",
    "tokens": "TFBertForTokenClassification",
    "qa": "TFBertForQuestionAnswering",
}


class Compat(Adapter):
    """NumPy in, NumPy out. Its ratio to `bertfast` is the cost of the compat classes, and of not using huge pages."""

    model: Any

    def load(self, folder: Path, task: str, cache: Path) -> None:
        import torch

        import bertfast
        from bertfast.compat import flax, tf

        torch.set_num_threads(self.threads)
        bertfast.set_num_threads(self.threads)
        name = _CLASSES[task]
        self.model = getattr(tf if name.startswith("TF") else flax, name).from_pretrained(folder)

    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[[], Any]:
        return lambda: self.model(**inputs)

    def outputs(self, result: Any) -> Arrays:
        return dict(result)


class Transformers437(Adapter):
    """A Flax model under jax.jit, or a TensorFlow model under tf.function."""

    run: Callable[..., Any]
    convert_input: Callable[..., Any]

    def load(self, folder: Path, task: str, cache: Path) -> None:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        if hasattr(os, "sched_setaffinity"):  # XLA uses a thread for each core that it may run on
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.threads])
        try:
            import transformers

            if not transformers.__version__.startswith("4.37"):
                raise AbsentError(f"its environment has transformers {transformers.__version__}, expected 4.37")
            load = self._load_tf if _CLASSES[task].startswith("TF") else self._load_flax
            self.run = load(getattr(transformers, _CLASSES[task]), folder, HEADS[task][1])
        except ImportError as error:
            raise AbsentError(f"its environment lacks a package: {error}") from None

    def _load_flax(self, cls: Any, folder: Path, names: tuple[str, ...]) -> Callable[..., Any]:
        import jax

        model = cls.from_pretrained(folder)
        self.convert_input = jax.numpy.asarray

        @jax.jit
        def run(params: Any, inputs: Any) -> dict[str, Any]:
            outputs = model(**inputs, params=params)
            return {name: outputs[name] for name in names}

        return lambda inputs: jax.block_until_ready(run(model.params, inputs))

    def _load_tf(self, cls: Any, folder: Path, names: tuple[str, ...]) -> Callable[..., Any]:
        import tensorflow

        tensorflow.config.threading.set_intra_op_parallelism_threads(self.threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
        model = cls.from_pretrained(folder)
        self.convert_input = tensorflow.constant

        @tensorflow.function
        def run(inputs: Any) -> dict[str, Any]:
            outputs = model(inputs, training=False)
            return {name: outputs[name] for name in names}

        return run

    def prepare(self, inputs: Arrays, new_tokens: int) -> Callable[[], Any]:
        arrays = {name: self.convert_input(array, dtype="int32") for name, array in inputs.items()}
        return lambda: self.run(arrays)

    def outputs(self, result: Any) -> Arrays:
        import numpy as np

        return {name: np.asarray(array) for name, array in result.items()}
