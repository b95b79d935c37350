"""Networks that methods train: plain modules that know no language model, tokenizer or file."""
