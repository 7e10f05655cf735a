"""Checkpoints that TensorFlow and Flax BERTs wrote, read as a state dict with PyTorch names.

transformers 5 reads PyTorch's formats only: it ignores `tf_model.h5` and `flax_model.msgpack`, and loads a `model.safetensors` in TF's
or Flax's layout as random weights. from_pretrained of every bertfast class detects such a folder and passes transformers a state
dict; prefixes, tying, dtype and the report of missing and unexpected keys are then transformers' work, as for its own files.

    folder.py        detects the format of a folder and lists its files
    names.py         TF and Flax parameter names <-> PyTorch's
    hdf5.py          tf_model.h5, whole or sharded (needs h5py)
    hdf5_child.py    the child process that runs h5py, which may crash
    flax_msgpack.py  flax_model.msgpack, whole or sharded (needs msgpack)
    tensors.py       safetensors, and arrays to tensors
    pickles.py       pytorch_model.bin, checked before torch reads it
    json_files.py    JSON files in bounded time and memory
    hub.py           names of models on the Hub, from the local cache
    own_code.py      refuses a folder that asks for code of its own
    loading.py       state dict -> model, through the class's from_pretrained
    errors.py        the two errors of this package

A damaged or hostile file raises a ValueError that names it; reading takes about three times the file in memory at most.
bertfast.quantization, .convert and .compat import this package; it imports no other package of bertfast.
"""

from bertfast.checkpoints.folder import Checkpoint as Checkpoint
from bertfast.checkpoints.folder import detect as detect
from bertfast.checkpoints.folder import model_format as model_format
from bertfast.checkpoints.loading import NOT_CONFIG as NOT_CONFIG
from bertfast.checkpoints.loading import folder_of as folder_of
from bertfast.checkpoints.loading import foreign_state_dict as foreign_state_dict
from bertfast.checkpoints.loading import from_pretrained as from_pretrained
from bertfast.checkpoints.loading import load_foreign as load_foreign
from bertfast.checkpoints.loading import read_weights as read_weights
