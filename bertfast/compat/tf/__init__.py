"""The TensorFlow BERT classes of transformers 4.37, over bertfast's engine. TensorFlow is not needed.

from bertfast.compat.tf import TFBertForTokenClassification
model = TFBertForTokenClassification.from_pretrained(folder)
outputs = model(tokenizer(texts, padding=True, return_tensors="np"))      # NumPy in, NumPy out; tf.Tensor in, tf.Tensor out

models.py      the two classes
outputs.py     their output classes
pretrained.py  their base class: construction, from_pretrained, the call
arguments.py   the arguments of a call, read and checked
losses.py      TF's losses
keras.py       predict, get_weights, set_weights
"""

from bertfast.compat.tf.models import TFBertForQuestionAnswering as TFBertForQuestionAnswering
from bertfast.compat.tf.models import TFBertForTokenClassification as TFBertForTokenClassification
from bertfast.compat.tf.outputs import TFQuestionAnsweringModelOutput as TFQuestionAnsweringModelOutput
from bertfast.compat.tf.outputs import TFTokenClassifierOutput as TFTokenClassifierOutput
