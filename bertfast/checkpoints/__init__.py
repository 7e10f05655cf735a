"""Checkpoints written by the TensorFlow and Flax BERTs, as one state dict of PyTorch names.

transformers 5 reads PyTorch's formats alone: it does not see a `tf_model.h5` or a `flax_model.msgpack`, and a
`model.safetensors` in TF's or Flax's layout loads as random weights. `from_pretrained` of every bertfast class looks at
the folder and, where the weights are foreign, hands transformers a state dict; transformers then does the rest (prefixes,
tying, dtype, the report of missing and unexpected keys) as for its own files.

    names.py        TF and Flax parameter names <-> PyTorch's
    folder.py       which format a folder holds, and the files of it
    hdf5.py         tf_model.h5, whole or sharded                    (needs h5py)
    hdf5_child.py   the process that h5py runs in, and may crash
    flax_msgpack.py flax_model.msgpack, whole or sharded
    tensors.py      safetensors, and arrays to tensors
    loading.py      state dict -> model, through a class's own from_pretrained

A damaged or hostile file raises ValueError that names it; reading never takes more memory than about three times the file.
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
