"""The documentation examples of the five classes in transformers 4.37, line by line, on small random models.

One difference: tokenizers of transformers 5 have no return_tensors="tf" or "jax", so their NumPy output is converted.
"""

import pytest
from transformers import AutoTokenizer, BatchEncoding, BertConfig, BertTokenizerFast

from bertfast.compat.flax import FlaxBertForCausalLM, FlaxBertForPreTraining, FlaxBertModel
from bertfast.compat.tf import TFBertForQuestionAnswering, TFBertForTokenClassification

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install 'bertfast[compat-test]'")
jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'bertfast[compat-test]'")
jnp = jax.numpy

WORDS = "hugging face is a company based in paris and new york who was jim hens ##on ? nice puppet hello , my dog cute"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
LABELS = {0: "O", 1: "B-ORG", 2: "B-LOC", 3: "I-LOC"}


@pytest.fixture
def folder(tmp_path):
    """folder(cls, **config) -> a folder with a random model of the class and a tokenizer."""

    def made(cls, **config):
        (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
        BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
        cls(
            BertConfig(
                vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                max_position_embeddings=40, **config,
            )
        ).save_pretrained(tmp_path)  # fmt: skip
        return tmp_path

    return made


def as_tensors(batch, convert):
    return BatchEncoding({name: convert(value) for name, value in batch.items()})


def test_token_classification(folder):
    path = folder(TFBertForTokenClassification, id2label=LABELS)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = TFBertForTokenClassification.from_pretrained(path)

    inputs = tokenizer("HuggingFace is a company based in Paris and New York", add_special_tokens=False, return_tensors="np")
    inputs = as_tensors(inputs, tf.constant)

    logits = model(**inputs).logits
    predicted_token_class_ids = tf.math.argmax(logits, axis=-1)
    predicted_tokens_classes = [model.config.id2label[t] for t in predicted_token_class_ids[0].numpy().tolist()]
    assert len(predicted_tokens_classes) == inputs.input_ids.shape[1]
    assert set(predicted_tokens_classes) <= set(LABELS.values())

    labels = predicted_token_class_ids
    loss = tf.math.reduce_mean(model(**inputs, labels=labels).loss)
    by_hand = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    assert abs(float(loss) - float(by_hand)) < 1e-5


def test_question_answering(folder):
    path = folder(TFBertForQuestionAnswering)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = TFBertForQuestionAnswering.from_pretrained(path)

    question, text = "Who was Jim Henson?", "Jim Henson was a nice puppet"
    inputs = as_tensors(tokenizer(question, text, return_tensors="np"), tf.constant)
    outputs = model(**inputs)

    answer_start_index = int(tf.math.argmax(outputs.start_logits, axis=-1)[0])
    answer_end_index = int(tf.math.argmax(outputs.end_logits, axis=-1)[0])
    predict_answer_tokens = inputs.input_ids[0, answer_start_index : answer_end_index + 1]
    assert isinstance(tokenizer.decode(predict_answer_tokens.numpy()), str)
    assert 0 <= answer_start_index < inputs.input_ids.shape[1]

    target_start_index = tf.constant([14])
    target_end_index = tf.constant([15])
    outputs = model(**inputs, start_positions=target_start_index, end_positions=target_end_index)
    loss = tf.math.reduce_mean(outputs.loss)
    by_hand = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(tf.constant([at]), scores)[0]
        for at, scores in ((14, outputs.start_logits), (15, outputs.end_logits))
    ]
    assert abs(float(loss) - float(sum(by_hand)) / 2) < 1e-5


def test_model(folder):
    path = folder(FlaxBertModel)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = FlaxBertModel.from_pretrained(path)

    inputs = as_tensors(tokenizer("Hello, my dog is cute", return_tensors="np"), jnp.asarray)
    outputs = model(**inputs)

    last_hidden_states = outputs.last_hidden_state
    assert isinstance(last_hidden_states, jax.Array)
    assert last_hidden_states.shape == (*inputs.input_ids.shape, 32)
    assert bool(jnp.isfinite(last_hidden_states).all())


@pytest.mark.parametrize("convert", [lambda x: x, jnp.asarray], ids=["as written, in NumPy", "in jnp"])
def test_pretraining(folder, convert):
    path = folder(FlaxBertForPreTraining)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = FlaxBertForPreTraining.from_pretrained(path)

    inputs = as_tensors(tokenizer("Hello, my dog is cute", return_tensors="np"), convert)
    outputs = model(**inputs)

    prediction_logits = outputs.prediction_logits
    seq_relationship_logits = outputs.seq_relationship_logits
    assert type(prediction_logits) is type(inputs.input_ids)
    assert prediction_logits.shape == (*inputs.input_ids.shape, len(VOCABULARY))
    assert seq_relationship_logits.shape == (1, 2)


@pytest.mark.parametrize("convert", [lambda x: x, jnp.asarray], ids=["as written, in NumPy", "in jnp"])
def test_causal_lm(folder, convert):
    path = folder(FlaxBertForCausalLM, is_decoder=True)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = FlaxBertForCausalLM.from_pretrained(path)

    inputs = as_tensors(tokenizer("Hello, my dog is cute", return_tensors="np"), convert)
    outputs = model(**inputs)

    # retrieve logts for next token
    next_token_logits = outputs.logits[:, -1]
    assert type(next_token_logits) is type(inputs.input_ids)
    assert next_token_logits.shape == (1, len(VOCABULARY))
    shorter = model(**{name: value[:, :-1] for name, value in inputs.items()}).logits  # causal: later tokens have no effect
    assert float(jnp.abs(jnp.asarray(shorter) - jnp.asarray(outputs.logits)[:, :-1]).max()) < 1e-5
