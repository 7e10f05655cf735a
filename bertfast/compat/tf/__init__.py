"""The TensorFlow BERT classes of transformers 4.37, over bertfast's engine. TensorFlow is not needed.

from bertfast.compat.tf import TFBertForTokenClassification
model = TFBertForTokenClassification.from_pretrained(folder)
outputs = model(tokenizer(texts, padding=True, return_tensors="np"))      # NumPy in, NumPy out; tf.Tensor in, tf.Tensor out

models.py      the two classes: the ways to call them, from_pretrained, predict
arguments.py   the first argument in its four forms, and what each argument may be
losses.py      TF's losses: a leading axis or none, as recorded
"""

from bertfast.compat.tf.models import TFBertForQuestionAnswering as TFBertForQuestionAnswering
from bertfast.compat.tf.models import TFBertForTokenClassification as TFBertForTokenClassification
from bertfast.compat.tf.models import TFQuestionAnsweringModelOutput as TFQuestionAnsweringModelOutput
from bertfast.compat.tf.models import TFTokenClassifierOutput as TFTokenClassifierOutput
