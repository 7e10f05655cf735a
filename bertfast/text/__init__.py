"""From texts to embedding vectors.

    embedder.py                      Embedder: tokenize, batch, run the model, pool
    tokenization.py                  texts to token ids, in chunks
    tokenizer_files.py               the folder's tokenizer, checked
    token_budget.py                  which texts share a batch
    pooling.py                       token vectors to one vector per text
    model_loading.py                 the folder's BertModel, checked for missing weights
    sentence_transformers_folder.py  the settings that a folder saved by sentence-transformers carries
    transformer_config.py            sentence_bert_config.json

bertfast.tasks re-exports Embedder. Only bertfast.tasks and bertfast.cli import this package.
"""
